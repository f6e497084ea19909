"""The members of a zip archive, looked at with suspicion. They are found by offset, not unpacked.

What the directory says is held against names, overlaps, the local headers, which alone tell where
bytes begin, and sizes before anything is inflated.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from regraft.errors import CorruptFile, UnsafeFile
from regraft.formats._zip_directory import Entry, entries

# Signature, flags, method, checksum, packed and unpacked size, lengths of name and extra.
_LOCAL = struct.Struct("<4s2x2H4x3I2H")
_STORED, _DEFLATED, _ENCRYPTED = 0, 8, 1
_NO_32 = 0xFFFFFFFF
_MAX_MEMBERS = 1 << 18
# An inflated member may be this many times its packed size (deflate's own limit is 1032), and
# small members are let be.
_MAX_RATIO = 1100
_BLOCK = 1 << 20


class Member(NamedTuple):
    """One file of the archive. `offset` is where its (packed) bytes begin; `stored`: unpacked."""

    name: str
    offset: int
    packed: int
    size: int
    stored: bool
    crc: int


def member_names(path: Path) -> Iterator[str]:
    """Names in the directory, unchecked, one after another: enough to tell formats apart."""
    try:
        with path.open("rb") as file:
            for entry in entries(file, path.stat().st_size, path.name):
                yield entry.name
    except (CorruptFile, OSError, ValueError, struct.error):
        return


def members(path: Path) -> dict[str, Member]:
    """All members by name.

    **Raises** `CorruptFile` where the archive contradicts itself, `UnsafeFile` where names lead
    outside it, members overlap or share a name.
    """
    label = path.name
    size = path.stat().st_size
    found: dict[str, Member] = {}
    begins: list[tuple[int, int, str]] = []
    with path.open("rb", buffering=0) as file:
        for entry in entries(file, size, label):
            if entry.name.endswith("/"):
                continue
            if entry.name in found or len(found) >= _MAX_MEMBERS:
                raise UnsafeFile(
                    f"{label}, member {entry.name!r}",
                    found="two members of one name, or too many of them",
                    expected=f"up to {_MAX_MEMBERS} members whose names are unique",
                )
            member = _member(entry, file, label)
            found[entry.name] = member
            begins.append((entry.header, member.offset + entry.packed, entry.name))
    _check_overlaps(begins, size, label)
    return found


def _member(entry: Entry, file: BinaryIO, label: str) -> Member:
    """A member whose local header was read and agrees with the directory's entry."""
    name, raw, flags, method, crc, packed, size, header = entry
    _check(entry, label)
    file.seek(header)
    head = file.read(_LOCAL.size + len(raw))
    if len(head) < _LOCAL.size + len(raw):
        raise CorruptFile(f"{label}, member {name!r}", found=f"no local header at {header}")
    signature, _, there, sum_, packed_there, size_there, n, extra = _LOCAL.unpack_from(head)
    if (
        signature != b"PK\x03\x04"
        or there != method
        or head[_LOCAL.size :] != raw
        or n != len(raw)
        # Zero where the sizes follow the bytes, all ones where they are in the extra field.
        or (packed_there != packed and packed_there and packed_there != _NO_32)
        or (size_there != size and size_there and size_there != _NO_32)
        or (sum_ != crc and sum_)
    ):
        raise CorruptFile(
            f"{label}, member {name!r}", found="a local header unlike the directory's entry"
        )
    begin = header + _LOCAL.size + n + extra
    return Member(name, begin, packed, size, method == _STORED, crc)


def _check(entry: Entry, label: str) -> None:
    """What can be told from the directory alone."""
    name, _, flags, method, _, packed, size, _ = entry
    where = f"{label}, member {name!r}"
    if flags & _ENCRYPTED:
        raise CorruptFile(where, found="an encrypted member")
    if name.startswith(("/", "\\")) or "\0" in name or ".." in _parts(name):
        raise UnsafeFile(where, found="a name that leads outside the archive")
    if method == _STORED:
        if packed != size:
            raise CorruptFile(where, found="a stored member with two sizes")
    elif method != _DEFLATED:
        raise CorruptFile(where, found=f"compression method {method}")
    elif size > _MAX_RATIO * packed + _BLOCK:
        raise UnsafeFile(where, found=f"{size} bytes said to be packed in {packed}")


def _parts(name: str) -> list[str]:
    return name.replace("\\", "/").split("/") if ".." in name else []


def _check_overlaps(begins: list[tuple[int, int, str]], size: int, label: str) -> None:
    end = 0
    for begin, stop, name in sorted(begins):
        if begin < end:
            raise UnsafeFile(f"{label}, member {name!r}", found="bytes that another member has, too")
        end = stop
    if end > size:
        raise CorruptFile(
            label, found=f"members up to offset {end}", expected=f"a file of {size} bytes"
        )


def read(path: Path, member: Member, limit: int) -> bytes:
    """A whole member's bytes, checked against its size and CRC; at most `limit` bytes."""
    where = f"{path.name}, member {member.name!r}"
    if member.size > limit:
        raise CorruptFile(where, found=f"{member.size} bytes", expected=f"at most {limit}")
    data = b"".join(_blocks(path, member))
    if len(data) != member.size or zlib.crc32(data) != member.crc:
        raise CorruptFile(
            where, found=f"{len(data)} bytes with another checksum", expected=f"{member.size} bytes"
        )
    return data


def beginning(path: Path, member: Member, limit: int) -> bytes:
    """The first bytes of a deflated member, no more than `limit`."""
    with path.open("rb") as file:
        file.seek(member.offset)
        packed = file.read(min(member.packed, limit))
    try:
        return zlib.decompressobj(-15).decompress(packed, limit)
    except zlib.error as error:
        raise CorruptFile(f"{path.name}, member {member.name!r}", found=str(error)) from error


def _blocks(path: Path, member: Member) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(member.offset)
        packed = file.read(member.packed)
    if member.stored:
        yield packed
        return
    inflate = zlib.decompressobj(-15)
    try:
        # One byte more than announced, so that a stream that is longer is noticed.
        yield inflate.decompress(packed, member.size + 1)
    except zlib.error as error:
        raise CorruptFile(f"{path.name}, member {member.name!r}", found=str(error)) from error
