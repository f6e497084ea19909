"""Dataflow of a torch.nn.Module by symbolic tracing; no weights are touched, meta is fine."""

from __future__ import annotations

import warnings
from typing import Any

from regraft.tensors import FlowNode

_LIMIT = 20_000
_MERGES = {
    "add": "add", "iadd": "add", "add_": "add", "cat": "cat", "concat": "cat", "stack": "cat",
    "mul": "mul", "imul": "mul", "mul_": "mul", "matmul": "matmul", "bmm": "matmul",
    "einsum": "matmul",
}  # fmt: skip


def flow_of(model: Any) -> tuple[FlowNode, ...]:
    """FlowNodes of a module, empty where its Python cannot be traced."""
    import torch.fx

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: Any, module_qualified_name: str) -> bool:
            return super().is_leaf_module(m, module_qualified_name) and not isinstance(
                m, (torch.nn.Sequential, torch.nn.ModuleList)
            )

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = Tracer().trace(model)
    # Tracing runs the model's own Python on stand-ins: it may raise anything at all.
    except Exception:
        return ()
    if len(graph.nodes) > _LIMIT:
        return ()
    return _nodes(graph, model)


def _nodes(graph: Any, model: Any) -> tuple[FlowNode, ...]:
    held = {path for path, module in model.named_modules() if _has_tensors(module)}
    result: list[FlowNode] = []
    ends: dict[Any, tuple[int, ...]] = {}
    for node in graph.nodes:
        sources = tuple(dict.fromkeys(i for n in node.all_input_nodes for i in ends.get(n, ())))
        owner, merges = "", len([n for n in node.all_input_nodes if ends.get(n)]) > 1
        if node.op == "call_module" and node.target in held:
            owner = str(node.target)
        elif node.op == "get_attr":
            owner = str(node.target).rpartition(".")[0]
        if owner or (merges and node.op in ("call_function", "call_method", "call_module")):
            label = "" if owner else _MERGES.get(_function(node), "other")
            result.append(FlowNode(owner, label, sources))
            ends[node] = (len(result) - 1,)
        else:
            ends[node] = sources
    return tuple(result)


def _has_tensors(module: Any) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _function(node: Any) -> str:
    return getattr(node.target, "__name__", str(node.target)).rpartition(".")[2]
