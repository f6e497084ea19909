"""The skeleton of an HDF5 file: superblock, object headers, groups, chunk trees, heaps of text.

Read here rather than by HDF5's own library, which trusts a file in places: trees whose nodes are
their own children overflow its stack, rings of siblings and of heap objects never end, lengths are
allocated before they are checked; and a process cannot be saved from native code. Here every
structure is looked for inside the file, trees must get lower on the way down, and all that is read
is no more than a few times the file, so that structures that lie upon one another cost nothing.

After "HDF5 File Format Specification Version 3.0" (The HDF Group). Of its two generations the older
one is read whole, which the library writes unless it is asked for the newer; of the newer one what
needs no fractal heap.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, NoReturn

from regraft.errors import CorruptFile, FormatError, UnsafeFile

SIGNATURE = b"\x89HDF\r\n\x1a\n"
UNDEFINED = 0xFFFFFFFFFFFFFFFF

# Kinds of messages in object headers.
SPACE, LINKS, TYPE, OLD_FILL, FILL, LINK, EXTERNAL = 1, 2, 3, 4, 5, 6, 7
LAYOUT, FILTERS, ATTRIBUTE, CONTINUED, SYMBOLS, DRIVER, ATTRIBUTES = 8, 11, 12, 16, 17, 20, 21
CACHE = 24
SHARED = 2  # a message's flag: it lies elsewhere

_NODE = struct.Struct("<4s2BH2Q")
_SYMBOL = struct.Struct("<2QI20x")
_GROUP_TREE, _CHUNK_TREE = 0, 1
_MAX_MESSAGES = 1 << 16
_MAX_LEVEL = 16
_SOFT, _EXTERNAL = 1, 64
_KINDS_OF_LINKS = {_SOFT: "a soft link", _EXTERNAL: "a link into another file"}


class Message(NamedTuple):
    """One message of an object header."""

    kind: int
    flags: int
    data: bytes


class Chunk(NamedTuple):
    """One chunk of a dataset: where in the file, and at which indices of the array."""

    size: int
    mask: int
    offsets: tuple[int, ...]
    address: int


class Structure:
    """An HDF5 file's objects by their addresses; `root` is that of the root group.

    It is `size` bytes from `start` on in the stream.

    **Raises** `CorruptFile`, `UnsafeFile`, and `FormatError` for the newer generation's heaps.
    """

    def __init__(self, file: BinaryIO, size: int, label: str, start: int = 0) -> None:
        self._file, self._size, self._label, self._start = file, size, label, start
        self._left = 4 * size + _MAX_LEVEL * 4096
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}
        self.root = self._superblock()

    def block(self, address: int, length: int, what: str) -> bytes:
        """Bytes of a structure. **Raises** `CorruptFile` where they are not there."""
        self._left -= length
        if address < 0 or length < 0 or address + length > self._size:
            self.corrupt(address, f"{length} bytes of {what}", f"a file of {self._size} bytes")
        if self._left < 0:
            self.corrupt(address, f"{what} that lie upon one another")
        data = self.raw(address, length)
        if len(data) < length:
            self.corrupt(address, f"{len(data)} bytes of {what}", f"{length} bytes")
        return data

    def raw(self, address: int, length: int) -> bytes:
        """Bytes of values, which lie inside the file."""
        self._file.seek(self._start + address)
        return self._file.read(length)

    def corrupt(self, address: int, found: str, expected: str = "a whole HDF5 file") -> NoReturn:
        raise CorruptFile(
            f"{self._label}, offset {address}",
            found=found,
            expected=expected,
            hint="the file is cut off or damaged; get it again",
        )

    def _superblock(self) -> int:
        head = self.block(0, min(self._size, 96), "the superblock")
        if head[:8] != SIGNATURE or len(head) < 48:
            self.corrupt(0, "the beginning of no HDF5 file")
        version = head[8]
        if version in (0, 1):
            widths, at = head[13:15], 24 + 4 * version
            base, _, end, driver = struct.unpack_from("<4Q", self._padded(head, at + 32), at)
            [root] = struct.unpack_from("<Q", self._padded(head, at + 48), at + 40)
        elif version in (2, 3):
            widths = head[9:11]
            base, more, end, root = struct.unpack_from("<4Q", head, 12)
            driver = UNDEFINED
            # The extension could name a driver that reads other files, or bring a cache's image.
            if more != UNDEFINED and any(m.kind in (DRIVER, CACHE) for m in self.messages(more)):
                raise UnsafeFile(f"{self._label}, offset {more}", found="a driver, or a cache")
        else:
            self.corrupt(8, f"a superblock of version {version}", "one of version 0 to 3")
        if widths != b"\x08\x08":
            self.corrupt(
                8, f"addresses and lengths of {widths[0]} and {widths[1]} bytes", "8 bytes"
            )
        if driver != UNDEFINED:
            raise UnsafeFile(f"{self._label}, offset 0", found="a driver, which reads other files")
        if base or end > self._size:
            self.corrupt(0, f"a file from {base} to {end}", f"one from 0 to {self._size}")
        return root

    def _padded(self, head: bytes, length: int) -> bytes:
        if len(head) < length:
            self.corrupt(0, "a superblock that is cut off")
        return head

    # Object headers

    def messages(self, address: int) -> list[Message]:
        """All messages of the object header there."""
        head = self.block(address, 16, "an object header")
        found: list[Message] = []
        if head[:4] == b"OHDR":
            flags = head[5]
            at = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
            width = 1 << (flags & 3)
            prefix = self.block(address, at + width, "an object header")
            length = int.from_bytes(prefix[at:], "little")
            blocks = [(address + at + width, length)]
            ordered = bool(flags & 4)
        elif head[0] == 1:
            blocks = [(address + 16, int.from_bytes(head[8:12], "little"))]
            ordered = None
        else:
            self.corrupt(address, f"an object header that begins with {head[:4]!r}")
        for start, length in blocks:  # grows as messages tell of more blocks
            data = self.block(start, length, "an object header")
            if ordered is not None and start != blocks[0][0]:
                if data[:4] != b"OCHK":
                    self.corrupt(start, "an object header that goes on elsewhere")
                data = data[4:-4]  # a checksum ends it
            for message in self._in_block(data, start, ordered):
                if message.kind == CONTINUED:
                    if len(message.data) < 16:
                        self.corrupt(start, "an object header that goes on nowhere")
                    blocks.append(struct.unpack_from("<2Q", message.data))
                else:
                    found.append(message)
                if len(found) + len(blocks) > _MAX_MESSAGES:
                    self.corrupt(address, f"more than {_MAX_MESSAGES} messages in one header")
        return found

    def _in_block(self, data: bytes, start: int, ordered: bool | None) -> Iterator[Message]:
        """Messages of one block; `ordered` is `None` in headers of the first version."""
        at, fixed = 0, 8 if ordered is None else 4 + 2 * ordered
        while at + fixed <= len(data):
            if ordered is None:
                kind, length, flags = struct.unpack_from("<2HB", data, at)
            else:
                kind, length, flags = struct.unpack_from("<BHB", data, at)
            at += fixed
            if at + length > len(data):
                self.corrupt(start + at, f"a message of {length} bytes, {len(data) - at} left")
            yield Message(kind, flags, data[at : at + length])
            at += length

    # Groups

    def links(self, messages: list[Message], where: str) -> dict[bytes, int] | None:
        """Addresses of a group's objects by name, sorted; `None` where it is no group.

        **Raises** `UnsafeFile` for links that are not to an object of the file itself.
        """
        found: dict[bytes, int] = {}
        group = False
        for kind, flags, data in messages:
            if kind in (SYMBOLS, LINKS, LINK) and flags & SHARED:
                raise CorruptFile(where, found="a group whose links lie elsewhere")
            if kind == SYMBOLS:
                group = True
                tree, heap = struct.unpack_from("<2Q", data.ljust(16, b"\0"))
                self._symbols(tree, heap, where, found)
            elif kind == LINKS:
                group = True
                at = 2 + 8 * bool(data[1:2] and data[1] & 1)
                if data[at : at + 8] != UNDEFINED.to_bytes(8, "little"):
                    raise FormatError(
                        where,
                        found="links in a heap, as HDF5 writes when asked for its newest layout",
                        expected="the layout that HDF5 and h5py write unless asked otherwise",
                        hint="copy the file with h5py's default libver, or with h5repack --low=0",
                    )
            elif kind == LINK:
                group = True
                self._link(data, where, found)
        return dict(sorted(found.items())) if group else None

    def _symbols(self, tree: int, heap: int, where: str, found: dict[bytes, int]) -> None:
        """The older generation's groups: a tree of nodes of symbols, names in a heap."""
        head = self.block(heap, 32, "a heap of names")
        length, _, segment = struct.unpack_from("<3Q", head, 8)
        if head[:5] != b"HEAP\0":
            self.corrupt(heap, "a heap of names that is none")
        names = self.block(segment, length, "a heap of names")
        for record in self._leaves(tree, _GROUP_TREE, 8):
            address = int.from_bytes(record[8:], "little")
            node = self.block(address, 8, "a node of symbols")
            count = int.from_bytes(node[6:8], "little")
            if node[:5] != b"SNOD\1":
                self.corrupt(address, "a node of symbols that is none")
            symbols = self.block(address + 8, count * _SYMBOL.size, "symbols")
            for at, target, kind in _SYMBOL.iter_unpack(symbols):
                end = names.find(b"\0", at) if at < length else -1
                if end < 0:
                    self.corrupt(address, f"a symbol whose name is at {at} of {length} bytes")
                name = names[at:end]
                if kind == 2:
                    self._refuse_link(_SOFT, name, where)
                self._add(name, target, where, found)

    def _link(self, data: bytes, where: str, found: dict[bytes, int]) -> None:
        """The newer generation's: a message for each."""
        flags = data[1] if len(data) > 2 else 0xFF
        at = 2 + bool(flags & 8)
        kind = data[2] if flags & 8 else 0
        at += 8 * bool(flags & 4) + bool(flags & 16)
        width = 1 << (flags & 3)
        start = at + width
        end = start + int.from_bytes(data[at:start], "little")
        name = data[start:end]
        if flags == 0xFF or len(data) < end + 8 * (kind == 0):
            raise CorruptFile(where, found=f"a link of {len(data)} bytes")
        if kind:
            self._refuse_link(kind, name, where)
        self._add(name, int.from_bytes(data[end : end + 8], "little"), where, found)

    def _add(self, name: bytes, address: int, where: str, found: dict[bytes, int]) -> None:
        if name in found or not name or b"/" in name or name in (b".", b".."):
            raise CorruptFile(where, found=f"a link named {name[:80]!r}", expected="unique names")
        found[name] = address

    def _refuse_link(self, kind: int, name: bytes, where: str) -> NoReturn:
        raise UnsafeFile(
            f"{where}, link {name[:80]!r}",
            found=_KINDS_OF_LINKS.get(kind, "a link of unknown kind"),
            expected="data inside the file itself",
        )

    # Trees

    def chunks(self, tree: int, rank: int) -> Iterator[Chunk]:
        """The chunks of a dataset of `rank` axes, of the older generation's tree."""
        key = struct.Struct(f"<2I{rank + 1}Q")
        for record in self._leaves(tree, _CHUNK_TREE, key.size):
            size, mask, *offsets = key.unpack_from(record)
            address = int.from_bytes(record[key.size :], "little")
            yield Chunk(size, mask, tuple(offsets[:-1]), address)

    def _leaves(self, root: int, kind: int, key: int) -> Iterator[bytes]:
        """The records of a tree's lowest nodes: a key of `key` bytes, and an address."""
        nodes, level = [root], -1
        while nodes and level:
            below: list[int] = []
            for address in nodes:
                head = self.block(address, _NODE.size, "a tree")
                signature, found, height, count, _, _ = _NODE.unpack(head)
                if signature != b"TREE" or found != kind or height > _MAX_LEVEL:
                    self.corrupt(address, "a tree that is none, or of another kind")
                if level < 0:
                    level = height + 1
                if height != level - 1:
                    self.corrupt(address, f"a node of level {height}", f"level {level - 1}")
                step = key + 8
                data = self.block(address + _NODE.size, count * step, "a tree")
                for at in range(0, len(data), step):
                    if height:
                        below.append(int.from_bytes(data[at + key : at + step], "little"))
                    else:
                        yield data[at : at + step]
            nodes, level = below, level - 1

    # Heaps of text

    def text(self, address: int, index: int, length: int) -> bytes:
        """An object of a global heap, which must be as long as its reference says."""
        heap = self._heaps.get(address)
        if heap is None:
            heap = self._heaps[address] = self._heap(address)
        start, size = heap.get(index, (0, -1))
        if size != length:
            self.corrupt(address, f"no text of {length} bytes under {index}", "it in this heap")
        return self.block(start, size, "a text")

    def _heap(self, address: int) -> dict[int, tuple[int, int]]:
        """Start and size of a heap's objects: index, references, size, and the padded bytes."""
        head = self.block(address, 16, "a heap of text")
        total = int.from_bytes(head[8:], "little")
        if head[:5] != b"GCOL\1" or total < 16:
            self.corrupt(address, "a heap of text that is none")
        found: dict[int, tuple[int, int]] = {}
        data = self.block(address + 16, total - 16, "a heap of text")
        at = 0
        while at + 16 <= len(data):
            index, size = struct.unpack_from("<H6xQ", data, at)
            step = size if index == 0 else 16 + (size + 7) // 8 * 8
            if step < 16 or step > len(data) - at:
                self.corrupt(address + 16 + at, f"an object of {size} bytes in a heap of {total}")
            if index:
                found[index] = address + 32 + at, size
            at += step
        return found
