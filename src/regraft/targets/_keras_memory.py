"""Values of Keras' variables on each backend as numpy sees them, and memory given to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.values import pages

if TYPE_CHECKING:
    from regraft.tensors import Array

    # Makes memory, and what gives the tensor that lies there once values are written.
    Maker = Callable[[], tuple[Array, Callable[[], Any]]]


def to_numpy(value: Any) -> Array:
    """A copy of a tensor of any backend as numpy array."""
    return np.array(seen(value))


def seen(value: Any) -> Array:
    """A tensor of any backend as numpy array, in its own memory where the backend shows it."""
    import keras

    backend = keras.backend.backend()
    if backend == "torch":
        from regraft.targets import _torch_arrays

        return _torch_arrays.to_numpy(value)
    if backend == "tensorflow":
        return seen_in_tensorflow(value)
    return np.asarray(value) if backend == "jax" else np.asarray(keras.ops.convert_to_numpy(value))


def seen_in_tensorflow(value: Any) -> Array:
    """As `seen`, for what is known to be TensorFlow's."""
    value = present(value)
    with suppress(BufferError, TypeError, ValueError):  # bfloat16, or not in the CPU's memory
        return np.asarray(memoryview(value))
    return np.asarray(value)


def present(value: Any) -> Any:
    """A variable's values as a tensor that does not change with it; no copy."""
    return value.read_value() if hasattr(value, "read_value") else value


def maker(variable: Any) -> Maker | None:
    """What makes new tensors that the variable can be assigned without a copy; `None` where it lies
    elsewhere than in one CPU's memory, where assigning may do more than that, and for dtypes whose
    memory is not shown."""
    import keras

    makers = {"tensorflow": in_tensorflow, "jax": _jax}
    found = makers.get(keras.backend.backend())
    return found(variable.value) if found and type(variable) is keras.Variable else None


def in_tensorflow(value: Any) -> Maker | None:
    """Memory of TensorFlow's own: what is given back goes to its allocator, which keeps it for the
    next tensor."""
    import tensorflow as tf
    from tensorflow.python.ops.resource_variable_ops import ResourceVariable

    if type(value) is not ResourceVariable or not tf.executing_eagerly():
        return None
    if ":CPU:" not in value.device.upper() or value.dtype == tf.bfloat16 or 0 in value.shape:
        return None
    shape, dtype = tuple(value.shape), value.dtype

    def made() -> tuple[Array, Callable[[], Any]]:
        tensor = tf.raw_ops.Empty(shape=shape, dtype=dtype, init=False)
        return np.asarray(_Writable(np.asarray(memoryview(tensor)))), lambda: tensor

    return made


class _Writable:
    """The memory of an array that is shown to be read only."""

    def __init__(self, array: Array) -> None:
        self.array = array  # keeps the memory
        interface = dict(array.__array_interface__)
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}


def _jax(value: Any) -> Maker | None:
    """Memory in pages of its own, which JAX takes as it is: a map begins where processors like
    arrays to begin."""
    import jax

    kind = jax.sharding.SingleDeviceSharding
    if not isinstance(value, jax.Array) or not isinstance(value.sharding, kind) or not value.size:
        return None
    (device,) = value.devices()
    # What no device was chosen for goes to the one that is usual, in the widths that are.
    settings: Any = jax.config
    usual = settings.jax_default_device is None and device == jax.local_devices()[0]
    wide = value.dtype.itemsize > 4 and not settings.jax_enable_x64
    if device.platform != "cpu" or not (value.committed or usual) or wide:
        return None
    shape, dtype, place = value.shape, value.dtype, device if value.committed else None

    def made() -> tuple[Array, Callable[[], Any]]:
        memory = np.ndarray(shape, dtype, buffer=pages(math.prod(shape) * dtype.itemsize))
        return memory, lambda: jax.device_put(memory, place)

    return made
