"""PyTorch's zip archives: pickles and storages as members of one top folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from regraft.errors import CorruptFile
from regraft.formats import _zip
from regraft.formats._pickle import Machine
from regraft.formats._pickle_records import Reference
from regraft.formats._room import Room
from regraft.formats._torch_storages import Locate, Storages

_MAX_PICKLE = 1 << 30
_MAX_MARK = 16
# Bytes of a storage that no whole element fills.
_MAX_REST = 15


class Archive:
    """The members of an archive, which is a file or `size` bytes of it from `start` on.

    `top` is the folder, with its slash, in which `opening` lies nearest to the root; arrays are
    read from `file`; `room` is what its pickles share. **Raises** `CorruptFile`, `UnsafeFile`.
    """

    def __init__(
        self,
        path: Path,
        opening: str,
        start: int = 0,
        size: int | None = None,
        file: _zip.Archived | None = None,
        room: Room | None = None,
    ) -> None:
        self.path = path
        self.file = file or _zip.Archived(path)
        self.room = room or Room(self.file.size)
        self.members = _zip.members(path, start, size)
        found = [n for n in self.members if n == opening or n.endswith(f"/{opening}")]
        if not found:
            raise CorruptFile(path.name, found=f"no member {opening}", expected="PyTorch's archive")
        self.top = min(found, key=len)[: -len(opening)]
        self._check_names()
        self.big_endian = self._byte_order() == b"big"

    def inside(self, name: str) -> Archive:
        """A file of `torch.save` that is a stored member, its arrays to be read from this file."""
        member = self.members[f"{self.top}{name}"]
        if not member.stored:
            raise CorruptFile(f"{self.path.name}, member {name!r}", found="a compressed member")
        [member] = _zip.located(self.path, [member])
        return Archive(self.path, "data.pkl", member.offset, member.size, self.file, self.room)

    def _check_names(self) -> None:
        """All lie in one folder, and none is another's but for capitals, which PyTorch's own reader
        does not tell apart."""
        stray = next((name for name in self.members if not name.startswith(self.top)), None)
        if stray is not None or len({name.lower() for name in self.members}) < len(self.members):
            raise CorruptFile(
                f"{self.path.name}, members",
                found=f"{stray[:200]!r}" if stray else "names that differ by capitals only",
                expected=f"one of each name, all in {self.top[:200]!r}",
            )

    def read(self, name: str, limit: int = _MAX_PICKLE) -> bytes:
        """A member's bytes. **Raises** `CorruptFile`."""
        member = self.members.get(f"{self.top}{name}")
        if member is None:
            raise CorruptFile(self.path.name, found=f"no member {self.top}{name}")
        # What is inflated takes memory, and time.
        inflated = max(0, min(self.room.memory, self.room.walked))
        return _zip.read(self.path, member, limit if member.stored else min(limit, inflated))

    def holds(self, name: str) -> bool:
        return f"{self.top}{name}" in self.members

    def unpickled(self, name: str, persistent: Callable[[Any], Any] = Reference) -> tuple[Any, int]:
        """A pickle's object and its size in bytes."""
        data = self.read(name)
        machine = Machine(data, f"{self.path.name}, {name}", persistent, self.room)
        return machine.load(), len(data)

    def storages(self, template: str = "data/{}") -> Storages:
        """The storages that lie where the template says."""
        return Storages(self.path.name, self._locate(template), self.big_endian)

    def _locate(self, template: str) -> Locate:
        before, after = template.split("{}")
        before = self.top + before

        def locate(key: str, needed: int) -> tuple[int, int]:
            member = self.members.get(f"{before}{key}{after}")
            if member is None or not member.stored or not 0 <= member.size - needed <= _MAX_REST:
                raise self._unlike(key, member, needed)
            return self.file.start(member), needed

        return locate

    def _unlike(self, key: str, member: _zip.Member | None, needed: int) -> CorruptFile:
        found = "no such member"
        if member is not None:
            found = f"{member.size} bytes" if member.stored else "a compressed member"
        return CorruptFile(
            f"{self.path.name}, storage {key[:100]!r}",
            found=found,
            expected=f"{needed} stored bytes",
            hint="the file is incomplete, or was packed again by another tool",
        )

    def _byte_order(self) -> bytes:
        if not self.holds("byteorder"):
            return b"little"
        order = self.read("byteorder", _MAX_MARK)
        if order not in (b"little", b"big"):
            raise CorruptFile(f"{self.path.name}, byteorder", found=f"byte order {order!r}")
        return order
