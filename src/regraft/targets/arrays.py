"""A plain mapping of arrays: numpy's, or PyTorch's as a `state_dict` holds them."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from regraft.errors import TargetError
from regraft.sinks import Sink
from regraft.targets import _torch_arrays
from regraft.tensors import DTYPE_BITS, Catalogue, Skeleton, TensorInfo

if TYPE_CHECKING:
    from regraft.targets import Inputs
    from regraft.tensors import Array


class _Place(NamedTuple):
    """Where an array lies: the mapping that holds it and its key there."""

    holder: Any
    key: Any

    @property
    def value(self) -> Any:
        return self.holder[self.key]


def owns(model: object) -> bool:
    """Whether all leaves of a nested mapping are arrays, none of them of a framework whose own
    target takes trees."""
    if not isinstance(model, Mapping) or isinstance(model, Catalogue):
        return False
    leaves = [place.value for _, place in _walk(model)]
    return bool(leaves) and all(_is_array(leaf) for leaf in leaves)


def _walk(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], _Place]]:
    for key in tree:
        if isinstance(tree[key], Mapping):
            yield from _walk(tree[key], (*path, str(key)))
        else:
            yield (*path, str(key)), _Place(tree, key)


def _is_array(value: object) -> bool:
    return isinstance(value, (np.ndarray, np.generic)) or _is_tensor(value)


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _named(model: Any) -> dict[str, _Place]:
    """Arrays by their keys; of nested mappings joined with `/`."""
    return {"/".join(path): place for path, place in _walk(model)}


def skeleton(model: object) -> Skeleton:
    """The arrays in the mapping's order. Arrays of numpy do not say whose layout they have, so all
    conventions are tried.

    **Raises** `TargetError` for values that are no numbers.
    """
    infos: list[TensorInfo] = []
    tensors = False
    same: dict[int, list[str]] = {}
    for name, place in _named(model).items():
        tensors |= _is_tensor(place.value)
        dtype = str(place.value.dtype).removeprefix("torch.")
        if dtype not in DTYPE_BITS:
            raise TargetError(
                name, found=f"an array of dtype {dtype}", expected="numbers",
                hint="leave it out of the mapping",
            )  # fmt: skip
        kind = "counter" if name.rpartition(".")[2] == "num_batches_tracked" else "weight"
        infos.append(TensorInfo(name, tuple(place.value.shape), dtype, kind=kind))
        same.setdefault(id(place.value), []).append(name)
    ties = [tuple(names) for names in same.values() if len(names) > 1]
    return Skeleton(infos, framework="torch" if tensors else "", label="arrays", ties=ties)


class ArraySink(Sink):
    """Writes into the arrays where that can be done, and into the mapping otherwise."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._places = _named(model)

    def write(self, name: str, array: Array) -> None:
        place = self._places[name]
        held = place.value
        if _is_tensor(held):
            _torch_arrays.copy_into(held, array)
        elif isinstance(held, np.ndarray) and held.flags.writeable:
            held[...] = array
        elif isinstance(place.holder, MutableMapping):
            place.holder[place.key] = array.copy()
        else:
            raise TargetError(
                name, found="an array and a mapping that are read-only", expected="one to write to"
            )

    def read(self, name: str) -> Array:
        value = self._places[name].value
        if _is_tensor(value):
            return _torch_arrays.to_numpy(value).copy()
        return np.array(value)

    def memory(self, name: str) -> Array | None:
        value = self._places[name].value
        if _is_tensor(value):
            return _torch_arrays.to_numpy(value) if _torch_arrays.is_plain(value) else None
        plain = type(value) is np.ndarray and value.flags.writeable and value.flags.c_contiguous
        return value if plain else None

    @property
    def model(self) -> object:
        return self._model


def sink(model: object) -> Sink:
    return ArraySink(model)


def run(model: object, inputs: Inputs) -> dict[str, Array]:
    """Arrays cannot be called. **Raises** `TargetError`."""
    raise TargetError(
        "a mapping of arrays",
        found="arrays without the function that uses them",
        expected="a way to run them",
        hint="give rg.Probe(run=lambda arrays: …, outputs=y)",
    )


def trainable(model: object, names: Collection[str]) -> None:
    """Arrays have no flags. **Raises** `TargetError`."""
    raise TargetError(
        "a mapping of arrays", found="arrays without trainable flags", expected="a model"
    )
