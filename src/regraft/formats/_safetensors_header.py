"""The JSON header of safetensors: names, dtypes, shapes and byte ranges, held to its rules.

Parsed here rather than by its library, which imports numpy and reads the header into its own
objects; the rules that are checked are those of the format's specification.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Literal

from regraft.errors import CorruptFile
from regraft.formats._bytes import Strided
from regraft.tensors import DTYPE_BITS, StoredTensor

# The library's own limit.
MAX_HEADER = 100_000_000
DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16",
    "U32": "uint32", "I32": "int32", "U64": "uint64", "I64": "int64", "F16": "float16",
    "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
METADATA = "__metadata__"
_FIELDS = 3
_MAX_AXES, _MAX_NUMBER, _MAX_VALUES = 64, (1 << 63) - 1, 3_000_000


def length_of(beginning: bytes) -> int:
    """The header's length in bytes, from the first eight of the file."""
    return int.from_bytes(beginning[:8], "little")


def parsed(
    header: bytes, begin: int, end: int, label: str
) -> tuple[list[StoredTensor], dict[str, str]]:
    """The tensors in the order of their bytes, and the metadata.

    The tensors' bytes are those of the file from `begin` to `end`, without gaps. A tensor's `where`
    is the offset of its first byte. **Raises** `CorruptFile` for a header that does not add up.
    """
    entries = _entries(header, label)
    metadata = entries.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise corrupt(label, f"{METADATA} that is not text by name")
    return _listed(entries, begin, end, label), metadata


def place_of(tensor: StoredTensor) -> Strided:
    """Where the bytes of a tensor of a header lie."""
    size = math.prod(tensor.shape) * DTYPE_BITS[tensor.dtype] // 8
    return Strided(tensor.where, size, tensor.where, tensor.shape, None, tensor.dtype)


def _entries(header: bytes, label: str) -> dict[str, Any]:
    if sum(map(header.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        raise corrupt(label, f"a header of more than {_MAX_VALUES} values")
    try:
        text = header.decode()
        entries = json.loads(text)
        if "\\u" in text:
            json.dumps(entries, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise corrupt(label, f"a header that is no JSON: {error}"[:200]) from error
    if not isinstance(entries, dict):
        raise corrupt(label, "a header that is no JSON object")
    _check_unique(text, entries, label)
    return entries


def _check_unique(text: str, entries: dict[str, Any], label: str) -> None:
    """Of two equal keys parsers keep one or the other, so that none is let pass.

    Where every entry's keys are counted once for each entry, no two entries were one; then only
    the metadata is taken apart anew.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise corrupt(label, "two values of one name")
        return dict(pairs)

    decoder = json.JSONDecoder(object_pairs_hook=unique)
    count = len(entries) - (METADATA in entries)
    keys = ('"data_offsets"', '"dtype"', '"shape"')
    marks = re.finditer(rf'"{METADATA}"\s*:\s*', text)
    places = [mark.end() for mark in marks]
    if "\\" in text or len(places) > 1 or any(text.count(key) != count for key in keys):
        places = [len(text) - len(text.lstrip())]
    for place in places:
        decoder.raw_decode(text, place)


def _listed(entries: dict[str, Any], begin: int, end: int, label: str) -> list[StoredTensor]:
    ordered: list[tuple[Any, Any, str, Any, Any]] = []
    try:
        for name, entry in entries.items():
            start, stop = entry["data_offsets"]
            ordered.append((start, stop, name, entry["dtype"], entry["shape"]))
            if len(entry) != _FIELDS:
                raise KeyError("other fields than dtype, shape and data_offsets")
        ordered.sort()
    except (TypeError, KeyError, ValueError) as error:
        raise corrupt(label, f"a header with other entries than tensors: {error}"[:200]) from error
    tensors: list[StoredTensor] = []
    at = 0
    for start, stop, name, kind, shape in ordered:
        dtype = DTYPES.get(kind) if type(kind) is str else None
        if dtype is None or type(shape) is not list or not _counts(start, stop, shape):
            raise CorruptFile(
                f"{label}, tensor {name!r}",
                found=f"dtype {kind!r}, shape {shape}, bytes {start} to {stop}"[:300],
                expected=f"a shape of numbers, and one of {', '.join(DTYPES)}",
            )
        needed = math.prod(shape) * DTYPE_BITS[dtype] // 8
        if start != at or stop - start != needed:
            raise CorruptFile(
                f"{label}, tensor {name!r}",
                found=f"bytes {start} to {stop} for {dtype} of shape {shape}",
                expected=f"{needed} bytes, from {at} on",
            )
        place = begin + start
        tensors.append(StoredTensor((name,), tuple(shape), dtype, place, "", "", _kind(name)))
        at = stop
    if begin + at != end:
        raise corrupt(label, f"{end} bytes", f"{begin + at}")
    return tensors


def _counts(start: Any, stop: Any, shape: list[Any]) -> bool:
    """Whether these are numbers of things, and no more axes than numpy has."""
    if type(start) is not int or type(stop) is not int or len(shape) > _MAX_AXES:
        return False
    for n in shape:  # noqa: SIM110  (a generator takes three times as long, for each tensor)
        if type(n) is not int or not 0 <= n <= _MAX_NUMBER:
            return False
    return True


def _kind(name: str) -> Literal["counter", "weight"]:
    return "counter" if name.endswith("num_batches_tracked") else "weight"


def corrupt(label: str, found: str, expected: str = "a safetensors header") -> CorruptFile:
    return CorruptFile(
        label,
        found=found,
        expected=expected,
        hint="the file is cut off or damaged; get it again",
    )
