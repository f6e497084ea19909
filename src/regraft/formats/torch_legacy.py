"""PyTorch's files from before 1.6: five pickles in a row, then the storages one after another."""

from __future__ import annotations

from pathlib import Path

from regraft.formats import Sample
from regraft.formats._pickle_walk import collection_paused
from regraft.formats._torch_file import legacy
from regraft.formats._torch_storages import LEGACY_HEADS
from regraft.formats._torch_tensors import Collected, TorchStored
from regraft.tensors import Stored

EXTRA = ""
SUFFIXES: tuple[str, ...] = ()


def sniff(sample: Sample) -> bool:
    return sample.head.startswith(LEGACY_HEADS)


def open(path: Path) -> Stored:
    """Lists the tensors. **Raises** `CorruptFile` and `UnsafeFile`."""
    with collection_paused():
        loaded = legacy(path)
        collected = Collected(path.name, loaded.room)
        collected.add(loaded.root, loaded.storages, loaded.size)
    return TorchStored("torch_legacy", loaded.file, collected)
