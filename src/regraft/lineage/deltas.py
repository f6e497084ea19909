"""Lossless deltas: a tuned file as what it adds to its base, to the bit and as a whole.

A file is its tensors' bytes, each in its place, and the rest: headers, metadata, padding, whatever
else there is. The delta keeps, for each tensor, nothing where the base has the same bytes; else
their XOR with the base's bytes, or the bytes themselves where that is shorter. Either is cut into
blocks of 2²⁰ values, each block's bytes are grouped (all first bytes of its values, then all second
ones …: signs and exponents change seldom) and all goes into one zstd frame, which is kept unless
the plain bytes are shorter. The rest is one zstd frame. The delta is a safetensors file of these
frames, with a listing as JSON in its metadata.

Grouping is what Hershcovitch et al., *ZipNN* (2024), and XOR what Su et al., *ZipLLM* (2025)
measured for weights of models.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, NamedTuple

import msgspec
import numpy as np
import xxhash
import zstandard

from regraft.errors import CorruptFile, FormatError, ShapeMismatch, StalePlan
from regraft.operations import Reshape, Transpose, infer, run
from regraft.plans import Plan
from regraft.tensors import CODED, Catalogue, Read, TensorInfo
from regraft.transfer import Progress
from regraft.values import bits, let_go, mapped

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from regraft.tensors import Array

KEY = "regraft.delta"
REST, WHOLE = "rest", "file"
_LEVEL, _BLOCK, _READ, _HEAD = 3, 1 << 20, 1 << 22, 1 << 10
# Tensors that were sought in the file and not found, one after another: it compresses them.
_MISSES = 3
# A frame may need so much memory to be read; files of a ratio beyond any weights' are refused.
_WINDOW, _RATIO, _SMALL = 1 << 27, 1 << 12, 64 << 20
# XOR that saves less than this is held against the plain bytes, grouped.
_DOUBTFUL = 0.9
Layout = Transpose | Reshape


class Span(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a tensor's bytes lie in the tuned file, and how they are kept.

    - `coding`: `same` (the base's), `xor` (with the base's), `grouped` (as they are), both as a
      frame; `raw` (as they are, no frame).
    - `width`: bytes of one value. `source`: the base's tensor, `ops` its layout.
    - `base`: xxh3-64 of the base's bytes in that layout.
    """

    start: int
    size: int
    coding: Literal["same", "xor", "grouped", "raw"]
    width: int = 4
    source: str = ""
    ops: tuple[Layout, ...] = ()
    base: str = ""


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """The listing of a delta. Hashes are sha256 of whole files; `container` is the base's part."""

    schema_version: int
    base: str
    base_hash: str
    tuned: str
    tuned_hash: str
    size: int
    container: str = ""
    tensors: dict[str, Span] = {}

    @property
    def whole(self) -> bool:
        """Whether the tuned file is kept as one frame, since no delta was shorter."""
        return not self.tensors


class Kept(NamedTuple):
    """What a delta file is made of: its listing and, by name, where its frames lie in a scratch
    file."""

    delta: Delta
    frames: dict[str, tuple[int, int]]

    @property
    def size(self) -> int:
        """About what the file takes: frames, listing, and an entry of a header for each frame."""
        entries = sum(len(name) + 70 for name in self.frames)
        return (
            sum(n for _, n in self.frames.values()) + len(msgspec.json.encode(self.delta)) + entries
        )


def make(
    plan: Plan,
    base: Catalogue,
    read: Read,
    tuned: Catalogue,
    after: Read,
    path: Path,
    hashes: tuple[str, str],
    scratch: IO[bytes],
    progress: Progress | None = None,
) -> Kept:
    """The delta of the file at `path`; its frames are written to `scratch`.

    **Arguments:** `plan`: which tensor of the base is which of the tuned file. `hashes`: sha256 of
    both files.
    """
    size = path.stat().st_size
    if base.nbytes * _RATIO + _SMALL < size:
        raise FormatError(path.name, found=f"{size} bytes beside a base of {base.nbytes}",
                          expected="a file tuned from this base")  # fmt: skip
    frames: dict[str, tuple[int, int]] = {}
    spans: dict[str, Span] = {}
    for info, start, array in _in_place(tuned, after, path):
        source, ops = _source(plan, info, base)
        own = bits(array)
        theirs = None if source is None else _bytes_of(read, source, ops, base)
        if theirs is not None and theirs.size != own.size:
            theirs = None
        begin = scratch.tell()
        coding = _kept(own, theirs, array.dtype.itemsize, scratch)
        if coding != "same":
            frames[_frame(info.name)] = (begin, scratch.tell() - begin)
        used = theirs is not None and coding in ("same", "xor")
        spans[info.name] = Span(
            start, own.size, coding, array.dtype.itemsize,
            source if used and source and source != info.name else "", ops if used else (),
            _short(theirs) if used and theirs is not None else "",
        )  # fmt: skip
        let_go(array)
        if progress:
            progress(info.name, info.nbytes)
    begin = scratch.tell()
    _compressed(_rest(path, spans.values(), size), scratch)
    frames[REST] = (begin, scratch.tell() - begin)
    delta = Delta(1, base.label, hashes[0], tuned.label, hashes[1], size, base.container, spans)
    kept = Kept(delta, frames)
    return kept if spans and kept.size <= size else _shorter(kept, path, scratch)


def _shorter(kept: Kept, path: Path, scratch: IO[bytes]) -> Kept:
    """The file as one frame, where that is shorter than the delta."""
    begin = scratch.tell()
    _compressed(_read_file(path), scratch)
    whole = Kept(
        msgspec.structs.replace(kept.delta, tensors={}), {WHOLE: (begin, scratch.tell() - begin)}
    )
    return whole if not kept.delta.tensors or whole.size < kept.size else kept


def encode(delta: Delta) -> dict[str, str]:
    """Metadata entries that hold the listing."""
    return {KEY: msgspec.json.encode(delta).decode()}


def decode(found: Catalogue) -> Delta:
    """The listing of a delta file, held to what its frames can be. **Raises** `FormatError` where
    the file is no delta, `CorruptFile` where it contradicts itself."""
    text = found.metadata.get(KEY)
    if text is None:
        raise FormatError(found.label, found="no delta", expected="a file of `regraft delta make`")
    try:
        delta = msgspec.json.decode(text, type=Delta)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _corrupt(found.label, f"a listing that cannot be read: {error}"[:300]) from error
    if delta.schema_version != 1:
        raise FormatError(
            found.label, found=f"schema_version {delta.schema_version}", expected="1",
            hint="a newer version of regraft made it",
        )  # fmt: skip
    _check(delta, found)
    return delta


def _check(delta: Delta, found: Catalogue) -> None:
    expected = {WHOLE} if delta.whole else {REST}
    at = 0
    for name, span in sorted(delta.tensors.items(), key=lambda item: item[1].start):
        if span.start < at or span.size < 1 or not 1 <= span.width <= 16 or span.size % span.width:
            raise _corrupt(found.label, f"tensor {name!r} at {span.start}, {span.size} bytes", at)
        at = span.start + span.size
        frame = found.get(_frame(name))
        if span.coding != "same":
            expected.add(_frame(name))
        if span.coding == "raw" and (frame is None or frame.nbytes != span.size):
            raise _corrupt(found.label, f"tensor {name!r} without its {span.size} bytes")
        if span.coding in ("same", "xor") and not span.base:
            raise _corrupt(found.label, f"tensor {name!r} without the hash of its base")
    if set(found) != expected or any(
        info.dtype != "uint8" or len(info.shape) != 1 for info in found.values()
    ):
        raise _corrupt(found.label, "other frames than the listing has")
    if delta.size < at:
        raise _corrupt(found.label, f"tensors up to byte {at} of a file of {delta.size}")


def rebuild(
    delta: Delta,
    frames: Catalogue,
    read_frame: Read,
    base: Catalogue,
    read: Read,
    out: IO[bytes],
    progress: Progress | None = None,
) -> None:
    """Writes the tuned file. **Raises** `StalePlan` for a base that is another file, `CorruptFile`
    where what comes out is not the file that went in; the caller throws away what was written."""
    held = frames.nbytes + base.nbytes
    if delta.size > held * _RATIO + _SMALL:
        raise _corrupt(frames.label, f"a file of {delta.size} bytes from {held}")
    total = hashlib.sha256()

    def write(data: bytes | memoryview) -> None:
        total.update(data)
        out.write(data)

    spans = sorted(delta.tensors.items(), key=lambda item: item[1].start)
    rest = _Frame(read_frame(WHOLE if delta.whole else REST, None), frames.label)
    at = 0
    for name, span in spans:
        for piece in rest.take(span.start - at):
            write(piece)
        theirs = _theirs(delta, name, span, base, read)
        if span.coding == "same":
            assert theirs is not None
            _write_blocks(theirs, write)
            let_go(theirs)
        elif span.coding == "raw":
            _write_blocks(bits(read_frame(_frame(name), None)), write)
        else:
            frame = _Frame(read_frame(_frame(name), None), frames.label)
            for begin, count in _blocks(span.size, span.width):
                block = _ungrouped(frame.exactly(count), span.width)
                if theirs is not None:
                    block ^= theirs[begin : begin + count]
                write(block.data)
            frame.end()
        at = span.start + span.size
        if progress:
            progress(name, span.size)
    for piece in rest.take(delta.size - at):
        write(piece)
    rest.end()
    if total.hexdigest() != delta.tuned_hash:
        raise _corrupt(frames.label, f"sha256 {total.hexdigest()[:12]} of what it makes",
                       delta.tuned_hash[:12])  # fmt: skip


def _theirs(
    delta: Delta, name: str, span: Span, base: Catalogue, read: Read
) -> NDArray[np.uint8] | None:
    """The base's bytes for a tensor, held to their hash."""
    if span.coding not in ("same", "xor"):
        return None
    source = span.source or name
    theirs = None
    if source in base and base[source].nbytes == span.size:
        theirs = _bytes_of(read, source, span.ops, base)
    if theirs is None or theirs.size != span.size or _short(theirs) != span.base:
        raise StalePlan(
            base.label,
            found=f"other values of {source!r}" if source in base else f"no tensor {source!r}",
            expected=f"{delta.base}, sha256 {delta.base_hash}, or the same tensors in another file",
            hint="a delta can be applied to the base that it was made from only",
        )
    return theirs


def _in_place(tuned: Catalogue, after: Read, path: Path) -> Iterator[tuple[TensorInfo, int, Array]]:
    """Tensors whose bytes lie in one piece in the file, in the order of their bytes; the others,
    and those that share bytes with one before, are part of the rest."""
    places: list[tuple[int, int, TensorInfo]] = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = misses = 0
        for info in tuned.values():
            if info.dtype in CODED or not info.size:
                continue
            array = after(info.name, None)
            own, place = bits(array), mapped(array)
            start = place.start if place is not None else -1
            head = own[:_HEAD].tobytes()
            if start < 0 or data[start : start + len(head)] != head:
                if misses == _MISSES or own.size < _HEAD:
                    continue
                start = _found(data, own, at)
                misses = misses + 1 if start < 0 else 0
            if start >= 0:
                places.append((start, own.size, info))
                at = start + own.size
            let_go(array)
        let_go(np.frombuffer(data, np.uint8))
    at = 0
    for start, size, info in sorted(places, key=lambda place: place[:2]):
        if start >= at:
            yield info, start, after(info.name, None)
            at = start + size


def _found(data: mmap.mmap, own: NDArray[np.uint8], at: int) -> int:
    """Where the very bytes lie in the file from `at` on, where a reader made a copy; -1 for
    nowhere."""
    start = data.find(own[:_HEAD].tobytes(), at)
    if start < 0 or start + own.size > len(data):
        return -1
    there = np.frombuffer(data, np.uint8, own.size, start)
    return start if np.array_equal(there, own) else -1


def _source(plan: Plan, info: TensorInfo, base: Catalogue) -> tuple[str | None, tuple[Layout, ...]]:
    """The base's tensor that becomes this one by nothing but a change of layout."""
    graft = plan.grafts.get(info.name)
    if graft is None or not graft.written or len(graft.sources) != 1:
        return None, ()
    (source,) = graft.sources
    ops = tuple(op for op in graft.ops if isinstance(op, (Transpose, Reshape)))
    known = source in base and base[source].dtype == info.dtype and len(ops) == len(graft.ops)
    return (source, ops) if known else (None, ())


def _bytes_of(
    read: Read, source: str, ops: tuple[Layout, ...], base: Catalogue
) -> NDArray[np.uint8] | None:
    try:
        infer(ops, (base[source].shape,))
    except ShapeMismatch:
        return None
    array = read(source, None)
    return bits(run(ops, (array,)) if ops else array)


def _kept(
    own: NDArray[np.uint8], theirs: NDArray[np.uint8] | None, width: int, scratch: IO[bytes]
) -> Literal["same", "xor", "grouped", "raw"]:
    """Writes a tensor's frame, the shortest of those that may be."""
    if theirs is not None and np.array_equal(own, theirs):
        return "same"
    begin = scratch.tell()
    best: Literal["xor", "grouped", "raw"] = "raw"
    size = own.size
    if theirs is not None:
        _compressed(_grouped(own, theirs, width), scratch)
        length = scratch.tell() - begin
        if length < size:
            best, size = "xor", length
    if size > _DOUBTFUL * own.size:
        middle = scratch.tell()
        _compressed(_grouped(own, None, width), scratch)
        length = scratch.tell() - middle
        if length < size:
            best, size = "grouped", length
            _moved_down(scratch, middle, begin, length)
    if best == "raw":
        scratch.seek(begin)
        scratch.write(own.data)
    scratch.seek(begin + size)
    scratch.truncate()
    return best


def _moved_down(scratch: IO[bytes], start: int, to: int, size: int) -> None:
    done = 0
    while done < size:
        scratch.seek(start + done)
        data = scratch.read(min(_READ, size - done))
        scratch.seek(to + done)
        scratch.write(data)
        done += len(data)


def _blocks(size: int, width: int) -> Iterator[tuple[int, int]]:
    step = _BLOCK * width
    for begin in range(0, size, step):
        yield begin, min(step, size - begin)


def _grouped(
    own: NDArray[np.uint8], theirs: NDArray[np.uint8] | None, width: int
) -> Iterator[bytes]:
    for begin, count in _blocks(own.size, width):
        block = own[begin : begin + count]
        if theirs is not None:
            block = block ^ theirs[begin : begin + count]
        yield block.reshape(-1, width).T.tobytes()


def _ungrouped(block: bytes, width: int) -> NDArray[np.uint8]:
    planes = np.frombuffer(block, np.uint8).reshape(width, -1)
    return planes.T.reshape(-1).copy() if width == 1 else planes.T.reshape(-1)


def _compressed(parts: Iterator[bytes], scratch: IO[bytes]) -> None:
    compressor = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
    for part in parts:
        scratch.write(compressor.compress(part))
    scratch.write(compressor.flush())


def _rest(path: Path, spans: Iterable[Span], size: int) -> Iterator[bytes]:
    at = 0
    with path.open("rb") as file:
        for span in (*sorted(spans, key=lambda span: span.start), None):
            stop = size if span is None else span.start
            while at < stop:
                file.seek(at)
                data = file.read(min(_READ, stop - at))
                if not data:
                    raise CorruptFile(path.name, found=f"{at} bytes", expected=f"{size}")
                yield data
                at += len(data)
            at = stop if span is None else span.start + span.size


def _read_file(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(_READ):
            yield data


class _Frame:
    """A zstd frame that is read piece by piece, and holds no more than it is asked for."""

    def __init__(self, array: Array, label: str) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        self._reader = decompressor.stream_reader(bits(array).data, read_size=_READ)
        self._label = label

    def take(self, size: int) -> Iterator[bytes]:
        while size > 0:
            data = self._read(min(_READ, size))
            yield data
            size -= len(data)

    def exactly(self, size: int) -> bytes:
        return b"".join(self.take(size))

    def end(self) -> None:
        """**Raises** `CorruptFile` where more follows."""
        if self._read(1, more=False):
            raise _corrupt(self._label, "a frame of more bytes than its tensor has")

    def _read(self, size: int, *, more: bool = True) -> bytes:
        try:
            data = self._reader.read(size)
        except zstandard.ZstdError as error:
            raise _corrupt(self._label, f"a frame that cannot be read: {error}") from error
        if more and not data:
            raise _corrupt(self._label, "a frame that ends too early")
        return data


def _write_blocks(data: NDArray[np.uint8], write: Callable[[memoryview], None]) -> None:
    for begin in range(0, data.size, _READ):
        write(data[begin : begin + _READ].data)


def _frame(name: str) -> str:
    """Frames of tensors, apart from those of the file."""
    return f"tensor/{name}"


def _short(data: NDArray[np.uint8]) -> str:
    return xxhash.xxh3_64_hexdigest(data.data)


def _corrupt(label: str, found: str, expected: object = "a delta as it was made") -> CorruptFile:
    return CorruptFile(label, found=found, expected=str(expected), hint="get the delta again")
