"""Writes LevelDB tables and TensorFlow bundles, right ones and ones that lie."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from pathlib import Path

from regraft.formats._crc32c import crc32c

MAGIC = 0xDB4775248B80FB57


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def entry(shared: int, added: bytes, value: bytes) -> bytes:
    return varint(shared) + varint(len(added)) + varint(len(value)) + added + value


def block_of(pairs: Iterable[tuple[bytes, bytes]], interval: int = 16) -> bytes:
    """A block with shared prefixes, as LevelDB writes them."""
    out, restarts, last = b"", [], b""
    for index, (key, value) in enumerate(pairs):
        shared = 0
        if index % interval == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(last), len(key)) and last[shared] == key[shared]:
                shared += 1
        out += entry(shared, key[shared:], value)
        last = key
    return finished(out, restarts or [0])


def finished(entries: bytes, restarts: list[int]) -> bytes:
    return entries + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def table_of(
    blocks: Iterable[tuple[bytes, bytes]], pack: Callable[[bytes], bytes] | None = None
) -> bytes:
    """A table of finished blocks, each with its last key."""
    out, handles = b"", []

    def add(block: bytes) -> bytes:
        nonlocal out
        content = (pack(block) if pack else block), bytes([1 if pack else 0])
        start = len(out)
        out += b"".join(content) + struct.pack("<I", masked(b"".join(content)))
        return varint(start) + varint(len(content[0]))

    for last, block in blocks:
        handles.append((last, add(block)))
    meta = add(block_of([]))
    index = add(block_of(handles, 1))
    return out + (meta + index).ljust(40, b"\0") + struct.pack("<Q", MAGIC)


def table(
    entries: dict[bytes, bytes], per_block: int = 5, **options: Callable[[bytes], bytes]
) -> bytes:
    listed = sorted(entries.items())
    parts = [listed[i : i + per_block] for i in range(0, len(listed), per_block)]
    return table_of([(part[-1][0], block_of(part)) for part in parts], **options)


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def shape_of(shape: Iterable[int]) -> bytes:
    return b"".join(field(2, field(1, size)) for size in shape)


def bundle_entry(
    shape: Iterable[int],
    data: bytes,
    offset: int,
    *,
    dtype: int = 1,
    shard: int = 0,
    size: int | None = None,
    crc: int | None = None,
    slices: Iterable[bytes] = (),
) -> bytes:
    checksum = masked(data) if crc is None else crc
    return (
        field(1, dtype) + field(2, shape_of(shape)) + field(3, shard) + field(4, offset)
        + field(5, len(data) if size is None else size)
        + varint(6 << 3 | 5) + struct.pack("<I", checksum)
        + b"".join(field(7, part) for part in slices)
    )  # fmt: skip


def header(shards: int = 1, endianness: int = 0, needs: int = 0) -> bytes:
    return field(1, shards) + field(2, endianness) + field(3, field(1, 1) + field(2, needs))


def bundle(
    folder: Path, entries: dict[bytes, bytes], data: bytes, head: bytes | None = None
) -> Path:
    """Writes `x.index` and its data file; gives the index."""
    index = folder / "x.index"
    index.write_bytes(table({b"": header() if head is None else head, **entries}))
    (folder / "x.data-00000-of-00001").write_bytes(data)
    return index


def snappy(data: bytes) -> bytes:
    """Packs with snappy's format: four equal bytes or more become a copy."""
    out, at, begin = varint(len(data)), 0, 0
    seen: dict[bytes, int] = {}
    while at < len(data):
        before = seen.get(data[at : at + 4], -1)
        seen[data[at : at + 4]] = at
        length = 0
        if before >= 0 and at - before < 1 << 16:
            while length < 64 and at + length < len(data):
                if data[before + length] != data[at + length]:
                    break
                length += 1
        if length < 4:
            at += 1
            continue
        out += literal(data[begin:at]) + copy(at - before, length, 2)
        at += length
        begin = at
    return out + literal(data[begin:])


def literal(data: bytes) -> bytes:
    """Tags of literals, short ones and those whose length takes bytes of its own."""
    if not data:
        return b""
    if len(data) <= 60:
        return bytes([len(data) - 1 << 2]) + data
    size = (len(data) - 1).bit_length() + 7 >> 3
    return bytes([59 + size << 2]) + (len(data) - 1).to_bytes(size, "little") + data


def copy(offset: int, length: int, kind: int) -> bytes:
    """A copy with an offset of 11 bits, of two bytes or of four."""
    if kind == 1:
        return bytes([offset >> 8 << 5 | length - 4 << 2 | 1, offset & 0xFF])
    return bytes([length - 1 << 2 | kind]) + offset.to_bytes(2 if kind == 2 else 4, "little")
