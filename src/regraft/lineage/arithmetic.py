"""Traces that arithmetic leaves in the last bits of values: sums, and draws of random generators.

A float that is small beside what it was computed from has zeros in its last bits. Where b = a + d
in one precision and a and d nearly cancel, the sum is exact: d = b − a fits into that precision. By
chance it fits with probability 2⁻ᵏ for k bits that were lost, so that a few dozen values near zero
tell a step of one sum (noise added, a delta applied, one step of an optimizer) from the way back.
Many steps of training leave no such trace. Generators draw uniform values from a grid of 2²⁴ (2²³)
points; the values near zero show it, until anything is added to them.
"""

from __future__ import annotations

from math import log, log1p
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from regraft.lineage.portraits import Part

# Bits of the significand by dtype.
_BITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}
# Values of a tensor that are looked at; bits that may be lost.
_VALUES, _LOST = 1 << 14, 16
# Shares of values that fit where one was computed from the other, and where it was not at most.
_FITS, _BOUND = 0.999, 0.999
# A uniform draw: values at least, its largest by its bound, the bits that tell it from chance, what
# a step may be off; of a coarser type is what has so many zeros at the end in such a share.
_FEWEST, _NEAR, _MISSING, _SLACK, _ZEROS, _COARSE = 16, 0.8, 30.0, 0.01, 6, 0.5
# How often a step is one sum, before anything is seen; log-odds at most, and where both ways fit.
_SHARE, _MOST, _BOTH, _DAMPED = 0.3, 12.0, 4.0, 0.1


class Sums(NamedTuple):
    """log of how much likelier the values of one file are where they were computed from the
    other's: `forward` for b from a, `back` for a from b. `values`: how many were looked at."""

    forward: float = 0.0
    back: float = 0.0
    values: int = 0


def sums(a: Part, b: Part) -> Sums:
    """Of two tensors of one shape that are not the same bits; nothing where their precisions
    differ."""
    bits = _BITS.get(a.dtype)
    if bits is None or a.dtype != b.dtype:
        return Sums()
    x, y = a.values[:_VALUES], b.values[:_VALUES]
    held = (x != y) & (x != 0) & (y != 0)
    x, y = x[held], y[held]
    forward, n = _computed(x, y, bits)
    back, m = _computed(y, x, bits)
    return Sums(forward, back, n + m)


def _computed(x: NDArray[np.float64], y: NDArray[np.float64], bits: int) -> tuple[float, int]:
    """log-odds for y = x + d in this precision, by the values of y that are small beside x."""
    small = np.abs(y) < 0.5 * np.abs(x)
    if not small.any():
        return 0.0, 0
    # Others as small, that have no reason to lie on x's grid, tell how many zeros y has anyway.
    near = np.abs(y) <= np.abs(y[small]).max()
    x, y, small = x[near], y[near], small[near]
    difference = y - x
    size = np.frexp(y)[1]
    lost = np.frexp(difference)[1] - size
    beside = ~small & (lost <= 0)
    small &= (lost >= 1) & (lost <= _LOST)
    if not small.any():
        return 0.0, 0
    # By size of y and bits lost: how many fit, how many of the others have so many zeros.
    fits = _exact(x[small], y[small], difference[small], bits)
    smallest, width = int(size[small].min()), _LOST + 1
    rows = int(size[small].max()) - smallest + 1
    cells = width * (size[small] - smallest) + lost[small]
    count, fit = (
        np.bincount(cells, weights, rows * width).reshape(rows, width) for weights in (None, fits)
    )
    beside &= (size >= smallest) & (size < smallest + rows)
    zeros = np.minimum(_zeros(y[beside], bits), _LOST)
    others = np.bincount(width * (size[beside] - smallest) + zeros, minlength=rows * width)
    at_least = others.reshape(rows, width)[:, ::-1].cumsum(axis=1)[:, ::-1]
    chance = 0.5 ** np.arange(width)
    share = np.minimum(_BOUND, (at_least + 2 * chance) / (at_least[:, :1] + 2))
    total = fit * np.log(_FITS / share) + (count - fit) * np.log((1 - _FITS) / (1 - share))
    return float(total.sum()), int(small.sum())


def _exact(
    x: NDArray[np.float64], y: NDArray[np.float64], d: NDArray[np.float64], bits: int
) -> NDArray[np.bool_]:
    """Where the difference y − x is exact in float64 (Knuth's two-sum), and fits into the bits."""
    part = d - y
    error = (y - (d - part)) + (-x - part)
    scaled = np.ldexp(np.frexp(d)[0], bits)
    return (error == 0) & (scaled == np.rint(scaled))


def _zeros(values: NDArray[np.float64], bits: int) -> NDArray[np.int64]:
    """Zeros at the end of each significand."""
    whole = np.abs(np.ldexp(np.frexp(values)[0], bits)).astype(np.int64)
    return np.log2((whole & -whole).astype(np.float64)).astype(np.int64)


def linked(found: Sums) -> tuple[float, float]:
    """Log-odds for b as a sum with a, and for a as one with b, against neither. Where both seem to
    be so, a grid of its own lies under one of them."""
    forward, back = (min(_likely(value), _MOST) for value in (found.forward, found.back))
    both = min(forward, back)
    if both <= _BOTH:
        return forward, back
    apart = float(np.clip(_DAMPED * (found.forward - found.back), -_BOTH / 2, _BOTH / 2))
    return both + apart / 2, both - apart / 2


def _likely(value: float) -> float:
    return float(np.logaddexp(log1p(-_SHARE), log(_SHARE) + value))


def drawn(values: NDArray[np.float64], shape: tuple[int, ...], dtype: str) -> bool:
    """Whether a tensor's values are those of a uniform generator: nothing was added to them since.

    Such values are a bound times m / 2²³ for whole m, rounded; with bounds as layers are started
    with (by their numbers of inputs and outputs), or round ones.
    """
    if dtype != "float32" or values.size < _FEWEST:
        return False
    values = values[:_VALUES]
    largest = float(np.abs(values).max())
    return any(_on_grid(values, bound) for bound in _bounds(shape, largest))


def _bounds(shape: tuple[int, ...], largest: float) -> set[float]:
    """What may bound a uniform draw whose largest value is this: LeCun's, He's and Glorot's bounds
    in either layout, powers of two, decimal numbers of one or two digits."""
    found: set[float] = set()
    if len(shape) > 1:
        size = float(np.prod(shape))
        ways = {(size / shape[0], size / shape[1]), (size / shape[-1], size / shape[-2])}
        for inputs, outputs in ways | {(b, a) for a, b in ways}:
            found |= {1 / inputs, 3 / inputs, 6 / inputs, 6 / (inputs + outputs)}
        found = {value**0.5 for value in found}
    if largest:
        unit = 10.0 ** np.floor(np.log10(largest))
        found |= {np.ceil(largest / unit) * unit, np.ceil(10 * largest / unit) * unit / 10}
        found.add(2.0 ** np.ceil(np.log2(largest)))
    # A bound is near the largest of the values that it bounds.
    return {float(np.float32(b)) for b in found if _NEAR * b <= largest <= b * (1 + 1e-6)}


def _on_grid(values: NDArray[np.float64], bound: float) -> bool:
    """Whether all values that tell are a whole number of steps, and together by no chance."""
    steps = values * (2.0**23 / bound)
    slack = np.abs(steps) * 2.0**-24 + _SLACK
    tells = (slack < 0.25) & (steps != 0)
    away = np.abs(steps[tells] - np.rint(steps[tells]))
    bits = -np.log2(2 * slack[tells])
    return (
        bool((away <= slack[tells]).all()) and float(bits.sum()) >= _MISSING and not _coarse(values)
    )


def _coarse(values: NDArray[np.float64]) -> bool:
    """Whether values come from a type of fewer bits, whose own grid it is."""
    return float((_zeros(values[values != 0], 24) >= _ZEROS).mean()) > _COARSE
