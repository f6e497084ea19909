"""Flax' trees in MessagePack: arrays as extensions, listed and read where they lie in the file.

Flax writes whole files like this, and Orbax wrote the small values of a checkpoint.
"""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from regraft.errors import CorruptFile
from regraft.formats._bytes import Mapped, Strided
from regraft.formats._msgpack import Bytes, Extension, Walk
from regraft.tensors import DTYPE_BITS, StoredTensor, numpy_dtype

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

# Flax' own numbers for its extensions.
ARRAY, COMPLEX, SCALAR = 1, 2, 3
# How Flax cuts arrays that are too large for one value of MessagePack.
CHUNKED = "__msgpack_chunked_array__"
MAX_TENSORS = 1 << 17

_MAX_AXES = 32
_MAX_DEPTH = 64
# Bytes of memory for all names together.
_MAX_NAMES = 128 << 20


class Chunks(NamedTuple):
    """An array in several parts, each flat."""

    parts: tuple[Strided, ...]


class Names:
    """Counts what the names of a tree cost. One long key above many arrays is in each of their
    names, and every part of a name makes a branch of the tree.

    **Raises** `CorruptFile` for more than any model has.
    """

    def __init__(self, label: str) -> None:
        self._label, self._left, self._count = label, _MAX_NAMES, 0

    def spend(self, path: tuple[str, ...]) -> None:
        depth = len(path)
        self._left -= sum(map(len, path)) + 160 * depth + 4 * depth * depth
        if depth > _MAX_DEPTH or self._left < 0:
            raise CorruptFile(self._label, found=f"names of more than {_MAX_NAMES} bytes together")

    def count(self) -> None:
        """One more tensor."""
        self._count += 1
        if self._count > MAX_TENSORS:
            raise CorruptFile(self._label, found=f"more than {MAX_TENSORS} tensors")


class Tree:
    """A file, taken apart.

    - `tensors`: the arrays; `texts`: plain numbers and texts among them, by path.
    - `notes`: what was left out.

    **Raises** `CorruptFile`.
    """

    def __init__(self, path: Path) -> None:
        os.fspath(path)  # a remote file says that it is none of this machine
        self._file = Mapped(path)
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            walk = Walk(data, 0, len(data), path.name)
            tree = walk.value()
            if walk.at != len(data) or not isinstance(tree, dict):
                raise walk.corrupt(f"{len(data) - walk.at} bytes after the tree", "one map")
            leaves = _Leaves(data, path.name)
            leaves.take(tree, ())
        self.tensors, self.texts, self.notes = leaves.tensors, leaves.texts, leaves.notes

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
        self._names = Names(label)
        self.tensors: list[StoredTensor] = []
        self.texts: dict[tuple[str, ...], str] = {}
        self.notes: list[str] = []

    def take(self, node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, (dict, list)) and CHUNKED not in node:
            items = node.items() if isinstance(node, dict) else enumerate(node)
            for key, part in items:
                self.take(part, (*path, str(key)))
            return
        self._names.spend(path)
        name = "/".join(path)
        match node:
            case dict():
                self._chunked(node, path)
            case Extension(code=code) if code in (ARRAY, SCALAR):
                place = self._array(node, name)
                if place is not None:
                    self._add(StoredTensor(path, place.shape, place.dtype, place))
            case Extension(code=code) if code == COMPLEX:
                self.texts[path] = str(complex(*self._pair(node, name)))
            case Extension() | Bytes():
                self.notes.append(f"{name} left out: bytes whose meaning is not known")
            case None:
                pass
            case bool():
                self.texts[path] = str(node).lower()
            case _:
                self.texts[path] = str(node)

    def _add(self, tensor: StoredTensor) -> None:
        self._names.count()
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
        needed = math.prod(shape) * element_bytes(dtype)
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
        if not all(isinstance(c, Extension) and c.code == ARRAY for c in chunks) or not chunks:
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
        self._add(StoredTensor(path, tuple(shape), places[0].dtype, Chunks(tuple(places))))


def _in_order(node: Any, where: str) -> list[Any]:
    """Flax writes a tuple as a map with keys 0, 1, …"""
    if not isinstance(node, dict) or any(str(i) not in node for i in range(len(node))):
        raise CorruptFile(where, found="a chunked array without its shape or chunks")
    return [node[str(i)] for i in range(len(node))]


def element_bytes(dtype: str) -> int:
    """Bytes of an element: Flax gives one to those smaller than it."""
    return max(1, DTYPE_BITS[dtype] // 8)
