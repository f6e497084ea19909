"""Keras 3's `.keras`: a zip of the model's config and its weights file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

from regraft.errors import CorruptFile
from regraft.formats import Sample, _zip
from regraft.formats._hdf5 import File
from regraft.formats._keras_layers import layers_of
from regraft.formats._keras_weights import KerasWeights
from regraft.tensors import Stored

EXTRA = "keras"
SUFFIXES: tuple[str, ...] = ()
_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_MAX_CONFIG = 1 << 26
_MAX_INFLATED = 1 << 31


def sniff(sample: Sample) -> bool:
    return _CONFIG in sample.zip_names and _WEIGHTS in sample.zip_names


def open(path: Path) -> Stored:
    """Lists the weights. **Raises** `CorruptFile`, `UnsafeFile`, `MissingDependency`."""
    found = _zip.members(path)
    if _CONFIG not in found or _WEIGHTS not in found:
        raise CorruptFile(path.name, found=f"no {_WEIGHTS} beside {_CONFIG}")
    config = _zip.read(path, found[_CONFIG], _MAX_CONFIG).decode("utf-8", "replace")
    member = found[_WEIGHTS]
    stream: BinaryIO
    if member.stored:
        stream = io.BufferedReader(_Window(path, member))
    else:
        stream = io.BytesIO(_zip.read(path, member, _MAX_INFLATED))
    file = File(path, stream, member.size)
    return KerasWeights("keras_zip", file, layers_of(config), config)


class _Window(io.RawIOBase):
    """A stored member of the archive as a file of its own."""

    def __init__(self, path: Path, member: _zip.Member) -> None:
        super().__init__()
        self._file = path.open("rb", buffering=0)
        self._start, self._size, self._at = member.offset, member.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        wanted = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._start + self._at)
        data = self._file.read(wanted) or b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
