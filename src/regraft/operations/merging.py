"""Operations that compute one tensor from several: weights that were stored in parts.

They keep what a layer computes, not its stored values: none is an `adapt`, and few can be undone.
Arithmetic is done in float64 (or the widest input) and returned in the dtype of the weight.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from regraft.operations._base import Op, Shape, Shapes, wrong

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from regraft.tensors import Array


class Merge(Op, frozen=True):
    """Base of operations that make one tensor of all their inputs."""

    def infer(self, shapes: Shapes) -> Shapes:
        return (self.merged(shapes),)

    def merged(self, shapes: Shapes) -> Shape:
        raise NotImplementedError

    def run(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        return (np.asarray(self.merge(*arrays)),)

    def merge(self, *arrays: Array) -> Array:
        raise NotImplementedError


_Wide: TypeAlias = "NDArray[np.float64]"


def _wide(array: Array) -> _Wide:
    return array.astype(np.float64)


def _along(vector: _Wide, axis: int, rank: int) -> _Wide:
    """A vector, shaped so that it broadcasts along `axis` of a tensor with `rank` axes."""
    return vector.reshape([-1 if i == axis else 1 for i in range(rank)])


class WeightNorm(Merge, frozen=True):
    """Magnitude g and direction v to the weight v·g/‖v‖; ‖v‖ over all axes but `axis`, over all
    where it is -1 (Salimans and Kingma 2016, arXiv:1602.07868; torch.nn.utils.weight_norm)."""

    axis: int

    def merged(self, shapes: Shapes) -> Shape:
        if len(shapes) != 2:
            raise wrong(self, shapes, "magnitude and direction")
        g, v = shapes
        if math.prod(g) != (1 if self.axis < 0 else v[self.axis]):
            raise wrong(self, g, f"one magnitude for each entry of axis {self.axis} of {v}")
        return v

    def merge(self, *arrays: Array) -> Array:
        g, v = arrays
        axis = self.axis if self.axis >= 0 else v.ndim
        scale = _along(_wide(g), axis, v.ndim) / _wide(Norm(self.axis).run_one(v))
        return (_wide(v) * scale).astype(v.dtype)


class Norm(Op, frozen=True):
    """‖v‖ over all axes but `axis`, which alone keeps its size: the magnitude of a weight norm."""

    axis: int

    def infer_one(self, shape: Shape) -> Shape:
        return tuple(n if i == self.axis else 1 for i, n in enumerate(shape))

    def run_one(self, array: Array) -> Array:
        others = tuple(i for i in range(array.ndim) if i != self.axis)
        squares = np.square(_wide(array)).sum(axis=others, keepdims=True)
        return np.sqrt(squares).astype(array.dtype)


class SpectralNorm(Merge, frozen=True):
    """Weight W and the vectors u, v of its power iteration to W / σ, σ = uᵀ·W·v with W as a matrix
    whose rows are the entries of `axis` (Miyato and others 2018, arXiv:1802.05957;
    torch.nn.utils.spectral_norm, in evaluation mode)."""

    axis: int = 0

    def merged(self, shapes: Shapes) -> Shape:
        if len(shapes) != 3:
            raise wrong(self, shapes, "a weight, u and v")
        weight, u, v = shapes
        rows = weight[self.axis]
        if (rows,) != u or (math.prod(weight) // max(1, rows),) != v:
            raise wrong(self, (u, v), f"vectors of the rows and columns of {weight}")
        return weight

    def merge(self, *arrays: Array) -> Array:
        weight, u, v = arrays
        rows = np.moveaxis(_wide(weight), self.axis, 0).reshape(len(u), -1)
        return (_wide(weight) / (_wide(u) @ rows @ _wide(v))).astype(weight.dtype)


class LowRank(Merge, frozen=True):
    """Weight W, A `[r, in, *space]` and B `[out, r]` to W + `scale`·B·A (LoRA: Hu and others 2021,
    arXiv:2106.09685; PEFT's lora_A and lora_B). `transposed`: W is `[in, out]`."""

    scale: float
    transposed: bool = False

    def merged(self, shapes: Shapes) -> Shape:
        if len(shapes) != 3:
            raise wrong(self, shapes, "a weight, A and B")
        weight, a, b = shapes
        plain = weight[::-1] if self.transposed else weight
        if (b[0], *a[1:]) != plain or b[1:2] != a[:1] or math.prod(b[2:]) != 1:
            raise wrong(self, (a, b), f"A [r, in] and B [out, r] for a weight of {weight}")
        return weight

    def merge(self, *arrays: Array) -> Array:
        weight, a, b = arrays
        update = np.tensordot(_wide(b).reshape(b.shape[:2]), _wide(a), 1) * self.scale
        update = update.T if self.transposed else update
        return (_wide(weight) + update).astype(weight.dtype)


class Multiply(Merge, frozen=True):
    """A tensor times another one that broadcasts to it (pruning masks, input scales)."""

    def merged(self, shapes: Shapes) -> Shape:
        if len(shapes) != 2 or np.broadcast_shapes(*shapes) != shapes[0]:
            raise wrong(self, shapes, "a tensor and a factor that broadcasts to it")
        return shapes[0]

    def merge(self, *arrays: Array) -> Array:
        tensor, factor = arrays
        return np.multiply(tensor, factor.astype(tensor.dtype))


class Add(Merge, frozen=True):
    """The sum of equally shaped tensors (the two biases of a recurrent layer)."""

    def merged(self, shapes: Shapes) -> Shape:
        if len(set(shapes)) != 1:
            raise wrong(self, shapes, "equal shapes")
        return shapes[0]

    def merge(self, *arrays: Array) -> Array:
        return np.asarray(sum(_wide(array) for array in arrays)).astype(arrays[0].dtype)


class Subtract(Merge, frozen=True):
    """The first less the second (a convolution's bias taken into the mean of its norm)."""

    def merged(self, shapes: Shapes) -> Shape:
        if len(shapes) != 2 or shapes[0] != shapes[1]:
            raise wrong(self, shapes, "two equal shapes")
        return shapes[0]

    def merge(self, *arrays: Array) -> Array:
        return (_wide(arrays[0]) - _wide(arrays[1])).astype(arrays[0].dtype)


class Dequantize(Merge, frozen=True):
    """Codes, scales and maybe zero points to values: (code - zero)·scale, as float32.

    Scales are scalar, one for each entry of `axis`, or have the codes' rank with sizes that divide
    theirs: each then holds for a block (block-wise float8, 128 × 128). Where a scale is the largest
    value and not the step from one code to the next, `levels` is the code that stands for it: 127
    (LLM.int8: Dettmers and others 2022, arXiv:2208.07339). Where it is how many codes there are to
    a value of 1, `divide` (Keras: `keras.quantizers.abs_max_quantize`).
    """

    axis: int = 0
    levels: int = 1
    divide: bool = False

    def merged(self, shapes: Shapes) -> Shape:
        if not 2 <= len(shapes) <= 3:
            raise wrong(self, shapes, "codes, scales and maybe zero points")
        for shape in shapes[1:]:
            self._check(shape, shapes[0])
        return shapes[0]

    def _check(self, scales: Shape, codes: Shape) -> None:
        size = math.prod(scales)
        per_entry = self.axis < len(codes) and size == codes[self.axis]
        blocks = len(scales) == len(codes) and all(
            n and -(-c // -(-c // n)) == n for c, n in zip(codes, scales, strict=True)
        )
        if not (size == 1 or per_entry or blocks):
            raise wrong(self, scales, f"scales for blocks of {codes}")

    def merge(self, *arrays: Array) -> Array:
        codes, *rest = arrays
        scale, *zero = (self._spread(_wide(part), codes.shape) for part in rest)
        values = _wide(codes) - (zero[0] if zero else 0.0)
        step = 1 / scale if self.divide else scale / self.levels
        return (values * step).astype(np.float32)

    def _spread(self, scales: _Wide, codes: Shape) -> _Wide:
        if scales.size == 1:
            return scales.reshape(())
        if len(scales.shape) == len(codes) and any(n != 1 for n in scales.shape):
            for axis, (size, count) in enumerate(zip(codes, scales.shape, strict=True)):
                if count not in (1, size):
                    scales = np.repeat(scales, -(-size // count), axis)
                    scales = np.take(scales, range(size), axis)
            return scales
        return _along(scales, self.axis, len(codes))


class FoldScale(Merge, frozen=True):
    """Kernel, (scale,) variance to the kernel with a norm folded in: kernel·scale/√(var + eps)
    along `axis`, its output channels."""

    axis: int
    eps: float

    def merged(self, shapes: Shapes) -> Shape:
        kernel, *vectors = shapes
        if not 1 <= len(vectors) <= 2 or any(v != (kernel[self.axis],) for v in vectors):
            raise wrong(self, shapes, f"vectors of the size of axis {self.axis}")
        return kernel

    def merge(self, *arrays: Array) -> Array:
        kernel, *scale, variance = arrays
        factor = 1 / np.sqrt(_wide(variance) + self.eps)
        factor = factor * _wide(scale[0]) if scale else factor
        return (_wide(kernel) * _along(factor, self.axis, kernel.ndim)).astype(kernel.dtype)


class FoldShift(Merge, frozen=True):
    """Scale, shift, mean, variance (and the layer's own bias) of a norm to the bias of the layer
    that it is folded into: (bias - mean)·scale/√(var + eps) + shift."""

    eps: float

    def merged(self, shapes: Shapes) -> Shape:
        if not 4 <= len(shapes) <= 5 or len(set(shapes)) != 1:
            raise wrong(self, shapes, "four or five vectors of one size")
        return shapes[0]

    def merge(self, *arrays: Array) -> Array:
        scale, shift, mean, variance, *bias = map(_wide, arrays)
        before = (bias[0] if bias else 0.0) - mean
        folded = before * scale / np.sqrt(variance + self.eps) + shift
        return folded.astype(arrays[0].dtype)


class Fill(Op, frozen=True):
    """A constant tensor, from no input (the bias of a layer that had none is zero)."""

    shape: tuple[int, ...]
    value: float
    dtype: str = "float32"

    def infer(self, shapes: Shapes) -> Shapes:
        if shapes:
            raise wrong(self, shapes, "no input")
        return (self.shape,)

    def run(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        from regraft.tensors import numpy_dtype

        return (np.full(self.shape, self.value, numpy_dtype(self.dtype)),)
