"""What the messages of an HDF5 object header say: shape, type, layout, filters, attributes."""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

from regraft.errors import CorruptFile, UnsafeFile
from regraft.formats._hdf5_objects import OLD_FILL, Message

# Classes of datatypes.
INTEGER, FLOAT, TEXT, OPAQUE, RECORD, REFERENCE, NAMES, VARIABLE = 0, 1, 3, 5, 6, 7, 8, 9
_CLASSES = ("integers", "floats", "times", "text", "bit fields", "opaque bytes", "records",
            "references", "names", "values of variable length", "arrays")  # fmt: skip
# Bits in all, and where exponent and fraction lie: bit, width, bit, width, and the bias.
_FLOATS = {
    (16, 10, 5, 0, 10, 15): "float16",
    (32, 23, 8, 0, 23, 127): "float32",
    (64, 52, 11, 0, 52, 1023): "float64",
    (16, 7, 8, 0, 7, 127): "bfloat16",
}
# Elements of 16 bytes that 63 bits can count, beside a size of zero, too.
_MAX_BITS = 59
_MAX_AXES = 32
COMPACT, CONTIGUOUS, CHUNKED, VIRTUAL = 0, 1, 2, 3


class Type(NamedTuple):
    """A datatype. `dtype` is our name of it, `""` where it is none of a tensor's; `text` is whether
    values of variable length are text."""

    code: int
    size: int
    dtype: str = ""
    big_endian: bool = False
    text: bool = False

    @property
    def words(self) -> str:
        kind = _CLASSES[self.code] if self.code < len(_CLASSES) else f"type {self.code}"
        return f"{kind} of {self.size} bytes"


class Layout(NamedTuple):
    """Where values lie: `address` (of the tree, where they are in chunks), `size` in bytes.

    `chunk` are the sizes of a chunk, in elements; `compact` are values in the header itself.
    """

    kind: int
    address: int
    size: int = 0
    chunk: tuple[int, ...] = ()
    compact: bytes = b""


class Filter(NamedTuple):
    code: int
    values: tuple[int, ...]


class Attribute(NamedTuple):
    """`shape` is `None` where there is no value; `data` is what is stored."""

    name: str
    type: Type
    shape: tuple[int, ...] | None
    data: bytes


def shape_of(data: bytes, where: str) -> tuple[int, ...] | None:
    """The sizes of a dataspace, `None` for one of no values."""
    version, rank = data[0], data[1]
    if version not in (1, 2) or rank > _MAX_AXES:
        raise CorruptFile(where, found=f"a space of version {version} with {rank} axes")
    if version == 2 and data[3] == 2:
        return None
    shape = struct.unpack_from(f"<{rank}Q", data, 8 if version == 1 else 4)
    if math.prod(n for n in shape if n) >> _MAX_BITS:
        raise CorruptFile(where, found=f"shape {shape}, beyond any array")
    return shape


def type_of(data: bytes, where: str) -> Type:
    """A datatype. Complex numbers are records of two floats, as h5py writes them."""
    code, version, bits = data[0] & 15, data[0] >> 4, int.from_bytes(data[1:4], "little")
    [size] = struct.unpack_from("<I", data, 4)
    if not size:
        raise CorruptFile(where, found="a type of no bytes")
    properties = data[8:]
    big = bool(bits & 1)
    if code == INTEGER:
        offset, precision = struct.unpack_from("<2H", properties)
        plain = offset == 0 and precision == 8 * size and size in (1, 2, 4, 8)
        return Type(code, size, f"{'' if bits & 8 else 'u'}int{precision}" if plain else "", big)
    if code == FLOAT:
        offset, precision, a, b, c, d, bias = struct.unpack_from("<2H4BI", properties)
        name = _FLOATS.get((precision, a, b, c, d, bias), "") if offset == 0 else ""
        usual = precision == 8 * size and not bits & 0x40 and bits >> 8 & 0xFF == precision - 1
        return Type(code, size, name if usual else "", big)
    if code == OPAQUE:  # Keras' bfloat16, which an attribute must confirm
        return Type(code, size, "bfloat16" if size == 2 else "")
    if code == NAMES:
        base = type_of(properties, where)
        return base._replace(code=code, dtype=_of_names(properties, version, bits & 0xFFFF, base))
    if code == RECORD and bits & 0xFFFF == 2:
        return Type(code, size, *_complex(properties, version, size, where))
    return Type(code, size, text=code == TEXT or (code == VARIABLE and bits & 15 == 1))


def _of_names(data: bytes, version: int, count: int, base: Type) -> str:
    """h5py's booleans are names of 8-bit numbers."""
    at = 8 + 4  # the base type's header, and its offset and precision
    names: list[bytes] = []
    for _ in range(count if count <= 2 else 0):
        end = data.index(b"\0", at)
        names.append(data[at:end])
        at = end + 1 if version >= 3 else at + (end - at) // 8 * 8 + 8
    values = data[at : at + 2]
    boolean = base.size == 1 and names == [b"FALSE", b"TRUE"] and values == b"\0\1"
    return "bool" if boolean else base.dtype


def _complex(data: bytes, version: int, size: int, where: str) -> tuple[str, bool]:
    """The dtype of a record `r`, `i` of two equal floats, and whether it is big-endian."""
    parts: list[tuple[bytes, int, Type]] = []
    at = 0
    for _ in range(2):
        end = data.index(b"\0", at)
        name = data[at:end]
        at = end + 1 if version >= 3 else at + (end - at) // 8 * 8 + 8
        width = (size.bit_length() + 7) // 8 if version >= 3 else 4
        offset = int.from_bytes(data[at : at + width], "little")
        at += width + (28 if version == 1 else 0)
        if data[at] & 15 != FLOAT:
            return "", False
        parts.append((name, offset, type_of(data[at : at + 20], where)))
        at += 20
    (first, begin, real), (second, middle, imaginary) = parts
    if (first, begin, second, middle) != (b"r", 0, b"i", real.size) or real != imaginary:
        return "", False
    fits = real.dtype in ("float32", "float64") and size == 2 * real.size
    return (f"complex{16 * real.size}" if fits else ""), real.big_endian


def layout_of(data: bytes, where: str) -> Layout:
    """Where a dataset's values lie."""
    version = data[0]
    if version in (1, 2):
        rank, kind = data[1], data[2]
        at = 8 + 8 * (kind != COMPACT)
        address = int.from_bytes(data[8:at], "little")
        sizes = struct.unpack_from(f"<{rank}I", data, at)
        if kind == COMPACT:
            return _compact(data, at + 4 * rank, 4, where)
        return Layout(kind, address, chunk=sizes[:-1] if kind == CHUNKED else ())
    if version not in (3, 4):
        raise CorruptFile(where, found=f"a layout of version {version}")
    kind = data[1]
    if kind == COMPACT:
        return _compact(data, 2, 2, where)
    if kind == CONTIGUOUS:
        address, size = struct.unpack_from("<2Q", data, 2)
        return Layout(kind, address, size)
    if kind == CHUNKED and version == 3:
        rank = data[2]
        [address] = struct.unpack_from("<Q", data, 3)
        return Layout(kind, address, chunk=struct.unpack_from(f"<{rank}I", data, 11)[:-1])
    # The newer generation's indices of chunks are not read.
    return Layout(kind, 0)


def _compact(data: bytes, at: int, width: int, where: str) -> Layout:
    start = at + width
    size = int.from_bytes(data[at:start], "little")
    if start + size > len(data):
        raise CorruptFile(where, found=f"{size} bytes of values in a header of {len(data)}")
    return Layout(COMPACT, 0, size, compact=data[start : start + size])


def filters_of(data: bytes) -> tuple[Filter, ...]:
    """The filters that chunks go through when they are written, in order."""
    version, count = data[0], data[1]
    at = 8 if version == 1 else 2
    found: list[Filter] = []
    for _ in range(count):
        code, length = struct.unpack_from("<2H", data, at)
        if version == 1 or code >= 256:
            at += 4
        else:
            length, at = 0, at + 2
        _, values = struct.unpack_from("<2H", data, at)
        at += 4 + ((length + 7) // 8 * 8 if version == 1 else length)
        found.append(Filter(code, struct.unpack_from(f"<{values}I", data, at)))
        at += 4 * (values + values % 2 if version == 1 else values)
    return tuple(found)


def fill_of(message: Message) -> bytes:
    """The value of elements that were never written; empty for zero."""
    data = message.data
    if message.kind == OLD_FILL:
        at = 0
    elif data[0] in (1, 2):
        if data[0] == 2 and not data[3]:
            return b""
        at = 4
    else:
        if not data[1] & 0x20:
            return b""
        at = 2
    [size] = struct.unpack_from("<I", data, at)
    return data[at + 4 : at + 4 + size] if size < 1 << 16 else b""


def attribute_of(data: bytes, where: str) -> Attribute:
    """An attribute: its name, and its value as it is stored."""
    version, flags = data[0], data[1]
    lengths = struct.unpack_from("<3H", data, 2)
    if version not in (1, 2, 3):
        raise CorruptFile(where, found=f"an attribute of version {version}")
    if version > 1 and flags:
        raise UnsafeFile(where, found="an attribute whose type lies elsewhere")
    at = 8 + (version == 3)
    parts: list[bytes] = []
    for length in lengths:
        parts.append(data[at : at + length])
        at += (length + 7) // 8 * 8 if version == 1 else length
    name, kind, space = parts
    return Attribute(
        name.partition(b"\0")[0].decode("utf-8", "surrogateescape"),
        type_of(kind, where),
        shape_of(space, where),
        data[at:],
    )


def elsewhere(message: Message, where: str) -> int:
    """The address of the object whose header holds what a shared message stands for."""
    data = message.data
    if len(data) < 10 or data[0] not in (1, 2, 3) or (data[0] == 3 and data[1] != 2):
        raise CorruptFile(where, found="a description that lies elsewhere")
    return int.from_bytes(data[8:16] if data[0] == 1 else data[2:10], "little")
