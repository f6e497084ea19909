"""safetensors: eight bytes of length, a JSON header, then the tensors, without gaps.

Parsed here rather than by its library, which imports numpy and reads the header into its own
objects; the rules that are checked are those of the format's specification.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.atomic import replacing
from regraft.errors import CorruptFile, FormatError
from regraft.formats import Sample, TensorSource
from regraft.formats._bytes import Mapped, Strided
from regraft.tensors import DTYPE_BITS, Order, Stored, StoredTensor

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

EXTRA = ""
SUFFIXES = (".safetensors",)

# The library's own limit.
_MAX_HEADER = 100_000_000
# Up to this size metadata is searched for names that come twice; larger headers would cost.
_CHECKED = 1 << 22
_MAX_AXES, _MAX_NUMBER, _MAX_VALUES = 64, (1 << 63) - 1, 3_000_000
_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16",
    "U32": "uint32", "I32": "int32", "U64": "uint64", "I64": "int64", "F16": "float16",
    "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class _Safetensors(Stored):
    format = "safetensors"

    def __init__(self, path: Path, tensors: list[StoredTensor], metadata: dict[str, str]) -> None:
        self._file = Mapped(path)
        self.tensors = tuple(tensors)
        self.metadata = metadata
        self.order: Order = "sorted" if _is_sorted(tensors) else "stored"

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        start, size = tensor.where, math.prod(tensor.shape) * DTYPE_BITS[tensor.dtype] // 8
        place = Strided(start, size, start, tensor.shape, None, tensor.dtype)
        return self._file.array(place, slices)

    def close(self) -> None:
        self._file.close()


def sniff(sample: Sample) -> bool:
    length = int.from_bytes(sample.head[:8], "little")
    return sample.head[8:9] == b"{" and 2 <= length <= _MAX_HEADER


def open(path: Path) -> Stored:
    """Lists the tensors. **Raises** `CorruptFile` for any header that does not add up."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > size:
            raise _corrupt(path, f"a header of {length} bytes in a file of {size}")
        header = file.read(length)
    entries = _entries(path, header)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _corrupt(path, "__metadata__ that is not text by name")
    tensors = _listed(path, entries, 8 + length, size)
    return _Safetensors(path, tensors, metadata)


def _entries(path: Path, header: bytes) -> dict[str, Any]:
    if sum(map(header.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        raise _corrupt(path, f"a header of more than {_MAX_VALUES} values")
    try:
        text = header.decode()
        entries = json.loads(text)
        if "\\u" in text:
            json.dumps(entries, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"a header that is no JSON: {error}"[:200]) from error
    if not isinstance(entries, dict):
        raise _corrupt(path, "a header that is no JSON object")
    count = len(entries) - ("__metadata__" in entries)
    keys = (b'"data_offsets"', b'"dtype"', b'"shape"')
    odd = b"\\" in header or any(header.count(key) != count for key in keys)
    if odd or ("__metadata__" in entries and len(header) < _CHECKED):
        _check_unique(path, text)  # of two equal keys parsers keep one or the other
    return entries


def _check_unique(path: Path, text: str) -> None:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise _corrupt(path, "two values of one name")
        return dict(pairs)

    json.loads(text, object_pairs_hook=unique)


def _offsets(entry: dict[str, Any]) -> tuple[Any, Any]:
    if len(entry) != 3:
        raise KeyError("other fields than dtype, shape and data_offsets")
    start, stop = entry["data_offsets"]
    return start, stop


def _listed(path: Path, entries: dict[str, Any], begin: int, size: int) -> list[StoredTensor]:
    """The tensors in the order of their bytes, which fill the file from `begin` on without gaps."""
    try:
        ordered = sorted(
            (start, stop, name, entry["dtype"], entry["shape"])
            for name, entry in entries.items()
            for start, stop in (_offsets(entry),)
        )
    except (TypeError, KeyError, ValueError) as error:
        raise _corrupt(path, f"a header with other entries than tensors: {error}"[:200]) from error
    tensors: list[StoredTensor] = []
    end = 0
    for start, stop, name, kind, shape in ordered:
        dtype = _DTYPES.get(kind) if type(kind) is str else None
        if dtype is None or type(shape) is not list or not _counts(start, stop, shape):
            raise CorruptFile(
                f"{path.name}, tensor {name!r}",
                found=f"dtype {kind!r}, shape {shape}, bytes {start} to {stop}"[:300],
                expected=f"a shape of numbers, and one of {', '.join(_DTYPES)}",
            )
        needed = math.prod(shape) * DTYPE_BITS[dtype] // 8
        if start != end or stop - start != needed:
            raise CorruptFile(
                f"{path.name}, tensor {name!r}",
                found=f"bytes {start} to {stop} for {dtype} of shape {shape}",
                expected=f"{needed} bytes, from {end} on",
            )
        place = begin + start
        tensors.append(StoredTensor((name,), tuple(shape), dtype, place, "", "", _kind(name)))
        end = stop
    if begin + end != size:
        raise _corrupt(path, f"{size} bytes", f"{begin + end}")
    return tensors


def _counts(start: Any, stop: Any, shape: list[Any]) -> bool:
    """Whether these are numbers of things, and no more axes than numpy has."""
    if type(start) is not int or type(stop) is not int or len(shape) > _MAX_AXES:
        return False
    for n in shape:  # noqa: SIM110  (a generator takes three times as long, for each tensor)
        if type(n) is not int or not 0 <= n <= _MAX_NUMBER:
            return False
    return True


def _kind(name: str) -> Any:
    return "counter" if name.endswith("num_batches_tracked") else "weight"


def _is_sorted(tensors: list[StoredTensor]) -> bool:
    """Whether names are sorted inside each dtype, as the library's writer leaves them."""
    last: dict[str, str] = {}
    for tensor in tensors:
        name = tensor.path[0]
        if last.get(tensor.dtype, "") > name:
            return False
        last[tensor.dtype] = name
    return True


def _corrupt(path: Path, found: str, expected: str = "a safetensors header") -> CorruptFile:
    return CorruptFile(
        path.name,
        found=found,
        expected=expected,
        hint="the file is cut off or damaged; get it again",
    )


def write(path: Path, tensors: TensorSource, metadata: Mapping[str, str]) -> None:
    """Writes header and tensors in the given order; metadata is kept."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    listed = list(tensors)
    end = 0
    for info, _ in listed:
        if info.dtype not in _NAMES:
            raise FormatError(
                f"{path.name}, tensor {info.name!r}",
                found=f"dtype {info.dtype}",
                expected=f"one that safetensors knows: {', '.join(_NAMES)}",
                hint="convert it first",
            )
        offsets = [end, end + info.nbytes]
        end = offsets[1]
        header[info.name] = {
            "dtype": _NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": offsets,
        }
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with replacing(path) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for _, get in listed:
            array = get()
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
