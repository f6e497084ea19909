"""A zip archive's directory, read with suspicion. Members are found by offset, not unpacked.

The archive's own library (`zipfile`) reads the directory; what it believes is checked here:
names, overlaps, the local headers, and sizes before anything is inflated.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from regraft.errors import CorruptFile, UnsafeFile

_LOCAL = struct.Struct("<4s5H3I2H")
_MAX_MEMBERS = 1_000_000
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


def is_zip(head: bytes) -> bool:
    return head.startswith(b"PK\x03\x04")


def member_names(path: Path) -> list[str]:
    """Names in the directory, unchecked: enough to tell formats apart."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error):
        return []


def members(path: Path) -> dict[str, Member]:
    """All members by name.

    **Raises** `CorruptFile` where the archive contradicts itself, `UnsafeFile` where names lead
    outside it, members overlap or share a name.
    """
    label = path.name
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            infos = archive.infolist()
            if len(infos) > _MAX_MEMBERS:
                raise CorruptFile(label, found=f"{len(infos)} members in a zip archive")
            found = [_member(info, file, label) for info in infos if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise CorruptFile(
            label,
            found=f"{error}",
            expected="a whole zip archive",
            hint="the file is cut off or damaged; get it again",
        ) from error
    _check(found, path.stat().st_size, label)
    return {member.name: member for member in found}


def _member(info: zipfile.ZipInfo, file: BinaryIO, label: str) -> Member:
    """Reads the local header, which alone says where the bytes begin."""
    where = f"{label}, member {info.filename!r}"
    if info.flag_bits & 1:
        raise CorruptFile(where, found="an encrypted member")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CorruptFile(where, found=f"compression method {info.compress_type}")
    if info.filename.startswith(("/", "\\")) or ".." in info.filename.replace("\\", "/").split("/"):
        raise UnsafeFile(where, found="a name that leads outside the archive")
    file.seek(info.header_offset)
    signature, _, _, method, *_, name_length, extra_length = _LOCAL.unpack(file.read(_LOCAL.size))
    name = file.read(name_length)
    if signature != b"PK\x03\x04" or method != info.compress_type:
        raise CorruptFile(where, found="a local header unlike the directory's entry")
    if name.decode("utf-8", "replace").replace("\\", "/") != info.filename and name.decode(
        "cp437"
    ) != (info.orig_filename):
        raise CorruptFile(where, found=f"another name in its local header: {name[:80]!r}")
    stored = info.compress_type == zipfile.ZIP_STORED
    offset = info.header_offset + _LOCAL.size + name_length + extra_length
    if stored and info.compress_size != info.file_size:
        raise CorruptFile(where, found="a stored member with two sizes")
    if not stored and info.file_size > _MAX_RATIO * info.compress_size + _BLOCK:
        raise UnsafeFile(
            where, found=f"{info.file_size} bytes said to be packed in {info.compress_size}"
        )
    return Member(info.filename, offset, info.compress_size, info.file_size, stored, info.CRC)


def _check(found: list[Member], size: int, label: str) -> None:
    if len({member.name for member in found}) != len(found):
        raise UnsafeFile(label, found="two members of one name", expected="names that are unique")
    end = 0
    for member in sorted(found, key=lambda m: (m.offset, m.packed)):
        if member.offset < end:
            raise UnsafeFile(
                f"{label}, member {member.name!r}", found="bytes that another member has, too"
            )
        end = member.offset + member.packed
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
