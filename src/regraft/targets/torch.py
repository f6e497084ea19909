"""PyTorch: a live `torch.nn.Module`, wrappers seen through."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from regraft.errors import TargetError
from regraft.sinks import Sink
from regraft.targets._layer_settings import settings_of
from regraft.targets._outputs import leaves_of
from regraft.targets._torch_arrays import (
    copy_into,
    dtype_name,
    is_plain,
    new_like,
    to_numpy,
    to_torch,
)
from regraft.targets._torch_lazy import shapes_of
from regraft.targets._torch_modules import Names, Places, hears_loading, tensors_of, unwrapped
from regraft.targets._torch_taps import TorchTaps
from regraft.tensors import Catalogue, Rows, Skeleton, TensorInfo
from regraft.values import can_be_private, private

if TYPE_CHECKING:
    from regraft.targets import Inputs
    from regraft.tensors import Array, FlowNode, Traced

_UNTRACED = "torch.fx cannot trace the model's Python: the order of its layers' use is no evidence"
_EXPORTED = "the order of its layers' use was followed by torch.export on the probe's inputs"
_CONSTANTS = ("position_ids", "token_type_ids", "relative_position_index")


def owns(model: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def skeleton(model: object, source: Catalogue | None = None) -> Skeleton:
    """Parameters and persistent buffers in the order of `state_dict`; meta tensors as well. Lazy
    ones have the shapes that a `source` of the same names has.

    **Raises** `TargetError` where a lazy parameter has no shape yet, where parameters are stored in
    codes (quantized), or are flat pieces (FSDP).
    """
    from regraft.targets import _fx

    inner, _ = _inner(model)

    def trace() -> tuple[Iterable[FlowNode], str]:
        flow, why = _fx.flow_of(inner)
        return flow, f"{_UNTRACED} ({why})" if why and list(inner.children()) else ""

    return _skeleton(model, trace, source)


def followed(model: object, inputs: Inputs) -> Skeleton:
    """As `skeleton`, with the dataflow that shows when the model's Python is run on these inputs,
    without values; a note tells of it, and why there is none where there is not.

    **Raises** as `skeleton` does.
    """
    from regraft.targets import _export

    inner, _ = _inner(model)
    try:
        args, kwargs = _arguments(inner, inputs)
        flow, why = _export.flow_of(inner, args, kwargs)
    except (TypeError, ValueError) as error:  # inputs that are no tensors
        flow, why = (), f"{error}"[:200]
    note = f"{_UNTRACED}, and torch.export cannot follow it ({why})" if why else _EXPORTED
    return _skeleton(model, lambda: (flow, note))


def _skeleton(
    model: object,
    trace: Callable[[], tuple[Iterable[FlowNode], str]],
    source: Catalogue | None = None,
) -> Skeleton:
    inner, names = _inner(model)
    layers = [(names.shown(path), module) for path, module in inner.named_modules()]
    owners = {path: type(module).__name__ for path, module in layers}
    infos: list[TensorInfo] = []
    same: dict[int, list[str]] = defaultdict(list)
    tensors = tensors_of(model, lazy=source is not None)
    lazy = {} if source is None else shapes_of(inner, tensors, source)
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        shape = lazy[name] if name in lazy else tuple(tensor.shape)
        infos.append(
            TensorInfo(
                name, shape, dtype_name(tensor), owners.get(owner, ""), "", _kind(leaf)
            )
        )  # fmt: skip
        same[id(tensor)].append(name)

    def traced() -> Traced:
        flow, note = trace()
        shown = (node._replace(owner=names.shown(node.owner)) for node in flow)
        return shown, ([note] if note else [])

    return Skeleton(
        infos,
        framework="torch",
        order="definition",
        ties=[tuple(names) for names in same.values() if len(names) > 1],
        label=type(inner).__name__,
        trace=traced,
        settings=settings_of(layers, "."),
    )


def _inner(model: object) -> tuple[Any, Names]:
    inner = unwrapped(model)
    return inner, Names(inner)


def abstract(model: object) -> bool:
    """Whether some parameters have no values: on the meta device, or lazy."""
    live: Any = model
    return any(_is_hollow(parameter) for parameter in live.parameters())


def _is_hollow(tensor: Any) -> bool:
    from torch.nn.parameter import is_lazy

    return tensor.is_meta or is_lazy(tensor)


def _kind(leaf: str) -> Literal["weight", "counter", "constant"]:
    if leaf == "num_batches_tracked":
        return "counter"
    return "constant" if leaf in _CONSTANTS else "weight"


def _is_dense(tensor: Any) -> bool:
    """Whether values in row-major order are as the tensor has them."""
    from torch.nn.parameter import is_lazy

    return is_lazy(tensor) or tensor.is_contiguous()


class _TorchSink(Sink):
    def __init__(self, model: Any) -> None:
        self._model = model
        self._inner = unwrapped(model)
        self._tensors = tensors_of(model, lazy=True)
        known = {id(tensor) for tensor in self._tensors.values()}
        listed = self._inner.named_buffers(remove_duplicate=False)
        unknown = [n for n, b in listed if b.is_meta and id(b) not in known]
        if unknown:
            raise TargetError(
                f"{type(self._inner).__name__}, {unknown[0]}",
                found=f"{len(unknown)} buffers on the meta device that no checkpoint holds",
                expected="buffers with values",
                hint="build the model on a real device",
                problems=unknown,
            )

    def write(self, name: str, array: Array) -> None:
        import torch

        tensor = self._tensors[name]
        if not _is_hollow(tensor):
            copy_into(tensor, array)
            return
        with torch.inference_mode(mode=False):  # what is made within it can never be trained
            adopted = self.adopts(name, array)
            new = to_torch(private(array)) if adopted else new_like(tensor, array)
            self._put(tensor, new)

    @cached_property
    def _held(self) -> tuple[Places, dict[int, list[str]]]:
        """Where the model holds each tensor, and under which names."""
        names: dict[int, list[str]] = defaultdict(list)
        for name, tensor in self._tensors.items():
            names[id(tensor)].append(name)
        return Places(self._inner), names

    def _put(self, old: Any, new: Any) -> None:
        """Puts a tensor into the place, or the tied places, of another."""
        import torch

        if isinstance(old, torch.nn.Parameter) and not isinstance(new, torch.nn.Parameter):
            make: Any = torch.Tensor._make_subclass
            new = make(getattr(old, "cls_to_become", type(old)), new, old.requires_grad)
            vars(new).update(vars(old))  # what its users wrote on it
        places, names = self._held
        places.put(old, new)
        tied = names.pop(id(old))
        for name in tied:
            self._tensors[name] = new
        names[id(new)] = tied

    def read(self, name: str) -> Array:
        tensor = self._tensors[name]
        if _is_hollow(tensor):
            raise TargetError(
                name,
                found="a tensor without values: on the meta device, or lazy",
                expected="a tensor with values",
                hint="load all of its model, or build it on a real device",
            )
        return to_numpy(tensor).copy()

    def look(self, name: str) -> Array:
        tensor = self._tensors[name]
        return self.read(name) if _is_hollow(tensor) else to_numpy(tensor)

    def memory(self, name: str) -> Array | None:
        tensor = self._tensors[name]
        return to_numpy(tensor) if is_plain(tensor) else None

    def adopts(self, name: str, array: Array) -> bool:
        tensor = self._tensors[name]
        return _is_hollow(tensor) and _is_dense(tensor) and can_be_private(array)

    def undo(self, name: str) -> Callable[[], None] | None:
        before = self._tensors[name]
        if _is_hollow(before):
            return lambda: self._put(self._tensors[name], before)
        return None

    def hollow(self, name: str) -> bool:
        return _is_hollow(self._tensors[name])

    @property
    def settles(self) -> bool:
        return hears_loading(self._inner)

    def settle(self) -> None:
        """Hooks of `load_state_dict` hear that there are new values: the model is given its own
        state, which is there already."""
        if self.settles:
            self._inner.load_state_dict(self._inner.state_dict(), strict=False)

    @property
    def model(self) -> object:
        return self._model


def build(model: object, inputs: Inputs) -> None:
    """Gives lazy layers their shapes by running the model once."""
    from torch.nn.parameter import is_lazy

    live: Any = model
    if any(is_lazy(parameter) for parameter in live.parameters()):
        run(model, inputs)


def sink(model: object) -> Sink:
    """Writes in place, keeping dtype, device and `requires_grad`; meta tensors are made real.

    **Raises** `TargetError` where buffers that no checkpoint holds are on the meta device.
    """
    return _TorchSink(model)


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
    with _evaluating(model):
        return called(model, inputs)


def called(model: object, inputs: Inputs | Callable[[object], object]) -> dict[str, Array]:
    """Outputs by name, in the modes that the model's modules have. `inputs` may be a function that
    calls the model."""
    import torch

    live: Any = model
    with torch.no_grad():
        if callable(inputs):
            result = inputs(model)
        else:
            args, kwargs = _arguments(live, inputs)
            result = live(*args, **kwargs)
    return {
        name: to_numpy(leaf).copy()
        for name, leaf in leaves_of(result)
        if isinstance(leaf, torch.Tensor)
    }


def _arguments(model: Any, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as tensors where the model is, positional and by keyword."""
    from torch.nn.parameter import is_lazy

    known = (parameter for parameter in model.parameters() if not is_lazy(parameter))
    first = next(known, None)
    if isinstance(inputs, dict):
        return (), {key: _input(value, first) for key, value in inputs.items()}
    several = inputs if isinstance(inputs, tuple) else (inputs,)
    return tuple(_input(value, first) for value in several), {}


def taps(model: object) -> TorchTaps:
    """The model under observation; see `regraft.calls`."""
    return TorchTaps(model)


def rotary(model: object, projections: Sequence[tuple[Rows, Rows]]) -> tuple[str, int] | None:
    """Rotary layout and width of a head, by experiment; see `_rotary`."""
    from regraft.targets import _rotary

    inner, names = _inner(model)
    return _rotary.rotary_of(inner, projections) if names.plain else None


def head_width(model: object, value: Rows, outputs: Sequence[str]) -> int | None:
    """Width of a head of an attention, by experiment; see `_rotary`."""
    from regraft.targets import _rotary

    inner, names = _inner(model)
    return _rotary.head_width_of(inner, value, outputs) if names.plain else None


def _input(array: Any, like: Any) -> Any:
    import torch

    given = isinstance(array, torch.Tensor)
    tensor = array.detach().clone() if given else to_torch(np.array(array))
    if like is None:
        return tensor
    narrow = tensor.dtype.is_floating_point and tensor.element_size() > like.element_size()
    return tensor.to(device=like.device, dtype=like.dtype if narrow else None)


def trainable(model: object, names: Collection[str]) -> None:
    """Sets `requires_grad` for exactly these parameters, of floating dtype.

    BatchNorm's running statistics are no parameters: they move in training mode all the same.
    """
    inner, names_shown = _inner(model)
    for name, parameter in inner.named_parameters(remove_duplicate=False):
        if parameter.dtype.is_floating_point or parameter.dtype.is_complex:
            parameter.requires_grad_(names_shown.shown(name) in names)
