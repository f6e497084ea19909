"""Windows that slide over an image: how they can be padded, and pools in numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import ceil
from typing import Any

import numpy as np

from regraft.verification.causes._arrays import Array

Pads = tuple[tuple[int, int], ...]


def same_pads(
    spatial: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Pads:
    """TensorFlow's `same`: as much as the last window needs, the larger half at the end."""
    pads: list[tuple[int, int]] = []
    for n, k, s, d in zip(spatial, kernel, strides, dilations, strict=True):
        total = max((ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
        pads.append((total // 2, total - total // 2))
    return tuple(pads)


def paddings(
    spatial: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    wanted: Sequence[int],
    held: Pads | None,
) -> list[Pads]:
    """Paddings that give results of the wanted shape, the likely ones first: alike on both sides,
    `same`, `same` with the larger half at the beginning; the same rule on every axis, and then
    whatever fits."""
    per_axis: list[list[tuple[int, int]]] = []
    for n, k, s, d, w in zip(spatial, kernel, strides, dilations, wanted, strict=True):
        reach = (k - 1) * d
        fits = [
            (a, b)
            for a, b in product(range(reach + 1), repeat=2)
            if (n + a + b - reach - 1) // s + 1 == w
        ]
        per_axis.append(sorted(fits, key=lambda p: (abs(p[0] - p[1]), p[0] + p[1], p[0])))
    same = same_pads(spatial, kernel, strides, dilations)
    flipped = tuple((b, a) for a, b in same)
    alike = [tuple((p, p) for _ in spatial) for p in range(max(kernel) + 1)]
    options = [*([held] if held else []), same, flipped, *alike]
    if all(len(fits) < 30 for fits in per_axis):
        common = [p for p in per_axis[0] if all(p in fits for fits in per_axis)]
        options += [tuple(p for _ in spatial) for p in common[:12]]
    fitting = [o for o in options if all(p in fits for p, fits in zip(o, per_axis, strict=True))]
    return list(dict.fromkeys(fitting))


def pooled(
    x: Array,
    kind: str,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Pads,
    *,
    counted: bool = False,
    last: bool = False,
) -> Array:
    """A pool over the last axes, or those before the channels. `counted`: padding counts as zeros
    in means."""
    moved = np.moveaxis(x, -1, 1) if last else x
    rank = len(kernel)
    lead = [(0, 0)] * (moved.ndim - rank)
    empty = -np.inf if kind == "max" else 0.0
    wide = np.pad(moved.astype(np.float64), [*lead, *pads], constant_values=empty)
    axes = tuple(range(moved.ndim - rank, moved.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(wide, tuple(kernel), axes)
    steps: tuple[Any, ...] = (..., *(slice(None, None, s) for s in strides), *[slice(None)] * rank)
    windows = windows[steps]
    inner = tuple(range(-rank, 0))
    if kind == "max":
        made = windows.max(inner)
    else:
        ones = np.pad(np.ones(moved.shape[-rank:]), pads, constant_values=1.0 if counted else 0.0)
        share = np.lib.stride_tricks.sliding_window_view(ones, tuple(kernel))
        share = share[steps[1:]].sum(inner)
        made = windows.sum(inner) / share
    made = made.astype(x.dtype)
    return np.moveaxis(made, 1, -1) if last else made


def ends(
    spatial: Sequence[int], kernel: Sequence[int], strides: Sequence[int], wanted: Sequence[int]
) -> Iterator[Pads]:
    """Paddings of pools that give the wanted shape: those of `paddings`, and at the end alone as
    much as `ceil_mode` needs."""
    ones = [1] * len(kernel)
    yield from paddings(spatial, kernel, strides, ones, wanted, None)
    for begin in (0, *range(1, max(kernel))):
        pads = tuple(
            (begin, max((w - 1) * s + k - n - begin, 0))
            for n, k, s, w in zip(spatial, kernel, strides, wanted, strict=True)
        )
        if all(a < k and b < k + s for (a, b), k, s in zip(pads, kernel, strides, strict=True)):
            yield pads
