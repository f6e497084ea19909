"""The directory at the end of a zip archive, entry by entry.

Read here rather than by `zipfile`, which takes several times as long and lets archives pass that
other readers see differently. There is one reading of what is accepted: the records at the end
agree with one another and with what lies before them, without gap or rest (APPNOTE.TXT 4.3).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from regraft.errors import CorruptFile

_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
# Signature, flags, method, checksum, packed and unpacked size; lengths of name, extra and comment;
# disk; where the local header lies.
_ENTRY = struct.Struct("<4s4x2H4x3I4H4xHI")
_COMMENT, _NO_16, _NO_32 = 0xFFFF, 0xFFFF, 0xFFFFFFFF
_LIMITS = (_NO_16,) * 4 + (_NO_32,) * 2
UTF8 = 1 << 11


# What the directory says of one member: its name as text and as bytes, flags, method, checksum,
# packed size, size, where its local header lies, and the mode of the file that it was, in Unix'
# bits. A plain tuple, since there may be very many.
Entry = tuple[str, bytes, int, int, int, int, int, int, int]


def directory(file: BinaryIO, start: int, stop: int, label: str) -> tuple[int, Iterator[Entry]]:
    """Where the directory of the archive between two offsets begins, and its entries in their
    order, taken apart one after another. **Raises** `CorruptFile` for records that do not fit."""
    count, begin, length = _place(file, start, stop, label)
    file.seek(begin)
    return begin, _entries(file.read(length), length, count, start, label)


def _entries(data: bytes, length: int, count: int, start: int, label: str) -> Iterator[Entry]:
    position, unpack = 0, _ENTRY.unpack_from
    for _ in range(count):
        if position + _ENTRY.size > length:
            raise _damaged(label, f"{count} entries in a directory of {length} bytes")
        (signature, flags, method, crc, packed, unpacked, n, extra, comment, disk, mode,
         header) = unpack(data, position)  # fmt: skip
        begin = position + _ENTRY.size
        position = begin + n + extra + comment
        if signature != b"PK\x01\x02" or disk or position > length:
            raise _damaged(label, f"a directory entry of another kind, {length - begin} bytes left")
        raw = data[begin : begin + n]
        if packed == _NO_32 or unpacked == _NO_32 or header == _NO_32:
            where = f"{label}, member {raw[:100]!r}"
            large = wide(data[begin + n : begin + n + extra], [unpacked, packed, header], where)
            unpacked, packed, header = large
        name = raw.decode() if raw.isascii() else _name(raw, flags, label)
        yield name, raw, flags, method, crc, packed, unpacked, start + header, mode
    if position != length or len(data) != length:
        raise _damaged(label, f"{count} entries in a directory of {length} bytes")


def _place(file: BinaryIO, start: int, stop: int, label: str) -> tuple[int, int, int]:
    """Number of entries, begin and length of the directory, which ends where its end records
    begin."""
    held = min(stop - start, _END.size + _COMMENT)
    file.seek(stop - held)
    tail = file.read(held)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > held:
        raise _damaged(label, "no end of a zip directory")
    _, *told, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != held:
        raise _damaged(label, f"an end of a zip directory with {held - at} bytes behind it")
    end = stop - held + at
    locator = at - _LOCATOR.size
    if locator >= 0 and tail.startswith(b"PK\x06\x07", locator):
        _, _, place, disks = _LOCATOR.unpack_from(tail, locator)
        end = start + place
        large = _end64(file, end, stop - held + locator, label)
        if disks > 1 or any(
            n not in (w, limit) for n, w, limit in zip(told, large, _LIMITS, strict=True)
        ):  # fmt: skip
            raise _damaged(label, f"two ends of a zip directory: {told} and {large}")
        told = large
    disk, first, here, count, length, offset = told
    if disk or first or here != count:
        raise _damaged(label, "a part of a zip archive")
    if start + offset + length != end:
        raise _damaged(label, f"a directory of {length} bytes at {offset}, and its end at {end}")
    return count, start + offset, length


def _end64(file: BinaryIO, at: int, stop: int, label: str) -> list[int]:
    """What the record for large archives says; it ends where its locator begins."""
    if at + _END64.size <= stop:
        file.seek(at)
        signature, length, _, _, *told = _END64.unpack(file.read(_END64.size))
        if signature == b"PK\x06\x06" and at + 12 + length == stop:
            return told
    raise _damaged(label, f"another record than the end of a zip64 directory at {at}")


def _name(raw: bytes, flags: int, label: str) -> str:
    try:
        return raw.decode("utf-8" if flags & UTF8 else "cp437")
    except UnicodeDecodeError as error:
        raise _damaged(label, f"a member's name: {error}") from error


def wide(extra: bytes, narrow: list[int], label: str) -> list[int]:
    """The same numbers, with the 64 bits of those that 32 do not hold, which follow in order."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
            numbers = (n for (n,) in struct.iter_unpack("<Q", field[: len(field) // 8 * 8]))
            try:
                return [next(numbers) if n == _NO_32 else n for n in narrow]
            except (StopIteration, struct.error):
                break
        at += 4 + length
    raise _damaged(label, "a member without its zip64 sizes")


def _damaged(label: str, found: str) -> CorruptFile:
    return CorruptFile(
        label,
        found=found,
        expected="a whole zip archive",
        hint="the file is cut off or damaged; get it again",
    )
