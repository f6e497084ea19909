"""What Keras configs and classes say of a layer's variables; shared by the Keras formats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

_WRAPPERS = ("TimeDistributed", "Bidirectional")

# Variables of layers in the order they are made, with the config flag that can leave them out.
_VARIABLES: dict[str, tuple[tuple[str, str], ...]] = {
    "BatchNormalization": (
        ("gamma", "scale"),
        ("beta", "center"),
        ("moving_mean", ""),
        ("moving_variance", ""),
    ),
    "LayerNormalization": (("gamma", "scale"), ("beta", "center")),
    "GroupNormalization": (("gamma", "scale"), ("beta", "center")),
    "RMSNormalization": (("scale", ""),),
    "Embedding": (("embeddings", ""),),
    "PReLU": (("alpha", ""),),
    "Normalization": (("mean", ""), ("variance", ""), ("count", "")),
    "LSTMCell": (("kernel", ""), ("recurrent_kernel", ""), ("bias", "use_bias")),
    "GRUCell": (("kernel", ""), ("recurrent_kernel", ""), ("bias", "use_bias")),
    "SimpleRNNCell": (("kernel", ""), ("recurrent_kernel", ""), ("bias", "use_bias")),
}
# Classes that groups in weights files are named after.
CLASSES = (
    *_VARIABLES, "Dense", "EinsumDense", "Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose",
    "Conv2DTranspose", "Conv3DTranspose", "DepthwiseConv1D", "DepthwiseConv2D",
    "SeparableConv1D", "SeparableConv2D",
)  # fmt: skip
_PLAIN = (("kernel", ""), ("bias", "use_bias"))
_SEPARABLE = (("depthwise_kernel", ""), ("pointwise_kernel", ""), ("bias", "use_bias"))


class Layer(NamedTuple):
    """A layer of a config: its names from the outermost model in, its class and its settings."""

    path: tuple[str, ...]
    class_name: str
    config: dict[str, Any]
    layers: tuple[Layer, ...]


def variables_of(
    class_name: str, config: dict[str, Any] | None, shapes: list[tuple[int, ...]]
) -> list[str]:
    """Names of a layer's variables, given their shapes in order of making.

    Where the class is not known, the shapes of the commonest layers are recognised; else the
    variables are numbered.
    """
    listed = _listed(class_name)
    names = [name for name, flag in listed if not flag or (config or {}).get(flag, True)]
    if len(names) != len(shapes) and config is None:  # flags unknown: the optional ones are off
        names = [name for name, flag in listed if not flag]
    if not listed:
        names = _recognised(shapes)
    return names if len(names) == len(shapes) else [str(i) for i in range(len(shapes))]


def _listed(class_name: str) -> tuple[tuple[str, str], ...]:
    if class_name in _VARIABLES:
        return _VARIABLES[class_name]
    if class_name.startswith("Separable"):
        return _SEPARABLE
    return _PLAIN if class_name in ("Dense", "EinsumDense") or "Conv" in class_name else ()


def _recognised(shapes: list[tuple[int, ...]]) -> list[str]:
    if len(shapes) == 2 and len(shapes[0]) >= 2 and shapes[1] == shapes[0][-1:]:
        return ["kernel", "bias"]
    vectors = all(len(shape) == 1 and shape == shapes[0] for shape in shapes)
    norm = [name for name, _ in _VARIABLES["BatchNormalization"]]
    return norm[: len(shapes)] if vectors and len(shapes) in (2, 4) else []


def layers_of(model_config: str) -> tuple[Layer, ...]:
    """The layers of a model's JSON config; empty where it describes none."""
    try:
        model = json.loads(model_config)
        return tuple(_layers(model, (), 0)) if isinstance(model, dict) else ()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ()


def _layers(model: dict[str, Any], path: tuple[str, ...], depth: int) -> Iterator[Layer]:
    config = model.get("config")
    listed = config.get("layers", []) if isinstance(config, dict) else config or []
    for layer in listed if depth < 32 else []:
        settings = layer["config"] if isinstance(layer["config"], dict) else {}
        name = str(layer.get("name") or settings.get("name", ""))
        class_name = str(layer["class_name"]).rpartition(">")[2]
        if class_name in _WRAPPERS and isinstance(settings.get("layer"), dict):
            class_name = str(settings["layer"]["class_name"])
        inner = tuple(_layers(layer, (*path, name), depth + 1)) if _is_model(layer) else ()
        yield Layer((*path, name), class_name, settings, inner)


def _is_model(layer: dict[str, Any]) -> bool:
    config = layer.get("config")
    return isinstance(config, list) or (isinstance(config, dict) and "layers" in config)


def flat(layers: tuple[Layer, ...]) -> Iterator[Layer]:
    """All layers and the layers inside them, outermost first."""
    for layer in layers:
        yield layer
        yield from flat(layer.layers)
