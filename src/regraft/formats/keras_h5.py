"""Keras' HDF5 files with named weights: whole models and weights of Keras 1 and 2, and Keras 3's
legacy `.h5`.

The order of layers and weights stands in the attributes `layer_names` and `weight_names`; the
groups themselves are sorted as text (beta before gamma, conv2d_10 before conv2d_2). A tensor's
name is its HDF5 path inside the chosen group.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.atomic import replacing_path
from regraft.errors import CorruptFile, FormatError, MissingDependency
from regraft.formats import Sample
from regraft.formats._hdf5 import Dataset, Hdf5, Hdf5Stored, dialect
from regraft.formats._keras_layers import COUNTERS, ROLES, model_of, owners
from regraft.tensors import Order, Stored, StoredTensor

if TYPE_CHECKING:
    from regraft.tensors import Array

EXTRA = ""
SUFFIXES: tuple[str, ...] = ()
REFILLS = (".h5", ".hdf5")

MAX_CONFIG = 4 << 20
_WEIGHTS, _OPTIMIZER = "model_weights", "optimizer_weights"
# The parts of Keras' attention layers, which are layers of their own but stand in no config.
_ATTENTION = {"query", "key", "value", "attention_output"}


def sniff(sample: Sample) -> bool:
    return dialect(sample) == "legacy"


def open(path: Path) -> Stored:
    """Lists the weights. **Raises** `CorruptFile`, `UnsafeFile`."""
    file = Hdf5(path, path.name, path.stat().st_size)
    try:
        return _listed(file)
    except BaseException:
        file.close()
        raise


def refill(
    base: Path, path: Path, tensors: Iterable[tuple[StoredTensor, Callable[[], Array]]]
) -> None:
    """A copy of a file with other values of these weights: their names, order and attributes, and
    the model's architecture stay as Keras wrote them. An optimizer's state, which belongs to the
    former values, is left out.

    **Raises** `FormatError` for dtypes that HDF5 does not know; `MissingDependency`.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingDependency("h5py", extra="keras", purpose="writing HDF5") from error
    with replacing_path(path) as temporary:
        shutil.copyfile(base, temporary)
        with h5py.File(temporary, "r+") as file:
            if _OPTIMIZER in file:
                del file[_OPTIMIZER]
            for tensor, get in tensors:
                _put(file, str(tensor.where), get(), path.name)


def _put(file: Any, at: str, array: Array, label: str) -> None:
    """Values of the dataset's own dtype go into its place; others need another dataset."""
    if array.dtype.kind not in "biufc":
        raise FormatError(
            f"{label}, {at!r}",
            found=f"dtype {array.dtype}",
            expected="one that HDF5 knows",
            hint="convert it first, or export to .safetensors",
        )
    dataset = file[at]
    if dataset.dtype == array.dtype and dataset.shape == array.shape:
        dataset[...] = array
        return
    kept = dict(dataset.attrs)
    del file[at]
    file.create_dataset(at, data=array).attrs.update(kept)


def _listed(file: Hdf5) -> Stored:
    root = _WEIGHTS if _WEIGHTS in file.groups else ""
    config = file.text("", "model_config", MAX_CONFIG)
    model = model_of(config or "")
    known = owners(model) if model else {}
    named = _in_order(file, root)
    order: Order = "definition" if named else "sorted"
    paths = dict.fromkeys(named)
    if _OPTIMIZER in file.groups:
        paths.update(dict.fromkeys(_weights_of(file, _OPTIMIZER)))
    # What no attribute names comes last, in the file's own order.
    strays = [name for name in file.datasets if name not in paths]
    paths.update(dict.fromkeys(strays))
    if any(name.startswith(f"{root}/" if root else "") for name in strays if _weight(name)):
        order = "sorted"
    tensors = [_tensor(file.datasets[name], known) for name in paths]
    stored = Hdf5Stored("keras_h5", file, tensors)
    stored.order = order
    facts = {
        key: file.text("", key, MAX_CONFIG) or file.text(root, key, MAX_CONFIG)
        for key in ("keras_version", "backend")
    }
    facts["model_config"] = config
    stored.metadata = {key: value for key, value in facts.items() if value is not None}
    return stored


def _in_order(file: Hdf5, root: str) -> list[str]:
    """Paths of the weights as the attributes list them; empty where the file is silent."""
    found: list[str] = []
    for layer in file.texts(root, "layer_names") or ():
        base = f"{root}/{layer}" if root else layer
        if base not in file.groups:
            raise CorruptFile(
                f"{file.label}, layer {layer!r}",
                found="no such group",
                expected="a group for each of layer_names",
                hint="the file was not written to its end; get it again",
            )
        found += _weights_of(file, base)
    top = f"{root}/top_level_model_weights".strip("/")
    return found + (_weights_of(file, top) if top in file.groups else [])


def _weights_of(file: Hdf5, group: str) -> list[str]:
    found: list[str] = []
    for name in file.texts(group, "weight_names") or ():
        path = f"{group}/{name}"
        if path not in file.datasets:
            raise CorruptFile(
                f"{file.label}, {path!r}",
                found="no such values",
                expected="values for each of weight_names",
                hint="the file was not written to its end; get it again",
            )
        found.append(path)
    return found


def _weight(path: str) -> bool:
    return not path.startswith(f"{_OPTIMIZER}/")


def _tensor(data: Dataset, known: dict[str, tuple[str, dict[str, object]]]) -> StoredTensor:
    container, _, rest = data.path.partition("/")
    if container not in (_WEIGHTS, _OPTIMIZER):
        container, rest = "", data.path
    # A layer's name is part of the tensor's, not a container: it may well be `model` or `ema`.
    path = (container, rest) if container else (rest,)
    *owning, last = rest.split("/")
    leaf = last.partition(":")[0]
    # Inside a nested model the weight's own name tells the inner layer.
    owner = next((name for name in reversed(owning) if name in known), "")
    module = known[owner][0] if owner and container != _OPTIMIZER else ""
    if module.endswith("Attention") and owning[-1] in _ATTENTION:
        module = "EinsumDense"
    return StoredTensor(
        path,
        data.shape,
        data.dtype,
        data.path,
        module=module,
        # Old Keras writes `convolution2d_1_W`, which no rule can take apart for sure.
        role=leaf if leaf in ROLES and owning and container != _OPTIMIZER else "",
        kind="counter" if leaf in COUNTERS else "weight",
    )
