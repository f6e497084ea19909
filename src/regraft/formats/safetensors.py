"""safetensors: eight bytes of length, a JSON header, then the tensors, without gaps.

Parsed here rather than by its library, which imports numpy and reads the header into its own
objects; the rules that are checked are those of the format's specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from regraft.atomic import replacing
from regraft.errors import FormatError
from regraft.formats import Sample, TensorSource
from regraft.formats._bytes import Mapped
from regraft.formats._safetensors_header import DTYPES, MAX_HEADER, corrupt, length_of, places
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
        return self._file.array(tensor.where, slices)

    def close(self) -> None:
        self._file.close()


def sniff(sample: Sample) -> bool:
    return sample.head[8:9] == b"{" and 2 <= length_of(sample.head) <= MAX_HEADER


def open(path: Path) -> Stored:
    """Lists the tensors. **Raises** `CorruptFile` for any header that does not add up."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = 8 + length_of(file.read(8))
        if begin > size:
            raise corrupt(path.name, f"a header of {begin - 8} bytes in a file of {size}")
        header = file.read(begin - 8)
    found, metadata = places(header, begin, size, path.name)
    tensors = [
        StoredTensor((name,), place.shape, place.dtype, place, kind=_kind(name))
        for name, place in found.items()
    ]
    return _Safetensors(path, tensors, metadata)


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
