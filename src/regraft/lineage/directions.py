"""Which of two files came first, by their values alone: log-odds with a reason for each.

A step d from a to b can be three things. Noise, and training as far as it is like noise, is at a
right angle to what it starts from: ⟨a, d⟩ is 0 up to chance, so that ‖b‖² − ‖a‖² is ‖d‖², and by
the same token −‖d‖² where b came first. Weight decay shrinks all tensors by one factor and then
adds noise. Training drifts as well: the norms of matrices grow by more or less than what was moved,
tails grow heavier (Horwitz et al., *Unsupervised Model Tree Heritage Recovery*, 2025, use the
kurtosis as here). A step is weighed under each of these both ways, and the mixtures are compared:
what fits noise exactly is told by the tiniest growth, what does not is told by less.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import cosh, log
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from regraft.lineage.arithmetic import Sums, sums
from regraft.lineage.kinship import Reason, replaced, shared
from regraft.lineage.portraits import Portrait

if TYPE_CHECKING:
    from numpy.typing import NDArray

# How often a step is noise, or noise upon decay, before anything is seen; factors of decay.
_NOISE, _DECAY = 0.3, 0.1
_FACTORS = np.geomspace(3e-4, 0.3, 25)
# Growth of body matrices in training, in parts of what was moved: where it lies and how it spreads
# (of 218 steps of real trainings, benchmarks/lineage_trees.py); of heads and vectors it says
# nothing. Tensors of one file drift together: all of them count as so many.
_GROWN, _SPREAD, _ANYWHERE, _TOGETHER = 0.65, 0.3, 6.0, 4.0
# Log-odds per unit of kurtosis; values from which on a tensor tells it; chance is this much wider.
_TAILS, _ENOUGH, _WIDER, _LEAST = 5.0, 1000, 1.1, 1e-3
# Log-odds at most of growth, and of tensors that no training has touched.
_MOST, _CONSTANTS, _DRAWN = 10.0, 5.0, 8.0


class _Steps(NamedTuple):
    """One step of several tensors, as seen from its start: arrays [tensors].

    - `grown`: (‖b‖² − ‖a‖²) / ‖d‖². `chance`, `chance_back`: the standard deviation that it has if
      d is noise around a, or around b. `reach`, `reach_back`: 2‖a‖² / ‖d‖² and 2‖b‖² / ‖d‖².
    - `body`: whether a matrix, and of no head. `tails`: growth of kurtosis by size of the step.
    """

    grown: NDArray[np.float64]
    chance: NDArray[np.float64]
    chance_back: NDArray[np.float64]
    reach: NDArray[np.float64]
    reach_back: NDArray[np.float64]
    body: NDArray[np.float64]
    tails: NDArray[np.float64]

    def turned(self) -> _Steps:
        return _Steps(
            -self.grown, self.chance_back, self.chance, self.reach_back, self.reach, self.body,
            -self.tails,
        )  # fmt: skip


def order_by_values(a: Portrait, b: Portrait, heads: frozenset[str]) -> list[Reason]:
    """Reasons from values for `a` before `b`. What was replaced says nothing: heads of other
    classes, layers that were started anew."""
    gone = replaced(a, b)
    moved = [n for n in shared(a, b) if n not in gone and a.parts[n].hash != b.parts[n].hash]
    return [*_by_growth(a, b, moved, heads), *_by_starts(a, b, moved)]


def sums_between(a: Portrait, b: Portrait) -> Sums:
    """What values near zero say of sums, over all tensors that moved."""
    gone = replaced(a, b)
    moved = [n for n in shared(a, b) if n not in gone and a.parts[n].hash != b.parts[n].hash]
    found = [sums(a.parts[n], b.parts[n]) for n in moved]
    return Sums(*(sum(column) for column in zip(*found, strict=True))) if found else Sums()


def _by_growth(
    a: Portrait, b: Portrait, moved: list[str], heads: frozenset[str]
) -> Iterator[Reason]:
    rows = [row for n in moved if (row := _row(a, b, n, n in heads)) is not None]
    if not rows:
        return
    steps = _Steps(*np.array(rows).T)
    training, drift = _training(steps)
    ways: list[tuple[list[float], float]] = []
    for way, sign in ((steps, 1), (steps.turned(), -1)):
        # Of training both ways together are as likely as its sizes are.
        drifted = training + sign * drift / 2 - log(cosh(drift / 2))
        ways.append(([*_noise(way), drifted], sign))
    totals = [float(np.logaddexp.reduce(parts)) for parts, _ in ways]
    odds = float(np.clip(totals[0] - totals[1], -_MOST, _MOST))
    parts = ways[0 if odds >= 0 else 1][0]
    share = (steps.grown / steps.reach)[steps.body > 0]
    told = ("as noise does", "as decay and noise do", "as training does")[int(np.argmax(parts))]
    size = f" by {abs(float(share.mean())):.2g} of themselves" if share.size else ""
    yield Reason(odds, f"squared norms change{size}, {told}")


def _row(a: Portrait, b: Portrait, name: str, head: bool) -> tuple[float, ...] | None:
    one, other = a.parts[name], b.parts[name]
    step = other.values - one.values
    squares = step**2
    moved = float(squares.sum())
    if not (moved and one.square and other.square):
        return None
    chance, back = (2 * float(p.values**2 @ squares) ** 0.5 / moved for p in (one, other))
    share = moved / (one.square * other.square) ** 0.5
    heavier = float(np.clip((other.kurtosis - one.kurtosis) / share**0.5, -1, 1))
    size = one.values.size
    return (
        (other.square - one.square) / moved, chance, back,
        2 * one.square / moved, 2 * other.square / moved,
        float(len(one.shape) > 1 and not head), heavier * size / (size + _ENOUGH),
    )  # fmt: skip


def _noise(steps: _Steps) -> tuple[float, float]:
    """log-likelihoods of noise, and of decay and noise, with how often these are."""
    spread = _WIDER * np.maximum(steps.chance, _LEAST)
    plain = float(_normal(steps.grown - 1, spread).sum())
    shrunk = [
        float(_normal(steps.grown - 1 + factor * steps.reach, spread).sum()) for factor in _FACTORS
    ]
    decayed = float(np.logaddexp.reduce(shrunk)) - log(len(_FACTORS))
    return plain + log(_NOISE), decayed + log(_DECAY)


def _training(steps: _Steps) -> tuple[float, float]:
    """The log-likelihood of training in either direction, and the log-odds between these."""
    body = steps.body > 0
    chance = np.sqrt(steps.chance * steps.chance_back)
    spread = np.hypot(_SPREAD, chance[body])
    there = _cauchy(steps.grown[body] - _GROWN, spread)
    back = _cauchy(-steps.grown[body] - _GROWN, spread)
    sizes = float((np.logaddexp(there, back) - log(2)).sum())
    sizes += float(_cauchy(steps.grown[~body], np.hypot(_ANYWHERE, chance[~body])).sum())
    count = int(body.sum())
    drift = 0.0
    if count:
        drift = float((there - back).sum()) * min(1.0, _TOGETHER / count)
        drift += _TAILS * float(steps.tails[body].mean())
    return sizes + log(1 - _NOISE - _DECAY), float(np.clip(drift, -_MOST, _MOST))


def _normal(off: NDArray[np.float64], spread: NDArray[np.float64]) -> NDArray[np.float64]:
    return -0.5 * (off / spread) ** 2 - np.log(spread * (2 * np.pi) ** 0.5)


def _cauchy(off: NDArray[np.float64], spread: NDArray[np.float64]) -> NDArray[np.float64]:
    return -np.log(np.pi * spread * (1 + (off / spread) ** 2))


def _by_starts(a: Portrait, b: Portrait, moved: list[str]) -> Iterator[Reason]:
    """Tensors that are all zeros or ones, or as a generator draws them, were not trained yet."""
    for text, most, untouched in (
        ("as a layer starts with", _CONSTANTS, lambda part: part.constant and part.values.size > 1),
        ("as a generator draws them", _DRAWN, lambda part: part.drawn),
    ):
        ours = sum(untouched(a.parts[n]) for n in moved)
        theirs = sum(untouched(b.parts[n]) for n in moved)
        if ours != theirs:
            sign = 1 if ours > theirs else -1
            yield Reason(sign * most, f"{max(ours, theirs)} tensors {text}")
