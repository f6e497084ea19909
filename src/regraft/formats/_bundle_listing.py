"""The tensors of a TensorFlow checkpoint as they are listed: names, classes, what is no weight.

Names come from the object graph (`_object_graph`). A checkpoint of TensorFlow 1 has none: its keys
are the variables' own names, and a variable below another one and of its shape is a slot of an
optimizer (`conv/kernel/Adam_1`). Optimizers and bookkeeping (counters, metrics) are parts of their
own, which are not opened unasked. Layouts and words are Keras'.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from regraft.formats._keras_layers import COUNTERS, class_of, model_of, module_of, owners
from regraft.formats._object_graph import (
    BOOKKEEPING,
    KEY,
    OPTIMIZER,
    STAND_IN,
    SUFFIX,
    names_of,
)
from regraft.formats._tensor_bundle import Bundle
from regraft.tensors import Order, Stored, StoredTensor

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

_POWER = re.compile(r"(.*/)?beta[12]_power(_\d+)?")
_STEPS = {"global_step", "save_counter"}
_SHOWN = 20


class BundleStored(Stored):
    """What the TensorFlow formats hand over; a tensor's `where` is its key."""

    framework = "keras"
    separator = "/"

    def __init__(self, name: str, index: Path, metadata: Mapping[str, str]) -> None:
        self.format = name
        self.metadata = dict(metadata)
        self._bundle = Bundle(index)
        self.beside = self._bundle.files
        try:
            paths = self._paths()
            self.order = self._order_of(paths)
            self.tensors = tuple(self._listed(paths))
            self.notes = tuple(self._notes())
        except BaseException:
            self._bundle.close()
            raise

    def _paths(self) -> dict[str, tuple[str, ...]]:
        """Paths by key, in the order to list them in."""
        bundle = self._bundle
        if KEY not in bundle.texts:
            shapes = {key: entry.shape for key, entry in bundle.entries.items()}
            return {key: _path_by_name(key, shapes) for key in shapes}
        paths = names_of(bundle.text(KEY), bundle.entries, bundle.label)
        taken = set(paths.values())
        for key in bundle.entries:
            plain = (key.removesuffix(SUFFIX),)
            paths.setdefault(key, (key,) if plain in taken else plain)
        return paths

    def _order_of(self, paths: Mapping[str, tuple[str, ...]]) -> Order:
        if KEY not in self._bundle.texts:
            return "sorted"
        anonymous = any(STAND_IN.fullmatch(part) for path in paths.values() for part in path)
        return "stored" if anonymous else "definition"

    def _listed(self, paths: Mapping[str, tuple[str, ...]]) -> Iterable[StoredTensor]:
        model = model_of(self.metadata.get("model_config", ""))
        known = {name: found[0] for name, found in owners(model).items()} if model else {}
        for key, path in paths.items():
            entry = self._bundle.entries[key]
            *owning, leaf = "/".join(path).split("/")
            state = path[0] in (OPTIMIZER, BOOKKEEPING)
            module = "" if state else _class(owning, known)
            kind: Literal["weight", "counter"] = (
                "counter" if leaf in COUNTERS | _STEPS and not entry.shape[1:] else "weight"
            )
            yield StoredTensor(path, entry.shape, entry.dtype, key, module=module, kind=kind)

    def _notes(self) -> Iterable[str]:
        texts = [key.removesuffix(SUFFIX) for key in self._bundle.texts if key != KEY]
        others = [f"{k.removesuffix(SUFFIX)} ({d})" for k, d in self._bundle.others.items()]
        for what, names in (("text tensors", texts), ("tensors of other types", others)):
            if names:
                more = " …" if len(names) > _SHOWN else ""
                yield f"{len(names)} {what} are not listed: {', '.join(names[:_SHOWN])}{more}"

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        return self._bundle.read(tensor.where, slices)

    def close(self) -> None:
        self._bundle.close()


def _path_by_name(key: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    above = key.rpartition("/")[0]
    if shapes.get(above) == shapes[key] or _POWER.fullmatch(key):
        return (OPTIMIZER, key)
    return (BOOKKEEPING, key) if key in _STEPS else (key,)


def _class(owning: list[str], known: Mapping[str, str]) -> str:
    """The class of the layer that owns a variable: from the config, else from an automatic name."""
    named = next((known[name] for name in reversed(owning) if name in known), "")
    if named or not owning:
        return named
    outer = class_of(owning[-2]) if len(owning) > 1 else ""
    return module_of(class_of(owning[-1]), outer)
