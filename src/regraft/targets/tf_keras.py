"""Keras 2, which lives on as tf_keras (tf.keras with TF_USE_LEGACY_KERAS): a live, built model.

Tensors have the names that Keras 3 would give them, and the config is told as there, so that all
that holds for Keras holds for them. What a layer keeps in modules of TensorFlow that are no layers
is no weight of Keras and cannot be addressed. Causes inside of a model are not sought.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from regraft.errors import TargetError
from regraft.sinks import Sink
from regraft.targets._keras_memory import in_tensorflow, seen_in_tensorflow
from regraft.targets._outputs import leaves_of
from regraft.targets._variables import Variables
from regraft.tensors import DTYPE_BITS, Skeleton, TensorInfo

if TYPE_CHECKING:
    from regraft.targets import Inputs
    from regraft.tensors import Array

_BUILD = "call the model once on an example, or model.build(input_shape)"


def owns(model: object) -> bool:
    layers: Any = getattr(sys.modules.get("tf_keras"), "layers", None)
    return hasattr(layers, "Layer") and isinstance(model, layers.Layer)


def skeleton(model: object) -> Skeleton:
    """The weights in the order in which layers were made, named `layer path/variable`; its metadata
    tells the config. Seed states, metrics and optimizer variables are no weights and left out.

    Layers that are not built, and so have no weights yet, are noted.

    **Raises** `TargetError` where the model is not built, none of its layers is, or where it has
    weights that no layer holds.
    """
    live: Any = model
    weights = named(live)
    unbuilt = [layer.name for layer in live._flatten_layers() if not layer.built]
    if unbuilt and not weights:
        raise _not_built(live, f"{len(unbuilt)} of its layers are not built", unbuilt)
    infos = [
        TensorInfo(
            name, tuple(variable.shape), variable.dtype.name, type(layer).__name__, _role(variable)
        )
        for name, (variable, layer) in weights.items()
    ]  # fmt: skip
    try:
        with warnings.catch_warnings(action="ignore"):
            metadata = {"model_config": live.to_json()}
    except (NotImplementedError, TypeError, ValueError, AttributeError):
        metadata = {}  # a subclassed model has no config
    notes = [f"not built, so without weights: {', '.join(unbuilt)}"] if unbuilt else []
    return Skeleton(
        infos, framework="keras", order="definition", label=live.name, metadata=metadata,
        notes=notes,
    )  # fmt: skip


def _not_built(model: Any, found: str, problems: Collection[str] = ()) -> TargetError:
    return TargetError(
        model.name, found=found, expected="a model whose weights exist", hint=_BUILD,
        problems=list(problems),
    )  # fmt: skip


def build(model: object, inputs: Inputs) -> None:
    """Makes the weights by running the model once, where it is not built."""
    live: Any = model
    if not all(layer.built for layer in live._flatten_layers()):
        run(model, inputs)


def named(model: Any) -> dict[str, tuple[Any, Any]]:
    """Each weight and the layer that owns it, by name. **Raises** as `skeleton` does."""
    if not model.built:
        raise _not_built(model, "a model that is not built")
    result: dict[str, tuple[Any, Any]] = {}
    listed = list(_walk(model, (), set()))
    count, used = Counter(path for path, *_ in listed), Counter[str]()
    for path, variable, layer in listed:
        result[path if count[path] == 1 else f"{path}_{used[path]}"] = variable, layer
        used[path] += 1
    known = {id(variable) for variable, _ in result.values()}
    others = [variable.name for variable in model.weights if id(variable) not in known]
    if others:
        raise TargetError(
            f"{model.name}, {others[0]}",
            found=f"{len(others)} weights that no layer of the model holds itself",
            expected="weights made by layers, with add_weight or as their attributes",
            problems=others,
        )
    return result


def _walk(layer: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, Any, Any]]:
    """Weights of a layer and then of the layers in it; each once."""
    for variable in (*layer._trainable_weights, *layer._non_trainable_weights):
        if id(variable) not in seen:
            seen.add(id(variable))
            yield "/".join((*path, _role(variable))), variable, layer
    for inner in layer._flatten_layers(recursive=False, include_self=False):
        yield from _walk(inner, (*path, inner.name), seen)


def _role(variable: Any) -> str:
    """`gamma` for `net/bn/gamma:0`."""
    return variable.name.rpartition("/")[2].partition(":")[0]


def sink(model: object) -> Sink:
    """Assigns to the model's variables; trainable flags are not touched."""
    variables = {name: variable for name, (variable, _) in named(model).items()}
    bits = (math.prod(v.shape) * DTYPE_BITS[v.dtype.name] for v in variables.values())
    return Variables(
        model, variables, size=sum(bits) // 8, tensor=lambda variable: variable,
        seen=seen_in_tensorflow, maker=in_tensorflow,
    )  # fmt: skip


def run(model: object, inputs: Inputs) -> dict[str, Array]:
    """Outputs of `model(inputs, training=False)` by name."""
    live: Any = model
    given: Any = list(inputs) if isinstance(inputs, tuple) else inputs
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    return {
        name: seen_in_tensorflow(leaf).copy()
        for name, leaf in leaves_of(live(given, training=False))
    }


def trainable(model: object, names: Collection[str]) -> None:
    """Sets which layers train: those whose weights are all in `names`, but for statistics.

    **Raises** `TargetError`, with nothing set, where some of a layer's weights are in `names` and
    others not: in Keras 2 a layer's variables train together.
    """
    live: Any = model
    by_layer: dict[int, tuple[Any, list[str]]] = {}
    for name, (variable, layer) in named(live).items():
        learned = any(variable is held for held in layer._trainable_weights)
        by_layer.setdefault(id(layer), (layer, []))[1].extend([name] if learned else [])
    halves = [
        name
        for _, members in by_layer.values()
        if 0 < sum(name in names for name in members) < len(members)
        for name in members
        if name not in names
    ]
    if halves:
        raise TargetError(
            f"{live.name}, {halves[0]}",
            found="weights that are not to train in layers that are",
            expected="layers that train, or do not, with all their weights",
            hint="freeze whole layers",
            problems=halves,
        )
    live.trainable = True
    for layer, members in by_layer.values():
        if not any(name in names for name in members):
            layer.trainable = False
