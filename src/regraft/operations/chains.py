"""Chains of operations: shapes, values, the way back, and what must be read for a part.

A chain works on a tuple of tensors and leaves one. `Each` lets the inputs of a chain go through
different operations before they are joined: a chain then is a tree, written down flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from regraft.errors import ShapeMismatch
from regraft.operations._base import Op, Pushed, Shape, Shapes, whole, wrong
from regraft.operations.adapting import Interpolate, Keep, Pad, Scale, Sum, Take, Tile, Widen
from regraft.operations.joining import Concat, Slice, Stack, Unstack
from regraft.operations.layout import Blocks, Cast, Flip, Reshape, Rope, Transpose
from regraft.operations.merging import (
    Add,
    Dequantize,
    Fill,
    FoldScale,
    FoldShift,
    LowRank,
    Merge,
    Multiply,
    Norm,
    SpectralNorm,
    Subtract,
    WeightNorm,
)

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices


T = TypeVar("T")


class Each(Op, frozen=True):
    """The first `counts[0]` inputs through chain `branches[0]`, the next through the next one …

    Gives one tensor for each branch.
    """

    counts: tuple[int, ...]
    branches: tuple[tuple[AnyOp, ...], ...]

    def infer(self, shapes: Shapes) -> Shapes:
        parts = self._parts(shapes)
        return tuple(infer(ops, part) for ops, part in zip(self.branches, parts, strict=True))

    def run(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        parts = self._parts(arrays)
        return tuple(run(ops, part) for ops, part in zip(self.branches, parts, strict=True))

    def _parts(self, items: tuple[T, ...]) -> list[tuple[T, ...]]:
        if sum(self.counts) != len(items) or len(self.counts) != len(self.branches):
            raise wrong(self, f"{len(items)} tensors", f"{sum(self.counts)}, for all branches")
        ends = [sum(self.counts[:n]) for n in range(len(self.counts) + 1)]
        return [items[a:b] for a, b in pairwise(ends)]

    def branch_of(self, index: int) -> tuple[int, int]:
        """The branch of input `index`, and its place among that branch's inputs."""
        for branch, count in enumerate(self.counts):
            if index < count:
                return branch, index
            index -= count
        raise IndexError(index)

    def undo(self, shapes: Shapes, index: int) -> Sequence[Op] | None:
        branch, place = self.branch_of(index)
        return invert(self.branches[branch], self._parts(shapes)[branch], place)

    def push(self, wanted: tuple[Slices, ...], shapes: Shapes) -> Pushed:
        rest: list[tuple[Op, ...]] = []
        inputs: list[Slices] = []
        for ops, part, one in zip(self.branches, self._parts(shapes), wanted, strict=True):
            left, needed = push_down(ops, part, one)
            rest.append(left)
            inputs += [n or whole(s) for n, s in zip(needed, part, strict=True)]
        return (Each(self.counts, tuple(rest)),), tuple(inputs)  # pyright: ignore[reportArgumentType]

    @property
    def adapts(self) -> bool:
        return any(op.adapts for ops in self.branches for op in ops)

    def __str__(self) -> str:
        branches = (" ".join(map(str, ops)) or "as it is" for ops in self.branches)
        return f"each({'; '.join(branches)})"


AnyOp: TypeAlias = (
    Transpose
    | Reshape
    | Concat
    | Stack
    | Unstack
    | Slice
    | Pad
    | Keep
    | Flip
    | Blocks
    | Rope
    | Sum
    | Interpolate
    | Tile
    | Widen
    | Scale
    | Take
    | Cast
    | WeightNorm
    | SpectralNorm
    | Norm
    | LowRank
    | Multiply
    | Add
    | Subtract
    | Dequantize
    | FoldScale
    | FoldShift
    | Fill
    | Each
)


def infer(ops: Sequence[Op], shapes: Shapes) -> Shape:
    """The shape that `ops` make of `shapes`; raises `ShapeMismatch` unless it is just one."""
    for op in ops:
        shapes = op.infer(shapes)
    if len(shapes) != 1:
        raise ShapeMismatch("ops", found=f"{len(shapes)} tensors", expected="one tensor")
    return shapes[0]


def dtype_of(ops: Sequence[Op], dtypes: Sequence[str]) -> str:
    """The dtype that `ops` make of values of these dtypes (joined ones of different dtypes: the
    first one's)."""
    state = list(dtypes)
    for op in ops:
        if isinstance(op, Each):
            ends = [sum(op.counts[:n]) for n in range(len(op.counts) + 1)]
            parts = [state[a:b] for a, b in pairwise(ends)]
            state = [dtype_of(b, part) for b, part in zip(op.branches, parts, strict=True)]
        elif isinstance(op, (Cast, Fill)):
            state = [op.dtype]
        elif isinstance(op, Dequantize):
            state = ["float32"]
        elif isinstance(op, (Merge, Concat, Stack)):
            state = state[:1]
    return state[0]


def run(ops: Sequence[Op], arrays: Sequence[Array], own: Array | None = None) -> Array:
    """Applies `ops` in turn; the last leaves one array.

    `own`: what the target holds, for `Keep`, which **raises** `TransferError` without it.
    """
    state = tuple(arrays)
    for op in ops:
        if isinstance(op, Keep):
            state = tuple(op.over(array, own) for array in state)
        else:
            state = op.run(state)
    (result,) = state
    return result


def invert(ops: Sequence[Op], shapes: Shapes, index: int = 0) -> tuple[AnyOp, ...] | None:
    """Ops that give input `index` back from the result, or `None` where values were lost."""
    undo: list[Op] = []
    for op in ops:
        back = op.undo(shapes, index)
        if back is None:
            return None
        after = op.infer(shapes)
        if isinstance(op, Each):
            index = op.branch_of(index)[0]
        elif len(after) != len(shapes):
            index = 0
        shapes = after
        undo = [*back, *undo]
    return simplify(tuple(undo))


def simplify(ops: Sequence[Op]) -> tuple[AnyOp, ...]:
    """Joins neighbouring transposes, drops those that do nothing and reshapes overridden."""
    result: list[Op] = []
    for op in ops:
        last = result[-1] if result else None
        if isinstance(op, Transpose) and isinstance(last, Transpose):
            result.pop()
            op = Transpose(tuple(last.axes[a] for a in op.axes))
        elif isinstance(op, Reshape) and isinstance(last, Reshape):
            result.pop()
        if isinstance(op, Transpose) and op.axes == tuple(range(len(op.axes))):
            continue
        result.append(op)
    return tuple(result)  # pyright: ignore[reportReturnType]  (AnyOp lists all Ops)


def push_down(
    ops: Sequence[Op], shapes: Shapes, wanted: Slices | None = None
) -> tuple[tuple[Op, ...], tuple[Slices | None, ...]]:
    """What to read and what to do with it for the part `wanted` of the result (`None`: all).

    Returns the operations to run and the slices of each source (`None`: read it whole).
    Slices have explicit, non-negative starts and stops and step 1.
    """
    if not ops and wanted is None:
        return (), (None,)
    stages = [shapes]
    for op in ops:
        stages.append(op.infer(stages[-1]))
    (shape,) = stages[-1]
    needed: tuple[Slices, ...] = (wanted or whole(shape),)
    rest: tuple[Op, ...] = ()
    for op, before in zip(reversed(ops), reversed(stages[:-1]), strict=True):
        pushed = op.push(needed, before)
        if pushed is None:  # do everything, then cut
            cut = [
                Slice(axis, part.start, part.stop)
                for axis, part in enumerate(wanted or ())
                if (part.start, part.stop) != (0, shape[axis])
            ]
            return (*ops, *cut), (None,) * len(shapes)
        rest = (*pushed[0], *rest)
        needed = pushed[1]
    all_ = map(whole, shapes)
    return rest, tuple(None if n == w else n for n, w in zip(needed, all_, strict=True))
