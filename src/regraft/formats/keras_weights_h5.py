"""Keras 3's `.weights.h5`, written by `model.save_weights`."""

from __future__ import annotations

from pathlib import Path

from regraft.formats import Sample
from regraft.formats._hdf5 import MAGIC, File, has_numbered_weights
from regraft.formats._keras_weights import KerasWeights
from regraft.tensors import Stored

EXTRA = "keras"
SUFFIXES: tuple[str, ...] = ()


def sniff(sample: Sample) -> bool:
    return sample.head.startswith(MAGIC) and has_numbered_weights(sample.path)


def open(path: Path) -> Stored:
    """Lists the weights. **Raises** `CorruptFile`, `UnsafeFile`, `MissingDependency`."""
    return KerasWeights("keras_weights_h5", File(path))
