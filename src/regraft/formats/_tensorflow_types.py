"""TensorFlow's names for types and its messages for shapes."""

from __future__ import annotations

import math

from regraft.errors import CorruptFile
from regraft.formats._protobuf import Field, Message, signed

TEXT = "text"
# By DataType of tensorflow/core/framework/types.proto. Quantized integers are plain ones here:
# their scales are values of their own in a graph, and not of the type.
DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: TEXT,
    8: "complex64", 9: "int64", 10: "bool", 11: "int8", 12: "uint8", 13: "int32",
    14: "bfloat16", 15: "int16", 16: "uint16", 17: "uint16", 18: "complex128", 19: "float16",
    22: "uint32", 23: "uint64", 24: "float8_e5m2", 25: "float8_e4m3fn", 26: "float8_e4m3fnuz",
    28: "float8_e5m2fnuz", 29: "int4", 30: "uint4", 31: "int2", 32: "uint2",
    33: "float4_e2m1fn",
}  # fmt: skip
# Types whose values are no numbers, or of no type that numpy has: named where they are left out.
OTHERS = {20: "resource", 21: "variant", 27: "float8_e4m3b11fnuz"}
_MAX_AXES = 64
# Elements of 16 bytes that 63 bits can count.
_MAX_BITS = 59


def dtype_of(code: int, where: str) -> str:
    """A dtype's name, or that of one of `OTHERS`. **Raises** `CorruptFile`."""
    name = DTYPES.get(code) or OTHERS.get(code)
    if name is None:
        raise CorruptFile(where, found=f"data type {code}", expected="a DataType of TensorFlow")
    return name


def shape_of(message: Message, field: Field | None, where: str) -> tuple[int, ...]:
    """The shape that a TensorShapeProto tells; `()` for none. **Raises** `CorruptFile`."""
    if field is None:
        return ()
    sizes: list[int] = []
    for entry in message.inner(field):
        if entry.number == 2:
            inner = message.inner(entry)
            sizes.append(next((signed(f.value) for f in inner if f.number == 1), 0))
        if entry.number == 3 and entry.value:
            raise CorruptFile(where, found="a shape of unknown rank")
        if len(sizes) > _MAX_AXES:
            raise CorruptFile(where, found=f"more than {_MAX_AXES} axes")
    # numpy multiplies the sizes beside a zero, too.
    if any(n < 0 for n in sizes) or math.prod(n for n in sizes if n) >> _MAX_BITS:
        raise CorruptFile(where, found=f"shape {tuple(sizes)}")
    return tuple(sizes)
