"""Flax NNX modules: live objects whose variables are set in place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from regraft.sinks import Sink
from regraft.targets import _jax_arrays
from regraft.targets._layer_settings import settings_of
from regraft.tensors import Skeleton, TensorInfo

if TYPE_CHECKING:
    from regraft.tensors import Array

# What a module keeps besides weights: seeds, what it saw last, and what an optimizer remembers.
_NO_WEIGHTS = ("RngState", "Cache", "Intermediate", "OptState", "Perturbation")


def is_module(model: object) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(model, nnx.Module)


def _walk(
    node: Any, path: tuple[str, ...], owner: Any
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Variables and the modules that hold them, in the order in which attributes were set; one
    that is shared comes once for each of its places."""
    from flax import nnx

    if isinstance(node, nnx.Variable):
        yield path, node, owner
    elif isinstance(node, nnx.State):  # values without a module
        return
    elif isinstance(node, (dict, nnx.Dict)):
        for key, child in node.items():
            yield from _walk(child, (*path, str(key)), owner)
    elif isinstance(node, (list, tuple, nnx.List)):
        for index, child in enumerate(node):
            yield from _walk(child, (*path, str(index)), owner)
    elif isinstance(node, nnx.Module):
        for key, child in vars(node).items():
            if not key.startswith("_pytree__"):
                yield from _walk(child, (*path, key), node)


def _named(model: Any) -> dict[str, tuple[Any, Any]]:
    """Each weight's variable and its module, by graph path."""
    from flax import nnx

    left_out = tuple(getattr(nnx, name) for name in _NO_WEIGHTS if hasattr(nnx, name))
    return {
        "/".join(path): (variable, module)
        for path, variable, module in _walk(model, (), model)
        if not isinstance(variable, left_out) and _jax_arrays.is_array(variable.get_raw_value())
    }


def skeleton(model: object) -> Skeleton:
    """Parameters and statistics by graph path (`layers/0/kernel`), in the order in which modules
    were made, with the modules' classes; variables at several places are tied."""
    infos: list[TensorInfo] = []
    places: dict[int, list[str]] = {}
    modules: dict[str, Any] = {"": model}
    for name, (variable, module) in _named(model).items():
        value = variable.get_raw_value()
        dtype = _jax_arrays.dtype_name(value, name)
        infos.append(TensorInfo(name, tuple(value.shape), dtype, type(module).__name__))
        places.setdefault(id(variable), []).append(name)
        modules[name.rpartition("/")[0]] = module
    return Skeleton(
        infos,
        framework="jax",
        order="definition",
        ties=[tuple(names) for names in places.values() if len(names) > 1],
        label=type(model).__name__,
        settings=settings_of(modules.items(), "/"),
    )


class ModuleSink(Sink):
    """Sets the module's own variables."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._variables = {name: variable for name, (variable, _) in _named(model).items()}

    def write(self, name: str, array: Array) -> None:
        variable = self._variables[name]
        variable.set_raw_value(_jax_arrays.like(array, variable.get_raw_value()))

    def read(self, name: str) -> Array:
        return _jax_arrays.to_numpy(self._variables[name].get_raw_value(), name)

    def look(self, name: str) -> Array:
        return _jax_arrays.seen(self._variables[name].get_raw_value(), name)

    def undo(self, name: str) -> Callable[[], None]:
        variable = self._variables[name]
        before = variable.get_raw_value()  # arrays of JAX do not change
        return lambda: variable.set_raw_value(before)

    def hollow(self, name: str) -> bool:
        return _jax_arrays.is_abstract(self._variables[name].get_raw_value())

    @property
    def model(self) -> object:
        return self._model


def evaluating(model: Any) -> Any:
    """A module of the same arrays in evaluation mode; the given one, with its statistics, seeds and
    flags, is not touched."""
    from flax import nnx

    twin = nnx.clone(model)
    twin.eval()
    return twin
