"""A file of `torch.save` as its pickled object over its storages, whether a zip or older."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any, NamedTuple

from regraft.errors import CorruptFile, UnknownFormat
from regraft.formats import _zip
from regraft.formats._pickle import Global, Machine, Reference
from regraft.formats._torch_archive import Archive
from regraft.formats._torch_storages import LEGACY_HEADS, LEGACY_MAGIC, Storages, named, width

_LEGACY_PROTOCOL = 1001


class Pickled(NamedTuple):
    """The object, the storages that it refers to, and the size of its pickle in bytes."""

    root: Any
    storages: Storages
    size: int


def pickled(path: Path) -> Pickled:
    """**Raises** `UnknownFormat` for a file of another kind, `CorruptFile` and `UnsafeFile`."""
    with path.open("rb") as file:
        head = file.read(64)
    if _zip.is_zip(head):
        archive = Archive(path, "data.pkl")
        root, size = archive.unpickled("data.pkl")
        return Pickled(root, archive.storages(), size)
    if head.startswith(LEGACY_HEADS):
        return legacy(path)
    raise UnknownFormat(str(path), found=f"a file that begins with {head[:8]!r}")


def legacy(path: Path) -> Pickled:
    """Of a file from before PyTorch 1.6: five pickles in a row, then the storages.

    Storages are little-endian whatever machine wrote them; what the third pickle says of byte
    order is of no use, and PyTorch does not look at it either.
    """
    references: list[Any] = []

    def persistent(pid: Any) -> Any:
        match pid:
            case ("module", Global() as cls, *_):  # a class, and its source, which is not needed
                return cls
            case _:
                references.append(pid)
                return Reference(pid)

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        machine = Machine(data, path.name, persistent)
        magic, protocol, system = machine.load(), machine.load(), machine.load()
        if magic != LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
            raise CorruptFile(
                path.name, found="another protocol", expected=f"protocol {_LEGACY_PROTOCOL}"
            )
        begin = machine.position
        root = machine.load()
        size = machine.position - begin
        places = _places(machine, references, data, path.name)

    def locate(key: str, needed: int) -> tuple[int, int]:
        return places[key]

    return Pickled(root, Storages(path.name, locate), size)


def _places(
    machine: Machine, references: list[Any], data: mmap.mmap, label: str
) -> dict[str, tuple[int, int]]:
    """Start and size in bytes of each storage, in the order of the list of keys."""
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
        said = int.from_bytes(data[position : position + 8], "little")
        start, size = position + 8, count * element
        if said != count or start + size > len(data):
            raise CorruptFile(
                f"{label}, storage {key[:100]!r} at offset {position}",
                found=f"{said} elements, {len(data) - start} bytes left",
                expected=f"{count} elements of {element} bytes",
                hint="the file is cut off or damaged; get it again",
            )
        places[key] = start, size
        position = start + size
    return places
