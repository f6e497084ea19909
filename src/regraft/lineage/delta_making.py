"""Making a delta: each tensor's bytes held against the base's, and the rest of the file."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, NamedTuple

import msgspec
import numpy as np

from regraft.errors import CorruptFile, FormatError
from regraft.lineage.delta_frames import READ, compressed, grouped
from regraft.lineage.deltas import (
    RATIO,
    REST,
    SMALL,
    WHOLE,
    Delta,
    Layout,
    Span,
    bytes_of,
    frame_name,
    others,
    short_hash,
)
from regraft.operations import Reshape, Transpose
from regraft.plans import Plan
from regraft.tensors import CODED, Catalogue, Read, TensorInfo
from regraft.transfer import Progress
from regraft.values import bits, let_go, mapped

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from regraft.tensors import Array

# Bytes by which a tensor is sought in a file.
_HEAD = 1 << 10
# Tensors that were sought in the file and not found, one after another: it compresses them.
_MISSES = 3
# XOR that saves less than this is held against the plain bytes, grouped.
_DOUBTFUL = 0.9


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
    if base.nbytes * RATIO + SMALL < size:
        raise FormatError(path.name, found=f"{size} bytes beside a base of {base.nbytes}",
                          expected="a file tuned from this base")  # fmt: skip
    frames: dict[str, tuple[int, int]] = {}
    spans: dict[str, Span] = {}
    for info, start, array in _in_place(tuned, after, path):
        source, ops = _source(plan, info, base)
        own = bits(array)
        theirs = None if source is None else bytes_of(read, source, ops, base)
        if theirs is not None and theirs.size != own.size:
            theirs = None
        begin = scratch.tell()
        coding = _kept(own, theirs, array.dtype.itemsize, scratch)
        if coding != "same":
            frames[frame_name(info.name)] = (begin, scratch.tell() - begin)
        used = theirs is not None and coding in ("same", "xor")
        spans[info.name] = Span(
            start, own.size, coding, array.dtype.itemsize,
            source if used and source and source != info.name else "", ops if used else (),
            short_hash(theirs) if used and theirs is not None else "",
        )  # fmt: skip
        let_go(array)
        if progress:
            progress(info.name, info.nbytes)
    begin = scratch.tell()
    compressed(_rest(path, spans.values(), size), scratch)
    frames[REST] = (begin, scratch.tell() - begin)
    delta = Delta(
        1, base.label, hashes[0], tuned.label, hashes[1], size, base.container, tensors=spans
    )
    kept = Kept(delta, frames)
    if not spans or kept.size > size:
        kept = _shorter(kept, path, scratch)
    held = others(kept.delta.tensors, base, read)
    return Kept(msgspec.structs.replace(kept.delta, others=held), kept.frames)


def _shorter(kept: Kept, path: Path, scratch: IO[bytes]) -> Kept:
    """The file as one frame, where that is shorter than the delta."""
    begin = scratch.tell()
    compressed(_read_file(path), scratch)
    whole = Kept(
        msgspec.structs.replace(kept.delta, tensors={}), {WHOLE: (begin, scratch.tell() - begin)}
    )
    return whole if not kept.delta.tensors or whole.size < kept.size else kept


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
    at = 0
    for start, size, info in sorted(places, key=lambda place: place[:2]):
        if start >= at:
            yield info, start, after(info.name, None)
            at = start + size


def _found(data: mmap.mmap, own: NDArray[np.uint8], at: int) -> int:
    """Where the very bytes lie in the file, where a reader made a copy; -1 for nowhere. They are
    sought from `at` on, and before it: PyTorch's old files are in the order of addresses."""
    head = own[:_HEAD].tobytes()
    start = data.find(head, at)
    start = data.find(head, 0, at + len(head)) if start < 0 else start
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
        compressed(grouped(own, theirs, width), scratch)
        length = scratch.tell() - begin
        if length < size:
            best, size = "xor", length
    if size > _DOUBTFUL * own.size:
        middle = scratch.tell()
        compressed(grouped(own, None, width), scratch)
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
        data = scratch.read(min(READ, size - done))
        scratch.seek(to + done)
        scratch.write(data)
        done += len(data)


def _rest(path: Path, spans: Iterable[Span], size: int) -> Iterator[bytes]:
    at = 0
    with path.open("rb") as file:
        for span in (*sorted(spans, key=lambda span: span.start), None):
            stop = size if span is None else span.start
            while at < stop:
                file.seek(at)
                data = file.read(min(READ, stop - at))
                if not data:
                    raise CorruptFile(path.name, found=f"{at} bytes", expected=f"{size}")
                yield data
                at += len(data)
            at = stop if span is None else span.start + span.size


def _read_file(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(READ):
            yield data
