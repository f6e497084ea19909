"""What Keras' configs and classes say of layers and their variables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

_MAX_DEPTH = 32

# Variables in the order in which they are saved (trainable ones first), each with the setting
# that can leave it out.
_Variables = tuple[tuple[str, str], ...]
_KERNEL: _Variables = (("kernel", ""), ("bias", "use_bias"))
_SEPARABLE: _Variables = (("depthwise_kernel", ""), ("pointwise_kernel", ""), ("bias", "use_bias"))
_SCALED: _Variables = (("gamma", "scale"), ("beta", "center"))
_CELL: _Variables = (("kernel", ""), ("recurrent_kernel", ""), ("bias", "use_bias"))

_VARIABLES: dict[str, _Variables] = {
    "Dense": _KERNEL,
    "EinsumDense": _KERNEL,
    **{f"{kind}{n}D": _KERNEL for kind in ("Conv", "DepthwiseConv") for n in (1, 2, 3)},
    **{f"Conv{n}DTranspose": _KERNEL for n in (1, 2, 3)},
    **{f"SeparableConv{n}D": _SEPARABLE for n in (1, 2)},
    "BatchNormalization": (*_SCALED, ("moving_mean", ""), ("moving_variance", "")),
    "LayerNormalization": _SCALED,
    "GroupNormalization": _SCALED,
    "RMSNormalization": (("scale", ""),),
    "Normalization": (("mean", ""), ("variance", ""), ("count", "")),
    "Embedding": (("embeddings", ""),),
    "PReLU": (("alpha", ""),),
    **{f"{kind}Cell": _CELL for kind in ("LSTM", "GRU", "SimpleRNN", "ConvLSTM")},
    "SeedGenerator": (("seed_generator_state", ""),),
}
# Layers that hold the variables in a part of their own: attribute and class of the part.
_RECURRENT = {
    **{kind: f"{kind}Cell" for kind in ("LSTM", "GRU", "SimpleRNN")},
    **{f"ConvLSTM{n}D": "ConvLSTMCell" for n in (1, 2, 3)},
}
_ATTENTION = {f"{part}_dense": "EinsumDense" for part in ("query", "key", "value", "output")}
_ATTENTIONS = ("MultiHeadAttention", "GroupedQueryAttention")
# The order in which a layer's parts are made; by name alone `key` would come before `query`.
_PARTS_IN_ORDER: dict[str, tuple[str, ...]] = {
    **{name: tuple(_ATTENTION) for name in _ATTENTIONS},
    "Bidirectional": ("forward_layer", "backward_layer"),
}
_SNAKES: dict[str, str] = {}
COUNTERS = frozenset({"iteration", "iterations", "iter", "count", "seed_generator_state"})
ROLES = frozenset(name for listed in _VARIABLES.values() for name, _ in listed)


class Layer(NamedTuple):
    """A layer (or model) of a config.

    `layers` are a model's own, in order; `parts` are layers inside a layer, by attribute.
    """

    name: str
    class_name: str
    config: dict[str, Any]
    layers: tuple[Layer, ...] = ()
    parts: tuple[tuple[str, Layer], ...] = ()


def model_of(model_config: str) -> Layer | None:
    """The model that a JSON config describes; `None` where it describes none."""
    try:
        return _layer(json.loads(model_config), 0)
    except (ValueError, RecursionError):
        return None


def _layer(node: Any, depth: int) -> Layer | None:
    if not isinstance(node, dict) or "class_name" not in node or depth > _MAX_DEPTH:
        return None
    config: Any = node.get("config")
    listed: Any = config if isinstance(config, list) else None  # a Sequential of Keras 1
    settings: dict[str, Any] = config if isinstance(config, dict) else {}
    if listed is None:
        listed = settings.get("layers")
    listed = listed if isinstance(listed, list) else []
    children = [layer for item in listed if (layer := _layer(item, depth + 1))]
    parts = [
        (str(key), layer)
        for key, value in settings.items()
        if key != "layers" and (layer := _layer(value, depth + 1)) and layer.name
    ]
    name = str(node.get("name") or settings.get("name") or "")
    class_name = str(node["class_name"]).rpartition(">")[2]
    return Layer(name, class_name, settings, tuple(children), tuple(parts))


def part_of(layer: Layer | None, class_name: str, attribute: str) -> Layer | None:
    """The layer that another layer keeps under an attribute, as far as config and class tell."""
    config = layer.config if layer else {}
    parts = dict(layer.parts) if layer else {}
    if attribute == "seed_generator":
        return Layer(attribute, "SeedGenerator", {})
    if class_name in _RECURRENT and attribute == "cell":
        return Layer("", _RECURRENT[class_name], config)
    if class_name in _ATTENTIONS and attribute.lstrip("_") in _ATTENTION:
        return Layer("", "EinsumDense", config)
    if class_name == "Bidirectional" and attribute not in parts:
        return parts.get("layer")
    return parts.get(attribute)


def module_of(class_name: str, parent: str) -> str:
    """The class to show: a recurrent layer's, not its cell's, as the user wrote it."""
    return parent if class_name and _RECURRENT.get(parent) == class_name else class_name


def in_order(class_name: str, attributes: Sequence[str]) -> list[str] | None:
    """A layer's parts as they are made; `None` where that is not known."""
    if len(attributes) < 2:
        return list(attributes)
    ranks = {name: rank for rank, name in enumerate(_PARTS_IN_ORDER.get(class_name, ()))}
    if any(name.lstrip("_") not in ranks for name in attributes):
        return None
    return sorted(attributes, key=lambda name: ranks[name.lstrip("_")])


def variables_of(
    class_name: str, config: dict[str, Any] | None, shapes: Sequence[tuple[int, ...]]
) -> list[str]:
    """Names of a layer's variables, `""` for each that class and settings do not tell."""
    unknown = [""] * len(shapes)
    listed = _VARIABLES.get(class_name)
    if not listed or not shapes or not _plausible(class_name, shapes):
        return unknown
    if config:
        names = [name for name, flag in listed if not flag or config.get(flag, True)]
        if class_name == "LayerNormalization" and config.get("rms_scaling"):
            names = ["gamma"]
        return names if len(names) == len(shapes) else unknown
    if len(shapes) == len(listed):
        return [name for name, _ in listed]
    fixed = [name for name, flag in listed if not flag]
    optional = [name for name, flag in listed if flag]
    missing = len(listed) - len(shapes)
    if missing == len(optional):
        return fixed
    if 0 < missing < len(optional) and class_name == "BatchNormalization":
        return ["", *fixed]  # gamma or beta: the shape does not say which
    return unknown


def _plausible(class_name: str, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether the first variable has the number of axes that such a layer's has."""
    digit = re.search(r"Conv(\d)D", class_name)
    if digit:
        return len(shapes[0]) == int(digit[1]) + 2
    if class_name in ("Dense", "Embedding", "LSTMCell", "GRUCell", "SimpleRNNCell"):
        return len(shapes[0]) == 2
    return True


def snake_case(class_name: str) -> str:
    """Keras' own rule for a group's name; see `keras.src.utils.naming.to_snake_case`."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def class_of(automatic_name: str) -> str:
    """The class behind a name that Keras made (`conv2d_3`); `""` if it is none of the known."""
    if not _SNAKES:
        known = (*_VARIABLES, *_RECURRENT, *_ATTENTIONS, "Bidirectional", "TimeDistributed")
        _SNAKES.update({snake_case(name): name for name in (*known, "Sequential", "Functional")})
    plain = re.sub(r"_\d+$", "", automatic_name)
    # Bidirectional names its two layers after the one it was given.
    return _SNAKES.get(plain, "") or _SNAKES.get(re.sub("^(forward|backward)_", "", plain), "")


def keys_of(layers: Sequence[Layer], model_class: str) -> Iterator[tuple[str, Layer]]:
    """Layers with the group names that Keras 3 gives them: numbered by class, in order."""
    if model_class == "Sequential" and layers and layers[0].class_name == "InputLayer":
        layers = layers[1:]
    used: dict[str, int] = {}
    for layer in layers:
        stem = snake_case(layer.class_name)
        number = used[stem] = used.get(stem, -1) + 1
        yield (f"{stem}_{number}" if number else stem), layer


def owners(model: Layer) -> dict[str, tuple[str, dict[str, Any]]]:
    """Class and settings by layer name, in nested models and wrappers, too (inner class)."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for layer in model.layers:
        if layer.layers:
            found.update(owners(layer))
        parts = dict(layer.parts)
        inner = parts.get("layer") if layer.class_name in _WRAPPERS else None
        if inner is not None:
            found.update(owners(Layer("", "", {}, (inner,))))
        plain = inner or layer
        found[layer.name] = (plain.class_name, plain.config)
    return found


_WRAPPERS = ("TimeDistributed", "Bidirectional")
