"""TensorFlow's object graph: what the keys of an object-based checkpoint stand for.

A checkpoint of `tf.train.Checkpoint` or of a SavedModel keeps the tree of Python objects that was
saved: nodes, their children by attribute, their variables with the key of the values and the
variable's own full name, and the optimizer's slots. Keys are paths through that tree, and some
steps of the path are stand-ins: `layer_with_weights-3` (Keras 2), `variables/7` or
`_operations/2/_kernel` (Keras 3). There the full name tells more (`conv2d_1/kernel`).

Variables are found from the root, breadth first, children in their order, which is that of
definition; ways that lead through an optimizer or through bookkeeping are taken last, so that a
weight which the optimizer lists, too, is a weight. What only such ways reach is its state.
See tensorflow/core/protobuf/trackable_object_graph.proto.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

from regraft.errors import CorruptFile
from regraft.formats._protobuf import Message

KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
# Parts that hold no weights of a model.
OPTIMIZER, BOOKKEEPING = "optimizer", "bookkeeping"

STAND_IN = re.compile(
    r"layer(_with_weights)?-\d+|_?(non_)?(trainable_)?variables|_all_variables|_operations"
    r"|_layers|_functional|_self_tracked_trackables"
)
_OPTIMIZER = re.compile(r"_?optimizers?|opt|optimizer_.*|.*_optimizer", re.IGNORECASE)
_BOOKKEEPING = re.compile(
    r"save_counter|keras_api|_?metrics|_?compiled_metrics|_compile_metrics|_?loss_tracker"
    r"|_all_variables"
)
# Children by which an optimizer is known: those of Keras 2's and those of Keras 3's.
_OPTIMIZER_CHILDREN = ({"iter", "learning_rate"}, {"_iterations", "_learning_rate"})
# Ways that are longer are not followed: what lies there is called by its key.
_MAX_DEPTH, _MAX_LENGTH = 64, 1000


class Node(NamedTuple):
    """An object: its children, the keys of its values, its slot variables."""

    children: tuple[tuple[str, int], ...]
    # Attribute, the variable's full name, and the key.
    values: tuple[tuple[str, str, str], ...]
    # Variable, the slot's name, and the slot's variable.
    slots: tuple[tuple[int, str, int], ...]

    @property
    def optimizes(self) -> bool:
        names = {name for name, _ in self.children}
        return bool(self.slots) or any(known <= names for known in _OPTIMIZER_CHILDREN)


class Named(NamedTuple):
    """What a key stands for: a path of parts; and one without full names, which may not be
    unique."""

    path: tuple[str, ...]
    plain: tuple[str, ...]


def names_of(content: bytes, keys: Container[str], label: str) -> dict[str, tuple[str, ...]]:
    """Paths by key, for those of the keys that the graph knows; unique, in the order of
    definition. **Raises** `CorruptFile`."""
    nodes = _nodes(Message(content, f"{label}, object graph"))
    found: dict[str, Named] = {}
    for index, way in _ways(nodes):
        for attribute, full_name, key in nodes[index].values:
            if key in keys:
                found.setdefault(key, _named(way, attribute, full_name, key))
    for variable, slot, state in (slot for node in nodes for slot in node.slots):
        if max(variable, state) < len(nodes):
            # A variable has one value; a node with more of them is none.
            owner = next((found.get(key) for _, _, key in nodes[variable].values[:1]), None)
            for _, _, key in nodes[state].values[:1]:
                if owner and key in keys:
                    path, plain = ((OPTIMIZER, "/".join((*way, slot))) for way in owner)
                    found.setdefault(key, Named(path, plain))
    count = Counter(name.path for name in found.values())
    return {key: n.path if count[n.path] == 1 else n.plain for key, n in found.items()}


def _nodes(message: Message) -> list[Node]:
    nodes: list[Node] = []
    for entry in message:
        if entry.number != 1:
            continue
        children: list[tuple[str, int]] = []
        values: list[tuple[str, str, str]] = []
        slots: list[tuple[int, str, int]] = []
        for part in (inner := message.inner(entry)):
            numbers: dict[int, int] = {}
            texts: dict[int, str] = {}
            for field in inner.inner(part) if part.number in (1, 2, 3) else ():
                if field.wire == 0:
                    numbers[field.number] = field.value
                else:
                    texts[field.number] = inner.text(field)
            if part.number == 1:
                children.append((texts.get(2, ""), numbers.get(1, 0)))
            elif part.number == 2:
                values.append((texts.get(1, ""), texts.get(2, ""), texts.get(3, "")))
            elif part.number == 3:
                slots.append((numbers.get(1, 0), texts.get(2, ""), numbers.get(3, 0)))
        nodes.append(Node(tuple(children), tuple(values), tuple(slots)))
    for index, node in enumerate(nodes):
        if any(child >= len(nodes) for _, child in node.children):
            raise CorruptFile(message.label, found=f"object {index} with a child that is none")
    return nodes


# Ways to the variables


class _Way(NamedTuple):
    """Attributes from the root to an object; `part` is the part of the file that it belongs to."""

    steps: tuple[str, ...]
    part: str = ""


def _ways(nodes: Sequence[Node]) -> Iterable[tuple[int, _Way]]:
    """The way to each object that can be reached, shortest first; ordered as defined."""
    parents: dict[int, tuple[int, str]] = {}
    ways: dict[int, _Way] = {0: _Way(())} if nodes else {}
    later: deque[tuple[int, str, int, str]] = deque()
    pending = deque(ways)
    while pending or later:
        if not pending:
            parent, name, child, part = later.popleft()
            if child in ways:
                continue
            parents[child] = parent, name
            ways[child] = _Way((*ways[parent].steps, name), part)
            pending.append(child)
            continue
        parent = pending.popleft()
        way = ways[parent]
        deep = len(way.steps) == _MAX_DEPTH or sum(map(len, way.steps)) > _MAX_LENGTH
        for name, child in () if deep else nodes[parent].children:
            if child in ways:
                continue
            part = way.part or _part(name, nodes[child])
            if part and not way.part:
                later.append((parent, name, child, part))
                continue
            parents[child] = parent, name
            ways[child] = _Way((*way.steps, name), part)
            pending.append(child)
    return _in_order(nodes, ways, parents)


def _part(name: str, node: Node) -> str:
    if _OPTIMIZER.fullmatch(name) or node.optimizes:
        return OPTIMIZER
    return BOOKKEEPING if _BOOKKEEPING.fullmatch(name) else ""


def _in_order(
    nodes: Sequence[Node], ways: dict[int, _Way], parents: dict[int, tuple[int, str]]
) -> Iterable[tuple[int, _Way]]:
    """The objects as a walk through the tree of ways meets them, not breadth first."""
    stack = [0] if nodes else []
    while stack:
        index = stack.pop()
        yield index, ways[index]
        inner = [c for n, c in nodes[index].children if parents.get(c) == (index, n)]
        stack += reversed(dict.fromkeys(inner))


def _named(way: _Way, attribute: str, full_name: str, key: str) -> Named:
    steps = way.steps if key.endswith(SUFFIX) else (*way.steps, attribute)
    if way.part:
        steps = tuple(step for step in steps if step != way.part)
    front = (way.part,) if way.part else ()
    at = next((i for i, step in enumerate(steps) if STAND_IN.fullmatch(step)), None)
    if way.part:
        plain = (*front, "/".join(steps) or full_name or key)
        return Named((*front, full_name) if at is not None and full_name else plain, plain)
    if at is None or "/" not in full_name:
        return Named(steps or (full_name or key,), steps or (full_name or key,))
    return Named((*steps[:at], full_name), (*steps[:at], "/".join(steps[at:])))
