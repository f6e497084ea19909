"""What a graph of operations says of the stored tensors that it reads: layer, role, dataflow.

Graph files name tensors as they please (`onnx::Conv_402`), but the operation that takes a tensor
tells what it is. Operations are seen here without their format: names of values in and out, a
few integers. Tensors reach them directly or through steps that leave the values alone.

What belongs to a layer: the inputs of one operation that the dialect's table names; a vector that
is added to what a kernel gives, its bias; a vector multiplied in, a scale, and the one added next.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from regraft.formats._op_names import owners_of
from regraft.formats._ops import Dialect, Op, Param, Reading, Use
from regraft.tensors import FlowNode

_MAX_FLOW = 20_000
# Moves of axes that are kept between two steps; more of them say no more than these.
_MAX_MOVES = 8
# Steps that a value may come from where control flow joins several.
_MAX_ENDS = 64
_BIASED = ("kernel", "quantized_kernel", "gamma")


def read(ops: Iterable[Op], params: Mapping[str, Param], dialect: Dialect) -> Reading:
    """Reads a graph whose operations stand in an order in which values are made before used.

    **Arguments:**

    - `params`: stored tensors by the name of their value in the graph.
    """
    reader = _Reader(params, dialect)
    for op in ops:
        reader.take(op)
    return reader.result()


class _Held(NamedTuple):
    """A value that is a stored tensor: `turned`, a matrix transposed; `moved`, otherwise."""

    param: Param
    turned: bool = False
    moved: bool = False


@dataclass(eq=False)
class _Layer:
    module: str
    hint: str
    tensors: dict[str, Param] = field(default_factory=dict[str, Param])

    def takes_bias(self, param: Param) -> bool:
        main = next((self.tensors[role] for role in _BIASED if role in self.tensors), None)
        open_ = not {"bias", "quantized_bias"} & self.tensors.keys()
        return open_ and main is not None and max(param.shape) in main.shape


class _Reader:
    def __init__(self, params: Mapping[str, Param], dialect: Dialect) -> None:
        self._dialect = dialect
        self._held = {value: _Held(param) for value, param in params.items()}
        self._order: dict[str, bool] = {}  # tensors read; whether only as settings
        self._layers: list[_Layer] = []
        self._layer_of: dict[str, _Layer] = {}
        self._made: dict[str, _Layer] = {}  # values right out of a layer
        self._steps: list[tuple[_Layer | None, str, tuple[int, ...], tuple[str, ...]]] = []
        # For each value: the steps that it comes from, what moved its axes since, and the number
        # of pieces that a shape was put together from.
        self._ends: dict[str, tuple[int, ...]] = {}
        self._via: dict[str, tuple[str, ...]] = {}
        self._pieces: dict[str, int] = {}

    def take(self, op: Op) -> None:
        if not op.outputs:
            return
        held = [self._held.get(value) for value in op.inputs]
        for h in held:
            if h:
                steers = op.kind in self._dialect.steered
                self._order[h.param.name] = self._order.get(h.param.name, True) and steers
        if held and held[0] and self._carried(op, held[0]):
            return
        roles = self._dialect.parameters.get(op.kind, {})
        there = {i: h for i, h in enumerate(held) if h and i in roles}
        if op.kind in self._dialect.dense and not there and held and held[0]:
            there = {0: held[0]}
        if there and any(h.param.floating or roles.get(i) == "kernel" for i, h in there.items()):
            self._layer(op, {roles.get(i, "kernel"): (i, h) for i, h in there.items()})
        elif not self._arithmetic(op, held) and not self._scaled(op):
            self._pass_on(op)

    # Stored tensors on their way

    def _carried(self, op: Op, held: _Held) -> bool:
        """Whether what comes out is still the stored tensor."""
        known = self._dialect
        if op.kind in known.unchanged:
            carried = held
        elif not held.param.floating:
            return False
        elif op.kind in known.transpose and len(held.param.shape) == 2:
            swapped = op.settings.get("perm", (1, 0)) == (1, 0)
            carried = held._replace(turned=held.turned != swapped)
        elif op.kind in known.transpose | known.reshape:
            carried = held._replace(moved=held.moved or not held.param.vector)
        else:
            return False
        self._held[op.outputs[0]] = carried
        return True

    # Layers

    def _layer(self, op: Op, there: Mapping[str, tuple[int, _Held]]) -> None:
        module = op.kind
        tensors: dict[str, Param] = {}
        for role, (index, held) in there.items():
            if op.kind in self._dialect.dense and role == "kernel":
                module = self._dense(op, index, held)
            tensors[_told(role, held)] = held.param
        main = next(iter(tensors.values())).name
        layer = self._layer_of.get(main)
        if layer is None:
            layer = _Layer(module, op.name, tensors)
            self._layers.append(layer)
            for param in tensors.values():
                self._layer_of.setdefault(param.name, layer)
        self._step(op, layer, "")
        self._made[op.outputs[0]] = layer

    def _dense(self, op: Op, index: int, held: _Held) -> str:
        """`Gemm` for a kernel stored as [out, in], `MatMul` for [in, out], whoever takes it."""
        setting = self._dialect.dense[op.kind][min(index, 1)]
        turned = bool(op.settings.get(setting, (0,))[0]) != held.turned
        return "Gemm" if turned == (index > 0) else "MatMul"

    def _arithmetic(self, op: Op, held: list[_Held | None]) -> bool:
        """Biases and scales that are operations of their own."""
        if len(held) != 2 or (held[0] is None) == (held[1] is None):
            return False
        given = held[0] or held[1]
        assert given is not None
        param, before = given.param, self._made.get(op.inputs[0 if held[1] else 1])
        if not (param.vector and param.floating):
            return False
        adds = op.kind in self._dialect.add or (op.kind in self._dialect.subtract and held[0])
        if adds and before and before.takes_bias(param):
            if param.name not in self._layer_of:
                before.tensors["bias"] = param
                self._layer_of[param.name] = before
            self._pass_on(op)
            return True
        if op.kind in self._dialect.multiply:
            self._layer(op, {"gamma": (0, given)})
            return True
        return False

    def _scaled(self, op: Op) -> bool:
        """A scale that was multiplied into a statistic first, and now into the data.

        TensorFlow writes a normalisation as `x·s + (beta - mean·s)` with `s = gamma / deviation`.
        """
        if op.kind not in self._dialect.multiply or len(op.inputs) != 2:
            return False
        for scale, data in (op.inputs, op.inputs[::-1]):
            layer, ends = self._made.get(scale), self._ends.get(scale, ())
            if layer and "gamma" in layer.tensors and len(ends) == 1:
                _, _, sources, _ = self._steps[ends[0]]
                if set(self._ends.get(data, ())) <= set(sources):
                    self._ends[op.outputs[0]], self._made[op.outputs[0]] = ends, layer
                    return True
        return False

    # Dataflow

    def _step(self, op: Op, layer: _Layer | None, label: str) -> None:
        sources, via = self._arriving(op)
        self._steps.append((layer, label, sources, via))
        for value in op.outputs:
            self._ends[value] = (len(self._steps) - 1,)

    def _arriving(self, op: Op) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The steps before, and what moved axes since; equal ways to one input count once."""
        ways = dict.fromkeys(
            (self._ends[v], self._via.get(v, ())) for v in op.inputs if v in self._ends
        )
        sources = tuple(dict.fromkeys(step for ends, _ in ways for step in ends))
        return sources, tuple(move for _, via in ways for move in via)[:_MAX_MOVES]

    def _pass_on(self, op: Op) -> None:
        """A step without tensors of its own: it merges data, moves its axes, or lets it pass."""
        known = self._dialect
        if op.kind in known.concat:
            self._pieces[op.outputs[0]] = len(op.inputs)
        if op.kind in known.sizes:
            return
        arriving = {self._ends[value] for value in op.inputs if value in self._ends}
        sources, via = self._arriving(op)
        if len(arriving) > 1 and (op.kind or len(sources) > _MAX_ENDS):
            self._step(op, None, op.kind.lower() or "join")
            return
        for value in op.outputs if sources else ():
            self._ends[value] = sources
            self._via[value] = (*via, *self._moves(op))[:_MAX_MOVES]
        before = self._made.get(op.inputs[0]) if op.inputs else None
        if before and op.kind in known.unchanged | known.reshape | known.transpose:
            self._made[op.outputs[0]] = before  # a bias may follow yet

    def _moves(self, op: Op) -> tuple[str, ...]:
        known = self._dialect
        if op.kind in known.flatten:
            return ("flatten",)
        if op.kind in known.transpose:
            perm = op.settings.get("perm", ())
            channels_to_the_end = len(perm) > 2 and perm == (0, *range(2, len(perm)), 1)
            return ("permute",) if channels_to_the_end else ("reshape",)
        if op.kind in known.reshape and len(op.inputs) > 1:
            shape = self._held.get(op.inputs[1])
            rank = math.prod(shape.param.shape) if shape else self._pieces.get(op.inputs[1], 0)
            return ("flatten",) if rank == 2 else ("reshape",)
        return ()

    # The answer

    def result(self) -> Reading:
        named = [([p.name for p in x.tensors.values()], x.hint) for x in self._layers]
        owners = dict(zip(map(id, self._layers), owners_of(named), strict=True))
        uses: dict[str, Use] = {}
        for layer in self._layers:
            for role, param in layer.tensors.items():
                uses.setdefault(param.name, Use(owners[id(layer)], layer.module, role))
        flow = tuple(
            FlowNode(owners[id(layer)] if layer else "", label, sources, via)
            for layer, label, sources, via in self._steps[: _MAX_FLOW + 1]
        )
        settings = frozenset(name for name, steers in self._order.items() if steers)
        return Reading(uses, tuple(self._order), settings, flow if len(flow) <= _MAX_FLOW else ())


def _told(role: str, held: _Held) -> str:
    """The role; one that no layer has where the stored values are not the layer's own."""
    if not held.param.floating:
        return f"quantized_{role}"
    return f"rearranged_{role}" if held.moved else role
