"""The header of a .npy file or member."""

from __future__ import annotations

import io
import tokenize
import warnings
from typing import NamedTuple

from regraft.errors import CorruptFile
from regraft.formats._bytes import Strided, contiguous
from regraft.formats._numpy_pickles import dtype_name

MAGIC = b"\x93NUMPY"


class Header(NamedTuple):
    """What a .npy header says; `dtype` is `None` where it is not numeric, `length` its bytes."""

    shape: tuple[int, ...]
    dtype: str | None
    fortran: bool
    big_endian: bool
    objects: bool
    length: int


# What numpy's parser of the header, which is a Python literal, raises on nonsense.
_MALFORMED = (ValueError, TypeError, SyntaxError, OverflowError, MemoryError, RecursionError,
              tokenize.TokenError)  # fmt: skip


def length(data: bytes) -> int:
    """Bytes that a .npy header takes, as its own beginning says."""
    width = 2 if data[6:7] == b"\x01" else 4
    return 8 + width + int.from_bytes(data[8 : 8 + width], "little")


def header(data: bytes, label: str) -> Header:
    """Reads a .npy header from the beginning of the file's bytes. **Raises** `CorruptFile`."""
    import numpy as np

    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on headers that Python 2 wrote
            shape, fortran, dtype = read(stream)
    except _MALFORMED as error:
        raise CorruptFile(label, found=f"a .npy header: {error}"[:300]) from error
    if len(shape) > 64 or not all(0 <= n < 1 << 63 for n in shape):
        raise CorruptFile(label, found=f"a shape of {len(shape)} sizes", expected="possible ones")
    big = dtype.byteorder == ">"
    name = dtype_name(dtype)
    return Header(tuple(shape), name, fortran, big, dtype.kind == "O", stream.tell())


def place_of(head: Header, offset: int, size: int, where: str) -> Strided:
    """Where the values lie, checked against the bytes that there are."""
    assert head.dtype is not None
    strides = contiguous(head.shape[::-1])[::-1] if head.fortran else None
    place = Strided(offset, size, offset, head.shape, strides, head.dtype, head.big_endian)
    place.check(where)
    return place
