"""PyTorch's files from before 1.6: five pickles in a row, then the storages one after another.

Storages are little-endian whatever machine wrote them; what the third pickle says of byte order is
of no use, and PyTorch does not look at it either.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from regraft.errors import CorruptFile
from regraft.formats import Sample
from regraft.formats._bytes import Mapped
from regraft.formats._pickle import Global, Machine, Reference
from regraft.formats._torch_storages import LEGACY_HEADS, LEGACY_MAGIC, Storages, named, width
from regraft.formats._torch_tensors import Collected, TorchStored
from regraft.tensors import Stored

EXTRA = ""
SUFFIXES: tuple[str, ...] = ()

_PROTOCOL = 1001


def sniff(sample: Sample) -> bool:
    return sample.head.startswith(LEGACY_HEADS)


def open(path: Path) -> Stored:
    """Lists the tensors. **Raises** `CorruptFile` and `UnsafeFile`."""
    references: list[Reference] = []

    def persistent(pid: Any) -> Any:
        match pid:
            case ("module", Global() as cls, *_):  # a class, and its source, which is not needed
                return cls
            case _:
                references.append(Reference(pid))
                return references[-1]

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        machine = Machine(data, path.name, persistent)
        magic, protocol, system = machine.load(), machine.load(), machine.load()
        if magic != LEGACY_MAGIC or protocol != _PROTOCOL or not isinstance(system, dict):
            raise CorruptFile(path.name, found="another protocol", expected=f"{_PROTOCOL}")
        begin = machine.position
        root = machine.load()
        size = machine.position - begin
        places = _places(machine, references, data, path.name)

    def locate(key: str, needed: int) -> tuple[int, int]:
        return places[key]

    collected = Collected(path.name)
    collected.add(root, Storages(path.name, locate), size)
    return TorchStored("torch_legacy", Mapped(path), collected)


def _places(
    machine: Machine, references: list[Reference], data: mmap.mmap, label: str
) -> dict[str, tuple[int, int]]:
    """Start and size in bytes of each storage, in the order of the list of keys."""
    sizes: dict[str, tuple[int, int]] = {}
    for reference in references:
        key, dtype, count, _ = named(reference.pid, label)
        if sizes.setdefault(key, (count, width(dtype))) != (count, width(dtype)):
            raise CorruptFile(f"{label}, storage {key[:100]!r}", found="two sizes of one storage")
    keys = machine.load()
    listed = keys if isinstance(keys, list) else []
    texts = [str(key) for key in listed if isinstance(key, (str, int)) and _is_short(key)]
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


def _is_short(key: str | int) -> bool:
    return isinstance(key, str) or key.bit_length() < 64
