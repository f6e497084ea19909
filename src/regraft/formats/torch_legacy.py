"""PyTorch's files from before 1.6: five pickles in a row, then the storages one after another."""

from __future__ import annotations

import mmap
from pathlib import Path

from regraft.errors import CorruptFile
from regraft.formats import Sample
from regraft.formats._bytes import Mapped
from regraft.formats._pickle import Machine
from regraft.formats._torch_tensors import LEGACY_HEADS, LEGACY_MAGIC, TorchStored, storage_of
from regraft.locations import ahead, is_local
from regraft.tensors import DTYPE_BITS, Stored

EXTRA = ""
SUFFIXES: tuple[str, ...] = ()

_PROTOCOL = 1001
_COUNT = 8
_FIRST = 1 << 18


def sniff(sample: Sample) -> bool:
    return sample.head.startswith(LEGACY_HEADS)


def open(path: Path) -> Stored:
    """Lists the tensors. **Raises** `CorruptFile` and `UnsafeFile`."""
    if is_local(path):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _listed(path, data)
    # Nothing says how long the pickles are: more is fetched until they are whole.
    size = path.stat().st_size
    length = _FIRST
    while True:
        with path.open("rb") as file:
            beginning = file.read(length)
        try:
            return _listed(path, beginning)
        except CorruptFile:
            if length >= size:
                raise
        length *= 4


def _listed(path: Path, data: mmap.mmap | bytes) -> Stored:
    machine = Machine(data, path.name)
    magic, protocol, system = machine.load(), machine.load(), machine.load()
    if magic != LEGACY_MAGIC or protocol != _PROTOCOL or not isinstance(system, dict):
        raise CorruptFile(path.name, found=f"protocol {protocol!r}", expected=f"{_PROTOCOL}")
    root = machine.load()
    places = _storages(machine, path)
    big_endian = system.get("little_endian") is False

    def locate(key: str, count: int, width: int) -> tuple[int, int]:
        return places[key]

    return TorchStored("torch_legacy", root, Mapped(path), locate, big_endian)


def _storages(machine: Machine, path: Path) -> dict[str, tuple[int, int]]:
    """Start and size in bytes of each storage, in the order of the list of keys."""
    label, end = path.name, path.stat().st_size
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
        start, size = position + _COUNT, count * width
        if start + size > end:
            raise _damaged(label, key, f"{end - start} bytes left", f"{count} of {width} bytes")
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
        f"{label}, storage {key!r}",
        found=found,
        expected=expected,
        hint="the file is cut off or damaged; get it again",
    )
