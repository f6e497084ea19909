"""Tensors that lie in several pieces, each a box of the whole: do they fill it, and what is in a
part of it."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from regraft.errors import CorruptFile
from regraft.tensors import numpy_dtype

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

# Bytes that corners may take, each of them and each of its axes.
_MAX_CORNERS, _CORNER, _AXIS = 128 << 20, 160, 8
_MAX_SIZE, _MAX_BITS = 1 << 62, 59


class Piece(NamedTuple):
    """A box of a tensor: its first index and its size along each axis; `source` tells its owner
    how to read it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    source: Any


def check(shape: tuple[int, ...], pieces: Iterable[Piece], where: str) -> None:
    """Checks that every element belongs to exactly one piece. **Raises** `CorruptFile`.

    By corners: a box is the sum of its corners with alternating signs (the mixed derivative of its
    indicator function), so that boxes fill the whole once everywhere exactly where their corners
    cancel out, but for those of the whole. Linear in the number of pieces. Axes that no piece
    divides are left out.
    """
    boxes = [(piece.offsets, piece.sizes) for piece in pieces if 0 not in piece.sizes]
    for offsets, sizes in boxes:
        inside = len(offsets) == len(sizes) == len(shape) and all(
            first >= 0 and first + size <= n
            for first, size, n in zip(offsets, sizes, shape, strict=True)
        )
        if not inside:
            raise CorruptFile(
                where, found=f"a piece of {sizes} at {offsets}", expected=f"pieces inside {shape}"
            )
    if 0 in shape:
        return
    axes = [axis for axis, n in enumerate(shape) if any(sizes[axis] != n for _, sizes in boxes)]
    if (len(boxes) << len(axes)) * (_CORNER + _AXIS * len(axes)) > _MAX_CORNERS:
        raise CorruptFile(where, found=f"{len(boxes)} pieces along {len(axes)} axes")
    corners: Counter[tuple[int, ...]] = Counter()
    whole = (tuple(0 for _ in shape), shape)
    for sign, (offsets, sizes) in ((-1, whole), *((1, box) for box in boxes)):
        ends = [(offsets[axis], offsets[axis] + sizes[axis]) for axis in axes]
        for choice in itertools.product((0, 1), repeat=len(axes)):
            corner = tuple(end[pick] for end, pick in zip(ends, choice, strict=True))
            corners[corner] += -sign if sum(choice) % 2 else sign
    if any(corners.values()):
        held = sum(math.prod(sizes) for _, sizes in boxes)
        raise CorruptFile(
            where,
            found=f"{len(boxes)} pieces with {held} elements, which overlap or leave gaps",
            expected=f"each of {math.prod(shape)} elements once",
            hint="files of another save are among these, or some are missing",
        )


def is_shape(value: Any) -> TypeGuard[tuple[int, ...]]:
    """Whether this is a tuple of sizes, of a tensor that could be."""
    plain = isinstance(value, tuple) and len(value) <= 64  # pyright: ignore[reportUnknownArgumentType]
    sizes = plain and all(type(n) is int and 0 <= n < _MAX_SIZE for n in value)  # pyright: ignore[reportUnknownVariableType]
    # Of 16 bytes an element, and beside a size of zero, too.
    return sizes and not math.prod(n for n in value if n) >> _MAX_BITS


def assembled(
    shape: tuple[int, ...],
    dtype: str,
    pieces: Iterable[Piece],
    read: Callable[[Piece, Slices], Array],
    slices: Slices | None = None,
) -> Array:
    """The values under `slices`, of the pieces that have some of them; no other is read.

    `read(piece, slices)` gives values of a piece, counted from its own first index. A part that
    lies in one piece is not copied.
    """
    import numpy as np

    asked = slices or tuple(slice(None) for _ in shape)
    bounds = [part.indices(n)[:2] for part, n in zip(asked, shape, strict=True)]
    sizes = tuple(max(0, end - begin) for begin, end in bounds)
    out: Any = None
    for piece in pieces if 0 not in sizes else ():
        inner: list[slice] = []
        outer: list[slice] = []
        for (begin, end), first, size in zip(bounds, piece.offsets, piece.sizes, strict=True):
            start, stop = max(begin, first), min(end, first + size)
            inner.append(slice(start - first, stop - first))
            outer.append(slice(start - begin, stop - begin))
        if any(part.start >= part.stop for part in inner):
            continue
        values = read(piece, tuple(inner))
        if values.shape == sizes:
            return values
        if out is None:
            out = np.empty(sizes, numpy_dtype(dtype))
        out[tuple(outer)] = values
    return np.zeros(sizes, numpy_dtype(dtype)) if out is None else out
