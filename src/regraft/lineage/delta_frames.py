"""The frames of deltas: bytes grouped by their place in a value, in zstd, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

import numpy as np
import zstandard

from regraft.lineage.deltas import corrupt
from regraft.values import bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from regraft.tensors import Array

# Values of a block; bytes that are read at a time; memory that reading a frame may need.
_LEVEL, _BLOCK, READ, _WINDOW = 3, 1 << 20, 1 << 22, 1 << 27


def blocks(size: int, width: int) -> Iterator[tuple[int, int]]:
    step = _BLOCK * width
    for begin in range(0, size, step):
        yield begin, min(step, size - begin)


def grouped(
    own: NDArray[np.uint8], theirs: NDArray[np.uint8] | None, width: int
) -> Iterator[bytes]:
    for begin, count in blocks(own.size, width):
        block = own[begin : begin + count]
        if theirs is not None:
            block = block ^ theirs[begin : begin + count]
        yield block.reshape(-1, width).T.tobytes()


def ungrouped(block: bytes, width: int) -> NDArray[np.uint8]:
    """In memory of one's own, whatever the shape: a transposed view may be the bytes themselves."""
    return np.frombuffer(block, np.uint8).reshape(width, -1).T.flatten()


def compressed(parts: Iterator[bytes], scratch: IO[bytes]) -> None:
    compressor = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
    for part in parts:
        scratch.write(compressor.compress(part))
    scratch.write(compressor.flush())


class Frame:
    """A zstd frame that is read piece by piece, and holds no more than it is asked for."""

    def __init__(self, array: Array, label: str) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        self._reader = decompressor.stream_reader(bits(array).data, read_size=READ)
        self._label = label

    def take(self, size: int) -> Iterator[bytes]:
        while size > 0:
            data = self._read(min(READ, size))
            yield data
            size -= len(data)

    def exactly(self, size: int) -> bytes:
        return b"".join(self.take(size))

    def end(self) -> None:
        """**Raises** `CorruptFile` where more follows."""
        if self._read(1, more=False):
            raise corrupt(self._label, "a frame of more bytes than its tensor has")

    def _read(self, size: int, *, more: bool = True) -> bytes:
        try:
            data = self._reader.read(size)
        except zstandard.ZstdError as error:
            raise corrupt(self._label, f"a frame that cannot be read: {error}") from error
        if more and not data:
            raise corrupt(self._label, "a frame that ends too early")
        return data
