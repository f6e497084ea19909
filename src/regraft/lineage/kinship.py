"""Two portraits beside each other: whether they are kin, how far apart, and which came first.

Distances and correlations are symmetric and tell who is next to whom. What tells the direction is
weaker, and is kept apart, as log-odds with a reason for each.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from regraft.lineage.portraits import Part, Portrait
from regraft.tensors import DTYPE_BITS, numpy_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Heads, and tensors of fewer axes (biases, norms), count for so much in a distance.
_SMALL = 0.1
# Kin share a tensor of so many values to the bit, or correlate over so many values so well.
_SHARED, _VALUES, _CORRELATION, _SIGMAS = 16, 32, 0.1, 4.5
# Tensors that are computed, and alike in models that have nothing else in common.
_COMPUTED = re.compile(
    r"position|inv_freq|stft|basis|window|mel|filterbank|sinus|anchor|relative_coords|mask|dft"
)
# Log-odds per unit of growth and of kurtosis, fitted on 114 steps of 40 families of real trainings
# (benchmarks/lineage_trees.py, seed 0); beyond this growth a drift hides what noise tells.
_GROWTH, _KURTOSIS, _DRIFT, _DRIFTED = 5.5, 5.0, 1.6, 0.3
_CONSTANTS = 5.0
# Values of a sample that may disagree where one file is the other's rounding.
_ROUNDED = 0.999
_LEVELS = 256


class Reason(NamedTuple):
    """Why one came before the other: log-odds for the first as the parent, and words."""

    odds: float
    text: str

    def __neg__(self) -> Reason:
        return Reason(-self.odds, self.text)


def shared(a: Portrait, b: Portrait) -> list[str]:
    """Tensors that both have in one shape."""
    return [n for n, p in a.parts.items() if n in b.parts and b.parts[n].shape == p.shape]


def related(a: Portrait, b: Portrait) -> bool:
    """Whether they have weights in common, or weights that correlate as trainings from different
    starts never do."""
    pairs: list[tuple[Part, Part]] = []
    for name in shared(a, b):
        one, other = a.parts[name], b.parts[name]
        if one.constant or other.constant or _COMPUTED.search(name.lower()):
            continue
        if one.hash == other.hash and one.values.size >= _SHARED:
            return True
        if one.values.size >= _VALUES:
            pairs.append((one, other))
    pairs = [pair for pair in pairs if len(pair[0].shape) > 1] or pairs
    if not pairs:
        return False
    roots = [one.values.size**0.5 for one, _ in pairs]
    total = sum(_correlation(*pair) * root for pair, root in zip(pairs, roots, strict=True))
    return total / sum(roots) >= _CORRELATION and total / len(pairs) ** 0.5 >= _SIGMAS


def _correlation(one: Part, other: Part) -> float:
    a, b = one.values - one.values.mean(), other.values - other.values.mean()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale else 0.0


def distance(a: Portrait, b: Portrait, heads: frozenset[str] = frozenset()) -> float:
    """0 for equal files, 1 for files that have nothing in common: the root mean square over tensors
    of ‖b − a‖ / √(‖a‖² + ‖b‖²), heads and vectors with less weight; what one of them lacks, or has
    in another shape, counts 1."""
    total = weight = 0.0
    for name in a.parts.keys() | b.parts.keys():
        one, other = a.parts.get(name), b.parts.get(name)
        part = one or other
        assert part is not None
        w = 1.0 if len(part.shape) > 1 and name not in heads else _SMALL
        weight += w
        if one is None or other is None or one.shape != other.shape:
            total += w
        elif one.hash != other.hash or one.dtype != other.dtype:
            change = other.values - one.values
            scale = one.square + other.square
            total += w * min(1.0, float(change @ change) / scale) if scale else 0.0
    return (total / weight) ** 0.5 if weight else 1.0


def changes(a: Portrait, b: Portrait) -> int:
    """How many tensors are not the same bits in both; those that one lacks among them, and without
    those that are too small or too plain to be the same for more than by chance."""
    count = 0
    for name in a.parts.keys() | b.parts.keys():
        one, other = a.parts.get(name), b.parts.get(name)
        some = [part for part in (one, other) if part is not None]
        if any(part.constant or part.values.size < _SHARED for part in some):
            continue
        count += one is None or other is None or one.hash != other.hash
    return count


def inner_products(family: Sequence[Portrait], name: str) -> NDArray[np.float64]:
    """Of one tensor in all files [files, files], about their mean and brought to one size; NaN for
    files that do not have it, or not in the shape that most have."""
    shapes = Counter(p.parts[name].shape for p in family if name in p.parts)
    shape = shapes.most_common(1)[0][0]
    held = [i for i, p in enumerate(family) if name in p.parts and p.parts[name].shape == shape]
    rows = np.stack([family[i].parts[name].values for i in held])
    scale = float(np.mean(np.sum(rows**2, axis=1))) or 1.0
    rows = rows - rows.mean(axis=0)
    products = np.full((len(family), len(family)), np.nan)
    products[np.ix_(held, held)] = rows @ rows.T / scale
    return products


def same_values(a: Portrait, b: Portrait) -> bool:
    """Whether both hold the same tensors to the bit; what holds none that are compared is like
    nothing."""
    return (
        bool(a.parts)
        and a.parts.keys() == b.parts.keys()
        and all(
            p.hash == b.parts[n].hash and p.shape == b.parts[n].shape for n, p in a.parts.items()
        )
    )


def derivation(parent: Portrait, child: Portrait) -> str:
    """How the child's values follow from the parent's alone: `cast to float16`, `pruned`,
    `quantised`; empty where they do not."""
    names = shared(parent, child)
    if not names or parent.parts.keys() != child.parts.keys() or len(names) < len(child.parts):
        return ""
    pairs = [(parent.parts[n], child.parts[n]) for n in names]
    pairs = [(p, c) for p, c in pairs if p.hash != c.hash or p.dtype != c.dtype]
    if not pairs:
        return ""
    before = np.concatenate([p.values for p, _ in pairs])
    after = np.concatenate([c.values for _, c in pairs])
    held = after != 0
    zeros = int((~held & (before != 0)).sum())
    if zeros and np.array_equal(before[held], after[held]):
        return "pruned"
    for dtype in ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"):
        stored = {c.dtype for _, c in pairs}
        wider = all(DTYPE_BITS.get(p.dtype, 32) >= DTYPE_BITS[dtype] for p, _ in pairs)
        if not wider or not (stored == {dtype} or DTYPE_BITS.get(min(stored), 32) >= 32):
            continue
        with np.errstate(all="ignore"):
            rounded = before.astype(np.float32).astype(numpy_dtype(dtype)).astype(np.float64)
        if not np.array_equal(before, rounded) and np.mean(rounded == after) >= _ROUNDED:
            return f"cast to {dtype}"
    return "quantised" if _quantised(pairs) else ""


def _quantised(pairs: list[tuple[Part, Part]]) -> bool:
    """Whether matrices have few levels, evenly spaced, no farther than half a step from the values
    that the parent has, which has many."""
    matrices = [(p, c) for p, c in pairs if len(p.shape) > 1 and p.values.size > 4 * _LEVELS]
    for p, c in matrices:
        levels = np.unique(c.values)
        if levels.size > _LEVELS or np.unique(p.values).size <= 2 * _LEVELS:
            return False
        steps = np.diff(levels)
        if not steps.size or np.abs(p.values - c.values).max() > 0.6 * steps.max():
            return False
    return bool(matrices)


def order_by_values(a: Portrait, b: Portrait, heads: frozenset[str]) -> list[Reason]:
    """Reasons from values for `a` before `b`.

    Steps of training are nearly at right angles to the weights, so that norms grow by what was
    moved: (‖b‖² − ‖a‖²) / ‖b − a‖² is near 1 where b came later, near −1 where a did; weight decay
    and drifts blur it. Tails grow heavier in training (Horwitz et al., *Unsupervised Model Tree
    Heritage Recovery*, 2025, use the kurtosis as here). Heads are left out: a
    new task unlearns them, so that theirs shrink.
    """
    body = [
        n
        for n in shared(a, b)
        if len(a.parts[n].shape) > 1 and n not in heads and a.parts[n].hash != b.parts[n].hash
    ]
    growth = tails = weight = told = 0.0
    for name in body:
        one, other = a.parts[name], b.parts[name]
        change = other.values - one.values
        squared = float(change @ change)
        scale = (one.square * other.square) ** 0.5
        if not squared or not scale:
            continue
        share = squared / scale
        grown = (other.square - one.square) / squared
        growth += share * (grown if abs(grown) < _DRIFT else np.sign(grown) * _DRIFTED)
        tails += float(np.clip((other.kurtosis - one.kurtosis) / share**0.5, -1, 1))
        weight += share
        # A random step along the weights changes the norm as well: small steps tell little.
        told += share * one.values.size / 2
    reasons: list[Reason] = []
    if weight:
        grown, heavier = growth / weight, tails / len(body)
        reasons = [
            Reason(min(_GROWTH, told) * grown, f"norms differ by {abs(grown):.2f} of what moved"),
            Reason(_KURTOSIS * heavier, f"tails differ by {abs(heavier):.2f}"),
        ]
    return [*reasons, *_order_by_constants(a, b)]


def _order_by_constants(a: Portrait, b: Portrait) -> list[Reason]:
    """A tensor that is all zeros or ones was not trained yet."""
    names = [n for n in shared(a, b) if a.parts[n].values.size > 1]
    ours = sum(a.parts[n].constant and not b.parts[n].constant for n in names)
    theirs = sum(b.parts[n].constant and not a.parts[n].constant for n in names)
    if ours == theirs:
        return []
    sign = 1 if ours > theirs else -1
    return [Reason(sign * _CONSTANTS, f"{max(ours, theirs)} tensors as a layer starts with")]
