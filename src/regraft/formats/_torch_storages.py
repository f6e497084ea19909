"""PyTorch's storages, as pickles name them, and the dtypes of the tensors over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from regraft.errors import CorruptFile
from regraft.formats._pickle_records import Global, Reference
from regraft.tensors import DTYPE_BITS

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# How legacy files begin: PROTO, then LONG1 with the magic number.
LEGACY_HEADS = tuple(
    bytes([0x80, protocol, 0x8A, 10]) + LEGACY_MAGIC.to_bytes(10, "little")
    for protocol in (2, 3, 4, 5)
)
# The dtype of a class of storages.
STORAGES = {
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
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "uint8",
}
STORAGE_OF = {
    dtype: name
    for name, dtype in STORAGES.items()
    if dtype in DTYPE_BITS and name != "UntypedStorage"
}
# Integers under a quantized dtype, as they are stored.
INTEGERS = {
    "qint8": "int8",
    "quint8": "uint8",
    "qint32": "int32",
    "quint4x2": "uint8",
    "quint2x4": "uint8",
}
# Other names of PyTorch's own for the same dtype.
_ALIASES = {
    "double": "float64", "float": "float32", "half": "float16", "long": "int64", "int": "int32",
    "short": "int16", "cfloat": "complex64", "cdouble": "complex128", "chalf": "complex32",
}  # fmt: skip
# Dtypes without arithmetic, of which PyTorch keeps each element (or several) in whole bytes.
_BITS = {
    **{f"{sign}int{width}": "uint8" for sign in ("", "u") for width in range(1, 8)},
    **dict.fromkeys(("bits1x8", "bits2x4", "bits4x2", "bits8", "float4_e2m1fn_x2"), "uint8"),
    "bits16": "uint16",
}
_NO_NUMPY = {"complex32": "neither numpy nor ml_dtypes has complex numbers of 32 bits"}

_MAX_COUNT = 1 << 62
_KEYS = frozenset({str, int})
_WIDTHS = {name: DTYPE_BITS[INTEGERS.get(name, name)] // 8 for name in (*DTYPE_BITS, *INTEGERS)}

# Storage key and bytes that tensors expect of it → start and size of its bytes in the file.
Locate = Callable[[str, int], tuple[int, int]]


class Storage(NamedTuple):
    """A run of bytes of the file that tensors share: elements of what its class says."""

    key: str
    dtype: str
    elements: int
    start: int
    size: int


class Storages:
    """The storages of one pickle: what each persistent id names, located and held to its size."""

    def __init__(self, label: str, locate: Locate, big_endian: bool = False) -> None:
        self.label = label
        self.big_endian = big_endian
        self._locate = locate
        self._known: dict[str, Storage] = {}

    def of(self, reference: Reference) -> Storage:
        """**Raises** `CorruptFile` where the id names none, or the same one differently."""
        key, dtype, count, view = named(reference.pid, self.label)
        storage = self._known.get(key)
        if storage is None:
            start, size = self._locate(key, count * _WIDTHS[dtype])
            self._known[key] = storage = Storage(key, dtype, count, start, size)
        elif storage.dtype != dtype or storage.elements != count:
            raise CorruptFile(
                f"{self.label}, storage {key[:100]!r}",
                found=f"{count} elements of {dtype}",
                expected=f"{storage.elements} of {storage.dtype}, as where it was named before",
            )
        return storage if view is None else self._view(storage, *view)

    def _view(self, storage: Storage, first: int, count: int) -> Storage:
        element = width(storage.dtype)
        if (first + count) * element > storage.size:
            raise CorruptFile(
                f"{self.label}, storage {storage.key[:100]!r}",
                found=f"a view of {count} elements from {first} on",
                expected=f"elements inside its {storage.size} bytes",
            )
        start = storage.start + first * element
        return Storage(storage.key, storage.dtype, count, start, count * element)


def named(pid: Any, label: str) -> tuple[str, str, int, tuple[int, int] | None]:
    """Key, dtype and number of elements that a persistent id names; and, in old files, first
    element and number of elements of a view of it. **Raises** `CorruptFile`."""
    if type(pid) is tuple and len(pid) >= 5 and pid[0] == "storage":  # pyright: ignore[reportUnknownArgumentType]
        cls, key, count = pid[1], pid[2], pid[4]
        dtype = STORAGES.get(cls.name) if type(cls) is Global else None
        view = pid[5] if len(pid) > 5 else None  # pyright: ignore[reportUnknownArgumentType]
        if dtype is not None and type(key) in _KEYS and _is_count(count):
            key = key if type(key) is str else str(key)
            if view is None:
                return key, dtype, count, None
            if type(view) is tuple and len(view) == 3:  # pyright: ignore[reportUnknownArgumentType]
                _, first, length = view
                if _is_count(first) and _is_count(length):
                    return key, dtype, count, (first, length)
    raise CorruptFile(
        f"{label}, a tensor's storage", found="a persistent id that names no storage of PyTorch's"
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_COUNT


def width(dtype: str) -> int:
    """Bytes of one stored element; of dtypes that are packed, of the byte that PyTorch counts."""
    return _WIDTHS[dtype]


def dtype_of(record: Any) -> tuple[str, str]:
    """Our dtype of a `torch.dtype`, and a remark on it; `""` and the reason where there is none."""
    name = record.name if isinstance(record, Global) else ""
    name = _ALIASES.get(name, name)
    if name in _BITS:
        return _BITS[name], f"dtype {name}, listed as the bytes that it is stored in"
    if name in DTYPE_BITS or name in INTEGERS:
        return name, ""
    return "", f"dtype {name}: {_NO_NUMPY.get(name, 'not known')}"
