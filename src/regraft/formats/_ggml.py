"""GGML's number types, and the way from its blocks back to float32.

A block holds a few scales and the small integers that they scale. The `gguf` package, which is
the reference for these layouts in Python, undoes them; it is imported when values are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regraft.errors import FormatError, MissingDependency

if TYPE_CHECKING:
    from regraft.tensors import Array

# The numbers of `enum ggml_type` under our names. Tests hold them to the package's own.
TYPES: dict[int, str] = {
    0: "float32", 1: "float16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 9: "q8_1",
    10: "q2_k", 11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k", 15: "q8_k",
    16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s", 20: "iq4_nl", 21: "iq3_s",
    22: "iq2_s", 23: "iq4_xs", 24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "float64",
    29: "iq1_m", 30: "bfloat16", 34: "tq1_0", 35: "tq2_0", 39: "mxfp4", 40: "nvfp4", 41: "q1_0",
}  # fmt: skip
NUMBERS = {dtype: number for number, dtype in TYPES.items()}
# Types that GGML had once; no released program reads them any more.
REMOVED: dict[int, str] = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip
# Where 16-bit scales begin in a block, for the types whose big-endian form is settled (the others
# mix bytes and words in ways that no program writes in that order).
_SWAPPED: dict[str, tuple[int, ...]] = {
    "q4_0": (0,), "q8_0": (0,), "q4_k": (0, 2), "q6_k": (208,), "mxfp4": (), "nvfp4": (),
}  # fmt: skip


def library(purpose: str) -> Any:
    """The gguf package. **Raises** `MissingDependency`."""
    try:
        import gguf
    except ImportError as error:
        raise MissingDependency("gguf", extra="gguf", purpose=purpose) from error
    return gguf


def dequantized(blocks: Array, dtype: str, big_endian: bool, where: str) -> Array:
    """Values of whole blocks as float32.

    `blocks` holds bytes, shape `(…, bytes of a row)`; the result has `(…, values of a row)`.

    **Raises** `FormatError` for a type that the package cannot undo, `MissingDependency`.
    """
    import numpy as np

    from regraft.tensors import CODED

    values, width = CODED[dtype]
    shape = (*blocks.shape[:-1], blocks.shape[-1] // width * values)
    if 0 in shape:
        return np.zeros(shape, np.float32)
    if big_endian:
        blocks = _little_endian(blocks, dtype, width, where)
    gguf = library(f"values coded as {dtype.upper()}")
    kind = getattr(gguf.GGMLQuantizationType, dtype.upper(), None)
    try:
        # Scales may be infinite or no numbers; what comes of it is for the reader to see.
        with np.errstate(all="ignore"):
            return gguf.quants.dequantize(blocks, kind)
    except NotImplementedError as error:
        raise FormatError(
            where,
            found=f"values coded as {dtype.upper()}",
            expected="a code that the gguf package can undo",
            hint="its name, shape and size are listed; for values, take a file in another type",
        ) from error


def _little_endian(blocks: Array, dtype: str, width: int, where: str) -> Array:
    import numpy as np

    if dtype not in _SWAPPED:
        raise FormatError(
            where,
            found=f"big-endian values coded as {dtype.upper()}",
            expected=f"one of {', '.join(name.upper() for name in _SWAPPED)}",
            hint="convert the file to little-endian where it was made",
        )
    swapped = np.array(blocks).reshape(-1, width)
    for at in _SWAPPED[dtype]:
        swapped[:, [at, at + 1]] = swapped[:, [at + 1, at]]
    return swapped.reshape(blocks.shape)
