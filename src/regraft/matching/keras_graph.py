"""The dataflow that a Keras config tells: Sequential and Functional models of Keras 1, 2 and 3.

The config is JSON that full-model files carry (`model_config`, `config.json`) and that live
models give; reading it needs no framework.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from regraft.tensors import FlowNode

_LIMIT = 50_000
# Key of the output, owner, keys of the inputs, class of the layer.
Node = tuple[str, str, list[str], str]
_REARRANGES = {"Flatten": "flatten", "Permute": "permute", "Transpose": "permute",
               "Reshape": "reshape"}  # fmt: skip


def flow_of(model_config: str) -> tuple[FlowNode, ...]:
    """FlowNodes of a model's config; empty where the config describes no graph."""
    try:
        config = msgspec.json.decode(model_config)
        layers = list(_layers(config, ""))
    except (msgspec.DecodeError, KeyError, TypeError, IndexError, AttributeError, ValueError):
        return ()
    return _topological(layers)


def _layers(model: Mapping[str, Any], prefix: str) -> Iterable[Node]:
    config = model["config"]
    layers: list[dict[str, Any]] = config if isinstance(config, list) else config["layers"]
    if model["class_name"] == "Sequential":
        before: list[str] = []
        for layer in layers:
            name = prefix + _name(layer)
            yield (f"{name}/0", _owner(layer, name), before, layer["class_name"])
            before = [f"{name}/0"]
        return
    for layer in layers:
        name = prefix + _name(layer)
        nested = "layers" in layer["config"] if isinstance(layer["config"], dict) else True
        owner = "" if layer["class_name"] == "InputLayer" else name
        if nested:  # a model inside the model: one step here, its inside is not looked into
            owner = name
        for index, node in enumerate(layer.get("inbound_nodes") or [[]]):
            inputs = [prefix + key for key in _inputs(node)]
            yield (f"{name}/{index}", owner, inputs, layer["class_name"])


def _name(layer: Mapping[str, Any]) -> str:
    return layer.get("name") or layer["config"]["name"]


def _owner(layer: Mapping[str, Any], name: str) -> str:
    return "" if layer["class_name"] == "InputLayer" else name


def _inputs(node: Any) -> Iterable[str]:
    """Keys `layer/node` of a node's inputs, in Keras 1–2 lists or Keras 3 keras tensors."""
    if isinstance(node, dict) and "args" in node:
        yield from _keras_tensors([node["args"], node.get("kwargs", {})])
    elif isinstance(node, list):
        for entry in node:
            if isinstance(entry, list) and len(entry) >= 3 and isinstance(entry[0], str):
                yield f"{entry[0]}/{entry[1]}"


def _keras_tensors(value: Any) -> Iterable[str]:
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            layer, node, *_ = value["config"]["keras_history"]
            yield f"{layer}/{node}"
            return
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _keras_tensors(item)


def _topological(layers: list[Node]) -> tuple[FlowNode, ...]:
    """FlowNodes in an order where inputs come first; steps that only pass data on are skipped."""
    nodes = {key: (owner, inputs, kind) for key, owner, inputs, kind in layers}
    if len(nodes) > _LIMIT or not any(inputs for _, inputs, _ in nodes.values()):
        return ()
    order, state = list[str](), dict[str, int]()
    for start in nodes:
        stack = [start]
        while stack:
            key = stack.pop()
            if state.get(key) == 1:
                state[key] = 2
                order.append(key)
            elif key not in state and key in nodes:
                state[key] = 1
                stack.append(key)
                stack += [i for i in nodes[key][1] if i not in state]
    result: list[FlowNode] = []
    index: dict[str, tuple[int, ...]] = {}
    vias: dict[str, tuple[str, ...]] = {}
    for key in order:
        owner, inputs, kind = nodes[key]
        via = tuple(step for i in inputs for step in vias.get(i, ()))
        sources = tuple(dict.fromkeys(n for i in inputs for n in index.get(i, ())))
        merge = len(set(inputs)) > 1
        if (not owner or kind in _REARRANGES) and not merge:
            index[key] = sources
            vias[key] = (*via, _REARRANGES[kind]) if kind in _REARRANGES else via
            continue
        result.append(FlowNode(owner, "merge" if merge else "", sources, via))
        index[key] = (len(result) - 1,)
    return tuple(result)
