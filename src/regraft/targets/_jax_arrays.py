"""Single arrays of JAX: described without values, read, and made like another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.errors import TargetError
from regraft.tensors import DTYPE_BITS

if TYPE_CHECKING:
    from regraft.tensors import Array


def is_array(leaf: object) -> bool:
    """Whether a leaf holds weights, or says what they would be: keys of random numbers, functions
    and Python's own numbers do not."""
    import jax

    if isinstance(leaf, np.ndarray):
        return leaf.dtype.name in DTYPE_BITS
    if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
        return False
    return not jax.numpy.issubdtype(leaf.dtype, jax.dtypes.extended)


def dtype_name(leaf: Any, name: str) -> str:
    """**Raises** `TargetError` for values that are no numbers, or stand for such while a function
    is traced."""
    from jax.core import Tracer

    if isinstance(leaf, Tracer):
        raise TargetError(
            name, found="an array that stands for others while a function is traced (jit, grad)",
            expected="an array with values", hint="load outside of the function",
        )  # fmt: skip
    dtype = np.dtype(leaf.dtype).name
    if dtype not in DTYPE_BITS:
        raise TargetError(name, found=f"a leaf of dtype {dtype}", expected="an array of numbers")
    return dtype


def is_abstract(leaf: object) -> bool:
    """Whether a leaf is a shape without values."""
    import jax

    return isinstance(leaf, jax.ShapeDtypeStruct)


def to_numpy(leaf: Any, name: str) -> Array:
    """A copy of the values; raises as `seen` does."""
    return np.array(seen(leaf, name))


def seen(leaf: Any, name: str) -> Array:
    """The values, in the array's own memory where that is the CPU's.

    **Raises** `TargetError` where there are none yet, or where other
    processes hold a part of them."""
    import jax

    if is_abstract(leaf):
        raise TargetError(name, found="a shape without values", expected="an array")
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise TargetError(
            name, found="an array that was deleted (donated to a function)", expected="an array",
            hint="give the array that the function returned",
        )  # fmt: skip
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise TargetError(
            name,
            found="an array of which other processes hold a part",
            expected="an array whose shards are all here",
            hint="gather it first: jax.experimental.multihost_utils.process_allgather",
        )
    return np.asarray(leaf)


def like(array: Array, leaf: Any) -> Any:
    """The values as an array where `leaf` lies: numpy stays numpy, and of a sharded array each
    device is sent its own slice only."""
    import jax
    import jax.numpy as jnp

    if isinstance(leaf, np.ndarray):
        return array.copy()
    sharding = leaf.sharding
    # An array that no device was chosen for may still go to any: it is not tied to one here.
    if sharding is None or (isinstance(leaf, jax.Array) and not leaf.committed):
        return jnp.array(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
