"""ONNX' TensorProto: what tensor it describes, and where and in which way its values lie.

Values are raw little-endian bytes; or numbers in the typed field that belongs to their type
(narrow types share `int32_data`, floats of 16 and 8 bits as their bits, 4-bit ones two in one);
or bytes of another file in the model's folder. A sparse tensor is two of these: values and their
places. Sizes are held against shapes before anything is read.
See https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from regraft.errors import CorruptFile, FormatError
from regraft.formats import _packed
from regraft.formats._protobuf import Field, Message, Span
from regraft.tensors import DTYPE_BITS, stored_bytes

TEXT = "text"
_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    8: TEXT, 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
    14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8_e4m3fn",
    18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4_e2m1fn", 24: "float8_e8m0fnu", 25: "uint2", 26: "int2",
}  # fmt: skip
# Fields of a TensorProto.
_DIMS, _TYPE, _SEGMENT, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 3, 8, 9, 13, 14
_FLOATS, _INT32S, _INT64S, _DOUBLES, _UINT64S = 4, 5, 7, 10, 11
# The typed field of a dtype where it is not `int32_data`; its element, and how many make a value.
_TYPED = {
    "float32": (_FLOATS, "float32", 1), "complex64": (_FLOATS, "float32", 2),
    "float64": (_DOUBLES, "float64", 1), "complex128": (_DOUBLES, "float64", 2),
    "int64": (_INT64S, "", 1), "uint32": (_UINT64S, "", 1), "uint64": (_UINT64S, "", 1),
}  # fmt: skip
_MAX_AXES = 64
# Elements of 16 bytes that 63 bits can count.
_MAX_BITS = 59
# Values that are not packed, which nobody writes, take a field each: so many and no more.
_MAX_SINGLES = 1 << 16


class Typed(NamedTuple):
    """Values in a typed field, of which these are the occurrences: numbers of the dtype `element`,
    or varints where it is `""`."""

    element: str
    fields: tuple[Field, ...]


class External(NamedTuple):
    """Values in another file, as `length` bytes from `offset` on."""

    location: str
    offset: int
    length: int


class Sparse(NamedTuple):
    """The values that are not zero, and their places: flat ones, or one for each axis."""

    values: Tensor
    indices: Tensor


class Tensor(NamedTuple):
    """One tensor as it is stored. `place` of a text tensor is an empty range."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    place: Span | Typed | External | Sparse

    @property
    def floating(self) -> bool:
        return self.dtype.startswith(("float", "bfloat", "complex"))


def tensor_of(message: Message) -> Tensor:
    """The tensor that a TensorProto describes. **Raises** `CorruptFile`, `FormatError`."""
    single: dict[int, Field] = {}
    many: dict[int, list[Field]] = {}
    for field in message:
        if field.number in (_DIMS, _FLOATS, _INT32S, _INT64S, _DOUBLES, _UINT64S, _EXTERNAL):
            listed = many.setdefault(field.number, [])
            listed.append(field)
            if len(listed) > _MAX_SINGLES:
                raise FormatError(
                    f"{message.label}, byte {field.start}",
                    found=f"more than {_MAX_SINGLES} values that are not packed",
                    hint="save the model again with the onnx package",
                )
        else:
            single[field.number] = field  # of several the last one counts
    name = message.text(single[_NAME]) if _NAME in single else ""
    where = f"{message.label}, tensor {name!r}"
    shape = tuple(message.integers(many.get(_DIMS, ()), _MAX_AXES))
    if _nonsense(shape):
        raise CorruptFile(where, found=f"shape {shape}")
    code = single[_TYPE].value if _TYPE in single else 0
    if code not in _DTYPES:
        raise CorruptFile(
            where, found=f"data type {code}", expected="one of onnx.TensorProto.DataType"
        )
    if _SEGMENT in single:
        raise FormatError(where, found="a tensor in segments", expected="whole tensors")
    dtype = _DTYPES[code]
    if dtype == TEXT:
        return Tensor(name, shape, dtype, Span(0, 0))
    place = _place(message, where, single, many, shape, dtype)
    return Tensor(name, shape, dtype, place)


def _place(
    message: Message,
    where: str,
    single: dict[int, Field],
    many: dict[int, list[Field]],
    shape: tuple[int, ...],
    dtype: str,
) -> Span | Typed | External:
    size = stored_bytes(math.prod(shape), dtype)
    if _LOCATION in single and single[_LOCATION].value == 1:
        return _external(message, where, many.get(_EXTERNAL, ()), size)
    if _RAW in single:
        span = message.inner(single[_RAW]).span
        if span.size != size:
            raise CorruptFile(where, found=f"{span.size} bytes", expected=f"{size} for {shape}")
        return span
    number, element, each = _TYPED.get(dtype, (_INT32S, "", 1))
    fields = tuple(many.get(number, ()))
    wanted = math.prod(shape) * each
    if DTYPE_BITS[dtype] < 8:
        wanted = size  # each number holds the bits of one byte
    width = DTYPE_BITS[element] // 8 if element else 0
    if any(f.size % width for f in fields if width):
        raise CorruptFile(where, found="numbers that are cut off")
    count = _packed.count_of(message.data, fields, width)
    if count != wanted:
        raise CorruptFile(where, found=f"{count} numbers", expected=f"{wanted} for {shape}")
    return Typed(element, fields)


def _external(
    message: Message, where: str, entries: tuple[Field, ...] | list[Field], size: int
) -> External:
    """StringStringEntryProtos: `location`, `offset`, `length`."""
    told: dict[str, str] = {}
    for entry in entries:
        inner = message.inner(entry)
        pair = {field.number: inner.text(field) for field in inner}
        told[pair.get(1, "")] = pair.get(2, "")
    numbers = told.get("offset", "0"), told.get("length", str(size))
    if "location" not in told or not all(n.isascii() and n.isdigit() for n in numbers):
        raise CorruptFile(
            where, found=f"external data {told}", expected="location, offset and length"
        )
    offset, length = (int(n[:20]) for n in numbers)
    if length != size:
        raise CorruptFile(where, found=f"{length} bytes", expected=f"{size}")
    return External(told["location"], offset, length)


def sparse_tensor_of(message: Message) -> Tensor:
    """The tensor that a SparseTensorProto describes, under the name of its values."""
    fields = message.gathered()
    if 1 not in fields or 2 not in fields:
        raise CorruptFile(message.label, found="a sparse tensor without values or indices")
    values, indices = (tensor_of(message.inner(fields[n][-1])) for n in (1, 2))
    shape = tuple(message.integers(fields.get(3, ()), _MAX_AXES))
    count = math.prod(values.shape)
    fits = indices.shape in ((count,), (count, len(shape))) and indices.dtype == "int64"
    if _nonsense(shape) or not fits or len(values.shape) != 1 or values.dtype == TEXT:
        raise CorruptFile(
            f"{message.label}, tensor {values.name!r}",
            found=f"{values.shape} values at {indices.shape} places",
            expected=f"a place in {shape} for each value",
        )
    return Tensor(values.name, shape, values.dtype, Sparse(values, indices))


def _nonsense(shape: tuple[int, ...]) -> bool:
    """Whether no array has such a shape: numpy multiplies the sizes beside a zero, too."""
    return any(n < 0 for n in shape) or math.prod(n for n in shape if n) >> _MAX_BITS > 0
