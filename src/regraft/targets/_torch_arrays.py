"""Tensors of PyTorch as numpy arrays and back; bfloat16 and float8 go by their bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.tensors import numpy_dtype

if TYPE_CHECKING:
    from regraft.tensors import Array


def dtype_name(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def to_torch(array: Array) -> Any:
    """A tensor in the array's own memory, to be read only: copy it to keep or to change it."""
    import torch

    array = np.ascontiguousarray(array) if array.ndim else np.array(array)
    extended = array.dtype.isbuiltin == 2  # one of ml_dtypes'
    plain = array.view(f"i{array.dtype.itemsize}") if extended else array
    if not plain.flags.writeable:
        plain = np.asarray(_Shared(plain))
    tensor = torch.from_numpy(plain)
    return tensor.view(getattr(torch, array.dtype.name)) if extended else tensor


class _Shared:
    """The memory of a read-only array, which torch warns of where it is told that it is one."""

    def __init__(self, array: Array) -> None:
        self.array = array  # keeps the memory
        interface = dict(array.__array_interface__)
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}


def to_numpy(tensor: Any) -> Array:
    """The values, in the tensor's own memory where that is the CPU's."""
    import torch

    tensor = whole(tensor.detach()).cpu()
    name = dtype_name(tensor)
    if name == "bfloat16" or name.startswith("float8"):
        signed = torch.int16 if tensor.element_size() == 2 else torch.int8
        return tensor.contiguous().view(signed).numpy().view(numpy_dtype(name))
    return tensor.numpy()


def copy_into(tensor: Any, array: Array) -> None:
    """Sets a tensor's values in place, on its device and in its dtype; of a tensor that is spread
    over several devices, each process sets its own part."""
    import torch

    value = to_torch(array)
    # What was made in inference mode can be changed there only.
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        if is_spread(tensor):
            tensor.copy_(_spread_like(value, tensor))
        else:
            tensor.copy_(value)


def new_like(tensor: Any, array: Array) -> Any:
    """A tensor of these values in another's dtype, made once and nowhere else first."""
    import torch
    from torch.nn.parameter import is_lazy

    if is_lazy(tensor):
        made = torch.empty(array.shape, dtype=tensor.dtype, device="cpu")
    else:
        made = torch.empty_like(tensor, device="cpu", requires_grad=False)
    return made.copy_(to_torch(array))


def is_plain(tensor: Any) -> bool:
    """Whether a tensor's values lie in the CPU's memory in row-major order, and nothing else
    happens when they are set (a subclass may do more)."""
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return False
    strided = tensor.layout is torch.strided and not tensor.is_conj() and not tensor.is_neg()
    return tensor.device.type == "cpu" and strided and tensor.is_contiguous()


def is_spread(tensor: Any) -> bool:
    """Whether a tensor is a DTensor, as `fully_shard` and tensor parallelism make them."""
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def whole(tensor: Any) -> Any:
    return tensor.full_tensor() if is_spread(tensor) else tensor


def _spread_like(value: Any, like: Any) -> Any:
    """Every process has the whole value: each takes its part, and nothing is sent."""
    from torch.distributed.tensor import distribute_tensor

    there = value.to(like.device_mesh.device_type)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)
