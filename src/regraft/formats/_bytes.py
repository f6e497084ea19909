"""Arrays out of byte ranges of a file: mapped, bounds-checked, strided, sliced."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from regraft.errors import CorruptFile
from regraft.locations import is_local
from regraft.tensors import DTYPE_BITS, numpy_dtype

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices


# A storage's bytes may be seen this many times by strides that overlap, and small views are let be.
_MAX_SPREAD = 1024
_SMALL = 64 << 20
_MAX_NUMBER = (1 << 63) - 1
# Bytes of a remote file that are fetched first where nothing says how many are needed.
_FIRST = 1 << 18

T = TypeVar("T")


class Strided(NamedTuple):
    """Where a tensor lies: byte `offset` of its first element, `strides` in elements.

    `strides` is `None` for row-major. `size` bytes from `start` on belong to its storage.
    """

    start: int
    size: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: str
    big_endian: bool = False

    def check(self, where: str) -> None:
        """Checks that every element lies inside the storage. **Raises** `CorruptFile`."""
        width = DTYPE_BITS[self.dtype] // 8
        numbers = (*self.shape, *(self.strides or ()), self.offset - self.start, self.size)
        if any(not 0 <= n <= _MAX_NUMBER for n in numbers) or len(self.shape) > 64:
            raise CorruptFile(
                where,
                found="a shape, strides or an offset that are negative or beyond any file",
                expected=f"elements inside a storage of {min(self.size, _MAX_NUMBER)} bytes",
            )
        if self.strides is not None and len(self.strides) != len(self.shape):
            raise CorruptFile(where, found=f"shape {self.shape} with strides {self.strides}")
        if 0 in self.shape:
            if math.prod(max(1, n) for n in self.shape) * width > _MAX_NUMBER:
                raise CorruptFile(where, found=f"shape {self.shape}, beyond any array")
            return
        strides = self.strides or contiguous(self.shape)
        last = sum((n - 1) * s for n, s in zip(self.shape, strides, strict=True))
        if self.offset - self.start + (last + 1) * width > self.size:
            raise CorruptFile(
                where,
                found=f"shape {self.shape} at offset {self.offset} with strides {strides}",
                expected=f"elements inside a storage of {self.size} bytes",
            )
        # A stride of 0 makes a small file say that it holds terabytes.
        if math.prod(self.shape) * width > max(self.size * _MAX_SPREAD, _SMALL):
            raise CorruptFile(
                where, found=f"shape {self.shape} spread from {self.size} bytes by strides"
            )


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(1, shape[axis + 1])
    return tuple(strides)


def beginning(path: Path, parse: Callable[[Any], T]) -> T:
    """What `parse` makes of a file that begins with something of unknown length.

    It is given the mapped file; of a remote one a beginning, and a longer one as long as it raises
    `CorruptFile`, up to the whole file.
    """
    if is_local(path):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return parse(data)
    size, length = path.stat().st_size, _FIRST
    while length < size:
        with path.open("rb") as file, suppress(CorruptFile):
            return parse(file.read(length))
        length *= 4
    return parse(path.read_bytes())


class Mapped:
    """A file's bytes as arrays: mapped when the first one is asked for; a remote file's are
    fetched, no more than the range from the first element to the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self._map: mmap.mmap | None = None

    def array(self, place: Strided, slices: Slices | None = None) -> Array:
        """A read-only view of the mapped bytes; a copy where the byte order must change or values
        do not lie where a processor likes them."""
        import numpy as np

        dtype = numpy_dtype(place.dtype)
        if 0 in place.shape:
            whole = np.zeros(place.shape, dtype)
            return whole if slices is None else whole[slices]
        if not 0 <= place.offset <= self.size - dtype.itemsize:
            raise CorruptFile(
                self.path.name,
                found=f"{self.size} bytes",
                expected=f"a tensor at offset {place.offset}",
                hint="the file was cut off after it was opened",
            )
        strides = place.strides or contiguous(place.shape)
        if is_local(self.path):
            self._whole(place, strides, dtype.itemsize)
            buffer, shape, offset = self._mapped(), place.shape, place.offset
        else:
            buffer, shape = self._fetched(place, strides, slices or (), dtype.itemsize)
            offset, slices = 0, None
        view = np.ndarray(
            shape,
            dtype,
            buffer=buffer,
            offset=offset,
            strides=tuple(s * dtype.itemsize for s in strides),
        )
        part = view if slices is None else view[slices]
        if place.big_endian and dtype.itemsize > 1:
            return part.byteswap()
        return part if part.flags.aligned else part.copy()

    def _whole(self, place: Strided, strides: tuple[int, ...], width: int) -> None:
        """**Raises** `CorruptFile` where the file has become shorter since it was listed: mapped
        bytes that are gone end the process."""
        last = sum((n - 1) * step for n, step in zip(place.shape, strides, strict=True))
        size = self._size_now()
        if place.offset + (last + 1) * width > size:
            raise CorruptFile(
                self.path.name,
                found=f"{size} bytes",
                expected=f"{self.size}, as when it was opened",
                hint="the file is being written or was cut off; open it again when it is whole",
            )

    def _size_now(self) -> int:
        return self.path.stat().st_size

    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            from regraft import values

            self._map = values.map_file(self.path)
        return self._map

    def _fetched(
        self, place: Strided, strides: tuple[int, ...], slices: Slices, width: int
    ) -> tuple[bytes, tuple[int, ...]]:
        """The bytes from the first element under `slices` to the last, and the shape there."""
        every = (*slices, *[slice(None)] * (len(place.shape) - len(slices)))
        bounds = [part.indices(n) for part, n in zip(every, place.shape, strict=True)]
        shape = tuple(max(0, stop - start) for start, stop, _ in bounds)
        if 0 in shape:
            return b"", shape
        first = sum(start * step for (start, _, _), step in zip(bounds, strides, strict=True))
        last = first + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        begin = place.offset + first * width
        data = cast(Any, self.path).fetch(begin, begin + (last - first + 1) * width)
        if len(data) < (last - first + 1) * width:
            raise CorruptFile(
                self.path.name,
                found=f"{self.size} bytes",
                expected=f"a tensor that begins at offset {place.offset}",
            )
        return data, shape

    def close(self) -> None:
        """Lets go of the map; arrays that are still in use keep it alive."""
        self._map = None
