"""Keras 3's `.weights.h5`: weights without a config, so that classes are known by group names.

Where Keras looks for a variable hangs on the model's attributes. Files are written in its own
layout where that is told (`regraft.keras_layout`: the tensors come from a live model, or from a
file of Keras'), else by the tensors' names, which this reader reads and Keras does not. Attributes
of the root say which (`regraft.layout`), and hold the tensors' names and metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft import keras_layout
from regraft.atomic import replacing_path
from regraft.errors import CorruptFile, FormatError, MissingDependency
from regraft.formats import Sample, TensorSource
from regraft.formats._hdf5 import LAYOUT, Hdf5, Hdf5Stored, dialect
from regraft.formats._keras_store import Store
from regraft.keras_layout import Constant, Layout
from regraft.tensors import Stored, StoredTensor, TensorInfo, numpy_dtype

if TYPE_CHECKING:
    from regraft.tensors import Array

EXTRA = ""
SUFFIXES = (".weights.h5",)
WRITES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "bfloat16", "float32", "float64", "complex64", "complex128",
)  # fmt: skip

_KERAS, _BY_NAME = "keras", "names"
_NAMES, _METADATA = "regraft.names", "regraft.metadata"
_MAX_TEXT = 64
# HDF5 keeps attributes of at most 64 KiB.
_PART = 60_000
_NOT_KERAS = (
    "not in Keras' own layout, which these tensors' origin did not tell: load_weights cannot read "
    "it. Load it into the model (rg.load) and save that (rg.save), and Keras can"
)

Listed = Sequence[tuple[TensorInfo, "Callable[[], Array]"]]


def _library() -> Any:
    """h5py, which writes. **Raises** `MissingDependency`."""
    try:
        import h5py
    except ImportError as error:
        raise MissingDependency("h5py", extra="keras", purpose="writing HDF5") from error
    return h5py


def sniff(sample: Sample) -> bool:
    return dialect(sample) == "weights"


def open(path: Path) -> Stored:
    """Lists the weights. **Raises** `CorruptFile`, `UnsafeFile`."""
    file = Hdf5(path, path.name, path.stat().st_size)
    try:
        store = Store(file, None)
        layout = file.text("", LAYOUT, _MAX_TEXT)
        tensors = _renamed(store.tensors, _told(file, _NAMES), path.name)
        stored = Hdf5Stored("keras_weights_h5", file, tensors)
        stored.order = store.order
        stored.metadata = _told(file, _METADATA)
        if layout == _BY_NAME:
            stored.notes = (_NOT_KERAS,)
        else:
            stored.metadata = {**stored.metadata, keras_layout.KEY: store.layout(tensors)}
        return stored
    except BaseException:
        file.close()
        raise


def _told(file: Hdf5, attribute: str) -> dict[str, str]:
    """Text by text, as `_tell` wrote it; empty where it did not."""
    parts = file.texts("", attribute) or []
    try:
        found = json.loads("".join(parts) or "{}")
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{file.label}, attribute {attribute!r}", found=str(error)) from error
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise CorruptFile(f"{file.label}, attribute {attribute!r}", found="no texts by name")
    return found


def _renamed(
    tensors: list[StoredTensor], names: Mapping[str, str], label: str
) -> list[StoredTensor]:
    """Tensors under the names that the file keeps for their places, and in that order; first."""
    if len(set(names.values())) != len(names):
        raise CorruptFile(f"{label}, attribute {_NAMES!r}", found="a name twice")
    ranks = {place: rank for rank, place in enumerate(names)}
    found = [t._replace(path=(names.get(t.where),)) if t.where in names else t for t in tensors]
    return sorted(found, key=lambda t: ranks.get(t.where, len(ranks)))


# Writing


def write(path: Path, tensors: TensorSource, metadata: Mapping[str, str]) -> None:
    """Writes one array at a time; names and metadata are kept in attributes.

    Keras' `load_weights` reads the file where `metadata` tells the layout of just these tensors
    (which is then not kept as text: reading the file tells it again). Ties are lost: each of them
    is written whole.

    **Raises** `FormatError` for dtypes that Keras' files do not hold, and for names that HDF5
    cannot: with empty parts or those of dots, or one that is the beginning of another;
    `CorruptFile` for a layout that is none; `MissingDependency`.
    """
    listed = list(tensors)
    for info, _ in listed:
        if info.dtype not in WRITES:
            raise FormatError(
                f"{path.name}, tensor {info.name!r}",
                found=f"dtype {info.dtype}",
                expected=f"one that Keras' files hold: {', '.join(WRITES)}",
                hint="convert it first, or write .safetensors",
            )
    layout = _layout(metadata, listed, path.name)
    places = {info.name: info.name for info, _ in listed}
    kept = dict(metadata)
    if layout is not None:
        places = {what: at for at, what in keras_layout.places(layout) if isinstance(what, str)}
        del kept[keras_layout.KEY]
    constants = [(at, c) for at, c in keras_layout.places(layout or {}) if isinstance(c, Constant)]
    _check_paths([*places.values(), *(at for at, _ in constants)], layout or {}, path.name)
    h5py = _library()
    with replacing_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs[LAYOUT] = _BY_NAME if layout is None else _KERAS
        _tell(file, _NAMES, {places[info.name]: info.name for info, _ in listed})
        _tell(file, _METADATA, kept)
        for at, group in (layout or {}).items():
            made = file.require_group(at) if at else file
            if group.name is not None:
                made.attrs["name"] = group.name
        for info, get in listed:
            _put(file, places[info.name], get())
        for at, constant in constants:
            _put(file, at, _array(constant, f"{path.name}, {at!r}"))


def _layout(metadata: Mapping[str, str], listed: Listed, label: str) -> Layout | None:
    """Keras' layout, where it is told of these tensors and no others."""
    if keras_layout.KEY not in metadata:
        return None
    layout = keras_layout.decode(metadata[keras_layout.KEY], label)
    named = [what for _, what in keras_layout.places(layout) if isinstance(what, str)]
    return layout if sorted(named) == sorted(info.name for info, _ in listed) else None


def _check_paths(paths: Sequence[str], groups: Iterable[str], label: str) -> None:
    """**Raises** `FormatError` for what HDF5 cannot hold, or not beside the others."""
    inner = {path for path in groups if path}
    for path in (*paths, *inner):
        parts = path.split("/")
        inner.update("/".join(parts[:count]) for count in range(1, len(parts)))
    known = set[str]()
    for path in (*paths, *inner):
        odd = any(part in ("", ".", "..") or "\0" in part for part in path.split("/"))
        if odd or path in known:
            raise FormatError(
                f"{label}, {path!r}",
                found="a name that HDF5 cannot hold, or that is the beginning of another one",
                expected="parts that are not empty and not dots, arrays at the ends of a tree",
                hint="rename it, or write .safetensors",
            )
        known.add(path)


def _tell(file: Any, attribute: str, texts: Mapping[str, str]) -> None:
    import numpy as np

    text = json.dumps(dict(texts)).encode()
    if texts:
        for part, start in enumerate(range(0, len(text), _PART)):
            file.attrs[f"{attribute}{part}"] = np.array([text[start : start + _PART]])


def _put(file: Any, at: str, array: Array) -> None:
    if array.dtype.name == "bfloat16":  # which HDF5 does not know: Keras' way to keep it
        file.create_dataset(at, data=array.view("V2")).attrs["dtype"] = "bfloat16"
    else:
        file.create_dataset(at, data=array)


def _array(what: Constant, where: str) -> Array:
    import numpy as np

    try:
        if what.dtype in WRITES:
            return np.array(what.values, numpy_dtype(what.dtype)).reshape(what.shape)
        found = f"dtype {what.dtype!r}"
    except (TypeError, ValueError, OverflowError) as error:
        found = str(error)
    raise CorruptFile(where, found=f"a constant that is none: {found}", expected="a few numbers")
