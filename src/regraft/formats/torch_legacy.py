"""PyTorch's files from before 1.6: five pickles in a row, then the storages one after another."""

from __future__ import annotations

import mmap
from pathlib import Path

from regraft.errors import CorruptFile
from regraft.formats import Sample
from regraft.formats._bytes import Mapped
from regraft.formats._pickle import Machine
from regraft.formats._torch_tensors import LEGACY_HEADS, LEGACY_MAGIC, TorchStored, storage_of
from regraft.tensors import DTYPE_BITS, Stored

EXTRA = ""
SUFFIXES: tuple[str, ...] = ()

_PROTOCOL = 1001


def sniff(sample: Sample) -> bool:
    return sample.head.startswith(LEGACY_HEADS)


def open(path: Path) -> Stored:
    """Lists the tensors. **Raises** `CorruptFile` and `UnsafeFile`."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        machine = Machine(data, path.name)
        magic, protocol, system = machine.load(), machine.load(), machine.load()
        if magic != LEGACY_MAGIC or protocol != _PROTOCOL or not isinstance(system, dict):
            raise CorruptFile(path.name, found=f"protocol {protocol!r}", expected=f"{_PROTOCOL}")
        root = machine.load()
        places = _storages(machine, data, path.name)
    big_endian = system.get("little_endian") is False

    def locate(key: str, count: int, width: int) -> tuple[int, int]:
        return places[key]

    return TorchStored("torch_legacy", root, Mapped(path), locate, big_endian)


def _storages(machine: Machine, data: mmap.mmap, label: str) -> dict[str, tuple[int, int]]:
    """Start and size in bytes of each storage, in the order of the list of keys."""
    sizes: dict[str, tuple[int, int]] = {}
    for reference in machine.references:
        key, dtype, count = storage_of(reference, label)
        sizes[key] = count, DTYPE_BITS[dtype] // 8
    keys = machine.load()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(sizes):
        raise CorruptFile(label, found="a list of storages unlike those that tensors use")
    places: dict[str, tuple[int, int]] = {}
    position = machine.position
    for key in keys:
        count, width = sizes[key]
        held = int.from_bytes(data[position : position + 8], "little")
        start, size = position + 8, count * width
        if held != count or start + size > len(data):
            raise CorruptFile(
                f"{label}, storage {key!r} at offset {position}",
                found=f"{held} elements, {len(data) - start} bytes left",
                expected=f"{count} elements of {width} bytes",
                hint="the file is cut off or damaged; get it again",
            )
        places[key] = start, size
        position = start + size
    return places
