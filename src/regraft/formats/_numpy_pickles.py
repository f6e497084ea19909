"""Arrays inside pickles (object arrays, dicts of arrays), read from records of calls."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from regraft.errors import CorruptFile
from regraft.formats._pickle import Machine
from regraft.formats._pickle_records import Blob, Global, Opaque
from regraft.formats._pickle_walk import walk
from regraft.formats._room import LISTED, Room
from regraft.tensors import DTYPE_BITS, Stored, StoredTensor, numpy_dtype

if TYPE_CHECKING:
    import numpy as np

    from regraft.tensors import Array, Slices

_WIDTHS = ("1", "2", "4", "8", "16")
_KINDS = {"f": "float", "i": "int", "u": "uint", "c": "complex", "b": "bool"}


class HeldArray(NamedTuple):
    """An array whose bytes are in the pickle: as bytes, where they are or taken out, or as the text
    that Python 2 made of it."""

    data: bytes | Blob | str
    shape: tuple[int, ...]
    dtype: str
    big_endian: bool
    fortran: bool

    def read(self, file: Any, slices: Slices | None, where: str) -> Array:
        """The values, or the part under `slices`, read-only."""
        import numpy as np

        dtype, data = numpy_dtype(self.dtype), self.data
        if isinstance(data, Blob):
            array = np.frombuffer(data.data, dtype, len(data) // dtype.itemsize, data.start)
        else:
            array = np.frombuffer(data.encode("ascii") if isinstance(data, str) else data, dtype)
        array = array.byteswap() if self.big_endian else array
        array = array.reshape(self.shape, order="F" if self.fortran else "C")
        array.flags.writeable = False
        return array if slices is None else array[slices]


def held(value: Opaque, where: str) -> HeldArray | list[Any] | str | None:
    """What a record of a call is that made an array: its bytes; an object array's elements; why
    neither. `None` where it is no array. **Raises** `CorruptFile` where it does not add up."""
    if value.path.endswith("._reconstruct") and isinstance(value.state, tuple):
        if "numpy" not in value.path:
            return None
        # The state of an ndarray: (version, shape, dtype, is Fortran, bytes or list).
        shape, dtype, fortran, data = _first_four(value.state[1:])
        if isinstance(data, list):
            return data
        return _held(where, data, _dtype(dtype), shape, bool(fortran))
    if value.path.endswith("numeric._frombuffer"):
        data, dtype, shape, order = _first_four(value.args)
        return _held(where, data, _dtype(dtype), shape, order == "F")
    if value.path.endswith("multiarray.scalar") and len(value.args) == 2:
        return _held(where, value.args[1], _dtype(value.args[0]), (), False)
    return None


def _held(
    where: str, data: Any, dtype: tuple[str, bool] | None, shape: Any, fortran: bool
) -> HeldArray | str:
    if dtype is None:
        return "an array of no numeric dtype"
    whole = isinstance(shape, tuple) and all(type(n) is int and 0 <= n < 1 << 62 for n in shape)
    if not whole or not isinstance(data, (bytes, Blob, str)) or len(shape) > 64:
        raise CorruptFile(where, found="an array without shape or bytes")
    needed = math.prod(shape) * DTYPE_BITS[dtype[0]] // 8
    if isinstance(data, str) and not data.isascii():
        raise CorruptFile(where, found="text in place of bytes")
    if len(data) != needed or math.prod(max(1, n) for n in shape) >= 1 << 60:
        raise CorruptFile(
            where,
            found=f"{len(data)} bytes",
            expected=f"{needed}, for shape {shape} of {dtype[0]}",
        )
    return HeldArray(data, shape, dtype[0], dtype[1], fortran)


class PickledArrays(Stored):
    """Every numpy array in a pickled object, under its path of keys."""

    separator = "/"

    def __init__(
        self,
        format: str,
        data: bytes,
        label: str,
        room: Room,
        prefix: tuple[str, ...] = (),
        begin: int = 0,
    ) -> None:
        self.format = format
        self._label = label
        self._room = room
        self._found: list[StoredTensor] = []
        self._left_out: list[str] = []
        machine = Machine(data, label, room=room)
        machine.position = begin
        root = machine.load()
        if machine.position != len(data):
            raise CorruptFile(
                f"{label}, offset {machine.position}",
                found=f"{len(data) - machine.position} bytes behind the pickle",
                expected="its end",
            )
        walk(root, label, lambda path, value: self._visit((*prefix, *path), value), len(data))
        self.tensors = tuple(self._found)
        if self._left_out:
            names = ", ".join(self._left_out[:3])
            self.notes = (f"{len(self._left_out)} arrays of no numeric dtype left out: {names}",)

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        return tensor.where.read(None, slices, f"{self._label}, array {'/'.join(tensor.path)!r}")

    def _visit(self, path: tuple[str, ...], value: Any) -> Any:
        if not isinstance(value, Opaque):
            return None
        name = "/".join(path)
        self._room.take(LISTED, f"{self._label}, arrays")
        array = held(value, f"{self._label}, array {name!r}")
        if isinstance(array, HeldArray):
            self._found.append(StoredTensor(path, array.shape, array.dtype, array))
            return None
        if isinstance(array, str):
            self._left_out.append(name)
            return None
        if array is not None:
            state = value.state
            return array[0] if state[1] == () and len(array) == 1 else array
        if value.path.endswith("_reconstruct_array") or "jax" in value.path:
            return value.args
        if value.entries or value.items:
            return value.entries or value.items
        if isinstance(value.state, dict):
            return value.state
        if len(value.args) == 1 and isinstance(value.args[0], dict):
            return value.args[0]
        return None


def _first_four(values: Any) -> tuple[Any, Any, Any, Any]:
    """Four values, `None` where the pickle has fewer."""
    padded = [*values, None, None, None, None]
    return padded[0], padded[1], padded[2], padded[3]


def _dtype(record: Any) -> tuple[str, bool] | None:
    """Name and whether big-endian of a pickled dtype, `None` where it is not numeric."""
    if isinstance(record, Global) and record.module == "ml_dtypes":
        return (record.name, False) if record.name in DTYPE_BITS else None
    if not isinstance(record, Opaque) or not record.args:
        return None
    code = record.args[0]
    if isinstance(code, Global):
        return _dtype(code)
    if not isinstance(code, str) or code[:1] not in _KINDS or code[1:] not in _WIDTHS:
        return None
    kind, width = code[0], int(code[1:])
    name = "bool" if kind == "b" and width == 1 else f"{_KINDS[kind]}{width * 8}"
    state = record.state
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
    return (name, order in (">", b">")) if name in DTYPE_BITS else None


def dtype_name(dtype: np.dtype[Any]) -> str | None:
    """Our name of a numpy dtype, `None` where it is not numeric."""
    return dtype.name if dtype.name in DTYPE_BITS else None
