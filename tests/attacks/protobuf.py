"""Protobuf's wire format, written by hand: numbers and lengths may be whatever one likes."""

from __future__ import annotations

import struct


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def num(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def sub(number: int, value: bytes | str, length: int | None = None) -> bytes:
    """A field with a length: a message, text, bytes, packed numbers."""
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data) if length is None else length) + data


def fixed32(number: int, value: int) -> bytes:
    return varint(number << 3 | 5) + struct.pack("<I", value)
