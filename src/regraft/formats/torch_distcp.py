"""Folders of `torch.distributed.checkpoint`: tensors in pieces, each process' in files of its own.

`.metadata` is a pickle that says of each tensor its shape and its pieces, and of each piece the
file, where in it and how long. A piece is a file of `torch.save` with one tensor; or a tensor of a
safetensors file that stands there. Where processes did not agree on one `.metadata`, each has its
own (`__0.metadata`). Hugging Face's layout has no such file: each safetensors file says in its own
metadata where its tensors' pieces belong.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from regraft.errors import CorruptFile, MissingShard
from regraft.formats import Sample
from regraft.formats._assembly import Piece, assembled, check, is_shape
from regraft.formats._beside import inside, regular
from regraft.formats._bytes import Strided
from regraft.formats._pickle import Machine
from regraft.formats._pickle_records import Opaque
from regraft.formats._room import LISTED, Room
from regraft.formats._safetensors_header import (
    MAX_HEADER,
    corrupt,
    length_of,
    parsed,
    place_of,
)
from regraft.formats._torch_archive import Archive
from regraft.formats._torch_storages import dtype_of
from regraft.formats._torch_tensors import Collected, few
from regraft.formats._zip import Archived
from regraft.tensors import DTYPE_BITS, Stored, StoredTensor, stored_bytes

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

EXTRA = ""
SUFFIXES: tuple[str, ...] = ()

_METADATA = ".metadata"
_OF_A_RANK = re.compile(r"__\d+\.metadata")
_SHARD = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")
_SHARDING = "DCP_SHARDING_INFO"
_MAX_METADATA = 1 << 30
_PICKLED = b"\x80"


class _Stored(NamedTuple):
    """Where a piece of tensor `name` lies: a file, and `length` bytes of it from `offset` on."""

    name: str
    file: str
    offset: int
    length: int


class _Whole(NamedTuple):
    """A tensor's dtype and pieces."""

    dtype: str
    pieces: tuple[Piece, ...]


def sniff(sample: Sample) -> bool:
    if not sample.entries:
        return False
    if any(map(_SHARD.fullmatch, sample.entries)):
        return True
    names = [n for n in sample.entries if n == _METADATA or _OF_A_RANK.fullmatch(n)]
    return any(_begins(sample.path / name, _PICKLED) for name in names)


def _begins(path: Path, with_: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(with_)) == with_


def open(path: Path) -> Stored:
    """Lists the tensors. **Raises** `CorruptFile`, `UnsafeFile`, and `MissingShard` where a file
    that the metadata names is not there."""
    folder = _Folder(path)
    entries = sorted(entry.name for entry in path.iterdir())
    ranks = [name for name in entries if _OF_A_RANK.fullmatch(name)]
    if _METADATA in entries or ranks:
        for name in [_METADATA] if _METADATA in entries else ranks:
            folder.described(regular(path / name, name))
    else:
        folder.headed([path / name for name in entries if _SHARD.fullmatch(name)])
    folder.finish()
    return folder


class _Folder(Stored):
    format = "torch_distcp"
    framework = "torch"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._index = path / _METADATA
        self._pieces: dict[str, dict[tuple[int, ...], Piece]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        self._paths: dict[str, tuple[str, ...]] = {}
        self._remarks: dict[str, list[str]] = {}
        self._files: dict[str, Archived] = {}
        self._room = Room(sum(p.stat().st_size for p in path.iterdir() if p.is_file()))
        # What was found where a piece lies; headers serve several pieces.
        self._found: dict[_Stored, Strided] = {}
        self._headers: dict[tuple[str, int], tuple[dict[str, Strided], dict[str, str]]] = {}

    def described(self, index: Path) -> None:
        """Adds what a pickled `.metadata` says."""
        self._index = index
        size = index.stat().st_size
        if size > _MAX_METADATA:
            raise CorruptFile(str(index), found=f"{size} bytes")
        root = _fields(Machine(index.read_bytes(), index.name, room=self._room).load())
        tensors, stored = root.get("state_dict_metadata"), root.get("storage_data")
        if not isinstance(tensors, dict) or not isinstance(stored, dict):
            raise CorruptFile(str(index), found="no metadata of torch.distributed.checkpoint")
        locations = dict(self._locations(stored))
        for name, record in tensors.items():
            if isinstance(name, str) and isinstance(record, Opaque):
                self._tensor(name, record, locations)
        self._paths |= _paths(root.get("planner_data"))

    def _locations(
        self, stored: dict[Any, Any]
    ) -> Iterator[tuple[tuple[str, tuple[int, ...] | None], _Stored | str]]:
        """Where each piece lies, by name and offsets; or why it cannot be read."""
        for key, value in stored.items():
            name, offsets = _fields(key).get("fqn"), _fields(key).get("offset")
            place = _fields(value)
            file, extent = place.get("relative_path"), (place.get("offset"), place.get("length"))
            if (
                not isinstance(name, str)
                or not isinstance(file, str)
                or not all(is_shape((number,)) for number in extent)
            ):
                raise CorruptFile(str(self._index), found="a piece without name or place")
            if offsets is not None and not is_shape(offsets):
                raise CorruptFile(str(self._index), found=f"a piece of {name!r} without offsets")
            transformed = bool(place.get("transform_descriptors"))
            found = _Stored(name, file, *extent)  # pyright: ignore[reportArgumentType]
            yield (name, offsets), "left out, stored through extensions" if transformed else found

    def _tensor(
        self,
        name: str,
        record: Opaque,
        locations: dict[tuple[str, tuple[int, ...] | None], _Stored | str],
    ) -> None:
        where = f"{self._index}, tensor {name!r}"
        kind = record.path.rpartition(".")[2]
        if kind != "TensorStorageMetadata":
            reason = "a pickled object" if kind == "BytesStorageMetadata" else kind[:100]
            return self._remark(f"left out, {reason}", name)
        fields = _fields(record)
        shape, chunks = fields.get("size"), fields.get("chunks")
        dtype, remark = _dtype(fields)
        if not is_shape(shape) or not isinstance(chunks, list):
            raise CorruptFile(where, found="no shape, or no pieces")
        if dtype not in DTYPE_BITS:
            return self._remark(f"left out, {remark or f'dtype {dtype}'}", name)
        if remark:
            self._remark(remark, name)
        pieces: list[Piece] = []
        for chunk in chunks:
            offsets, sizes = (_fields(chunk).get(part) for part in ("offsets", "sizes"))
            if not is_shape(offsets) or not is_shape(sizes):
                raise CorruptFile(where, found="a piece without offsets or sizes")
            place = locations.get((name, offsets))
            if isinstance(place, str):
                return self._remark(place, name)
            if place is None and 0 not in sizes:
                raise CorruptFile(where, found=f"no place for its piece at {offsets}")
            if place is not None:
                pieces.append(Piece(offsets, sizes, place))
        self._add(name, shape, dtype, pieces)
        return None

    def _remark(self, remark: str, name: str) -> None:
        self._remarks.setdefault(remark, []).append(name)

    def _add(self, name: str, shape: tuple[int, ...], dtype: str, pieces: list[Piece]) -> None:
        """Notes a tensor's pieces. Processes that hold the same one may each have written it."""
        where = f"{self._index}, tensor {name!r}"
        known = self._shapes.setdefault(name, shape), self._dtypes.setdefault(name, dtype)
        if known != (shape, dtype):
            raise CorruptFile(where, found=f"{dtype} {shape}", expected=f"{known[1]} {known[0]}")
        held = self._pieces.setdefault(name, {})
        self._room.take(LISTED * (1 + len(pieces)), where)
        for piece in pieces:
            needed = stored_bytes(math.prod(piece.sizes), dtype)
            if needed > piece.source.length:
                raise CorruptFile(
                    where, found=f"{piece.source.length} bytes", expected=f"{needed} for a piece"
                )
            if held.setdefault(piece.offsets, piece).sizes != piece.sizes:
                raise CorruptFile(where, found=f"two pieces at {piece.offsets}")

    def headed(self, shards: list[Path]) -> None:
        """Adds what safetensors files say of themselves; shapes are those that the pieces fill."""
        ends: dict[str, tuple[int, ...]] = {}
        pieces: list[tuple[str, str, Piece]] = []
        for shard in shards:
            self._index = shard
            found, metadata = self._header(shard.name, 0)
            offsets = _offsets(metadata.get(_SHARDING, "{}"), shard)
            for name, place in found.items():
                first = offsets.get(name, (0,) * len(place.shape))
                if not is_shape(first) or len(first) != len(place.shape):
                    raise CorruptFile(f"{shard}, tensor {name!r}", found="offsets that are none")
                here = tuple(a + b for a, b in zip(first, place.shape, strict=True))
                before = ends.setdefault(name, here)
                if len(before) != len(here):
                    raise CorruptFile(f"{shard}, tensor {name!r}", found="pieces of other axes")
                ends[name] = tuple(map(max, before, here))
                source = _Stored(name, shard.name, 0, place.size)
                pieces.append((name, place.dtype, Piece(first, place.shape, source)))
        for name, dtype, piece in pieces:
            self._add(name, ends[name], dtype, [piece])

    def finish(self) -> None:
        """Checks pieces and files, and lists the tensors."""
        tensors: list[StoredTensor] = []
        for name, held in self._pieces.items():
            pieces = tuple(held.values())
            check(self._shapes[name], pieces, f"{self._path}, tensor {name!r}")
            whole = _Whole(self._dtypes[name], pieces)
            path = self._paths.get(name, (name,))
            tensors.append(StoredTensor(path, self._shapes[name], whole.dtype, whole))
        self._check_files(p.source for held in self._pieces.values() for p in held.values())
        self.tensors = tuple(tensors)
        self.notes = tuple(f"{remark}: {few(names)}" for remark, names in self._remarks.items())

    def _check_files(self, places: Iterator[_Stored]) -> None:
        ends: dict[str, int] = {}
        for place in places:
            ends[place.file] = max(ends.get(place.file, 0), place.offset + place.length)
        paths = {name: inside(self._path / _METADATA, name) for name in ends}
        missing = [name for name, path in paths.items() if not path.is_file()]
        if missing:
            raise MissingShard(
                str(self._path),
                found=f"{len(missing)} of {len(paths)} files missing",
                expected="every file that the metadata names",
                hint="get the missing files",
                problems=missing,
            )
        for name, path in paths.items():
            size = path.stat().st_size
            if size < ends[name]:
                raise CorruptFile(
                    str(path),
                    found=f"{size} bytes",
                    expected=f"at least {ends[name]}",
                    hint="the file is cut off; get it again",
                )
            self._files[name] = Archived(path)

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        whole: _Whole = tensor.where

        def part(piece: Piece, inner: Slices) -> Array:
            return self._files[piece.source.file].array(self._place(piece, whole.dtype), inner)

        return assembled(tensor.shape, whole.dtype, whole.pieces, part, slices)

    def _place(self, piece: Piece, dtype: str) -> Strided:
        """Where a piece's values are, once what is stored is as the metadata says."""
        source: _Stored = piece.source
        if source in self._found:
            return self._found[source]
        held = self._files[source.file]
        path = held.path
        with path.open("rb") as file:
            file.seek(source.offset)
            beginning = file.read(4)
        if beginning == b"PK\x03\x04":
            archive = Archive(path, "data.pkl", source.offset, source.length, held)
            root, size = archive.unpickled("data.pkl")
            collected = Collected(path.name, archive.room)
            collected.add(root, archive.storages(), size)
            places_ = [tensor.where for tensor in collected.tensors]
            found = places_[0] if len(places_) == 1 else None
        else:
            found = self._header(source.file, source.offset)[0].get(source.name)
        if not isinstance(found, Strided) or (found.shape, found.dtype) != (piece.sizes, dtype):
            seen = f"{found.dtype} {found.shape}" if isinstance(found, Strided) else "no tensor"
            raise CorruptFile(
                f"{path}, offset {source.offset}, tensor {source.name!r}",
                found=seen,
                expected=f"{dtype} {piece.sizes}",
            )
        self._found[source] = found
        return found

    def _header(self, name: str, offset: int) -> tuple[dict[str, Strided], dict[str, str]]:
        """The header of a safetensors file, which may stand behind other things in its own."""
        if (name, offset) not in self._headers:
            path = regular(self._path / _METADATA, name)
            end = path.stat().st_size
            with path.open("rb") as file:
                file.seek(offset)
                length = length_of(file.read(8))
                begin = offset + 8 + length
                if length > MAX_HEADER or begin > end:
                    found = f"a header of {length} bytes, {end - offset} bytes left"
                    raise corrupt(path.name, found)
                tensors, metadata = parsed(file.read(length), begin, end, path.name)
            places = {tensor.path[0]: place_of(tensor) for tensor in tensors}
            self._headers[name, offset] = places, metadata
        return self._headers[name, offset]

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def _fields(record: Any) -> dict[str, Any]:
    """Attributes of a pickled dataclass."""
    state = record.state if isinstance(record, Opaque) else None
    return state if isinstance(state, dict) else {}


def _dtype(fields: dict[str, Any]) -> tuple[str, str]:
    """Of a tensor's properties, which are pickled as a tuple that begins with the dtype."""
    properties = fields.get("properties")
    state = properties.state if isinstance(properties, Opaque) else None
    if isinstance(state, tuple) and state:
        return dtype_of(state[0])
    return dtype_of(_fields(properties).get("dtype"))


def _paths(planned: Any) -> dict[str, tuple[str, ...]]:
    """The nesting of each name before the state dict was flattened."""
    if not isinstance(planned, dict):
        return {}
    return {
        name: tuple(map(str, path))
        for name, path in planned.items()
        if isinstance(name, str)
        and isinstance(path, tuple)
        and path
        and all(isinstance(part, str) or is_shape((part,)) for part in path)
        and ".".join(map(str, path)) == name
    }


def _offsets(text: str, shard: Path) -> dict[str, tuple[int, ...]]:
    class Saved(msgspec.Struct):
        saved_offsets: tuple[int, ...] = ()

    try:
        found = msgspec.json.decode(text, type=dict[str, Saved])
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError) as error:
        raise CorruptFile(f"{shard}, {_SHARDING}", found=str(error)[:300]) from error
    return {name: saved.saved_offsets for name, saved in found.items()}
