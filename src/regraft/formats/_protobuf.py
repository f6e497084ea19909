"""Protobuf's wire format, walked where it lies: no schema, no copies, no recursion.

A message is a row of fields: a varint tag (field number, wire type) and a value. Values that have
a length come as byte ranges, not as bytes, so that a tensor of gigabytes in a mapped file is
passed over; whoever knows the schema walks on inside a range. Every length is held against what
is left of its message, so that no walk takes more steps than the message has bytes.
See https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, overload

from regraft.errors import CorruptFile
from regraft.locations import is_local


class Data(Protocol):
    """Bytes, or what stands for them: a map, a window of a file."""

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, place: int, /) -> int: ...
    @overload
    def __getitem__(self, place: slice, /) -> bytes: ...


VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_MAX_VARINT = 10
_MAX_TEXT = 1 << 16
# Fields of one message that are gathered at once; what has more is walked.
_MAX_GATHERED = 4096
# Files up to this size are mapped; of larger ones a window is read, a small one of remote files.
_MAPPED, _WINDOW, _REMOTE_WINDOW = 1 << 24, 1 << 15, 1 << 12


class Span(NamedTuple):
    """Bytes `start` to `stop` of the data."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class Field(NamedTuple):
    """One field of a message: the `value` of a varint (else 0); the bytes `start` to `stop`."""

    number: int
    wire: int
    value: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


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
            tag, value, begin = data[at], 0, at + 1
            if tag >= 0x80:  # numbers of one byte are the common case: no call for them
                tag, begin = self._varint(at, stop)
            wire = tag & 7
            if wire in (VARINT, LENGTH):
                value = data[begin] if begin < stop else 0x80
                end = begin + 1
                if value >= 0x80:
                    value, end = self._varint(begin, stop)
                if wire == LENGTH:
                    begin, end, value = end, end + value, 0
            elif wire in (FIXED32, FIXED64):
                end = begin + (4 if wire == FIXED32 else 8)
            else:  # groups, which nobody writes any more, and two that do not exist
                raise self._wrong(at, f"a field of wire type {wire}")
            if end > stop:
                raise self._wrong(at, f"a field of {end - begin} bytes", f"{stop - begin} left")
            if tag < 8:
                raise self._wrong(at, "a field numbered 0")
            yield Field(tag >> 3, wire, value, begin, end)
            at = end

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
            raise self._wrong(field.start, f"wire type {field.wire} in field {field.number}")
        return Message(self.data, label or self.label, Span(field.start, field.stop))

    def gathered(self) -> dict[int, list[Field]]:
        """The fields of a small message by number."""
        found: dict[int, list[Field]] = {}
        for count, field in enumerate(self):
            if count == _MAX_GATHERED:
                raise self._wrong(field.start, f"more than {_MAX_GATHERED} fields")
            found.setdefault(field.number, []).append(field)
        return found

    def raw(self, field: Field, limit: int = _MAX_TEXT) -> bytes:
        """A copy of a field's bytes."""
        if field.wire != LENGTH or field.size > limit:
            raise self._wrong(
                field.start,
                f"field {field.number} of {field.size} bytes",
                f"at most {limit} bytes",
            )
        return self.data[field.start : field.stop]

    def text(self, field: Field, limit: int = _MAX_TEXT) -> str:
        """A field's text."""
        try:
            return self.raw(field, limit).decode()
        except UnicodeDecodeError as error:
            raise self._wrong(field.start, "text that is not UTF-8") from error

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
                raise self._wrong(field.start, f"more than {limit} values")
        return found


class _Windowed:
    """A large file or a remote one, of which a window is held. A map would count as memory what it
    touches, and systems map generously around a touch."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self._file = os.open(path, os.O_RDONLY) if is_local(path) else None
        if self._file is not None:
            weakref.finalize(self, os.close, self._file)
        self._step = _REMOTE_WINDOW if self._file is None else _WINDOW
        self._window, self._start = b"", 0

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> bytes: ...
    def __getitem__(self, place: int | slice) -> int | bytes:
        if isinstance(place, slice):
            start, stop, _ = place.indices(self._size)
            return self._read(start, max(0, stop - start))
        at = place - self._start
        if not 0 <= at < len(self._window):
            size = min(self._step, self._size - place)
            self._window, self._start, at = self._read(place, size), place, 0
        return self._window[at]

    def _read(self, start: int, size: int) -> bytes:
        if self._file is not None:
            found = os.pread(self._file, size, start)
        else:
            found = bytes(cast(Any, self._path).fetch(start, start + size))
        if len(found) < size:
            raise CorruptFile(self._path.name, found="a file that was cut off after it was opened")
        return found


def opened(path: Path) -> Message:
    """A file as a message. **Raises** `CorruptFile` for an empty one."""
    size = path.stat().st_size
    if not size:
        raise CorruptFile(str(path), found="an empty file")
    if size > _MAPPED or not is_local(path):
        return Message(_Windowed(path, size), path.name)
    with path.open("rb") as file:
        return Message(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), path.name)


def signed(value: int) -> int:
    """A varint as the signed 64-bit number that it stands for."""
    return value - (1 << 64) if value >> 63 else value


def fixed32(data: Data, field: Field) -> int:
    """The unsigned value of a four-byte field."""
    raw = data[field.start : field.stop]
    return int.from_bytes(raw, "little") if field.wire == FIXED32 else 0
