"""Plain pickles of containers of numpy arrays, as JAX code saves parameters."""

from __future__ import annotations

from pathlib import Path

from regraft.formats import Sample
from regraft.formats._numpy_pickles import PickledArrays
from regraft.formats._room import Room
from regraft.formats._torch_storages import LEGACY_HEADS
from regraft.tensors import Stored

EXTRA = ""
SUFFIXES: tuple[str, ...] = ()


def sniff(sample: Sample) -> bool:
    framed = sample.head[:1] == b"\x80" and sample.head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    return framed and not sample.head.startswith(LEGACY_HEADS)


def open(path: Path) -> Stored:
    """Lists the arrays; no code of the file is run. **Raises** `CorruptFile`, `UnsafeFile`."""
    data = path.read_bytes()
    return PickledArrays("pickle_file", data, path.name, Room(len(data)))
