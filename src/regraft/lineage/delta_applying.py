"""Applying a delta: the tuned file written again, and held to its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

from regraft.errors import StalePlan
from regraft.lineage.delta_frames import READ, Frame, blocks, ungrouped
from regraft.lineage.deltas import (
    RATIO,
    REST,
    SMALL,
    WHOLE,
    Delta,
    Span,
    bytes_of,
    corrupt,
    frame_name,
    others,
    short_hash,
)
from regraft.tensors import Catalogue, Read
from regraft.transfer import Progress
from regraft.values import bits, let_go

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def rebuild(
    delta: Delta,
    frames: Catalogue,
    read_frame: Read,
    base: Catalogue,
    read: Read,
    content: Callable[[], str],
    out: IO[bytes],
    progress: Progress | None = None,
) -> None:
    """Writes the tuned file.

    **Arguments:** `content`: gives the sha256 of the base, where it is needed.

    **Raises** `StalePlan` for a base that is another file, `CorruptFile` where what comes out is
    not the file that went in; the caller throws away what was written.
    """
    held = frames.nbytes + base.nbytes
    if delta.size > held * RATIO + SMALL:
        raise corrupt(frames.label, f"a file of {delta.size} bytes from {held}")
    _check_others(delta, base, read, content)
    total = hashlib.sha256()

    def write(data: bytes | memoryview) -> None:
        total.update(data)
        out.write(data)

    spans = sorted(delta.tensors.items(), key=lambda item: item[1].start)
    rest = Frame(read_frame(WHOLE if delta.whole else REST, None), frames.label)
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
            _write_blocks(bits(read_frame(frame_name(name), None)), write)
        else:
            frame = Frame(read_frame(frame_name(name), None), frames.label)
            for begin, count in blocks(span.size, span.width):
                block = ungrouped(frame.exactly(count), span.width)
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
        raise corrupt(frames.label, f"sha256 {total.hexdigest()[:12]} of what it makes",
                       delta.tuned_hash[:12])  # fmt: skip


def _check_others(delta: Delta, base: Catalogue, read: Read, content: Callable[[], str]) -> None:
    """Holds the base to be the right one by what the delta does not need of it, too."""
    if delta.others == "file":
        same = content() == delta.base_hash
    else:
        same = not delta.others or others(delta.tensors, base, read) == delta.others
    if not same:
        raise StalePlan(
            base.label,
            found="other tensors than the delta was made from",
            expected=f"{delta.base}, sha256 {delta.base_hash}, or the same tensors in another file",
            hint="a delta can be applied to the base that it was made from only",
        )


def _theirs(
    delta: Delta, name: str, span: Span, base: Catalogue, read: Read
) -> NDArray[np.uint8] | None:
    """The base's bytes for a tensor, held to their hash."""
    if span.coding not in ("same", "xor"):
        return None
    source = span.source or name
    theirs = None
    if source in base and base[source].nbytes == span.size:
        theirs = bytes_of(read, source, span.ops, base)
    if theirs is None or theirs.size != span.size or short_hash(theirs) != span.base:
        raise StalePlan(
            base.label,
            found=f"other values of {source!r}" if source in base else f"no tensor {source!r}",
            expected=f"{delta.base}, sha256 {delta.base_hash}, or the same tensors in another file",
            hint="a delta can be applied to the base that it was made from only",
        )
    return theirs


def _write_blocks(data: NDArray[np.uint8], write: Callable[[memoryview], None]) -> None:
    for begin in range(0, data.size, READ):
        write(data[begin : begin + READ].data)
