"""Operations that change values to fit another size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from regraft.errors import TransferError
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
    def adapts(self) -> bool:
        return True


class Keep(Op, frozen=True):
    """Grows `axis` to `size` entries; the new ones stay as the target has them. They lie at its
    end and, where the given ones begin at `start`, before them.

    The last operation of a chain, as the one that needs the target's own values (`over`). It is
    how rows of a vocabulary are added: nothing is made up for what the source does not have.
    """

    axis: int
    size: int
    start: int = 0

    def infer_one(self, shape: Shape) -> Shape:
        room = self.size - self.start
        if not self.axis < len(shape) or not self.start >= 0 or shape[self.axis] > room:
            raise wrong(self, shape, f"at most {room} entries on axis {self.axis}")
        if shape[self.axis] == self.size:
            raise wrong(self, shape, f"fewer than {self.size} entries on axis {self.axis}")
        return (*shape[: self.axis], self.size, *shape[self.axis + 1 :])

    def run_one(self, array: Array) -> Array:
        return self.over(array, None)

    def over(self, array: Array, own: Array | None) -> Array:
        """The target's `own` values with `array` in the place of the entries from `start` on."""
        shape = self.infer_one(array.shape)
        if own is None or own.shape != shape:
            raise TransferError(
                str(self),
                found="no values of the model's own" if own is None or not own.size
                else f"the model's own values in shape {own.shape}",
                expected=f"a live model's values in shape {shape}, of which "
                f"{self.size - array.shape[self.axis]} on axis {self.axis} stay",
                hint="load into a model with values, or pin the tensor with rg.ops.Pad",
            )  # fmt: skip
        whole = own.copy()
        there = slice(self.start, self.start + array.shape[self.axis])
        whole[(slice(None),) * self.axis + (there,)] = array
        return whole

    def inverse(self, shapes: Shapes, index: int = 0) -> Op:
        return Slice(self.axis, self.start, self.start + shapes[index][self.axis])

    @property
    def adapts(self) -> bool:
        return True


class Sum(Op, frozen=True):
    """Sums over `axis`, which stays with size 1 (RGB kernels for grey images).

    In float64, returned in the input's dtype.
    """

    axis: int

    def infer_one(self, shape: Shape) -> Shape:
        if not self.axis < len(shape):
            raise wrong(self, shape, f"more than {self.axis} axes")
        return (*shape[: self.axis], 1, *shape[self.axis + 1 :])

    def run_one(self, array: Array) -> Array:
        total = np.sum(array, axis=self.axis, keepdims=True, dtype=np.float64)
        return np.asarray(total.astype(array.dtype))

    @property
    def adapts(self) -> bool:
        return True


class Interpolate(Op, frozen=True):
    """Resizes `axes` to `sizes` with a separable kernel, pixel centres at half integers.

    `bicubic` is Keys' cubic with a = -0.5 where `antialias` widens it on the way down (as
    torchvision, PIL and timm do for position embeddings) and a = -0.75 where it does not;
    `bilinear` is the triangle. `geometric` is for tables of relative positions, of odd sizes: the
    entries around the middle, near distances, stay near where they are, and the steps between
    them grow geometrically outwards until the old table spans the new one; linear in between (BEiT,
    and timm's `resize_rel_pos_bias_table`). Computed in float64, returned in the input's dtype.
    """

    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    method: Literal["bicubic", "bilinear", "geometric"] = "bicubic"
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
        if self.method == "geometric":
            return _geometric(before, after)
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
    def adapts(self) -> bool:
        return True


def _geometric(before: int, after: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Linear weights of entries at distances 0, ±1, ±(1 + q), ±(1 + q + q²) … from the middle, with
    the q between 1.01 and 1.5 at which the outermost is at half of `after`, as near as it gets."""
    low, high = 1.01, 1.5
    ratio = high
    while high - low > 1e-6:
        ratio = (low + high) / 2
        beyond = (1 - ratio ** (before // 2)) / (1 - ratio) > after // 2
        low, high = (low, ratio) if beyond else (ratio, high)
    steps = np.cumsum(ratio ** np.arange(before // 2))
    places = np.concatenate([-steps[::-1], [0.0], steps])
    wanted = np.arange(after) - after // 2
    return np.stack([np.interp(wanted, places, row) for row in np.eye(before)], axis=1)


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


class Widen(Op, frozen=True):
    """Grows `axis` to `size` entries by repeating all of them in turn.

    `shares`: each entry is divided by the number of its copies, as the inputs of a layer are that
    stands behind a wider one (Net2WiderNet, arXiv:1511.05641). In float64, returned in the input's
    dtype.
    """

    axis: int
    size: int
    shares: bool = False

    def infer_one(self, shape: Shape) -> Shape:
        if not self.axis < len(shape) or not 0 < shape[self.axis] <= self.size:
            raise wrong(self, shape, f"1 to {self.size} entries on axis {self.axis}")
        return (*shape[: self.axis], self.size, *shape[self.axis + 1 :])

    def run_one(self, array: Array) -> Array:
        entries = np.arange(self.size) % array.shape[self.axis]
        wide = np.take(array, entries, self.axis)
        if not self.shares:
            return wide
        copies = np.bincount(entries)[entries]
        column = copies.reshape(-1, *(1,) * (array.ndim - self.axis - 1))
        return np.asarray((wide.astype(np.float64) / column).astype(array.dtype))

    @property
    def adapts(self) -> bool:
        return True


class Scale(Op, frozen=True):
    """Multiplies by a constant (3/4 where three input channels become four).

    In float64, returned in the input's dtype.
    """

    factor: float

    def infer_one(self, shape: Shape) -> Shape:
        return shape

    def run_one(self, array: Array) -> Array:
        return (array.astype(np.float64) * self.factor).astype(array.dtype)

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
