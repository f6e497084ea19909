"""Keras' HDF5 files with named weights: whole models and weights of Keras 1 and 2, and Keras 3's
legacy `.h5`.

The order of layers and weights stands in the attributes `layer_names` and `weight_names`; the
groups themselves are sorted as text. A name is the HDF5 path inside the chosen group.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from regraft.formats import Sample
from regraft.formats._hdf5 import MAGIC, File, has_numbered_weights
from regraft.formats._keras_layers import Layer, flat, layers_of
from regraft.tensors import Stored, StoredTensor

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

EXTRA = "keras"
SUFFIXES: tuple[str, ...] = ()
_WEIGHTS, _OPTIMIZER = "model_weights", "optimizer_weights"
_COUNTERS = ("iteration", "iter", "seed_generator_state", "seed")


def sniff(sample: Sample) -> bool:
    return sample.head.startswith(MAGIC) and not has_numbered_weights(sample.path)


class KerasH5(Stored):
    format = "keras_h5"
    framework = "keras"
    order = "definition"
    separator = "/"

    def __init__(self, path: Path) -> None:
        self._file = file = File(path)
        config = file.attribute("", "model_config")
        self.metadata = {"model_config": config} if isinstance(config, str) else {}
        group = _WEIGHTS if file.has(_WEIGHTS) else ""
        for key in ("keras_version", "backend"):
            value = file.attribute(group, key)
            if isinstance(value, str):
                self.metadata[key] = value
        layers = {layer.path[-1]: layer for layer in flat(layers_of(config or ""))}
        found = {p: (s, d) for p, s, d in file.datasets() if d is not None}
        order = self._order(group)
        if order is None:
            self.order = "sorted"
        ranks = {path: rank for rank, path in enumerate(order or ())}
        listed = sorted(found, key=lambda p: ranks.get(p, len(ranks)))
        self.tensors = tuple(self._tensor(p, *found[p], layers) for p in listed)

    def _order(self, group: str) -> list[str] | None:
        """Paths of the weights in the order they were made, `None` where the file is silent."""
        layers = self._file.names(group, "layer_names")
        if layers is None:
            return None
        order: list[str] = []
        for layer in layers:
            base = f"{group}/{layer}".strip("/")
            names = self._file.names(base, "weight_names") if self._file.has(base) else []
            order += [f"{base}/{name}" for name in names or []]
        return order

    def _tensor(
        self, path: str, shape: tuple[int, ...], dtype: str, layers: dict[str, Layer]
    ) -> StoredTensor:
        container, _, rest = path.partition("/")
        if container not in (_WEIGHTS, _OPTIMIZER):
            container, rest = "", path
        parts = rest.split("/")
        leaf = parts[-1].partition(":")[0]
        # Inside a nested model the weight's own name begins with the inner layer's.
        owner = next((layers[p] for p in reversed(parts[:-1]) if p in layers), None)
        return StoredTensor(
            (container, *parts) if container else tuple(parts),
            shape,
            dtype,
            path,
            module=owner.class_name if owner else "",
            kind="counter" if leaf in _COUNTERS else "weight",
        )

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        return self._file.read(tensor.where, slices)

    def close(self) -> None:
        self._file.close()


def open(path: Path) -> Stored:
    """Lists the weights. **Raises** `CorruptFile`, `UnsafeFile`, `MissingDependency`."""
    return KerasH5(path)
