"""Sparse tensors, read dense: coordinates (COO), and compressed rows or columns of values or
blocks (CSR, CSC, BSR, BSC), batched or not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from regraft.errors import CorruptFile, FormatError
from regraft.formats._bytes import Mapped, Strided
from regraft.tensors import DTYPE_BITS, numpy_dtype

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

COMPRESSED_LAYOUTS = ("sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc")
# What is read dense may be this large, or this many times what is stored.
_MAX_DENSE, _MAX_SPREAD = 128 << 20, 256
_INTEGERS = ("int64", "int32")


class Coordinates(NamedTuple):
    """Values `(n, dense axes …)` at indices `(sparse axes, n)`; values of one index add up."""

    shape: tuple[int, ...]
    indices: Strided
    values: Strided

    def check(self, where: str) -> None:
        """**Raises** `CorruptFile` where the parts do not fit together."""
        axes, *count = self.indices.shape or (-1,)
        dense = self.values.shape[1:]
        fits = (
            self.indices.dtype in _INTEGERS
            and 0 <= axes <= len(self.shape)
            and [*count] == [*self.values.shape[:1]]
            and dense == self.shape[axes:]
        )
        _check(fits, where, self.shape, self.values)

    def read(self, file: Mapped, slices: Slices | None, where: str) -> Array:
        region = _region(where, self.shape, (self.indices, self.values), slices)
        indices = file.array(self.indices)
        return _scattered(where, self.shape, indices, file.array(self.values), region)


class Compressed(NamedTuple):
    """Rows (or columns) one after another: where each begins, and the other index of each value.

    `starts` has the shape `(batch …, rows + 1)`, `others` `(batch …, n)` and `values`
    `(batch …, n, block …, dense axes …)`; `shape` is `(batch …, rows, columns, dense axes …)`.
    """

    shape: tuple[int, ...]
    layout: str
    starts: Strided
    others: Strided
    values: Strided

    @property
    def _batch(self) -> tuple[int, ...]:
        return self.starts.shape[:-1]

    @property
    def _block(self) -> tuple[int, int]:
        if not self.layout.startswith("sparse_bs"):
            return 1, 1
        height, width = self.values.shape[len(self._batch) + 1 :][:2]
        return height, width

    @property
    def _by_rows(self) -> bool:
        return self.layout.endswith("r")

    def check(self, where: str) -> None:
        """**Raises** `CorruptFile` where the parts do not fit together."""
        blocks = 2 if self.layout.startswith("sparse_bs") else 0
        first = len(self.starts.shape) - 1
        fits = (
            0 <= first <= len(self.shape) - 2
            and self.layout in COMPRESSED_LAYOUTS
            and self.starts.dtype in _INTEGERS
            and self.others.dtype in _INTEGERS
            and self.shape[:first] == self.starts.shape[:-1]
            and self.others.shape[:-1] == self.shape[:first]
            and self.values.shape[: first + 1] == self.others.shape
            and len(self.values.shape) == len(self.shape) - 1 + blocks
            and self.values.shape[first + 1 + blocks :] == self.shape[first + 2 :]
        )
        _check(fits, where, self.shape, self.values)
        block = self._block
        plane = self.shape[first : first + 2]
        whole = all(b > 0 and n % b == 0 for n, b in zip(plane, block, strict=True))
        axis = 0 if self._by_rows else 1
        fits = whole and self.starts.shape[-1] == plane[axis] // block[axis] + 1
        _check(fits, where, self.shape, self.values)

    def read(self, file: Mapped, slices: Slices | None, where: str) -> Array:
        import numpy as np

        parts = (self.starts, self.others, self.values)
        region = _region(where, self.shape, parts, slices)
        if 0 in self.shape:
            return np.zeros([end - begin for begin, end in region], numpy_dtype(self.values.dtype))
        batch, (height, width) = self._batch, self._block
        count = math.prod(batch)
        starts, others, values = (file.array(part) for part in parts)
        starts = starts.reshape(count, -1).astype(np.int64)
        stored = self.others.shape[-1]
        ends_meet = (starts[:, 0] == 0).all() and (starts[:, -1] == stored).all()
        lengths = np.diff(starts, axis=1)
        if not ends_meet or (lengths < 0).any():
            raise CorruptFile(where, found="rows that do not follow one another")
        line = np.tile(np.arange(lengths.shape[1]), count)
        one = np.repeat(line, lengths.reshape(-1))
        other = others.reshape(-1).astype(np.int64)
        if other.size and not 0 <= other.min() <= other.max() < 1 << 62:
            raise CorruptFile(where, found="an index outside the tensor")
        rows, columns = (one, other) if self._by_rows else (other, one)
        where_in_batch = (
            np.unravel_index(np.repeat(np.arange(count), stored), batch) if batch else ()
        )
        # Each value of a block gets its own row and column.
        inner = np.indices((height, width)).reshape(2, -1)
        size = height * width
        indices = np.stack(
            [
                *(np.repeat(axis, size) for axis in where_in_batch),
                np.repeat(rows, size) * height + np.tile(inner[0], rows.size),
                np.repeat(columns, size) * width + np.tile(inner[1], rows.size),
            ]
        )
        dense = self.shape[len(batch) + 2 :]
        flat = (
            values.reshape(-1, *dense) if 0 not in self.values.shape else values.reshape(0, *dense)
        )
        return _scattered(where, self.shape, indices, flat, region)


def _check(fits: bool, where: str, shape: tuple[int, ...], values: Strided) -> None:
    if not fits:
        raise CorruptFile(
            where,
            found=f"a sparse tensor of shape {shape}, values of shape {values.shape}",
            expected="indices and values that fit together",
        )


def _region(
    where: str, shape: tuple[int, ...], parts: tuple[Strided, ...], slices: Slices | None
) -> list[tuple[int, int]]:
    """First and last index of what is asked for along each axis. **Raises** `FormatError` where
    it is too much."""
    asked = slices or (slice(None),) * len(shape)
    bounds = (part.indices(n) for part, n in zip(asked, shape, strict=True))
    region = [(begin, max(begin, end)) for begin, end, _ in bounds]
    width = DTYPE_BITS[parts[-1].dtype] // 8
    stored = sum(math.prod(part.shape) * DTYPE_BITS[part.dtype] // 8 for part in parts)
    size = math.prod(end - begin for begin, end in region) * width
    if size > max(_MAX_DENSE, _MAX_SPREAD * stored):
        raise FormatError(
            where,
            found=f"a sparse tensor of {stored} bytes that takes {size} dense",
            expected=f"at most {max(_MAX_DENSE, _MAX_SPREAD * stored)}",
            hint="read a slice of it",
        )
    return region


def _scattered(
    where: str, shape: tuple[int, ...], indices: Any, values: Any, region: list[tuple[int, int]]
) -> Array:
    """A dense array of the region with the values at their indices, zeros elsewhere."""
    import numpy as np

    axes = len(indices)
    limits = np.asarray(shape[:axes], np.int64)[:, None]
    if ((indices < 0) | (indices >= limits)).any():
        raise CorruptFile(where, found="an index outside the tensor", expected=f"shape {shape}")
    out = np.zeros([end - begin for begin, end in region], values.dtype)
    begins = np.asarray([begin for begin, _ in region[:axes]], np.int64)[:, None]
    ends = np.asarray([end for _, end in region[:axes]], np.int64)[:, None]
    inside = ((indices >= begins) & (indices < ends)).all(axis=0)
    at = tuple(indices[:, inside] - begins)
    found = values[inside]
    found = found[(slice(None), *(slice(begin, end) for begin, end in region[axes:]))]
    if not axes:  # all at the only index there is
        at = (np.zeros(len(found), np.intp),)
        out, whole = out[None], out
    else:
        whole = out
    if found.dtype == bool:
        np.logical_or.at(out, at, found)
    else:
        np.add.at(out, at, found)
    return whole
