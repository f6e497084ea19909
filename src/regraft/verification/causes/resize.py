"""An image or a grid is resized by another rule: which pixels (`align_corners`, half-pixel centres,
from the corner), between which (nearest, bilinear, bicubic, area), or smoothed first (antialias).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from regraft.calls import InFunction, Rewritten
from regraft.verification.causes._arrays import Array
from regraft.verification.causes._scene import Hypothesis, Scene, in_forward
from regraft.verification.kinds_of_modules import category

_WITH_CORNERS = ("linear", "bilinear", "bicubic", "trilinear")


def propose(scene: Scene) -> Iterable[Hypothesis]:
    for call in scene.calls("interpolate", "upsample"):
        flat = len(call.shapes[0]) == 3
        modes = ("nearest", "linear", "area", "nearest-exact") if flat else (
            "nearest", "bilinear", "bicubic", "area", "nearest-exact"
        )  # fmt: skip
        for mode in modes:
            corners = (False, True) if mode in _WITH_CORNERS else (None,)
            smooth = (False, True) if mode in ("bilinear", "bicubic") else (False,)
            for aligned in corners:
                for antialias in smooth:
                    if aligned and antialias:
                        continue
                    changed: dict[str, Any] = {
                        "mode": mode, "align_corners": aligned, "antialias": antialias
                    }  # fmt: skip
                    said = ", ".join(f"{k}={v!r}" for k, v in changed.items() if v is not None)
                    edit = InFunction(call.path, call.name, call.number, changed)
                    yield Hypothesis(
                        "resize", (edit,), (call.path,), f"resized with {said}",
                        f"{in_forward(call.path)}: interpolate(…, {said})",
                    )  # fmt: skip
        if not flat:
            edit = InFunction(call.path, call.name, call.number, instead=_resized(_from_corner))
            yield Hypothesis(
                "resize", (edit,), (call.path,), "resized bilinearly from the corner",
                f"{in_forward(call.path)}: pixel i of n is taken at i × old / new",
            )  # fmt: skip
    for path in scene.inner():
        if path and category(scene.modules[path]) == "resize" and scene.framework != "torch":
            for name, where in _RULES.items():
                last = scene.modules[path].settings.get("data_format") != "channels_first"
                change = _module(where, last=last)
                yield Hypothesis(
                    "resize", (Rewritten(path, change),), (path,), f"resized {name}",
                    f"{in_forward(path)}: resize {name}",
                )  # fmt: skip


def _half(old: int, new: int) -> Array:
    return np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)


def _aligned(old: int, new: int) -> Array:
    return np.linspace(0, old - 1, new)


def _from_corner(old: int, new: int) -> Array:
    return np.clip(np.arange(new) * old / new, 0, old - 1)


def _nearest(old: int, new: int) -> Array:
    return np.floor(np.arange(new) * old / new)


_RULES: dict[str, Callable[[int, int], Array]] = {
    "bilinearly, pixels' centres": _half,
    "bilinearly, corners aligned": _aligned,
    "bilinearly from the corner": _from_corner,
    "to the nearest": _nearest,
}


def _bilinear(x: Array, height: int, width: int, where: Callable[[int, int], Array]) -> Array:
    """Resizes the last two axes; `where` says at which old place each new pixel lies."""
    made = x.astype(np.float64)
    for axis, new in ((-2, height), (-1, width)):
        old = made.shape[axis]
        at = where(old, new)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, old - 1)
        share = (at - low).reshape([-1] + [1] * (-axis - 1))
        made = np.take(made, low, axis) * (1 - share) + np.take(made, high, axis) * share
    return made.astype(x.dtype)


def _resized(where: Callable[[int, int], Array]) -> Callable[[list[Array], Array], Array]:
    return lambda tensors, result: _bilinear(
        tensors[0], result.shape[-2], result.shape[-1], where
    ).astype(result.dtype)


def _module(
    where: Callable[[int, int], Array], *, last: bool
) -> Callable[[list[Array], list[Array]], list[Array]]:
    def change(inputs: list[Array], outputs: list[Array]) -> list[Array]:
        x, out = inputs[0], outputs[0]
        if last:
            made = _bilinear(np.moveaxis(x, -1, 1), out.shape[1], out.shape[2], where)
            return [np.moveaxis(made, 1, -1).astype(out.dtype)]
        return [_bilinear(x, out.shape[-2], out.shape[-1], where).astype(out.dtype)]

    return change
