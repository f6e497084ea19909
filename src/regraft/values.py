"""Looks at values: what is not a number, and what the bytes are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from regraft.tensors import Array


def bits(array: Array) -> NDArray[np.uint8]:
    """The bytes of the values in row-major order, flat; a view where that is possible."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def not_finite(array: Array) -> int:
    """Number of NaN and Inf values; 0 for integers and bools."""
    if array.dtype.kind in "biuSU":
        return 0
    if array.dtype.name == "bfloat16":  # whose own function is slow
        exponents = array.view(np.uint16) & 0x7F80
        return int(np.count_nonzero(exponents == 0x7F80))
    try:
        finite = np.isfinite(array)
    except TypeError:  # a float8 dtype without the function
        finite = np.isfinite(array.astype(np.float32))
    return array.size - int(np.count_nonzero(finite))
