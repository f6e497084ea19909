"""Looks at values: what is not a number, and whether two tensors are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from regraft.tensors import Array


def not_finite(array: Array) -> int:
    """Number of NaN and Inf values; 0 for integers and bools."""
    if array.dtype.kind in "biuSU":
        return 0
    try:
        return int(array.size - np.isfinite(array).sum())
    except TypeError:  # a float8 dtype without the function
        return int(array.size - np.isfinite(array.astype(np.float32)).sum())
