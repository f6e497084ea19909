"""Weights between and amid several trainings: values only, no files.

WiSE-FT: Wortsman et al. 2022, Robust fine-tuning of zero-shot models. Soups: Wortsman et al. 2022,
Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.errors import ShapeMismatch, TargetError
from regraft.tensors import Catalogue

if TYPE_CHECKING:
    from regraft.tensors import Array


def mixed(arrays: Iterable[Array], shares: Sequence[float], name: str) -> Array:
    """The weighted mean of arrays of one shape, in the first one's dtype, one at a time.

    Of counters and states, numbers without a fraction and at most a row of them, the last one is
    taken. A share of 0 or 1 gives one side to the bit. **Raises** `TargetError` for matrices of
    such numbers that differ: codes of quantized weights and masks have no mean.
    """
    total: Any = None
    first: Any = None
    for array, share in zip(arrays, shares, strict=True):
        values: Any = array
        first = values if first is None else first
        if share == 1.0:
            return values.astype(first.dtype, copy=False)
        if not _fractional(values):
            if total is not None and values.ndim > 1 and not np.array_equal(total, values):
                raise TargetError(
                    name,
                    found=f"other values of {values.dtype} in each file: codes, or a mask",
                    expected="weights with a fraction, or the same values in all files",
                    hint="average the models before they are quantized or pruned",
                )
            total = values
        elif share:
            wide = values.astype(np.complex128 if values.dtype.kind == "c" else np.float64) * share
            total = wide if total is None else total + wide
    return np.asarray(total).astype(first.dtype)


def alike(catalogues: Sequence[Catalogue]) -> None:
    """Raises `ShapeMismatch`, with all findings, unless all have the same tensors."""
    first = catalogues[0]
    problems: list[str] = []
    for other in catalogues[1:]:
        problems += [f"{other.label}: {name} is missing" for name in first if name not in other]
        problems += [f"{other.label}: {name} is in it alone" for name in other if name not in first]
        problems += [
            f"{other.label}: {name} is {other[name].dtype}{list(other[name].shape)}, "
            f"not {first[name].dtype}{list(first[name].shape)}"
            for name in first
            if name in other
            and (other[name].shape, other[name].dtype) != (first[name].shape, first[name].dtype)
        ]
    if problems:
        raise ShapeMismatch(
            first.label,
            found=f"{len(problems)} differences between files that are to be averaged",
            expected="fine-tuned versions of one model, with the same tensors",
            hint="averages only make sense for trainings that began at the same weights",
            problems=problems,
        )


def _fractional(array: Any) -> bool:
    return array.dtype.kind in "fc" or array.dtype.name.startswith(("bfloat", "float8"))
