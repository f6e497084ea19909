"""Taps of PyTorch: hooks on every module, and `TorchFunctionMode` for the functions they call.

A function mode sees every function of torch that Python code calls (`torch.overrides`), so that a
setting that is written into `forward` can be changed for an experiment like one of a module.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.calls import Composed, Edit, InFunction, Module, Setting, Watcher, Written
from regraft.targets._taps import Frame, Session, mapped, plain_settings
from regraft.targets._torch_arrays import copy_into, to_numpy, to_torch
from regraft.targets._torch_modules import tensors_of, unwrapped

if TYPE_CHECKING:
    from regraft.tensors import Array

_CONV = ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
# Parameters of functions that are written in C and tell none themselves.
_PARAMETERS: dict[str, list[str]] = {
    "conv1d": _CONV, "conv2d": _CONV, "conv3d": _CONV,
    "scaled_dot_product_attention":
        ["query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"],
    "avg_pool1d": ["input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"],
    "avg_pool2d": ["input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"],
    "gelu": ["input", "approximate"],
    "batch_norm":
        ["input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"],
    "layer_norm": ["input", "normalized_shape", "weight", "bias", "eps"],
    "group_norm": ["input", "num_groups", "weight", "bias", "eps"],
    "softmax": ["input", "dim", "dtype"], "dropout": ["input", "p", "training"],
    "masked_fill": ["input", "mask", "value"], "max_pool2d":
        ["input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"],
    "max_pool1d": ["input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"],
}  # fmt: skip
_NOT_TOLD = frozenset(("__get__", "__set__", "size", "dim", "is_contiguous", "_set_grad_enabled"))


def is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _copied(tensor: Any) -> Array:
    return to_numpy(tensor).copy()


def _like(array: Array, tensor: Any) -> Any:
    made = to_torch(np.array(array))
    return made.to(device=tensor.device, dtype=tensor.dtype)


def _made(array: Array, tensor: Any) -> Any:
    """A new result on a tensor's device, in the array's own dtype."""
    return to_torch(np.array(array)).to(device=tensor.device)


class TorchTaps:
    """Taps on a live `torch.nn.Module`."""

    framework = "torch"

    def __init__(self, model: Any) -> None:
        self._model, self._inner = model, unwrapped(model)
        self._paths = dict(self._inner.named_modules())
        self._last: dict[str, Frame] = {}
        self.as_it_is = False

    def modules(self) -> dict[str, Module]:
        return {
            path: Module(
                path,
                type(module).__name__,
                plain_settings(module) | _buffers(module),
                tuple(f"{path}.{name}" if path else name for name, _ in module.named_children()),
                module.training,
            )
            for path, module in self._paths.items()
        }

    def owner(self, name: str) -> str:
        return name.rpartition(".")[0]

    def run(
        self,
        inputs: Any,
        watcher: Watcher | None = None,
        edits: Sequence[Edit] = (),
    ) -> dict[str, Array]:
        from regraft.targets import torch as target

        with self._watched(watcher, edits), self._moded():
            return target.called(self._model, inputs)

    def again(self, frame: Frame, watcher: Watcher, edits: Sequence[Edit] = ()) -> list[Array]:
        import torch

        with (
            self._watched(watcher, edits) as session,
            self._moded(),
            torch.no_grad(),
        ):
            session.counts = Counter(frame.counts)
            session.inside = frame.inside
            args, kwargs = mapped(
                (frame.args, frame.kwargs), lambda tensor: tensor.clone(), is_tensor
            )
            return session.arrays(frame.module(*args, **kwargs))

    @contextmanager
    def _moded(self) -> Generator[None]:
        """The modes that modules have, or inference. Statistics and flags are put back, and random
        numbers are the same each time."""
        import torch

        flags = [(module, module.training) for module in self._inner.modules()]
        training = self.as_it_is and any(flag for _, flag in flags)
        held = [b for b in self._inner.buffers() if not b.is_meta]
        kept = [(b, b.clone()) for b in held] if training else []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                if not self.as_it_is:
                    self._inner.eval()
                yield
            finally:
                for module, flag in flags:
                    module.training = flag
                with torch.no_grad():
                    for buffer, value in kept:
                        buffer.copy_(value)

    @contextmanager
    def _watched(self, watcher: Watcher | None, edits: Sequence[Edit]) -> Generator[Session]:
        session = Session(watcher, edits, is_tensor, _copied, _like, _made)
        with ExitStack() as undo:
            for edit in edits:
                if isinstance(edit, (Setting, Written)):
                    undo.enter_context(self._changed(edit))
            for path, module in self._paths.items():
                for handle in _hooked(session, path, module):
                    undo.callback(handle.remove)
                composed = session.composed(path)
                if composed:
                    frame = self._last.get(path)
                    told = frame.more if frame else {}
                    tupled = frame is not None and frame.as_tuple
                    undo.enter_context(self._composed(module, composed, told, as_tuple=tupled))
            if watcher is not None or any(isinstance(e, InFunction) for e in edits):
                undo.enter_context(_mode(session))
            yield session
        self._last |= {p: f for p, f in session.frames.items() if p not in self._last}

    @contextmanager
    def _changed(self, edit: Setting | Written) -> Generator[None]:
        import torch

        if isinstance(edit, Written):
            tensor = tensors_of(self._model)[edit.name]
            before = tensor.detach().clone()
            copy_into(tensor, edit.value)
            try:
                yield
            finally:
                with torch.no_grad():
                    tensor.copy_(before)
            return
        module = self._paths[edit.path]
        with ExitStack() as undo:
            for name, value in edit.values.items():
                present = getattr(module, name)
                if is_tensor(present):
                    kept = present.detach().clone()
                    made = to_torch(np.array(value)).to(present.dtype)
                    undo.callback(_put, present, kept)
                    _put(present, made)
                elif name == "training":
                    module.training = value
                    undo.callback(setattr, module, name, present)
                else:
                    setattr(module, name, value)
                    undo.callback(setattr, module, name, present)
            yield

    @contextmanager
    def _composed(
        self, module: Any, edit: Composed, told: Mapping[str, Any], *, as_tuple: bool
    ) -> Generator[None]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            first = args[0] if args else next(iter(kwargs.values()))

            def call(path: str, x: Any) -> Any:
                given, named = told.get(path, ((None,), {}))
                if given:
                    made = self._paths[path](x, *given[1:], **named)
                else:
                    made = self._paths[path](**{**named, next(iter(named)): x})
                return made[0] if isinstance(made, tuple) else made

            result = edit.program(first, call)
            return (result,) if as_tuple else result

        own = module.__dict__.get("forward")
        module.forward = forward
        try:
            yield
        finally:
            if own is None:
                del module.forward
            else:
                module.forward = own

    def fix(self, edit: Edit) -> str:
        if isinstance(edit, Setting):
            where = f"model.get_submodule({edit.path!r})" if edit.path else "model"
            return "; ".join(f"{where}.{k} = {v!r}" for k, v in edit.values.items())
        return ""


def _buffers(module: Any) -> dict[str, Any]:
    """Buffers that no checkpoint holds, as arrays: tables of positions, inverse frequencies."""
    names = getattr(module, "_non_persistent_buffers_set", ())
    held = {name: module._buffers.get(name) for name in names}
    return {n: _copied(b) for n, b in held.items() if b is not None and b.numel() < 1 << 20}


def _put(tensor: Any, value: Any) -> None:
    import torch

    with torch.no_grad():
        tensor.copy_(value)


def _unheard() -> Any:
    """What taps do themselves is no function call of the model."""
    import torch

    return torch._C.DisableTorchFunction()  # pyright: ignore[reportPrivateUsage]


def _hooked(session: Session, path: str, module: Any) -> list[Any]:
    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with _unheard():
            return session.enter(path, module, args, kwargs)

    def after(_: Any, args: Any, kwargs: Any, result: Any) -> Any:
        with _unheard():
            return session.leave(path, result)

    return [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    ]


def _mode(session: Session) -> Any:
    from torch.overrides import TorchFunctionMode

    class Functions(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            given: dict[str, Any] = kwargs or {}
            name: str = getattr(func, "__name__", "")
            if name in _NOT_TOLD:
                return func(*args, **given)
            named, call = _named(func, name, args, given)
            return session.function(name, named, call)

    return Functions()


def _named(
    func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], Callable[[dict[str, Any]], Any]]:
    """Arguments by name where names are known, by place otherwise, and how to call with them."""
    names = _PARAMETERS.get(name) or _signature(func)
    keys = [names[i] if i < len(names) else str(i) for i in range(len(args))]
    named = dict(zip(keys, args, strict=True)) | kwargs

    def call(changed: dict[str, Any]) -> Any:
        first = [changed[key] for key in keys]
        return func(*first, **{k: v for k, v in changed.items() if k not in keys})

    return named, call


_signatures: dict[Any, list[str]] = {}


def _signature(func: Any) -> list[str]:
    if func not in _signatures:
        try:
            _signatures[func] = list(inspect.signature(func).parameters)
        except (TypeError, ValueError):
            _signatures[func] = []
        if any(name in ("args", "kwargs") for name in _signatures[func]):
            _signatures[func] = []
    return _signatures[func]
