"""Portraits beside each other: whether they are kin, how far apart, and what they share.

All of this is symmetric and tells who is next to whom; which came first is told by `directions`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from regraft.lineage.portraits import Part, Portrait

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
# A matrix was replaced where the old and the new one correlate no more than by chance: by so many
# standard deviations, by this at most.
_CHANCE, _ALIKE = 3.0, 0.3
# Heads and vectors count for so much in a length; tensors at distances below the least are equal.
_MINOR, _LEAST = 0.3, 1e-5
_LAST = re.compile(r"(?:^|[./])[^./]*$")


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


def replaced(a: Portrait, b: Portrait) -> frozenset[str]:
    """Tensors of both that have nothing to do with each other: matrices that do not correlate, and
    what lies beside them; new heads are such."""
    names = shared(a, b)
    gone = {n for n in names if len(a.parts[n].shape) > 1 and _unlike(a.parts[n], b.parts[n])}
    both = a.parts.keys() & b.parts.keys()
    gone |= {n for n in both if a.parts[n].shape != b.parts[n].shape}
    modules = {_module(name) for name in gone} - {""}
    return frozenset(n for n in names if n in gone or _module(n) in modules)


def _unlike(one: Part, other: Part) -> bool:
    if one.hash == other.hash or one.constant or other.constant:
        return False
    alike = float(one.values @ other.values) / (one.square * other.square) ** 0.5
    return alike < min(_ALIKE, _CHANCE / one.values.size**0.5)


def _module(name: str) -> str:
    return _LAST.sub("", name)


def lengths(family: Sequence[Portrait], heads: frozenset[str]) -> NDArray[np.float64]:
    """How far files lie apart [files, files], as a mean over tensors of the logarithm of the
    distance: 0 for what was replaced.

    One scale and one weight for each tensor in the whole family: then no two files are nearer than
    any two between them on the path that leads from one to the other, whatever a step moves, as
    long as steps are at right angles; and a tensor that moves far drowns none that moves little.
    """
    count = len(family)
    total, weight = np.zeros((count, count)), 0.0
    gone = {(i, j): replaced(family[i], family[j]) for i in range(count) for j in range(i)}
    for name in {n: None for p in family for n in p.parts}:
        held = [p.parts[name] for p in family if name in p.parts]
        scale = max(part.square for part in held)
        if not scale:
            continue
        size = float(np.median([part.values.size for part in held])) ** 0.5
        size *= 1.0 if len(held[0].shape) > 1 and name not in heads else _MINOR
        weight += size
        for (i, j), some in gone.items():
            one, other = family[i].parts.get(name), family[j].parts.get(name)
            if name in some or one is None or other is None or one.shape != other.shape:
                continue
            if one.hash == other.hash:
                near = _LEAST
            else:
                near = max(_LEAST, min(1.0, _turned(one, other) / scale) ** 0.5)
            total[i, j] += size * np.log(near)
            total[j, i] = total[i, j]
    return total / weight if weight else total


def _turned(one: Part, other: Part) -> float:
    """The square of the distance, without what makes all values larger or smaller by one factor:
    weight decay, which is alike in all that is trained."""
    change = other.values - one.values
    moved = float(change @ change)
    middle = 2 * (one.square + other.square) - moved
    return max(0.0, moved - (other.square - one.square) ** 2 / middle) if middle > 0 else moved


def changes(family: Sequence[Portrait]) -> NDArray[np.float64]:
    """How many tensors are not the same bits [files, files]. Those that one lacks are among them;
    those that are too small, or somewhere too plain, to be the same for more than by chance not."""
    count = np.zeros((len(family), len(family)))
    for name in {n: None for p in family for n in p.parts}:
        parts = [p.parts.get(name) for p in family]
        if any(part and (part.constant or part.values.size < _SHARED) for part in parts):
            continue
        bits = [part.hash if part else "" for part in parts]
        count += np.array([[one != other for other in bits] for one in bits])
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
