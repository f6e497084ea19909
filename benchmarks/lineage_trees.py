"""Which checkpoint came from which: families of little trainings whose trees are known.

Each family is made by real training (SGD or Adam, with and without weight decay, of a small
convolutional net or a perceptron, on classes of random patterns): a base, and what is made of one:
fine-tuned with frozen layers or with a new head, epochs of a run, runs from runs, casts, pruned and
averaged files; and trainings from other starts beside them. Files get names that say nothing, and
times in random order, so that only values count; `--named` gives them the names that people give.

    python -m benchmarks.lineage_trees            # 40 families, scored
    python -m benchmarks.lineage_trees --named --families 10 --seed 100
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

import regraft as rg
from regraft import checkpoints
from regraft.tensors import TensorInfo

State = dict[str, torch.Tensor]


@dataclass
class Family:
    """Models by name, and edges from parent to child."""

    models: dict[str, State] = field(default_factory=dict)
    edges: set[tuple[str, str]] = field(default_factory=set)

    def add(self, name: str, state: State, *parents: str) -> str:
        self.models[name] = {n: t.detach().clone() for n, t in state.items()}
        self.edges |= {(parent, name) for parent in parents}
        return name


class Conv(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.fc, self.head = nn.Linear(16 * 16, 32), nn.Linear(32, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return self.head(torch.relu(self.fc(x.flatten(1))))


class Perceptron(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(192, 64), nn.Linear(64, 64), nn.Linear(64, 32)])
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(32, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.layers[0](x.flatten(1)))
        x = torch.relu(self.layers[1](self.norm(x)))
        return self.head(torch.relu(self.layers[2](x)))


class Maker:
    """Trains; all that is random comes from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        self.kind = self.random.choice([Conv, Perceptron])
        self.adam = self.random.random() < 0.5
        self.decay = self.random.choice([0.0, 0.0, 1e-4, 1e-2])
        self.tasks: dict[int, torch.Tensor] = {}

    def data(self, task: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Batches of a task: a pattern for each class, under noise."""
        if task not in self.tasks:
            self.tasks[task] = torch.randn(16, 3, 8, 8)
        y = torch.randint(0, classes, (32,))
        return self.tasks[task][y] + 1.5 * torch.randn(32, 3, 8, 8), y

    def new(self, classes: int = 10) -> nn.Module:
        return self.kind(classes)

    def like(self, state: State, classes: int | None = None) -> nn.Module:
        """A model with these weights, with a new head where it has other classes."""
        held = state["head.bias"].numel()
        model = self.new(classes or held)
        if classes not in (None, held):
            state = {n: t for n, t in state.items() if not n.startswith("head.")}
        model.load_state_dict(state, strict=False)
        return model

    def train(
        self, model: nn.Module, task: int, steps: int, lr: float = 3e-3, freeze: str = ""
    ) -> State:
        classes = model.head.bias.numel()
        model.train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad = not (freeze and name.split(".")[0] in freeze.split())
        for name, module in model.named_modules():
            if freeze and name in freeze.split():
                module.eval()
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = (
            torch.optim.AdamW(learning, lr, weight_decay=self.decay)
            if self.adam
            else torch.optim.SGD(learning, 10 * lr, momentum=0.9, weight_decay=self.decay)
        )
        for _ in range(steps):
            x, y = self.data(task, classes)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return {n: t.detach().clone() for n, t in model.state_dict().items()}

    def frozen(self) -> str:
        if self.kind is Conv:
            return self.random.choice(["conv1 bn1", "conv1 bn1 conv2 bn2"])
        return self.random.choice(["layers", "layers norm"])

    def tuned(self, state: State, task: int, steps: int = 80) -> State:
        """One of the ways in which people fine-tune."""
        way = self.random.choice(["all", "head", "frozen", "frozen head"])
        model = self.like(state, self.random.choice([3, 5, 7]) if "head" in way else None)
        lr = self.random.choice([3e-4, 1e-3])
        return self.train(model, task, steps, lr, self.frozen() if "frozen" in way else "")


def star(make: Maker, family: Family) -> None:
    base = family.add("base", make.train(make.new(), 0, 300))
    for i in range(make.random.randint(2, 5)):
        family.add(f"tuned-{i}", make.tuned(family.models[base], i + 1), base)


def chain(make: Maker, family: Family) -> None:
    last = family.add("base", make.train(make.new(), 0, 300))
    for i in range(make.random.randint(2, 4)):
        last = family.add(f"stage-{i}", make.tuned(family.models[last], i + 1), last)


def epochs(make: Maker, family: Family) -> None:
    """Checkpoints of one run, from its start or from a base."""
    model = make.new()
    last = family.add("epoch-0", make.train(model, 0, make.random.choice([0, 40])))
    for i in range(make.random.randint(3, 6)):
        last = family.add(f"epoch-{i + 1}", make.train(model, 0, 60), last)


def tree(make: Maker, family: Family) -> None:
    base = family.add("base", make.train(make.new(), 0, 300))
    for i in range(make.random.randint(2, 3)):
        child = family.add(f"tuned-{i}", make.tuned(family.models[base], i + 1), base)
        for j in range(make.random.randint(0, 2)):
            grandchild = make.tuned(family.models[child], 10 * i + j + 5)
            family.add(f"tuned-{i}-more-{j}", grandchild, child)


def derived(make: Maker, family: Family) -> None:
    """Casts, pruned and quantised files of a tuned model."""
    base = family.add("base", make.train(make.new(), 0, 300))
    child = family.add("tuned", make.tuned(family.models[base], 1), base)
    state = family.models[child]
    half = make.random.choice([torch.float16, torch.bfloat16])
    floats = {n: t.is_floating_point() for n, t in state.items()}
    family.add("tuned-half", {n: t.to(half) if floats[n] else t for n, t in state.items()}, child)
    pruned = {
        n: torch.where(t.abs() < t.abs().flatten().quantile(0.5), 0, t) if t.dim() > 1 else t
        for n, t in state.items()
    }
    family.add("tuned-pruned", pruned, child)
    family.add("other", make.tuned(family.models[base], 2), base)


def averaged(make: Maker, family: Family) -> None:
    base = family.add("base", make.train(make.new(), 0, 300))
    parts = [
        family.add(f"run-{i}", make.train(make.like(family.models[base]), 1, 80, 1e-3), base)
        for i in range(make.random.randint(2, 3))
    ]
    states = [family.models[name] for name in parts]
    mean = {
        n: torch.stack([s[n].double() for s in states]).mean(0).to(states[0][n].dtype)
        for n in states[0]
    }
    family.add("soup", mean, *parts)


def strangers(make: Maker, family: Family) -> None:
    """Two trainings of one architecture from different starts, each with a child."""
    for k in range(2):
        base = family.add(f"base-{k}", make.train(make.new(), 0, 300))
        family.add(f"tuned-{k}", make.tuned(family.models[base], k + 1), base)


def noisy(make: Maker, family: Family) -> None:
    """No training at all: steps of random numbers, as tests of such tools like to take."""
    base = family.add("base", make.new().state_dict())
    names = [base]
    for i in range(make.random.randint(3, 6)):
        parent = make.random.choice(names)
        scale = 10 ** make.random.uniform(-2.5, -1)
        frozen = make.random.choice(["", "conv1", "layers.0"])
        moved = {
            n: t if not t.is_floating_point() or (frozen and n.startswith(frozen))
            else t + scale * t.float().std().nan_to_num(1.0).clamp_min(0.1) * torch.randn_like(t)
            for n, t in family.models[parent].items()
        }  # fmt: skip
        names.append(family.add(f"child-{i}", moved, parent))


KINDS: list[Callable[[Maker, Family], None]] = [
    star, chain, epochs, tree, derived, averaged, strangers, noisy
]  # fmt: skip


def families(count: int, seed: int) -> Iterator[tuple[str, Family]]:
    for i in range(count):
        make, family = Maker(seed + i), Family()
        kind = KINDS[i % len(KINDS)]
        kind(make, family)
        yield kind.__name__, family


def written(family: Family, folder: Path, rng: random.Random, *, named: bool) -> dict[str, str]:
    """Writes the family; the file of each model."""
    order = list(family.models)
    rng.shuffle(order)
    files: dict[str, str] = {}
    for position, name in enumerate(order):
        file = f"{name}.safetensors" if named else f"{rng.getrandbits(32):08x}.safetensors"
        # Half of what comes from PyTorch has a wrapper's prefix.
        prefix = "module." if rng.random() < 0.3 else ""
        arrays = {prefix + n: _array(t) for n, t in family.models[name].items()}
        items = [(TensorInfo(n, a.shape, d), lambda a=a: a) for n, (a, d) in arrays.items()]
        checkpoints.write(folder / file, items)
        os.utime(folder / file, (position + 1e9, position + 1e9))
        files[name] = file
    return files


def _array(tensor: torch.Tensor) -> tuple[np.ndarray, str]:
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.float().numpy().astype(ml_dtypes.bfloat16), "bfloat16"
    array = tensor.numpy()
    return array, array.dtype.name


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--families", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--named", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    right = joined = total = exact = 0
    kinds: dict[str, list[int]] = {}
    for number, (kind, family) in enumerate(families(given.families, given.seed)):
        with tempfile.TemporaryDirectory() as folder:
            rng = random.Random(number)
            files = written(family, Path(folder), rng, named=given.named)
            found = rg.family_tree(folder, by_values=not given.named)
        truth = {(files[a], files[b]) for a, b in family.edges}
        told = {(edge.parent, edge.child) for edge in found.edges}
        either = {frozenset(edge) for edge in told}
        total += len(truth)
        right += len(truth & told)
        joined += sum(frozenset(edge) in either for edge in truth)
        exact += truth == told
        kinds.setdefault(kind, []).append(int(truth == told))
        if given.verbose and truth != told:
            names = {file: name for name, file in files.items()}
            print(f"{number} {kind}")
            for edge in found.edges:
                mark = "ok " if (edge.parent, edge.child) in truth else "BAD"
                print(f"   {mark} {names[edge.parent]} -> {names[edge.child]}  {edge}")
            for a, b in truth - told:
                print(f"   missing {names[a]} -> {names[b]}")
    print(f"{exact} of {given.families} trees right; of {total} edges {right} right, "
          f"{joined} but for the direction")  # fmt: skip
    print({kind: f"{sum(marks)}/{len(marks)}" for kind, marks in kinds.items()})


if __name__ == "__main__":
    main()
