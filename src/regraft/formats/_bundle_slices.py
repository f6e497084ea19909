"""Slices of variables that TensorFlow split: their extents, their keys, and whether they tile."""

from __future__ import annotations

from collections.abc import Iterable

from regraft.errors import CorruptFile
from regraft.formats._protobuf import Message, signed

_MAX_AXES = 64


def tiles(spans: set[tuple[int, int]], size: int) -> bool:
    """Whether the spans of one axis lie end to end."""
    at = 0
    for start, stop in sorted(spans):
        if start != at or stop <= start:
            return False
        at = stop
    return at == size


def extents_of(message: Message) -> tuple[tuple[int, int], ...]:
    """Start and length along each axis, of a TensorSliceProto."""
    found: list[tuple[int, int]] = []
    for field in message:
        if field.number == 1:
            extent = {f.number: signed(f.value) for f in message.inner(field)}
            found.append((extent.get(1, 0), extent.get(2, -1)))
            if len(found) > _MAX_AXES:
                raise CorruptFile(message.label, found=f"more than {_MAX_AXES} axes")
    return tuple(found)


def slice_key(name: str, extents: Iterable[tuple[int, int]]) -> bytes:
    """The key of a slice: TensorFlow's encoding that sorts as the numbers do (OrderedCode)."""
    numbers = list(extents)
    escaped = name.encode().replace(b"\x00", b"\x00\xff")
    count = len(numbers).to_bytes(1, "big") if numbers else b""
    head = b"\x00" + escaped + b"\x00\x01" + bytes([len(count)]) + count
    return head + b"".join(_ordered(n) for extent in numbers for n in extent)


def _ordered(number: int) -> bytes:
    """A signed number: as many ones as it has bytes and then the sign, turned for negative ones."""
    magnitude = ~number if number < 0 else number
    length = magnitude.bit_length() // 7 + 1
    marks = ((1 << length) - 1) << (8 * length - length)
    return (number % (1 << 8 * length) ^ marks).to_bytes(length, "big")
