"""LevelDB's sorted table, the file that TensorFlow keeps a checkpoint's index in.

Blocks of sorted entries, each written as what its key shares with the one before, what it adds,
and its value; then a block of blocks, and at the file's end a footer that says where that one
lies. Every block is followed by its compression (none or snappy) and a checksum.
See https://github.com/google/leveldb/blob/main/doc/table_format.md.
"""

from __future__ import annotations

from collections.abc import Iterator

from regraft.errors import CorruptFile
from regraft.formats._crc32c import crc32c, unmasked
from regraft.formats._snappy import decompressed

MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER = 48
_TRAILER = 5
_NO_COMPRESSION, _SNAPPY = 0, 1
# All keys together may be so many times longer than the file: a key can repeat the one before.
_MAX_KEYS = 64
_SLACK = 1 << 16
# Bytes of the file that an entry takes at least; a compressed block could hold many more.
_MIN_ENTRY = 4
# A plain loop takes a fifth of a second for each of these; longer tables are taken on trust.
_CHECKED = 4 << 20


def entries(data: bytes, label: str) -> Iterator[tuple[bytes, bytes]]:
    """All keys and values of a table, sorted by key. **Raises** `CorruptFile`."""
    if len(data) < FOOTER or not data.endswith(MAGIC):
        raise _wrong(label, "no table's end")
    footer = data[-FOOTER:]
    _, at = _handle(footer, 0, label)
    (start, size), _ = _handle(footer, at, label)
    index = _block(data, start, size, label)
    limit, left = len(data) * _MAX_KEYS + _SLACK, len(data) // _MIN_ENTRY
    done, last = 0, None
    for separator, handle in _pairs(index, label):
        (start, size), _ = _handle(handle, 0, label)
        if start < done:
            raise _wrong(label, f"a block at byte {start}", f"from {done} on")
        done = start + size + _TRAILER
        limit -= len(separator)
        for key, value in _pairs(_block(data, start, size, label), label):
            if last is not None and key <= last:
                raise _wrong(label, f"key {key[:80]!r} after {last[:80]!r}", "sorted keys")
            limit, left = limit - len(key), left - 1
            if min(limit, left) < 0:
                raise _wrong(label, f"more entries or longer keys than {len(data)} bytes can hold")
            last = key
            yield key, value


def _block(data: bytes, start: int, size: int, label: str) -> bytes:
    stop = start + size
    if stop + _TRAILER > len(data) - FOOTER:
        raise _wrong(label, f"a block of {size} bytes at byte {start}", "blocks inside the file")
    content, kind = data[start:stop], data[stop]
    stored = int.from_bytes(data[stop + 1 : stop + _TRAILER], "little")
    if len(data) <= _CHECKED and crc32c(data[start : stop + 1]) != unmasked(stored):
        raise _wrong(f"{label}, byte {start}", "a block with a wrong checksum")
    if kind == _SNAPPY:
        return decompressed(content, f"{label}, byte {start}")
    if kind != _NO_COMPRESSION:
        raise _wrong(f"{label}, byte {start}", f"compression {kind}", "none or snappy")
    return content


def _pairs(block: bytes, label: str) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a block, whose end is taken up by the places to begin at."""
    restarts = int.from_bytes(block[-4:], "little") if len(block) >= 4 else -1
    stop = len(block) - 4 * (restarts + 1)
    if restarts < 0 or stop < 0:
        raise _wrong(label, f"a block of {len(block)} bytes with {restarts} restarts")
    at, key = 0, b""
    while at < stop:
        shared, at = _varint(block, at, label)
        added, at = _varint(block, at, label)
        length, at = _varint(block, at, label)
        if shared > len(key) or at + added + length > stop:
            raise _wrong(label, "an entry that is longer than its block")
        key = key[:shared] + block[at : at + added]
        at += added
        yield key, block[at : at + length]
        at += length


def _handle(data: bytes, at: int, label: str) -> tuple[tuple[int, int], int]:
    """Place and size of a block, and where the next number begins."""
    start, at = _varint(data, at, label)
    size, at = _varint(data, at, label)
    return (start, size), at


def _varint(data: bytes, at: int, label: str) -> tuple[int, int]:
    value = 0
    for index in range(min(10, len(data) - at)):
        byte = data[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise _wrong(label, "a number without end")


def _wrong(where: str, found: str, expected: str = "a table as LevelDB writes it") -> CorruptFile:
    return CorruptFile(
        where,
        found=found,
        expected=expected,
        hint="the file is cut off or damaged; get it again",
    )
