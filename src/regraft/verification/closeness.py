"""How close two arrays are, whatever the layout in which two frameworks hold the same values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from regraft.tensors import Array

# In units in the last place of the coarser dtype. Below the first two results of one module on the
# same inputs are equal up to rounding; above the second they are different, whatever the reason.
# Between them a difference counts where a cause of it is proven.
NOISE, CERTAIN = 12.0, 170.0
# The same where a format has so few digits that many such units are the whole value.
_NOISE_MOST, _CERTAIN_MOST = 0.02, 0.08


def unit(*arrays: Array) -> float:
    """The unit in the last place of the coarsest dtype, of double precision seen as single."""
    units = [float(np.finfo(np.float32).eps)]
    for array in arrays:
        try:
            units.append(float(ml_dtypes.finfo(array.dtype).eps))
        except ValueError:
            continue
    return max(units)


def noise(*arrays: Array) -> float:
    """The relative error that rounding within one module explains."""
    return min(NOISE * unit(*arrays), _NOISE_MOST)


def certain(*arrays: Array) -> float:
    """The relative error that no rounding within one module explains."""
    return min(CERTAIN * unit(*arrays), _CERTAIN_MOST)


def error(expected: Array, actual: Array) -> float:
    """The larger of two relative errors: of the root mean square, and of the largest magnitude.
    inf where shapes differ or NaN and Inf are not at the same places."""
    if expected.shape != actual.shape:
        return float("inf")
    if expected.size == 0:
        return 0.0
    if expected.dtype.kind in "biu" and actual.dtype.kind in "biu":
        return 0.0 if np.array_equal(expected, actual) else float("inf")
    a, b = wide(expected), wide(actual)
    odd = ~(np.isfinite(a) & np.isfinite(b))
    if odd.any():
        if not np.array_equal(a[odd], b[odd], equal_nan=True):
            return float("inf")
        a, b = a[~odd], b[~odd]
    # Masks hold the lowest number of their dtype, beside which nothing would be told apart.
    gap = np.abs(a - b)
    largest = float(np.abs(a).max(initial=0.0))
    if largest == 0.0:
        return 0.0 if float(gap.max(initial=0.0)) == 0.0 else float("inf")
    size = float(np.sqrt(np.mean(np.square(a / largest))))
    square = float(np.sqrt(np.mean(np.square(gap / largest)))) / size
    return max(square, float(gap.max()) / largest)


def wide(array: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    """In double precision; of complex numbers both parts, as phases tell as much as lengths."""
    if array.dtype.kind == "c":
        double = array.astype(np.complex128)
        return np.stack([double.real, double.imag], -1)
    return array.astype(np.float64)


def layouts(array: Array, shape: tuple[int, ...]) -> Iterator[Array]:
    """The array as it could be meant in another framework, in that shape: as it is, with channels
    moved, with positions in one axis or in several, without axes of length 1."""
    if array.shape == shape:
        yield array
    if array.size != prod(shape):
        return
    moved: list[Array] = []
    if array.ndim > 2:
        moved = [np.moveaxis(array, 1, -1), np.moveaxis(array, -1, 1)]
        yield from (m for m in moved if m.shape == shape)
    if array.shape != shape:
        if _same_but_ones(array.shape, shape) or array.ndim != len(shape):
            yield array.reshape(shape)
        yield from (m.reshape(shape) for m in moved if m.shape != shape and m.ndim != len(shape))
        if len(shape) > 2 and array.ndim != len(shape) and array.ndim > 1:
            # Positions in several axes there, in one here, and the channels at the other end.
            last = (shape[0], *shape[2:], shape[1])
            yield np.moveaxis(array.reshape(last), -1, 1)


def _same_but_ones(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return [n for n in a if n != 1] == [n for n in b if n != 1]


def nearest(expected: Array, actual: Array) -> tuple[float, Array | None]:
    """The smallest error over the layouts that `expected` could be in, and it in that layout.
    inf and None where no layout has the shape."""
    best: tuple[float, Array | None] = (float("inf"), None)
    for candidate in layouts(expected, actual.shape):
        found = error(candidate, actual)
        if best[1] is None or found < best[0]:
            best = found, candidate
        if found == 0.0:
            break
    return best


def alike(some: Mapping[str, Array], others: Mapping[str, Array]) -> bool:
    """Whether all outputs are the same but for the last digits."""
    if some.keys() != others.keys():
        return False
    return all(_close(array, others[name]) for name, array in some.items())


def _close(a: Array, b: Array) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.dtype.kind != "f":
        return np.array_equal(a, b)
    x, y = a.astype(np.float64), b.astype(np.float64)
    digits = 16 * float(np.spacing(np.ones((), a.dtype)))
    return bool((np.abs(x - y) <= digits * np.abs(x).max(initial=0.0)).all())
