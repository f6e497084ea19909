"""Keras 3's `.weights.h5`: weights without a config, so that classes are known by group names."""

from __future__ import annotations

from pathlib import Path

from regraft.formats import Sample
from regraft.formats._hdf5 import Hdf5, Hdf5Stored, dialect
from regraft.formats._keras_store import Store
from regraft.tensors import Stored

EXTRA = ""
SUFFIXES: tuple[str, ...] = ()


def sniff(sample: Sample) -> bool:
    return dialect(sample) == "weights"


def open(path: Path) -> Stored:
    """Lists the weights. **Raises** `CorruptFile`, `UnsafeFile`."""
    file = Hdf5(path, path.name, path.stat().st_size)
    try:
        store = Store(file, None)
        stored = Hdf5Stored("keras_weights_h5", file, store.tensors)
        stored.order = store.order
        return stored
    except BaseException:
        file.close()
        raise
