"""PyTorch's pickled objects as tensors: state dicts, nested dicts, whole modules, TorchScript.

The pickle machine hands over records of calls; here they are read as what PyTorch would have
built. Names are those of nested dicts; a pickled module is read as its state dict would be, its
tensors named by their path of attributes with dots.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from regraft.formats._bytes import Mapped, Strided
from regraft.formats._numpy_pickles import HeldArray
from regraft.formats._pickle_records import Opaque, Reference
from regraft.formats._pickle_walk import walk
from regraft.formats._room import LISTED, Room
from regraft.formats._torch_rebuilds import Built, LeftOut, Parts, Rebuilds
from regraft.formats._torch_storages import Storages
from regraft.tensors import Stored, StoredTensor

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

_METADATA_ENTRIES, _METADATA_LENGTH = 200, 1000
# What writers of ours put beside the tensors of a trainer's checkpoint may be long.
_OURS, _OURS_ENTRIES, _OURS_LENGTH = "regraft.", 8, 64 << 20
_NAMES_SHOWN = 10
# The part of the listing that holds what belongs to a compiled module and not to its state dict.
ATTRIBUTES = "attributes"

# Quantized convolutions are pickled as a tuple of their arguments, weight and bias among them.
_QUANTIZED_CONVS = tuple(
    f"{kind}{axes}d" for kind in ("Conv", "ConvReLU", "ConvTranspose") for axes in (1, 2, 3)
)

# Names of a compiled class' parameters and buffers, `None` where they are not to be had.
Declared = Callable[[str], "frozenset[str] | None"]


class Collected:
    """What a walk over the pickles of a file finds. `label` is the file's name in errors; what is
    listed takes of the file's `room`, too: parts may be shared, and listed over and over."""

    def __init__(self, label: str, room: Room) -> None:
        self._label = label
        self._where = f"{label}, tensors"
        self._room = room
        self._found: list[StoredTensor] = []
        # The first tensor at an offset of the file, and those that begin where another one does.
        self._first: dict[int, StoredTensor] = {}
        self._beside: list[StoredTensor] = []
        self._remarks: dict[str, list[str]] = {}
        self.texts: dict[str, str] = {}

    def add(
        self,
        root: Any,
        storages: Storages,
        size: int,
        prefix: tuple[str, ...] = (),
        declared: Declared | None = None,
    ) -> None:
        """Lists the tensors of one pickle of `size` bytes, under `prefix`.

        `declared` says of compiled classes which attributes are parameters and buffers.
        **Raises** `CorruptFile`.
        """
        walked = _Walked(self, storages, prefix, declared)
        walk(root, self._label, walked.visit, size)

    def tensor(self, path: tuple[str, ...], owner: str, found: Strided | Built) -> None:
        """Lists one tensor, a part of a module of class `owner`."""
        path = path or (PurePath(self._label).stem,)  # a tensor saved alone
        if isinstance(found, Strided):
            shape, dtype, place, offset = found.shape, found.dtype, found, found.offset
        else:
            shape, dtype, place, remark = found.shape, found.dtype, found.place, found.remark
            offset = _offset(place)
            if remark:
                self._remarks.setdefault(remark, []).append(".".join(path))
        leaf = path[-1]
        kind = _KINDS.get(leaf[leaf.rfind(".") + 1 :], _WEIGHT)
        tensor = StoredTensor(path, shape, dtype, place, owner, "", kind)
        self._found.append(tensor)
        self._room.take(LISTED, self._where)
        if self._first.setdefault(offset, tensor) is not tensor:
            self._beside.append(tensor)

    def left_out(self, path: tuple[str, ...], reason: str) -> None:
        self._room.take(LISTED, self._where)
        self._remarks.setdefault(f"left out, {reason}", []).append(".".join(path))

    def module(self) -> None:
        """Counts one that tensors may belong to."""
        self._room.take(LISTED, self._where)

    def text(self, path: tuple[str, ...], value: Any) -> None:
        """A string or a number beside the tensors, as metadata."""
        ours = len(path) == 1 and path[0].startswith(_OURS)
        most = _METADATA_ENTRIES + (_OURS_ENTRIES if ours else 0)
        if len(self.texts) >= most or not path or path[0].startswith("optim"):
            return
        text = str(value) if not isinstance(value, int) or value.bit_length() < 99 else ""
        if text and len(text) <= (_OURS_LENGTH if ours else _METADATA_LENGTH):
            self.texts[".".join(path)] = text

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return tuple(self._found)

    @property
    def ties(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        groups: dict[Any, list[tuple[str, ...]]] = defaultdict(list)
        for offset in dict.fromkeys(_offset(tensor.where) for tensor in self._beside):
            first = self._first[offset]
            groups[_bytes_of(first)].append(first.path)
        for tensor in self._beside:
            groups[_bytes_of(tensor)].append(tensor.path)
        return tuple(tuple(group) for key, group in groups.items() if key and len(group) > 1)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(f"{why}: {few(names)}" for why, names in self._remarks.items())


class _Walked:
    """The walk over one pickle, which knows what has to be named otherwise than it is nested."""

    def __init__(
        self,
        into: Collected,
        storages: Storages,
        prefix: tuple[str, ...],
        declared: Declared | None,
    ) -> None:
        self._into = into
        self._rebuilt = Rebuilds(storages)
        self._prefix = prefix
        self._declared = declared
        # Class of the module at a path.
        self._owners: dict[tuple[str, ...], str] = {}
        # What lies below a path is named by dots: how many parts of the path stay parts.
        self._dotted: dict[tuple[str, ...], int] = {}
        self._aside: set[tuple[str, ...]] = set()
        self._met: set[int] = set()

    def visit(self, path: tuple[str, ...], value: Any) -> Any:
        if type(value) is Opaque:
            found = self._rebuilt(path, value)
            if isinstance(found, (Strided, Built)):
                owner = self._owners.get(path[:-1], "") if self._owners else ""
                named = self._named(path) if self._dotted or self._prefix else path
                self._into.tensor(named, owner, found)
                return None
            if isinstance(found, LeftOut):
                self._into.left_out(self._named(path), found.reason)
                return None
            if isinstance(found, Parts):
                self._dotted[path] = max(0, len(path) - 1)
                return found.tensors
            return found if isinstance(found, list) else self._object(path, value)
        if isinstance(value, (str, int, float)):
            self._into.text(path, value)
        elif isinstance(value, Reference):
            self._into.left_out(self._named(path), "a storage without tensor")
        return None

    def _named(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """The path as it is listed."""
        if self._dotted:
            for depth in range(len(path) + 1):
                kept = self._dotted.get(path[:depth])
                if kept is not None:
                    aside = self._aside and any(
                        path[:n] in self._aside for n in range(len(path) + 1)
                    )
                    prefix = (ATTRIBUTES,) if aside else (*self._prefix, *path[:kept])
                    rest = path[kept:]
                    return (*prefix, ".".join(rest)) if rest else prefix
        return (*self._prefix, *path)

    def _object(self, path: tuple[str, ...], value: Opaque) -> Any:
        """An object that is no tensor: what to go on into."""
        name = value.path.rpartition(".")[2]
        state = _attributes(value.state)
        if "_parameters" in state:
            return self._module(path, name, state)
        if value.path.startswith("__torch__."):
            return self._compiled(path, value)
        if value.path == "torch.ScriptObject":
            return _packed(value)
        if isinstance(value.state, tuple) and name in _QUANTIZED_CONVS and len(value.state) > 11:
            return {"weight": value.state[10], "bias": value.state[11]}
        if value.entries or value.items:
            return value.entries or value.items
        if state:  # an object with attributes, which may know one another in circles
            first = id(value) not in self._met
            self._met.add(id(value))
            return state if first else None
        if len(value.args) == 1 and isinstance(value.args[0], dict):  # a wrapped dict
            return value.args[0]
        nested = any(isinstance(arg, (Opaque, dict, list, tuple)) for arg in value.args)
        return value.args if nested else None

    def _names_begin(self, path: tuple[str, ...], name: str) -> None:
        """Notes a module: below the outermost one, names are joined by dots."""
        self._into.module()
        self._owners[path] = name
        if not any(path[:depth] in self._dotted for depth in range(len(path))):
            self._dotted[path] = len(path)

    def _module(self, path: tuple[str, ...], name: str, state: dict[Any, Any]) -> dict[str, Any]:
        """A pickled nn.Module: its tensors and its children under their names."""
        self._names_begin(path, name)
        transient = state.get("_non_persistent_buffers_set")
        skipped = transient if isinstance(transient, (set, frozenset, list)) else ()
        inner: dict[str, Any] = {}
        for part in ("_parameters", "_buffers", "_modules"):
            held = state.get(part)
            held = held.entries if isinstance(held, Opaque) else held
            without = skipped if part == "_buffers" else ()
            if isinstance(held, dict):
                inner |= {str(k): v for k, v in held.items() if k not in without}
        for key, part in state.items():
            if isinstance(part, Opaque) and part.path == "torch.ScriptObject":
                inner[str(key)] = part  # weights packed for a quantized kernel
        return inner

    def _compiled(self, path: tuple[str, ...], value: Opaque) -> Any:
        """An object of TorchScript: attributes that are no parameter and no buffer lie aside."""
        state = value.state
        if not isinstance(state, dict):
            return state if isinstance(state, (tuple, list)) else None
        self._names_begin(path, value.path.rpartition(".")[2])
        declared = self._declared(value.path) if self._declared else None
        nested = (Opaque, list, tuple, dict)
        inner: dict[str, Any] = {str(k): v for k, v in state.items() if isinstance(v, nested)}
        if declared is not None:
            aside = (n for n, part in inner.items() if n not in declared and not _is_module(part))
            self._aside.update((*path, name) for name in aside)
        return inner


class TorchStored(Stored):
    """Tensors of pickled objects over a mapped file."""

    framework = "torch"

    def __init__(self, format: str, file: Mapped, collected: Collected) -> None:
        self.format = format
        self._file = file
        self.tensors = collected.tensors
        self.ties = collected.ties
        self.notes = collected.notes
        self.metadata = collected.texts

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        where = tensor.where
        if type(where) is Strided:
            return self._file.array(where, slices)
        name = f"{self._file.path.name}, tensor {'.'.join(tensor.path)!r}"
        return where.read(self._file, slices, name)

    def close(self) -> None:
        self._file.close()


def _attributes(state: Any) -> dict[Any, Any]:
    """An object's attributes, those in slots among them."""
    if isinstance(state, dict):
        return state  # pyright: ignore[reportUnknownVariableType]
    found: dict[Any, Any] = {}
    if isinstance(state, tuple) and len(state) == 2:  # pyright: ignore[reportUnknownArgumentType]
        for part in state:  # pyright: ignore[reportUnknownVariableType]
            if isinstance(part, dict):
                found |= part
    return found


def _is_module(value: Any) -> bool:
    """Whether this is a compiled module, and no object of packed weights."""
    compiled = isinstance(value, Opaque) and value.path.startswith("__torch__.")
    return compiled and isinstance(value.state, dict)


def _packed(value: Opaque) -> Any:
    """The state of a compiled class' object: `(state, name of the class)`."""
    state = value.state
    return state[0] if isinstance(state, tuple) and len(state) == 2 else None  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def few(names: list[str]) -> str:
    """Some of many names, for a note."""
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f"{shown} and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else shown


def _offset(place: Any) -> int:
    """Where a tensor's bytes begin in the file, `-1` for those that are in the pickle itself."""
    while not isinstance(place, (Strided, HeldArray)):
        place = next(part for part in place if hasattr(part, "_fields"))
    return place.offset if isinstance(place, Strided) else -1


def _bytes_of(tensor: StoredTensor) -> Any:
    """What two tensors that are one have in common, `None` for those that share nothing."""
    place = tensor.where
    if 0 in tensor.shape or isinstance(place, HeldArray):
        return None
    return place[2:] if isinstance(place, Strided) else place


_Kind = Literal["weight", "counter", "constant"]
_KINDS: dict[str, _Kind] = {"num_batches_tracked": "counter", "position_ids": "constant"}
_WEIGHT: _Kind = "weight"
