"""Flax' MessagePack files: nested maps with arrays as extensions, as `flax.serialization` writes.

Arrays stay where they lie in the file; listing copies none. A tensor's name is its keys joined
with `/`. Plain numbers and texts among the arrays (`step`) are metadata, by the same names.
Metadata of ours is a map of texts under the key `__metadata__`, which Flax restores like any other.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from regraft.atomic import replacing
from regraft.errors import CorruptFile, FormatError
from regraft.formats import Sample, TensorSource, _msgpack
from regraft.formats._bytes import Mapped, Strided
from regraft.formats._msgpack import Bytes, CutOff, Extension, Walk
from regraft.tensors import DTYPE_BITS, Order, Stored, StoredTensor, TensorInfo, numpy_dtype

if TYPE_CHECKING:
    from typing import BinaryIO

    from regraft.tensors import Array, Slices

EXTRA = ""
SUFFIXES = (".msgpack",)
WRITES = tuple(DTYPE_BITS)

# Flax' own numbers for its extensions.
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
# How Flax cuts arrays that are too large for one value of MessagePack, and from which size on.
_CHUNKED = "__msgpack_chunked_array__"
_CHUNK_BYTES = 1 << 30
_METADATA = "__metadata__"
# Flax' mark for an array of several processes, which lies in a folder beside the file.
_ELSEWHERE = "//GDAPlaceholder:"
_MAX_TENSORS = 1 << 17
_MAX_AXES = 32
_MAX_PARTS = 32
# Of all names together: a long key above many arrays is in each of their names.
_MAX_NAMES = 64 << 20

Listed = Sequence[tuple[TensorInfo, "Callable[[], Array]"]]


class _Chunks(NamedTuple):
    """An array in several parts, each flat."""

    parts: tuple[Strided, ...]


class _Flax(Stored):
    format = "flax_msgpack"
    framework = "jax"
    separator = "/"

    def __init__(self, path: Path, tree: dict[str, Any], leaves: _Leaves) -> None:
        self._file = Mapped(path)
        leaves.take(tree, ())
        self.tensors = tuple(leaves.tensors)
        self.metadata = leaves.metadata
        self.notes = tuple(leaves.notes)
        names = [tensor.path for tensor in self.tensors]
        # JAX sorts the keys of a tree that goes through any of its functions.
        self.order: Order = "sorted" if names == sorted(names) else "stored"

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        if isinstance(tensor.where, Strided):
            return self._file.array(tensor.where, slices)
        return self._joined(tensor, tensor.where.parts, slices)

    def _joined(
        self, tensor: StoredTensor, parts: tuple[Strided, ...], slices: Slices | None
    ) -> Array:
        """Rows of a chunked array, out of those parts that they lie in."""
        import numpy as np

        rows = range(tensor.shape[0]) if slices is None else range(tensor.shape[0])[slices[0]]
        inner = math.prod(tensor.shape[1:])
        begin, end = rows.start * inner, max(rows.start, rows.stop) * inner
        pieces: list[Array] = [np.empty(0, numpy_dtype(tensor.dtype))]
        at = 0
        for part in parts:
            low, high = max(begin - at, 0), min(end - at, part.shape[0])
            if low < high:
                pieces.append(self._file.array(part, (slice(low, high),)))
            at += part.shape[0]
        found = np.concatenate(pieces).reshape(len(rows), *tensor.shape[1:])
        return found if slices is None else found[(slice(None), *slices[1:])]

    def close(self) -> None:
        self._file.close()


class _Leaves:
    """Takes a tree apart into tensors, metadata and notes."""

    def __init__(self, data: Any, label: str) -> None:
        self._data, self._label = data, label
        self._names_left = _MAX_NAMES
        self.tensors: list[StoredTensor] = []
        self.metadata: dict[str, str] = {}
        self.notes: list[str] = []

    def take(self, node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, (dict, list)) and _CHUNKED not in node:
            items = node.items() if isinstance(node, dict) else enumerate(node)
            for key, part in items:
                self.take(part, (*path, str(key)))
            return
        self._names_left -= sum(map(len, path)) + 64 * len(path)
        if self._names_left < 0:
            raise CorruptFile(self._label, found=f"more than {_MAX_NAMES} bytes of names")
        name = "/".join(path)
        match node:
            case str() if len(path) == 2 and path[0] == _METADATA:
                self.metadata[path[1]] = node
            case dict():
                self._chunked(node, path)
            case Extension(code=code) if code in (_ARRAY, _SCALAR):
                place = self._array(node, name)
                if place is not None:
                    self._add(StoredTensor(path, place.shape, place.dtype, place))
            case Extension(code=code) if code == _COMPLEX:
                self.metadata[name] = str(complex(*self._pair(node, name)))
            case Extension() | Bytes():
                self.notes.append(f"{name} left out: bytes whose meaning is not known")
            case str() if node.startswith(_ELSEWHERE):
                self.notes.append(f"{name} left out: it lies in a folder beside the file")
            case None:
                pass
            case bool():
                self.metadata[name] = str(node).lower()
            case _:
                self.metadata[name] = str(node)

    def _add(self, tensor: StoredTensor) -> None:
        if len(self.tensors) >= _MAX_TENSORS:
            raise CorruptFile(self._label, found=f"more than {_MAX_TENSORS} tensors")
        self.tensors.append(tensor)

    def _array(self, node: Extension, name: str) -> Strided | None:
        """Where the values of an array lie; `None`, with a note, where they are no numbers."""
        where = f"{self._label}, tensor {name!r}"
        shape, dtype, values = self._parts(node, where, 3)
        sizes = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
        if not sizes or len(shape) > _MAX_AXES:
            raise CorruptFile(where, found=f"shape {str(shape)[:100]}", expected="a list of sizes")
        if not isinstance(dtype, str) or not isinstance(values, Bytes):
            raise CorruptFile(where, found="an array without a dtype's name or its bytes")
        if dtype not in DTYPE_BITS:
            self.notes.append(f"{name} left out: its dtype {dtype[:40]!r} is not numeric")
            return None
        size = values.stop - values.start
        needed = math.prod(shape) * _width(dtype)
        if size != needed:
            raise CorruptFile(
                where, found=f"{size} bytes", expected=f"{needed} for {dtype} of shape {shape}"
            )
        place = Strided(values.start, size, values.start, tuple(shape), None, dtype)
        place.check(where)
        return place

    def _pair(self, node: Extension, name: str) -> list[float]:
        parts = self._parts(node, f"{self._label}, {name!r}", 2)
        if not all(isinstance(part, (int, float)) for part in parts):
            raise CorruptFile(f"{self._label}, {name!r}", found="a complex number of no numbers")
        return parts

    def _parts(self, node: Extension, where: str, count: int) -> list[Any]:
        walk = Walk(self._data, node.start, node.stop, where)
        parts = walk.value()
        if not isinstance(parts, list) or len(parts) != count or walk.at != node.stop:
            raise CorruptFile(where, found="an extension of another build", expected="Flax' own")
        return parts

    def _chunked(self, node: dict[str, Any], path: tuple[str, ...]) -> None:
        name = "/".join(path)
        where = f"{self._label}, tensor {name!r}"
        shape, chunks = _in_order(node.get("shape"), where), _in_order(node.get("chunks"), where)
        if not all(type(n) is int and n >= 0 for n in shape) or not 0 < len(shape) <= _MAX_AXES:
            raise CorruptFile(where, found=f"shape {str(shape)[:100]}", expected="sizes")
        if not all(isinstance(c, Extension) and c.code == _ARRAY for c in chunks) or not chunks:
            raise CorruptFile(where, found="chunks that are no arrays")
        places = [place for c in chunks if (place := self._array(c, name))]
        if not places:
            return
        count = sum(place.shape[0] for place in places if len(place.shape) == 1)
        flat = len(places) == len(chunks) and all(len(place.shape) == 1 for place in places)
        if not flat or len({place.dtype for place in places}) > 1 or count != math.prod(shape):
            raise CorruptFile(
                where, found=f"{count} values in chunks", expected=f"those of shape {tuple(shape)}"
            )
        self._add(StoredTensor(path, tuple(shape), places[0].dtype, _Chunks(tuple(places))))


def _in_order(node: Any, where: str) -> list[Any]:
    """Flax writes a tuple as a map with keys 0, 1, …"""
    if not isinstance(node, dict) or any(str(i) not in node for i in range(len(node))):
        raise CorruptFile(where, found="a chunked array without its shape or chunks")
    return [node[str(i)] for i in range(len(node))]


def _width(dtype: str) -> int:
    """Bytes of an element: Flax gives one to those smaller than it."""
    return max(1, DTYPE_BITS[dtype] // 8)


def sniff(sample: Sample) -> bool:
    """MessagePack has no mark of its own: the beginning must be a map by text that holds an array
    of Flax', or goes on beyond what is looked at."""
    if not _msgpack.is_map_by_text(sample.head):
        return False
    walk = Walk(sample.head, 0, len(sample.head), sample.path.name)
    try:
        walk.value()
    except CutOff:
        return True
    except CorruptFile:
        pass  # damaged after an array of Flax' own, it is still this format that can say so
    return bool(walk.extensions & {_ARRAY, _SCALAR})


def open(path: Path) -> Stored:
    """Lists the arrays. **Raises** `CorruptFile`."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        walk = Walk(data, 0, len(data), path.name)
        tree = walk.value()
        if walk.at != len(data) or not isinstance(tree, dict):
            raise walk.corrupt(f"{len(data) - walk.at} bytes after the tree", "one map")
        return _Flax(path, tree, _Leaves(data, path.name))


# Writing


def write(path: Path, tensors: TensorSource, metadata: Mapping[str, str]) -> None:
    """Writes the tree that the names spell, one array at a time; metadata is kept.

    `flax.serialization.msgpack_restore` reads it. A `/` in a name always begins an inner map.

    **Raises** `FormatError` where one name is another one's beginning, or where there is nothing
    to write: such a file could not be told from others.
    """
    listed = list(tensors)
    if not listed or len(listed) > _MAX_TENSORS:
        raise FormatError(
            path.name, found=f"{len(listed)} tensors", expected=f"from 1 to {_MAX_TENSORS}"
        )
    tree: dict[str, Any] = {}
    for index, (info, _) in enumerate(listed):
        _plant(tree, info, index, path)
    if metadata:
        tree[_METADATA] = dict(metadata)
    with replacing(path) as file:
        _write_tree(file, tree, listed)


def _plant(tree: dict[str, Any], info: TensorInfo, index: int, path: Path) -> None:
    """Puts a tensor's index where its name leads to."""
    where = f"{path.name}, tensor {info.name!r}"
    *outer, last = info.name.split("/")
    if len(outer) >= _MAX_PARTS or _CHUNKED in (*outer, last) or (outer or [last])[0] == _METADATA:
        raise FormatError(
            where,
            found="a name that Flax or this writer uses, or of many parts",
            expected=f"at most {_MAX_PARTS} parts, without {_CHUNKED} and {_METADATA}",
            hint="rename it first",
        )
    node: Any = tree
    for part in outer:
        node = node.setdefault(part, {}) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last in node:
        raise FormatError(
            where,
            found="a name that is the beginning of another one, or has one as its own",
            expected="arrays at the ends of a tree",
            hint="rename one of them, or write .safetensors",
        )
    node[last] = index


def _write_tree(file: BinaryIO, tree: dict[str, Any], listed: Listed) -> None:
    file.write(_msgpack.map_head(len(tree)))
    for key, node in tree.items():
        file.write(_msgpack.packed(key))
        if isinstance(node, dict):
            _write_tree(file, node, listed)
        elif isinstance(node, str):
            file.write(_msgpack.packed(node))
        else:
            info, get = listed[node]
            _write_array(file, info, get())


def _write_array(file: BinaryIO, info: TensorInfo, array: Array) -> None:
    from regraft.values import bits

    values = bits(array.astype(array.dtype.newbyteorder("<"), copy=False))
    if len(values) <= _CHUNK_BYTES or not info.shape:
        _write_values(file, info.shape, info.dtype, values)
        return
    width = _width(info.dtype)
    step = max(1, _CHUNK_BYTES // width) * width
    starts = range(0, len(values), step)
    file.write(_msgpack.map_head(3) + _msgpack.packed(_CHUNKED) + _msgpack.packed(True))
    sizes = {str(axis): n for axis, n in enumerate(info.shape)}
    file.write(_msgpack.packed("shape") + _msgpack.packed(sizes))
    file.write(_msgpack.packed("chunks") + _msgpack.map_head(len(starts)))
    for index, start in enumerate(starts):
        part = values[start : start + step]
        file.write(_msgpack.packed(str(index)))
        _write_values(file, (len(part) // width,), info.dtype, part)


def _write_values(file: BinaryIO, shape: tuple[int, ...], dtype: str, values: Any) -> None:
    """One array as Flax' extension: a list of shape, dtype's name and bytes."""
    head = b"\x93" + _msgpack.packed(shape) + _msgpack.packed(dtype)
    head += _msgpack.bytes_head(len(values))
    file.write(_msgpack.extension_head(_ARRAY, len(head) + len(values)) + head)
    file.write(values.data)
