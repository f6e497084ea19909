"""Which tensors a torch.nn.Module has, under which names, and where they are held."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from regraft.errors import TargetError
from regraft.targets._torch_lazy import shapes_of

# Classes that wrap a module and compute the same, and where they keep it.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",  # torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}
# Parameters that other libraries keep in codes of their own.
_CODED = ("Params4bit", "Int8Params", "QTensor")


def _inner_of(module: Any) -> str | None:
    """The attribute under which a wrapper of torch holds what it wraps."""
    kind = type(module)
    return _WRAPPERS.get(kind.__name__) if kind.__module__.startswith("torch.") else None


def unwrapped(model: Any) -> Any:
    """The model inside torch.compile, DataParallel, DistributedDataParallel, FSDP and the wrapper
    of activation checkpointing."""
    while (inner := _inner_of(model)) is not None:
        model = getattr(model, inner)
    return model


class Names:
    """Names of modules and tensors as they are without wrappers inside the model."""

    def __init__(self, model: Any) -> None:
        inner = ((path, _inner_of(module)) for path, module in model.named_modules())
        self._wrapped = {f"{path}.{name}" if path else name for path, name in inner if name}

    @property
    def plain(self) -> bool:
        """Whether the model has no wrappers inside."""
        return not self._wrapped

    def shown(self, name: str) -> str:
        """A name without the parts that wrappers add."""
        if self.plain:
            return name
        parts = name.split(".")
        paths = (".".join(parts[: i + 1]) for i in range(len(parts)))
        return ".".join(
            p for p, path in zip(parts, paths, strict=True) if path not in self._wrapped
        )


def tensors_of(model: Any, *, lazy: bool = False) -> dict[str, Any]:
    """Parameters and persistent buffers by the names of `state_dict`, so that hooks of modules
    which rename or leave out tensors are heard; wrappers' names left out.

    **Raises** `TargetError` where a parameter is stored in codes, is not there as such, or has no
    shape, unless `lazy` ones are asked for.
    """
    summoned = _summoned(model)
    model = unwrapped(model)
    held = dict(model.named_parameters(remove_duplicate=False))
    held |= dict(model.named_buffers(remove_duplicate=False))
    if not lazy:
        shapes_of(model, held, {})
    _check(model, held)
    known = {id(tensor) for tensor in held.values()}
    names = Names(model)
    given: Any = held if summoned else model.state_dict(keep_vars=True)
    return {names.shown(name): value for name, value in given.items() if id(value) in known}


def _check(model: Any, held: dict[str, Any]) -> None:
    coded = list(_coded(model, held))
    if coded:
        raise TargetError(
            f"{type(model).__name__}, {coded[0]}",
            found=f"{len(coded)} quantized modules or tensors: codes, not weights",
            expected="weights of a floating dtype",
            hint="load into the model before it is quantized, then quantize it",
            problems=coded,
        )


def _coded(model: Any, held: dict[str, Any]) -> Iterator[str]:
    for path, module in model.named_modules():
        kind = type(module)
        if "quantized" in kind.__module__.split(".") and kind.__module__.startswith("torch."):
            yield f"{path or 'the model'}: {kind.__module__}.{kind.__name__}"
    for name, tensor in held.items():
        kind = type(tensor)
        outside = kind.__module__.split(".")[0] in ("torchao", "bitsandbytes", "quanto", "optimum")
        if tensor.is_quantized or kind.__name__ in _CODED or outside:
            yield f"{name}: {kind.__name__}"


def hears_loading(model: Any) -> bool:
    """Whether modules have code of their own for `load_state_dict`: hooks, or methods in place of
    torch's."""
    if _summoned(model):
        return False
    methods = ("load_state_dict", "_load_from_state_dict")
    return any(
        module._load_state_dict_post_hooks
        or module._load_state_dict_pre_hooks
        or any(getattr(type(module), name).__module__.split(".")[0] != "torch" for name in methods)
        for module in model.modules()
    )


def _summoned(model: Any) -> bool:
    """Whether the model has parts under FSDP that are whole for now.

    **Raises** `TargetError` where they are not: parameters are then flat pieces.
    """
    parts = [m for m in model.modules() if type(m).__name__ == "FullyShardedDataParallel"]
    states = [getattr(part.training_state, "name", "") for part in parts]
    if any(state != "SUMMON_FULL_PARAMS" for state in states):
        raise TargetError(
            type(model).__name__,
            found="parameters that FSDP keeps as flat pieces",
            expected="whole parameters",
            hint="load before wrapping, within FSDP.summon_full_params(model, writeback=True), or "
            "shard with fully_shard",
        )
    return bool(parts)


@contextmanager
def buffers_kept(model: Any) -> Generator[None]:
    """While the model's code runs: what it writes into buffers (statistics, which code may change
    in any mode, counters, caches) or puts in their place is undone afterwards."""
    import torch

    kept = [
        (module._buffers, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_meta
    ]
    try:
        yield
    finally:
        with torch.inference_mode():  # some were made in it
            for held, name, buffer, value in kept:
                held[name] = buffer
                buffer.copy_(value)


class Places:
    """Where a model's modules hold each tensor; found once, for a model of many."""

    def __init__(self, model: Any) -> None:
        self._places: dict[int, list[tuple[Any, str]]] = defaultdict(list)
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    self._places[id(tensor)].append((module, name))

    def put(self, old: Any, new: Any) -> None:
        """Puts a tensor in all places of another, as an assignment does: modules that keep lists of
        their own parameters (LSTM) hear of it."""
        places = self._places.pop(id(old))
        for module, name in places:
            setattr(module, name, new)
        self._places[id(new)] = places


@contextmanager
def untouched(model: Any) -> Generator[None]:
    """While the model's code runs on tensors without values: whatever it puts in a module's
    attributes, or in lists, dicts and sets there, is taken away afterwards; modes and hooks are as
    they were."""
    kept: list[tuple[Any, Any]] = []
    for module in model.modules():
        held = vars(module)
        kept += [(v, v.copy()) for v in held.values() if isinstance(v, (dict, list, set))]
        kept.append((held, held.copy()))
    try:
        yield
    finally:
        for held, before in kept:
            if isinstance(held, list):
                held[:] = before
            else:
                held.clear()
                held.update(before)
