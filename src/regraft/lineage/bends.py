"""Bends: whether three files are a chain or two children of one, by how the second step turns.

In a chain b → x → y the second step goes on from where the first ended, at a right angle to it or
straight on; two children x and y of b differ by a step that goes back to b first. Two runs of one
task from y go in one direction, and are nearer to each other than to y.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log1p
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Steps shorter than this, in parts of the weights, changed nothing.
_LEAST = 1e-7
# Log-odds of a chain against two children of one, by the parts of the second step along the first,
# in lengths of the first and of the second: fitted on 153 triples of 40 families of real trainings
# (benchmarks/lineage_trees.py, seed 0), of which it tells 152 right.
_ALONG_FIRST, _ALONG_SECOND, _BETWEEN, _STRAIGHT, _MOST = 9.0, 20.0, 0.7, 4.7, 0.5
# Two runs from the third file, which is farther by this factor of squares: log-odds where both are
# as far, how equal that is, and how chance blurs it.
_RUNS, _FARTHER, _EQUAL, _RUNS_CHANCE = 10.0, 1.2, 0.15, 50.0


def surprise(odds: float) -> float:
    """−log of the probability that these log-odds give."""
    return log1p(exp(-odds)) if odds > 0 else -odds + log1p(exp(odds))


class Bend(NamedTuple):
    """What three files say.

    `chain`: log-odds of first → second → third against two children of the first. `runs`: log-odds
    for the first two as children of the third, two runs of one task: they lie near each other, and
    as far from it.
    """

    chain: float
    runs: float


class Bends:
    """Costs of the places of three files in a tree."""

    def __init__(
        self, groups: Sequence[NDArray[np.float64]], sizes: Sequence[NDArray[np.float64]]
    ) -> None:
        self._groups = list(zip(groups, sizes, strict=True))
        self._known: dict[tuple[int, int, int], Bend | None] = {}

    def between(self, first: int, second: int, third: int) -> Bend | None:
        """By the first group of tensors in which both steps change something; `None` where none
        does."""
        key = first, second, third
        if key not in self._known:
            ways = (_bend(*group, *key) for group in self._groups)
            self._known[key] = next((bend for bend in ways if bend is not None), None)
        return self._known[key]

    def cost(self, node: int, parents: Mapping[int, int], siblings: list[int]) -> float:
        """Of a file's place: below its parent and that one's, and beside its siblings."""
        parent = parents.get(node)
        if parent is None:
            return 0.0
        total = 0.0
        before = parents.get(parent)
        bend = None if before is None else self.between(before, parent, node)
        if bend is not None:
            total += surprise(bend.chain) + bend.runs
        found = [self.between(parent, other, node) for other in siblings if other != node]
        beside = [bend for bend in found if bend is not None]
        total += max((surprise(-bend.chain) for bend in beside), default=0.0)
        return total + max((bend.runs for bend in beside), default=0.0)


def _bend(
    g: NDArray[np.float64], sizes: NDArray[np.float64], b: int, x: int, y: int
) -> Bend | None:
    parts = np.stack([
        g[:, x, y] - g[:, x, x] - g[:, b, y] + g[:, b, x],
        g[:, x, x] + g[:, b, b] - 2 * g[:, b, x],
        g[:, y, y] + g[:, x, x] - 2 * g[:, x, y],
        g[:, b, b] + g[:, x, x] + g[:, y, y],
    ])  # fmt: skip
    held = ~np.isnan(parts).any(axis=0)
    along, first, second, size = (float(part) for part in parts[:, held].sum(axis=1))
    if not size or min(first, second) <= _LEAST * size:
        return None
    tau = min(max(along / first, -1.0), _MOST)
    rho = min(max(along / second, -1.0), _MOST)
    # At −½ both lie as far from the first: children of one. At −1 the third lies between the
    # others, which speaks against this chain less than for another.
    back = rho if rho > -0.5 else -0.5 - _BETWEEN * (rho + 0.5)
    # A long step that went anywhere has a part along a short one by chance.
    ratio, count = second / first, float(sizes[held].sum())
    by_first = (_ALONG_FIRST * tau + _STRAIGHT) / (1 + _ALONG_FIRST * ratio / count)
    chain = by_first + _ALONG_SECOND * back / (1 + _ALONG_SECOND / ratio / count)
    if second <= _FARTHER * first:
        return Bend(chain, 0.0)
    runs = _RUNS * exp(-0.5 * ((tau + 0.5) / _EQUAL) ** 2)
    return Bend(chain, runs / (1 + _RUNS_CHANCE * ratio / count))
