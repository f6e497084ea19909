"""Keras 3's weights layout: `layers/conv2d_3/vars/0`, in `.weights.h5` and inside `.keras`.

Groups are named by class and running number, variables by number; a layer's own name is the
attribute `name` of its `vars` group. Variable names follow from the class and its settings.
A tensor's name is what Keras calls the variable: `block1/conv/kernel`.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from regraft.formats._hdf5 import File
from regraft.formats._keras_layers import CLASSES, Layer, variables_of
from regraft.tensors import Stored, StoredTensor

if TYPE_CHECKING:
    from regraft.tensors import Array, Order, Slices

_OPTIMIZER = "optimizer"


class _Group(NamedTuple):
    """A layer's group: where it is, the names of its layers, and what its class is."""

    names: tuple[str, ...]
    class_name: str
    config: dict[str, object] | None
    rank: int


def snake(class_name: str) -> str:
    """Keras' way of writing a class name in lower case: Conv2DTranspose → conv2d_transpose."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


_CLASS_OF = {snake(name): name for name in CLASSES}


class KerasWeights(Stored):
    """The variables below `vars` groups of an HDF5 file, with the names that can be recovered."""

    framework = "keras"
    separator = "/"

    def __init__(
        self, format: str, file: File, layers: tuple[Layer, ...] = (), config: str = ""
    ) -> None:
        self.format = format
        self._file = file
        self.metadata = {"model_config": config} if config else {}
        self.order: Order = "definition" if layers else "sorted"
        known = _known_groups(layers, "", Counter())
        held: dict[str, list[tuple[str, tuple[int, ...], str]]] = {}
        for path, shape, dtype in file.datasets():
            group, _, index = path.rpartition("/")
            if dtype is not None and index.isdigit() and group.endswith("vars"):
                held.setdefault(group[: -len("vars")].strip("/"), []).append((path, shape, dtype))
        found: list[tuple[tuple[int, int], StoredTensor]] = []
        for position, (group, variables) in enumerate(held.items()):
            variables.sort(key=lambda v: int(v[0].rpartition("/")[2]))
            layer = known.get(group) or self._guessed(group, position + len(known))
            found += [((layer.rank, i), t) for i, t in enumerate(_tensors(group, layer, variables))]
        found.sort(key=lambda item: item[0])
        self.tensors = _unique([tensor for _, tensor in found])

    def _guessed(self, group: str, rank: int) -> _Group:
        """Names from the attributes along the path; the class from the group's name."""
        parts = group.split("/") if group else []
        names: list[str] = []
        for depth in range(1, len(parts) + 1):
            inner = "/".join([*parts[:depth], "vars"])
            name = self._file.attribute(inner, "name") if self._file.has(inner) else None
            if isinstance(name, str):
                names.append(name)
        base = re.sub(r"_\d+$", "", parts[-1]) if parts else ""
        return _Group(tuple(names) or tuple(parts), _CLASS_OF.get(base, ""), None, rank)

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        return self._file.read(tensor.where, slices)

    def close(self) -> None:
        self._file.close()


def _known_groups(layers: tuple[Layer, ...], base: str, rank: Counter[str]) -> dict[str, _Group]:
    """Groups by path, as the config's layers are numbered: each class counts for itself."""
    known: dict[str, _Group] = {}
    used: Counter[str] = Counter()
    for layer in layers:
        name = snake(layer.class_name)
        number = used[name]
        used[name] += 1
        group = f"{base}layers/{name}{f'_{number}' if number else ''}"
        rank["next"] += 1
        known[group] = _Group(layer.path, layer.class_name, layer.config, rank["next"])
        if layer.layers:
            known |= _known_groups(layer.layers, f"{group}/", rank)
    return known


def _tensors(
    group: str, layer: _Group, variables: list[tuple[str, tuple[int, ...], str]]
) -> list[StoredTensor]:
    names = variables_of(layer.class_name, layer.config, [shape for _, shape, _ in variables])
    container = (_OPTIMIZER,) if group.split("/")[0] == _OPTIMIZER else ()
    counters = "seed_generator" in group
    return [
        StoredTensor(
            (*container, *layer.names, name),
            shape,
            dtype,
            path,
            module=layer.class_name,
            kind="counter" if counters else "weight",
        )
        for name, (path, shape, dtype) in zip(names, variables, strict=True)
    ]


def _unique(tensors: list[StoredTensor]) -> tuple[StoredTensor, ...]:
    """Where two variables come to one name, both are called by their path in the file."""
    count = Counter(tensor.path for tensor in tensors)
    return tuple(
        t if count[t.path] == 1 else t._replace(path=tuple(t.where.split("/"))) for t in tensors
    )
