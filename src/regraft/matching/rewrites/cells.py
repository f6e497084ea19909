"""Recurrent cells as one layer: a kernel, a recurrent kernel, a bias or two, and a direction.

- Flax' fused cells are two dense layers, `dense_i` and `dense_h` (its simple one `i` and `h`): the
  kernel and the recurrent kernel of one layer.
- Keras' GRU with `reset_after` stacks its two biases as `[2, 3·units]`.
- Flax numbers cells as they are made. `Bidirectional` takes the forward one first, so where the
  other side has layers that run backwards, cells of equal shapes that stand two by two are those
  pairs: `Cell_0` runs forwards and `Cell_1` backwards.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from regraft.matching.directions import direction_of
from regraft.matching.modules import Module
from regraft.matching.rewrites.finding import Finding, Sight
from regraft.matching.views import Expression, Rewrite
from regraft.operations import Stack, Unstack
from regraft.tensors import TensorInfo

# Pairs of dense layers that are one cell, and gates at most.
_HALVES = (("dense_i", "dense_h"), ("i", "h"))
_GATES = 4
_NUMBERED = re.compile(r"^(.*cell)_(\d+)$", re.IGNORECASE)


def find(here: Sight, there: Sight) -> Sequence[Finding]:
    rewrites = [_two_rows(m) for m in here.modules if has_rows(m)]
    if here.framework == "jax":
        rewrites += _joined(here, there)
    return [Finding(rewrites, certain=True)] if rewrites else []


def find_directions(here: Sight, there: Sight) -> Sequence[Finding]:
    rewrites = [*_two_by_two(here, there)] if here.framework == "jax" else []
    return [Finding(rewrites, certain=True)] if rewrites else []


def has_rows(module: Module) -> bool:
    """Whether the bias holds two rows, as a Keras GRU's."""
    bias = module.leaves.get("bias")
    return bool(bias and "recurrent" in module.leaves and bias.info.shape[:-1] == (2,))


def _two_rows(module: Module) -> Rewrite:
    bias = module.leaves["bias"].info
    at = len(bias.name) - len(bias.name.replace("/", ".").rpartition(".")[2])
    names = bias.name, f"{bias.name[:at]}recurrent_bias"
    words = "bias", "recurrent_bias"
    new = tuple(
        bias._replace(name=name, shape=bias.shape[1:], role=word if bias.role else "")
        for name, word in zip(names, words, strict=True)
    )
    down = {part.name: Expression((bias.name,), (Unstack(0, i),)) for i, part in enumerate(new)}
    return Rewrite(
        (bias,), new, down, {bias.name: Expression(names, (Stack(0),))}, "two biases, stacked"
    )


def _joined(here: Sight, there: Sight) -> Iterator[Rewrite]:
    """Both halves of a cell under the cell's own name, where the other side has no such halves."""
    others = {m.path[-1] for m in there.modules if m.path}
    found = {m.path: m for m in here.modules}
    for inputs, states in _HALVES:
        if inputs in others and states in others:
            continue
        for path, half in found.items():
            other = found.get((*path[:-1], states)) if path[-1:] == (inputs,) else None
            if other and _is_cell(half, other):
                yield from _renamed_half(half, "kernel")
                yield from _renamed_half(other, "recurrent_kernel")


def _is_cell(inputs: Module, states: Module) -> bool:
    """Whether a second half takes the state, `[u, gates·u]`, and gives what the first one does."""
    kernels = [half.leaves.get("kernel") for half in (inputs, states)]
    shapes = [kernel.info.shape for kernel in kernels if kernel and len(kernel.info.shape) == 2]
    if len(shapes) < 2 or shapes[0][1] != shapes[1][1]:
        return False
    units, outputs = shapes[1]
    return units > 0 and not outputs % units and outputs // units <= _GATES


_HALF = re.compile(r"[^./]+[./][^./]+$")


def _renamed_half(half: Module, kernel: str) -> Iterator[Rewrite]:
    for role, leaf in half.leaves.items():
        stem = _HALF.sub("", leaf.info.name)
        yield _renamed(leaf.info, stem + (kernel if role == "kernel" else "bias"), "a cell's part")


def _renamed(info: TensorInfo, name: str, text: str) -> Rewrite:
    return Rewrite(
        (info,),
        (info._replace(name=name),),
        {name: Expression.of(info.name)},
        {info.name: Expression.of(name)},
        text,
    )


def _two_by_two(here: Sight, there: Sight) -> Iterator[Rewrite]:
    """Numbered cells as pairs of one that runs forwards and one that runs backwards."""
    ours, theirs = ({direction_of(m.path) for m in side.modules} for side in (here, there))
    if "backward" in ours or "backward" not in theirs:
        return
    families: dict[str, dict[int, list[TensorInfo]]] = defaultdict(lambda: defaultdict(list))
    for name, info in here.catalogue.items():
        parts = re.split(r"[./]", name)
        for place, part in enumerate(parts):
            numbered = _NUMBERED.match(part)
            if numbered:
                stem = name[: len("/".join(parts[:place])) + bool(place)]
                families[stem + numbered[1]][int(numbered[2])].append(info)
                break
    for family, cells in families.items():
        numbers = sorted(cells)
        shapes = {n: [x.shape for x in cells[n]] for n in numbers}
        pairs = list(zip(numbers[::2], numbers[1::2], strict=False))
        if numbers != list(range(len(numbers))) or len(numbers) % 2:
            continue
        if any(shapes[a] != shapes[b] for a, b in pairs):
            continue
        for place, pair in enumerate(pairs):
            for number, way in zip(pair, ("forward", "backward"), strict=True):
                for info in cells[number]:
                    rest = info.name[len(f"{family}_{number}") :]
                    yield _renamed(
                        info, f"{family}_{place}/{way}{rest}", f"cell {number} runs {way}s"
                    )
