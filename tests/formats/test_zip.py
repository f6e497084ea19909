"""The reading of zip archives: as their own library reads them, and no archive that could be read
in two ways."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regraft.errors import CorruptFile, FormatError, UnsafeFile
from regraft.formats import _zip

NAMES = st.text("abc_.é/0", min_size=1, max_size=9).filter(
    lambda n: ".." not in n and not n.startswith("/") and "//" not in n
)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    members=st.dictionaries(NAMES, st.tuples(st.binary(max_size=60), st.booleans()), max_size=6),
    comment=st.binary(max_size=9).filter(lambda c: b"PK" not in c),
    before=st.binary(max_size=20),
    large=st.booleans(),
    streamed=st.booleans(),
)
def test_members_are_those_that_zipfile_finds(
    members: dict[str, tuple[bytes, bool]],
    comment: bytes,
    before: bytes,
    large: bool,
    streamed: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    with path.open("wb") as file:
        target = _Forward(file) if streamed else file
        with zipfile.ZipFile(target, "w") as archive:
            archive.comment = comment
            for name, (data, packed) in members.items():
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
                with archive.open(info, "w", force_zip64=large) as member:
                    member.write(b"" if name.endswith("/") else data)
    found = _zip.members(path)
    assert set(found) == {name for name in members if not name.endswith("/")}
    assert list(_zip.member_names(path)) == list(members)
    for name, member in found.items():
        assert _zip.read(path, member, 100) == members[name][0]
        assert _zip.beginning(path, member, 5) == members[name][0][:5]
    # The same archive inside of another file.
    inner = path.read_bytes()
    path.write_bytes(before + inner + b"behind it")
    moved = _zip.members(path, len(before), len(inner))
    assert {name: m.offset for name, m in moved.items()} == {
        name: m.offset + len(before) for name, m in found.items()
    }


class _Forward(io.RawIOBase):
    """A stream that cannot go back, so that sizes are written behind the bytes."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        return self._file.write(data)  # type: ignore[arg-type]


def archive(path: Path) -> bytearray:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a/data.pkl", b"\x80\x02}.")
        made.writestr("a/data/0", bytes(range(64)))
        made.writestr("a/data/1", bytes(64))
    return bytearray(path.read_bytes())


def end_of(content: bytearray) -> int:
    return content.rindex(b"PK\x05\x06")


def entry_of(content: bytearray, name: bytes) -> int:
    return content.rindex(name) - 46


def local_of(content: bytearray, name: bytes) -> int:
    return content.index(name) - 30


# What is changed: a place in the archive, and the bytes there.
LIES = {
    "more entries than there are": lambda c: (end_of(c) + 8, struct.pack("<2H", 4, 4)),
    "fewer entries than there are": lambda c: (end_of(c) + 8, struct.pack("<2H", 2, 2)),
    "a part of an archive": lambda c: (end_of(c) + 4, b"\1"),
    "another place of the directory": lambda c: (end_of(c) + 16, b"\0\0\0\0"),
    "a comment that is not there": lambda c: (end_of(c) + 20, b"\5"),
    "another method in the local header": lambda c: (local_of(c, b"a/data/0") + 8, b"\x08"),
    "another name in the local header": lambda c: (local_of(c, b"a/data/0") + 37, b"1"),
    "another size in the local header": lambda c: (local_of(c, b"a/data/0") + 22, b"\x20"),
    "another checksum in the local header": lambda c: (local_of(c, b"a/data/0") + 14, b"\x20\x20"),
    "flags that differ": lambda c: (local_of(c, b"a/data/0") + 6, b"\x08"),
    "an encrypted member": lambda c: (entry_of(c, b"a/data/0") + 8, b"\1"),
    "two sizes of a stored member": lambda c: (entry_of(c, b"a/data/0") + 24, b"\x41"),
    "an unknown method": lambda c: (entry_of(c, b"a/data/0") + 10, b"\x0e"),
    "a member on another disk": lambda c: (entry_of(c, b"a/data/0") + 34, b"\1"),
    "a zip64 size that is missing": lambda c: (entry_of(c, b"a/data/0") + 20, b"\xff" * 8),
    "two members in one place": lambda c: (
        entry_of(c, b"a/data/1") + 42, struct.pack("<I", local_of(c, b"a/data/0"))),
    "a member behind the directory": lambda c: (entry_of(c, b"a/data/1") + 42, b"\xff\xff\xff\x7f"),
    "a name that leads outside": lambda c: (entry_of(c, b"a/data/0") + 46, b"../.."),
    "a name of the root": lambda c: (entry_of(c, b"a/data/0") + 46, b"/"),
    "a name with an end in it": lambda c: (entry_of(c, b"a/data/0") + 50, b"\0"),
    "a name twice": lambda c: (entry_of(c, b"a/data/1") + 53, b"0"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_what_is_written_twice_must_agree(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    content = archive(path)
    assert len(_zip.members(path)) == 3
    place, data = LIES[lie](content)
    content[place : place + len(data)] = data
    path.write_bytes(bytes(content))
    with pytest.raises((CorruptFile, UnsafeFile)):
        _zip.members(path)


def test_a_directory_for_large_archives_that_says_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"w": torch.ones(4)}, path)  # has both directories' ends
    content = bytearray(path.read_bytes())
    end, large = end_of(content), content.rindex(b"PK\x06\x06")
    locator = content.rindex(b"PK\x06\x07")
    members = _zip.members(path)
    for place, data in (
        (large + 24, b"\3"), (large + 32, b"\3"), (large + 40, b"\3"), (large + 48, b"\3"),
        (large + 16, b"\1"), (large + 4, b"\3"), (locator + 8, b"\3"), (locator + 16, b"\7"),
        (end + 8, b"\1\0\1\0"),
    ):  # fmt: skip
        changed = content.copy()
        changed[place : place + len(data)] = data
        path.write_bytes(bytes(changed))
        with pytest.raises(CorruptFile):
            _zip.members(path)
    changed = content.copy()  # all ones say: look into the other one
    changed[end + 8 : end + 20] = b"\xff" * 12
    path.write_bytes(bytes(changed))
    assert _zip.members(path) == members


@pytest.mark.parametrize("where", ["before", "behind"])
def test_nothing_lies_around_an_archive(where: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    content = bytes(archive(path))
    path.write_bytes(b"PK\x03\x04" + content if where == "before" else content + b"PK")
    with pytest.raises(CorruptFile):
        _zip.members(path)


def test_many_members_are_listed_in_little_memory(tmp_path: Path) -> None:
    """And fewer names are read than there are, where the first one tells."""
    path = tmp_path / "a.npz"
    np.savez(path, **{f"layer.{i}": np.full(3, i) for i in range(3000)})
    assert len(_zip.members(path)) == 3000
    assert next(iter(_zip.member_names(path))) == "layer.0.npy"


def test_a_checksum_that_was_not_computed(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    config = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(4)}, path)
    finally:
        torch.serialization.set_crc32_options(config)
    for member in _zip.members(path).values():
        assert len(_zip.read(path, member, 10_000)) == member.size
    with pytest.raises(FormatError):
        _zip.read(path, member, member.size - 1)
