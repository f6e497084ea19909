"""Operations that join tensors and take them apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from regraft.operations._base import Op, Pushed, Shape, Shapes, replaced, wrong

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices


class Concat(Op, frozen=True):
    """Joins all inputs along `axis`, in order."""

    axis: int

    def infer(self, shapes: Shapes) -> Shapes:
        first = shapes[0]
        for shape in shapes:
            others = [n for i, n in enumerate(shape) if i != self.axis]
            if others != [n for i, n in enumerate(first) if i != self.axis] or not (
                0 <= self.axis < len(shape)
            ):
                raise wrong(self, shape, f"{first}, but for axis {self.axis}")
        total = sum(shape[self.axis] for shape in shapes)
        return ((*first[: self.axis], total, *first[self.axis + 1 :]),)

    def run(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        return (np.concatenate(arrays, self.axis),)

    def inverse(self, shapes: Shapes, index: int = 0) -> Op:
        start = sum(shape[self.axis] for shape in shapes[:index])
        return Slice(self.axis, start, start + shapes[index][self.axis])

    def push(self, wanted: tuple[Slices, ...], shapes: Shapes) -> Pushed:
        (one,) = wanted
        inputs: list[Slices] = []
        start = 0
        for shape in shapes:
            size = shape[self.axis]
            low = min(max(one[self.axis].start - start, 0), size)
            high = min(max(one[self.axis].stop - start, low), size)
            inputs.append(replaced(one, self.axis, slice(low, high)))
            start += size
        return (self,), tuple(inputs)


class Stack(Op, frozen=True):
    """Joins equally shaped inputs along a new `axis`."""

    axis: int

    def infer(self, shapes: Shapes) -> Shapes:
        first = shapes[0]
        for shape in shapes:
            if shape != first or not 0 <= self.axis <= len(first):
                raise wrong(self, shape, f"{first}")
        return ((*first[: self.axis], len(shapes), *first[self.axis :]),)

    def run(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        return (np.stack(arrays, self.axis),)

    def inverse(self, shapes: Shapes, index: int = 0) -> Op:
        return Unstack(self.axis, index)


class Unstack(Op, frozen=True):
    """Takes entry `index` of `axis`; the axis goes."""

    axis: int
    index: int

    def infer_one(self, shape: Shape) -> Shape:
        if not (self.axis < len(shape) and self.index < shape[self.axis]):
            raise wrong(self, shape, f"more than {self.index} entries on axis {self.axis}")
        return (*shape[: self.axis], *shape[self.axis + 1 :])

    def run_one(self, array: Array) -> Array:
        return np.asarray(np.take(array, self.index, self.axis))

    def inverse(self, shapes: Shapes, index: int = 0) -> Op | None:
        return Stack(self.axis) if shapes[index][self.axis] == 1 else None

    def push(self, wanted: tuple[Slices, ...], shapes: Shapes) -> Pushed:
        entry = slice(self.index, self.index + 1)
        inputs = tuple((*one[: self.axis], entry, *one[self.axis :]) for one in wanted)
        return (Unstack(self.axis, 0),), inputs


class Slice(Op, frozen=True):
    """Entries `start` to `stop` (exclusive) of `axis`. A split is one Slice per part."""

    axis: int
    start: int
    stop: int

    def infer_one(self, shape: Shape) -> Shape:
        if not (self.axis < len(shape) and 0 <= self.start < self.stop <= shape[self.axis]):
            raise wrong(self, shape, f"at least {self.stop} entries on axis {self.axis}")
        return (*shape[: self.axis], self.stop - self.start, *shape[self.axis + 1 :])

    def run_one(self, array: Array) -> Array:
        return array[(slice(None),) * self.axis + (slice(self.start, self.stop),)]

    def inverse(self, shapes: Shapes, index: int = 0) -> Op | None:
        whole = (self.start, self.stop) == (0, shapes[index][self.axis])
        return self if whole else None

    def push(self, wanted: tuple[Slices, ...], shapes: Shapes) -> Pushed:
        return (), tuple(replaced(one, self.axis, self._shifted(one[self.axis])) for one in wanted)

    @property
    def adapts(self) -> bool:
        return True

    def _shifted(self, part: slice) -> slice:
        return slice(self.start + part.start, self.start + part.stop)
