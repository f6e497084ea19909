"""Attention's scores are scaled otherwise: by the root of a head's width or of the whole width, not
at all, or twice. Tried in the attribute, in the argument of the function, and on what the softmax
is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import sqrt

import numpy as np

from regraft.calls import FunctionCall, InFunction, Setting
from regraft.verification.causes._arrays import Array
from regraft.verification.causes._scene import Hypothesis, Scene, in_forward, where

_NAMES = ("scale", "scaling", "attn_scale", "scale_factor", "norm_factor", "inv_norm_factor",
          "qk_scale", "softmax_scale", "_inverse_sqrt_key_dim", "inverse_sqrt_key_dim",
          "_scale", "scale_attn", "query_pre_attn_scalar")  # fmt: skip


def propose(scene: Scene) -> Iterable[Hypothesis]:
    widths = list(_widths(scene))
    if not widths:
        return
    for path in scene.inner():
        settings = scene.modules[path].settings
        for name in _NAMES:
            present = settings.get(name)
            if isinstance(present, float) and present:
                for value in _scales(widths, present):
                    yield Hypothesis(
                        "attention-scale", (Setting(path, {name: value}),), (path,),
                        f"scores × {value:.6g} instead of {present:.6g}",
                        f"{where(path)}.{name} = {value!r}",
                    )  # fmt: skip
    for call in scene.calls("scaled_dot_product_attention"):
        width = call.shapes[0][-1]
        given = call.arguments.get("scale")
        present = float(given) if isinstance(given, (int, float)) else 1 / sqrt(width)
        for value in _scales(widths, present):
            edit = InFunction(call.path, call.name, call.number, {"scale": value})
            yield Hypothesis(
                "attention-scale", (edit,), (call.path,),
                f"scores × {value:.6g} instead of {present:.6g}",
                f"{in_forward(call.path)}: scaled_dot_product_attention(…, scale={value:.8g})",
            )  # fmt: skip
    for call in scene.calls("softmax", "_softmax"):
        for factor in _factors(widths):
            edit = InFunction(call.path, call.name, call.number, before=_times(factor))
            yield Hypothesis(
                "attention-scale", (edit,), (call.path,), f"scores × {factor:.6g} more",
                f"{in_forward(call.path)}: the scores × {factor:.8g} before the softmax",
            )  # fmt: skip


def _scales(widths: list[int], present: float) -> Iterator[float]:
    """The scales in use, most of them 1 over the root of a width."""
    values = [v for w in widths for v in (1 / sqrt(w), 1 / w, sqrt(w), float(w))]
    for value in dict.fromkeys((*values, 1.0, 1 / 8, present * present, sqrt(abs(present)))):
        if abs(value - present) > 1e-6 * abs(present):
            yield value


def _factors(widths: list[int]) -> Iterator[float]:
    roots = [sqrt(w) for w in widths]
    ratios = [sqrt(a / b) for a in widths for b in widths if a != b]
    single = [v for r in roots for v in (1 / r, r, 1 / r**2, r**2)]
    yield from dict.fromkeys(v for v in (*single, *ratios) if abs(v - 1) > 1e-9)


def _widths(scene: Scene) -> Iterator[int]:
    """Widths of heads and of the whole, as the shapes in the code tell."""
    seen: dict[int, None] = {}
    for call in scene.functions:
        if call.name == "scaled_dot_product_attention" or _scores(call):
            seen[call.shapes[0][-1]] = None
    for array in scene.site.inputs[:1]:
        if array.ndim > 1:
            seen[array.shape[-1]] = None
    for path in scene.inner():
        settings = scene.modules[path].settings
        for name in ("head_dim", "num_heads", "n_heads", "heads", "dim", "embed_dim", "key_dim",
                     "_key_dim", "_num_heads"):  # fmt: skip
            if isinstance(settings.get(name), int) and settings[name] > 0:
                seen[settings[name]] = None
    yield from seen


def _scores(call: FunctionCall) -> bool:
    return call.name in ("matmul", "__matmul__", "bmm", "einsum") and len(call.shapes) > 1 and (
        len(call.shapes[0]) > 2
    )  # fmt: skip


def _times(factor: float) -> Callable[[list[Array]], list[Array]]:
    def change(arrays: list[Array]) -> list[Array]:
        first = arrays[0]
        return [np.asarray(first * factor, first.dtype), *arrays[1:]]

    return change
