"""Dataflow of a torch.nn.Module by torch.export: its Python is run once on example inputs, with
tensors that have shapes and no values.

It follows where `_fx` cannot (masks, caches, outputs that are objects), takes some ten times as
long, and needs inputs. The exported graph is one of operators; those that were called inside of a
layer are that layer's step again, so that both ways to trace give the same nodes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import time
import warnings
from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from regraft.targets import _steps
from regraft.targets._steps import Step, has_tensors, is_layer, rearranged
from regraft.targets._torch_modules import untouched
from regraft.tensors import FlowNode

# Operators that may give the very tensor that they take: whoever reads that one later, outside of
# the layer that they were called in, is seen to read theirs.
_SAME = ("to", "type_as", "contiguous", "detach", "detach_", "alias", "dropout", "lift_fresh")

# Seconds for which a model's Python is followed; what torch makes of it takes as long again.
SECONDS = 20.0


def flow_of(model: Any, args: Any, kwargs: Any) -> tuple[tuple[FlowNode, ...], str]:
    """FlowNodes of a module that is called with these tensors; none and the reason where it cannot
    be exported, or takes too long. The model, its modes and hooks, are left as they are; no hook
    is called."""
    import torch

    try:
        with _quiet(), untouched(model), torch.no_grad():
            model.eval()
            _hear_no_hook(model, time.monotonic() + SECONDS)
            program = torch.export.export(_whole(model), args, kwargs, strict=False)
        calls = list(_Calls().of(program.graph_module))
        if len(calls) > _steps.LIMIT:
            raise _NotFollowed(f"{len(calls)} steps, more than {_steps.LIMIT}")
        return _steps.flow_of(_grouped(calls, _names_held(program, model), model)), ""
    except _NotFollowed as error:
        return (), str(error)
    # The model's own Python may raise anything at all, on tensors without values.
    except Exception as error:
        return (), f"{type(error).__name__}: {error}".split("\n")[0][:200]


class _NotFollowed(Exception):
    """There is no time or no way to tell one layer after the other."""


def _whole(model: Any) -> Any:
    """The model as one that gives tensors only: which objects they come in is of no matter."""
    import torch

    def tensors(value: Any) -> Iterator[Any]:
        if isinstance(value, torch.Tensor):
            yield value
        elif hasattr(value, "values"):
            yield from (inner for part in value.values() for inner in tensors(part))
        elif isinstance(value, (list, tuple)):
            yield from (inner for part in value for inner in tensors(part))

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
            return tuple(tensors(self.model(*args, **kwargs)))

    return Whole()


def _hear_no_hook(model: Any, until: float) -> None:
    """Takes all hooks off, which must not see tensors without values, and puts a clock on."""

    def in_time(module: Any, args: Any) -> None:
        if time.monotonic() > until:
            raise _NotFollowed(f"more than {SECONDS:g} seconds")

    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            hooks.clear()
        module.register_forward_pre_hook(in_time)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """torch prints and logs what it could not export; it is told as the reason."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(before)


class _Call(NamedTuple):
    """One operator. `stack`: the calls of modules that it happened in, outermost first, each by the
    module's path; the text tells calls of one module apart."""

    node: Any
    inputs: tuple[Any, ...]
    stack: tuple[tuple[str, str], ...]


class _Calls:
    """The operators of a graph in their order. Those that ran under another setting of autograd or
    autocast stand in a graph of their own, which is laid into the one around it."""

    def __init__(self) -> None:
        # For a node that stands for another one, the other one.
        self._same: dict[Any, Any] = {}
        self._results: dict[Any, Sequence[Any]] = {}

    def of(self, graph_module: Any) -> Iterator[_Call]:
        for node in graph_module.graph.nodes:
            if node.op != "call_function":
                continue
            graphs = [n for n in node.all_input_nodes if _graph_at(n, graph_module) is not None]
            if node.target is operator.getitem and node.args[0] in self._results:
                self._same[node] = self._results[node.args[0]][node.args[1]]
            elif _function(node) in _SAME:
                self._same[node] = self._known(node.args[0])
            elif len(graphs) > 1:
                raise _NotFollowed(f"{node.target} runs one of several graphs")
            elif graphs:
                yield from self._laid_in(node, graphs[0], _graph_at(graphs[0], graph_module))
            else:
                stack = node.meta.get("nn_module_stack") or {}
                paths = tuple((str(key), _inside(path)) for key, (path, _) in stack.items())
                yield _Call(node, tuple(map(self._known, node.all_input_nodes)), paths)

    def _laid_in(self, node: Any, place: Any, inner: Any) -> Iterator[_Call]:
        given = node.args[node.args.index(place) + 1 :]
        wanted = [n for n in inner.graph.nodes if n.op == "placeholder"]
        self._same |= {n: self._known(value) for n, value in zip(wanted, given, strict=True)}
        yield from self.of(inner)
        self._results[node] = [self._known(n) for n in inner.graph.output_node().args[0]]

    def _known(self, node: Any) -> Any:
        return self._same.get(node, node)


def _graph_at(node: Any, graph_module: Any) -> Any:
    """The graph that a node stands for; `None` for one of another kind."""
    held = getattr(graph_module, node.target, None) if node.op == "get_attr" else None
    return held if hasattr(held, "graph") else None


def _inside(path: str) -> str:
    """A path in the model, by the one in the whole that was exported."""
    return path.partition(".")[2]


def _names_held(program: Any, model: Any) -> dict[str, str]:
    """The owner of each parameter and buffer, by the input that it has become."""
    listed: list[tuple[str, Any]] = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    tensors = dict(listed)
    first = {id(tensor): name for name, tensor in reversed(listed)}
    signature = program.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names = {given: _inside(name) for given, name in held.items()}
    return {
        given: first[id(tensors[name])].rpartition(".")[0]
        for given, name in names.items()
        if name in tensors
    }


def _grouped(calls: Iterable[_Call], owners: Mapping[str, str], model: Any) -> Iterator[Step]:
    """Steps: all operators of one call of a layer are one, and a parameter that is read outside of
    its layer is one by itself."""
    modules = dict(model.named_modules(remove_duplicate=False))
    first = {id(module): path for path, module in model.named_modules()}
    layers = {path: module for path, module in modules.items() if path and is_layer(module)}
    step_of: dict[Any, Hashable] = {}

    def layer_call(call: _Call) -> tuple[str, str] | None:
        return next(((key, path) for key, path in call.stack if path in layers), None)

    for within, group in groupby(calls, layer_call):
        members = list(group)
        if within is not None:
            inside = {call.node for call in members}
            needed = dict.fromkeys(i for call in members for i in call.inputs if i not in inside)
            inputs = tuple(step_of[i] for i in needed if i in step_of)
            module = layers[within[1]]
            key = members[0].node
            if has_tensors(module):
                yield Step(key, inputs, owner=first[id(module)])
            else:
                kind = type(module).__name__.lower()
                yield Step(key, inputs, does=kind, via=rearranged(kind))
            step_of |= dict.fromkeys(inside, key)
            continue
        for call in members:
            inputs = []
            for read in call.inputs:
                if read.name in owners and read.op == "placeholder":
                    inputs.append((call.node, read))
                    yield Step(inputs[-1], owner=owners[read.name])
                else:
                    inputs.append(step_of.get(read, read))
            does = _function(call.node)
            sizes = call.node.args[1] if len(call.node.args) > 1 else None
            yield Step(call.node, tuple(inputs), does=does, via=rearranged(does, sizes))
            step_of[call.node] = call.node


def _function(node: Any) -> str:
    """`add` for `aten.add.Tensor`."""
    packet = getattr(node.target, "overloadpacket", node.target)
    return getattr(packet, "__name__", str(packet))
