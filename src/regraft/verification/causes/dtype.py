"""Half precision where the other side computes in single: a cast in the code, or tensors that were
rounded on their way (float16, bfloat16, 8 bits).

Tried without the casts, and with the tensors that the plan makes, where the present ones are these,
rounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from regraft.calls import InFunction, Written
from regraft.verification.causes._arrays import Array
from regraft.verification.causes._scene import Hypothesis, Scene, Tensor, in_forward

_CASTS = ("half", "bfloat16", "to", "type", "float", "double", "type_as")
_TYPES = (np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)


def propose(scene: Scene) -> Iterable[Hypothesis]:
    calls = list(scene.calls(*_CASTS))
    edits = tuple(InFunction(c.path, c.name, c.number, instead=_as_single) for c in calls)
    if edits:
        paths = tuple(dict.fromkeys(edit.path for edit in edits))
        yield Hypothesis(
            "dtype", edits, paths, "single precision instead of casts to fewer digits",
            f"{in_forward(paths[0])}: without the casts",
        )  # fmt: skip
    for call in scene.calls("round", "fake_quantize_per_tensor_affine", "quantize_per_tensor"):
        edit = InFunction(call.path, call.name, call.number, instead=lambda t, _: t[0])
        yield Hypothesis(
            "dtype", (edit,), (call.path,), "no rounding", f"{in_forward(call.path)}: not rounded"
        )
    for paths, wrong in scene.wrong_tensors():
        rounded = [said for tensor in wrong if (said := _rounded(tensor))]
        if len(rounded) == len(wrong):
            yield Hypothesis(
                "dtype", tuple(Written(t.name, t.expected) for t in wrong), paths,
                f"tensors rounded to {rounded[0]}", f"load {wrong[0].name} in single precision",
            )  # fmt: skip


def _as_single(tensors: list[Array], result: Array) -> Array:
    """The values before the cast, in single precision; casts of whole numbers stay."""
    if result.dtype.kind in "biu" or tensors[0].dtype.kind in "biu":
        return result
    return tensors[0].astype(np.float32)


def _rounded(tensor: Tensor) -> str | None:
    wanted, actual = tensor.expected, tensor.actual
    if wanted.shape != actual.shape or wanted.dtype != np.float32:
        return None
    for kind in _TYPES:
        dtype: Any = np.dtype(kind)
        with np.errstate(all="ignore"):
            if np.array_equal(wanted.astype(dtype).astype(np.float32), actual.astype(np.float32)):
                return dtype.name
    return _eight_bits(wanted.astype(np.float64), actual.astype(np.float64))


def _eight_bits(wanted: Array, actual: Array) -> str | None:
    """Whether the values are at most 256 levels apart by the same step, each the nearest one; in
    the whole tensor or along its first or last axis."""
    for axes in (None, tuple(range(1, wanted.ndim)), tuple(range(wanted.ndim - 1))):
        if axes == ():
            continue
        step = np.abs(wanted).max(axes, keepdims=True) / 127
        with np.errstate(all="ignore"):
            if np.allclose(np.round(wanted / step) * step, actual, rtol=1e-5, atol=1e-8):
                return "8 bits"
    return None
