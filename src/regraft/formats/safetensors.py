"""safetensors: eight bytes of length, a JSON header, then the tensors, without gaps.

Parsed here rather than by its library, which imports numpy and reads the header into its own
objects; the rules that are checked are those of the format's specification.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

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
_MAX_ENTRY = 1 << 16
_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16",
    "U32": "uint32", "I32": "int32", "U64": "uint64", "I64": "int64", "F16": "float16",
    "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Safetensors(Stored):
    format = "safetensors"

    def __init__(self, path: Path, tensors: list[StoredTensor], metadata: dict[str, str]) -> None:
        self._file = Mapped(path)
        self.tensors = tuple(tensors)
        self.metadata = metadata
        self.order: Order = "sorted" if _is_sorted(tensors) else "stored"

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        return self._file.array(tensor.where, slices)

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
    entries, metadata = _header(path, header)
    begin = 8 + length
    tensors: list[StoredTensor] = []
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        where = f"{path.name}, tensor {name!r}"
        dtype = _DTYPES.get(entry.dtype)
        if dtype is None:
            raise CorruptFile(where, found=f"dtype {entry.dtype!r}", expected=", ".join(_DTYPES))
        start, stop = entry.data_offsets
        if start != end or stop < start:
            raise CorruptFile(where, found=f"bytes {start} to {stop}", expected=f"from {end} on")
        place = Strided(begin + start, stop - start, begin + start, entry.shape, None, dtype)
        place.check(where)
        tensor = StoredTensor((name,), entry.shape, dtype, place, kind=_kind(name))
        needed = _nbytes(entry.shape, dtype)
        if needed != stop - start:
            raise CorruptFile(where, found=f"{stop - start} bytes", expected=f"{needed}")
        tensors.append(tensor)
        end = stop
    if begin + end != size:
        raise _corrupt(path, f"{size} bytes", f"{begin + end}")
    return _Safetensors(path, tensors, metadata)


def _header(path: Path, header: bytes) -> tuple[dict[str, _Entry], dict[str, str]]:
    """Tensors and metadata. Each entry is decoded by itself, into no more than a header needs."""
    metadata: dict[str, str] = {}
    entries: dict[str, _Entry] = {}
    decode = msgspec.json.Decoder(_Entry).decode
    name = ""
    try:
        for name, part in msgspec.json.decode(header, type=dict[str, msgspec.Raw]).items():
            if name == "__metadata__":
                metadata = msgspec.json.decode(part, type=dict[str, str])
            elif len(bytes(part)) > _MAX_ENTRY:
                raise CorruptFile(
                    f"{path.name}, tensor {name!r}",
                    found=f"{len(bytes(part))} bytes that describe it",
                    expected=f"at most {_MAX_ENTRY}",
                )
            else:
                entries[name] = decode(part)
        # One parser keeps the first of two equal keys, the next the last.
        json.loads(header, object_pairs_hook=_unique)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _corrupt(path, f"at {name[:80]!r}: {error}") from error
    return entries, metadata


def _unique(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("two values of one name")


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    count = 1
    for n in shape:
        count *= n
    return count * DTYPE_BITS[dtype] // 8


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
    encoded = msgspec.json.encode(header)
    encoded += b" " * (-len(encoded) % 8)
    with replacing(path) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for _, get in listed:
            array = get()
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
