"""PyTorch's files from before 0.1.10: a tar of `storages`, `tensors` and the pickled object.

The object refers to tensors by number, and they to storages, which may be views of others.
"""

from __future__ import annotations

import mmap
import struct
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

from regraft.errors import CorruptFile
from regraft.formats import Sample
from regraft.formats._bytes import Mapped
from regraft.formats._pickle import Machine
from regraft.formats._pickle_records import Global, Opaque, Reference
from regraft.formats._room import Room
from regraft.formats._torch_storages import STORAGES, Storages, width
from regraft.formats._torch_tensors import Collected, TorchStored
from regraft.tensors import Stored

EXTRA = ""
SUFFIXES: tuple[str, ...] = ()

_MEMBERS = ("storages", "tensors", "pickle")
_MAX_MEMBERS, _MAX_AXES, _MAX_COUNT = 100, 64, 1_000_000
_MAGIC, _MAGIC_AT = b"ustar", 257
_REBUILD = Global("torch._utils", "_rebuild_tensor")


class _Held(NamedTuple):
    """A storage: the name of its class, its elements, where they begin and the whole of a view."""

    cls: Global
    elements: int
    start: int
    view: tuple[str, int, int] | None = None


def sniff(sample: Sample) -> bool:
    if sample.head[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
        return False
    try:
        return set(_MEMBERS) <= set(_extents(sample.path))
    except (tarfile.TarError, OSError, ValueError, CorruptFile):
        return sample.head.startswith(b"storages\0")  # damaged: let it be said


def open(path: Path) -> Stored:
    """Lists the tensors. **Raises** `CorruptFile` and `UnsafeFile`."""
    try:
        extents = _extents(path)
        if not set(_MEMBERS) <= set(extents):
            raise CorruptFile(path.name, found=", ".join(extents), expected=", ".join(_MEMBERS))
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            room = Room(len(data))
            machine = Machine(data, path.name, None, room)
            held = _storages(machine, data, *extents["storages"], path.name)
            tensors = _tensors(machine, data, *extents["tensors"], held, path.name)
            root, size = _object(data, *extents["pickle"], held, tensors, path.name, room)
    except (tarfile.TarError, struct.error, OSError, ValueError, TypeError, KeyError) as error:
        raise CorruptFile(path.name, found=f"{error}"[:300], expected="a whole archive") from error

    def locate(key: str, needed: int) -> tuple[int, int]:
        return held[key].start, needed

    collected = Collected(path.name, room)
    collected.add(root, Storages(path.name, locate), size)
    return TorchStored("torch_tar", Mapped(path), collected)


def _extents(path: Path) -> dict[str, tuple[int, int]]:
    """Begin and end of each member."""
    found: dict[str, tuple[int, int]] = {}
    with tarfile.open(path, "r:") as archive:
        for _ in range(_MAX_MEMBERS):
            member = archive.next()
            if member is None:
                break
            if member.isreg() and not member.sparse:  # pyright: ignore[reportUnknownMemberType]
                found[member.name] = member.offset_data, member.offset_data + member.size
    size = path.stat().st_size
    if size % tarfile.BLOCKSIZE or any(end > size for _, end in found.values()):
        raise CorruptFile(path.name, found=f"{size} bytes, cut off in the middle of a block")
    return found


def _counted(machine: Machine, begin: int, label: str) -> int:
    machine.position = begin
    count = machine.load()
    if type(count) is not int or not 0 <= count <= _MAX_COUNT:
        raise CorruptFile(label, found="a number of storages or tensors that is none")
    return count


def _storages(
    machine: Machine, data: mmap.mmap, begin: int, end: int, label: str
) -> dict[str, _Held]:
    """Each storage: a pickle of `(key, location, class)`, its number of elements, its bytes."""
    held: dict[str, _Held] = {}
    for _ in range(_counted(machine, begin, label)):
        key, _, cls = machine.load()
        if not isinstance(cls, Global) or cls.name not in STORAGES:
            raise CorruptFile(label, found="a storage of a class that is not known")
        (count,) = struct.unpack_from("<q", data, machine.position)
        start = machine.position + 8
        machine.position = start + count * width(STORAGES[cls.name])
        if count < 0 or machine.position > end:
            raise CorruptFile(label, found=f"a storage of {count} elements", expected="fewer")
        held[_key(key)] = _Held(cls, count, start)
    for key, whole, first, count in machine.load():
        root = held[_key(whole)]
        held[_key(key)] = root._replace(view=(_key(whole), first, count))
    return held


def _tensors(
    machine: Machine, data: mmap.mmap, begin: int, end: int, held: dict[str, _Held], label: str
) -> dict[str, Opaque]:
    """Each tensor as the record of a call: a pickle of `(key, storage, class)`, then numbers."""
    tensors: dict[str, Opaque] = {}
    for _ in range(_counted(machine, begin, label)):
        key, storage, _ = machine.load()
        at = machine.position
        (axes,) = struct.unpack_from("<i", data, at)  # the next four bytes are of no use
        machine.position = at + 16 + 16 * axes
        if not 0 <= axes <= _MAX_AXES or machine.position > end:
            raise CorruptFile(label, found=f"a tensor of {axes} axes")
        numbers = struct.unpack_from(f"<{2 * axes + 1}q", data, at + 8)
        args = (_reference(_key(storage), held), numbers[-1], numbers[:axes], numbers[axes:-1])
        tensors[_key(key)] = Opaque(_REBUILD, args)
    return tensors


def _object(
    data: mmap.mmap,
    begin: int,
    end: int,
    held: dict[str, _Held],
    tensors: dict[str, Opaque],
    label: str,
    room: Room,
) -> tuple[Any, int]:
    def persistent(pid: Any) -> Any:
        if isinstance(pid, tuple):  # a class, and its source, which is not needed
            return pid[0] if pid else None  # pyright: ignore[reportUnknownVariableType]
        key = _key(pid)
        return tensors[key] if key in tensors else _reference(key, held)

    return Machine(data[begin:end], label, persistent, room).load(), end - begin


def _reference(key: str, held: dict[str, _Held]) -> Reference:
    storage = held[key]
    root = storage.view[0] if storage.view else key
    return Reference(("storage", storage.cls, root, "cpu", storage.elements, storage.view))


def _key(value: Any) -> str:
    """Of a storage or a tensor: a number, or its digits."""
    if type(value) is int and value.bit_length() <= 64:
        return str(value)
    if isinstance(value, str) and len(value) <= 20:
        return value
    raise ValueError("a key that is no number")
