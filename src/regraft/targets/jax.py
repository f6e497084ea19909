"""JAX trees: nested dicts of arrays, as Flax' `init` gives them and plain JAX code keeps them."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.errors import TargetError
from regraft.tensors import DTYPE_BITS, Sink, Skeleton, TensorInfo

if TYPE_CHECKING:
    from regraft.targets import Inputs
    from regraft.tensors import Array


def owns(model: object) -> bool:
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(model, Mapping):
        return False
    leaves = [leaf for _, leaf in _walk(model, ())]
    return (
        bool(leaves)
        and all(isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct, np.ndarray)) for leaf in leaves)
        and any(not isinstance(leaf, np.ndarray) for leaf in leaves)
    )


def _walk(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, Mapping):
        for key, part in tree.items():
            yield from _walk(part, (*path, str(key)))
    elif isinstance(tree, (list, tuple)):
        for index, part in enumerate(tree):
            yield from _walk(part, (*path, str(index)))
    elif tree is not None:
        yield path, tree


def skeleton(model: object) -> Skeleton:
    """The leaves in the tree's order, named by their keys joined with `/`."""
    infos = [
        TensorInfo("/".join(path), tuple(leaf.shape), np.dtype(leaf.dtype).name)
        for path, leaf in _walk(model, ())
    ]
    unknown = [info.name for info in infos if info.dtype not in DTYPE_BITS]
    if unknown:
        raise TargetError(unknown[0], found="a leaf that is no array of numbers")
    names = [info.name for info in infos]
    # JAX itself sorts the keys of a tree that goes through any of its functions.
    order = "sorted" if names == sorted(names) else "stored"
    return Skeleton(infos, framework="jax", order=order, label="tree")


class _TreeSink(Sink):
    """Collects new leaves; the tree itself is not changed."""

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._leaves = {"/".join(path): leaf for path, leaf in _walk(tree, ())}

    def write(self, name: str, array: Array) -> None:
        import jax

        sharding = getattr(self._leaves[name], "sharding", None)
        self._leaves[name] = jax.device_put(np.asarray(array), sharding)

    def read(self, name: str) -> Array:
        leaf = self._leaves[name]
        return np.array(leaf) if hasattr(leaf, "__array__") else np.zeros((0,), np.float32)

    @property
    def model(self) -> object:
        return self._rebuilt(self._tree, ())

    def _rebuilt(self, tree: Any, path: tuple[str, ...]) -> Any:
        if isinstance(tree, Mapping):
            parts = {key: self._rebuilt(part, (*path, str(key))) for key, part in tree.items()}
            make: Any = dict if isinstance(tree, dict) else type(tree)
            return make(parts)
        if isinstance(tree, (list, tuple)):
            items = [self._rebuilt(part, (*path, str(i))) for i, part in enumerate(tree)]
            return items if isinstance(tree, list) else tuple(items)
        return tree if tree is None else self._leaves["/".join(path)]


def sink(model: object) -> Sink:
    """Builds a new tree of the same structure; sharded arrays keep their sharding."""
    return _TreeSink(model)


def run(model: object, inputs: Inputs) -> dict[str, Array]:
    """A tree of arrays cannot be called. **Raises** `TargetError`."""
    raise TargetError(
        "a JAX tree",
        found="arrays without the function that uses them",
        expected="a way to run them",
        hint="give rg.Probe(run=lambda tree: apply(tree, x), outputs=y)",
    )


def trainable(model: object, names: Collection[str]) -> None:
    """A tree has no flags. **Raises** `TargetError`."""
    raise TargetError(
        "a JAX tree",
        found="arrays without trainable flags",
        expected="a mask for the optimizer",
        hint="give optax.masked a tree of booleans",
    )
