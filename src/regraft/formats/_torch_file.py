"""A file of `torch.save` as its pickled object over its storages, whether a zip or older."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any, NamedTuple

from regraft.errors import CorruptFile, UnknownFormat
from regraft.formats import _zip
from regraft.formats._bytes import Mapped, beginning
from regraft.formats._pickle import Machine
from regraft.formats._pickle_records import Global, Reference
from regraft.formats._room import Room
from regraft.formats._torch_archive import Archive
from regraft.formats._torch_storages import LEGACY_HEADS, LEGACY_MAGIC, Storages, named, width
from regraft.locations import ahead

_LEGACY_PROTOCOL = 1001
# Bytes of a storage's number of elements.
_COUNT = 8


class Pickled(NamedTuple):
    """The object, the storages that it refers to, the size of its pickle in bytes, the file that
    arrays are read from, and what is left of its room."""

    root: Any
    storages: Storages
    size: int
    file: Mapped
    room: Room


def pickled(path: Path, room: Room | None = None) -> Pickled:
    """**Raises** `UnknownFormat` for a file of another kind, `CorruptFile` and `UnsafeFile`."""
    with path.open("rb") as file:
        head = file.read(64)
    if _zip.is_zip(head):
        archive = Archive(path, "data.pkl", room=room)
        root, size = archive.unpickled("data.pkl")
        return Pickled(root, archive.storages(), size, archive.file, archive.room)
    if head.startswith(LEGACY_HEADS):
        return legacy(path, room)
    raise UnknownFormat(str(path), found=f"a file that begins with {head[:8]!r}")


def legacy(path: Path, room: Room | None = None) -> Pickled:
    """Of a file from before PyTorch 1.6: five pickles in a row, then the storages.

    Storages are little-endian whatever machine wrote them; what the third pickle says of byte
    order is of no use, and PyTorch does not look at it either.
    """
    shared = room or Room(path.stat().st_size)
    return beginning(path, lambda data: _legacy(path, data, shared))


def _legacy(path: Path, data: mmap.mmap | bytes, room: Room) -> Pickled:
    references: list[Any] = []

    def persistent(pid: Any) -> Any:
        match pid:
            case ("module", Global() as cls, *_):  # a class, and its source, which is not needed
                return cls
            case _:
                references.append(pid)
                return Reference(pid)

    machine = Machine(data, path.name, persistent, room)
    magic, protocol, system = machine.load(), machine.load(), machine.load()
    if magic != LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
        raise CorruptFile(
            path.name, found="another protocol", expected=f"protocol {_LEGACY_PROTOCOL}"
        )
    begin = machine.position
    root = machine.load()
    size = machine.position - begin
    places = _places(machine, references, path)

    def locate(key: str, needed: int) -> tuple[int, int]:
        return places[key]

    return Pickled(root, Storages(path.name, locate), size, Mapped(path), room)


def _places(machine: Machine, references: list[Any], path: Path) -> dict[str, tuple[int, int]]:
    """Start and size in bytes of each storage, in the order of the list of keys."""
    label, end = path.name, path.stat().st_size
    sizes: dict[str, tuple[int, int]] = {}
    for pid in references:
        key, dtype, count, _ = named(pid, label)
        if sizes.setdefault(key, (count, width(dtype))) != (count, width(dtype)):
            raise CorruptFile(f"{label}, storage {key[:100]!r}", found="two sizes of one storage")
    keys = machine.load()
    listed = keys if isinstance(keys, list) else []
    texts = [key for key in listed if isinstance(key, str)]
    if len(texts) != len(listed) or len(texts) != len(sizes) or set(texts) != sizes.keys():
        raise CorruptFile(label, found="a list of storages unlike those that tensors use")
    places: dict[str, tuple[int, int]] = {}
    position = machine.position
    for key in texts:
        count, element = sizes[key]
        start, size = position + _COUNT, count * element
        if start + size > end:
            raise _damaged(label, key, f"{end - start} bytes left", f"{count} of {element} bytes")
        places[key] = start, size
        position = start + size
    # Before each storage's bytes stands its number of elements, once more.
    ahead(path, [(start - _COUNT, start) for start, _ in places.values()])
    with path.open("rb") as file:
        for key, (start, _) in places.items():
            file.seek(start - _COUNT)
            held = int.from_bytes(file.read(_COUNT), "little")
            if held != sizes[key][0]:
                raise _damaged(label, key, f"{held} elements", f"{sizes[key][0]}")
    return places


def _damaged(label: str, key: str, found: str, expected: str) -> CorruptFile:
    return CorruptFile(
        f"{label}, storage {key[:100]!r}",
        found=found,
        expected=expected,
        hint="the file is cut off or damaged; get it again",
    )
