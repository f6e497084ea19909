"""How far two arrays lie apart: block by block, in memory that does not grow with them.

A block is small enough for a processor's cache. Sums of squares are taken in the values' own
width by BLAS, which sums float32 in many partial sums, and added up in float64; a block whose sums
leave float32's range, or that holds NaN or Inf, is done again in float64 over its finite values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from regraft.tensors import Slices

if TYPE_CHECKING:
    from regraft.tensors import Array

# Values of a block, and bytes of a tensor that are read at a time.
_BLOCK, PIECE = 1 << 16, 16 << 20
# Sums of squares outside of these have lost digits in float32.
_TINY, _HUGE = 1e-25, 1e37
_WIDE = (np.dtype(np.float32), np.dtype(np.float64))


class Change(NamedTuple):
    """Sums over the values of two tensors, a and b; they add up over pieces.

    - `same`: whether all bytes agree. `largest`: the largest |b − a|.
    - `a`, `b`, `both`: sums of a², b² and (b − a)².
    - `odd`: places where either is NaN or Inf, which are left out of the sums, as are those that
      differ by their sign bit of zero only.
    """

    same: bool = True
    a: float = 0.0
    b: float = 0.0
    both: float = 0.0
    largest: float = 0.0
    odd: int = 0

    def __add__(self, other: Change) -> Change:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Change(
            self.same and other.same,
            self.a + other.a,
            self.b + other.b,
            self.both + other.both,
            max(self.largest, other.largest),
            self.odd + other.odd,
        )

    @property
    def rel_l2(self) -> float:
        """‖b − a‖ / ‖a‖: 0 where nothing changed, inf where a is all zeros."""
        if not self.both:
            return 0.0
        return (self.both / self.a) ** 0.5 if self.a else float("inf")

    @property
    def cosine(self) -> float:
        """Of the angle between them: 1 where both are 0, 0 where one is."""
        if not self.a or not self.b:
            return float(self.a == self.b)
        if not self.both:
            return 1.0
        cosine = (self.a + self.b - self.both) / (2 * (self.a * self.b) ** 0.5)
        return max(-1.0, min(1.0, cosine))


def compared(a: Array, b: Array) -> Change:
    """The change from `a` to `b`, arrays of equal shape, of any dtypes."""
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape}")
    one, other = np.ascontiguousarray(a).reshape(-1), np.ascontiguousarray(b).reshape(-1)
    same_kind = one.dtype == other.dtype
    total = Change(same_kind or not one.size)
    for start in range(0, one.size, _BLOCK):
        x, y = one[start : start + _BLOCK], other[start : start + _BLOCK]
        # As long as all agree, bytes are looked at first: most tensors agree whole, or nowhere.
        alike = total.same and _bytes_agree(x, y)
        total += _unchanged(x) if alike else _changed(x, y)
    return total


def _bytes_agree(x: Array, y: Array) -> bool:
    """Compared as whole words where the values allow it."""
    width = x.dtype.itemsize
    word = np.dtype(np.uint64 if x.nbytes % 8 == 0 and width in (1, 2, 4, 8, 16) else np.uint8)
    return bool((x.view(word) == y.view(word)).all())


def _unchanged(x: Array) -> Change:
    return _changed(x, x)._replace(same=True)


def _changed(x: Array, y: Array) -> Change:
    u, v = _wide(x), _wide(y)
    if u.dtype != v.dtype:
        u, v = u.astype(np.float64), v.astype(np.float64)
    with np.errstate(all="ignore"):
        change = np.subtract(v, u) if v is not u else None
        aa = float(np.dot(u, u))
        bb = aa if change is None else float(np.dot(v, v))
        both = 0.0 if change is None else float(np.dot(change, change))
        largest = 0.0 if change is None else max(float(change.max()), -float(change.min()))
    sums = (aa, bb, both)
    lost = largest and any(0 <= s < _TINY for s in sums)
    if not lost and all(s < _HUGE for s in sums):  # NaN is not less than anything
        return Change(False, aa, bb, both, largest, 0)
    return _carefully(u, v)


def _carefully(u: Array, v: Array) -> Change:
    """In float64, over the places where both are finite."""
    a, b = u.astype(np.float64), v.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    odd = int(finite.size - finite.sum())
    a, b = a[finite], b[finite]
    with np.errstate(all="ignore"):
        change = b - a
        largest = float(np.abs(change).max(initial=0.0))
        return Change(False, float(a @ a), float(b @ b), float(change @ change), largest, odd)


def _wide(x: Array) -> Array:
    """float32 or float64 as it is, whatever fits into float32 in it, all else in float64; complex
    numbers as pairs."""
    if x.dtype in _WIDE:
        return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))
    if x.dtype.kind == "c":
        return x.view(np.float32 if x.dtype.itemsize == 8 else np.float64)
    narrow = x.dtype.itemsize <= 2 and x.dtype.kind not in "iu"
    return x.astype(np.float32 if narrow else np.float64)


def pieces(shape: tuple[int, ...], itemsize: int) -> Iterator[Slices | None]:
    """Parts of a tensor that are read one after another: `None`, all of it, where it is small.

    Cut along the outermost axis that has more than one entry: such parts lie in one piece of the
    file.
    """
    size = itemsize
    for n in shape:
        size *= n
    axis = next((i for i, n in enumerate(shape) if n > 1), None)
    if size <= PIECE or axis is None:
        yield None
        return
    rows = max(1, PIECE * shape[axis] // size)
    ahead = (slice(0, 1),) * axis
    behind = tuple(slice(0, n) for n in shape[axis + 1 :])
    for start in range(0, shape[axis], rows):
        yield (*ahead, slice(start, min(start + rows, shape[axis])), *behind)


def effective_rank(change: Array) -> float:
    """exp of the entropy of the singular values of a change, seen as a matrix of its first axis by
    the others: 1 for a change along one direction, the smaller side for one in all alike.

    Source: Roy and Vetterli, *The effective rank: a measure of effective dimensionality* (2007).
    NaN where the change is no matrix, is zero or is not finite.
    """
    if change.ndim < 2 or not change.size:
        return float("nan")
    matrix = change.reshape(change.shape[0], -1).astype(np.float64)
    if not np.isfinite(matrix).all() or not matrix.any():
        return float("nan")
    values = np.linalg.svd(matrix, compute_uv=False)
    shares = values[values > values[0] * 1e-12] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def difference(a: Array, b: Array) -> Array:
    """b − a: floats no narrower than float32, integers and bools as int64."""
    if a.dtype.kind in "biu" and b.dtype.kind in "biu":
        return b.astype(np.int64) - a.astype(np.int64)
    wide = np.result_type(*(x.dtype if x.dtype.kind in "fc" else np.float32 for x in (a, b)))
    wide = np.promote_types(wide, np.float32)
    with np.errstate(invalid="ignore"):
        return b.astype(wide) - a.astype(wide)
