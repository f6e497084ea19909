"""Files that follow from another's values alone: casts, pruned and quantised ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from regraft.lineage.kinship import shared
from regraft.lineage.portraits import Part, Portrait
from regraft.tensors import DTYPE_BITS, numpy_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Values of a sample that may disagree where one file is the other's rounding.
_ROUNDED, _ROUNDED_FEW, _FEW = 0.999, 0.9, 64
_LEVELS = 256


def derivation(parent: Portrait, child: Portrait) -> str:
    """How the child's values follow from the parent's alone: `cast to float16`, `pruned`,
    `quantised`; empty where they do not."""
    names = shared(parent, child)
    if not names or parent.parts.keys() != child.parts.keys() or len(names) < len(child.parts):
        return ""
    pairs = [(parent.parts[n], child.parts[n]) for n in names]
    pairs = [(p, c) for p, c in pairs if p.hash != c.hash or p.dtype != c.dtype]
    if not pairs:
        return ""
    # A few values of each tensor tell nearly all pairs that are none of this.
    few, most = _values(pairs, _FEW), _values(pairs, None)
    if _pruned(*few) is not False and _pruned(*most):
        return "pruned"
    stored = {c.dtype for _, c in pairs}
    for dtype in ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"):
        wider = all(DTYPE_BITS.get(p.dtype, 32) >= DTYPE_BITS[dtype] for p, _ in pairs)
        if not wider or not (stored == {dtype} or DTYPE_BITS.get(min(stored), 32) >= 32):
            continue
        if _cast(*few, dtype) >= _ROUNDED_FEW and _cast(*most, dtype) >= _ROUNDED:
            before = most[0]
            if not np.array_equal(before, _rounded(before, dtype)):
                return f"cast to {dtype}"
    return "quantised" if _quantised(pairs) else ""


def _values(
    pairs: list[tuple[Part, Part]], count: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The first values of all tensors, of the one and of the other file."""
    return (
        np.concatenate([one.values[:count] for one, _ in pairs]),
        np.concatenate([other.values[:count] for _, other in pairs]),
    )


def _pruned(before: NDArray[np.float64], after: NDArray[np.float64]) -> bool | None:
    """Whether values are the same but for zeros; `None` where there are none of these yet."""
    held = after != 0
    if not np.array_equal(before[held], after[held]):
        return False
    return True if (~held & (before != 0)).any() else None


def _cast(before: NDArray[np.float64], after: NDArray[np.float64], dtype: str) -> float:
    """The share of values that are the earlier ones in this type."""
    return float(np.mean(_rounded(before, dtype) == after))


def _rounded(values: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    with np.errstate(all="ignore"):
        return values.astype(np.float32).astype(numpy_dtype(dtype)).astype(np.float64)


def _quantised(pairs: list[tuple[Part, Part]]) -> bool:
    """Whether matrices have few levels, evenly spaced, no farther than half a step from the values
    that the parent has, which has many."""
    matrices = [(p, c) for p, c in pairs if len(p.shape) > 1 and p.values.size > 4 * _LEVELS]
    if any(np.unique(c.values[: 4 * _LEVELS]).size > _LEVELS for _, c in matrices):
        return False
    for p, c in matrices:
        levels = np.unique(c.values)
        if levels.size > _LEVELS or np.unique(p.values).size <= 2 * _LEVELS:
            return False
        steps = np.diff(levels)
        if not steps.size or np.abs(p.values - c.values).max() > 0.6 * steps.max():
            return False
    return bool(matrices)
