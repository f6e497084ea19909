"""The JSON header of safetensors: names, dtypes, shapes and byte ranges, held to its rules."""

from __future__ import annotations

from typing import Any

import msgspec

from regraft.errors import CorruptFile
from regraft.formats._bytes import Strided
from regraft.tensors import stored_bytes

# The library's own limit.
MAX_HEADER = 100_000_000
DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16",
    "U32": "uint32", "I32": "int32", "U64": "uint64", "I64": "int64", "F16": "float16",
    "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def length_of(beginning: bytes) -> int:
    """The header's length in bytes, from the first eight of the file."""
    return int.from_bytes(beginning[:8], "little")


def places(
    header: bytes, begin: int, end: int, label: str
) -> tuple[dict[str, Strided], dict[str, str]]:
    """Where each tensor lies, in the order of the bytes, and the metadata.

    The tensors' bytes are those from `begin` to `end`; all of them belong to one tensor each.
    **Raises** `CorruptFile` for any header that does not add up.
    """
    raw = _decoded(header, label)
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise corrupt(label, "__metadata__ that is not text by name")
    try:
        entries = msgspec.convert(raw, dict[str, _Entry])
    except msgspec.ValidationError as error:
        raise corrupt(label, str(error)) from error
    found: dict[str, Strided] = {}
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            where = f"{label}, tensor {name!r}"
            raise CorruptFile(where, found=f"dtype {entry.dtype!r}", expected=", ".join(DTYPES))
        start, stop = entry.data_offsets
        if start != position or stop < start:
            where = f"{label}, tensor {name!r}"
            raise CorruptFile(
                where, found=f"bytes {start} to {stop}", expected=f"from {position} on"
            )
        place = Strided(begin + start, stop - start, begin + start, entry.shape, None, dtype)
        place.check(f"{label}, tensor {name!r}")
        needed = _nbytes(entry.shape, dtype)
        if needed != stop - start:
            where = f"{label}, tensor {name!r}"
            raise CorruptFile(where, found=f"{stop - start} bytes", expected=f"{needed}")
        found[name] = place
        position = stop
    if begin + position != end:
        raise corrupt(label, f"{end} bytes", f"{begin + position}")
    return found, metadata


def _decoded(header: bytes, label: str) -> dict[str, Any]:
    try:
        # msgspec keeps the last of two equal keys; a count of the entries' fields can tell.
        count = header.count(b'"data_offsets"')
        raw = msgspec.json.decode(header, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise corrupt(label, f"a header that is no JSON object: {error}") from error
    if count > len(raw):
        raise corrupt(label, "two tensors of one name")
    return raw


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    count = 1
    for n in shape:
        count *= n
    return stored_bytes(count, dtype)


def corrupt(label: str, found: str, expected: str = "a safetensors header") -> CorruptFile:
    return CorruptFile(
        label,
        found=found,
        expected=expected,
        hint="the file is cut off or damaged; get it again",
    )
