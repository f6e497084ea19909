"""Keras 3's weight store: a tree of groups, each layer's variables numbered under its `vars`.

Layers of a model are called after their classes (`layers/conv2d_3`), h5py lists them as text, and
variables have no names. What can be had back: a layer's own name from an attribute of its `vars`;
the order of layers from the config; a variable's name from its layer's class. Without a config
the order is that of the places of the values in the file, which mostly grow as the writer goes
through the model: worth showing, but no proof of the order of definition.
"""

from __future__ import annotations

from typing import NamedTuple

from regraft import keras_layout
from regraft.errors import CorruptFile
from regraft.formats._hdf5 import Hdf5, guarded
from regraft.formats._keras_layers import (
    COUNTERS,
    Layer,
    class_of,
    in_order,
    keys_of,
    module_of,
    part_of,
    variables_of,
)
from regraft.tensors import Order, StoredTensor

OPTIMIZER = "optimizer"
# The lists of a model's layers; the second name is TensorFlow 2.12's.
_LISTS = ("layers", "_layer_checkpoint_dependencies")
_NAME_LIMIT = 1 << 10
# Of a number behind a name; a longer one is none of Keras'.
_DIGITS = 9
_MAX_NAMES = 32 << 20


class _Place(NamedTuple):
    """A group on the way down: the layer it is (if known), its class, and its owner's class."""

    path: str
    layer: Layer | None
    class_name: str
    parent: str
    # Names of the layers around it and its own: what the tensors' names begin with.
    names: tuple[str, ...]


class Store:
    """Lists the tensors of one weight store; `order` is `definition` where it was recovered."""

    def __init__(self, file: Hdf5, model: Layer | None) -> None:
        self._file = file
        self._exact = model is not None
        # For each group that has values in it or below, the place of the first of them.
        self._bearing: dict[str, int] = {}
        self._own_names: dict[str, str | None] = {}
        self._names_left = _MAX_NAMES
        for path, data in file.datasets.items():
            place = data.address if data.offset is None else data.offset
            while path:
                path = path.rpartition("/")[0]
                self._bearing[path] = min(place, self._bearing.get(path, place))
        self._found: list[tuple[tuple[str, ...], StoredTensor]] = []
        self._visit(_Place("", model, model.class_name if model else "", "", ()))
        listed = {tensor.where for _, tensor in self._found}
        strays = sorted((path for path in file.datasets if path not in listed), key=_natural)
        for path in strays:
            data = file.datasets[path]
            inside = path.startswith(f"{OPTIMIZER}/")
            if not inside:
                self._exact = False
            parts = [part for part in path.split("/") if part != "vars" or not inside]
            at = (OPTIMIZER, "/".join(parts[1:])) if inside else (path,)
            whole = data.shape == () and data.dtype.lstrip("u").startswith("int")
            kind = "counter" if inside and whole else "weight"
            self._found.append((at, StoredTensor(at, data.shape, data.dtype, path, kind=kind)))
        self.order: Order = "definition" if self._exact else "stored"

    @property
    def tensors(self) -> list[StoredTensor]:
        """The tensors; two that would share a name both go by their paths in the file."""
        counts: dict[tuple[str, ...], int] = {}
        for path, _ in self._found:
            counts[path] = counts.get(path, 0) + 1
        return [
            tensor._replace(path=path if counts[path] == 1 else (tensor.where,))
            for path, tensor in self._found
        ]

    def _visit(self, place: _Place) -> None:
        if place.path not in self._bearing:
            return
        self._variables(place)
        children = [
            name
            for name in self._file.groups[place.path].children
            if name != "vars" and self._at(place, name) in self._bearing
        ]
        if not place.path:
            children = [name for name in children if name != OPTIMIZER]
        for name in [name for name in _LISTS if name in children]:
            children.remove(name)
            inside = _Place(self._at(place, name), place.layer, place.class_name, "", place.names)
            self._list(inside, place.layer.layers if place.layer else ())
        ordered = in_order(place.class_name, children)
        if ordered is None:
            self._exact = False
            ordered = self._by_place(place.path, children)
        for name in ordered:
            self._part(place, name)

    def _at(self, place: _Place, name: str) -> str:
        return f"{place.path}/{name}" if place.path else name

    def _part(self, place: _Place, name: str) -> None:
        """A layer under an attribute of another one, or a list of such layers."""
        path = self._at(place, name)
        own = self._own_name(path)
        layer = part_of(place.layer, place.class_name, name)
        if own is None and "vars" not in self._file.groups[path].children and layer is None:
            self._list(_Place(path, None, "", place.class_name, place.names), ())
            return
        class_name = layer.class_name if layer else class_of(own or name)
        names = (*place.names, own or name)
        self._visit(_Place(path, layer, class_name, place.class_name, names))

    def _list(self, place: _Place, layers: tuple[Layer, ...]) -> None:
        """The layers of a model or of a plain list, each under its class' name and number."""
        listed = self._file.groups[place.path].children
        keys = [name for name in listed if self._at(place, name) in self._bearing]
        own = {name: self._own_name(self._at(place, name)) for name in listed}
        by_name = {layer.name: layer for layer in layers}
        by_key = dict(keys_of(layers, place.class_name))
        ranks = {layer.name: rank for rank, layer in enumerate(layers)}
        found: dict[str, Layer] = {}
        for key in keys:
            name = own[key]
            layer = by_key.get(key) if name is None else by_name.get(name)
            if layer is not None:
                found[key] = layer
        if len(found) == len(keys):
            keys.sort(key=lambda key: ranks[found[key].name])
        else:
            self._exact = False
            keys = self._by_place(place.path, keys)
            if not self._ascending(keys):
                keys.sort(key=_numbered)
        for key in keys:
            layer = found.get(key)
            name = own[key] or (layer.name if layer else "") or key
            class_name = layer.class_name if layer else class_of(key)
            at = self._at(place, key)
            self._visit(_Place(at, layer, class_name, "", (*place.names, name)))

    def _by_place(self, path: str, children: list[str]) -> list[str]:
        return sorted(children, key=lambda n: self._bearing[f"{path}/{n}" if path else n])

    def _ascending(self, keys: list[str]) -> bool:
        """Whether the numbers of each class go up, as they must in the order of writing."""
        last: dict[str, int] = {}
        for key in keys:
            stem, number = _numbered(key)
            if number <= last.get(stem, -1):
                return False
            last[stem] = number
        return True

    def layout(self, tensors: list[StoredTensor]) -> str:
        """Where Keras finds each of the tensors, as `regraft.keras_layout` tells it."""
        variables: dict[str, dict[str, str | keras_layout.Constant]] = {}
        for tensor in tensors:
            group, _, key = tensor.where.rpartition("/")
            if group.split("/")[0] != OPTIMIZER:
                variables.setdefault(group, {})[key] = "/".join(tensor.path)
        paths = dict.fromkeys((*variables, *self._own_names))
        return keras_layout.encode(
            {p: keras_layout.Group(self._own_names.get(p), variables.get(p, {})) for p in paths}
        )

    def _own_name(self, path: str) -> str | None:
        group = f"{path}/vars"
        if group not in self._file.groups:
            return None
        if group not in self._own_names:
            name = self._file.text(group, "name", _NAME_LIMIT)
            self._own_names[group] = name
            self._spend(name or "")
        return self._own_names[group]

    def _spend(self, name: str) -> None:
        # One long text in the file may be the name of many layers, and part of many tensors'.
        self._names_left -= len(name)
        if self._names_left < 0:
            raise CorruptFile(self._file.label, found=f"more than {_MAX_NAMES} bytes of names")

    def _variables(self, place: _Place) -> None:
        group = self._at(place, "vars")
        if group not in self._file.groups:
            return
        keys = sorted(self._file.groups[group].children, key=_key_rank)
        keys = [key for key in keys if f"{group}/{key}" in self._file.datasets]
        data = [self._file.datasets[f"{group}/{key}"] for key in keys]
        config = place.layer.config if place.layer else None
        with guarded(self._file.label):
            roles = variables_of(place.class_name, config, [d.shape for d in data])
        module = module_of(place.class_name, place.parent)
        for key, role, entry in zip(keys, roles, data, strict=True):
            # One part: in these files a name is a path of layers, not a nesting of containers.
            path = ("/".join((*place.names, role or key)),)
            self._spend(path[0])
            kind = "counter" if role in COUNTERS else "weight"
            tensor = StoredTensor(
                path, entry.shape, entry.dtype, entry.path, module=module, role=role, kind=kind
            )
            self._found.append((path, tensor))


def _numbered(key: str) -> tuple[str, int]:
    """Class part and number of a group's name: `conv2d_3` gives `conv2d` and 3."""
    stem, _, number = key.rpartition("_")
    return (stem, int(number)) if stem and _is_number(number) else (key, 0)


def _natural(path: str) -> list[tuple[int, int, str]]:
    return [_key_rank(part) for part in path.split("/")]


def _key_rank(key: str) -> tuple[int, int, str]:
    return (0, int(key), "") if _is_number(key) else (1, 0, key)


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= _DIGITS
