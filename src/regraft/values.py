"""Looks at values: what is not a number, what the bytes are, and where they lie."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from regraft.tensors import Array


def bits(array: Array) -> NDArray[np.uint8]:
    """The bytes of the values in row-major order, flat; a view where that is possible."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def not_finite(array: Array) -> int:
    """Number of NaN and Inf values; 0 for integers and bools."""
    if array.dtype.kind in "biuSU":
        return 0
    try:
        return int(array.size - np.isfinite(array).sum())
    except TypeError:  # a float8 dtype without the function
        return int(array.size - np.isfinite(array.astype(np.float32)).sum())


class Place(NamedTuple):
    """Where an array's bytes lie in a mapped file: `size` of them from byte `start` on."""

    file: mmap.mmap
    start: int
    size: int


def mapped(array: Array) -> Place | None:
    """Where in a mapped file the array lies; `None` where it is memory of its own, or where its
    bytes are not in one piece and in row-major order."""
    owner: Any = array
    while not isinstance(owner, mmap.mmap):
        owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
        if owner is None:
            return None
    if not array.flags.c_contiguous or not array.nbytes:
        return None
    begin = np.frombuffer(owner, np.uint8).ctypes.data
    return Place(owner, array.ctypes.data - begin, array.nbytes)


def let_go(array: Array) -> None:
    """Takes the pages of a mapped array out of this process's memory; they are read again when
    somebody looks at them. Nothing happens to any other array."""
    place = mapped(array)
    if place is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    first = -(-place.start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (place.start + place.size) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        place.file.madvise(mmap.MADV_DONTNEED, first, last - first)
