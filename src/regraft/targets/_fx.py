"""Dataflow of a torch.nn.Module by symbolic tracing; no weights are touched, meta is fine."""

from __future__ import annotations

import dis
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

from regraft.targets import _steps
from regraft.targets._steps import Step, has_tensors, is_layer, rearranged
from regraft.targets._torch_modules import buffers_kept
from regraft.tensors import FlowNode

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
        if len(graph.nodes) > _steps.LIMIT:
            return (), f"{len(graph.nodes)} steps, more than {_steps.LIMIT}"
        return _steps.flow_of(_listed(graph, model)), ""
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
            return is_layer(m)

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


def _listed(graph: Any, model: Any) -> Iterator[Step]:
    held = {path for path, module in model.named_modules() if has_tensors(module)}
    for node in graph.nodes:
        inputs = tuple(node.all_input_nodes)
        if node.op == "call_module" and node.target in held:
            yield Step(node, inputs, owner=node.target)
        elif node.op == "call_module":
            kind = type(model.get_submodule(node.target)).__name__.lower()
            yield Step(node, inputs, does=kind, via=rearranged(kind))
        elif node.op == "get_attr":
            yield Step(node, owner=node.target.rpartition(".")[0])
        elif node.op in ("call_function", "call_method"):
            does = _function(node)
            sizes = node.args[1:] if len(node.args) != 2 else node.args[1]
            via = rearranged(does, sizes)
            yield Step(node, inputs, does=does, via=via, sizes=_is_size(node))
        else:
            yield Step(node, inputs)


def _is_size(node: Any) -> bool:
    """Whether a step gives sizes, which are no data: `x.shape`, `x.size(0)`."""
    asks_shape = _function(node) == "getattr" and node.args[1:] == ("shape",)
    return asks_shape or (node.op == "call_method" and node.target in ("size", "dim", "numel"))


def _function(node: Any) -> str:
    return getattr(node.target, "__name__", str(node.target)).rpartition(".")[2]
