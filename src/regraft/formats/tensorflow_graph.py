"""Frozen TensorFlow graphs (`.pb`): variables turned into constants of a GraphDef.

Numbers among the constants are listed under their nodes' names, in the order of use; what they
are to a layer is read from the operations, as for ONNX. Values stay in the mapped file. Constants
inside a graph's functions are not looked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from regraft.errors import CorruptFile
from regraft.formats import Sample, _op_graph
from regraft.formats._bytes import Mapped, Strided
from regraft.formats._graph_def import (
    GRAPH_FIELDS,
    KIND,
    NAME,
    NODE,
    NODE_FIELDS,
    Const,
    Graph,
    graph_of,
    typed_values,
)
from regraft.formats._ops import Dialect, Param, Reading, Use
from regraft.formats._protobuf import Message, opened
from regraft.tensors import Stored, StoredTensor

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

EXTRA = ""
SUFFIXES: tuple[str, ...] = ()

_SNIFFED_FIELDS = 64
_SHOWN = 20
_KERNEL = {1: "kernel"}
_NORM = {1: "gamma", 2: "beta", 3: "moving_mean", 4: "moving_variance"}
DIALECT = Dialect(
    parameters={
        **dict.fromkeys(("Conv2D", "Conv3D", "Conv2DTranspose", "MatMul"), _KERNEL),
        **dict.fromkeys(("BatchMatMul", "BatchMatMulV2"), _KERNEL),
        "DepthwiseConv2D": {1: "depthwise_kernel"},
        "_FusedConv2D": {1: "kernel", 2: "bias"},
        "_FusedMatMul": {1: "kernel", 2: "bias"},
        **{f"FusedBatchNorm{version}": _NORM for version in ("", "V2", "V3")},
        "GatherV2": {0: "embeddings"},
        "Gather": {0: "embeddings"},
    },
    dense={
        "MatMul": ("transpose_a", "transpose_b"),
        "_FusedMatMul": ("transpose_a", "transpose_b"),
        "BatchMatMul": ("adj_x", "adj_y"),
        "BatchMatMulV2": ("adj_x", "adj_y"),
    },
    add=frozenset({"Add", "AddV2", "BiasAdd"}),
    subtract=frozenset({"Sub"}),
    multiply=frozenset({"Mul"}),
    unchanged=frozenset({"Identity", "Cast", "StopGradient", "Enter"}),
    transpose=frozenset({"Transpose"}),
    reshape=frozenset({"Reshape", "ExpandDims", "Squeeze"}),
    concat=frozenset({"Pack"}),
    sizes=frozenset({"Shape", "ShapeN", "Size", "Rank", "Fill"}),
    steered=frozenset({"ClipByValue", "OneHot", "Pad", "PadV2", "Range", "ResizeBilinear"}),
)


class _Frozen(Stored):
    format = "tensorflow_graph"
    framework = "keras"
    separator = "/"

    def __init__(self, path: Path, message: Message, tensors: list[StoredTensor]) -> None:
        self._file = Mapped(path)
        self._message = message
        self.tensors = tuple(tensors)

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        const: Const = tensor.where
        if const.raw is None:
            whole = typed_values(self._message, const)
            return whole if slices is None else whole[slices]
        start, size = const.raw.start, const.raw.size
        return self._file.array(Strided(start, size, start, const.shape, None, const.dtype), slices)

    def close(self) -> None:
        self._file.close()


def sniff(sample: Sample) -> bool:
    """A GraphDef has no magic: it begins with nodes that have a name and an operation."""
    if sample.head[:1] != b"\x0a":
        return False
    try:
        message = opened(sample.path)
        for count, entry in enumerate(message):
            if GRAPH_FIELDS.get(entry.number) != entry.wire:
                return False
            if entry.number == NODE and not _is_node(message.inner(entry)):
                return False
            if count == _SNIFFED_FIELDS:
                return True
    except (CorruptFile, OSError):
        return False
    return True


def _is_node(node: Message) -> bool:
    texts: dict[int, bytes] = {}
    for entry in node:
        if NODE_FIELDS.get(entry.number) != entry.wire:
            return False
        if entry.number in (1, 2):
            texts[entry.number] = node.raw(entry)
    return bool(NAME.fullmatch(texts.get(1, b"")) and KIND.fullmatch(texts.get(2, b"")))


def open(path: Path) -> Stored:
    """Lists the constants. **Raises** `CorruptFile`."""
    message = opened(path)
    graph = graph_of(message)
    params = {
        name: Param(name, const.shape, const.dtype.startswith(("float", "bfloat", "complex")))
        for name, const in graph.consts.items()
    }
    reading = _op_graph.read(graph.ops, params, DIALECT)
    stored = _Frozen(path, message, list(_listed(graph, params, reading)))
    stored.flow = reading.flow
    stored.notes = tuple(_notes(graph))
    return stored


def _listed(graph: Graph, params: dict[str, Param], reading: Reading) -> Iterable[StoredTensor]:
    for name in dict.fromkeys((*reading.order, *graph.consts)):
        const, use = graph.consts[name], reading.uses.get(name)
        if use and use.module == "Gemm":  # [out, in], as no layer of Keras has it
            use = Use(use.owner, use.module, f"turned_{use.role}")
        aside = name in reading.settings or math.prod(const.shape) == 1
        constant = not use and (aside or not params[name].floating)
        owner, module, role = use or ("", "", "")
        yield StoredTensor(
            (name,), const.shape, const.dtype, const, module, role,
            "constant" if constant else "weight", owner,
        )  # fmt: skip


def _notes(graph: Graph) -> Iterable[str]:
    if graph.unread:
        more = " …" if len(graph.unread) > _SHOWN else ""
        names = ", ".join(graph.unread[:_SHOWN])
        yield f"{len(graph.unread)} constants that are no numbers are not listed: {names}{more}"
    if graph.functions:
        yield "constants inside the graph's functions are not listed"
