"""Orbax checkpoints: folders with a tree in JSON, and arrays in zarr, apart or in one database.

Shapes and dtypes are listed from zarr's own metadata; values are read through tensorstore, slice
by slice. A tensor's name is its keys joined with `/`; texts of the tree are metadata.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from regraft.errors import CorruptFile, FormatError
from regraft.formats import Sample
from regraft.formats._flax_tree import Names, Tree
from regraft.formats._orbax_layout import AGGREGATE, METADATA, located
from regraft.formats._orbax_store import MANIFEST, DatabaseStore, FolderStore, Store
from regraft.formats._zarr import Zarr
from regraft.tensors import Order, Stored, StoredTensor

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

EXTRA = "jax"
SUFFIXES: tuple[str, ...] = ()

T = TypeVar("T")

_STRINGS = "_strings.json"
# Types of leaves: arrays by zarr, texts in a file of their own, and what handlers of users add.
_ARRAYS = ("jax.Array", "np.ndarray", "scalar", "Unknown")
_STRING = "string"
_MAX_JSON = 16 << 20
_SHOWN = 10
# Marks in the tree of older versions for arrays that lie beside it.
_BESIDE = ("PLACEHOLDER://", "AGGREGATED://")


class _Key(msgspec.Struct):
    key: str | int


class _Value(msgspec.Struct):
    value_type: str
    skip_deserialize: bool = False


class _Leaf(msgspec.Struct):
    key_metadata: list[_Key]
    value_metadata: _Value


class _Metadata(msgspec.Struct):
    """What is used of the file `_METADATA`."""

    tree_metadata: dict[str, _Leaf]
    use_zarr3: bool | None = None
    store_array_data_equal_to_fill_value: bool | None = None
    custom_metadata: msgspec.Raw = msgspec.Raw(b"null")


class _Beside(NamedTuple):
    """A tensor that is an array of the store."""

    store: Store
    name: str
    version: int
    array: Zarr

    def read(self, slices: Slices | None) -> Array:
        return self.store.read(self.name, self.version, self.array, slices)


class _Inside(NamedTuple):
    """A tensor that lies in the tree of an older version."""

    tree: Tree
    tensor: StoredTensor

    def read(self, slices: Slices | None) -> Array:
        return self.tree.read(self.tensor, slices)


class _Item:
    """One saved tree: its tensors by path, texts, and what was left out."""

    def __init__(self, folder: Path, label: str) -> None:
        self._folder, self._label = folder, label
        self.tensors: list[StoredTensor] = []
        self.texts: dict[str, str] = {}
        self.notes: list[str] = []
        metadata = _json(folder / METADATA, _Metadata, label)
        complete = bool(metadata and metadata.store_array_data_equal_to_fill_value)
        kind = DatabaseStore if (folder / MANIFEST).is_file() else FolderStore
        self._store: Store = kind(folder, label, complete)
        self._tree = Tree(folder / AGGREGATE) if (folder / AGGREGATE).is_file() else None
        self._list(metadata)

    def _list(self, metadata: _Metadata | None) -> None:
        versions = (3, 2) if metadata and metadata.use_zarr3 else (2, 3)
        # Arrays of the store by path, and whether one may be missing.
        wanted: dict[tuple[str, ...], str] = {}
        optional: set[tuple[str, ...]] = set()
        if self._tree is not None:
            wanted = self._in_tree(self._tree)
        if metadata is not None:
            self._in_metadata(metadata, wanted, optional)
        elif self._tree is None:
            # A dot inside a key cannot be told from one between keys.
            wanted = {tuple(name.split(".")): name for name, _ in self._store.names()}
        names = Names(self._label)
        for path in wanted:
            names.count()
            names.spend(path)
        found = self._store.arrays(wanted.values(), versions)
        left_out: list[str] = []
        for path, name in wanted.items():
            if name in found:
                version, array = found[name]
                place = _Beside(self._store, name, version, array)
                self.tensors.append(StoredTensor(path, array.shape, array.dtype, place))
            elif path in optional:
                left_out.append("/".join(path))
            else:
                raise CorruptFile(
                    f"{self._label}, tensor {'/'.join(path)!r}",
                    found=f"no array {name!r}",
                    expected="an array for each that the tree names",
                    hint="files are missing; get the folder again",
                )
        if left_out:
            more = f" and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
            self.notes.append(f"left out, being no arrays: {', '.join(left_out[:_SHOWN])}{more}")

    def _in_tree(self, tree: Tree) -> dict[tuple[str, ...], str]:
        """Takes what lies in the tree of an older version; gives the names of what does not."""
        self.tensors += [tensor._replace(where=_Inside(tree, tensor)) for tensor in tree.tensors]
        self.notes += tree.notes
        beside: dict[tuple[str, ...], str] = {}
        for path, text in tree.texts.items():
            mark = next((mark for mark in _BESIDE if text.startswith(mark)), None)
            if mark is None:
                self.texts["/".join(path)] = text
            else:
                beside[path] = text.removeprefix(mark)
        return beside

    def _in_metadata(
        self,
        metadata: _Metadata,
        wanted: dict[tuple[str, ...], str],
        optional: set[tuple[str, ...]],
    ) -> None:
        """Adds the arrays that the tree in JSON names."""
        custom = bytes(metadata.custom_metadata).decode()
        if custom != "null":
            self.texts["custom_metadata"] = custom
        strings = _json(self._folder / _STRINGS, dict[str, str], self._label) or {}
        seen = {tensor.path for tensor in self.tensors}
        older = set(wanted)
        for leaf in metadata.tree_metadata.values():
            path = tuple(str(key.key) for key in leaf.key_metadata)
            kind = leaf.value_metadata.value_type
            if leaf.value_metadata.skip_deserialize:
                continue  # None, an empty dict and the like
            if path in seen and path not in older:
                if self._tree is None:
                    raise CorruptFile(self._label, found=f"the tensor {'/'.join(path)!r} twice")
                continue
            seen.add(path)
            name = ".".join(path)
            if kind == _STRING:
                self.texts["/".join(path)] = strings.get(name, "")
                continue
            wanted[path] = name
            if kind not in _ARRAYS:
                optional.add(path)

    def close(self) -> None:
        self._store.close()
        if self._tree is not None:
            self._tree.close()


class _Orbax(Stored):
    format = "orbax"
    framework = "jax"
    separator = "/"

    def __init__(self, path: Path) -> None:
        found = located(path)
        if found is None:
            raise FormatError(str(path), found="a folder", expected="an Orbax checkpoint")
        self._items: list[_Item] = []
        tensors: list[StoredTensor] = []
        notes, metadata = list(found.notes), dict[str, str]()
        self.at = found.at
        if found.step is not None:
            metadata["step"] = str(found.step)
        try:
            for name, folder in found.items:
                label = "/".join((path.name, *folder.relative_to(path).parts))
                item = _Item(folder, label)
                self._items.append(item)
                outer = (name,) if name else ()
                tensors += [t._replace(path=(*outer, *t.path)) for t in item.tensors]
                metadata |= {"/".join((*outer, key)): text for key, text in item.texts.items()}
                notes += item.notes
        except BaseException:
            self.close()
            raise
        self.tensors, self.metadata, self.notes = tuple(tensors), metadata, tuple(notes)
        paths = [tensor.path for tensor in tensors]
        self.order: Order = "sorted" if paths == sorted(paths) else "stored"

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        return tensor.where.read(slices)

    def close(self) -> None:
        for item in self._items:
            item.close()


def _json(path: Path, kind: type[T], label: str) -> T | None:
    """A small file of JSON as what it should be; `None` where there is no such file."""
    if not path.is_file():
        return None
    where = f"{label}/{path.name}"
    with path.open("rb") as file:
        raw = file.read(_MAX_JSON + 1)
    if len(raw) > _MAX_JSON:
        raise CorruptFile(where, found=f"more than {_MAX_JSON} bytes", expected="a tree's keys")
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptFile(
            where, found=str(error)[:300], expected="JSON of Orbax", hint="get the folder again"
        ) from error


def sniff(sample: Sample) -> bool:
    if not sample.entries:
        return False
    try:
        return located(sample.path) is not None
    except CorruptFile:
        return True  # Orbax' own, though there is nothing in it
    except OSError:  # a folder that may not be looked into
        return False


def open(path: Path) -> Stored:
    """Lists the arrays; of a root of steps those of the newest.

    **Raises** `CorruptFile`, `UnsafeFile`, `MissingDependency` (a database is read by tensorstore).
    """
    return _Orbax(path)
