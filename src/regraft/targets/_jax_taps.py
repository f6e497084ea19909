"""Taps of Flax: linen's interceptor of method calls, and NNX's modules, whose class is wrapped.

Functions are told where code takes them from `jax.nn`, `jax.numpy` or `flax.linen` when it runs.
Nothing is compiled under observation.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.calls import Composed, Edit, Module, Setting, Watcher, Written
from regraft.errors import TargetError
from regraft.targets import _jax_arrays, _nnx
from regraft.targets._taps import Frame, Session, heard, plain_settings

if TYPE_CHECKING:
    from regraft.tensors import Array

_FUNCTIONS = (
    "softmax", "relu", "relu6", "gelu", "silu", "swish", "tanh", "sigmoid", "elu", "leaky_relu",
    "hard_swish", "hard_sigmoid", "reshape", "split", "max_pool", "avg_pool", "pad", "mean", "max",
    "matmul", "einsum", "cos", "sin", "power", "add", "where", "tril", "ravel",
)  # fmt: skip


def is_tensor(value: object) -> bool:
    import jax

    return isinstance(value, (jax.Array, np.ndarray)) and not _is_key(value)


def _is_key(value: Any) -> bool:
    return str(getattr(value, "dtype", "")).startswith("key")


def _to_numpy(value: Any) -> Array:
    return np.array(_jax_arrays.to_numpy(value, ""))


def _like(array: Array, tensor: Any) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(np.array(array), tensor.dtype)


def _made(array: Array, tensor: Any) -> Any:
    import jax.numpy as jnp

    del tensor
    return jnp.asarray(np.array(array))


def _python_modules() -> Iterable[Any]:
    found = (sys.modules.get(n) for n in ("jax.nn", "jax.numpy", "flax.linen", "flax.nnx"))
    return [module for module in found if module is not None]


class _FlaxTaps:
    """What linen and NNX have in common."""

    framework = "jax"

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: dict[str, Module] = {"": Module("", type(model).__name__)}
        self.as_it_is = False

    def modules(self) -> dict[str, Module]:
        children: dict[str, list[str]] = {}
        for path in self._known:
            if path:
                children.setdefault(path.rpartition("/")[0], []).append(path)
        return {
            path: Module(path, m.kind, m.settings, tuple(children.get(path, ())))
            for path, m in self._known.items()
        }

    def fix(self, edit: Edit) -> str:
        return ""

    def _session(self, watcher: Watcher | None, edits: Sequence[Edit]) -> Session:
        return Session(watcher, edits, is_tensor, _to_numpy, _like, _made)


class LinenTaps(_FlaxTaps):
    """A bound linen module, or a tree of variables that a function of the caller applies."""

    def owner(self, name: str) -> str:
        """A tensor's module: its collection (`params`) is no part of the path."""
        first, _, rest = name.partition("/")
        inner = rest if first in ("params", "batch_stats") else name
        return inner.rpartition("/")[0]

    def run(
        self, inputs: Any, watcher: Watcher | None = None, edits: Sequence[Edit] = ()
    ) -> dict[str, Array]:
        from regraft.targets import jax as target

        model = self._written(edits)
        with self._watched(self._session(watcher, edits), edits):
            if callable(inputs):
                return target.outputs_of(inputs(model))
            return target.run(model, inputs)

    def again(self, frame: Frame, watcher: Watcher, edits: Sequence[Edit] = ()) -> list[Array]:
        session = self._session(watcher, edits)
        session.counts, session.inside = Counter(frame.counts), frame.inside
        module = frame.module
        if any(isinstance(edit, Written) for edit in edits):
            raise TargetError(
                frame.path, found="a module in the middle of a run", expected="the whole model"
            )
        with self._watched(session, edits):
            return session.arrays(module(*frame.args, **frame.kwargs))

    def _written(self, edits: Sequence[Edit]) -> Any:
        """The model, or its variables, with other values: arrays of JAX do not change."""
        from regraft.targets import jax as target

        changed = [edit for edit in edits if isinstance(edit, Written)]
        if not changed:
            return self._model
        sink = target.sink(self._model)
        for edit in changed:
            sink.write(edit.name, edit.value)
        if target.is_bound(self._model):
            return self._model.clone().bind(sink.model)
        return sink.model

    @contextmanager
    def _watched(self, session: Session, edits: Sequence[Edit]) -> Generator[None]:
        from flax import linen

        settings = {e.path: e.values for e in edits if isinstance(e, Setting)}

        def called(next_function: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            module = context.module
            if context.method_name != "__call__":
                return next_function(*args, **kwargs)
            path = "/".join(module.path)
            self._known[path] = Module(path, type(module).__name__, _settings(module))
            if session.composed(path):
                raise TargetError(path, found="a linen module", expected="code to be exchanged")
            args, kwargs = session.enter(path, module, args, kwargs)
            with _attributes(module, settings.get(path, {})):
                result = next_function(*args, **kwargs)
            return session.leave(path, result)

        with heard(session, _python_modules(), _FUNCTIONS), linen.intercept_methods(called):
            yield


def _settings(module: Any) -> dict[str, Any]:
    return {k: v for k, v in plain_settings(module).items() if k not in ("name", "parent")}


@contextmanager
def _attributes(module: Any, values: Any) -> Generator[None]:
    """Fields of a frozen module, changed for one call."""
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        object.__setattr__(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            object.__setattr__(module, name, value)


class NnxTaps(_FlaxTaps):
    """An NNX module. Each run is one of a copy in evaluation mode, so that nothing is to be put
    back."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        for path, module in _placed(model):
            self._known[path] = Module(path, type(module).__name__, plain_settings(module))

    def owner(self, name: str) -> str:
        return name.rpartition("/")[0]

    def run(
        self, inputs: Any, watcher: Watcher | None = None, edits: Sequence[Edit] = ()
    ) -> dict[str, Array]:
        from regraft.targets import jax as target

        twin = _nnx.evaluating(self._model)
        with self._watched(twin, self._session(watcher, edits), edits):
            if callable(inputs):
                return target.outputs_of(inputs(twin))
            if isinstance(inputs, dict):
                return target.outputs_of(twin(**inputs))
            given = inputs if isinstance(inputs, tuple) else (inputs,)
            return target.outputs_of(twin(*given))

    def again(self, frame: Frame, watcher: Watcher, edits: Sequence[Edit] = ()) -> list[Array]:
        session = self._session(watcher, edits)
        session.counts, session.inside = Counter(frame.counts), frame.inside
        twin = _nnx.evaluating(self._model)
        with self._watched(twin, session, edits):
            module = dict(_placed(twin))[frame.path]
            return session.arrays(module(*frame.args, **frame.kwargs))

    @contextmanager
    def _watched(self, twin: Any, session: Session, edits: Sequence[Edit]) -> Generator[None]:
        placed = dict(_placed(twin))
        for edit in edits:
            if isinstance(edit, Setting):
                for name, value in edit.values.items():
                    setattr(placed[edit.path], name, value)
            elif isinstance(edit, Written):
                _nnx.ModuleSink(twin).write(edit.name, edit.value)
            elif isinstance(edit, Composed):
                raise TargetError(edit.path, found="an NNX module", expected="code to be exchanged")
        paths = {id(module): path for path, module in placed.items()}
        with ExitStack() as undo:
            for kind in {type(module) for module in placed.values()}:
                own = kind.__dict__.get("__call__")
                if own is not None:
                    undo.callback(setattr, kind, "__call__", own)
                    kind.__call__ = _wrapped(own, paths, session)
            undo.enter_context(heard(session, _python_modules(), _FUNCTIONS))
            yield


def _wrapped(
    own: Callable[..., Any], paths: dict[int, str], session: Session
) -> Callable[..., Any]:
    def called(module: Any, *args: Any, **kwargs: Any) -> Any:
        path = paths.get(id(module))
        if path is None:
            return own(module, *args, **kwargs)
        args, kwargs = session.enter(path, module, args, kwargs)
        return session.leave(path, own(module, *args, **kwargs))

    return called


def _placed(model: Any) -> Iterable[tuple[str, Any]]:
    from flax import nnx

    for path, module in nnx.iter_modules(model):
        yield "/".join(map(str, path)), module
