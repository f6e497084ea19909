"""The way through a live Keras model's attributes to each variable, as Keras itself goes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from regraft.keras_layout import Constant, Group, Layout

# State of a layer beside its weights is a seed or a counter.
_MAX_CONSTANT = 1024
_OPTIMIZER = "optimizer"


def layout_of(model: Any, names: Mapping[int, str]) -> Layout | None:
    """Where Keras would save each variable; `names` are those of tensors, by the variable's `id`.

    Keras' own saving is run on a store that writes nothing down, so that layers which save in a
    way of their own are told as they do. `None` where that is not to be had: another version of
    Keras, or a layer that saves other values than its variables have (LoRA).
    """
    try:
        from keras.src.saving import saving_lib

        groups = _recorded(saving_lib, model)
        return {
            path: Group(name, {key: _told(value, names) for key, value in variables.items()})
            for path, (name, variables) in groups.items()
            if path.split("/")[0] != _OPTIMIZER
        }
    except Exception:  # private code of Keras, and of users' layers
        return None


def _recorded(saving_lib: Any, model: Any) -> dict[str, tuple[str | None, dict[str, Any]]]:
    """Each layer's name and what it saves, by the path of its group."""
    groups: dict[str, tuple[str | None, dict[str, Any]]] = {}

    class Recorder(saving_lib.H5IOStore):
        """Takes what is saved as it comes; the base class is what Keras asks for."""

        def __init__(self) -> None:
            self.path, self.name = "", None

        def __bool__(self) -> bool:
            return True

        def make(self, path: str, metadata: dict[str, str] | None = None) -> Recorder:
            self.path = f"{path}/vars" if path else "vars"
            self.name = (metadata or {}).get("name")
            if metadata:  # else a group is only made for values
                groups[self.path] = self.name, {}
            return self

        def __setitem__(self, key: str, value: Any) -> None:
            groups.setdefault(self.path, (self.name, {}))[1][key] = value

    saving_lib._save_state(
        model, weights_store=Recorder(), assets_store=None, inner_path="", visited_saveables=set()
    )
    return groups


def _told(value: Any, names: Mapping[int, str]) -> str | Constant:
    if id(value) in names:
        return names[id(value)]
    import keras

    array = np.asarray(keras.ops.convert_to_numpy(value))
    if array.size > _MAX_CONSTANT or not np.isfinite(array).all():
        raise ValueError("values that are no tensor's")
    return Constant(array.dtype.name, array.shape, tuple(array.reshape(-1).tolist()))
