"""Operations that keep all values and move them about."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from regraft.operations._base import Op, Pushed, Shape, Shapes, wrong
from regraft.tensors import numpy_dtype

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices


class Transpose(Op, frozen=True):
    """Axis `i` of the result is axis `axes[i]` of the input."""

    axes: tuple[int, ...]

    def infer_one(self, shape: Shape) -> Shape:
        if sorted(self.axes) != list(range(len(shape))):
            raise wrong(self, shape, f"{len(self.axes)} axes")
        return tuple(shape[a] for a in self.axes)

    def run_one(self, array: Array) -> Array:
        return np.transpose(array, self.axes)

    def inverse(self, shapes: Shapes, index: int = 0) -> Op:
        return Transpose(tuple(self.axes.index(i) for i in range(len(self.axes))))

    def push(self, wanted: tuple[Slices, ...], shapes: Shapes) -> Pushed:
        place = [self.axes.index(i) for i in range(len(self.axes))]
        return (self,), tuple(tuple(one[p] for p in place) for one in wanted)


class Reshape(Op, frozen=True):
    """Row-major; `shape` has no -1, so that the plan says what will be there."""

    shape: tuple[int, ...]

    def infer_one(self, shape: Shape) -> Shape:
        if math.prod(shape) != math.prod(self.shape):
            raise wrong(self, shape, f"{math.prod(self.shape)} elements")
        return self.shape

    def run_one(self, array: Array) -> Array:
        return array.reshape(self.shape)

    def inverse(self, shapes: Shapes, index: int = 0) -> Op:
        return Reshape(shapes[index])


class Flip(Op, frozen=True):
    """Reverses `axis` (correlation and convolution differ by it)."""

    axis: int

    def infer_one(self, shape: Shape) -> Shape:
        if not self.axis < len(shape):
            raise wrong(self, shape, f"more than {self.axis} axes")
        return shape

    def run_one(self, array: Array) -> Array:
        return np.flip(array, self.axis)

    def inverse(self, shapes: Shapes, index: int = 0) -> Op:
        return self


class Blocks(Op, frozen=True):
    """Cuts `axis` into equal blocks; block `i` of the result is block `order[i]` (gate orders)."""

    axis: int
    order: tuple[int, ...]

    def infer_one(self, shape: Shape) -> Shape:
        if sorted(self.order) != list(range(len(self.order))):
            raise wrong(self, shape, "an order that is a permutation")
        if not self.axis < len(shape) or shape[self.axis] % len(self.order):
            raise wrong(self, shape, f"axis {self.axis} divisible by {len(self.order)}")
        return shape

    def run_one(self, array: Array) -> Array:
        parts = np.split(array, len(self.order), self.axis)
        return np.concatenate([parts[i] for i in self.order], self.axis)

    def inverse(self, shapes: Shapes, index: int = 0) -> Op:
        return Blocks(self.axis, tuple(self.order.index(i) for i in range(len(self.order))))


class Rope(Op, frozen=True):
    """Permutes the rows of each head of a q or k projection between rotary layouts.

    `to="half"`: pairs (0, 1), (2, 3) … become (0, d/2), (1, d/2 + 1) …, as Hugging Face's
    conversion of the original LLaMA weights does; `to="interleaved"` is the way back.
    Works on `axis`, whose size is heads times the head's width.
    """

    axis: int
    heads: int
    to: Literal["half", "interleaved"]

    def infer_one(self, shape: Shape) -> Shape:
        if not self.axis < len(shape) or shape[self.axis] % (2 * self.heads):
            raise wrong(self, shape, f"axis {self.axis} divisible by 2 × {self.heads} heads")
        return shape

    def run_one(self, array: Array) -> Array:
        size = array.shape[self.axis]
        pairs = size // self.heads // 2
        split = (pairs, 2) if self.to == "half" else (2, pairs)
        rows = np.arange(size).reshape(self.heads, *split).swapaxes(1, 2).reshape(-1)
        return np.take(array, rows, self.axis)

    def inverse(self, shapes: Shapes, index: int = 0) -> Op:
        return Rope(self.axis, self.heads, "interleaved" if self.to == "half" else "half")


class Cast(Op, frozen=True):
    """Converts to `dtype` (a numpy or ml_dtypes name). `source` is the dtype it came from."""

    dtype: str
    source: str

    def infer_one(self, shape: Shape) -> Shape:
        return shape

    def run_one(self, array: Array) -> Array:
        return array.astype(numpy_dtype(self.dtype))

    def inverse(self, shapes: Shapes, index: int = 0) -> Op | None:
        return Cast(self.source, self.dtype) if self.lossless else None

    def push(self, wanted: tuple[Slices, ...], shapes: Shapes) -> Pushed:
        return (self,), wanted

    @property
    def lossless(self) -> bool:
        """Whether every value of the source dtype has its exact image in `dtype`."""
        import ml_dtypes

        source, to = numpy_dtype(self.source), numpy_dtype(self.dtype)
        try:
            a, b = ml_dtypes.finfo(source), ml_dtypes.finfo(to)
        except ValueError:  # an integer, bool or complex dtype
            return bool(np.can_cast(source, to, "safe"))
        return bool(b.nmant >= a.nmant and b.maxexp >= a.maxexp and b.minexp <= a.minexp)
