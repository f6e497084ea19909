"""The metadata of zarr arrays, versions 2 and 3: shapes and dtypes without reading a value."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec

from regraft.errors import CorruptFile
from regraft.tensors import DTYPE_BITS

FILES = {2: ".zarray", 3: "zarr.json"}
MAX_BYTES = 1 << 20

_MAX_AXES = 32
_CODES = {
    "b1": "bool", "i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64",
    "u1": "uint8", "u2": "uint16", "u4": "uint32", "u8": "uint64",
    "f2": "float16", "f4": "float32", "f8": "float64", "c8": "complex64", "c16": "complex128",
}  # fmt: skip


class Zarr(NamedTuple):
    """One array: `chunk` is the shape of its pieces; those that are not there are `zero`, or else
    some other value."""

    shape: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...]
    zero: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the array or of one of its chunks, whichever are more."""
        width = max(1, DTYPE_BITS[self.dtype] // 8)
        return width * max(math.prod(self.shape), math.prod(self.chunk))


def parse(raw: bytes, version: int, where: str) -> Zarr:
    """**Raises** `CorruptFile` for what is no array of numbers."""
    if len(raw) > MAX_BYTES:
        raise CorruptFile(where, found=f"{len(raw)} bytes of metadata", expected=f"{MAX_BYTES}")
    try:
        found = msgspec.json.decode(raw, type=dict[str, Any])
        if version == 2:
            shape, chunk, dtype = found["shape"], found["chunks"], found["dtype"]
            dtype = _CODES.get(dtype[1:], dtype)
        else:
            shape, dtype = found["shape"], found["data_type"]
            chunk = found["chunk_grid"]["configuration"]["chunk_shape"]
        sizes = tuple(msgspec.convert(shape, list[int])), tuple(msgspec.convert(chunk, list[int]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, LookupError, TypeError) as e:
        raise CorruptFile(where, found=f"metadata: {e}", expected="that of a zarr array") from e
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CorruptFile(where, found=f"dtype {dtype!r}"[:200], expected="a number's")
    shape, chunk = sizes
    small = len(shape) == len(chunk) <= _MAX_AXES and min(*shape, *chunk, 0, 0) >= 0
    if not small or math.prod(n for n in (*shape, 8) if n) >> 63 or math.prod(chunk) >> 59:
        raise CorruptFile(where, found=f"shape {sizes[0]} in chunks of {sizes[1]}"[:200])
    return Zarr(shape, dtype, chunk, found.get("fill_value") in (None, 0))
