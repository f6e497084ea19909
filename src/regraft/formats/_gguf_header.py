"""GGUF's header: metadata and tensor infos, each held against the file.

The layout is that of the format's specification (docs/gguf.md of GGML), versions 1 to 3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from regraft.errors import CorruptFile, FormatError
from regraft.formats._ggml import REMOVED, TYPES
from regraft.formats._gguf_walk import Walk
from regraft.tensors import CODED, DTYPE_BITS, stored_bytes

ALIGNMENT = "general.alignment"

_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20
_MAX_DIMS = 4
# More of either than any model has: each costs a thousand times the bytes that it takes here.
_MAX_TENSORS = 1 << 17
_MAX_KEYS = 1 << 16


class Info(NamedTuple):
    """One tensor: `shape` outermost first, as numpy has it; `offset` in the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    nbytes: int


class Header(NamedTuple):
    """What a file says of itself.

    `metadata` is text by key: numbers as they are written, arrays as their length and type.
    `numbers` are its integers.
    """

    big_endian: bool
    metadata: dict[str, str]
    numbers: dict[str, int]
    tensors: tuple[Info, ...]


def parse(data: Any, size: int, label: str) -> Header:
    """The header of a mapped file of `size` bytes.

    **Raises** `CorruptFile` for whatever does not add up, `FormatError` for another version.
    """
    walk = Walk(data, size, label)
    tensor_count, key_count = walk.length(), walk.length()
    walk.check_count(tensor_count, "tensors", walk.width + 16, _MAX_TENSORS)
    walk.check_count(key_count, "metadata keys", walk.width + 5, _MAX_KEYS)
    metadata: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for _ in range(key_count):
        key = walk.name("a metadata key")
        if key in metadata:
            raise walk.corrupt(f"metadata key {key!r} twice")
        value = walk.value(key)
        if isinstance(value, int) and not isinstance(value, bool):
            numbers[key] = value
        metadata[key] = value if isinstance(value, str) else str(value).lower()
    alignment = _alignment(walk, metadata, numbers)
    found = [_tensor(walk, alignment) for _ in range(tensor_count)]
    names = {info.name for info in found}
    if len(names) != len(found):
        twice = next(a for a, b in itertools.pairwise(sorted(i.name for i in found)) if a == b)
        raise walk.corrupt(f"tensor {twice!r} twice", "names that are unique")
    start = -(-walk.at // alignment) * alignment
    tensors = tuple(info._replace(offset=start + info.offset) for info in found)
    _check_places(walk, tensors)
    return Header(walk.big_endian, metadata, numbers, tensors)


def _alignment(walk: Walk, metadata: dict[str, str], numbers: dict[str, int]) -> int:
    if ALIGNMENT not in metadata:
        return _DEFAULT_ALIGNMENT
    found = numbers.get(ALIGNMENT, 0)
    if not 0 < found <= _MAX_ALIGNMENT or found & (found - 1):
        raise walk.corrupt(f"{ALIGNMENT} = {metadata[ALIGNMENT]}", "a power of two")
    return found


# Tensors


def _tensor(walk: Walk, alignment: int) -> Info:
    """One tensor info; its offset still counts from the beginning of the data."""
    name = walk.name("a tensor's name")
    axes = walk.word()
    if axes > _MAX_DIMS:
        raise walk.corrupt(f"tensor {name!r} of {axes} axes", f"at most {_MAX_DIMS}")
    shape = tuple(walk.length() for _ in range(axes))[::-1]
    code, offset = walk.word(), walk.long()
    dtype = TYPES.get(code)
    if dtype is None:
        former = f" ({REMOVED[code]}, which GGML no longer has)" if code in REMOVED else ""
        raise FormatError(
            f"{walk.label}, tensor {name!r}",
            found=f"GGML type {code}{former}",
            expected="a type of GGML's, by its number",
            hint="convert the file with the program that made it",
        )
    row = shape[-1] if shape else 1
    if dtype in CODED and row % CODED[dtype][0]:
        raise walk.corrupt(
            f"tensor {name!r}: rows of {row} values coded as {dtype.upper()}",
            f"a multiple of {CODED[dtype][0]}",
        )
    # Also of the sizes beside a zero, which numpy multiplies like all others.
    if math.prod(n for n in shape if n) * DTYPE_BITS.get(dtype, 32) >> 66:
        raise walk.corrupt(f"tensor {name!r} of shape {shape}")
    if offset % alignment:
        raise walk.corrupt(f"tensor {name!r} at {offset}", f"a multiple of {alignment}")
    return Info(name, shape, dtype, offset, stored_bytes(math.prod(shape), dtype))


def _check_places(walk: Walk, tensors: tuple[Info, ...]) -> None:
    """**Raises** `CorruptFile` where tensors overlap or lie beyond the end."""
    for info, end in _with_ends_before(tensors):
        where = f"{walk.label}, tensor {info.name!r}"
        if info.offset < end:
            raise CorruptFile(
                where, found=f"offset {info.offset}", expected=f"{end} or more, after the others"
            )
        if info.offset + info.nbytes > walk.size:
            raise CorruptFile(
                where,
                found=f"{info.nbytes} bytes from offset {info.offset} in a file of {walk.size}",
                expected="a tensor inside the file",
                hint="the file is cut off; get it again",
            )


def _with_ends_before(tensors: tuple[Info, ...]) -> Iterator[tuple[Info, int]]:
    """Tensors with bytes in the order of their places, each with the end of those before it."""
    end = 0
    for info in sorted((i for i in tensors if i.nbytes), key=lambda i: i.offset):
        yield info, end
        end = info.offset + info.nbytes
