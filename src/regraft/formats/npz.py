"""numpy's .npz: a zip of .npy members, stored or deflated, object arrays among them.

Metadata is written as a member `__metadata__.npy` that holds UTF-8 JSON as bytes: `np.load`
lists it like any array, without pickle.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from regraft.atomic import replacing
from regraft.errors import CorruptFile, FormatError
from regraft.formats import Sample, TensorSource, _zip
from regraft.formats._bytes import Mapped, Strided
from regraft.formats._npy_header import Header, header, length, place_of
from regraft.formats._numpy_pickles import PickledArrays
from regraft.formats._room import Room
from regraft.tensors import Stored, StoredTensor, numpy_dtype

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

EXTRA = ""
SUFFIXES = (".npz",)
NESTS = True

_METADATA = "__metadata__"
_FIRST, _HEADER = 1 << 8, 1 << 16


class _Packed(NamedTuple):
    """A deflated member: it is inflated whole when it is read."""

    member: _zip.Member
    head: Header


class _Npz(Stored):
    format = "npz"
    separator = "/"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = Mapped(path)
        self._inner: dict[tuple[str, ...], PickledArrays] = {}
        self._stored: dict[str, _zip.Member] = {}  # those whose checksum was not looked at yet
        found: list[StoredTensor] = []
        notes: list[str] = []
        # Pickled objects and metadata are held in memory.
        self._room = Room(self._file.size)
        for member in _zip.located(path, _zip.members(path).values()):
            name = member.name
            key = name.removesuffix(".npy")
            where = f"{path.name}, member {name!r}"
            head = header(_beginning(path, member), where)
            if key == _METADATA:
                data = self._held(member)
                self._room.take(len(data), where)
                self.metadata = _metadata(data[head.length :], where)
            elif head.objects:
                data = self._held(member)
                inner = PickledArrays("npz", data, where, self._room, (key,), head.length)
                self._inner |= dict.fromkeys((t.path for t in inner.tensors), inner)
                found += inner.tensors
                notes += inner.notes
            elif head.dtype is None:
                notes.append(f"{key} left out: it is not numeric")
            else:
                size = member.size - head.length
                if member.stored:
                    place = place_of(head, member.offset + head.length, size, where)
                    self._stored[key] = member
                else:
                    place_of(head, head.length, size, where)
                    place = _Packed(member, head)
                found.append(StoredTensor((key,), head.shape, head.dtype, place))
        self.tensors = tuple(found)
        self.notes = tuple(notes)

    def _held(self, member: _zip.Member) -> bytes:
        """A member's bytes, to be held in memory."""
        if member.size > self._room.memory:
            raise self._room.spent(f"{self._path.name}, member {member.name!r}")
        return _zip.read(self._path, member, member.size)

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        if tensor.path in self._inner:
            return self._inner[tensor.path].read(tensor, slices)
        if isinstance(tensor.where, Strided):
            member = self._stored.pop(tensor.path[0], None) if slices is None else None
            if member is not None:
                _zip.verify(self._path, member)
            return self._file.array(tensor.where, slices)
        import numpy as np

        packed: _Packed = tensor.where
        data = _zip.read(self._path, packed.member, packed.member.size)
        dtype = numpy_dtype(tensor.dtype)
        array = np.frombuffer(data, dtype, math.prod(tensor.shape), packed.head.length)
        array = array.byteswap() if packed.head.big_endian else array
        array = array.reshape(tensor.shape, order="F" if packed.head.fortran else "C")
        return array if slices is None else array[slices]

    def close(self) -> None:
        self._file.close()


def _beginning(path: Path, member: _zip.Member) -> bytes:
    """What holds a member's header, which is seldom longer than what is read first."""
    data = _zip.beginning(path, member, _FIRST)
    needed = length(data)
    return data if needed <= len(data) else _zip.beginning(path, member, min(needed, _HEADER))


def _metadata(data: bytes, where: str) -> dict[str, str]:
    try:
        return {str(key): str(value) for key, value in json.loads(data).items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise CorruptFile(where, found=f"metadata: {error}") from error


def sniff(sample: Sample) -> bool:
    names = sample.zip_names
    return bool(names) and all(name.endswith(".npy") for name in names)


def open(path: Path) -> Stored:
    """Lists the arrays. **Raises** `CorruptFile` and `UnsafeFile`."""
    return _Npz(path)


def write(path: Path, tensors: TensorSource, metadata: Mapping[str, str]) -> None:
    """Writes stored (not deflated) members, one array at a time.

    **Raises** `FormatError` for dtypes that numpy itself cannot name, such as bfloat16.
    """
    import numpy as np

    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for info, get in tensors:
            if numpy_dtype(info.dtype).kind not in "biufc" or info.name == _METADATA:
                raise FormatError(
                    f"{path.name}, tensor {info.name!r}",
                    found=f"dtype {info.dtype}",
                    expected="a dtype of numpy's own",
                    hint="write .safetensors, or cast to float32 first",
                )
            with archive.open(f"{info.name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(get()), allow_pickle=False)
        if metadata:
            data = np.frombuffer(json.dumps(dict(metadata)).encode(), np.uint8)
            with archive.open(f"{_METADATA}.npy", "w") as member:
                np.lib.format.write_array(member, data, allow_pickle=False)
