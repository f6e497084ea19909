"""safetensors: eight bytes of length, a JSON header, then the tensors, without gaps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.atomic import replacing
from regraft.errors import FormatError
from regraft.formats import Sample, TensorSource
from regraft.formats._bytes import Mapped
from regraft.formats._safetensors_header import (
    DTYPES,
    MAX_HEADER,
    METADATA,
    corrupt,
    length_of,
    parsed,
    place_of,
)
from regraft.tensors import Order, Stored, StoredTensor

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

EXTRA = ""
SUFFIXES = (".safetensors",)

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class _Safetensors(Stored):
    format = "safetensors"

    def __init__(self, path: Path, tensors: list[StoredTensor], metadata: dict[str, str]) -> None:
        self._file = Mapped(path)
        self.tensors = tuple(tensors)
        self.metadata = metadata
        self.order: Order = "sorted" if _is_sorted(tensors) else "stored"

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        return self._file.array(place_of(tensor), slices)

    def close(self) -> None:
        self._file.close()


def sniff(sample: Sample) -> bool:
    return sample.head[8:9] == b"{" and 2 <= length_of(sample.head) <= MAX_HEADER


def open(path: Path) -> Stored:
    """Lists the tensors. **Raises** `CorruptFile` for any header that does not add up."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = length_of(file.read(8))
        if 8 + length > size:
            raise corrupt(path.name, f"a header of {length} bytes in a file of {size}")
        header = file.read(length)
    return _Safetensors(path, *parsed(header, 8 + length, size, path.name))


def _is_sorted(tensors: list[StoredTensor]) -> bool:
    """Whether names are sorted inside each dtype, as the library's writer leaves them."""
    last: dict[str, str] = {}
    for tensor in tensors:
        name = tensor.path[0]
        if last.get(tensor.dtype, "") > name:
            return False
        last[tensor.dtype] = name
    return True


def write(path: Path, tensors: TensorSource, metadata: Mapping[str, str]) -> None:
    """Writes header and tensors in the given order; metadata is kept."""
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
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
