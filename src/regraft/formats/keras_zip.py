"""Keras 3's `.keras`: a zip of the model's config and its weight store.

The config gives the layers in order with their classes and settings, so that names, order and
variables are exact. The store is read where it lies in the archive; only a compressed one is
unpacked, in memory.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft import keras_layout
from regraft.errors import CorruptFile, FormatError
from regraft.formats import Sample, _zip
from regraft.formats._hdf5 import Hdf5, Hdf5Stored
from regraft.formats._keras_layers import model_of
from regraft.formats._keras_store import Store
from regraft.tensors import Stored

if TYPE_CHECKING:
    from typing import BinaryIO

EXTRA = "keras"
SUFFIXES: tuple[str, ...] = ()

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_MODEL = "model_config"
_MAX_CONFIG = 4 << 20
_MAX_UNPACKED = 2 << 30


def sniff(sample: Sample) -> bool:
    names = sample.zip_names
    return _CONFIG in names and any(name.startswith("model.weights") for name in names)


def open(path: Path) -> Stored:
    """Lists the weights. **Raises** `CorruptFile`, `UnsafeFile`, `MissingDependency`."""
    members = _zip.members(path)
    if _CONFIG not in members or _WEIGHTS not in members:
        raise FormatError(
            path.name,
            found=f"weights in {next((n for n in members if n.startswith('model.w')), 'nothing')}",
            expected=f"{_CONFIG} and {_WEIGHTS}",
            hint="save the model again without another weights format or shards",
        )
    config = _text(path, members[_CONFIG])
    facts = _facts(path, _text(path, members[_METADATA])) if _METADATA in members else {}
    metadata = {**facts, _MODEL: config}
    weights = members[_WEIGHTS]
    label = f"{path.name}, member {_WEIGHTS}"
    source = _Window(path, weights.offset, weights.size) if weights.stored else None
    stream: BinaryIO = (
        io.BufferedReader(source) if source else io.BytesIO(_zip.read(path, weights, _MAX_UNPACKED))
    )
    try:
        file = Hdf5(stream, label, weights.size)
    except BaseException:
        stream.close()
        raise
    return KerasZip(file, stream, metadata)


class KerasZip(Hdf5Stored):
    """The store of an archive, and the stream that it is read through."""

    def __init__(self, file: Hdf5, stream: BinaryIO, metadata: Mapping[str, str]) -> None:
        self._stream = stream
        try:
            store = Store(file, model_of(metadata[_MODEL]))
            layout = store.layout(store.tensors)
        except BaseException:
            file.close()
            stream.close()
            raise
        super().__init__("keras_zip", file, store.tensors)
        self.order = store.order
        self.metadata = {**metadata, keras_layout.KEY: layout}

    def close(self) -> None:
        super().close()
        self._stream.close()


def _text(path: Path, member: _zip.Member) -> str:
    try:
        return _zip.read(path, member, _MAX_CONFIG).decode()
    except (UnicodeDecodeError, zlib.error) as error:
        raise CorruptFile(f"{path.name}, member {member.name!r}", found=str(error)) from error


def _facts(path: Path, text: str) -> dict[str, str]:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{path.name}, member {_METADATA!r}", found=str(error)) from error
    items = found.items() if isinstance(found, dict) else ()
    return {str(key): value for key, value in items if isinstance(value, str)}


class _Window(io.RawIOBase):
    """A stored member of an archive as a file of its own."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        self._file = path.open("rb")
        self._start, self._size, self._at = start, size, 0

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
        count = max(0, min(len(view), self._size - self._at))
        self._file.seek(self._start + self._at)
        data = self._file.read(count)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
