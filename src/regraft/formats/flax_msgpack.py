"""Flax' MessagePack files: nested maps with arrays as extensions, as `flax.serialization` writes.

Arrays stay where they lie in the file; listing copies none. A tensor's name is its keys joined
with `/`. Plain numbers and texts among the arrays (`step`) are metadata, by the same names.
Metadata of ours is a map of texts under the key `__metadata__`, which Flax restores like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.atomic import replacing
from regraft.errors import CorruptFile, FormatError
from regraft.formats import Sample, TensorSource, _msgpack
from regraft.formats._flax_tree import ARRAY, CHUNKED, MAX_TENSORS, SCALAR, Tree, element_bytes
from regraft.formats._msgpack import CutOff, Walk
from regraft.tensors import DTYPE_BITS, Order, Stored, StoredTensor, TensorInfo

if TYPE_CHECKING:
    from typing import BinaryIO

    from regraft.tensors import Array, Slices

EXTRA = ""
SUFFIXES = (".msgpack",)
NESTS = True
WRITES = tuple(DTYPE_BITS)

# From which size on Flax cuts an array into chunks.
_CHUNK_BYTES = 1 << 30
_METADATA = "__metadata__"
# Flax' mark for an array of several processes, which lies in a folder beside the file.
_ELSEWHERE = "//GDAPlaceholder:"
_MAX_PARTS = 32

Listed = Sequence[tuple[TensorInfo, "Callable[[], Array]"]]


class _Flax(Stored):
    format = "flax_msgpack"
    framework = "jax"
    separator = "/"

    def __init__(self, path: Path) -> None:
        self._tree = Tree(path)
        self.tensors = tuple(self._tree.tensors)
        notes = list(self._tree.notes)
        metadata: dict[str, str] = {}
        for at, text in self._tree.texts.items():
            if len(at) == 2 and at[0] == _METADATA:
                metadata[at[1]] = text
            elif text.startswith(_ELSEWHERE):
                notes.append(f"{'/'.join(at)} left out: it lies in a folder beside the file")
            else:
                metadata["/".join(at)] = text
        self.metadata, self.notes = metadata, tuple(notes)
        names = [tensor.path for tensor in self.tensors]
        # JAX sorts the keys of a tree that goes through any of its functions.
        self.order: Order = "sorted" if names == sorted(names) else "stored"

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        return self._tree.read(tensor, slices)

    def close(self) -> None:
        self._tree.close()


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
    return bool(walk.extensions & {ARRAY, SCALAR})


def open(path: Path) -> Stored:
    """Lists the arrays. **Raises** `CorruptFile`."""
    return _Flax(path)


# Writing


def write(path: Path, tensors: TensorSource, metadata: Mapping[str, str]) -> None:
    """Writes the tree that the names spell, one array at a time; metadata is kept.

    `flax.serialization.msgpack_restore` reads it. A `/` in a name always begins an inner map. Ties
    are lost: each of them is written whole.

    **Raises** `FormatError` where one name is another one's beginning, for more than is read back,
    or where there is nothing to write: such a file could not be told from others.
    """
    listed = list(tensors)
    if not listed or len(listed) > MAX_TENSORS:
        raise FormatError(
            path.name, found=f"{len(listed)} tensors", expected=f"from 1 to {MAX_TENSORS}"
        )
    texts = (*(info.name for info, _ in listed), *metadata, *metadata.values())
    length = sum(len(text.encode()) for text in texts)
    if length > _msgpack.MAX_TEXT:
        raise FormatError(
            path.name,
            found=f"{length} bytes of names and metadata",
            expected=f"at most {_msgpack.MAX_TEXT}",
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
    if len(outer) >= _MAX_PARTS or CHUNKED in (*outer, last) or (outer or [last])[0] == _METADATA:
        raise FormatError(
            where,
            found="a name that Flax or this writer uses, or of many parts",
            expected=f"at most {_MAX_PARTS} parts, without {CHUNKED} and {_METADATA}",
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
    width = element_bytes(info.dtype)
    step = max(1, _CHUNK_BYTES // width) * width
    starts = range(0, len(values), step)
    file.write(_msgpack.map_head(3) + _msgpack.packed(CHUNKED) + _msgpack.packed(True))
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
    file.write(_msgpack.extension_head(ARRAY, len(head) + len(values)) + head)
    file.write(values.data)
