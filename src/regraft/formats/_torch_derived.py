"""Tensors whose values are computed from their bytes: quantized ones, conjugates and negatives."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from regraft.formats._bytes import Mapped, Strided
from regraft.tensors import CODED

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices


class Mirrored(NamedTuple):
    """A view that PyTorch keeps lazy: its bytes are those of the conjugate or the negative."""

    place: Strided
    conjugate: bool
    negative: bool

    def read(self, file: Mapped, slices: Slices | None, where: str) -> Array:
        import numpy as np

        array = file.array(self.place, slices)
        array = np.conjugate(array) if self.conjugate else array
        return np.negative(array) if self.negative else array


class Quantized(NamedTuple):
    """Integers with scale and zero point: of the tensor, or one of each per index of `axis`.

    The values are `(integer - zero point) * scale`, as `Tensor.dequantize` computes them: in
    float32, and per channel in the precision of the scales.

    - `integers`: of the tensor's shape; of packed dtypes, the bytes in one row.
    """

    integers: Strided
    shape: tuple[int, ...]
    dtype: str
    scales: float | tuple[float, ...] | Strided
    zero_points: float | tuple[float, ...] | Strided
    axis: int = 0

    def read(self, file: Mapped, slices: Slices | None, where: str) -> Array:
        import numpy as np

        integers: Any = _codes(self, file, slices) if CODED[self.dtype][0] > 1 else (
            file.array(self.integers, slices)
        )  # fmt: skip
        if isinstance(self.scales, float):
            shift, scale = np.float32(self.zero_points), np.float32(self.scales)  # pyright: ignore[reportArgumentType]
            with np.errstate(all="ignore"):
                return (integers.astype(np.float32) - shift) * scale
        scales, shifts = (
            file.array(part) if isinstance(part, Strided) else np.asarray(part, np.float64)
            for part in (self.scales, self.zero_points)
        )
        along = [1] * len(self.shape)
        along[self.axis] = -1
        part = slice(None) if slices is None else slices[self.axis]
        scales, shifts = scales[part].reshape(along), shifts[part].reshape(along)
        with np.errstate(all="ignore"):
            values = (integers.astype(scales.dtype) - shifts.astype(scales.dtype)) * scales
            return values.astype(np.float32)


def _codes(tensor: Quantized, file: Mapped, slices: Slices | None) -> Array:
    """Unpacks codes of less than a byte, the first in the lowest bits; only the rows asked for."""
    import numpy as np

    if 0 in tensor.shape:
        empty = np.zeros(tensor.shape, np.uint8)
        return empty if slices is None else empty[slices]
    per_byte = CODED[tensor.dtype][0]
    bits = 8 // per_byte
    rows, *inner = tensor.shape or (1,)
    first, last, _ = (slice(None) if not slices else slices[0]).indices(rows)
    row = math.prod(inner)
    begin, end = first * row, max(first, last) * row
    window = (slice(begin // per_byte, -(-end // per_byte)),)
    packed: Any = file.array(tensor.integers, window)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (packed[:, None] >> shifts & ((1 << bits) - 1)).reshape(-1)
    codes = codes[begin % per_byte :][: end - begin]
    whole = codes.reshape(tensor.shape and (-1, *inner))
    return whole[(slice(None), *slices[1:])] if slices else whole
