"""Tensors known by their values: whole, in any order, or by a sample; read in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from regraft.lineage.measuring import pieces
from regraft.tensors import Read, TensorInfo, numpy_dtype
from regraft.values import bits, let_go

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from regraft.tensors import Array

_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


def parts(read: Read, info: TensorInfo) -> Iterator[Array]:
    """The values piece by piece, in row-major order; what was looked at leaves memory again."""
    for slices in pieces(info.shape, numpy_dtype(info.dtype).itemsize):
        array = read(info.name, slices)
        yield array
        let_go(array)


def digest(read: Read, info: TensorInfo) -> str:
    """xxh3-128 of the values in row-major order, as `transfer.fingerprint` gives it."""
    state = xxhash.xxh3_128()
    for array in parts(read, info):
        state.update(bits(array).data)
    return state.hexdigest()


def digest_in_any_order(read: Read, info: TensorInfo) -> int:
    """The same number for the same values in any order: a sum of mixed bits, modulo 2⁶⁴."""
    total = 0
    for array in parts(read, info):
        total += int(_mixed(array).sum(dtype=np.uint64))
    return total % (1 << 64)


def rows_in_any_order(array: Array, axis: int) -> list[int]:
    """Hashes of the parts of an array along one axis, sorted."""
    moved = np.ascontiguousarray(np.moveaxis(array, axis, 0))
    return sorted(xxhash.xxh3_64_intdigest(bits(row).data) for row in moved)


def _mixed(array: Array) -> NDArray[np.uint64]:
    flat = np.ascontiguousarray(array).reshape(-1)
    width = flat.dtype.itemsize
    if width not in (1, 2, 4, 8):
        flat, width = flat.view(np.uint64), 8
    words = flat.view(f"u{width}").astype(np.uint64)
    with np.errstate(over="ignore"):
        words = (words + np.uint64(1)) * _MIX
        words ^= words >> _SHIFT
        words *= _MIX
        return words ^ (words >> _SHIFT)


def constant(array: Array) -> bool:
    """Whether all values are the same: such a tensor is like many others."""
    flat = array.reshape(-1)
    return not flat.size or bool((flat == flat[0]).all())


def sample(array: Array, count: int) -> NDArray[np.float64]:
    """Up to `count` values at even distances, row by row; those that are not finite are 0."""
    flat = array.reshape(-1)
    step = max(1, -(-flat.size // count))
    chosen = flat[::step]
    wide = np.complex128 if chosen.dtype.kind == "c" else np.float64
    values = np.abs(chosen.astype(wide)) if wide is np.complex128 else chosen.astype(np.float64)
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
