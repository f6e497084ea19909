"""Snappy's block format: literals and copies of what was written before.

A varint says how long the result is; then each tag is a literal (its bytes follow) or a copy of a
length from an offset back. See https://github.com/google/snappy/blob/main/format_description.txt.
"""

from __future__ import annotations

from regraft.errors import CorruptFile

# The best that the format can do: 64 bytes from a tag of three.
_MAX_RATIO = 22
_MAX_VARINT = 5


def decompressed(data: bytes, where: str) -> bytes:
    """The bytes behind a compressed block. **Raises** `CorruptFile`."""
    size, at = 0, 0
    for shift in range(_MAX_VARINT):
        if at == len(data):
            raise _wrong(where, "no length")
        size |= (data[at] & 0x7F) << 7 * shift
        at += 1
        if data[at - 1] < 0x80:
            break
    if size > len(data) * _MAX_RATIO:
        raise _wrong(where, f"{size} bytes from {len(data)}")
    out = bytearray()
    while at < len(data):
        tag, at = data[at], at + 1
        kind, length = tag & 3, (tag >> 2) + 1
        if kind == 0:
            extra = max(0, length - 60)
            if extra:
                length, at = int.from_bytes(data[at : at + extra], "little") + 1, at + extra
            piece = data[at : at + length]
            at += length
        else:
            if kind == 1:
                length, extra = (tag >> 2 & 7) + 4, 1
                offset = (tag >> 5 << 8) + int.from_bytes(data[at : at + 1], "little")
            else:
                extra = 2 if kind == 2 else 4
                offset = int.from_bytes(data[at : at + extra], "little")
            at += extra
            if not 0 < offset <= len(out):
                raise _wrong(where, f"a copy from {offset} bytes back", f"at most {len(out)}")
            start = len(out) - offset
            piece = bytes(out[start : start + length])
            piece = (piece * (length // len(piece) + 1))[:length]  # a copy may reach into itself
        out += piece
        if at > len(data) or len(out) > size:
            raise _wrong(where, "a piece that is too long", f"{size} bytes")
    if len(out) != size:
        raise _wrong(where, f"{len(out)} bytes", f"{size}")
    return bytes(out)


def _wrong(where: str, found: str, expected: str = "") -> CorruptFile:
    return CorruptFile(where, found=f"compressed: {found}", expected=expected)
