"""The closed set of tensor operations that a graft may use.

An Op is a value: it is written to JSON, compared and reviewed. Each works on a tuple of tensors.
Most treat every tensor of the tuple alike; `Concat` and `Stack` join the tuple into one.

- `infer`: input shapes to output shapes, or `ShapeMismatch`; no data.
- `run`: arrays to arrays; views where numpy gives views.
- `inverse`: the Op that undoes this one for input `index`, `None` where values were lost.
- `push`: moves slices of the outputs down to the inputs. It gives the Op that is left to do (or
  no Op) and the slices of each input, so that running it on the sliced inputs equals slicing
  what the whole inputs would have given. `None` where all of the inputs are needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec
import numpy as np

from regraft.errors import ShapeMismatch
from regraft.tensors import numpy_dtype

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = tuple[Shape, ...]
# The operations left after pushing slices down (none or one), and the slices of each input.
Pushed: TypeAlias = "tuple[tuple[Op, ...], tuple[Slices, ...]]"


def _wrong(op: Op, shape: object, expected: str) -> ShapeMismatch:
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

    @property
    def exact(self) -> bool:
        """Whether every output value is an input value, unchanged (so not `adapt`)."""
        return True

    def __str__(self) -> str:
        values = (getattr(self, f) for f in self.__struct_fields__)
        return f"{type(self).__name__.lower()}({', '.join(map(_brief, values))})"


def _brief(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)  # pyright: ignore


def _replace(slices: Slices, axis: int, part: slice) -> Slices:
    return (*slices[:axis], part, *slices[axis + 1 :])


class Transpose(Op, frozen=True):
    """Axis `i` of the result is axis `axes[i]` of the input."""

    axes: tuple[int, ...]

    def infer_one(self, shape: Shape) -> Shape:
        if sorted(self.axes) != list(range(len(shape))):
            raise _wrong(self, shape, f"{len(self.axes)} axes")
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
            raise _wrong(self, shape, f"{math.prod(self.shape)} elements")
        return self.shape

    def run_one(self, array: Array) -> Array:
        return array.reshape(self.shape)

    def inverse(self, shapes: Shapes, index: int = 0) -> Op:
        return Reshape(shapes[index])


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
                raise _wrong(self, shape, f"{first}, but for axis {self.axis}")
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
            inputs.append(_replace(one, self.axis, slice(low, high)))
            start += size
        return (self,), tuple(inputs)


class Stack(Op, frozen=True):
    """Joins equally shaped inputs along a new `axis`."""

    axis: int

    def infer(self, shapes: Shapes) -> Shapes:
        first = shapes[0]
        for shape in shapes:
            if shape != first or not 0 <= self.axis <= len(first):
                raise _wrong(self, shape, f"{first}")
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
            raise _wrong(self, shape, f"more than {self.index} entries on axis {self.axis}")
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
            raise _wrong(self, shape, f"at least {self.stop} entries on axis {self.axis}")
        return (*shape[: self.axis], self.stop - self.start, *shape[self.axis + 1 :])

    def run_one(self, array: Array) -> Array:
        return array[(slice(None),) * self.axis + (slice(self.start, self.stop),)]

    def inverse(self, shapes: Shapes, index: int = 0) -> Op | None:
        whole = (self.start, self.stop) == (0, shapes[index][self.axis])
        return self if whole else None

    def push(self, wanted: tuple[Slices, ...], shapes: Shapes) -> Pushed:
        return (), tuple(_replace(one, self.axis, self._shifted(one[self.axis])) for one in wanted)

    def _shifted(self, part: slice) -> slice:
        return slice(self.start + part.start, self.start + part.stop)


class Pad(Op, frozen=True):
    """Puts `before` and `after` entries of `value` around `axis`."""

    axis: int
    before: int
    after: int
    value: float = 0.0

    def infer_one(self, shape: Shape) -> Shape:
        if not self.axis < len(shape):
            raise _wrong(self, shape, f"more than {self.axis} axes")
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


class Flip(Op, frozen=True):
    """Reverses `axis` (correlation and convolution differ by it)."""

    axis: int

    def infer_one(self, shape: Shape) -> Shape:
        if not self.axis < len(shape):
            raise _wrong(self, shape, f"more than {self.axis} axes")
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
            raise _wrong(self, shape, "an order that is a permutation")
        if not self.axis < len(shape) or shape[self.axis] % len(self.order):
            raise _wrong(self, shape, f"axis {self.axis} divisible by {len(self.order)}")
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
            raise _wrong(self, shape, f"axis {self.axis} divisible by 2 × {self.heads} heads")
        return shape

    def run_one(self, array: Array) -> Array:
        size = array.shape[self.axis]
        pairs = size // self.heads // 2
        split = (pairs, 2) if self.to == "half" else (2, pairs)
        rows = np.arange(size).reshape(self.heads, *split).swapaxes(1, 2).reshape(-1)
        return np.take(array, rows, self.axis)

    def inverse(self, shapes: Shapes, index: int = 0) -> Op:
        return Rope(self.axis, self.heads, "interleaved" if self.to == "half" else "half")


class Sum(Op, frozen=True):
    """Sums over `axis`, which stays with size 1 (RGB kernels for grey images)."""

    axis: int

    def infer_one(self, shape: Shape) -> Shape:
        if not self.axis < len(shape):
            raise _wrong(self, shape, f"more than {self.axis} axes")
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
            raise _wrong(self, shape, f"more than {max(self.axes)} axes")
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


AnyOp: TypeAlias = (
    Transpose
    | Reshape
    | Concat
    | Stack
    | Unstack
    | Slice
    | Pad
    | Flip
    | Blocks
    | Rope
    | Sum
    | Interpolate
    | Cast
)


def infer(ops: Sequence[Op], shapes: Shapes) -> Shape:
    """The shape that `ops` make of `shapes`; raises `ShapeMismatch` unless it is just one."""
    for op in ops:
        shapes = op.infer(shapes)
    if len(shapes) != 1:
        raise ShapeMismatch("ops", found=f"{len(shapes)} tensors", expected="one tensor")
    return shapes[0]


def run(ops: Sequence[Op], arrays: Sequence[Array]) -> Array:
    """Applies `ops` in turn; the last leaves one array."""
    state = tuple(arrays)
    for op in ops:
        state = op.run(state)
    (result,) = state
    return result


def invert(ops: Sequence[Op], shapes: Shapes, index: int = 0) -> tuple[AnyOp, ...] | None:
    """Ops that give input `index` back from the result, or `None` where values were lost."""
    undo: list[Op] = []
    for op in ops:
        back = op.inverse(shapes, index)
        if back is None:
            return None
        after = op.infer(shapes)
        index = index if len(after) == len(shapes) else 0
        shapes = after
        undo.append(back)
    return simplify(tuple(reversed(undo)))


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
    stages = [shapes]
    for op in ops:
        stages.append(op.infer(stages[-1]))
    (shape,) = stages[-1]
    needed: tuple[Slices, ...] = (wanted or tuple(slice(0, n) for n in shape),)
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
    whole = (tuple(slice(0, n) for n in shape) for shape in shapes)
    return rest, tuple(None if n == w else n for n, w in zip(needed, whole, strict=True))
