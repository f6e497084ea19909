"""Zip archives that show one thing to one reader and another to the next, or that unpack to much."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from attacks.building import FLOATS, Part, archive, npy, npy_header, torch_parts, whole
from attacks.harness import Attack, check, written
from regraft.errors import CorruptFile, FormatError, UnsafeFile

EITHER = (CorruptFile, UnsafeFile)
SYMLINK = 0o120777 << 16
ENCRYPTED, DESCRIBED, STRONG, MASKED = 1, 8, 64, 1 << 13
PARTS = torch_parts()


def changed(name: str, **fields: Any) -> bytes:
    """A whole file, of which one member lies."""
    return archive([p._replace(**fields) if p.name.endswith(name.encode()) else p for p in PARTS])


def wide(*numbers: int) -> bytes:
    """The extra record of 64-bit sizes."""
    return struct.pack("<2H", 1, 8 * len(numbers)) + struct.pack(f"<{len(numbers)}Q", *numbers)


def with_end_64(count: int, length: int | None = None, start: int | None = None,
                where: int | None = None) -> bytes:  # fmt: skip
    """A whole file with a 64-bit end of its directory."""
    content = archive(PARTS)
    at = content.rindex(b"PK\5\6")
    begin = content.index(b"PK\1\2")
    end = struct.pack(
        "<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count,
        at - begin if length is None else length, begin if start is None else start,
    )  # fmt: skip
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, at if where is None else where, 1)
    plain = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return content[:at] + end + locator + plain


def _descriptor(data: bytes) -> bytes:
    return struct.pack("<4s3I", b"PK\7\x08", zlib.crc32(data), len(data), len(data))


def _described() -> bytes:
    """What a writer leaves that could not seek: sizes behind the bytes."""
    parts = [
        p._replace(flags=DESCRIBED, local_crc=0, local_size=0, after=_descriptor(p.data))
        for p in PARTS
    ]
    content = bytearray(archive(parts))
    at = 0
    for p in parts:
        content[at + 18 : at + 22] = bytes(4)
        at += 30 + len(p.name) + len(p.data) + 16
    return bytes(content)


def _inside(data: bytes) -> bytes:
    """A member whose bytes are those of another one."""
    content = archive(PARTS)
    position = content.index(data)
    parts = [*PARTS, Part(b"x/data/1", data, offset=position - 38)]
    return archive(parts)


def _entries(count: int) -> bytes:
    """Many entries of one member."""
    return archive([PARTS[0], *(Part(b"x/%d" % i, b"", offset=0) for i in range(count))])


_EVIL = archive(torch_parts(whole(b"cos\nsystem\n.")))
_WHOLE = archive(PARTS)
FILES: dict[str, tuple[bytes, Any, str]] = {
    "a wrong checksum of the pickle": (
        changed("data.pkl", crc=1234), EITHER, "data.pkl"),
    "a changed byte in the pickle": (
        _WHOLE.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3"), CorruptFile, "data.pkl"),
    "two entries of one member": (
        archive([*PARTS, Part(b"x/again", b"", offset=0)]), EITHER, "again|data.pkl"),
    "two names for one member": (
        archive([*PARTS, Part(b"x/data.pkl", PARTS[0].data, offset=0)]), EITHER, "x.pth"),
    "a member inside another": (_inside(FLOATS), EITHER, "member"),
    "two members of one name": (archive([*PARTS, Part(b"x/data/0", FLOATS)]), EITHER, "x.pth"),
    "two members whose names differ by case": (
        archive([*PARTS, Part(b"X/DATA/0", FLOATS)]), None, ""),
    "a bomb as pickle": (changed("data.pkl", data=bytes(400 << 20), method=8), EITHER, "x.pth"),
    "a bomb as pickle that says it is small": (
        changed("data.pkl", data=bytes(400 << 20), method=8, size=1000, local_size=1000), EITHER,
        "data.pkl"),
    "a bomb of numbers as pickle": (
        changed("data.pkl", data=b"\x80\x02" + b"K\x00" * (100 << 20), method=8), EITHER, "x.pth"),
    "a bomb as byte order": (
        changed("byteorder", data=bytes(400 << 20), method=8), EITHER, "byteorder"),
    "a bomb as storage": (changed("data/0", data=bytes(400 << 20), method=8), EITHER, "storage|data/0"),
    "a bomb inside a bomb": (
        changed("data.pkl", data=archive([Part(b"b", bytes(400 << 20), 8)]), method=8), EITHER,
        "x.pth"),
    "a ratio beyond deflate's": (
        changed("data.pkl", data=b"\x80\x02}.", method=8, size=1 << 40, local_size=0), EITHER,
        "data.pkl"),
    "a stream that is shorter than it says": (
        changed("data.pkl", data=b"\x80\x02}.", method=8, size=100, local_size=100), EITHER,
        "data.pkl"),
    "a stream that is longer than it says": (
        changed("data.pkl", data=b"\x80\x02}." * 9, method=8, size=4, local_size=4), EITHER,
        "data.pkl"),
    "a stream that is none": (
        archive([PARTS[0]._replace(method=8), *PARTS[1:]]).replace(
            zlib.compress(PARTS[0].data, 9, -15), b"\xff" * len(
                zlib.compress(PARTS[0].data, 9, -15))), EITHER, "data.pkl"),
    "a stored member of two sizes": (changed("data/0", size=1 << 20), EITHER, "data/0"),
    "a member that ends behind the file": (
        changed("data/0", size=1 << 20, packed=1 << 20), EITHER, "x.pth"),
    "64-bit sizes that lie": (
        changed("data/0", size=0xFFFFFFFF, packed=0xFFFFFFFF, extra=wide(1 << 62, 1 << 62)),
        EITHER, "x.pth"),
    "64-bit sizes that are missing": (
        changed("data/0", size=0xFFFFFFFF, packed=0xFFFFFFFF), EITHER, "x.pth"),
    "64-bit sizes that are cut off": (
        changed("data/0", size=0xFFFFFFFF, packed=0xFFFFFFFF, extra=b"\1\0\x10\0abc"), EITHER,
        "x.pth"),
    "a 64-bit offset behind the file": (
        archive([*PARTS[:-1], PARTS[-1]._replace(offset=0xFFFFFFFF, extra=wide(1 << 62))]), EITHER,
        "x.pth"),
    "an offset behind the file": (
        archive([*PARTS[:-1], PARTS[-1]._replace(offset=1 << 30)]), EITHER, "x.pth"),
    "a 64-bit end that is honest": (with_end_64(len(PARTS)), {"w": (4,)}, ""),
    "a 64-bit end of 2^63 members": (with_end_64(1 << 63), EITHER, "x.pth"),
    "a 64-bit end of more members": (with_end_64(1000), EITHER, "x.pth"),
    "a 64-bit end of fewer members": (with_end_64(1), EITHER, "x.pth"),
    "a 64-bit directory of 2^62 bytes": (with_end_64(4, 1 << 62), EITHER, "x.pth"),
    "a 64-bit directory of 2^64 - 1 bytes": (with_end_64(4, (1 << 64) - 1), EITHER, "x.pth"),
    "a 64-bit directory that begins behind the file": (
        with_end_64(4, start=1 << 62), EITHER, "x.pth"),
    "a 64-bit end that is elsewhere": (with_end_64(4, where=0), EITHER, "x.pth"),
    "another archive before it": (_EVIL + _WHOLE, EITHER, "x.pth"),
    "another archive before it, offsets mended": (
        archive(PARTS, before=_EVIL), EITHER, "x.pth"),
    "another archive behind it": (_WHOLE + _EVIL, EITHER, "x.pth"),
    "bytes behind it": (_WHOLE + b"MZ" * 500, EITHER, "x.pth"),
    "another archive as its comment": (archive(PARTS, comment=_EVIL), EITHER, "x.pth"),
    "an end inside its comment": (
        archive(PARTS, comment=struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0)), EITHER,
        "x.pth"),
    "a comment that is longer than it says": (_WHOLE + b"x", EITHER, "x.pth"),
    "a comment": (archive(PARTS, comment=b"made by hand"), {"w": (4,)}, ""),
    "a directory that is cut off": (_WHOLE[: _WHOLE.rindex(b"PK\1\2") + 20], EITHER, "x.pth"),
    "an end that is cut off": (_WHOLE[:-1], EITHER, "x.pth"),
    "a directory of one entry too many": (archive(PARTS, count=5), EITHER, "x.pth"),
    "a directory of one entry too few": (archive(PARTS, count=3), EITHER, "x.pth"),
    "a directory that is too long": (archive(PARTS, length=1 << 30), EITHER, "x.pth"),
    "a directory that is too short": (archive(PARTS, length=50), EITHER, "x.pth"),
    "a directory that begins elsewhere": (archive(PARTS, start=0), EITHER, "x.pth"),
    "a count of 65535": (archive(PARTS, count=65535), EITHER, "x.pth"),
    "twenty thousand entries of one member": (_entries(20_000), EITHER, "x.pth"),
    "a member under encryption": (changed("data.pkl", flags=ENCRYPTED), EITHER, "data.pkl"),
    "a member under strong encryption": (changed("data.pkl", flags=STRONG), EITHER, "data.pkl"),
    "a directory under encryption": (changed("data.pkl", flags=MASKED), EITHER, "data.pkl"),
    "sizes behind the bytes": (_described(), {"w": (4,)}, ""),
    "an unknown compression": (changed("data.pkl", method=99), EITHER, "data.pkl"),
    "bzip2": (changed("data.pkl", method=12), EITHER, "data.pkl"),
    "lzma": (changed("data.pkl", method=14), EITHER, "data.pkl"),
    "another name before the bytes": (
        changed("data.pkl", local_name=b"x/evil.pkl"), EITHER, "data.pkl"),
    "a longer name before the bytes": (
        changed("data.pkl", local_name=b"x/data.pkl.but.not"), EITHER, "data.pkl"),
    "another size before the bytes": (changed("data/0", local_size=8), EITHER, "data/0"),
    "another checksum before the bytes": (changed("data/0", local_crc=99), EITHER, "data/0"),
    "a symbolic link": (
        archive([*PARTS, Part(b"x/link", b"/etc/passwd", attributes=SYMLINK)]), EITHER, "link"),
    "a symbolic link as storage": (
        changed("data/0", attributes=SYMLINK), EITHER, "data/0"),
    "a folder with bytes": (archive([*PARTS, Part(b"x/folder/", b"bytes")]), EITHER, "folder"),
    "a name that leads up": (archive([*PARTS, Part(b"../evil", b"")]), EITHER, "evil"),
    "a name that leads up from inside": (
        archive([*PARTS, Part(b"x/../../evil", b"")]), EITHER, "evil"),
    "a name that leads up, backwards": (archive([*PARTS, Part(b"..\\evil", b"")]), EITHER, "evil"),
    "an absolute name": (archive([*PARTS, Part(b"/evil", b"")]), EITHER, "evil"),
    "a name on another drive": (archive([*PARTS, Part(b"C:\\evil", b"")]), EITHER, "evil"),
    "a name with a zero": (
        archive([PARTS[0]._replace(name=b"x/data.pkl\0.txt"), *PARTS[1:]]), FormatError, "x.pth"),
    "a name with control characters": (
        archive([*PARTS, Part(b"../\x1b]0;owned\x07\r\n", b"")]), EITHER, "owned"),
    "a name of 60 kilobytes": (archive([*PARTS, Part(b"../" + b"n" * 60_000, b"")]), EITHER, "nnn"),
    "an empty name": (archive([*PARTS, Part(b"", b"")]), None, ""),
    "an archive of nothing": (archive([]), FormatError, ""),
    "extra records without end": (
        archive([*PARTS, *(Part(b"x/e%d" % i, extra=bytes(65_532)) for i in range(14))]), None, ""),
    "a gap between members": (
        archive([*PARTS[:1], PARTS[1]._replace(after=b"hidden bytes" * 9), *PARTS[2:]]), None, ""),
}  # fmt: skip
_ARRAY = npy(npy_header(), FLOATS)


def _boxed(pickled: bytes) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(None, object), allow_pickle=True)
    return stream.getvalue().partition(b"\n")[0] + b"\n" + pickled


NPZ: dict[str, tuple[Callable[[], bytes], Any, str]] = {
    "keys that differ by .npy": (
        lambda: archive([Part(b"w.npy", _ARRAY), Part(b"w.npy.npy", _ARRAY)]), None, ""),
    "two arrays of one key": (
        lambda: archive([Part(b"w.npy", _ARRAY), Part(b"w.npy", _ARRAY)]), EITHER, "x.npz"),
    "an array that is longer than its member": (
        lambda: archive([Part(b"w.npy", npy(npy_header("(5,)"), FLOATS))]), CorruptFile, "w.npy"),
    "an array that goes on into the next member": (
        lambda: archive([Part(b"w.npy", npy(npy_header("(40,)"), FLOATS)),
                         Part(b"v.npy", _ARRAY)]), CorruptFile, "w.npy"),
    "a bomb of an object": (
        lambda: archive([Part(b"w.npy", _boxed(b"\x80\x02" + bytes(400 << 20)), 8)]), EITHER,
        "w.npy"),
    "a bomb of objects": (
        lambda: archive([Part(b"w.npy", _boxed(b"\x80\x02" + b"]" * (60 << 20)), 8)]), EITHER,
        "w.npy"),
    "a bomb as metadata": (
        lambda: archive([Part(b"w.npy", _ARRAY), Part(b"__metadata__.npy", npy(
            npy_header("(419430400,)", "'|u1'"), b" " * (400 << 20)), 8)]), EITHER, "metadata"),
    "metadata that is no JSON": (
        lambda: archive([Part(b"w.npy", _ARRAY), Part(b"__metadata__.npy", _ARRAY)]), EITHER,
        "metadata"),
    "metadata that is nested deep": (
        lambda: archive([Part(b"w.npy", _ARRAY), Part(b"__metadata__.npy", npy(
            npy_header("(200000,)", "'|u1'"), b"[" * 200_000))]), EITHER, "metadata"),
    "metadata with a long number": (
        lambda: archive([Part(b"w.npy", _ARRAY), Part(b"__metadata__.npy", npy(
            npy_header("(5002,)", "'|u1'"), b"[" + b"9" * 5000 + b"]"))]), EITHER, "metadata"),
    "a member that is no array": (
        lambda: archive([Part(b"w.npy", b"not an array")]), CorruptFile, "w.npy"),
    "an empty member": (lambda: archive([Part(b"w.npy", b"")]), CorruptFile, "w.npy"),
    "a wrong checksum": (lambda: archive([Part(b"w.npy", _ARRAY, crc=99)]), EITHER, "w.npy"),
    "a wrong checksum of packed bytes": (
        lambda: archive([Part(b"w.npy", _ARRAY, 8, crc=99)]), EITHER, "w.npy"),
    "a packed array that is cut off": (
        lambda: archive([Part(b"w.npy", _ARRAY[:-4], 8, size=len(_ARRAY),
                              local_size=len(_ARRAY))]), EITHER, "w.npy"),
    "a name with control characters": (
        lambda: archive([Part(b"\x1b[2J\x07.npy", b"junk")]), CorruptFile, "npy"),
    "zeros that unpack to much": (
        lambda: archive([Part(b"w.npy", npy(npy_header("(26214400,)"), bytes(100 << 20)), 8)]),
        {"w": (26_214_400,)}, ""),
}  # fmt: skip
# Only reading it shows that a member's bytes are others than were written.
AT_READING = {
    "a wrong checksum", "a wrong checksum of packed bytes", "a packed array that is cut off",
}  # fmt: skip


def _attacks() -> dict[str, Attack]:
    found = {n: Attack(written("x.pth", c), e, w) for n, (c, e, w) in FILES.items()}
    for name, (make, expects, where) in NPZ.items():
        stage = "read" if name in AT_READING else "open"
        found[f"npz: {name}"] = Attack(
            lambda folder, marker, make=make: written("x.npz", make())(folder, marker),
            expects, where, stage,
        )  # fmt: skip
    return found


ATTACKS = _attacks()


def test_zip_archives(attack: str, outcomes: dict[str, dict[str, Any]]) -> None:
    check(ATTACKS[attack], outcomes[attack])
