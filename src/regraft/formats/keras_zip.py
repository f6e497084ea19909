"""Keras 3's `.keras`: a zip of the model's config and its weight store.

The config gives the layers in order with their classes and settings, so that names, order and
variables are exact. The store is read where it lies in the archive; only a compressed one is
unpacked, into a temporary file where it is large.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from regraft import keras_layout
from regraft.errors import CorruptFile, FormatError
from regraft.formats import Sample, _zip
from regraft.formats._hdf5 import Hdf5, Hdf5Stored
from regraft.formats._keras_layers import model_of
from regraft.formats._keras_store import Store
from regraft.tensors import Stored

EXTRA = ""
SUFFIXES: tuple[str, ...] = ()

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_MODEL = "model_config"
_MAX_CONFIG = 4 << 20


def sniff(sample: Sample) -> bool:
    names = sample.zip_names
    return _CONFIG in names and any(name.startswith("model.weights") for name in names)


def open(path: Path) -> Stored:
    """Lists the weights. **Raises** `CorruptFile`, `UnsafeFile`."""
    members = _zip.members(path)
    if _CONFIG not in members or _WEIGHTS not in members:
        raise FormatError(
            path.name,
            found=f"weights in {next((n for n in members if n.startswith('model.w')), 'nothing')}",
            expected=f"{_CONFIG} and {_WEIGHTS}",
            hint="save the model again without another weights format or shards",
        )
    config = _text(path, members[_CONFIG])
    facts = _facts(path, _text(path, members[_METADATA])) if _METADATA in members else {}
    metadata = {**facts, _MODEL: config}
    [weights] = _zip.located(path, [members[_WEIGHTS]])
    label = f"{path.name}, member {_WEIGHTS}"
    if weights.stored:
        file = Hdf5(path, label, weights.size, weights.offset)
    else:
        file = Hdf5(_zip.unpacked(path, weights), label, weights.size)
    try:
        store = Store(file, model_of(config))
    except BaseException:
        file.close()
        raise
    stored = Hdf5Stored("keras_zip", file, store.tensors)
    stored.order = store.order
    stored.metadata = {**metadata, keras_layout.KEY: store.layout(store.tensors)}
    return stored


def _text(path: Path, member: _zip.Member) -> str:
    try:
        return _zip.read(path, member, _MAX_CONFIG).decode()
    except (UnicodeDecodeError, zlib.error) as error:
        raise CorruptFile(f"{path.name}, member {member.name!r}", found=str(error)) from error


def _facts(path: Path, text: str) -> dict[str, str]:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{path.name}, member {_METADATA!r}", found=str(error)) from error
    items = found.items() if isinstance(found, dict) else ()
    return {str(key): value for key, value in items if isinstance(value, str)}
