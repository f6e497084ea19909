"""Which checkpoint came from which: families that are made of random numbers, as tests make them.

A base of random tensors; children are their parent with something done to some of its tensors, the
others the same bits. Each family is drawn: its tree (a star, a chain, each from any before, two
generations), the shapes and first values of its tensors, the arithmetic of a step (NumPy in single
or double precision, PyTorch), formats. Kinds differ in what a step does. Scored are

- `values`: values alone;
- `times`: names that say nothing, times as a program leaves them that writes parents first;
- `named`: names as people give them, in times in random order.

    python -m benchmarks.lineage_made                      # 15 families of each kind
    python -m benchmarks.lineage_made --kinds fixed decay --files values --verbose
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import regraft as rg
from benchmarks.lineage_trees import Family
from regraft import checkpoints
from regraft.tensors import TensorInfo

Arrays = dict[str, np.ndarray]
_FILES = ("values", "times", "named")
_FORMATS = ("safetensors", "npz", "pth")


class Maker:
    """Draws a family; all that is random comes from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.numpy = np.random.default_rng(seed)
        self.style = self.random.choice(["double", "single", "torch"])
        self.classes = self.random.choice([2, 5, 10])

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """Of a standard normal distribution, in the precision of the style."""
        if self.style == "torch":
            import torch

            generator = torch.Generator().manual_seed(self.random.getrandbits(40))
            return torch.randn(shape, generator=generator).numpy()
        drawn = self.numpy.standard_normal(shape)
        return drawn if self.style == "double" else drawn.astype(np.float32)

    def add(self, a: np.ndarray, scale: float, step: np.ndarray | None = None) -> np.ndarray:
        """`a` and `scale` times noise (or the step), in the arithmetic of the style."""
        step = self.normal(a.shape) if step is None else step
        factor = np.float32(scale) if step.dtype == np.float32 else scale
        return (a + factor * step).astype(a.dtype)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        kind = self.random.choice(["perceptron", "convolutions", "transformer", "letters"])
        wide = self.random.choice([8, 16, 32, 64])
        deep = self.random.randint(2, 4)
        if kind == "perceptron":
            found = {f"layers.{i}.weight": (wide, wide) for i in range(deep)}
            found |= {f"layers.{i}.bias": (wide,) for i in range(deep)}
        elif kind == "convolutions":
            found = {f"conv{i + 1}.weight": (wide, wide if i else 3, 3, 3) for i in range(deep)}
            found |= {f"conv{i + 1}.bias": (wide,) for i in range(deep)}
            found |= {f"bn{i + 1}.weight": (wide,) for i in range(deep)}
        elif kind == "transformer":
            found = {"embed.weight": (50, wide)}
            for i in range(deep):
                found[f"blocks.{i}.attn.qkv.weight"] = (3 * wide, wide)
                found[f"blocks.{i}.mlp.fc1.weight"] = (2 * wide, wide)
                found[f"blocks.{i}.norm.weight"] = (wide,)
        else:
            found = dict.fromkeys("abcdef"[: deep + 1], (wide, wide))
        if kind != "letters":
            found |= {"head.weight": (self.classes, wide), "head.bias": (self.classes,)}
        return found

    def base(self, scale: float | None = None) -> Arrays:
        """First values, of one scale or as layers start: zeros, ones, by the number of inputs."""
        way = self.random.choice(["plain", "plain", "layers"]) if scale is None else "plain"
        scale = scale or self.random.choice([0.02, 0.05, 0.1, 1.0])
        found: Arrays = {}
        for name, shape in self.shapes().items():
            if way == "layers" and len(shape) == 1:
                found[name] = np.full(shape, float("bias" not in name), np.float32)
            elif way == "layers":
                bound = np.float32((3 / np.prod(shape[1:])) ** 0.5)
                found[name] = self._uniform(shape, bound)
            else:
                found[name] = (scale * self.normal(shape)).astype(np.float32)
        return found

    def _uniform(self, shape: tuple[int, ...], bound: float) -> np.ndarray:
        if self.style == "torch":
            import torch

            generator = torch.Generator().manual_seed(self.random.getrandbits(40))
            drawn = torch.empty(shape).uniform_(-float(bound), float(bound), generator=generator)
            return drawn.numpy()
        return self.numpy.uniform(-bound, bound, shape).astype(np.float32)

    def tree(self) -> list[tuple[int, int]]:
        """Edges between numbers; parents come before their children."""
        count = self.random.randint(4, 8)
        kind = self.random.choice(["star", "chain", "any", "generations"])
        if kind == "generations":
            children = list(range(1, 1 + self.random.randint(2, 3)))
            below = [(self.random.choice(children), i) for i in range(len(children) + 1, count)]
            return [(0, i) for i in children] + below
        parents: dict[str, Callable[[int], int]] = {
            "star": lambda i: 0, "chain": lambda i: i - 1, "any": self.random.randrange,
        }  # fmt: skip
        return [(parents[kind](i), i) for i in range(1, count)]

    def some(self, names: list[str]) -> set[str]:
        """What a step leaves alone: nothing, the first layers, all but the last, or any."""
        way = self.random.choice(["none", "first", "last", "any"])
        cut = self.random.randint(1, max(1, len(names) - 1))
        if way == "any":
            return {n for n in names if self.random.random() < 0.5} - {self.random.choice(names)}
        return set({"none": [], "first": names[:cut], "last": names[: -max(1, cut // 2)]}[way])


def _family(make: Maker, base: Arrays, step: Callable[[Arrays, int], Arrays]) -> Family:
    family = Family()
    edges = make.tree()
    chain = all(b == a + 1 for a, b in edges)
    names = {0: "base"}
    models = {0: base}
    for i, (parent, child) in enumerate(edges):
        names[child] = f"epoch-{child}" if chain else f"{names[parent]}-ft{i}"
        models[child] = step(models[parent], child)
    names = {i: n.removeprefix("base-") if i else n for i, n in names.items()}
    family.models = {names[i]: model for i, model in models.items()}
    family.edges = {(names[a], names[b]) for a, b in edges}
    return family


def fixed(make: Maker) -> Family:
    """Noise of one size on every tensor."""
    base = make.base()
    size = float(np.median([np.std(a) for a in base.values() if a.ndim > 1]))
    scale = size * make.random.choice([0.01, 0.02, 0.05, 0.1])
    return _family(make, base, lambda m, _: {n: make.add(a, scale) for n, a in m.items()})


def relative(make: Maker) -> Family:
    """Noise by the spread of each tensor, of a size drawn for each step."""

    def step(model: Arrays, _: int) -> Arrays:
        share = 10 ** make.random.uniform(-2.3, -0.7)
        return {n: make.add(a, share * (float(a.std()) or 0.1)) for n, a in model.items()}

    return _family(make, make.base(), step)


def unit(make: Maker) -> Family:
    """Standard normal tensors, noise of 0.01 or 0.1 on some, the others left alone."""
    scale = make.random.choice([0.01, 0.1])

    def step(model: Arrays, _: int) -> Arrays:
        kept = make.some(list(model))
        return {n: a if n in kept else make.add(a, scale) for n, a in model.items()}

    return _family(make, make.base(1.0), step)


def frozen(make: Maker) -> Family:
    """Some tensors are tuned, each for itself; sizes are drawn for each step."""

    def step(model: Arrays, _: int) -> Arrays:
        kept = make.some(list(model))
        share = 10 ** make.random.uniform(-2, -0.7)
        return {
            n: a if n in kept else make.add(a, share * (float(a.std()) or 0.1))
            for n, a in model.items()
        }

    return _family(make, make.base(), step)


def newhead(make: Maker) -> Family:
    """A step takes a new head at times, for other classes or as many."""
    base = make.base()

    def step(model: Arrays, _: int) -> Arrays:
        share = make.random.choice([0.02, 0.05, 0.1])
        made = {n: make.add(a, share * (float(a.std()) or 0.1)) for n, a in model.items()}
        last = list(model)[-2:] if "head.bias" in model else list(model)[-1:]
        if make.random.random() < 0.6:
            classes = make.random.choice([3, 4, 7, len(model[last[0]])])
            for name in last:
                old = model[name]
                made[name] = (0.05 * make.normal((classes, *old.shape[1:]))).astype(np.float32)
        return made

    return _family(make, base, step)


def decay(make: Maker) -> Family:
    """Weights shrink by one factor at each step, and noise comes on top."""
    factor = 1 - make.random.choice([0.001, 0.01, 0.05])

    def step(model: Arrays, _: int) -> Arrays:
        share = make.random.choice([0.01, 0.03, 0.1])
        shrunk = {n: (a * np.float32(factor)).astype(a.dtype) for n, a in model.items()}
        return {n: make.add(a, share * (float(a.std()) or 0.1)) for n, a in shrunk.items()}

    return _family(make, make.base(), step)


def directed(make: Maker) -> Family:
    """Each run has a direction of its own, as a task has, and noise around it."""
    seed = make.random.getrandbits(32)

    def step(model: Arrays, child: int) -> Arrays:
        share = make.random.choice([0.02, 0.05, 0.1])
        found: Arrays = {}
        for i, (n, a) in enumerate(model.items()):
            way = np.random.default_rng([seed, child // 3, i]).standard_normal(a.shape)
            step = (way + 0.5 * make.normal(a.shape)).astype(make.normal((1,)).dtype)
            found[n] = make.add(a, share * (float(a.std()) or 0.1), step)
        return found

    return _family(make, make.base(), step)


def lowrank(make: Maker) -> Family:
    """Low-rank updates of matrices, as merged adapters leave them."""

    def step(model: Arrays, _: int) -> Arrays:
        found = dict(model)
        for n, a in model.items():
            if a.ndim > 1 and "head" not in n:
                flat = a.reshape(len(a), -1)
                left, right = make.normal((len(a), 2)), make.normal((2, flat.shape[1]))
                share = make.random.choice([0.02, 0.05, 0.1]) * float(a.std())
                found[n] = make.add(a, share, (left @ right).reshape(a.shape))
        return found

    return _family(make, make.base(), step)


def sparse(make: Maker) -> Family:
    """A tenth of the values moves."""

    def step(model: Arrays, _: int) -> Arrays:
        found: Arrays = {}
        for n, a in model.items():
            moved = make.add(a, 0.2 * (float(a.std()) or 0.1))
            found[n] = np.where(make.numpy.random(a.shape) < 0.1, moved, a)
        return found

    return _family(make, make.base(), step)


KINDS: dict[str, Callable[[Maker], Family]] = {
    f.__name__: f for f in (fixed, relative, unit, frozen, newhead, decay, directed)
}
# Not looked at while thresholds were chosen.
HELD_OUT: dict[str, Callable[[Maker], Family]] = {f.__name__: f for f in (lowrank, sparse)}


def written(family: Family, folder: Path, rng: random.Random, files: str) -> dict[str, str]:
    """Writes the family; the file of each model."""
    one = rng.choice(_FORMATS)
    found: dict[str, str] = {}
    times = list(range(len(family.models)))
    if files == "named":
        rng.shuffle(times)
    for (name, model), at in zip(family.models.items(), times, strict=True):
        stem = name if files == "named" else f"{rng.getrandbits(32):08x}"
        format_ = one if rng.random() < 0.8 else rng.choice(_FORMATS)
        file = f"{stem}.{format_}"
        items = [(TensorInfo(n, a.shape, a.dtype.name), lambda a=a: a) for n, a in model.items()]
        checkpoints.write(folder / file, items)
        when = 1_700_000_000 * 10**9 + (0 if files == "values" else at * 7_000_000)
        os.utime(folder / file, ns=(when, when))
        found[name] = file
    return found


def score(kind: str, count: int, seed: int, files: str, *, verbose: bool) -> tuple[int, ...]:
    """Whole trees right, whole but for directions, edges, right ones."""
    make_family = {**KINDS, **HELD_OUT}[kind]
    whole = joined = edges = right = 0
    for number in range(seed, seed + count):
        family = make_family(Maker(number))
        with tempfile.TemporaryDirectory() as folder:
            names = written(family, Path(folder), random.Random(number), files)
            found = rg.family_tree(folder, by_values=files == "values")
        truth = {(names[a], names[b]) for a, b in family.edges}
        told = {(edge.parent, edge.child) for edge in found.edges}
        whole += truth == told
        joined += {frozenset(e) for e in truth} == {frozenset(e) for e in told}
        edges, right = edges + len(truth), right + len(truth & told)
        if verbose and truth != told:
            _explain(f"{kind} {number}", truth, found, {f: n for n, f in names.items()})
    return whole, joined, edges, right


def _explain(
    title: str, truth: set[tuple[str, str]], found: rg.FamilyTree, names: dict[str, str]
) -> None:
    print(title)
    for edge in found.edges:
        mark = "ok " if (edge.parent, edge.child) in truth else "BAD"
        print(f"   {mark} {names[edge.parent]} -> {names[edge.child]}  {edge}")
    for a, b in truth - {(e.parent, e.child) for e in found.edges}:
        print(f"   missing {names[a]} -> {names[b]}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--families", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--files", nargs="*", default=list(_FILES), choices=_FILES)
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    for files in given.files:
        whole = joined = 0
        for kind in given.kinds:
            start = time.perf_counter()
            told = score(kind, given.families, given.seed, files, verbose=given.verbose)
            whole, joined = whole + told[0], joined + told[1]
            print(f"{files:<7} {kind:<10} {told[0]:>3} of {given.families} right, {told[1]} but "
                  f"for directions; of {told[2]} edges {told[3]} "
                  f"({time.perf_counter() - start:.0f} s)", flush=True)  # fmt: skip
        total = given.families * len(given.kinds)
        print(f"{files:<7} all        {whole} of {total} right, {joined} but for directions")


if __name__ == "__main__":
    main()
