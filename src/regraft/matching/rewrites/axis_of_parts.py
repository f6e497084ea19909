"""Fused projections with an axis of their own for the parts: `[d, 3, h, k]`, its bias `[3, h, k]`.

Such an axis leaves nothing open (query, key and value in the order of their name), so the parts are
seen one by one wherever the other side has no layer like it; what the other side holds in one
tensor without such an axis is then cut by what its own name tells. Where three heads would make
the same shape (`[d, heads, 3, k]`, `[d, heads, 3 k]`), the axis may be theirs: nothing is taken
apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from regraft.matching.fitting import number_classes
from regraft.matching.modules import Module
from regraft.matching.projections import fused_of, order_of, projection_of
from regraft.matching.rewrites.finding import Finding, Sight, kernel_of
from regraft.matching.views import Expression, Rewrite
from regraft.operations import Stack, Unstack
from regraft.tensors import TensorInfo

# Heads are hardly ever wider.
_WIDEST = 128


def find(here: Sight, there: Sight) -> Sequence[Finding]:
    ours, theirs = here.modules, there.modules
    sides = (ours, theirs) if here.is_source else (theirs, ours)
    classes = number_classes(*sides)
    met = {classes[id(module)] for module in theirs}
    rewrites = [
        rewrite for m in ours if classes[id(m)] not in met for rewrite in _in_parts(m, here)
    ]
    return [Finding(rewrites, certain=True)] if rewrites else []


def _in_parts(module: Module, here: Sight) -> Iterator[Rewrite]:
    kernel, names = kernel_of(module), fused_of(module.path)
    names = order_of(module.path) or names
    if kernel is None or not names or projection_of(module.says):
        return
    shape = kernel.info.shape
    if len(shape) < 3 or shape[1] != len(names) or kernel.framework in ("torch", "onnx"):
        return
    if _may_be_heads(shape[2:], len(names)):
        return
    bias = module.leaves.get("bias")
    if module.leaves.keys() - {"kernel", "bias"} or (bias and bias.info.shape != shape[1:]):
        return
    for leaf, axis in ((kernel, 1), *([(bias, 0)] if bias else [])):
        new = [_part(leaf.info, name, axis) for name in names]
        if any(part.name in here.catalogue for part in new):
            return
        yield _stacked(leaf.info, new, axis)


def _may_be_heads(rest: tuple[int, ...], count: int) -> bool:
    """Whether what follows the axis may be all parts of one head, of a width that heads have."""
    first, *more = rest
    return first == count if more else first % count == 0 and first // count <= _WIDEST


def _part(info: TensorInfo, name: str, axis: int) -> TensorInfo:
    """The tensor of one part, under the name that it would have if it were stored."""
    separator = "/" if "/" in info.name else "."
    *path, leaf = info.name.split(separator)
    own = separator.join([*path[:-1], name, leaf])
    return info._replace(name=own, shape=(*info.shape[:axis], *info.shape[axis + 1 :]))


def _stacked(info: TensorInfo, new: Sequence[TensorInfo], axis: int) -> Rewrite:
    down = {part.name: Expression((info.name,), (Unstack(axis, i),)) for i, part in enumerate(new)}
    up = {info.name: Expression(tuple(part.name for part in new), (Stack(axis),))}
    owner, *parts = (_owner(i.name) for i in (info, *new))
    text = f"{len(new)} projections along an axis of their own"
    return Rewrite((info,), tuple(new), down, up, text, {owner: tuple(parts)})


def _owner(name: str) -> str:
    return name.replace("/", ".").rpartition(".")[0]
