"""TensorFlow's checkpoints of version 2: a table of entries (`.index`) over files of raw values.

An entry says a tensor's type and shape, the data file, the bytes in it and their checksum. A
variable that was split over devices has an entry for its whole, which lists slices, and one for
each slice, under a key that encodes name and extents. The first entry, of the empty key, tells
the number of data files and the byte order.
See tensorflow/core/util/tensor_bundle/tensor_bundle.cc and core/protobuf/tensor_bundle.proto.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from regraft.errors import CorruptFile, FormatError, MissingShard
from regraft.formats import _sstable
from regraft.formats._beside import inside
from regraft.formats._bundle_slices import extents_of, slice_key, tiles
from regraft.formats._bytes import Mapped, Strided
from regraft.formats._crc32c import crc32c_of, unmasked
from regraft.formats._protobuf import Field, Message, fixed32, signed
from regraft.formats._tensorflow_types import OTHERS, TEXT, dtype_of, shape_of
from regraft.tensors import DTYPE_BITS, numpy_dtype

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

INDEX = ".index"
# Fields of BundleHeaderProto and BundleEntryProto.
_SHARDS, _ENDIANNESS, _VERSION = 1, 2, 3
_DTYPE, _SHAPE, _SHARD, _OFFSET, _SIZE, _CRC, _SLICES = 1, 2, 3, 4, 5, 6, 7
_KNOWN_VERSION = 1
_MAX_SHARDS = 100_000
_MAX_SLICES = 1 << 16
_MAX_TEXT = 1 << 28


class Entry(NamedTuple):
    """Where one tensor lies, or one slice of it."""

    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int | None
    # For each slice of a split tensor, start and length along each axis; length -1 is all of it.
    slices: tuple[tuple[tuple[int, int], ...], ...]


class Piece(NamedTuple):
    """A slice of a tensor: where it begins along each axis, and where it lies."""

    begin: tuple[int, ...]
    entry: Entry


class Bundle:
    """The tensors of a checkpoint by key; text tensors apart.

    - `entries`: what can be read, in the order of the table, which is sorted.
    - `texts`: text tensors; `others`: the types by key of what cannot be read.
    - `files`: names of the data files that tensors lie in, beside the index.

    **Raises** `CorruptFile`, `MissingShard`, `UnsafeFile`, or `FormatError` for version 1.
    """

    def __init__(self, index: Path) -> None:
        self.label = index.name
        self._index = index
        self._files: dict[int, Mapped] = {}
        self._checked: set[tuple[int, int]] = set()
        table = dict(_sstable.entries(index.read_bytes(), self.label))
        self._shards = self._header(table.pop(b"", b""))
        self._slices = {key: value for key, value in table.items() if key.startswith(b"\0")}
        self.entries: dict[str, Entry] = {}
        self.texts: dict[str, Entry] = {}
        self.others: dict[str, str] = {}
        for key, value in table.items():
            if key not in self._slices:
                self._sort_in(self._text(key), value)
        self.pieces = {name: self._pieces(name, e) for name, e in self.entries.items() if e.slices}
        self._check_files()

    # The table

    def _header(self, value: bytes) -> int:
        found = Message(value, self.label).gathered()
        if _SHARDS in found and found[_SHARDS][-1].wire:
            raise FormatError(
                self.label,
                found="a TensorFlow checkpoint of version 1 (SaverDef.V1), without data files",
                expected="one of version 2: X.index and X.data-00000-of-00001",
                hint="load it with TensorFlow and save it again with tf.compat.v1.train.Saver",
            )
        shards = found[_SHARDS][-1].value if _SHARDS in found else 0
        version = Message(value, self.label)
        needed = 0
        if _VERSION in found:
            inner = version.inner(found[_VERSION][-1])
            needed = next((f.value for f in inner if f.number == 2), 0)
        if not 0 < shards <= _MAX_SHARDS:
            raise CorruptFile(self.label, found=f"{shards} data files", expected="at least one")
        if needed > _KNOWN_VERSION:
            raise FormatError(self.label, found=f"a checkpoint that needs version {needed}")
        if _ENDIANNESS in found and found[_ENDIANNESS][-1].value:
            raise FormatError(
                self.label,
                found="a checkpoint of a big-endian machine",
                expected="little-endian values",
                hint="load it with TensorFlow and save it again",
            )
        return shards

    def _text(self, key: bytes) -> str:
        try:
            return key.decode()
        except UnicodeDecodeError as error:
            raise CorruptFile(self.label, found=f"key {key[:80]!r}", expected="UTF-8") from error

    def _sort_in(self, key: str, value: bytes) -> None:
        entry = self._entry(f"{self.label}, {key!r}", value)
        if entry.dtype in OTHERS.values():
            self.others[key] = entry.dtype
        elif entry.dtype == TEXT:
            self.texts[key] = entry
        else:
            self.entries[key] = entry

    def _entry(self, where: str, value: bytes) -> Entry:
        message = Message(value, where)
        single: dict[int, Field] = {}
        slices: list[tuple[tuple[int, int], ...]] = []
        for field in message:
            if field.number == _SLICES:
                slices.append(extents_of(message.inner(field)))
                if len(slices) > _MAX_SLICES:
                    raise CorruptFile(where, found=f"more than {_MAX_SLICES} slices")
            else:
                single[field.number] = field

        def number(field: int) -> int:
            return signed(single[field].value) if field in single else 0

        dtype = dtype_of(number(_DTYPE), where)
        shape = shape_of(message, single.get(_SHAPE), where)
        crc = fixed32(value, single[_CRC]) if _CRC in single else None
        entry = Entry(
            dtype, shape, number(_SHARD), number(_OFFSET), number(_SIZE), crc, tuple(slices)
        )
        if min(entry.shard, entry.offset, entry.size) < 0 or entry.shard >= self._shards:
            raise CorruptFile(where, found=f"bytes {entry.offset} + {entry.size} of {entry.shard}")
        if dtype in DTYPE_BITS and not slices and entry.size != _stored(dtype, shape):
            raise CorruptFile(
                where, found=f"{entry.size} bytes", expected=f"{_stored(dtype, shape)} for {shape}"
            )
        return entry

    def _pieces(self, name: str, whole: Entry) -> tuple[Piece, ...]:
        """The slices of a split tensor, which must tile it."""
        where = f"{self.label}, {name!r}"
        pieces: list[Piece] = []
        edges: list[set[tuple[int, int]]] = [set() for _ in whole.shape]
        for extents in whole.slices:
            value = self._slices.get(slice_key(name, extents))
            if value is None or len(extents) != len(whole.shape):
                raise CorruptFile(where, found=f"no slice {extents}", expected="every slice listed")
            begin = tuple(start for start, _ in extents)
            sizes = tuple(
                n if length < 0 else length
                for (_, length), n in zip(extents, whole.shape, strict=True)
            )
            entry = self._entry(where, value)
            if entry.shape != sizes or entry.dtype != whole.dtype or entry.slices:
                raise CorruptFile(where, found=f"a slice of {entry.shape}", expected=f"{sizes}")
            for axis, (start, size) in enumerate(zip(begin, sizes, strict=True)):
                edges[axis].add((start, start + size))
            pieces.append(Piece(begin, entry))
        filled = all(tiles(found, n) for found, n in zip(edges, whole.shape, strict=True))
        distinct = {piece.begin for piece in pieces}
        if not filled or not len(pieces) == len(distinct) == math.prod(map(len, edges)):
            raise CorruptFile(where, found="slices that leave gaps or overlap", expected="a grid")
        return tuple(pieces)

    # The data files

    def _path(self, shard: int) -> Path:
        prefix = self._index.name.removesuffix(INDEX)
        return inside(self._index, f"{prefix}.data-{shard:05d}-of-{self._shards:05d}")

    def _check_files(self) -> None:
        """Holds entries against the data files. No two may share bytes: a reader that puts slices
        together would make much out of little."""
        parts = [piece.entry for pieces in self.pieces.values() for piece in pieces]
        wholes = [entry for name, entry in self.entries.items() if name not in self.pieces]
        ends: dict[int, int] = {}
        for entry in sorted((*parts, *wholes, *self.texts.values()), key=_place):
            if entry.size and entry.offset < ends.get(entry.shard, 0):
                raise CorruptFile(self.label, found=f"two tensors at byte {entry.offset}")
            ends[entry.shard] = max(ends.get(entry.shard, 0), entry.offset + entry.size)
        paths = {shard: self._path(shard) for shard in ends}
        missing = [path.name for path in paths.values() if not path.is_file()]
        if missing:
            raise MissingShard(
                str(self._index),
                found=f"{len(missing)} of {self._shards} data files missing",
                expected="every data file that the index counts, beside it",
                hint="get the missing files",
                problems=missing,
            )
        self._files = {shard: Mapped(path) for shard, path in paths.items()}
        self.files = tuple(path.name for path in paths.values())
        for shard, end in ends.items():
            if end > self._files[shard].size:
                raise CorruptFile(
                    paths[shard].name,
                    found=f"{self._files[shard].size} bytes",
                    expected=f"{end}, as {self.label} says",
                    hint="the file is cut off or of another checkpoint; get it again",
                )

    # Values

    def read(self, name: str, slices: Slices | None = None) -> Array:
        """The values or a part of them.

        **Raises** `CorruptFile`, also where the checksum of a tensor that is read whole is wrong.
        """
        whole = self.entries[name]
        if name not in self.pieces:
            return self._read(name, whole, slices)
        import numpy as np

        wanted = slices or (slice(None),) * len(whole.shape)
        bounds = [part.indices(n)[:2] for part, n in zip(wanted, whole.shape, strict=True)]
        sizes = [max(0, stop - start) for start, stop in bounds]
        out = np.empty(sizes, numpy_dtype(whole.dtype))
        for begin, entry in self.pieces[name]:
            axes = list(zip(bounds, begin, entry.shape, strict=True))
            # What of this slice is wanted, in places of the whole tensor.
            spans = [(max(start, at), min(stop, at + n)) for (start, stop), at, n in axes]
            if all(a < b for a, b in spans):
                inner = tuple(
                    slice(a - at, b - at) for (a, b), at in zip(spans, begin, strict=True)
                )
                outer = tuple(
                    slice(a - start, b - start)
                    for (a, b), (start, _) in zip(spans, bounds, strict=True)
                )
                out[outer] = self._read(name, entry)[inner]
        return out

    def _read(self, name: str, entry: Entry, slices: Slices | None = None) -> Array:
        place = Strided(entry.offset, entry.size, entry.offset, entry.shape, None, entry.dtype)
        values = self._files[entry.shard].array(place, slices)
        if slices is None and entry.crc is not None and _place(entry) not in self._checked:
            self._check_sum(name, entry.crc, crc32c_of(values))
            self._checked.add(_place(entry))
        return values

    def _check_sum(self, name: str, stored: int, found: int) -> None:
        if unmasked(stored) != found:
            raise CorruptFile(
                f"{self.label}, {name!r}",
                found=f"values with checksum {found:08x}",
                expected=f"{unmasked(stored):08x}",
                hint="a data file is damaged or of another checkpoint; get it again",
            )

    def text(self, key: str) -> bytes:
        """The bytes of a text tensor of one element: its length, a checksum of it, its bytes."""
        entry = self.texts[key]
        where = f"{self.label}, {key!r}"
        if entry.shape or entry.slices or entry.size > _MAX_TEXT:
            raise CorruptFile(where, found=f"text of shape {entry.shape} in {entry.size} bytes")
        file = self._files[entry.shard].path
        with file.open("rb") as opened:
            opened.seek(entry.offset)
            data = opened.read(entry.size)
        size, at = 0, 0
        while at < min(10, len(data)) and (at == 0 or data[at - 1] >= 0x80):
            size |= (data[at] & 0x7F) << 7 * at
            at += 1
        if at + 4 + size != len(data):
            raise CorruptFile(where, found=f"{len(data)} bytes", expected=f"text of {size}")
        return data[at + 4 :]

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def _place(entry: Entry) -> tuple[int, int]:
    return entry.shard, entry.offset


def _stored(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of the values in a data file: one for each element that is smaller than a byte."""
    return math.prod(shape) * max(1, DTYPE_BITS[dtype] // 8)
