"""Looks at HDF5's global heaps before the library does: a damaged one makes it loop for ever.

Strings of variable length lie in heaps (`GCOL` collections). HDF5 1.14 walks a collection object by
object and does not check that the next one lies further on (H5HGcache.c), so that a size of zero
never ends. A collection is: signature, version, 3 reserved bytes, size (8 bytes); then objects:
index (2), references (2), reserved (4), size (8), and the data, padded to 8. Index 0 is what is
free; its size counts its header.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from typing import Any, BinaryIO

from regraft.errors import CorruptFile

_SIGNATURE, _HEADER, _MIN_SIZE = b"GCOL", 16, 4096
_CHUNK = 1 << 20


def check_heaps(file: BinaryIO, size: int, values: Iterable[tuple[int, int]], label: str) -> None:
    """Checks all collections outside the given ranges of values, as `(offset, length)`.

    **Raises** `CorruptFile`.
    """
    at = 0
    for start, length in [*sorted(values), (size, 0)]:
        for place in _signatures(file, at, min(start, size)):
            _check(file, place, size, label)
        at = max(at, start + length)


class Watched(io.RawIOBase):
    """A file whose heaps are checked as the library comes upon them: whatever it reads is searched
    first, and the few bytes around it. For files that cost too much to be searched through."""

    def __init__(self, file: BinaryIO, size: int, label: str) -> None:
        self._file, self._size, self._label = file, size, label
        self._at = 0
        self._checked: set[int] = set()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        margin = len(_SIGNATURE) - 1
        before = min(margin, self._at)
        self._file.seek(self._at - before)
        data = self._file.read(before + len(view) + margin)
        found = data.find(_SIGNATURE)
        while found >= 0:
            place = self._at - before + found
            if place not in self._checked:
                _check(self._file, place, self._size, self._label)
                self._checked.add(place)
            found = data.find(_SIGNATURE, found + 1)
        wanted = memoryview(data)[before : before + len(view)]
        view[: len(wanted)] = wanted
        self._at += len(wanted)
        return len(wanted)

    def close(self) -> None:
        self._file.close()
        super().close()


def _signatures(file: BinaryIO, start: int, stop: int) -> Iterable[int]:
    while start < stop:
        file.seek(start)
        data = file.read(min(_CHUNK, stop - start) + len(_SIGNATURE) - 1)
        found = data.find(_SIGNATURE)
        while found >= 0:
            yield start + found
            found = data.find(_SIGNATURE, found + 1)
        start += _CHUNK


def _check(file: BinaryIO, place: int, size: int, label: str) -> None:
    def wrong(found: str) -> CorruptFile:
        return CorruptFile(
            f"{label}, heap at byte {place}",
            found=found,
            expected="objects that fill the heap one after the other",
            hint="the file is damaged; get it again",
        )

    file.seek(place)
    header = file.read(_HEADER)
    if len(header) < _HEADER or header[4] != 1 or header[5:8] != bytes(3):
        return  # no heap: the signature by chance, or one that the library refuses itself
    total = int.from_bytes(header[8:], "little")
    if not _MIN_SIZE <= total <= size - place:
        raise wrong(f"a size of {total} bytes")
    data = file.read(total - _HEADER)
    at = 0
    while at + _HEADER <= len(data):
        index, _, _, length = struct.unpack_from("<HHIQ", data, at)
        step = length if index == 0 else _HEADER + (length + 7) // 8 * 8
        if step < _HEADER or step > len(data) - at:
            raise wrong(f"an object of {length} bytes at byte {place + _HEADER + at}")
        at += step
