"""A single numpy array, or a pickled object saved as one (`np.save` of a dict of arrays)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from regraft.errors import CorruptFile
from regraft.formats import Sample
from regraft.formats._bytes import Mapped
from regraft.formats._npy_header import MAGIC, header, place_of
from regraft.formats._numpy_pickles import PickledArrays
from regraft.formats._room import Room
from regraft.tensors import Stored, StoredTensor

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

EXTRA = ""
SUFFIXES: tuple[str, ...] = ()


class _OneArray(Stored):
    format = "npy"

    def __init__(self, path: Path, tensor: StoredTensor) -> None:
        self._file = Mapped(path)
        self.tensors = (tensor,)

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        return self._file.array(tensor.where, slices)

    def close(self) -> None:
        self._file.close()


def sniff(sample: Sample) -> bool:
    return sample.head.startswith(MAGIC)


def open(path: Path) -> Stored:
    """Lists the array, or the arrays in a pickled object, whose code is not run."""
    with path.open("rb") as file:
        head = header(file.read(1 << 16), path.name)
    if head.objects:
        data = path.read_bytes()
        room = Room(len(data))
        return PickledArrays("npy", data, path.name, room, begin=head.length)
    where = path.name
    if head.dtype is None:
        raise CorruptFile(where, found="an array that is not numeric", expected="numbers")
    place = place_of(head, head.length, path.stat().st_size - head.length, where)
    return _OneArray(path, StoredTensor((path.stem,), head.shape, head.dtype, place))
