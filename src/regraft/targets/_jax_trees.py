"""Trees of JAX: nested dicts, lists and tuples of arrays, and classes registered as such.

Flax' linen variables (FrozenDict too), Haiku's parameters, Equinox modules, registered dataclasses
and train states. A tree's arrays are named by the keys that lead to them, joined with `/`. What is
no array (functions, plain numbers, keys of random numbers) and an optimizer's state stay as
they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from regraft.containers import never
from regraft.sinks import Sink
from regraft.targets import _jax_arrays
from regraft.tensors import Skeleton, TensorInfo

if TYPE_CHECKING:
    from regraft.tensors import Array

_COUNTERS = ("step", "count", "counter")


class _Leaf(NamedTuple):
    """One leaf, in JAX' order. `place` sorts leaves as the tree's makers wrote them; `owner` is the
    class that holds it, `""` for a dict or a list."""

    path: tuple[str, ...]
    value: Any
    place: tuple[int, ...]
    owner: str

    @property
    def name(self) -> str:
        return "/".join(self.path)


def holds_arrays(tree: object) -> bool:
    """Whether an object is a tree, and some of its leaves arrays of JAX."""
    import jax

    if isinstance(tree, (jax.Array, jax.ShapeDtypeStruct)) or jax.tree_util.all_leaves([tree]):
        return False
    return any(
        isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct))
        for leaf in jax.tree_util.tree_leaves(tree)
    )


def _leaves(
    tree: Any, path: tuple[str, ...] = (), place: tuple[int, ...] = (), owner: str = ""
) -> Iterator[_Leaf]:
    """All leaves in JAX' order, which sorts the keys of dicts."""
    import jax

    if jax.tree_util.all_leaves([tree]):
        yield _Leaf(path, tree, place, owner)
        return
    written = {key: i for i, key in enumerate(tree)} if isinstance(tree, Mapping) else {}
    plain = isinstance(tree, (Mapping, list, tuple)) and not hasattr(tree, "_fields")
    below, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)
    for i, (keys, child) in enumerate(below):
        key = keys[0]
        inner = path if _is_box(tree) else (*path, _text(key))
        at = (*place, written.get(getattr(key, "key", None), i))
        yield from _leaves(
            child, inner, at, owner if plain or _is_box(tree) else type(tree).__name__
        )


def leaf_names(tree: Any) -> list[str]:
    """The names of all leaves, in JAX' order: those of `jax.tree_util.tree_leaves`."""
    return [leaf.name for leaf in _leaves(tree)]


def _text(key: Any) -> str:
    """`DictKey`, `SequenceKey`, `GetAttrKey` and `FlattenedIndexKey` as plain text."""
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _is_box(node: object) -> bool:
    """Whether a node only says more of the one array in it: Flax' Partitioned and Variable."""
    meta, nnx = sys.modules.get("flax.core.meta"), sys.modules.get("flax.nnx")
    boxes = [getattr(meta, "AxisMetadata", None), getattr(nnx, "Variable", None)]
    return any(box is not None and isinstance(node, box) for box in boxes)


def _named(tree: Any) -> list[_Leaf]:
    """The leaves that are weights."""
    return [leaf for leaf in _leaves(tree) if _is_weight(leaf)]


def _is_weight(leaf: _Leaf) -> bool:
    return _jax_arrays.is_array(leaf.value) and not (leaf.path and never(leaf.path[0]))


def skeleton(tree: object) -> Skeleton:
    """The arrays in the order in which the tree was written down."""
    leaves = sorted(_named(tree), key=lambda leaf: leaf.place)
    infos = [
        TensorInfo(
            leaf.name,
            tuple(leaf.value.shape),
            _jax_arrays.dtype_name(leaf.value, leaf.name),
            leaf.owner if len(leaf.path) > 1 else "",
            kind=_kind(leaf),
        )
        for leaf in leaves
    ]
    names = [info.name for info in infos]
    # JAX itself sorts the keys of a dict that goes through any of its functions. The fields of a
    # class keep the order of its definition.
    by_class = infos and all(leaf.owner for leaf in leaves)
    order = "definition" if by_class else "sorted" if names == sorted(names) else "stored"
    label = "tree" if isinstance(tree, (Mapping, list, tuple)) else type(tree).__name__
    return Skeleton(infos, framework=_layout(tree), order=order, label=label)


def _kind(leaf: _Leaf) -> Literal["weight", "counter"]:
    counts = leaf.path[-1] in _COUNTERS and not leaf.value.shape and leaf.value.dtype.kind in "iu"
    return "counter" if counts else "weight"


def _layout(tree: Any) -> str:
    """Whose layout the arrays have: Equinox lays its kernels out as PyTorch does, `[out, in, …]`,
    and so may any class with a `weight` of its own, of which nothing is known then."""
    import jax

    equinox: Any = sys.modules.get("equinox")
    if equinox is not None:
        is_module: Callable[[Any], bool] = lambda node: isinstance(node, equinox.Module)  # noqa: E731
        if any(is_module(node) for node in jax.tree_util.tree_leaves(tree, is_leaf=is_module)):
            return "torch"
    own = (leaf.owner and leaf.path[-1] == "weight" for leaf in _named(tree))
    return "" if any(own) else "jax"


class TreeSink(Sink):
    """Collects new leaves; the tree itself is not changed."""

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._held = {leaf.name: leaf.value for leaf in _named(tree)}

    def write(self, name: str, array: Array) -> None:
        self._held[name] = _jax_arrays.like(array, self._held[name])

    def read(self, name: str) -> Array:
        return _jax_arrays.to_numpy(self._held[name], name)

    def look(self, name: str) -> Array:
        return _jax_arrays.seen(self._held[name], name)

    def undo(self, name: str) -> Callable[[], None]:
        before = self._held[name]  # arrays of JAX do not change: the old one is its own copy
        return lambda: self._held.__setitem__(name, before)

    def hollow(self, name: str) -> bool:
        return _jax_arrays.is_abstract(self._held[name])

    @property
    def model(self) -> object:
        import jax

        leaves = _leaves(self._tree)
        new = [self._held[leaf.name] if _is_weight(leaf) else leaf.value for leaf in leaves]
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(self._tree), new)
