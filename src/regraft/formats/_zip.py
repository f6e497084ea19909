"""The members of a zip archive, looked at with suspicion. They are found by offset, not unpacked.

What the directory says is held against names, overlaps, the local headers, which alone tell where
bytes begin, and sizes before anything is inflated. In a remote archive a local header is read when
the member is: asking for each of them would be a request for each tensor.
"""

from __future__ import annotations

import io
import mmap
import os
import re
import stat
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, NamedTuple, TypeAlias

from regraft.errors import CorruptFile, FormatError, UnsafeFile
from regraft.formats._bytes import Mapped, Strided
from regraft.formats._zip_directory import UTF8, Entry, directory, wide
from regraft.locations import ahead, is_local

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

# Signature, flags, method, checksum, packed and unpacked size, lengths of name and extra.
_HEADER = struct.Struct("<4s2x2H4x3I2H")
_LOCAL, _FIXED = _HEADER.unpack_from, _HEADER.size
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _SIZES_FOLLOW = 0x1 | 0x40 | 0x2000, 0x8
_NO_32 = 0xFFFFFFFF
_MAX_MEMBERS = 1 << 18
# An inflated member may be this many times its packed size (deflate's own limit is 1032), and
# small members are let be.
_MAX_RATIO = 1100
_SMALL = 1 << 20
# Bytes that are unpacked in memory; those that may be unpacked into a file, however few are packed,
# and for each packed one.
_IN_MEMORY, _MAX_UNPACKED, _MAX_SPREAD = 32 << 20, 200 << 20, 16
_TABLE = 1 << 10
# Of an entry: its name's bytes, and where its local header lies.
_RAW, _AT = 1, 7
# What a name may have that leads elsewhere.
_ODD = re.compile(r"[/\\]|.:|.*(?:\.\.|\\|\0)", re.DOTALL).match
# What is asked for of a remote archive with each local header: the extra field, and what follows.
_BEHIND = 512
_FAR = 1 << 62


# Bytes of an archive: where they begin, and how many.
_Read: TypeAlias = "Callable[[int, int], bytes]"


class Pending(NamedTuple):
    """What is known of a member before its local header is read; it ends before `limit`."""

    entry: Entry
    limit: int


class Member(NamedTuple):
    """One file of the archive. `offset` is where its (packed) bytes begin; `stored`: unpacked.

    In a remote archive `pending` is set until the member is `located`; until then `offset` is a
    number far below zero, at which nothing can be read, and by which `Archived` knows the member.
    """

    name: str
    offset: int
    packed: int
    size: int
    stored: bool
    crc: int
    pending: Pending | None = None


def is_zip(head: bytes) -> bool:
    return head.startswith(b"PK\x03\x04")


def first_name(head: bytes) -> str:
    """Name of the archive's first member, from the file's first bytes; `""` if it is no zip."""
    if not is_zip(head) or len(head) < _FIXED:
        return ""
    length = _LOCAL(head)[6]
    return head[_FIXED : _FIXED + length].decode("utf-8", "replace")


def member_names(path: Path) -> Iterator[str]:
    """Names in the directory, unchecked, one after another: enough to tell formats apart."""
    try:
        with path.open("rb") as file:
            _, entries = directory(file, 0, path.stat().st_size, path.name)
            for name, *_ in entries:
                yield name
    except (CorruptFile, OSError, ValueError, struct.error):
        return


def members(path: Path, start: int = 0, size: int | None = None) -> dict[str, Member]:
    """All members by name, of the archive that is the file, or `size` bytes of it from `start` on.

    **Raises** `CorruptFile` where the archive contradicts itself, `UnsafeFile` where names lead
    outside it, members overlap or share a name.
    """
    label = path.name
    stop = path.stat().st_size if size is None else start + size
    found: dict[str, Member] = {}
    listed: list[tuple[int, int, str]] = []
    at_once = is_local(path)
    first = stop
    with path.open("rb", buffering=0) as file:
        read = _reading(file)
        end, entries = directory(file, start, stop, label)
        for entry in entries:
            name, raw, flags, method, crc, packed, unpacked, header, mode = entry
            if header < first:
                first = header
            if name.endswith("/"):
                if unpacked:
                    raise UnsafeFile(f"{label}, member {name!r}", found="a folder with bytes")
                continue
            if name in found or len(found) >= _MAX_MEMBERS:
                raise UnsafeFile(
                    f"{label}, member {name!r}",
                    found="two members of one name, or too many of them",
                    expected=f"up to {_MAX_MEMBERS} members whose names are unique",
                )
            plain = method == _STORED and packed == unpacked and not flags & _ENCRYPTED
            if not plain or stat.S_ISLNK(mode) or _ODD(name):
                _check(entry, label)
            offset = _begin(entry, read, label) if at_once else header - _FAR
            found[name] = Member(name, offset, packed, unpacked, method == _STORED, crc)
            least = header + _FIXED + len(raw)
            listed.append((header, (offset if at_once else least) + packed, name))
            if not at_once:
                found[name] = found[name]._replace(pending=Pending(entry, end))
    if listed and first != start:
        raise CorruptFile(
            label, found=f"{first - start} bytes before the first member", expected="none"
        )
    _check_overlaps(listed, end, label)
    return found if at_once else _limited(found, listed)


def _limited(found: dict[str, Member], listed: list[tuple[int, int, str]]) -> dict[str, Member]:
    """The same members of a remote archive, each limited by where the next one begins."""
    for (_, _, name), (limit, _, _) in pairwise(listed):
        pending = found[name].pending
        assert pending is not None
        found[name] = found[name]._replace(pending=Pending(pending.entry, limit))
    return found


def _check(entry: Entry, label: str) -> None:
    """What can be told from the directory alone."""
    name, _, flags, method, _, packed, size, _, mode = entry
    if stat.S_ISLNK(mode):
        raise UnsafeFile(f"{label}, member {name!r}", found="a symbolic link")
    if flags & _ENCRYPTED:
        raise CorruptFile(f"{label}, member {name!r}", found="an encrypted member")
    if name.startswith(("/", "\\")) or "\0" in name or name[1:2] == ":" or ".." in _parts(name):
        raise UnsafeFile(f"{label}, member {name!r}", found="a name that leads outside the archive")
    if method == _STORED:
        if packed != size:
            raise CorruptFile(f"{label}, member {name!r}", found="a stored member with two sizes")
    elif method != _DEFLATED:
        raise CorruptFile(f"{label}, member {name!r}", found=f"compression method {method}")
    elif size > _MAX_RATIO * packed + _SMALL:
        raise UnsafeFile(
            f"{label}, member {name!r}", found=f"{size} bytes said to be packed in {packed}"
        )


def _parts(name: str) -> list[str]:
    return name.replace("\\", "/").split("/") if ".." in name else []


def _begin(entry: Entry, read: _Read, label: str) -> int:
    """Where a member's bytes begin; its local header must agree with the directory's entry."""
    name, raw, flags, method, crc, packed, size, header, _ = entry
    if header >= 1 << 62:
        raise CorruptFile(f"{label}, member {name!r}", found=f"no local header at {header}")
    head = read(header, _FIXED + len(raw))
    if len(head) < _FIXED + len(raw):
        raise CorruptFile(f"{label}, member {name!r}", found=f"no local header at {header}")
    signature, flags_here, method_here, crc_here, packed_here, size_here, n, extra = _LOCAL(head)
    if (
        signature != b"PK\x03\x04"
        or method_here != method
        or (flags_here != flags and (flags_here ^ flags) & (_SIZES_FOLLOW | UTF8))
        or n != len(raw)
        or head[_FIXED:] != raw
    ):
        raise _unlike(label, name)
    begin = header + _FIXED + n + extra
    if not flags & _SIZES_FOLLOW:
        if size_here == _NO_32 or packed_here == _NO_32:
            field = read(begin - extra, extra)
            size_here, packed_here = wide(field, [size_here, packed_here], label)
        if crc_here != crc or packed_here != packed or size_here != size:
            raise _unlike(label, name)
    return begin


def _reading(file: BinaryIO) -> _Read:
    """Bytes of a file by their place. Of a local one without a map, whose pages around each local
    header would all count as memory."""
    if hasattr(os, "pread") and isinstance(file, io.FileIO):
        descriptor = file.fileno()
        return lambda begin, count: os.pread(descriptor, count, begin)

    def read(begin: int, count: int) -> bytes:
        file.seek(begin)
        return file.read(count)

    return read


def _unlike(label: str, name: str) -> CorruptFile:
    return CorruptFile(
        f"{label}, member {name!r}", found="a local header unlike the directory's entry"
    )


def _check_overlaps(listed: list[tuple[int, int, str]], limit: int, label: str) -> None:
    """Sorts members, as `(begin, end, name)`, and sees that no byte belongs to two of them."""
    listed.sort()
    end = 0
    for begin, stop, name in listed:
        if begin < end:
            raise UnsafeFile(
                f"{label}, member {name!r}", found="bytes that another member has, too"
            )
        end = stop
    if end > limit:
        raise CorruptFile(
            label, found=f"members up to offset {end}", expected=f"no more than {limit} bytes"
        )


def located(path: Path, wanted: Iterable[Member]) -> list[Member]:
    """The same members, with their offsets; asks a remote archive for all local headers at once.

    **Raises** as `members`.
    """
    listed = list(wanted)
    behind = _FIXED + _BEHIND
    heads = [m.pending.entry for m in listed if m.pending]
    ahead(path, [(e[_AT], e[_AT] + len(e[_RAW]) + behind) for e in heads])
    found: list[Member] = []
    with path.open("rb") as file:
        read = _reading(file)
        for member in listed:
            if member.pending is None:
                found.append(member)
                continue
            entry, limit = member.pending
            offset = _begin(entry, read, path.name)
            if offset + member.packed > limit:
                raise UnsafeFile(
                    f"{path.name}, member {member.name!r}",
                    found="bytes that another member has, too",
                )
            found.append(member._replace(offset=offset, pending=None))
    return found


class Archived(Mapped):
    """Arrays that lie in stored members of the archives of one file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._pending: dict[int, Member] = {}

    def start(self, member: Member) -> int:
        """The `start` of places in a member; in a remote archive one that only this object can
        read, once it has found where the member's bytes begin."""
        if member.pending is not None:
            self._pending[member.offset] = member
        return member.offset

    def array(self, place: Strided, slices: Slices | None = None) -> Array:
        member = self._pending.get(place.start)
        if member is not None:
            if member.pending is not None:
                [member] = located(self.path, [member])
                self._pending[place.start] = member
            offset = place.offset - place.start + member.offset
            place = place._replace(start=member.offset, offset=offset)
        return super().array(place, slices)


def read(path: Path, member: Member, limit: int) -> bytes:
    """A whole member's bytes, checked against its size and CRC; at most `limit` bytes.

    A CRC of 0 is one that was not computed, as PyTorch can be told to do.
    """
    where = f"{path.name}, member {member.name!r}"
    if member.size > limit:
        raise CorruptFile(where, found=f"{member.size} bytes", expected=f"at most {limit}")
    if member.stored:
        data = _packed(path, member, member.packed)
    else:
        stream = io.BytesIO()
        inflate(path, member, stream)
        data = stream.getvalue()
    if len(data) != member.size or (member.crc and zlib.crc32(data) != member.crc):
        raise CorruptFile(
            where, found=f"{len(data)} bytes with another checksum", expected=f"{member.size} bytes"
        )
    return data


def inflate(path: Path, member: Member, into: IO[bytes]) -> None:
    """Writes what a deflated member unpacks to, block by block; of a stream that is longer than
    announced, one byte more. **Raises** `CorruptFile`."""
    [member] = located(path, [member])
    stream, left, packed = zlib.decompressobj(-15), member.size + 1, member.packed
    with path.open("rb") as file:
        file.seek(member.offset)
        data = b""
        while left and not stream.eof and (data or packed):
            if not data:
                data = file.read(min(packed, _SMALL))
                packed = packed - len(data) if data else 0
            try:
                block = stream.decompress(data, min(left, _SMALL))
            except zlib.error as error:
                where = f"{path.name}, member {member.name!r}"
                raise CorruptFile(where, found=str(error)) from error
            data = stream.unconsumed_tail
            left -= into.write(block)


def unpacked(path: Path, member: Member) -> bytes | mmap.mmap:
    """A deflated member's bytes: in memory where they are few; else mapped, from a temporary file
    that has no name, so that it is gone with the map, whatever happens.

    **Raises** `UnsafeFile` for much out of little, `CorruptFile` for another checksum,
    `FormatError` where there is no room for the file.
    """
    if member.size <= _IN_MEMORY:
        return read(path, member, member.size)
    import tempfile  # not on the way to a listing

    where = f"{path.name}, member {member.name!r}"
    if member.size > max(_MAX_UNPACKED, _MAX_SPREAD * member.packed):
        raise UnsafeFile(
            where,
            found=f"{member.size} bytes packed in {member.packed}",
            expected=f"{_MAX_UNPACKED >> 20} MiB, or {_MAX_SPREAD} times what is packed",
            hint="pack the archive again without compression",
        )
    with tempfile.TemporaryFile() as file:
        try:
            inflate(path, member, file)
            file.flush()
        except OSError as error:
            raise FormatError(
                where,
                found=f"{error.strerror}",
                expected=f"room for {member.size} bytes in {tempfile.gettempdir()}",
                hint="set TMPDIR to a folder that has it, or store the member uncompressed",
            ) from error
        size, crc = file.tell(), 0
        file.seek(0)
        while block := file.read(_SMALL):
            crc = zlib.crc32(block, crc)
        if size != member.size or (member.crc and crc != member.crc):
            raise CorruptFile(
                where, found=f"{size} bytes with another checksum", expected=f"{member.size} bytes"
            )
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def verify(path: Path, member: Member) -> None:
    """Holds a stored member's bytes against its checksum, block by block; a remote one's are not
    fetched for that. **Raises** `CorruptFile`."""
    if not is_local(path) or not member.crc:
        return
    crc, left = 0, member.size
    with path.open("rb") as file:
        file.seek(member.offset)
        while left and (block := file.read(min(left, _SMALL))):
            crc, left = zlib.crc32(block, crc), left - len(block)
    if crc != member.crc:
        raise CorruptFile(f"{path.name}, member {member.name!r}", found="another checksum")


def beginning(path: Path, member: Member, limit: int) -> bytes:
    """The first `limit` bytes of a member, unpacked, or as many as it has."""
    if member.stored:
        return _packed(path, member, min(member.packed, limit))
    # Deflate may take two bytes for one, behind a table of codes.
    packed = _packed(path, member, min(member.packed, 2 * limit + _TABLE))
    return _inflated(packed, limit, f"{path.name}, member {member.name!r}")


def _packed(path: Path, member: Member, count: int) -> bytes:
    [member] = located(path, [member])
    with path.open("rb") as file:
        file.seek(member.offset)
        return file.read(count)


def _inflated(packed: bytes, limit: int, where: str) -> bytes:
    try:
        return zlib.decompressobj(-15).decompress(packed, limit)
    except zlib.error as error:
        raise CorruptFile(where, found=str(error)) from error
