"""GGUF's header: metadata and tensor infos, walked where they lie in the mapped file.

The layout is that of the format's specification (docs/gguf.md of GGML), versions 1 to 3. Counts,
lengths, offsets and nesting are held against the bytes that are there before anything is made of
them, so that the walk takes time and memory in proportion to the header.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from regraft.errors import CorruptFile, FormatError
from regraft.formats._ggml import REMOVED, TYPES
from regraft.tensors import CODED, DTYPE_BITS, stored_bytes

MAGIC = b"GGUF"
ALIGNMENT = "general.alignment"

_VERSIONS = (1, 2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20
_MAX_DIMS = 4
# More of either than any model has: each costs a thousand times the bytes that it takes here.
_MAX_TENSORS = 1 << 17
_MAX_KEYS = 1 << 16
_MAX_NAME = (1 << 16) - 1
_MAX_NESTING = 4
# Text that is kept: of all values together (longer ones are told by their length), of all names.
_MAX_TEXT = 32 << 20
_NUMBERS = {
    0: ("uint8", "B"), 1: ("int8", "b"), 2: ("uint16", "H"), 3: ("int16", "h"),
    4: ("uint32", "I"), 5: ("int32", "i"), 6: ("float32", "f"), 7: ("bool", "b"),
    10: ("uint64", "Q"), 11: ("int64", "q"), 12: ("float64", "d"),
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_NAMES = {
    **{code: name for code, (name, _) in _NUMBERS.items()},
    _STRING: "string",
    _ARRAY: "array",
}


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
    walk = _Walk(data, size, label)
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


class _Walk:
    """A place in the header that moves on as things are read."""

    def __init__(self, data: Any, size: int, label: str) -> None:
        self.data, self.size, self.label = data, size, label
        self.at = len(MAGIC)
        self._text_left = self._names_left = _MAX_TEXT
        if size < 16:
            raise self.corrupt(f"a file of {size} bytes")
        self.order, self.big_endian = "<", False
        version = self._number("I")
        if version and not version & 0xFFFF:
            self.order, self.big_endian = ">", True
            version = int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in _VERSIONS or (self.big_endian and version < 3):
            raise FormatError(
                label,
                found=f"GGUF version {version}" + (", big-endian" if self.big_endian else ""),
                expected=f"versions {_VERSIONS[0]} to {_VERSIONS[-1]} (big-endian from 3 on)",
            )
        # Version 1 has counts and lengths of 32 bits.
        self._length = "I" if version == 1 else "Q"
        self.width = struct.calcsize(self._length)

    def corrupt(self, found: str, expected: str = "a whole GGUF header") -> CorruptFile:
        return CorruptFile(
            f"{self.label}, offset {self.at}",
            found=found,
            expected=expected,
            hint="the file is cut off or damaged; get it again",
        )

    def _number(self, code: str) -> Any:
        try:
            value = struct.unpack_from(self.order + code, self.data, self.at)[0]
        except struct.error as error:
            raise self.corrupt(f"the end of the file, {self.size} bytes") from error
        self.at += struct.calcsize("=" + code)
        return value

    def length(self) -> int:
        return self._number(self._length)

    def word(self) -> int:
        return self._number("I")

    def long(self) -> int:
        return self._number("Q")

    def check_count(self, count: int, what: str, least: int, limit: int) -> None:
        """Holds a count against the bytes that are left, `least` for each."""
        if count > limit or count * least > self.size - self.at:
            most = min(limit, (self.size - self.at) // least)
            raise self.corrupt(f"{count} {what}", f"at most {most}")

    def _place(self, limit: int, what: str) -> slice:
        """Where the next string lies, which is passed over."""
        length = self.length()
        most = min(limit, self.size - self.at)
        if length > most:
            raise self.corrupt(f"{what} of {length} bytes", f"at most {most}")
        self.at += length
        return slice(self.at - length, self.at)

    def name(self, what: str) -> str:
        place = self._place(min(_MAX_NAME, self._names_left), what)
        self._names_left -= place.stop - place.start
        try:
            return self.data[place].decode()
        except UnicodeDecodeError as error:
            raise self.corrupt(f"{what} that is no UTF-8") from error

    # Metadata

    def value(self, key: str) -> str | int | bool:
        """One value: a number as itself where it is an integer, anything else as text."""
        code = self.word()
        if code == _STRING:
            return self._text()
        if code == _ARRAY:
            return self._array(1)
        if code not in _NUMBERS:
            raise self.corrupt(f"metadata {key!r} of type {code}", "types 0 to 12")
        name, form = _NUMBERS[code]
        value = self._number(form)
        if name == "bool":
            if value not in (0, 1):
                raise self.corrupt(f"{value} for the truth value {key!r}", "0 or 1")
            return bool(value)
        return _shortest(value) if name == "float32" else repr(value) if form == "d" else value

    def _text(self) -> str:
        place = self._place(self.size, "text")
        length = place.stop - place.start
        if length > self._text_left:
            return f"{length} bytes of text"
        self._text_left -= length
        # Programs that write these files do not check their text, so neither is it refused here.
        return self.data[place].decode("utf-8", "replace")

    def _array(self, depth: int) -> str:
        """Length and type of an array, which is passed over."""
        code, count = self.word(), self.length()
        if code in _NUMBERS:
            width = struct.calcsize("=" + _NUMBERS[code][1])
            self.check_count(count, "array elements", width, self.size)
            self.at += count * width
        elif code == _STRING:
            self.check_count(count, "strings in an array", self.width, self.size)
            self._skip_strings(count)
        elif code == _ARRAY:
            if depth >= _MAX_NESTING:
                raise self.corrupt(f"arrays nested deeper than {_MAX_NESTING}")
            self.check_count(count, "arrays in an array", 4 + self.width, self.size)
            for _ in range(count):
                self._array(depth + 1)
        else:
            raise self.corrupt(f"an array of type {code}", "types 0 to 12")
        return f"{count} × {_NAMES[code]}"

    def _skip_strings(self, count: int) -> None:
        # Vocabularies have hundreds of thousands: no more than this is done for each.
        unpack, width, at = (
            struct.Struct(self.order + self._length).unpack_from,
            self.width,
            self.at,
        )
        try:
            for _ in range(count):
                at += width + unpack(self.data, at)[0]
        except struct.error:
            at = self.size + 1
        if at > self.size:
            raise self.corrupt(f"{count} strings beyond the end of the file")
        self.at = at


def _shortest(value: float) -> str:
    """A float32 in as few digits as tell it from its neighbours."""
    if not math.isfinite(value):
        return repr(value)
    packed = struct.pack("<f", value)
    digits = (f"{value:.{count}g}" for count in range(6, 9))
    return next((t for t in digits if struct.pack("<f", float(t)) == packed), f"{value:.9g}")


def _alignment(walk: _Walk, metadata: dict[str, str], numbers: dict[str, int]) -> int:
    if ALIGNMENT not in metadata:
        return _DEFAULT_ALIGNMENT
    found = numbers.get(ALIGNMENT, 0)
    if not 0 < found <= _MAX_ALIGNMENT or found & (found - 1):
        raise walk.corrupt(f"{ALIGNMENT} = {metadata[ALIGNMENT]}", "a power of two")
    return found


# Tensors


def _tensor(walk: _Walk, alignment: int) -> Info:
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


def _check_places(walk: _Walk, tensors: tuple[Info, ...]) -> None:
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
