"""Mappings written by hand, which prove that a pair has the answer it claims.

They use the frameworks' own ways to set weights and nothing of Regraft's, and they are strict: a
tensor that the mapping does not speak of is an error, unless the mapping says that it stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

Array = Any
Renames = Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]


def arrays_of(model: Any) -> dict[str, Array]:
    """A torch module's or state dict's tensors as numpy arrays, counters left out."""
    state = model.state_dict() if hasattr(model, "state_dict") else model
    return {
        name: tensor.detach().float().numpy() if tensor.dtype.is_floating_point else tensor.numpy()
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }


def renamed(arrays: Mapping[str, Array], rules: Renames) -> dict[str, Array]:
    """Names rewritten by regular expressions, all of them in turn."""
    result: dict[str, Array] = {}
    for name, array in arrays.items():
        for pattern, into in rules:
            name = re.sub(pattern, into, name)
        if name in result:
            raise ValueError(f"two tensors become {name!r}")
        result[name] = array
    return result


def load_torch(
    model: Any, arrays: Mapping[str, Array], *, stays: str = "", unused: str = ""
) -> Any:
    """Sets a torch module's tensors; what matches `stays` or is a counter may be missing.

    Sources that match `unused` are left out; any other that the model lacks is an error.
    """
    import torch

    state = model.state_dict()
    wanted = {n for n in state if not n.endswith("num_batches_tracked")}
    given = {n: a for n, a in arrays.items() if not (unused and re.search(unused, n))}
    missing = {n for n in wanted - given.keys() if not (stays and re.search(stays, n))}
    if missing or given.keys() - wanted:
        raise ValueError(f"missing {sorted(missing)}, unknown {sorted(given.keys() - wanted)}")
    with torch.no_grad():
        for name, array in given.items():
            if not _reshapes(np.shape(array), state[name].shape):
                raise ValueError(f"{name}: {tuple(state[name].shape)}, given {np.shape(array)}")
            present = np.array(array, copy=True).reshape(tuple(state[name].shape))
            state[name].copy_(torch.from_numpy(present))
    return model


def _reshapes(given: Iterable[int], wanted: Iterable[int]) -> bool:
    """Whether shapes differ only by axes of one, or a dense layer stands for a convolution that
    covers its whole input."""
    given, wanted = ([size for size in shape if size != 1] for shape in (given, wanted))
    return given == wanted or (given[:1] == wanted[:1] and np.prod(given) == np.prod(wanted))


def by_names(
    source: Any, rules: Renames = (), *, stays: str = "", unused: str = ""
) -> Callable[[Any], Any]:
    """A truth: torch tensors under rewritten names. Values are taken now, not when it is used."""
    arrays = {name: np.array(array) for name, array in arrays_of(source).items()}
    rules = tuple(rules)
    return lambda target: load_torch(target, renamed(arrays, rules), stays=stays, unused=unused)


# Layers in definition order, in PyTorch's layout.
Slot = tuple[str, Array]


def slots(model: Any) -> list[Slot]:
    """Weights of a torch or Keras model in definition order, in PyTorch's layout."""
    if hasattr(model, "weights") and hasattr(model, "layers"):
        return [
            (name, to_torch_layout(kind, name, array))
            for kind, name, _, array in keras_weights(model)
        ]
    return [(name, np.array(array)) for name, array in arrays_of(model).items()]


def fill(model: Any, values: list[Slot]) -> Any:
    """Writes what `slots` gave into another model in its definition order."""
    if hasattr(model, "weights") and hasattr(model, "layers"):
        weights = keras_weights(model)
        if len(weights) != len(values):
            raise ValueError(f"{len(values)} weights given for {len(weights)}")
        for (kind, name, variable, present), (origin, array) in zip(weights, values, strict=True):
            made = from_torch_layout(kind, name, array, present.shape)
            if made.shape != present.shape:
                raise ValueError(f"{origin} → {name}: {made.shape} for {present.shape}")
            variable.assign(np.ascontiguousarray(made))
        return model
    names = list(arrays_of(model))
    if len(names) != len(values):
        raise ValueError(f"{len(values)} weights given for {len(names)}")
    return load_torch(model, dict(zip(names, (array for _, array in values), strict=True)))


def in_order(source: Any) -> Callable[[Any], Any]:
    """A truth: both models define the same layers in the same order."""
    values = slots(source)
    return lambda target: fill(target, values)


def by_layers(source: Any, layers: Mapping[str, str]) -> Callable[[Any], Any]:
    """A truth between torch and Keras: layers by name, `{source layer: target layer}`.

    The weights within each layer go in definition order.
    """
    held: dict[str, list[Slot]] = {}
    for name, array in slots(source):
        held.setdefault(re.split(r"[./](?=[^./]*$)", name)[0], []).append((name, array))

    def load(target: Any) -> Any:
        order: dict[str, None] = {}
        for name, _ in slots(target):
            order.setdefault(re.split(r"[./](?=[^./]*$)", name)[0])
        back = {there: here for here, there in layers.items()}
        return fill(target, [slot for layer in order for slot in held[back[layer]]])

    return load


def keras_weights(model: Any) -> list[tuple[str, str, Any, Array]]:
    """Class of the layer, `layer/weight`, variable and value; layer by layer as they were made."""
    found: list[tuple[str, str, Any, Array]] = []

    def walk(layer: Any, path: str) -> None:
        for variable in (*layer._trainable_variables, *layer._non_trainable_variables):
            if "seed" in variable.name:
                continue
            leaf = variable.name.rpartition("/")[2]
            found.append((type(layer).__name__, f"{path}/{leaf}", variable, keras_array(variable)))
        for inner in layer._layers:
            walk(inner, f"{path}/{inner.name}" if path else inner.name)

    walk(model, "")
    return found


def keras_array(variable: Any) -> Array:
    """A copy of a Keras variable's value."""
    import keras

    return np.array(keras.ops.convert_to_numpy(variable.value))


def to_torch_layout(kind: str, name: str, array: Array) -> Array:
    """A Keras weight in PyTorch's layout."""
    leaf = name.rpartition("/")[2]
    rank = array.ndim
    if "Depthwise" in kind or leaf == "depthwise_kernel":  # [k…, c, m] → [c·m, 1, k…]
        moved = array.transpose(rank - 2, rank - 1, *range(rank - 2))
        return moved.reshape(-1, 1, *array.shape[:-2])
    if leaf in ("kernel", "pointwise_kernel"):
        return array.transpose(rank - 1, rank - 2, *range(rank - 2))
    return array


def from_torch_layout(kind: str, name: str, array: Array, shape: tuple[int, ...]) -> Array:
    """The way back; `shape` is the Keras variable's."""
    leaf = name.rpartition("/")[2]
    rank = len(shape)
    if "Depthwise" in kind or leaf == "depthwise_kernel":
        apart = array.reshape(*shape[-2:], *shape[:-2])
        return apart.transpose(*range(2, rank), 0, 1)
    if leaf in ("kernel", "pointwise_kernel"):
        return array.transpose(*range(2, rank), 1, 0)
    return array


def tree_with(tree: Any, arrays: Mapping[str, Array]) -> Any:
    """A JAX tree of the same structure; every leaf comes from `arrays`, by its path with `/`."""
    import jax

    left = set(arrays)

    def leaf(path: Any, present: Any) -> Any:
        name = "/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path)
        left.discard(name)
        array = np.asarray(arrays[name])
        if array.shape != tuple(present.shape):
            raise ValueError(f"{name}: {tuple(present.shape)}, given {array.shape}")
        return jax.numpy.asarray(array.astype(present.dtype))

    made = jax.tree_util.tree_map_with_path(leaf, tree)
    if left:
        raise ValueError(f"unknown {sorted(left)}")
    return made


def leaves(tree: Any) -> dict[str, Array]:
    """A JAX tree's leaves as numpy arrays by their paths with `/`."""
    import jax

    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        "/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path): np.asarray(leaf)
        for path, leaf in flat
    }
