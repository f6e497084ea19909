"""A zip archive's directory, read with suspicion. Members are found by offset, not unpacked.

Parsed here rather than by the standard library, which believes much of what it reads and takes
three times as long. What is written twice in an archive (names, sizes, methods, in the directory
and before each member) must agree, since parsers that differ in what they trust could otherwise be
shown different archives in one file.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from pathlib import Path
from typing import NamedTuple, NoReturn

from regraft.errors import CorruptFile, UnsafeFile

_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _SIZES_FOLLOW, _UTF8 = 0x1 | 0x40 | 0x2000, 0x8, 0x800
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF
_MAX_MEMBERS = 1_000_000
_MAX_COMMENT = 65535
# An inflated member may be this many times its packed size (deflate's own limit is 1032), and
# small members are let be.
_MAX_RATIO = 1100
_SMALL = 1 << 20


class Member(NamedTuple):
    """One file of the archive. `offset` is where its (packed) bytes begin; `stored`: unpacked."""

    name: str
    offset: int
    packed: int
    size: int
    stored: bool
    crc: int


# What the directory says of a member: name as bytes and as text, offset of its local header, packed
# size, size, method, flags, CRC. A plain tuple, since there may be very many.
_Entry = tuple[bytes, str, int, int, int, int, int, int]


def is_zip(head: bytes) -> bool:
    return head.startswith(b"PK\x03\x04")


def first_name(head: bytes) -> str:
    """Name of the archive's first member, from the file's first bytes; `""` if it is no zip."""
    if not is_zip(head) or len(head) < _LOCAL.size:
        return ""
    length = _LOCAL.unpack_from(head)[9]
    return head[_LOCAL.size : _LOCAL.size + length].decode("utf-8", "replace")


def member_names(path: Path) -> list[str]:
    """Names in the directory: enough to tell formats apart."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            entries, _ = _directory(data, 0, len(data), path.name)
            return [text for _, text, *_ in entries]
    except (CorruptFile, UnsafeFile, OSError, ValueError):
        return []


def members(path: Path, start: int = 0, size: int | None = None) -> dict[str, Member]:
    """All members by name, of the archive that is the file, or `size` bytes of it from `start` on.

    **Raises** `CorruptFile` where the archive contradicts itself, `UnsafeFile` where names lead
    outside it, members overlap or share a name.
    """
    label = path.name
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            end = len(data) if size is None else start + size
            if not 0 <= start <= end <= len(data):
                _damaged(label, f"{len(data)} bytes, where {end} are expected")
            entries, directory = _directory(data, start, end, label)
            found = [_member(entry, data, directory, label) for entry in entries]
    except (struct.error, ValueError, OSError) as error:
        _damaged(label, str(error))
    _check(found, entries, label)
    return {member.name: member for member in found if not member.name.endswith("/")}


def _damaged(where: str, found: str) -> NoReturn:
    raise CorruptFile(
        where,
        found=found,
        expected="a whole zip archive",
        hint="the file is cut off or damaged; get it again",
    ) from None


def _directory(data: mmap.mmap, start: int, end: int, label: str) -> tuple[list[_Entry], int]:
    """The entries, and the offset at which the directory begins."""
    at = data.rfind(b"PK\x05\x06", max(start, end - _END.size - _MAX_COMMENT), end)
    if at < 0 or at + _END.size > end:
        _damaged(label, "no directory at its end")
    _, disk, first_disk, here, count, length, offset, comment = _END.unpack_from(data, at)
    if at + _END.size + comment != end:
        _damaged(label, f"{end - at - _END.size} bytes behind the directory, {comment} announced")
    stop = at
    locator = at - _LOCATOR_64.size
    if locator >= start and data[locator : locator + 4] == b"PK\x06\x07":
        stop, large = _large_end(data, start, locator, label)
        small = (disk, first_disk, here, count, length, offset)
        limits = (_FULL_16,) * 4 + (_FULL_32,) * 2
        for said, true, limit in zip(small, large, limits, strict=True):
            if said not in (true, limit):
                _damaged(label, f"two ends of the directory that differ: {said} and {true}")
        disk, first_disk, here, count, length, offset = large
    if disk or first_disk or here != count:
        _damaged(label, "an archive in several parts")
    if count > _MAX_MEMBERS:
        raise CorruptFile(label, found=f"{count} members in a zip archive")
    if start + offset + length != stop:
        _damaged(label, f"a directory of {length} bytes at {offset} that ends elsewhere")
    return _entries(data, start, start + offset, stop, count, label), start + offset


def _large_end(
    data: mmap.mmap, start: int, locator: int, label: str
) -> tuple[int, tuple[int, int, int, int, int, int]]:
    """Offset and fields of the 64-bit end of the directory."""
    _, _, offset, disks = _LOCATOR_64.unpack_from(data, locator)
    at = start + offset
    if disks > 1 or at + _END_64.size != locator or data[at : at + 4] != b"PK\x06\x06":
        _damaged(label, "a 64-bit end of the directory that is not where it should be")
    _, _, _, _, disk, first_disk, here, count, length, begin = _END_64.unpack_from(data, at)
    return at, (disk, first_disk, here, count, length, begin)


def _entries(
    data: mmap.mmap, start: int, position: int, stop: int, count: int, label: str
) -> list[_Entry]:
    if count * _ENTRY.size > stop - position:
        _damaged(label, f"{count} members in a directory of {stop - position} bytes")
    found: list[_Entry] = []
    unpack, fixed = _ENTRY.unpack_from, _ENTRY.size
    for _ in range(count):
        (
            signature, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length,
            comment_length, _, _, _, header,
        ) = unpack(data, position)  # fmt: skip
        begin = position + fixed
        position = begin + name_length + extra_length + comment_length
        if signature != b"PK\x01\x02" or position > stop:
            _damaged(label, f"an entry of the directory at {begin - fixed} that is none")
        name = data[begin : begin + name_length]
        if packed == _FULL_32 or size == _FULL_32 or header == _FULL_32:
            extra = data[begin + name_length : begin + name_length + extra_length]
            size, packed, header = _large(extra, (size, packed, header), f"{label}, {name[:80]!r}")
        plain = flags & _UTF8 or name.isascii()
        text = name.decode("utf-8", "replace") if plain else name.decode("cp437")
        found.append((name, text, start + header, packed, size, method, flags, crc))
    if position != stop:
        _damaged(label, f"{stop - position} bytes in the directory behind its last entry")
    return found


def _large(extra: bytes, fields: tuple[int, ...], where: str) -> list[int]:
    """Fields that do not fit into 32 bits stand in an extra record, in order."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            wide = iter(
                struct.iter_unpack("<Q", extra[position + 4 : position + 4 + length // 8 * 8])
            )
            try:
                return [next(wide)[0] if field == _FULL_32 else field for field in fields]
            except StopIteration:
                break
        position += 4 + length
    return _damaged(where, "sizes of 64 bits that are missing")


def _member(entry: _Entry, data: mmap.mmap, directory: int, label: str) -> Member:
    """Reads the local header, which alone says where the bytes begin, and compares."""
    name, text, header, packed, size, method, flags, crc = entry
    if method not in (_STORED, _DEFLATED) or flags & _ENCRYPTED:
        what = "an encrypted member" if flags & _ENCRYPTED else f"compression method {method}"
        raise CorruptFile(f"{label}, member {text!r}", found=what)
    if header + _LOCAL.size > directory:
        _damaged(f"{label}, member {text!r}", f"a local header at {header}")
    (
        signature, _, local_flags, local_method, _, _, local_crc, local_packed, local_size,
        name_length, extra_length,
    ) = _LOCAL.unpack_from(data, header)  # fmt: skip
    begin = header + _LOCAL.size
    offset = begin + name_length + extra_length
    if signature != b"PK\x03\x04" or data[begin : begin + name_length] != name:
        found = f"a local header at {header} that is none, or another member's"
        _damaged(f"{label}, member {text!r}", found)
    if local_method != method or (local_flags ^ flags) & (_SIZES_FOLLOW | _UTF8):
        _damaged(f"{label}, member {text!r}", "a local header unlike the directory's entry")
    if not flags & _SIZES_FOLLOW:
        if _FULL_32 in (local_size, local_packed):
            extra = data[begin + name_length : offset]
            local_size, local_packed = _large(extra, (local_size, local_packed), label)
        if (local_crc, local_packed, local_size) != (crc, packed, size):
            _damaged(f"{label}, member {text!r}", "sizes unlike those in the directory")
    if method == _STORED and packed != size:
        _damaged(f"{label}, member {text!r}", "a stored member with two sizes")
    if method == _DEFLATED and size > _MAX_RATIO * packed + _SMALL:
        found = f"{size} bytes said to be packed in {packed}"
        raise UnsafeFile(f"{label}, member {text!r}", found=found)
    if offset + packed > directory:
        _damaged(f"{label}, member {text!r}", f"{packed} bytes from {offset} on")
    return Member(text, offset, packed, size, method == _STORED, crc)


def _check(found: list[Member], entries: list[_Entry], label: str) -> None:
    """Names stay inside the archive and are unique; no byte belongs to two members."""
    for name in _suspicious([member.name for member in found]):
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or not parts[0] or "\0" in name:
            raise UnsafeFile(
                f"{label}, member {name!r}", found="a name that leads outside the archive"
            )
    if len({member.name for member in found}) != len(found):
        raise UnsafeFile(label, found="two members of one name", expected="names that are unique")
    extents = [
        (entry[2], member.offset + member.packed, member.name)
        for entry, member in zip(entries, found, strict=True)
    ]
    extents.sort()
    end = 0
    for header, stop, name in extents:
        if header < end:
            raise UnsafeFile(
                f"{label}, member {name!r}", found="bytes that another member has, too"
            )
        end = stop


def _suspicious(names: list[str]) -> list[str]:
    """Names that might lead elsewhere; almost always none, which one search tells."""
    together = "\n" + "\n".join(names)
    return names if any(sign in together for sign in ("..", "\\", "\0", "\n/")) else []


def read(path: Path, member: Member, limit: int) -> bytes:
    """A whole member's bytes, checked against its size and CRC; at most `limit` bytes.

    A CRC of 0 is one that was not computed, as PyTorch can be told to do.
    """
    where = f"{path.name}, member {member.name!r}"
    if member.size > limit:
        raise CorruptFile(where, found=f"{member.size} bytes", expected=f"at most {limit}")
    with path.open("rb") as file:
        file.seek(member.offset)
        data = file.read(member.packed)
    if not member.stored:
        # One byte more than announced, so that a stream that is longer is noticed.
        data = _inflated(data, member.size + 1, where)
    if len(data) != member.size or (member.crc and zlib.crc32(data) != member.crc):
        raise CorruptFile(
            where, found=f"{len(data)} bytes with another checksum", expected=f"{member.size} bytes"
        )
    return data


def beginning(path: Path, member: Member, limit: int) -> bytes:
    """The first bytes of a deflated member, no more than `limit`."""
    with path.open("rb") as file:
        file.seek(member.offset)
        packed = file.read(min(member.packed, limit))
    return _inflated(packed, limit, f"{path.name}, member {member.name!r}")


def _inflated(packed: bytes, limit: int, where: str) -> bytes:
    try:
        return zlib.decompressobj(-15).decompress(packed, limit)
    except zlib.error as error:
        raise CorruptFile(where, found=str(error)) from error
