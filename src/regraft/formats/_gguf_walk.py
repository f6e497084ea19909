"""A walk through GGUF's header: numbers, names and metadata where they lie in the mapped file.

Counts, lengths and nesting are held against the bytes that are there before anything is made of
them, so that the walk takes time and memory in proportion to the header.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from regraft.errors import CorruptFile, FormatError

MAGIC = b"GGUF"

_VERSIONS = (1, 2, 3)
_MAX_NAME = (1 << 16) - 1
_MAX_NESTING = 4
# Text that is kept: of all values together (longer ones are told by their length), of all names.
MAX_TEXT = 32 << 20
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


class Walk:
    """A place in the header that moves on as things are read."""

    def __init__(self, data: Any, size: int, label: str) -> None:
        self.data, self.size, self.label = data, size, label
        self.at = len(MAGIC)
        self._text_left = self._names_left = MAX_TEXT
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
        except (struct.error, OverflowError):
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
