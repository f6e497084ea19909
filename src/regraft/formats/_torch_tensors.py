"""PyTorch's pickled objects as tensors: state dicts, nested dicts, whole modules, TorchScript.

The pickle machine hands over records of calls; here they are read as what PyTorch would have
built: views of storages, with their bounds checked before anything is allocated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from regraft.errors import CorruptFile
from regraft.formats._bytes import Mapped, Strided, contiguous
from regraft.formats._pickle import Global, Opaque, Reference, walk
from regraft.tensors import DTYPE_BITS, Stored, StoredTensor

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# How legacy files begin: PROTO, then LONG1 with the magic number.
LEGACY_HEADS = tuple(
    bytes([0x80, protocol, 0x8A, 10]) + LEGACY_MAGIC.to_bytes(10, "little")
    for protocol in (2, 3, 4, 5)
)
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "UntypedStorage": "uint8",
}
STORAGE_OF = {dtype: name for name, dtype in _STORAGES.items() if name != "UntypedStorage"}
_DTYPES = {
    "double": "float64", "float": "float32", "half": "float16", "long": "int64", "int": "int32",
    "short": "int16", "cfloat": "complex64", "cdouble": "complex128",
}  # fmt: skip
_METADATA_ENTRIES, _METADATA_LENGTH = 200, 1000

# Storage key and its number of elements → start and size in bytes.
Locate = Callable[[str, int, int], tuple[int, int]]


def storage_of(reference: Any, label: str) -> tuple[str, str, int]:
    """Key, dtype and number of elements that a persistent id names."""
    pid = reference.pid if isinstance(reference, Reference) else None
    match pid:
        case ("storage", Global(name=name), str(key), _, int(count), *_) if name in _STORAGES:
            if count >= 0:
                return key, _STORAGES[name], count
        case _:
            pass
    raise CorruptFile(label, found=f"storage {str(pid)[:100]}", expected="a storage of PyTorch's")


class TorchStored(Stored):
    """Tensors of one pickled object over a mapped file."""

    framework = "torch"

    def __init__(
        self, format: str, root: Any, file: Mapped, locate: Locate, big_endian: bool = False
    ) -> None:
        self.format = format
        self._file = file
        self._label = file.path.name
        self._locate = locate
        self._big_endian = big_endian
        self._classes: dict[tuple[str, ...], str] = {}
        self._found: list[StoredTensor] = []
        self._keys: dict[tuple[object, ...], list[tuple[str, ...]]] = defaultdict(list)
        self._left_out: dict[str, list[str]] = defaultdict(list)
        self._texts: dict[str, str] = {}
        self.metadata = self._texts
        walk(root, self._label, self._visit)
        self.tensors = tuple(self._found)
        self.ties = tuple(tuple(group) for group in self._keys.values() if len(group) > 1)
        self.notes = tuple(
            f"{len(names)} left out, e.g. {names[0]}: {why}"
            for why, names in self._left_out.items()
        )

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        return self._file.array(tensor.where, slices)

    def close(self) -> None:
        self._file.close()

    def _visit(self, path: tuple[str, ...], value: Any) -> Any:
        if isinstance(value, Opaque):
            return self._record(path, value)
        if isinstance(value, (str, int, float)) and len(self._texts) < _METADATA_ENTRIES:
            text = str(value) if not isinstance(value, int) or value.bit_length() < 99 else ""
            if text and len(text) <= _METADATA_LENGTH and not path[0].startswith("optim"):
                self._texts[".".join(path)] = text
        return None

    def _record(self, path: tuple[str, ...], value: Opaque) -> Any:
        name = value.path.rpartition(".")[2]
        if name.startswith("_rebuild"):
            self._rebuilt(path, name, value.args)
            return None
        if isinstance(value.state, dict) and "_parameters" in value.state:
            return self._module(path, value)
        if value.entries or value.items:
            return value.entries or value.items
        if isinstance(value.state, dict):  # TorchScript's objects, and others with attributes
            self._classes[path] = name
            return value.state
        if len(value.args) == 1 and isinstance(value.args[0], dict):  # a wrapped dict
            return value.args[0]
        return None

    def _module(self, path: tuple[str, ...], value: Opaque) -> dict[str, Any]:
        """A pickled nn.Module: its tensors and its children under their names."""
        self._classes[path] = value.path.rpartition(".")[2]
        skipped = value.state.get("_non_persistent_buffers_set") or ()
        inner: dict[str, Any] = {}
        for part in ("_parameters", "_buffers", "_modules"):
            held = value.state.get(part)
            if isinstance(held, dict):
                inner |= {str(k): v for k, v in held.items() if k not in skipped}
        return inner

    def _rebuilt(self, path: tuple[str, ...], function: str, args: Any) -> None:
        """A call of one of torch._utils' functions that make tensors."""
        if function in ("_rebuild_parameter", "_rebuild_parameter_with_state") and args:
            if isinstance(args[0], Opaque):
                self._record(path, args[0])
        elif function == "_rebuild_from_type_v2" and len(args) > 2:
            if isinstance(args[0], Global) and isinstance(args[2], tuple):
                self._rebuilt(path, args[0].name, args[2])
        elif function in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            dtype = args[6] if function.endswith("v3") and len(args) > 6 else None
            self._tensor(path, args, dtype)
        else:
            self._left_out[f"{function[9:]} is not a dense tensor"].append(".".join(path))

    def _tensor(self, path: tuple[str, ...], args: Any, dtype: Any) -> None:
        where = f"{self._label}, tensor {'.'.join(path)!r}"
        match args:
            case (Reference() as reference, int(first), tuple(shape), tuple(strides), *_):
                pass
            case _:
                raise CorruptFile(where, found="a tensor without storage, shape or strides")
        if not all(isinstance(n, int) for n in (*shape, *strides)):
            raise CorruptFile(where, found=f"shape {shape}, strides {strides}")
        key, stored, count = storage_of(reference, where)
        width = DTYPE_BITS[stored] // 8
        if isinstance(dtype, Global):
            stored = _DTYPES.get(dtype.name, dtype.name)
        if stored not in DTYPE_BITS:
            self._left_out[f"dtype {stored} is not known"].append(".".join(path))
            return
        start, size = self._locate(key, count, width)
        offset = start + first * (DTYPE_BITS[stored] // 8)
        dense = strides == contiguous(shape)
        place = Strided(
            start, size, offset, shape, None if dense else strides, stored, self._big_endian
        )
        place.check(where)
        if size and 0 not in shape:
            self._keys[key, first, shape, strides, stored].append(path)
        self._found.append(
            StoredTensor(
                path,
                shape,
                stored,
                place,
                module=self._classes.get(path[:-1], ""),
                kind=_kind(path[-1] if path else ""),
            )
        )


def _kind(name: str) -> Literal["weight", "counter", "constant"]:
    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return "counter"
    return "constant" if leaf == "position_ids" else "weight"
