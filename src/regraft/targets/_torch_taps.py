"""Taps of PyTorch: hooks on every module, and `TorchFunctionMode` for the functions they call.

A function mode sees every function of torch that Python code calls (`torch.overrides`), so that a
setting that is written into `forward` can be changed for an experiment like one of a module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.calls import Composed, Edit, InFunction, Module, Setting, Watcher, Written
from regraft.targets._taps import Frame, Session, mapped, plain_settings
from regraft.targets._torch_arrays import copy_into, to_numpy, to_torch
from regraft.targets._torch_functions import functions_heard
from regraft.targets._torch_modules import buffers_kept, tensors_of, unwrapped

if TYPE_CHECKING:
    from regraft.tensors import Array


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
        """The modes that modules have, or inference. Statistics (which code may change in any mode)
        and flags are put back, and random numbers are the same each time."""
        flags = [(module, module.training) for module in self._inner.modules()]
        with buffers_kept(self._inner), self._seeded():
            try:
                if not self.as_it_is:
                    self._inner.eval()
                yield
            finally:
                for module, flag in flags:
                    module.training = flag

    @contextmanager
    def _seeded(self) -> Generator[None]:
        """The same random numbers each time, on the devices that the model is on; those of the
        caller go on as if nothing had been."""
        import torch

        held = (*self._inner.parameters(), *self._inner.buffers())
        devices = sorted({t.device.index for t in held if t.device.type == "cuda"})
        with torch.random.fork_rng(devices):
            torch.default_generator.manual_seed(0)
            for index in devices:
                torch.cuda.default_generators[index].manual_seed(0)
            yield

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
                undo.enter_context(functions_heard(session))
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
