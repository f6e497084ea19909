"""Arrays out of protobuf's repeated fields and out of elements smaller than a byte.

Numbers in typed fields are packed: fixed-width ones one after the other, integers as varints of
one to ten bytes. How many varints a range holds is the number of bytes below 0x80, so that a
count can be held against a shape before anything is decoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.errors import CorruptFile
from regraft.formats._protobuf import VARINT, Data, Field
from regraft.tensors import DTYPE_BITS, numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray

    from regraft.tensors import Array

_CHUNK = 1 << 20
_CONTINUED = bytes(range(0x80, 0x100))


def count_of(data: Data, fields: Sequence[Field], width: int) -> int:
    """How many numbers the occurrences of a repeated field hold.

    **Arguments:**

    - `width`: bytes of one number; 0 for varints.
    """
    count = 0
    for field in fields:
        if width:
            count += field.size // width
        elif field.wire == VARINT:
            count += 1
        else:
            for at in range(field.start, field.stop, _CHUNK):
                part = data[at : min(at + _CHUNK, field.stop)]
                count += len(part.translate(None, _CONTINUED))
    return count


def fixed_width(data: Data, fields: Sequence[Field], dtype: str) -> Array:
    """The numbers of a repeated field of fixed width, little-endian as protobuf has them."""
    import numpy as np

    kind = np.dtype(dtype).newbyteorder("<")
    parts = [np.frombuffer(data[field.start : field.stop], kind) for field in fields]
    return np.concatenate([*parts, np.zeros(0, kind)]) if len(parts) != 1 else parts[0]


def varints(data: Data, fields: Sequence[Field], where: str) -> NDArray[np.uint64]:
    """The numbers of a repeated varint field, as 64-bit patterns. **Raises** `CorruptFile`."""
    import numpy as np

    parts = [
        np.array([field.value], np.uint64) if field.wire == VARINT else _decoded(data, field, where)
        for field in fields
    ]
    return np.concatenate([np.zeros(0, np.uint64), *parts])


def _decoded(data: Data, field: Field, where: str) -> NDArray[np.uint64]:
    import numpy as np

    raw = np.frombuffer(data[field.start : field.stop], np.uint8)
    ends = np.flatnonzero(raw < 0x80)
    starts = np.concatenate([np.zeros(1, np.intp), ends + 1])
    lengths = ends - starts[:-1] + 1
    longest = int(lengths.max()) if len(lengths) else 0
    if longest > 10 or (len(raw) and raw[-1] >= 0x80):
        raise CorruptFile(where, found="a number without end", expected="packed varints")
    found = np.zeros(len(ends), np.uint64)
    for place in range(longest):
        there = lengths > place
        septets = raw[starts[:-1][there] + place].astype(np.uint64) & np.uint64(0x7F)
        found[there] |= septets << np.uint64(7 * place)
    return found


def reinterpreted(values: NDArray[np.uint64], dtype: str, where: str) -> Array:
    """What varints stand for: 64-bit numbers, or 32-bit ones that hold narrower values or bits.

    **Raises** `CorruptFile` where a number is too large for its type.
    """
    import numpy as np

    target = numpy_dtype(dtype)
    if DTYPE_BITS[dtype] == 64:
        return values.view(target)
    wide = values.view(np.int64) if dtype == "uint32" else values.astype(np.uint32).view(np.int32)
    if dtype == "bool":
        return wide != 0
    whole = target if "int" in dtype else np.dtype(f"uint{max(8, DTYPE_BITS[dtype])}")
    kept = wide.astype(whole)
    if bool((kept.astype(wide.dtype) != wide).any()):
        raise CorruptFile(where, found=f"numbers beyond {whole}", expected=f"values of {dtype}")
    return kept.view(target)


def unpacked(raw: NDArray[Any], count: int, dtype: str) -> Array:
    """Elements of 2 or 4 bits, lowest bits first, one byte each as ml_dtypes keeps them.

    **Arguments:**

    - `raw`: `[n]` bytes, each of 4 or 2 elements; the last may be filled up.
    """
    import numpy as np

    bits = DTYPE_BITS[dtype]
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (raw[:, None] >> shifts & np.uint8((1 << bits) - 1)).reshape(-1)[:count]
    return codes.view(numpy_dtype(dtype))
