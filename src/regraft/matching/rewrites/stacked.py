"""Stacked layers: one tensor `[L, …]` for L layers (Flax' nn.scan, JAX trees), or for L experts.

A subtree in which all tensors begin with the same size L is seen as L subtrees, numbered where
the subtree's name ends; so are matrices of experts that lie beside other layers (`router.weight`,
`w_in`, `w_out`). It is taken where the other side then has counterparts for more layers. T5X and
MaxText scan over the second axis, `[d, L, …]`: there even the scales of norms are matrices.

A stack that is no layer but a parameter of its own has its inputs before its outputs as often as
behind them, and no framework says which: `x @ w_in[e]` or `linear(x, w_in[e])`. Its name says
whether it leads into the hidden layer or out of it, the other side's experts say how wide the
model is that they read and write, and so which axis is which. A square one stays open.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from regraft.matching import roles
from regraft.matching.modules import is_constant
from regraft.matching.rewrites.finding import Finding, Sight, kernel_of
from regraft.matching.views import Expression, Rewrite
from regraft.operations import Stack, Transpose, Unstack
from regraft.tensors import TensorInfo

_MOST = 1024
# Words of layers that lead into the hidden layer of a feed-forward block, and out of it.
_PLACES = {
    word: place
    for place, words in {
        "into": "in input up gate fc1 w1 w3 w13 wi v1 linear1 lin1 c_fc",
        "out of": "out output down fc2 w2 wo linear2 lin2 c_proj",
    }.items()
    for word in words.split()
}
# How the matrices of a stack lie, and the class of layer that holds one like that in PyTorch.
_CLASSES = {"outputs first": "", "inputs first": "Conv1D"}


def find(here: Sight, there: Sight) -> Sequence[Finding]:
    """Families of subtrees: all layers of one stack, the experts of all layers."""
    families: dict[str, list[tuple[str, list[TensorInfo]]]] = defaultdict(list)
    longest = _longest_row(there)
    for prefix, infos in (*_subtrees(here), *_loose(here)):
        if longest >= infos[0].shape[0]:
            names = ",".join(sorted({_leaf(info.name) for info in infos}))
            families[re.sub(r"\d+", "#", f"{prefix} {names}")].append((prefix, infos))
    second = [
        Finding([_unstacked(prefix, info, axis=1) for info in infos])
        for prefix, infos in _second_axes(here)
        if longest >= infos[0].shape[1]
    ]
    return [_finding(here, there, members) for members in families.values()] + second


def _finding(here: Sight, there: Sight, members: Sequence[tuple[str, list[TensorInfo]]]) -> Finding:
    stacks = [(prefix, info) for prefix, infos in members for info in infos]
    own = [info for _, info in stacks if _is_parameter(info)]
    ways = _orientations(own, there) if own and here.framework == "torch" else [""]
    if not ways:
        return Finding(())
    turned = [
        [_unstacked(prefix, info, ways[0], turned=_is_parameter(info)) for prefix, info in stacks]
    ] * (len(ways) - 1)
    rewrites = [_unstacked(prefix, info, ways[0]) for prefix, info in stacks]
    return Finding(rewrites, turned, "which axis of the stacked experts is the input")


def _subtrees(here: Sight) -> Iterator[tuple[str, list[TensorInfo]]]:
    """Subtrees in which all tensors begin alike, by what their names begin with."""
    for prefix, infos in _below(here).items():
        sizes = {info.shape[0] if info.shape else 0 for info in infos}
        count = next(iter(sizes))
        if len(sizes) != 1 or not 1 < count <= _MOST:
            continue
        if max(len(info.shape) for info in infos) < 3 and len(infos) < 4:
            continue  # a plain layer: its kernel and bias begin alike, too
        if 2 * sum(len(info.shape) == 1 for info in infos) >= len(infos):
            continue  # layers whose tensors are single values
        yield prefix, infos


def _second_axes(here: Sight) -> Iterator[tuple[str, list[TensorInfo]]]:
    """Subtrees in which all tensors have a second axis of one size, the scales of norms, too."""
    for prefix, infos in _below(here).items():
        sizes = {info.shape[1] if len(info.shape) > 1 else 0 for info in infos}
        norms = any(len(i.shape) == 2 and _leaf(i.name) in ("scale", "gamma") for i in infos)
        kernels = any(len(info.shape) > 2 for info in infos)
        if len(sizes) == 1 and 1 < min(sizes) <= _MOST and norms and kernels:
            yield prefix, infos


def _below(here: Sight) -> dict[str, list[TensorInfo]]:
    """Weights by all that their names begin with."""
    below: dict[str, list[TensorInfo]] = defaultdict(list)
    for name, info in here.catalogue.items():
        if info.kind == "weight":
            for cut in (m.end() for m in re.finditer(r"[./]", name)):
                below[name[:cut]].append(info)
    return below


def _loose(here: Sight) -> Iterator[tuple[str, list[TensorInfo]]]:
    """Matrices of experts that are parameters of a layer beside other ones, with their biases."""
    beside: dict[str, list[TensorInfo]] = defaultdict(list)
    for name, info in here.catalogue.items():
        if info.kind == "weight" and not is_constant(info) and _place(info):
            beside[name[: len(name) - len(_leaf(name))]].append(info)
    for prefix, infos in beside.items():
        kernels = [info for info in infos if len(info.shape) == 3]
        counts = {info.shape[0] for info in kernels}
        if len(kernels) > 1 and len(counts) == 1 and 1 < min(counts) <= _MOST:
            biases = [i for i in infos if len(i.shape) == 2 and i.shape[0] in counts]
            yield prefix, kernels + biases


def _longest_row(there: Sight) -> int:
    """How many layers, or tensors of one layer for each, the other side has in a row."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for module in there.modules:
        for place, number in enumerate(module.numbers):
            numbers[f"{module.family} {place}"].add(number)
    return max(map(len, numbers.values()), default=0)


def _leaf(name: str) -> str:
    return re.split(r"[./]", name)[-1]


def _is_parameter(info: TensorInfo) -> bool:
    """Whether a stack of matrices is called after what it does: `w_in`, `experts.down_proj`."""
    return len(info.shape) == 3 and bool(_place(info))


def _place(info: TensorInfo) -> str:
    """Whether the matrices lead into the hidden layer or out of it, by the tensor's own name."""
    return _place_of(_leaf(info.name)) if not info.role else ""


def _place_of(word: str) -> str:
    lower = word.lower()
    if lower in _PLACES:
        return _PLACES[lower]
    found = {_PLACES[token] for token in lower.split("_") if token in _PLACES}
    return found.pop() if len(found) == 1 else ""


def _orientations(stacks: Sequence[TensorInfo], there: Sight) -> list[str]:
    """How the matrices `[E, a, b]` lie so that they read and write what the other side's do."""
    widths = set(_widths(there))
    found: list[str] = []
    for way in _CLASSES:
        outer = {"into": 2, "out of": 1} if way == "outputs first" else {"into": 1, "out of": 2}
        if all(info.shape[outer[_place(info)]] in widths for info in stacks):
            found.append(way)
    return found


def _widths(there: Sight) -> Iterator[int]:
    """What the other side's layers into hidden ones read, and those out of them write."""
    for module in there.modules:
        kernel = kernel_of(module)
        if kernel is None or len(kernel.info.shape) != 2 or not module.path:
            continue
        place = _place_of(module.path[-1])
        outputs, inputs = kernel.info.shape[:: -1 if kernel.inputs_first else 1]
        if place:
            yield inputs if place == "into" else outputs


def _unstacked(
    prefix: str, info: TensorInfo, way: str = "", *, axis: int = 0, turned: bool = False
) -> Rewrite:
    """`turned`: the matrices are square and lie the other way."""
    count, rest = info.shape[axis], info.name[len(prefix) :]
    separator = prefix[-1] if prefix else "."
    # `experts.down_proj` is a tensor by the name of its layer: each part is that layer's weight.
    leaf = "" if roles.known(_leaf(rest)) else f"{separator}weight"
    new = [
        info._replace(
            name=f"{prefix}{i}{separator}{rest}{leaf}",
            shape=(*info.shape[:axis], *info.shape[axis + 1 :]),
            module=(_is_parameter(info) and _CLASSES.get(way)) or info.module,
        )
        for i in range(count)
    ]
    turn = (Transpose((1, 0)),) if turned else ()
    back = (Transpose((0, 2, 1)),) if turned else ()
    return Rewrite(
        (info,),
        tuple(new),
        {
            part.name: Expression((info.name,), (Unstack(axis, i), *turn))
            for i, part in enumerate(new)
        },
        {info.name: Expression(tuple(part.name for part in new), (Stack(axis), *back))},
        f"one of {count} layers that are stacked",
    )
