"""MessagePack, walked where it lies: bytes and extensions stay as places in the file.

Decoders of the usual kind copy every array out of the file and build whatever it asks for. This
one takes the file mapped, and holds every length, count and depth against what is there first.
The layout is that of the MessagePack specification.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import msgspec

from regraft.errors import CorruptFile

# Values, keys among them; each costs up to a hundred bytes.
_MAX_VALUES = 1_000_000
_MAX_DEPTH = 32
# Of all text together.
MAX_TEXT = 32 << 20

_FIXED: dict[int, Any] = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    0xCA: struct.Struct(">f"), 0xCB: struct.Struct(">d"),
    0xCC: struct.Struct(">B"), 0xCD: struct.Struct(">H"),
    0xCE: struct.Struct(">I"), 0xCF: struct.Struct(">Q"),
    0xD0: struct.Struct(">b"), 0xD1: struct.Struct(">h"),
    0xD2: struct.Struct(">i"), 0xD3: struct.Struct(">q"),
}  # fmt: skip
# Types that begin with a length: what they are, and its width.
_SIZED = {
    0xC4: ("bytes", ">B"), 0xC5: ("bytes", ">H"), 0xC6: ("bytes", ">I"),
    0xC7: ("extension", ">B"), 0xC8: ("extension", ">H"), 0xC9: ("extension", ">I"),
    0xD9: ("text", ">B"), 0xDA: ("text", ">H"), 0xDB: ("text", ">I"),
    0xDC: ("list", ">H"), 0xDD: ("list", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I"),
}  # fmt: skip


class Bytes(NamedTuple):
    """Binary data from `start` to `stop`."""

    start: int
    stop: int


class Extension(NamedTuple):
    """Data of a type of the application's own, from `start` to `stop`."""

    code: int
    start: int
    stop: int


class CutOff(CorruptFile):
    """The data ends inside a value."""


def is_map_by_text(head: bytes) -> bool:
    """Whether data begins with a map that is not empty and whose first key is short text."""
    if len(head) < 2:
        return False
    at = 1 if 0x81 <= head[0] <= 0x8F else {0xDE: 3, 0xDF: 5}.get(head[0], len(head))
    return at < len(head) and (0xA0 <= head[at] <= 0xBF or head[at] == 0xD9)


class Walk:
    """Reads values from `start` on; `extensions` holds the codes of those that were met.

    **Raises** `CorruptFile` for anything that is no MessagePack, goes beyond `stop`, or has two
    equal keys in a map; `CutOff` where data ends.
    """

    def __init__(self, data: Any, start: int, stop: int, label: str) -> None:
        self.data, self.at, self.stop, self.label = data, start, stop, label
        self.extensions: set[int] = set()
        self._values = 0
        self._text_left = MAX_TEXT

    def corrupt(self, found: str, expected: str = "MessagePack") -> CorruptFile:
        return CorruptFile(
            f"{self.label}, offset {self.at}",
            found=found,
            expected=expected,
            hint="the file is cut off or damaged; get it again",
        )

    def _take(self, count: int) -> int:
        """Moves on by `count` bytes; where they begin."""
        if count > self.stop - self.at:
            raise CutOff(
                f"{self.label}, offset {self.at}",
                found=f"{self.stop - self.at} bytes",
                expected=f"{count} more",
                hint="the file is cut off; get it again",
            )
        self.at += count
        return self.at - count

    def value(self, depth: int = 0) -> Any:
        """One value: None, bool, int, float, str, list, dict, `Bytes` or `Extension`."""
        self._values += 1
        if self._values > _MAX_VALUES or depth > _MAX_DEPTH:
            raise self.corrupt(f"more than {_MAX_VALUES} values, or {_MAX_DEPTH} inside another")
        code = self.data[self._take(1)]
        if code <= 0x7F or code >= 0xE0:
            return code if code <= 0x7F else code - 0x100
        if code <= 0x8F:
            return self._map(code & 0x0F, depth)
        if code <= 0x9F:
            return self._list(code & 0x0F, depth)
        if code <= 0xBF:
            return self._text(code & 0x1F)
        if code in _FIXED:
            return _FIXED[code]
        if code in _NUMBERS:
            form = _NUMBERS[code]
            return form.unpack_from(self.data, self._take(form.size))[0]
        if 0xD4 <= code <= 0xD8:
            return self._extension(1 << (code - 0xD4))
        if code not in _SIZED:
            raise self.corrupt(f"the byte {code:#x}, which begins no value")
        kind, form = _SIZED[code]
        length = struct.unpack_from(form, self.data, self._take(struct.calcsize(form)))[0]
        if kind == "map":
            return self._map(length, depth)
        if kind == "list":
            return self._list(length, depth)
        if kind == "text":
            return self._text(length)
        if kind == "extension":
            return self._extension(length)
        start = self._take(length)
        return Bytes(start, start + length)

    def _extension(self, length: int) -> Extension:
        code = struct.unpack_from(">b", self.data, self._take(1))[0]
        self.extensions.add(code)
        start = self._take(length)
        return Extension(code, start, start + length)

    def _text(self, length: int) -> str:
        if length > self._text_left:
            raise self.corrupt(f"more than {MAX_TEXT} bytes of text")
        self._text_left -= length
        start = self._take(length)
        try:
            return self.data[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise self.corrupt("text that is no UTF-8") from error

    def _list(self, length: int, depth: int) -> list[Any]:
        return [self.value(depth + 1) for _ in range(length)]

    def _map(self, length: int, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(length):
            key = self.value(depth + 1)
            if type(key) not in (str, int):
                raise self.corrupt(f"a key of type {type(key).__name__}", "keys of text")
            if str(key) in found:
                raise self.corrupt(f"the key {key!r} twice", "keys that are unique")
            found[str(key)] = self.value(depth + 1)
        return found


# Writing. Small values go through msgspec; what is made here are the heads of large ones.


def packed(value: Any) -> bytes:
    """A small value of text, numbers and lists."""
    return msgspec.msgpack.encode(value)


def map_head(count: int) -> bytes:
    return bytes([0x80 | count]) if count < 16 else b"\xdf" + struct.pack(">I", count)


def bytes_head(length: int) -> bytes:
    return b"\xc6" + struct.pack(">I", length)


def extension_head(code: int, length: int) -> bytes:
    return b"\xc9" + struct.pack(">Ib", length, code)
