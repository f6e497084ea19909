"""The way back of a plan: each source tensor made again from what was made of it.

A tensor that went whole into one target is undone there. One that was taken apart (a fused q, k
and v; stacked layers) is put together again where all of its pieces are at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from regraft import operations
from regraft.errors import ShapeMismatch
from regraft.operations import AnyOp, Concat, Each, Op, Slice, Stack, Unstack
from regraft.plans import Graft, Plan, Spec


class _Piece(NamedTuple):
    """A part of a source tensor: entries `start` to `stop` of `axis`, one of which an Unstack took
    (`stacked`), in a target, with the operations that bring it back. `before` are the operations
    that the whole went through before it was cut."""

    start: int
    stop: int
    axis: int
    stacked: bool
    target: str
    back: tuple[AnyOp, ...]
    before: tuple[AnyOp, ...]


def way_back(plan: Plan, name: str) -> Graft:
    """The graft that makes source tensor `name` again; `fresh` where values were lost."""
    spec = plan.source.tensors[name]
    pieces: list[_Piece] = []
    for graft in plan.grafts.values():
        for index in (i for i, source in enumerate(graft.sources) if source == name):
            shapes = plan.shapes_of(graft)
            undo = operations.invert(graft.ops, shapes, index)
            if undo is not None:
                return Graft(name, spec, "convert" if undo else "copy", (graft.target,), undo)
            pieces += _pieces(graft, shapes, index)
    return _joined(plan, name, spec, pieces) or Graft(name, spec, "fresh")


def _pieces(graft: Graft, shapes: operations.Shapes, index: int) -> Iterator[_Piece]:
    """Where the chain of one input is cut just once, the piece that this graft has."""
    chain = list(_path(graft.ops, shapes, index))
    cuts = [i for i, (op, *_) in enumerate(chain) if isinstance(op, (Slice, Unstack))]
    back: list[Op] = []
    for op, before, place in chain[cuts[0] + 1 :] if cuts else ():
        undone = op.undo(before, place)
        if undone is None:
            return
        back = [*undone, *back]
    if cuts:
        cut, _, _ = chain[cuts[0]]
        before = tuple(op for op, *_ in chain[: cuts[0]])
        stacked = isinstance(cut, Unstack)
        assert isinstance(cut, (Slice, Unstack))
        start, stop = (cut.index, cut.index + 1) if isinstance(cut, Unstack) else (
            cut.start, cut.stop
        )  # fmt: skip
        ops = operations.simplify(back)
        yield _Piece(start, stop, cut.axis, stacked, graft.target, ops, before)  # pyright: ignore[reportArgumentType]


def _path(
    ops: tuple[AnyOp, ...], shapes: operations.Shapes, index: int
) -> Iterator[tuple[Op, operations.Shapes, int]]:
    """The operations that input `index` goes through, with the shapes that come in beside it."""
    for op in ops:
        after = op.infer(shapes)
        if isinstance(op, Each):
            branch, place = op.branch_of(index)
            start = sum(op.counts[:branch])
            part = shapes[start : start + op.counts[branch]]
            yield from _path(op.branches[branch], part, place)
            index = branch
        else:
            yield op, shapes, index
            index = index if len(after) == len(shapes) else 0
        shapes = after


def _joined(plan: Plan, name: str, spec: Spec, pieces: list[_Piece]) -> Graft | None:
    """Pieces that lie end to end on one axis and cover it, put together again."""
    unique = {(p.start, p.stop): p for p in sorted(pieces, key=lambda p: (p.start, p.stop))}
    parts = list(unique.values())
    if not parts or any(p[2:4] != parts[0][2:4] or p.before != parts[0].before for p in parts):
        return None
    if [p.start for p in parts] != [0, *(p.stop for p in parts[:-1])]:
        return None
    first = parts[0]
    undo = operations.invert(first.before, (spec.shape,))
    if undo is None:
        return None
    join = Stack(first.axis) if first.stacked else Concat(first.axis)
    branches = tuple(p.back for p in parts)
    each = (Each((1,) * len(parts), branches),) if any(branches) else ()
    ops = (*(branches[0] if len(set(branches)) == 1 else each), join, *undo)
    shapes = tuple(plan.grafts[p.target].spec.shape for p in parts)
    try:
        if operations.infer(ops, shapes) != spec.shape:
            return None
    except ShapeMismatch:
        return None
    return Graft(name, spec, "convert", tuple(p.target for p in parts), ops)
