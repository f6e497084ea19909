"""PyTorch: a live `torch.nn.Module`, wrappers seen through."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from regraft.errors import TargetError
from regraft.targets._layer_settings import settings_of
from regraft.tensors import Rows, Sink, Skeleton, TensorInfo

if TYPE_CHECKING:
    from regraft.targets import Inputs
    from regraft.tensors import Array

_CONSTANTS = ("position_ids", "token_type_ids", "relative_position_index")


def owns(model: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def unwrapped(model: Any) -> Any:
    """The model inside DataParallel, DistributedDataParallel or torch.compile."""
    import torch

    while True:
        if type(model).__name__ == "OptimizedModule":
            model = model._orig_mod
        elif isinstance(model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def skeleton(model: object) -> Skeleton:
    """Parameters and persistent buffers in the order of `state_dict`; meta tensors as well.

    **Raises** `TargetError` where a lazy parameter has no shape yet.
    """
    from regraft.targets import _fx

    inner = unwrapped(model)
    owners = {path: type(module).__name__ for path, module in inner.named_modules()}
    infos: list[TensorInfo] = []
    same: dict[int, list[str]] = defaultdict(list)
    for name, tensor in _named(inner).items():
        owner, _, leaf = name.rpartition(".")
        infos.append(
            TensorInfo(
                name, tuple(tensor.shape), _dtype(tensor), owners.get(owner, ""), "", _kind(leaf)
            )
        )
        same[id(tensor)].append(name)
    return Skeleton(
        infos,
        framework="torch",
        order="definition",
        ties=[tuple(names) for names in same.values() if len(names) > 1],
        label=type(inner).__name__,
        flow=_fx.flow_of(inner),
        settings=settings_of(inner.named_modules(), "."),
    )


def _named(model: Any) -> dict[str, Any]:
    """Tensors by their names in `state_dict`, which may leave some out."""
    from torch.nn.parameter import is_lazy

    tensors = dict(model.named_parameters(remove_duplicate=False))
    tensors |= dict(model.named_buffers(remove_duplicate=False))
    lazy = [name for name, tensor in tensors.items() if is_lazy(tensor)]
    if lazy:
        raise TargetError(
            f"{type(model).__name__}, {lazy[0]}",
            found=f"{len(lazy)} lazy parameters without a shape",
            expected="a model whose shapes are known",
            hint="run the model once on an example input",
        )
    return {name: tensors[name] for name in model.state_dict(keep_vars=True) if name in tensors}


def _kind(leaf: str) -> Literal["weight", "counter", "constant"]:
    if leaf == "num_batches_tracked":
        return "counter"
    return "constant" if leaf in _CONSTANTS else "weight"


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


class _TorchSink(Sink):
    def __init__(self, model: Any) -> None:
        self._model = model
        self._inner = unwrapped(model)
        self._tensors = _named(self._inner)
        self._meta = {name for name, tensor in self._tensors.items() if tensor.is_meta}
        listed = self._inner.named_buffers(remove_duplicate=False)
        unknown = [n for n, b in listed if b.is_meta and n not in self._tensors]
        if unknown:
            raise TargetError(
                f"{type(self._inner).__name__}, {unknown[0]}",
                found=f"{len(unknown)} buffers on the meta device that no checkpoint holds",
                expected="buffers with values",
                hint="build the model on a real device",
            )

    def write(self, name: str, array: Array) -> None:
        import torch

        tensor = self._tensors[name]
        value = _to_torch(array)
        if name in self._meta:
            self._materialise(name, value)
            return
        if value.numel() == 0 < tensor.numel():  # what `read` gave for a tensor without values
            self._materialise(name, tensor.to("meta"))
            self._meta.add(name)
            return
        with torch.no_grad():
            tensor.copy_(value)

    def _materialise(self, name: str, value: Any) -> None:
        """Puts a real tensor in the place, or the tied places, of one on the meta device."""
        import torch

        old = self._tensors[name]
        value = value if value.is_meta else value.to(dtype=old.dtype).clone()
        new = torch.nn.Parameter(value, old.requires_grad) if _is_parameter(old) else value
        for other in [n for n, tensor in self._tensors.items() if tensor is old]:
            owner, _, leaf = other.rpartition(".")
            module = self._inner.get_submodule(owner)
            held = module._parameters if leaf in module._parameters else module._buffers
            held[leaf] = new
            self._tensors[other] = new
            self._meta.discard(other)

    def read(self, name: str) -> Array:
        tensor = self._tensors[name]
        if tensor.is_meta:
            return np.zeros((0,), np.float32)
        return to_numpy(tensor).copy()

    @property
    def model(self) -> object:
        return self._model


def _is_parameter(tensor: Any) -> bool:
    import torch

    return isinstance(tensor, torch.nn.Parameter)


def sink(model: object) -> Sink:
    """Writes in place, keeping dtype, device and `requires_grad`; meta tensors are made real.

    **Raises** `TargetError` where buffers that no checkpoint holds are on the meta device.
    """
    return _TorchSink(model)


def _to_torch(array: Array) -> Any:
    """A tensor that shares the array's memory where torch can; extended dtypes go by their bits."""
    import torch

    array = np.ascontiguousarray(array) if array.ndim else np.array(array)
    if not array.flags.writeable:
        array = array.copy()
    if array.dtype.kind == "V" or array.dtype.name.startswith(("bfloat", "float8")):
        bits = array.view(f"u{array.dtype.itemsize}")
        signed = bits.view(f"i{array.dtype.itemsize}")
        return torch.from_numpy(signed).view(getattr(torch, array.dtype.name))
    return torch.from_numpy(array)


def copy_into(tensor: Any, array: Array) -> None:
    """Sets a tensor's values in place."""
    import torch

    with torch.no_grad():
        tensor.copy_(_to_torch(array))


def to_numpy(tensor: Any) -> Array:
    """A tensor as numpy array, bfloat16 and float8 as ml_dtypes' types."""
    import torch

    tensor = tensor.detach().cpu()
    name = _dtype(tensor)
    if name == "bfloat16" or name.startswith("float8"):
        from regraft.tensors import numpy_dtype

        width = tensor.element_size()
        signed = torch.int16 if width == 2 else torch.int8
        return tensor.contiguous().view(signed).numpy().view(numpy_dtype(name))
    return tensor.numpy()


@contextmanager
def _evaluating(model: Any) -> Generator[None]:
    """Evaluation mode; every submodule's own flag is put back."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def run(model: object, inputs: Inputs) -> dict[str, Array]:
    """Outputs by name: `output`, `output.0` … or the keys of a dict."""
    import torch

    live: Any = model
    with _evaluating(live), torch.no_grad():
        first = next(live.parameters(), None)
        if isinstance(inputs, dict):
            result = live(**{key: _input(value, first) for key, value in inputs.items()})
        else:
            several = inputs if isinstance(inputs, tuple) else (inputs,)
            result = live(*(_input(value, first) for value in several))
    return dict(_outputs(result, ""))


def rotary(model: object, projections: Sequence[tuple[Rows, Rows]]) -> tuple[str, int] | None:
    """Rotary layout and width of a head, by experiment; see `_rotary`."""
    from regraft.targets import _rotary

    return _rotary.rotary_of(unwrapped(model), projections)


def head_width(model: object, value: Rows, outputs: Sequence[str]) -> int | None:
    """Width of a head of an attention, by experiment; see `_rotary`."""
    from regraft.targets import _rotary

    return _rotary.head_width_of(unwrapped(model), value, outputs)


def _input(array: Array, like: Any) -> Any:
    tensor = _to_torch(np.asarray(array))
    if like is None:
        return tensor
    narrow = tensor.dtype.is_floating_point and tensor.element_size() > like.element_size()
    return tensor.to(device=like.device, dtype=like.dtype if narrow else None)


def _outputs(value: Any, name: str) -> Iterator[tuple[str, Array]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield name or "output", to_numpy(value).copy()
    elif isinstance(value, dict) or hasattr(value, "items"):
        for key, part in value.items():
            yield from _outputs(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from _outputs(part, f"{name or 'output'}.{index}")


def trainable(model: object, names: Collection[str]) -> None:
    """Sets `requires_grad` for exactly these parameters, of floating dtype.

    BatchNorm's running statistics are no parameters: they move in training mode all the same.
    """
    live: Any = unwrapped(model)
    for name, parameter in live.named_parameters(remove_duplicate=False):
        if parameter.dtype.is_floating_point or parameter.dtype.is_complex:
            parameter.requires_grad_(name in names)
