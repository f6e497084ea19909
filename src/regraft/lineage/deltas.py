"""Lossless deltas: a tuned file as what it adds to its base, to the bit and as a whole.

A file is its tensors' bytes, each in its place, and the rest: headers, metadata, padding, whatever
else there is. The delta keeps, for each tensor, nothing where the base has the same bytes; else
their XOR with the base's bytes, or the bytes themselves where that is shorter. Either is cut into
blocks of 2²⁰ values, each block's bytes are grouped (all first bytes of its values, then all second
ones …: signs and exponents change seldom) and all goes into one zstd frame, which is kept unless
the plain bytes are shorter. The rest is one zstd frame. The delta is a safetensors file of these
frames, with a listing as JSON in its metadata.

Grouping is what Hershcovitch et al., *ZipNN* (2024), and XOR what Wang et al., *ZipLLM* (2025)
measured for weights of models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
import xxhash

from regraft.errors import CorruptFile, FormatError, ShapeMismatch
from regraft.operations import Reshape, Transpose, infer, run
from regraft.tensors import CODED, Catalogue, Read
from regraft.values import bits, let_go

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

KEY = "regraft.delta"
# Metadata of a delta: the lineage that lay beside the tuned file.
BESIDE = "regraft.delta.lineage"
REST, WHOLE = "rest", "file"
# Files of a ratio to delta and base beyond any weights' are refused.
RATIO, SMALL = 1 << 12, 64 << 20
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
    """The listing of a delta. Hashes are sha256 of whole files; `container` is the base's part.

    `others`: what holds the base to be the same where no tensor of the delta does: a hash of the
    tensors that none was made of, or `file` for the hash of the whole file.
    """

    schema_version: int
    base: str
    base_hash: str
    tuned: str
    tuned_hash: str
    size: int
    container: str = ""
    others: str = ""
    tensors: dict[str, Span] = {}

    @property
    def whole(self) -> bool:
        """Whether the tuned file is kept as one frame, since no delta was shorter."""
        return not self.tensors


def others(spans: Mapping[str, Span], base: Catalogue, read: Read) -> str:
    """One hash of the base's tensors that no span rests on, by name; `""` for none, `file` where
    some are codes, of which only the file itself is the same for sure."""
    held = {span.source or name for name, span in spans.items() if span.base}
    left = [info for name, info in base.items() if name not in held]
    if any(info.dtype in CODED for info in left):
        return "file"
    total = xxhash.xxh3_64()
    for info in left:
        array = read(info.name, None)
        total.update(f"{info.name} {info.dtype} {info.shape} ".encode())
        total.update(bits(array).data)
        let_go(array)
    return total.hexdigest() if left else ""


def encode(delta: Delta) -> dict[str, str]:
    """Metadata entries that hold the listing."""
    return {KEY: msgspec.json.encode(delta).decode()}


def decode(found: Catalogue) -> Delta:
    """The listing of a delta file, held to what its frames can be. **Raises** `FormatError` where
    the file is no delta, `CorruptFile` where it contradicts itself."""
    text = found.metadata.get(KEY)
    if text is None:
        raise FormatError(
            found.label, found="no delta", expected="a file of `regraft delta make`",
            hint="the base comes first: regraft delta apply BASE DELTA",
        )  # fmt: skip
    try:
        delta = msgspec.json.decode(text, type=Delta)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise corrupt(found.label, f"a listing that cannot be read: {error}"[:300]) from error
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
            raise corrupt(found.label, f"tensor {name!r} at {span.start}, {span.size} bytes", at)
        at = span.start + span.size
        frame = found.get(frame_name(name))
        if span.coding != "same":
            expected.add(frame_name(name))
        if span.coding == "raw" and (frame is None or frame.nbytes != span.size):
            raise corrupt(found.label, f"tensor {name!r} without its {span.size} bytes")
        if span.coding in ("same", "xor") and not span.base:
            raise corrupt(found.label, f"tensor {name!r} without the hash of its base")
    if set(found) != expected or any(
        info.dtype != "uint8" or len(info.shape) != 1 for info in found.values()
    ):
        raise corrupt(found.label, "other frames than the listing has")
    if delta.size < at:
        raise corrupt(found.label, f"tensors up to byte {at} of a file of {delta.size}")


def bytes_of(
    read: Read, source: str, ops: tuple[Layout, ...], base: Catalogue
) -> NDArray[np.uint8] | None:
    try:
        infer(ops, (base[source].shape,))
    except ShapeMismatch:
        return None
    array = read(source, None)
    return bits(run(ops, (array,)) if ops else array)


def frame_name(name: str) -> str:
    """Frames of tensors, apart from those of the file."""
    return f"tensor/{name}"


def short_hash(data: NDArray[np.uint8]) -> str:
    return xxhash.xxh3_64_hexdigest(data.data)


def corrupt(label: str, found: str, expected: object = "a delta as it was made") -> CorruptFile:
    return CorruptFile(label, found=found, expected=str(expected), hint="get the delta again")
