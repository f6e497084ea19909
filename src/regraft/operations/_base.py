"""What every operation can do, and the shapes and slices it speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from regraft.errors import ShapeMismatch

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = tuple[Shape, ...]
# The operations left after pushing slices down (none or one), and the slices of each input.
Pushed: TypeAlias = "tuple[tuple[Op, ...], tuple[Slices, ...]]"


def wrong(op: Op, shape: object, expected: str) -> ShapeMismatch:
    return ShapeMismatch(str(op), found=f"input of shape {shape}", expected=expected)


class Op(msgspec.Struct, frozen=True, tag_field="op", tag=str.lower):
    """Base of all operations; the abstract face described in the module's docstring."""

    def infer(self, shapes: Shapes) -> Shapes:
        return tuple(self.infer_one(shape) for shape in shapes)

    def infer_one(self, shape: Shape) -> Shape:
        raise NotImplementedError

    def run(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(self.run_one(array) for array in arrays)

    def run_one(self, array: Array) -> Array:
        raise NotImplementedError

    def inverse(self, shapes: Shapes, index: int = 0) -> Op | None:
        return None

    def push(self, wanted: tuple[Slices, ...], shapes: Shapes) -> Pushed | None:
        return None

    def undo(self, shapes: Shapes, index: int) -> Sequence[Op] | None:
        """As `inverse`, for an Op that takes several to undo."""
        back = self.inverse(shapes, index)
        return None if back is None else (back,)

    @property
    def adapts(self) -> bool:
        """Whether values are dropped, made up or mixed, so that a graft through it is an `adapt`
        unless it is known to be one part of a whole."""
        return False

    def __str__(self) -> str:
        values = (getattr(self, f) for f in self.__struct_fields__)
        return f"{type(self).__name__.lower()}({', '.join(map(_brief, values))})"


def _brief(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)  # pyright: ignore


def whole(shape: Shape) -> Slices:
    """Slices that take all of a tensor."""
    return tuple(slice(0, n) for n in shape)


def replaced(slices: Slices, axis: int, part: slice) -> Slices:
    return (*slices[:axis], part, *slices[axis + 1 :])
