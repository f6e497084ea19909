"""Arrays inside pickles (object arrays, dicts of arrays), read from records of calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regraft.errors import CorruptFile
from regraft.formats._pickle import Global, Machine, Opaque, walk
from regraft.tensors import DTYPE_BITS, Stored, StoredTensor, numpy_dtype

if TYPE_CHECKING:
    import numpy as np

    from regraft.tensors import Array, Slices

_KINDS = {"f": "float", "i": "int", "u": "uint", "c": "complex", "b": "bool"}


class PickledArrays(Stored):
    """Every numpy array in a pickled object, under its path of keys."""

    separator = "/"

    def __init__(self, format: str, data: bytes, label: str, prefix: tuple[str, ...] = ()) -> None:
        self.format = format
        self._label = label
        self._found: list[StoredTensor] = []
        self._left_out: list[str] = []
        machine = Machine(data, label)
        root = machine.load()
        walk(root, label, lambda path, value: self._visit((*prefix, *path), value))
        self.tensors = tuple(self._found)
        if self._left_out:
            names = ", ".join(self._left_out[:3])
            self.notes = (f"{len(self._left_out)} arrays of no numeric dtype left out: {names}",)

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        array = tensor.where
        return array if slices is None else array[slices]

    def _visit(self, path: tuple[str, ...], value: Any) -> Any:
        if not isinstance(value, Opaque):
            return None
        if value.path.endswith("._reconstruct") and isinstance(value.state, tuple):
            if "numpy" not in value.path:
                return None
            return self._reconstructed(path, value.state)
        if value.path.endswith("numeric._frombuffer"):
            data, dtype, shape, order = _first_four(value.args)
            self._add(path, data, _dtype(dtype), shape, order == "F")
            return None
        if value.path.endswith("multiarray.scalar") and len(value.args) == 2:
            self._add(path, value.args[1], _dtype(value.args[0]), (), False)
            return None
        if value.path.endswith("_reconstruct_array") or "jax" in value.path:
            return list(value.args)
        if value.entries or value.items:
            return value.entries or value.items
        if isinstance(value.state, dict):
            return value.state
        if len(value.args) == 1 and isinstance(value.args[0], dict):
            return value.args[0]
        return None

    def _reconstructed(self, path: tuple[str, ...], state: tuple[Any, ...]) -> Any:
        """The state of an ndarray: (version, shape, dtype, is Fortran, bytes or list)."""
        shape, dtype, fortran, data = _first_four(state[1:])
        if isinstance(data, list):  # an object array: its elements are what it holds
            return data[0] if shape == () and len(data) == 1 else data
        self._add(path, data, _dtype(dtype), shape, bool(fortran))
        return None

    def _add(
        self,
        path: tuple[str, ...],
        data: Any,
        dtype: tuple[str, bool] | None,
        shape: Any,
        fortran: bool,
    ) -> None:
        import numpy as np

        name = "/".join(path)
        where = f"{self._label}, array {name!r}"
        if isinstance(data, str):
            data = data.encode("latin1")
        if dtype is None:
            self._left_out.append(name)
            return
        width = DTYPE_BITS[dtype[0]] // 8
        whole = isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)
        if not (whole and isinstance(data, bytes)) or len(data) != _product(shape) * width:
            raise CorruptFile(where, found=f"shape {shape} of {dtype[0]}, other bytes than that")
        array = np.frombuffer(data, numpy_dtype(dtype[0]))
        if dtype[1]:
            array = array.byteswap()
        array = array.reshape(shape, order="F" if fortran else "C")
        array.flags.writeable = False
        self._found.append(StoredTensor(path, tuple(shape), dtype[0], array))


def _first_four(values: Any) -> tuple[Any, Any, Any, Any]:
    """Four values, `None` where the pickle has fewer."""
    padded = [*values, None, None, None, None]
    return padded[0], padded[1], padded[2], padded[3]


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def _dtype(record: Any) -> tuple[str, bool] | None:
    """Name and whether big-endian of a pickled dtype, `None` where it is not numeric."""
    if isinstance(record, Global) and record.module == "ml_dtypes":
        return (record.name, False) if record.name in DTYPE_BITS else None
    if not isinstance(record, Opaque) or not record.args:
        return None
    code = record.args[0]
    if isinstance(code, Global):
        return _dtype(code)
    if not isinstance(code, str) or code[:1] not in _KINDS or not code[1:].isdigit():
        return None
    kind, width = code[0], int(code[1:])
    name = "bool" if kind == "b" and width == 1 else f"{_KINDS[kind]}{width * 8}"
    state = record.state
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
    return (name, order in (">", b">")) if name in DTYPE_BITS else None


def dtype_name(dtype: np.dtype[Any]) -> str | None:
    """Our name of a numpy dtype, `None` where it is not numeric."""
    return dtype.name if dtype.name in DTYPE_BITS else None
