"""Reading what ONNX' TensorProtos describe: from the mapped model and from files beside it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from regraft.errors import CorruptFile, FormatError, MissingShard
from regraft.formats import _packed
from regraft.formats._beside import inside
from regraft.formats._bytes import Mapped, Strided
from regraft.formats._onnx_tensors import External, Sparse, Tensor, Typed
from regraft.formats._protobuf import Message, Span
from regraft.tensors import DTYPE_BITS, stored_bytes

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

# A dense copy may be so much larger than what a sparse tensor stores, and so large anyway.
_MAX_SPREAD, _SMALL = 1024, 1 << 20


class Files:
    """The model's file and those that it names, mapped as they are asked for."""

    def __init__(self, path: Path, message: Message) -> None:
        self._path = path
        self._message = message
        self._own = Mapped(path)
        self._others: dict[str, Mapped] = {}

    def check(self, tensors: list[Tensor]) -> None:
        """Holds external tensors against their files.

        **Raises** `MissingShard` with all files that are missing, `CorruptFile`, `UnsafeFile`.
        """
        missing: dict[str, None] = {}
        for tensor in tensors:
            if isinstance(tensor.place, External):
                file = self._other(tensor.place.location)
                if file is None:
                    missing[tensor.place.location] = None
                elif tensor.place.offset + tensor.place.length > file.size:
                    raise CorruptFile(
                        f"{self._path.name}, tensor {tensor.name!r}",
                        found=f"{file.size} bytes in {tensor.place.location}",
                        expected=f"{tensor.place.length} from {tensor.place.offset} on",
                        hint="the file is cut off or of another model; get it again",
                    )
        if missing:
            raise MissingShard(
                str(self._path),
                found=f"{len(missing)} missing files of external data",
                expected="every file that the model names, in its folder",
                hint="get the missing files",
                problems=missing,
            )

    def _other(self, location: str) -> Mapped | None:
        if location not in self._others:
            path = inside(self._path, location)
            try:
                if not path.is_file():
                    return None
            except OSError:  # a name that no file can have
                return None
            self._others[location] = Mapped(path)
        return self._others[location]

    @property
    def others(self) -> tuple[str, ...]:
        """Names of the files of external data that were looked at."""
        return tuple(self._others)

    def read(self, tensor: Tensor, slices: Slices | None = None) -> Array:
        """The values or a part of them. **Raises** `CorruptFile`, `FormatError`."""
        place = tensor.place
        if isinstance(place, Sparse):
            whole = self._dense(tensor, place)
        elif isinstance(place, Typed):
            whole = self._typed(tensor, place)
        elif DTYPE_BITS[tensor.dtype] < 8:
            raw = self._raw(place, (stored_bytes(math.prod(tensor.shape), tensor.dtype),), "uint8")
            whole = _packed.unpacked(raw, math.prod(tensor.shape), tensor.dtype)
            whole = whole.reshape(tensor.shape)
        else:
            return self._raw(place, tensor.shape, tensor.dtype, slices)
        return whole if slices is None else whole[slices]

    def _raw(
        self,
        place: Span | External,
        shape: tuple[int, ...],
        dtype: str,
        slices: Slices | None = None,
    ) -> Array:
        if isinstance(place, External):
            file = self._other(place.location)
            if file is None:
                raise MissingShard(str(self._path), found=f"no {place.location}")
            start, size = place.offset, place.length
        else:
            file, start, size = self._own, place.start, place.size
        return file.array(Strided(start, size, start, shape, None, dtype), slices)

    def _typed(self, tensor: Tensor, place: Typed) -> Array:
        data, count = self._message.data, math.prod(tensor.shape)
        if place.element:
            numbers = _packed.fixed_width(data, place.fields, place.element)
            return numbers.view(tensor.dtype).reshape(tensor.shape)
        where = f"{self._path.name}, tensor {tensor.name!r}"
        numbers = _packed.varints(data, place.fields, where)
        if DTYPE_BITS[tensor.dtype] < 8:
            flat = _packed.unpacked(numbers.astype("uint8"), count, tensor.dtype)
        else:
            flat = _packed.reinterpreted(numbers, tensor.dtype, where)
        return flat.reshape(tensor.shape)

    def _dense(self, tensor: Tensor, place: Sparse) -> Array:
        import numpy as np

        where = f"{self._path.name}, tensor {tensor.name!r}"
        stored = stored_bytes(math.prod(place.values.shape), tensor.dtype)
        size = math.prod(tensor.shape)
        if size * DTYPE_BITS[tensor.dtype] // 8 > max(stored * _MAX_SPREAD, _SMALL):
            raise FormatError(
                where,
                found=f"shape {tensor.shape} of which {stored} bytes are stored",
                expected="a sparse tensor that may be read as a whole",
            )
        values = self.read(place.values)
        places = self.read(place.indices).astype(np.int64, copy=False)
        limits = np.array([size] if places.ndim < 2 else tensor.shape)
        if bool((places < 0).any()) or bool((places.reshape(len(values), -1) >= limits).any()):
            raise CorruptFile(where, found="a value outside the shape", expected=f"{tensor.shape}")
        flat = places if places.ndim < 2 else np.ravel_multi_index(tuple(places.T), tensor.shape)
        whole = np.zeros(size, values.dtype)
        whole[flat] = values
        return whole.reshape(tensor.shape)

    def close(self) -> None:
        for file in (self._own, *self._others.values()):
            file.close()
