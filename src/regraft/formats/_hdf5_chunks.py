"""Values of an HDF5 dataset in chunks, each behind filters: unpacked one chunk at a time."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from regraft.errors import CorruptFile, FormatError
from regraft.formats._hdf5_messages import Filter
from regraft.formats._hdf5_objects import Chunk

if TYPE_CHECKING:
    import numpy as np

    from regraft.tensors import Array, Slices

GZIP, SHUFFLE, CHECKSUM = 1, 2, 3
# What HDF5 and h5py bring themselves; any other filter would be looked up as a plug-in.
NAMES = {GZIP: "gzip", SHUFFLE: "shuffle", CHECKSUM: "fletcher32", 4: "szip", 5: "nbit",
         6: "scaleoffset", 32000: "lzf"}  # fmt: skip
# Those that can make little of much.
PACKING = {GZIP, 4, 6, 32000}
_CHECKSUM_SIZE = 4


def assembled(
    chunks: Iterable[Chunk],
    shape: tuple[int, ...],
    sizes: tuple[int, ...],
    dtype: np.dtype[Any],
    filters: Sequence[Filter],
    fill: bytes,
    slices: Slices | None,
    read: Callable[[int, int], bytes],
    where: str,
) -> Array:
    """The array, or the part of it under `slices`, from the chunks (of `sizes`) that it touches."""
    import numpy as np

    every = (*(slices or ()), *[slice(None)] * (len(shape) - len(slices or ())))
    bounds = [part.indices(n)[:2] for part, n in zip(every, shape, strict=True)]
    out = np.zeros([max(0, stop - start) for start, stop in bounds], dtype)
    if fill.strip(b"\0"):
        out[...] = np.frombuffer(fill, dtype)[0]
    for chunk in chunks:
        first = [max(o, start) for o, (start, _) in zip(chunk.offsets, bounds, strict=True)]
        last = [
            min(o + n, stop) for o, n, (_, stop) in zip(chunk.offsets, sizes, bounds, strict=True)
        ]
        if any(begin >= end for begin, end in zip(first, last, strict=True)):
            continue
        nbytes = math.prod(sizes) * dtype.itemsize
        data = _unpacked(read(chunk.address, chunk.size), chunk.mask, filters, nbytes, where)
        values = np.frombuffer(data, dtype).reshape(sizes)
        inner = tuple(
            slice(a - o, b - o) for a, b, o in zip(first, last, chunk.offsets, strict=True)
        )
        outer = tuple(slice(a - s, b - s) for a, b, (s, _) in zip(first, last, bounds, strict=True))
        out[outer] = values[inner]
    return out


def _unpacked(data: bytes, mask: int, filters: Sequence[Filter], nbytes: int, where: str) -> bytes:
    """A chunk's bytes before its filters; bit i of `mask` says that filter i was left out."""
    for index in reversed(range(len(filters))):
        code, values = filters[index]
        if mask >> index & 1:
            continue
        if code == GZIP:
            data = _inflated(data, nbytes + _CHECKSUM_SIZE * len(filters), where)
        elif code == SHUFFLE:
            data = _unshuffled(data, values[0] if values else 1)
        elif code == CHECKSUM:
            data = _verified(data, where)
        else:
            raise FormatError(
                where,
                found=f"values packed by {NAMES[code]}",
                expected="gzip, shuffle or fletcher32",
                hint="write the values again with another filter, or none (h5repack)",
            )
    if len(data) != nbytes:
        raise CorruptFile(where, found=f"a chunk of {len(data)} bytes", expected=f"{nbytes} bytes")
    return data


def _inflated(data: bytes, limit: int, where: str) -> bytes:
    inflate = zlib.decompressobj()
    try:
        unpacked = inflate.decompress(data, limit)
    except zlib.error as error:
        raise CorruptFile(where, found=f"a chunk that does not unpack: {error}") from error
    if not inflate.eof:
        raise CorruptFile(where, found="a chunk that unpacks to more, or less, than its size")
    return unpacked


def _unshuffled(data: bytes, width: int) -> bytes:
    """First bytes of all elements, second bytes …; what is no whole element stays at the end."""
    import numpy as np

    count = len(data) // width if width else 0
    if width < 2 or count < 2:
        return data
    whole = np.frombuffer(data, np.uint8, count * width).reshape(width, count).T
    return whole.tobytes() + data[count * width :]


def _verified(data: bytes, where: str) -> bytes:
    """The bytes before their Fletcher checksum (of big-endian words of 16 bits)."""
    import numpy as np

    content, stored = data[:-_CHECKSUM_SIZE], data[-_CHECKSUM_SIZE:]
    words = np.frombuffer(content[: len(content) // 2 * 2], ">u2").astype(np.uint64)
    if len(content) % 2:
        words = np.append(words, np.uint64(content[-1] << 8))
    weights = np.arange(len(words), 0, -1, dtype=np.uint64) % np.uint64(65535)
    # Modulo 65535; but its way to fold carries back in never makes a 0 of what is none.
    never = 65535 if words.any() else 0
    low = int(words.sum()) % 65535 or never
    high = int((words * weights % np.uint64(65535)).sum()) % 65535 or never
    if int.from_bytes(stored, "little") != high << 16 | low:
        raise CorruptFile(where, found="a chunk with another checksum")
    return content
