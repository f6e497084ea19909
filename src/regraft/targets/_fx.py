"""Dataflow of a torch.nn.Module by symbolic tracing; no weights are touched, meta is fine."""

from __future__ import annotations

import dis
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

from regraft.targets._torch_modules import buffers_kept
from regraft.tensors import FlowNode

_LIMIT = 20_000
_MERGES = {
    "add": "add", "iadd": "add", "add_": "add", "cat": "cat", "concat": "cat", "stack": "cat",
    "mul": "mul", "imul": "mul", "mul_": "mul", "matmul": "matmul", "bmm": "matmul",
    "einsum": "matmul",
}  # fmt: skip


# Steps that rearrange axes, by the names of functions, methods and layers.
_REARRANGES = {
    "flatten": "flatten", "ravel": "flatten", "view": "reshape", "reshape": "reshape",
    "unflatten": "reshape", "permute": "permute", "transpose": "permute", "movedim": "permute",
    "moveaxis": "permute", "swapaxes": "permute", "swapdims": "permute", "t": "permute",
}  # fmt: skip

# Steps that take a mean or the largest of a window.
_POOLS = {
    f"{kind}{join}pool{rank}d"
    for kind in ("avg", "max")
    for join in ("_", "")
    for rank in (1, 2, 3)
}

# What stands in for a size where the model computes with sizes in plain Python.
_SOME_SIZE = 64


def flow_of(model: Any) -> tuple[tuple[FlowNode, ...], str]:
    """FlowNodes of a module; where its Python cannot be traced, none and the reason.

    Where a model does arithmetic with sizes, it is traced again with a stand-in for them: which
    size it is says nothing about which layer follows which.
    """
    why = ""
    for sized in (False, True):
        try:
            graph = _graph(model, sized)
        # Tracing runs the model's own Python on stand-ins: it may raise anything at all.
        except Exception as error:
            why = why or f"{type(error).__name__}: {error}".split("\n")[0][:200]
            continue
        if len(graph.nodes) > _LIMIT:
            return (), f"{len(graph.nodes)} steps, more than {_LIMIT}"
        return _nodes(graph, model), ""
    return (), why


def _graph(model: Any, sized: bool) -> Any:
    import torch.fx

    class SizedProxy(torch.fx.Proxy):
        @property
        def shape(self) -> Any:
            return _Sizes()

        def size(self, dim: int | None = None) -> Any:
            return _Sizes() if dim is None else _SOME_SIZE

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: Any, module_qualified_name: str) -> bool:
            if isinstance(m, (torch.nn.Sequential, torch.nn.ModuleList)):
                return False
            return super().is_leaf_module(m, module_qualified_name) or _is_layer(m)

        def proxy(self, node: Any) -> Any:
            return SizedProxy(node, self) if sized else super().proxy(node)

    own = set(vars(model))
    try:
        with warnings.catch_warnings(), buffers_kept(model):
            warnings.simplefilter("ignore")
            return Tracer().trace(model)
    finally:
        # Tensors that the code makes were left at the model as `_tensor_constant0` ….
        for name in [n for n in vars(model) if n not in own and n.startswith("_tensor_constant")]:
            delattr(model, name)


class _Sizes:
    """As many sizes as are asked for."""

    def __getitem__(self, index: Any) -> Any:
        return (_SOME_SIZE, _SOME_SIZE) if isinstance(index, slice) else _SOME_SIZE

    def __iter__(self) -> Iterator[int]:
        """For `n, c, h, w = x.shape`: how many names there are is read from the caller's code."""
        frame = inspect.currentframe()
        caller = frame.f_back if frame else None
        steps = dis.get_instructions(caller.f_code) if caller else ()
        here = next((s for s in steps if caller and s.offset == caller.f_lasti), None)
        if here is None or here.opname != "UNPACK_SEQUENCE":
            raise TypeError("sizes of unknown number")
        return iter([_SOME_SIZE] * int(here.argval))


def _nodes(graph: Any, model: Any) -> tuple[FlowNode, ...]:
    held = {path for path, module in model.named_modules() if _has_tensors(module)}
    result: list[FlowNode] = []
    ends: dict[Any, tuple[int, ...]] = {}
    vias: dict[Any, tuple[str, ...]] = {}
    for node in graph.nodes:
        sources = tuple(dict.fromkeys(i for n in node.all_input_nodes for i in ends.get(n, ())))
        via = tuple(step for n in node.all_input_nodes if ends.get(n) for step in vias.get(n, ()))
        owner, merges = "", len([n for n in node.all_input_nodes if ends.get(n)]) > 1
        if node.op == "call_module" and node.target in held:
            owner = str(node.target)
        elif node.op == "get_attr":
            owner = str(node.target).rpartition(".")[0]
        if owner or (merges and node.op in ("call_function", "call_method", "call_module")):
            label = "" if owner else _MERGES.get(_function(node), "other")
            result.append(FlowNode(owner, label, sources, via))
            ends[node] = (len(result) - 1,)
        else:
            ends[node] = () if _is_size(node) else sources
            vias[node] = (*via, *_rearranges(node, model)) if sources else ()
    return tuple(result)


def _is_size(node: Any) -> bool:
    """Whether a step gives sizes, which are no data: `x.shape`, `x.size(0)`."""
    asks_shape = _function(node) == "getattr" and node.args[1:] == ("shape",)
    return asks_shape or (node.op == "call_method" and node.target in ("size", "dim", "numel"))


def _rearranges(node: Any, model: Any) -> tuple[str, ...]:
    """What a step without weights does to the order of axes; `()` for nothing."""
    if node.op == "call_module":
        name = type(model.get_submodule(node.target)).__name__.lower()
    elif node.op in ("call_function", "call_method"):
        name = _function(node)
    else:
        return ()
    if name in _POOLS:
        return ("pool",)
    step = _REARRANGES.get(name)
    # x.view(n, -1), x.reshape(x.shape[0], -1): two sizes, the last one all that is left
    sizes = node.args[1:] if len(node.args) != 2 else node.args[1]
    if step == "reshape" and isinstance(sizes, (tuple, list)) and len(sizes) == 2:
        step = "flatten" if sizes[-1] == -1 else step
    return (step,) if step else ()


def _is_layer(module: Any) -> bool:
    """Whether a module holds tensors of its own, and those in it none: other libraries' norms."""
    own = any(True for _ in module.parameters(recurse=False))
    return own and not any(_has_tensors(child) for child in module.children())


def _has_tensors(module: Any) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _function(node: Any) -> str:
    return getattr(node.target, "__name__", str(node.target)).rpartition(".")[2]
