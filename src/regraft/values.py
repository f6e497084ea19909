"""Looks at values: what is not a number, what the bytes are, and where they lie."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

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
    if array.dtype.name == "bfloat16":  # whose own function is slow
        exponents = array.view(np.uint16) & 0x7F80
        return int(np.count_nonzero(exponents == 0x7F80))
    try:
        finite = np.isfinite(array)
    except TypeError:  # a float8 dtype without the function
        finite = np.isfinite(array.astype(np.float32))
    return array.size - int(np.count_nonzero(finite))


class Place(NamedTuple):
    """Where an array's bytes lie in a mapped file: `size` of them from byte `start` on."""

    file: mmap.mmap
    start: int
    size: int


def _owner(array: Array) -> object:
    """What holds the memory that an array is a view of; itself where it is none."""
    owner: Any = array
    while isinstance(owner, (np.ndarray, memoryview)):
        base = owner.obj if isinstance(owner, memoryview) else owner.base
        if base is None:
            break
        owner = base
    return owner


def mapped(array: Array) -> Place | None:
    """Where in a mapped file the array lies; `None` where it is memory of its own, or where its
    bytes are not in one piece and in row-major order."""
    owner = _owner(array)
    if not isinstance(owner, mmap.mmap):
        return None
    if not array.flags.c_contiguous or not array.nbytes:
        return None
    known = _FILES.get(owner)
    begin = known.address if known is not None else _address(np.frombuffer(owner, np.uint8))
    return Place(owner, _address(array) - begin, array.nbytes)


def _address(array: Array) -> int:
    return array.__array_interface__["data"][0]


class _File(NamedTuple):
    """Which file was mapped: another one may have its path by now."""

    path: Path
    stamp: tuple[int, int, int, int]
    address: int


_FILES: WeakKeyDictionary[mmap.mmap, _File] = WeakKeyDictionary()
# Smaller arrays are copied: a map takes whole pages and a place in the system's table.
_WORTH_A_MAP = 1 << 16


def map_file(path: Path) -> mmap.mmap:
    """A file mapped to be read, of which `private` can map a part once more."""
    with path.open("rb") as file:
        made = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        address = _address(np.frombuffer(made, np.uint8))
        _FILES[made] = _File(path, _stamp(file.fileno()), address)
    return made


def _stamp(descriptor: int) -> tuple[int, int, int, int]:
    return _stamp_of(os.fstat(descriptor))


def _stamp_of(state: os.stat_result) -> tuple[int, int, int, int]:
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def stays(array: Array) -> bool:
    """Whether the values lie where they are whether or not the array is held: in a mapped file, or
    in the memory of a framework's tensor. What was unpacked or fetched is the array's own."""
    owner = _owner(array)
    return owner is not None and not isinstance(owner, (np.ndarray, bytes, bytearray))


def can_be_private(array: Array) -> bool:
    """Whether `private` gives pages of this array's file, and no copy."""
    return _place_of_pages(array) is not None


def _place_of_pages(array: Array) -> Place | None:
    if array.nbytes < _WORTH_A_MAP or not hasattr(mmap, "MAP_PRIVATE"):
        return None
    place = mapped(array)
    return place if place is not None and place.file in _FILES else None


def private(array: Array) -> Array:
    """The same values in memory of one's own, which may be written to: pages of the file that are
    copied when they are first written to where the array lies in a mapped one, and a copy
    elsewhere. Neither the file nor any other array ever changes by it."""
    place = _place_of_pages(array)
    if place is None:
        return array.copy()
    known = _FILES[place.file]
    start = place.start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    # Without reserve: a file may be larger than memory, and few pages are ever written to.
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        descriptor = os.open(known.path, os.O_RDONLY)
        try:
            if _stamp(descriptor) != known.stamp:
                return array.copy()
            pages = mmap.mmap(
                descriptor, place.start + place.size - start, flags=flags,
                prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=start,
            )  # fmt: skip
        finally:
            os.close(descriptor)
    except OSError:  # the file is gone, or there are too many maps
        return array.copy()
    return np.ndarray(array.shape, array.dtype, buffer=pages, offset=place.start - start)


def intact(array: Array) -> bool:
    """Whether the file that an array lies in is as it was when it was mapped. A file that has
    another's place, or none, was not changed: nobody reaches it any more."""
    place = mapped(array)
    known = _FILES.get(place.file) if place is not None else None
    if known is None:
        return True
    try:
        found = known.path.stat()
    except OSError:
        return True
    return _stamp_of(found) == known.stamp or (found.st_dev, found.st_ino) != known.stamp[:2]


def pages(size: int) -> mmap.mmap:
    """New memory of whole pages, which goes back to the system when nobody holds it any more.

    numpy asks for huge pages where it makes large arrays: to clear those takes longer than to use
    small ones that another tensor just gave back. All are asked for at once, where that can be."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    at_once = getattr(mmap, "MAP_POPULATE", 0)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | at_once)


# More than systems map around a page that is asked for.
_MAPPED_ALONG = 1 << 21


def let_go(array: Array) -> None:
    """Takes the pages of a mapped array out of this process's memory; they are read again when
    somebody looks at them. Nothing happens to any other array, nor to pages that may have been
    written to, which would lose it."""
    owner = _owner(array)
    if not isinstance(owner, mmap.mmap) or not array.nbytes or not hasattr(mmap, "MADV_DONTNEED"):
        return
    whole = np.frombuffer(owner, np.uint8)
    if whole.flags.writeable:
        return
    steps = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    start = array.ctypes.data - whole.ctypes.data
    first = start + sum(step for step in steps if step < 0)
    last = start + sum(step for step in steps if step > 0) + array.itemsize
    # Whole pages, and those before them that the system mapped along with them: of many small
    # tensors all would stay else. What somebody still looks at is read again.
    first -= first % mmap.PAGESIZE
    first = max(0, first - _MAPPED_ALONG)
    owner.madvise(mmap.MADV_DONTNEED, first, last - first)
