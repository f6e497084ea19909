"""TensorFlow's GraphDef: the operations of a frozen graph, and the values of its Const nodes.

A TensorProto holds its values as raw bytes, or in the typed field of its type, where the last
value stands for all that follow. Nodes may stand in any order; here they come out so that values
are made before they are used, loops of TensorFlow 1 cut open.
See tensorflow/core/framework/graph.proto, node_def.proto, attr_value.proto and tensor.proto.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from regraft.errors import CorruptFile
from regraft.formats import _packed
from regraft.formats._ops import Op
from regraft.formats._protobuf import LENGTH, Field, Message, Span
from regraft.formats._tensorflow_types import OTHERS, TEXT, dtype_of, shape_of
from regraft.tensors import DTYPE_BITS, numpy_dtype

if TYPE_CHECKING:
    from regraft.tensors import Array

# Fields of GraphDef and NodeDef, with their wire types.
GRAPH_FIELDS = {1: 2, 2: 2, 3: 0, 4: 2, 5: 2}
NODE_FIELDS = {1: 2, 2: 2, 3: 2, 4: 2, 5: 2, 6: 2, 7: 2}
NODE, LIBRARY = 1, 2
NAME = re.compile(rb"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")
KIND = re.compile(rb"[A-Z_][A-Za-z0-9_.>]*")
_CONTENT = 4
# The typed field of a dtype, its element (`""`: varints) and how many make a value.
_TYPED = {
    "float32": (5, "float32", 1), "float64": (6, "float64", 1), "complex64": (9, "float32", 2),
    "complex128": (12, "float64", 2), "float16": (13, "", 1), "bfloat16": (13, "", 1),
    "int64": (10, "", 1), "bool": (11, "", 1), "uint32": (16, "", 1), "uint64": (17, "", 1),
    **dict.fromkeys(("float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2fnuz"),
                    (18, "uint8", 1)),
}  # fmt: skip
_INTEGERS = (7, "", 1)
# A graph's own names for operations that layers of Keras are made of.
_CALLED = {"Conv2DBackpropInput": "Conv2DTranspose", "DepthwiseConv2dNative": "DepthwiseConv2D"}
_SETTINGS = {"transpose_a", "transpose_b", "adj_x", "adj_y"}
# Values that are repeated may make so much of what is stored, and so much anyway.
_MAX_SPREAD, _SMALL = 1024, 1 << 20
_MAX_FIELDS = 1 << 16


class Const(NamedTuple):
    """A constant: raw bytes, or the occurrences of a typed field with so many values."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    raw: Span | None
    fields: tuple[Field, ...] = ()
    values: int = 0


class Graph(NamedTuple):
    """Constants by name, operations in order, and names of what cannot be read."""

    consts: dict[str, Const]
    ops: list[Op]
    unread: list[str]
    functions: bool


def graph_of(message: Message) -> Graph:
    """Reads a GraphDef. **Raises** `CorruptFile`."""
    consts: dict[str, Const] = {}
    nodes: dict[str, Op] = {}
    unread: list[str] = []
    functions = False
    for entry in message:
        functions |= entry.number == LIBRARY and entry.size > 0
        if entry.number != NODE:
            continue
        op, const = _node(message.inner(entry))
        if op.name in nodes:
            raise CorruptFile(message.label, found=f"two nodes called {op.name!r}")
        nodes[op.name] = op
        if const and const.dtype in DTYPE_BITS:
            consts[op.name] = const
        elif const:
            unread.append(op.name)
    ops = [_with_perm(op, consts, message) for op in _ordered(nodes) if op.kind != "Const"]
    return Graph(consts, ops, unread, functions)


def _node(node: Message) -> tuple[Op, Const | None]:
    name, kind = "", ""
    inputs: list[str] = []
    attributes: list[Field] = []
    for count, entry in enumerate(node):
        if count > _MAX_FIELDS:
            raise CorruptFile(f"{node.label}, byte {node.span.start}", found="a giant node")
        if entry.number == 1:
            name = node.text(entry)
        elif entry.number == 2:
            kind = node.text(entry)
        elif entry.number == 3:
            inputs.append(node.text(entry).removesuffix(":0"))
        elif entry.number == 5:
            attributes.append(entry)
    if not (name and kind):
        raise CorruptFile(f"{node.label}, byte {node.span.start}", found="a node without a name")
    settings: dict[str, tuple[int, ...]] = {}
    const = None
    for entry in attributes:
        pair = node.inner(entry).gathered()
        key = node.text(pair[1][-1]) if 1 in pair else ""
        value = node.inner(pair[2][-1]) if 2 in pair else Message(b"", node.label)
        if key in _SETTINGS:
            settings[key] = (next((f.value for f in value if f.number == 5), 0),)
        elif key == "value" and kind == "Const":
            tensor = next((f for f in value if f.number == 8), None)
            const = _const(name, value.inner(tensor)) if tensor else None
    data = tuple(value for value in inputs if not value.startswith("^"))
    # Further outputs of a node (`name:1`) hold as the first one: which one does not matter here.
    data = tuple(value.rpartition(":")[0] or value for value in data)
    return Op(_CALLED.get(kind, kind), name, data, (name,), settings), const


def _const(name: str, tensor: Message) -> Const:
    where = f"{tensor.label}, {name!r}"
    single: dict[int, Field] = {}
    many: dict[int, list[Field]] = {}
    for field in tensor:
        single[field.number] = field
        listed = many.setdefault(field.number, [])
        listed.append(field)
        if len(listed) > _MAX_FIELDS:
            raise CorruptFile(where, found="values that are not packed")
    dtype = dtype_of(single[1].value if 1 in single else 0, where)
    shape = shape_of(tensor, single.get(2), where)
    if dtype == TEXT or dtype in OTHERS.values():
        return Const(name, shape, dtype, None)
    width = max(1, DTYPE_BITS[dtype] // 8)
    size = math.prod(shape) * width
    raw = single.get(_CONTENT)
    if raw and raw.size:
        if raw.wire != LENGTH or raw.size != size:
            raise CorruptFile(where, found=f"{raw.size} bytes", expected=f"{size}")
        return Const(name, shape, dtype, Span(raw.start, raw.stop))
    number, element, each = _TYPED.get(dtype, _INTEGERS)
    fields = tuple(many.get(number, ()))
    step = DTYPE_BITS[element] // 8 if element else 0
    count = _packed.count_of(tensor.data, fields, step) // each
    cut_off = any(f.size % step for f in fields if step)
    if cut_off or count > math.prod(shape):
        raise CorruptFile(where, found=f"{count} values", expected=f"{math.prod(shape)} at most")
    if size > max(count * width * _MAX_SPREAD, _SMALL):
        raise CorruptFile(where, found=f"shape {shape} from {count} repeated values")
    return Const(name, shape, dtype, None, fields, count)


def typed_values(message: Message, const: Const) -> Array:
    """The values of a constant in a typed field."""
    import numpy as np

    where = f"{message.label}, {const.name!r}"
    _, element, each = _TYPED.get(const.dtype, _INTEGERS)
    kind = numpy_dtype(const.dtype)
    if not const.values:
        return np.zeros(const.shape, kind)
    if element:
        flat = _packed.fixed_width(message.data, const.fields, element)[: const.values * each]
        flat = flat.view(kind)
    else:
        numbers = _packed.varints(message.data, const.fields, where)
        flat = _packed.reinterpreted(numbers, const.dtype, where)
    missing = math.prod(const.shape) - const.values
    return np.concatenate([flat, np.repeat(flat[-1:], missing)]).reshape(const.shape)


def _with_perm(op: Op, consts: dict[str, Const], message: Message) -> Op:
    """A transposition with its axes, which are an input here."""
    perm = consts.get(op.inputs[1]) if op.kind == "Transpose" and len(op.inputs) > 1 else None
    if perm is None or perm.raw is None or perm.dtype not in ("int32", "int64"):
        return op
    form = f"<{math.prod(perm.shape)}{'i' if perm.dtype == 'int32' else 'q'}"
    axes = struct.unpack(form, message.data[perm.raw.start : perm.raw.stop])
    return op._replace(inputs=op.inputs[:1], settings={"perm": axes})


def _ordered(nodes: dict[str, Op]) -> Iterator[Op]:
    """Nodes after those that they take values from."""
    seen: set[str] = set()
    for start in nodes:
        stack = [] if start in seen else [(start, iter(nodes[start].inputs))]
        seen.add(start)
        while stack:
            name, inputs = stack[-1]
            before = next((value for value in inputs if value in nodes and value not in seen), None)
            if before is None:
                yield nodes[name]
                stack.pop()
            else:
                seen.add(before)
                stack.append((before, iter(nodes[before].inputs)))
