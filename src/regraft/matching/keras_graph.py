"""The dataflow that a Keras config tells: Sequential and Functional models of Keras 1, 2 and 3.

The config is JSON that full-model files carry (`model_config`, `config.json`) and that live
models give; reading it needs no framework.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Any

import msgspec

from regraft.matching.modules import parts_of
from regraft.tensors import FlowNode

_LIMIT = 50_000
# Key of the output, owner, keys of the inputs, class of the layer.
Node = tuple[str, str, list[str], str]
_REARRANGES = {"Flatten": "flatten", "Permute": "permute", "Transpose": "permute",
               "Reshape": "reshape"}  # fmt: skip
_PASSES = _REARRANGES | {
    f"{kind}Pooling{rank}D": "pool" for kind in ("Average", "Max") for rank in (1, 2, 3)
}


def flow_of(model_config: str, names: Iterable[str] = ()) -> tuple[FlowNode, ...]:
    """FlowNodes of a model's config; empty where the config describes no graph.

    `names` of the model's tensors: an owner that is none's is the only layer of that last name, as
    in legacy files, which put the name of a Sequential between (`d/sequential/d/kernel`).
    """
    try:
        config = msgspec.json.decode(model_config)
        layers = list(_layers(config, "", "", []))
    except (msgspec.DecodeError, KeyError, TypeError, IndexError, AttributeError, ValueError,
            RecursionError):  # fmt: skip
        return ()
    return _owned(_topological(layers), names)


def _layers(
    model: Mapping[str, Any], path: str, scope: str, given: list[str]
) -> Generator[Node, None, list[str]]:
    """The nodes of a model, and of the models inside it; returns the keys of its outputs.

    `path` begins the names of its layers, `scope` the keys of its nodes (a model that is called
    twice has its nodes twice), `given` are the keys of its inputs.
    """
    config: Any = model["config"]
    layers: list[dict[str, Any]] = config if isinstance(config, list) else config["layers"]
    if model["class_name"] == "Sequential":
        ends = given
        for layer in layers:
            ends = yield from _node(layer, path, f"{scope}{_name(layer)}/0", ends)
        return ends
    entries = [str(end[0]) for end in _ends(model["config"].get("input_layers"))]
    for layer in layers:
        for index, node in enumerate(layer.get("inbound_nodes") or [[]]):
            inputs = [scope + key for key in _inputs(node)]
            if layer["class_name"] == "InputLayer":
                at = entries.index(_name(layer)) if _name(layer) in entries else 0
                inputs = given[at : at + 1] if len(given) == len(entries) else given
            yield from _node(layer, path, f"{scope}{_name(layer)}/{index}", inputs)
    outputs = _ends(model["config"].get("output_layers"))
    return [f"{scope}{end[0]}/{end[1]}" for end in outputs]


def _node(
    layer: Mapping[str, Any], path: str, key: str, inputs: list[str]
) -> Generator[Node, None, list[str]]:
    name, config = _name(layer), layer["config"]
    if isinstance(config, list) or "layers" in config:
        ends = yield from _layers(layer, f"{path}{name}/", f"{key}:", inputs)
        yield key, "", ends, ""
    else:
        owner = "" if layer["class_name"] == "InputLayer" else path + name
        flat = len(config.get("target_shape", ())) == 1  # a Reshape to one axis
        yield key, owner, inputs, "Flatten" if flat else layer["class_name"]
    return [key]


def _ends(layers: Any) -> list[list[Any]]:
    """`[layer, node, tensor]` of a model's inputs or outputs; Keras 3 writes a single one bare."""
    return [layers] if layers and isinstance(layers[0], str) else list(layers or [])


def _owned(flow: tuple[FlowNode, ...], names: Iterable[str]) -> tuple[FlowNode, ...]:
    """The flow with owners as the tensors' names have them."""
    paths = {tuple(parts_of(name)[:-1]) for name in names}
    alone: dict[str, tuple[str, ...] | None] = {}
    for path in paths:
        last = path[-1] if path else ""
        alone[last] = path if last not in alone else None
    owners: dict[str, str] = {}
    for owner in {node.owner for node in flow if node.owner}:
        parts = tuple(parts_of(owner))
        path = alone.get(parts[-1]) if parts not in paths else None
        owners[owner] = "/".join(path) if path else owner
    return tuple(node._replace(owner=owners.get(node.owner, "")) for node in flow)


def _name(layer: Mapping[str, Any]) -> str:
    return layer.get("name") or layer["config"]["name"]


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
        if (not owner or kind in _PASSES) and not merge:
            index[key] = sources
            vias[key] = (*via, _PASSES[kind]) if kind in _PASSES else via
            continue
        result.append(FlowNode(owner, "merge" if merge else "", sources, via))
        index[key] = (len(result) - 1,)
    return tuple(result)
