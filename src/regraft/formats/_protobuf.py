"""Protobuf's wire format, walked where it lies: no schema, no copies, no recursion.

A message is a row of fields: a varint tag (field number, wire type) and a value. Values that have
a length come as byte ranges, not as bytes, so that a tensor of gigabytes in a mapped file is
passed over; whoever knows the schema walks on inside a range. Every length is held against what
is left of its message, so that no walk takes more steps than the message has bytes.
See https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from regraft.errors import CorruptFile

if TYPE_CHECKING:
    import mmap

Data: TypeAlias = "bytes | mmap.mmap"

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_MAX_VARINT = 10
_MAX_TEXT = 1 << 16
# Fields of one message that are gathered at once; what has more is walked.
_MAX_GATHERED = 4096


class Span(NamedTuple):
    """Bytes `start` to `stop` of the data."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class Field(NamedTuple):
    """One field of a message: `value` of a varint, else the `span` of its bytes."""

    number: int
    wire: int
    value: int
    span: Span


class Message:
    """A range of the data seen as one message.

    **Raises** `CorruptFile` while it is walked, where it is no message.
    """

    __slots__ = ("data", "label", "span")

    def __init__(self, data: Data, label: str, span: Span | None = None) -> None:
        self.data = data
        self.label = label
        self.span = Span(0, len(data)) if span is None else span

    def __iter__(self) -> Iterator[Field]:
        """The fields in the order in which they lie."""
        data, (at, stop) = self.data, self.span
        while at < stop:
            start, tag = at, data[at]
            if tag < 0x80:  # the common case, without a call
                at += 1
            else:
                tag, at = self._varint(at, stop)
            number, wire = tag >> 3, tag & 7
            value = 0
            if wire == VARINT:
                begin = at
                value, at = self._varint(at, stop)
            elif wire == LENGTH:
                size, begin = self._varint(at, stop)
                at = begin + size
            elif wire in (FIXED32, FIXED64):
                begin = at
                at += 4 if wire == FIXED32 else 8
            else:  # groups, which nobody writes any more, and two that do not exist
                raise self._wrong(start, f"a field of wire type {wire}")
            if at > stop:
                raise self._wrong(start, f"a field of {at - begin} bytes", f"{stop - begin} left")
            if number == 0:
                raise self._wrong(start, "a field numbered 0")
            yield Field(number, wire, value, Span(begin, at))

    def _varint(self, at: int, stop: int) -> tuple[int, int]:
        value, data = 0, self.data
        for index in range(min(_MAX_VARINT, stop - at)):
            byte = data[at + index]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at + index + 1
        raise self._wrong(at, "a number without end")

    def _wrong(self, at: int, found: str, expected: str = "a protobuf message") -> CorruptFile:
        return CorruptFile(
            f"{self.label}, byte {at}",
            found=found,
            expected=expected,
            hint="the file is cut off or damaged; get it again",
        )

    def inner(self, field: Field, label: str = "") -> Message:
        """The message that a field holds."""
        if field.wire != LENGTH:
            raise self._wrong(field.span.start, f"wire type {field.wire} in field {field.number}")
        return Message(self.data, label or self.label, field.span)

    def gathered(self) -> dict[int, list[Field]]:
        """The fields of a small message by number."""
        found: dict[int, list[Field]] = {}
        for count, field in enumerate(self):
            if count == _MAX_GATHERED:
                raise self._wrong(field.span.start, f"more than {_MAX_GATHERED} fields")
            found.setdefault(field.number, []).append(field)
        return found

    def raw(self, field: Field, limit: int = _MAX_TEXT) -> bytes:
        """A copy of a field's bytes."""
        if field.wire != LENGTH or field.span.size > limit:
            raise self._wrong(
                field.span.start,
                f"field {field.number} of {field.span.size} bytes",
                f"at most {limit} bytes",
            )
        return self.data[field.span.start : field.span.stop]

    def text(self, field: Field, limit: int = _MAX_TEXT) -> str:
        """A field's text."""
        try:
            return self.raw(field, limit).decode()
        except UnicodeDecodeError as error:
            raise self._wrong(field.span.start, "text that is not UTF-8") from error

    def integers(self, fields: Sequence[Field], limit: int = 64) -> list[int]:
        """The signed values of a repeated field, packed or one by one."""
        found: list[int] = []
        for field in fields:
            if field.wire == VARINT:
                found.append(signed(field.value))
            else:
                at, stop = self.inner(field).span
                while at < stop and len(found) <= limit:
                    value, at = self._varint(at, stop)
                    found.append(signed(value))
            if len(found) > limit:
                raise self._wrong(field.span.start, f"more than {limit} values")
        return found


def signed(value: int) -> int:
    """A varint as the signed 64-bit number that it stands for."""
    return value - (1 << 64) if value >> 63 else value


def fixed32(data: Data, field: Field) -> int:
    """The unsigned value of a four-byte field."""
    return int(struct.unpack_from("<I", data, field.span.start)[0]) if field.wire == FIXED32 else 0
