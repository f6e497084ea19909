"""Taps of Keras 3 on any backend: every call of a layer goes through `Layer.__call__`, and the
functions that layers' code takes from `keras.ops` and `keras.activations` through their modules."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.calls import Composed, Edit, Module, Setting, Watcher, Written
from regraft.targets._taps import Frame, Session, heard, plain_settings

if TYPE_CHECKING:
    from regraft.tensors import Array

# Functions of `keras.ops` that are told where a layer's own code calls them.
_FUNCTIONS = (
    "softmax", "relu", "gelu", "silu", "tanh", "sigmoid", "elu", "leaky_relu", "reshape", "split",
    "max_pool", "average_pool", "pad", "mean", "max", "conv", "matmul", "einsum", "cos", "sin",
    "power", "add", "cast",
)  # fmt: skip


def is_tensor(value: object) -> bool:
    import keras

    return keras.ops.is_tensor(value) or isinstance(value, np.ndarray)


class KerasTaps:
    """Taps on a live Keras layer or model."""

    framework = "keras"

    def __init__(self, model: Any) -> None:
        self._model = model
        self._layers: dict[str, Any] = {"": model}
        self._paths: dict[int, str] = {id(model): ""}
        self._last: dict[str, Frame] = {}
        self.as_it_is = False
        self._list(model, "")

    def _list(self, layer: Any, path: str) -> None:
        count: Counter[str] = Counter(inner.name for inner in layer._layers)
        for inner in layer._layers:
            if id(inner) in self._paths:
                continue
            name = inner.name if count[inner.name] == 1 else f"{inner.name}_{id(inner)}"
            below = f"{path}/{name}" if path else name
            self._paths[id(inner)] = below
            self._layers[below] = inner
            self._list(inner, below)

    def modules(self) -> dict[str, Module]:
        return {
            path: Module(
                path,
                type(layer).__name__,
                plain_settings(layer) | _named_activation(layer),
                tuple(self._paths[id(inner)] for inner in layer._layers),
            )
            for path, layer in self._layers.items()
        }

    def owner(self, name: str) -> str:
        return name.rpartition("/")[0]

    def run(
        self, inputs: Any, watcher: Watcher | None = None, edits: Sequence[Edit] = ()
    ) -> dict[str, Array]:
        from regraft.targets import keras as target

        with self._watched(watcher, edits), _kept(self._model):
            if callable(inputs):
                return target.outputs_of(inputs(self._model))
            return target.run(self._model, inputs)

    def again(self, frame: Frame, watcher: Watcher, edits: Sequence[Edit] = ()) -> list[Array]:
        with self._watched(watcher, edits) as session, _kept(frame.module):
            session.counts = Counter(frame.counts)
            session.inside = frame.inside
            return session.arrays(frame.module(*frame.args, **frame.kwargs))

    @contextmanager
    def _watched(self, watcher: Watcher | None, edits: Sequence[Edit]) -> Generator[Session]:
        import keras

        from regraft.targets.keras import to_numpy

        session = Session(watcher, edits, is_tensor, to_numpy, _like, _made)
        layer_class: Any = keras.Layer
        original = layer_class.__call__
        with ExitStack() as undo:
            for edit in edits:
                if isinstance(edit, (Setting, Written)):
                    undo.enter_context(self._changed(edit))
                elif isinstance(edit, Composed):
                    undo.enter_context(self._composed(edit))
            undo.enter_context(heard(session, (keras.ops, keras.activations), _FUNCTIONS))
            # Keras' own layers take their functions from a module of their own.
            own = importlib.import_module("keras.src.ops")
            undo.enter_context(heard(session, (own,), ("dot_product_attention",)))

            def called(layer: Any, *args: Any, **kwargs: Any) -> Any:
                path = self._paths.get(id(layer))
                if path is None:
                    return original(layer, *args, **kwargs)
                args, kwargs = session.enter(path, layer, args, kwargs)
                return session.leave(path, original(layer, *args, **kwargs))

            undo.callback(setattr, layer_class, "__call__", original)
            layer_class.__call__ = called
            yield session
        self._last |= {p: f for p, f in session.frames.items() if p not in self._last}

    @contextmanager
    def _changed(self, edit: Setting | Written) -> Generator[None]:
        from regraft.targets.keras import named, to_numpy

        if isinstance(edit, Written):
            variable, _ = named(self._model)[edit.name]
            before = to_numpy(variable.value)
            variable.assign(edit.value)
            try:
                yield
            finally:
                variable.assign(before)
            return
        layer = self._layers[edit.path]
        with ExitStack() as undo:
            for name, value in edit.values.items():
                present = getattr(layer, name)
                given: Any = _on_tensors(value) if callable(value) else value
                undo.callback(setattr, layer, name, present)
                setattr(layer, name, given)
            yield

    @contextmanager
    def _composed(self, edit: Composed) -> Generator[None]:
        layer = self._layers[edit.path]
        frame = self._last.get(edit.path)
        told: Mapping[str, Any] = frame.more if frame else {}

        def call(*args: Any, **kwargs: Any) -> Any:
            first = args[0] if args else next(iter(kwargs.values()))

            def run(path: str, x: Any) -> Any:
                given, named = told.get(path, ((None,), {}))
                made = self._layers[path](x, *given[1:], **named)
                return made[0] if isinstance(made, tuple) else made

            return edit.program(first, run)

        own = layer.__dict__.get("call")
        layer.__dict__["call"] = call
        try:
            yield
        finally:
            if own is None:
                del layer.__dict__["call"]
            else:
                layer.__dict__["call"] = own

    def fix(self, edit: Edit) -> str:
        return ""


@contextmanager
def _kept(layer: Any) -> Generator[None]:
    """What the code writes into variables that are not trained (statistics, the states of random
    numbers) is undone afterwards, so that each run is like the first."""
    from regraft.targets.keras import to_numpy

    kept = [(v, to_numpy(v.value)) for v in layer.variables if not v.trainable]
    try:
        yield
    finally:
        for variable, value in kept:
            variable.assign(value)


def _named_activation(layer: Any) -> dict[str, str]:
    """A layer's own activation by name; a linear one is none."""
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", "")
    return {"activation": name} if name else {}


def _like(array: Array, tensor: Any) -> Any:
    import keras

    return keras.ops.convert_to_tensor(
        np.array(array), keras.backend.standardize_dtype(tensor.dtype)
    )


def _made(array: Array, tensor: Any) -> Any:
    import keras

    del tensor
    return keras.ops.convert_to_tensor(np.array(array))


def _on_tensors(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    from regraft.targets.keras import to_numpy

    return lambda x: _like(function(to_numpy(x)), x)
