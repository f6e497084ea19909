"""ONNX' ModelProto: metadata, stored tensors, and its operations in one row.

Graphs nest (the bodies of If, Loop and Scan) and see the values of the graphs around them. Here
they are laid flat: each value gets a name of its own, the inside of a body stands where its
operation stands, and steps of kind `""` join what goes in and out.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from regraft.errors import CorruptFile
from regraft.formats._onnx_tensors import Tensor, sparse_tensor_of, tensor_of
from regraft.formats._ops import Op
from regraft.formats._protobuf import Field, Message

# Fields of ModelProto, with the wire types that they have; all that a model may begin with.
MODEL_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
IR_VERSION, GRAPH = 1, 7
_TEXTS = {2: "producer_name", 3: "producer_version", 4: "domain", 6: "doc_string"}
_OPSETS, _PROPERTIES, _FUNCTIONS = 8, 14, 25
# Fields of GraphProto, NodeProto, AttributeProto and FunctionProto.
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _SPARSE = 1, 5, 11, 12, 15
_BODIES = {"If", "Loop", "Scan", "SequenceMap"}
_FUNCTION_NODE = 7
_SETTINGS = {"perm", "transA", "transB"}
# Domains whose operations are what their names say.
_KNOWN_DOMAINS = {"", "ai.onnx", "com.microsoft"}
_MAX_DEPTH, _MAX_PATH = 16, 256
_MAX_DOC, _MAX_OPSETS = 1 << 20, 1000
_MAX_NODE_FIELDS = 1 << 16


class Found:
    """A stored tensor of a model: where it stands, and whether a Constant node holds it."""

    __slots__ = ("constant", "scope", "tensor")

    def __init__(self, tensor: Tensor, scope: str, constant: bool) -> None:
        self.tensor, self.scope, self.constant = tensor, scope, constant


@dataclass
class _Scope:
    """The names of one graph: of the model's own, numbered 0, or of a body.

    `path` says where the body belongs; it is cut, as names of any length multiply.
    """

    number: int
    path: str
    parent: _Scope | None = None
    names: dict[str, str] = field(default_factory=dict[str, str])

    def define(self, name: str) -> str:
        return self.names.setdefault(name, f"{self.number}\0{name}" if self.number else name)

    def resolve(self, name: str) -> str:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.parent
        return self.define(name)


class Model:
    """A model read: `metadata`; `tensors` by the name of their value; `ops`; whether it is
    `whole`, that is, whether no functions hide operations.

    **Raises** `CorruptFile`, `FormatError`.
    """

    def __init__(self, message: Message) -> None:
        self.metadata: dict[str, str] = {}
        self.tensors: dict[str, Found] = {}
        self.ops: list[Op] = []
        self.whole = True
        self._label = message.label
        self._scopes = itertools.count()
        graphs: list[Field] = []
        functions: list[Field] = []
        opsets: list[str] = []
        for entry in message:
            number = entry.number
            if number == GRAPH:
                graphs.append(entry)
            elif number == _FUNCTIONS:
                functions.append(entry)
            elif number == IR_VERSION:
                self.metadata["ir_version"] = str(entry.value)
            elif number in _TEXTS and entry.size:
                self.metadata[_TEXTS[number]] = message.text(entry, _MAX_DOC)
            elif number == _OPSETS and len(opsets) < _MAX_OPSETS:
                opset = message.inner(entry).gathered()
                domain = message.text(opset[1][-1]) if 1 in opset else ""
                opsets.append(f"{domain or 'ai.onnx'} {opset[2][-1].value if 2 in opset else 0}")
            elif number == _PROPERTIES:
                pair = message.inner(entry).gathered()
                key, value = (message.text(pair[n][-1], _MAX_DOC) if n in pair else ""
                              for n in (1, 2))  # fmt: skip
                self.metadata[key] = value
        if len(graphs) != 1:
            raise CorruptFile(message.label, found=f"{len(graphs)} graphs", expected="one")
        self.metadata["opset_import"] = ", ".join(opsets)
        self._graph(message.inner(graphs[0]), self._scope(""), 0)
        for entry in functions:
            self._function(message.inner(entry))

    def _scope(self, path: str, parent: _Scope | None = None) -> _Scope:
        return _Scope(next(self._scopes), path, parent)

    def _graph(self, graph: Message, scope: _Scope, depth: int) -> tuple[list[str], list[str]]:
        """Adds a graph's tensors and operations; gives the values that it takes and gives."""
        if depth > _MAX_DEPTH:
            raise CorruptFile(graph.label, found="graphs nested too deep")
        inputs: list[str] = []
        outputs: list[str] = []
        for entry in graph:
            if entry.number == _INITIALIZER:
                self._add(tensor_of(graph.inner(entry)), scope)
            elif entry.number == _SPARSE:
                self._add(sparse_tensor_of(graph.inner(entry)), scope)
            elif entry.number == _INPUT:
                inputs.append(scope.define(self._value_name(graph.inner(entry))))
        for entry in graph:
            if entry.number == _NODE:
                self._node(graph.inner(entry), scope, depth)
            elif entry.number == _OUTPUT:
                outputs.append(self._value_name(graph.inner(entry)))
        return inputs, [scope.resolve(name) for name in outputs]

    def _value_name(self, info: Message) -> str:
        return next((info.text(entry) for entry in info if entry.number == 1), "")

    def _add(self, tensor: Tensor, scope: _Scope, constant: bool = False) -> None:
        if not tensor.name:
            raise CorruptFile(self._label, found="an initializer without a name")
        value = scope.define(tensor.name)
        if value in self.tensors:
            raise CorruptFile(
                self._label,
                found=f"two tensors called {tensor.name!r} in one graph",
                expected="names that are unique",
            )
        self.tensors[value] = Found(tensor, scope.path, constant)

    def _function(self, function: Message) -> None:
        """A function's operations: called by name, they are no part of the model's own row."""
        name = self._value_name(function)
        scope = self._scope(f"{name[-_MAX_PATH:]}()")
        for entry in function:
            if entry.number == _FUNCTION_NODE:
                self.whole = False
                self._node(function.inner(entry), scope, 0)

    # Operations

    def _node(self, node: Message, scope: _Scope, depth: int) -> None:
        inputs: list[str] = []
        outputs: list[str] = []
        texts = {3: "", 4: "", 7: ""}  # name, kind, domain
        attributes: list[Field] = []
        for count, entry in enumerate(node):
            if entry.number == 1:
                inputs.append(node.text(entry))
            elif entry.number == 2:
                outputs.append(node.text(entry))
            elif entry.number in texts:
                texts[entry.number] = node.text(entry)
            elif entry.number == 5:
                attributes.append(entry)
            if count > _MAX_NODE_FIELDS:
                raise CorruptFile(f"{node.label}, byte {node.span.start}", found="a giant node")
        name, kind, domain = texts.values()
        if not kind:
            raise CorruptFile(
                f"{node.label}, byte {node.span.start}", found="a node without an operation"
            )
        settings: dict[str, tuple[int, ...]] = {}
        bodies: list[tuple[str, Message]] = []
        for entry in attributes:
            self._attribute(node.inner(entry), kind, outputs, scope, settings, bodies)
        taken = tuple(scope.resolve(value) if value else "" for value in inputs)
        ends = [self._body(kind, name, taken, b, scope, depth) for b in bodies]
        given = tuple(scope.define(value) if value else "" for value in outputs)
        if kind == "Constant" and given and given[0] in self.tensors:
            return
        if kind in _BODIES and domain in _KNOWN_DOMAINS and ends:
            for index, value in enumerate(given):
                joined = tuple(end[index] for end in ends if index < len(end))
                self.ops.append(Op("", name, joined, (value,)))
            return
        plain = kind if domain in _KNOWN_DOMAINS else f"{domain}.{kind}"
        self.ops.append(Op(plain, name, taken, given, settings))

    def _attribute(
        self,
        attribute: Message,
        kind: str,
        outputs: list[str],
        scope: _Scope,
        settings: dict[str, tuple[int, ...]],
        bodies: list[tuple[str, Message]],
    ) -> None:
        """Reads of an attribute what is of use: small integers, a Constant's tensor, a body."""
        name = self._value_name(attribute)
        integers: list[Field] = []
        for entry in attribute:
            if entry.number in (3, 8) and name in _SETTINGS:
                integers.append(entry)
            elif entry.number == 5 and kind == "Constant" and name == "value" and outputs:
                tensor = tensor_of(attribute.inner(entry))
                self._add(tensor._replace(name=outputs[0]), scope, constant=True)
            elif entry.number in (6, 11):
                bodies.append((name, attribute.inner(entry)))
        if integers:
            settings[name] = tuple(attribute.integers(integers))

    def _body(
        self,
        kind: str,
        name: str,
        taken: tuple[str, ...],
        body: tuple[str, Message],
        scope: _Scope,
        depth: int,
    ) -> list[str]:
        """Lays a body flat; gives the values that leave it, as its operation gives them on."""
        attribute, graph = body
        place = f"{name or kind}/{attribute}"
        path = f"{scope.path}/{place}" if scope.path else place
        inner = self._scope(path[-_MAX_PATH:], scope)
        at = len(self.ops)
        inputs, outputs = self._graph(graph, inner, depth + 1)
        entering = [Op("", name, (a,), (b,)) for a, b in zip(taken, inputs, strict=False)]
        if kind != "If":
            self.ops[at:at] = entering
        return outputs[1:] if kind == "Loop" else outputs
