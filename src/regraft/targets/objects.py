"""Any other object that gives its weights as a `state_dict` and takes them back.

Its `load_state_dict` is called once, with everything that was written, and what it then gives is
held against what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.errors import TargetError, TransferError
from regraft.sinks import Sink
from regraft.targets import arrays
from regraft.tensors import Skeleton

if TYPE_CHECKING:
    from regraft.targets import Inputs
    from regraft.tensors import Array

_LIBRARIES = ("torch", "keras")


def owns(model: object) -> bool:
    """Whether an object has both methods, and is no model or optimizer of a framework."""
    if isinstance(model, type):
        return False
    methods = (getattr(model, name, None) for name in ("state_dict", "load_state_dict"))
    ours = any(base.__module__.split(".")[0] in _LIBRARIES for base in type(model).__mro__)
    return all(callable(method) for method in methods) and not ours


def _state(model: Any) -> dict[str, Any]:
    """The arrays that an object gives, by name; what is no array is its own affair."""
    state: Any = model.state_dict()
    if not isinstance(state, Mapping):
        raise TargetError(
            type(model).__name__,
            found=f"a state_dict() that gives {type(state).__name__}",
            expected="a mapping of arrays",
        )
    return dict(state)


def _arrays(state: Mapping[str, Any], label: str) -> dict[str, Any]:
    held = {key: value for key, value in state.items() if arrays.owns({"value": value})}
    if not held:
        raise TargetError(label, found="a state_dict() without arrays", expected="arrays by name")
    return held


def skeleton(model: object) -> Skeleton:
    """The arrays of its `state_dict`. **Raises** `TargetError` where there are none."""
    label = type(model).__name__
    described = arrays.skeleton(_arrays(_state(model), label))
    return Skeleton(
        described.values(), framework=described.framework, label=label, ties=described.ties
    )


class _ObjectSink(Sink):
    """Collects what is written, for `load_state_dict` takes all of it at once."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._label = type(model).__name__
        self._pending: dict[str, Array] = {}

    def write(self, name: str, array: Array) -> None:
        self._pending[name] = array.copy()

    def read(self, name: str) -> Array:
        if name in self._pending:
            return self._pending[name].copy()
        return self._given(_state(self._model)).read(name)

    def _given(self, state: dict[str, Any]) -> Sink:
        return arrays.sink(_arrays(state, self._label))

    def undo(self, name: str) -> Callable[[], None]:
        before = self.read(name)
        return lambda: self.write(name, before)

    def finish(self) -> None:
        """Hands over what was written. **Raises** `TransferError` where the object then gives
        something else."""
        if not self._pending:
            return
        written, self._pending = self._pending, {}
        state = _copied(_state(self._model))
        collected = arrays.sink(state)
        for name, array in written.items():
            collected.write(name, array)
        self._model.load_state_dict(state)
        given = self._given(_state(self._model))
        wrong = [name for name, array in written.items() if not _equal(given.read(name), array)]
        if wrong:
            raise TransferError(
                f"{self._label}, {wrong[0]}",
                found="other values than load_state_dict was given",
                expected="the same ones from state_dict",
                hint="the object changes what it is given; it was put back as it was",
                problems=wrong,
            )

    @property
    def model(self) -> object:
        return self._model


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state whose arrays are not the object's own, so that nothing changes before it is told."""
    copied: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Mapping):
            copied[key] = _copied(value)
        elif isinstance(value, np.ndarray):
            copied[key] = value.copy()
        else:
            copied[key] = value.clone() if hasattr(value, "clone") else value
    return copied


def _equal(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def sink(model: object) -> Sink:
    return _ObjectSink(model)


def run(model: object, inputs: Inputs) -> dict[str, Array]:
    """What calling the object gives, as numpy reads it. **Raises** `TargetError` where it cannot be
    called."""
    live: Any = model
    if not callable(live):
        raise TargetError(
            type(model).__name__,
            found="an object that cannot be called",
            expected="a way to run it",
            hint="give rg.Probe(run=lambda model: …, outputs=y)",
        )
    if isinstance(inputs, dict):
        result = live(**inputs)
    else:
        result = live(*inputs) if isinstance(inputs, tuple) else live(inputs)
    if isinstance(result, Mapping):
        return {str(key): np.asarray(value) for key, value in result.items()}
    if isinstance(result, (list, tuple)):
        return {f"output.{i}": np.asarray(value) for i, value in enumerate(result)}
    return {"output": np.asarray(result)}


def trainable(model: object, names: Collection[str]) -> None:
    """**Raises** `TargetError`: nothing is known of how such an object learns."""
    raise TargetError(
        type(model).__name__, found="an object without trainable flags", expected="a model"
    )
