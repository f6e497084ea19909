"""Keras 3 on any of its backends: a live, built model."""

from __future__ import annotations

import math
import sys
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft import keras_layout
from regraft.errors import TargetError
from regraft.sinks import Sink
from regraft.targets import _keras_memory
from regraft.targets._keras_memory import seen, to_numpy
from regraft.targets._keras_paths import layout_of
from regraft.targets._keras_taps import KerasTaps
from regraft.targets._outputs import leaves_of
from regraft.targets._variables import Variables
from regraft.tensors import DTYPE_BITS, Skeleton, TensorInfo, Told

if TYPE_CHECKING:
    from regraft.targets import Inputs
    from regraft.tensors import Array


_BUILD = "call the model once on an example, or model.build(input_shape)"


def owns(model: object) -> bool:
    keras = sys.modules.get("keras")
    return keras is not None and hasattr(keras, "Layer") and isinstance(model, keras.Layer)


def skeleton(model: object) -> Skeleton:
    """The weights in the order in which layers were made, named `layer path/variable`.

    Seed states, metrics and optimizer variables are no weights and left out. Its metadata tells
    the config, and where Keras would save each variable.

    Layers that are not built, and so have no weights yet, are noted.

    **Raises** `TargetError` where the model is not built, or none of its layers is.
    """
    live: Any = model
    infos: list[TensorInfo] = []
    weights = named(live)
    unbuilt = _unbuilt(live)
    if unbuilt and not weights:
        raise TargetError(
            live.name,
            found=f"a model without weights: {len(unbuilt)} of its layers are not built",
            expected="a model whose weights exist",
            hint=_BUILD,
            problems=unbuilt,
        )
    for name, (variable, owner) in weights.items():
        role = variable.name.rpartition("/")[2]
        infos.append(
            TensorInfo(name, tuple(variable.shape), _dtype(variable), type(owner).__name__, role)
        )

    def layout() -> str | None:
        found = layout_of(live, {id(variable): name for name, (variable, _) in weights.items()})
        return None if found is None else keras_layout.encode(found)

    metadata = Told(**{"model_config": lambda: _config(live), keras_layout.KEY: layout})
    notes = [f"not built, so without weights: {', '.join(unbuilt)}"] if unbuilt else []
    return Skeleton(
        infos, framework="keras", order="definition", label=live.name, metadata=metadata,
        notes=notes,
    )  # fmt: skip


def _config(model: Any) -> str | None:
    """The model's config as JSON; `None` for a subclassed model, which has none."""
    try:
        # What Keras warns of (lambdas in the config) concerns those who load it: nobody does.
        with warnings.catch_warnings(action="ignore"):
            return model.to_json()
    except (NotImplementedError, TypeError, ValueError, AttributeError):
        return None


def _unbuilt(model: Any) -> list[str]:
    """Layers of which `build` was not called yet; `model.build` alone does not always do it."""
    return [layer.name for layer in model._flatten_layers() if not layer.built]


def build(model: object, inputs: Inputs) -> None:
    """Makes the weights by running the model once, where it is not built."""
    live: Any = model
    if not live.built or _unbuilt(live):
        run(model, inputs)


def named(model: Any) -> dict[str, tuple[Any, Any]]:
    """Each weight and the layer that owns it, by name."""
    if not model.built:
        raise TargetError(
            model.name,
            found="a model that is not built",
            expected="a model whose weights exist",
            hint=_BUILD,
        )
    listed = [(path, v, layer) for path, v, layer in _walk(model, (), set())]
    count = Counter(path for path, *_ in listed)
    used: Counter[str] = Counter()
    result: dict[str, tuple[Any, Any]] = {}
    for path, variable, layer in listed:
        used[path] += 1
        name = path if count[path] == 1 else f"{path}_{used[path] - 1}"
        result[name] = variable, layer
    return result


def _walk(layer: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, Any, Any]]:
    """Weights of a layer and then of the layers in it; each once. What a wrapper holds of the layer
    in it is that layer's."""
    own = (*layer._trainable_variables, *layer._non_trainable_variables)
    inner = (part for part in layer._layers if own)
    below = {id(variable) for part in inner for variable in part.variables}
    for variable in own:
        if id(variable) not in seen | below:
            seen.add(id(variable))
            name = variable.name.rpartition("/")[2]
            yield "/".join((*path, name)), variable, layer
    for inner in layer._layers:
        yield from _walk(inner, (*path, inner.name), seen)


def _dtype(variable: Any) -> str:
    import keras

    # What it has: JAX without its wide types gives a variable of float64 another one.
    name = keras.backend.standardize_dtype(variable.value.dtype)
    return name if name in DTYPE_BITS else str(np.dtype(name))


class _KerasSink(Variables):
    def __init__(self, model: Any) -> None:
        import keras

        variables = {name: variable for name, (variable, _) in named(model).items()}
        bits = (math.prod(v.shape) * DTYPE_BITS[_dtype(v)] for v in variables.values())
        replaced = keras.backend.backend() in ("tensorflow", "jax")
        super().__init__(
            model, variables, size=sum(bits) // 8, tensor=lambda variable: variable.value,
            seen=seen, maker=_keras_memory.maker if replaced else None,
        )  # fmt: skip

    def memory(self, name: str) -> Array | None:
        """With PyTorch as backend values are set in its tensors' own memory."""
        from regraft.targets import _torch_arrays

        value = self._variables[name].value
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(value, torch.Tensor) or value.is_meta:
            return None
        return _torch_arrays.to_numpy(value) if _torch_arrays.is_plain(value) else None

    @property
    def settles(self) -> bool:
        return any(self._deriving())

    def settle(self) -> None:
        """Layers that derive something from their weights do it again, as Keras has them do after
        loading."""
        for layer in self._deriving():
            store: dict[str, Any] = {}
            layer.save_own_variables(store)
            layer.load_own_variables(store)

    def _deriving(self) -> Iterator[Any]:
        """Layers with weights and code of their own for loading; what Keras' own layers do there
        concerns files, but for those that derive constants."""
        for layer in self._model._flatten_layers():
            ours = type(layer).load_own_variables.__module__.split(".")[0] != "keras"
            if layer.built and layer.weights and (ours or hasattr(layer, "finalize_state")):
                yield layer


def sink(model: object) -> Sink:
    """Assigns to the model's variables; trainable flags are not touched."""
    return _KerasSink(model)


def run(model: object, inputs: Inputs) -> dict[str, Array]:
    """Outputs of `model(inputs, training=False)` by name."""
    live: Any = model
    given: Any = list(inputs) if isinstance(inputs, tuple) else inputs
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    return {name: to_numpy(leaf) for name, leaf in leaves_of(live(given, training=False))}


def outputs_of(value: Any) -> dict[str, Array]:
    """Outputs of any nesting by name."""
    return {name: to_numpy(leaf) for name, leaf in leaves_of(value)}


def taps(model: object) -> KerasTaps:
    """The model under observation; see `regraft.calls`."""
    return KerasTaps(model)


def trainable(model: object, names: Collection[str]) -> None:
    """Sets which layers train; a layer trains where any of its weights is in `names`.

    A frozen BatchNormalization also runs in inference mode, so its statistics stay as they are:
    that is what Keras means by frozen. Single variables of a layer that trains are frozen too
    where they are not in `names`.
    """
    live: Any = model
    weights = named(live)
    # Each by itself: TensorFlow's objects pass over a flag that is set to what it is already, and
    # with it over the layers and variables below.
    for layer in live._flatten_layers():
        layer.trainable = True
        for variable in layer._trainable_variables:
            variable.trainable = True
    by_layer: dict[int, list[tuple[str, Any, Any]]] = {}
    for name, (variable, layer) in weights.items():
        by_layer.setdefault(id(layer), []).append((name, variable, layer))
    for members in by_layer.values():
        layer = members[0][2]
        chosen = [name in names for name, *_ in members]
        if not any(chosen):
            layer.trainable = False
            continue
        learned = {id(v) for v in layer._trainable_variables}
        for (_, variable, _), wanted in zip(members, chosen, strict=True):
            if id(variable) in learned and not wanted:
                variable.trainable = False
