"""Operations that change values to fit another size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from regraft.operations._base import Op, Pushed, Shape, Shapes, wrong
from regraft.operations.joining import Slice

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices


class Pad(Op, frozen=True):
    """Puts `before` and `after` entries of `value` around `axis`."""

    axis: int
    before: int
    after: int
    value: float = 0.0

    def infer_one(self, shape: Shape) -> Shape:
        if not self.axis < len(shape):
            raise wrong(self, shape, f"more than {self.axis} axes")
        size = self.before + shape[self.axis] + self.after
        return (*shape[: self.axis], size, *shape[self.axis + 1 :])

    def run_one(self, array: Array) -> Array:
        widths = [(0, 0)] * array.ndim
        widths[self.axis] = (self.before, self.after)
        return np.pad(array, widths, constant_values=self.value)

    def inverse(self, shapes: Shapes, index: int = 0) -> Op:
        return Slice(self.axis, self.before, self.before + shapes[index][self.axis])

    @property
    def exact(self) -> bool:
        return False


class Sum(Op, frozen=True):
    """Sums over `axis`, which stays with size 1 (RGB kernels for grey images)."""

    axis: int

    def infer_one(self, shape: Shape) -> Shape:
        if not self.axis < len(shape):
            raise wrong(self, shape, f"more than {self.axis} axes")
        return (*shape[: self.axis], 1, *shape[self.axis + 1 :])

    def run_one(self, array: Array) -> Array:
        return np.asarray(np.sum(array, axis=self.axis, keepdims=True, dtype=array.dtype))

    @property
    def exact(self) -> bool:
        return False


class Interpolate(Op, frozen=True):
    """Resizes `axes` to `sizes` with a separable kernel, pixel centres at half integers.

    `bicubic` is Keys' cubic with a = -0.5 where `antialias` widens it on the way down (as
    torchvision, PIL and timm do for position embeddings) and a = -0.75 where it does not;
    `bilinear` is the triangle. Computed in float64, returned in the input's dtype.
    """

    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    method: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = True

    def infer_one(self, shape: Shape) -> Shape:
        if len(self.axes) != len(self.sizes) or max(self.axes) >= len(shape):
            raise wrong(self, shape, f"more than {max(self.axes)} axes")
        to = dict(zip(self.axes, self.sizes, strict=True))
        return tuple(to.get(axis, size) for axis, size in enumerate(shape))

    def run_one(self, array: Array) -> Array:
        result = array.astype(np.float64)
        for axis, size in zip(self.axes, self.sizes, strict=True):
            weights = self.weights(array.shape[axis], size)
            result = np.moveaxis(np.tensordot(weights, result, (1, axis)), 0, axis)
        return result.astype(array.dtype)

    def weights(self, before: int, after: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """A matrix (after, before); rows sum to 1. Outside samples are clamped to the edge."""
        scale = before / after
        stretch = max(scale, 1.0) if self.antialias else 1.0
        cubic_a = -0.5 if self.antialias else -0.75
        reach = math.ceil(2 * stretch)
        weights = np.zeros((after, before))
        for row in range(after):
            centre = (row + 0.5) * scale - 0.5
            for column in range(math.floor(centre) - reach, math.floor(centre) + reach + 2):
                weight = self._kernel(abs(column - centre) / stretch, cubic_a)
                inside = 0 <= column < before
                if inside or not self.antialias:  # antialiased kernels drop what is outside
                    weights[row, min(max(column, 0), before - 1)] += weight
        return weights / weights.sum(axis=1, keepdims=True)

    def _kernel(self, x: float, a: float) -> float:
        if self.method == "bilinear":
            return max(0.0, 1.0 - x)
        if x <= 1.0:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        if x < 2.0:
            return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        return 0.0

    @property
    def exact(self) -> bool:
        return False


class Tile(Op, frozen=True):
    """Repeats all of `axis` `times` times, one after the other (input channels, wider layers)."""

    axis: int
    times: int

    def infer_one(self, shape: Shape) -> Shape:
        if not self.axis < len(shape) or self.times < 1:
            raise wrong(self, shape, f"more than {self.axis} axes")
        return (*shape[: self.axis], shape[self.axis] * self.times, *shape[self.axis + 1 :])

    def run_one(self, array: Array) -> Array:
        return np.concatenate([array] * self.times, self.axis)

    def inverse(self, shapes: Shapes, index: int = 0) -> Op:
        return Slice(self.axis, 0, shapes[index][self.axis])

    @property
    def adapts(self) -> bool:
        return True


class Scale(Op, frozen=True):
    """Multiplies by a constant (3/4 where three input channels become four)."""

    factor: float

    def infer_one(self, shape: Shape) -> Shape:
        return shape

    def run_one(self, array: Array) -> Array:
        return np.multiply(array, np.asarray(self.factor, array.dtype))

    def push(self, wanted: tuple[Slices, ...], shapes: Shapes) -> Pushed:
        return (self,), wanted

    @property
    def adapts(self) -> bool:
        return True


class Take(Op, frozen=True):
    """Entries `indices` of `axis`, in that order, each as often as it is named."""

    axis: int
    indices: tuple[int, ...]

    def infer_one(self, shape: Shape) -> Shape:
        size = shape[self.axis] if self.axis < len(shape) else 0
        if not all(0 <= i < size for i in self.indices):
            raise wrong(self, shape, f"indices below {size} on axis {self.axis}")
        return (*shape[: self.axis], len(self.indices), *shape[self.axis + 1 :])

    def run_one(self, array: Array) -> Array:
        return np.take(array, np.asarray(self.indices, np.intp), self.axis)

    def inverse(self, shapes: Shapes, index: int = 0) -> Op | None:
        size = shapes[index][self.axis]
        if sorted(self.indices) != list(range(size)):
            return None
        return Take(self.axis, tuple(self.indices.index(i) for i in range(size)))

    @property
    def adapts(self) -> bool:
        return len(set(self.indices)) != len(self.indices)
