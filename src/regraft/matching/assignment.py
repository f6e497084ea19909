"""One-to-one assignment with margins: how much worse is the best answer that says otherwise?

The margin of a pair is the loss of the best complete assignment without that pair. Every other
assignment differs from the best one by alternating cycles, so the margin is the lightest cycle
through the pair. Potentials (shortest ways from anywhere, Bellman and Ford) make all losses 0 or
more; then only losses below the limit of interest can be part of a cycle that is, and the cycles
lie within strongly connected components of these (all-pairs shortest ways there: Floyd and
Warshall). Where a component is so large that this would take minutes, its margins are bounds from
below: too much is left open there, and never too little.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]
_Places = NDArray[np.intp]
# Components up to this size are searched as a whole; of larger ones only bounds are told.
_SEARCHED = 600
_BLOCK = 256


class Choice(NamedTuple):
    """The best column for one row; its margin, exact where it is below the limit and a bound from
    below elsewhere; and the columns that the row could have at a loss below it, best first."""

    column: int
    margin: float
    near: tuple[tuple[int, float], ...]


def assign(scores: _Floats, limit: float) -> list[Choice | None]:
    """For each row its Choice, or `None` where it stays alone (score 0 is as good as alone).

    **Arguments:**

    - `scores`: `[rows, columns]`, 0 or more; infeasible pairs are `-inf`.
    - `limit`: margins and losses from here on need not be exact.
    """
    if scores.shape == (1, 1):
        score = float(scores[0, 0])
        return [Choice(0, score, ((0, 0.0),)) if score > 0 else None]
    best = _best(scores) if scores.size else np.full(len(scores), -1, np.intp)
    held = np.flatnonzero(best >= 0)
    result: list[Choice | None] = [None] * len(scores)
    if not len(held):
        return result
    free = np.setdiff1d(np.arange(scores.shape[1]), best)
    loss, spare = _losses(scores, best, held, free)
    around = _cycles(loss, limit)
    for place, row in enumerate(held.tolist()):
        margin, others, losses, home = around[place]
        near = [(int(best[row]), 0.0)]
        # Another row's column, or one that no row has: then what is left goes the way home.
        near += [
            (int(best[held[k]]), float(x)) for k, x in zip(others, losses, strict=True)
            if k < len(held)
        ]  # fmt: skip
        unheld = spare[place] + home
        near += [(int(free[k]), float(unheld[k])) for k in np.flatnonzero(unheld < limit)]
        near[1:] = sorted(near[1:], key=lambda way: way[1])
        result[row] = Choice(int(best[row]), margin, tuple(near))
    return result


def _best(scores: _Floats) -> _Places:
    """The column of each row in the best assignment, -1 where it is better alone."""
    worth = np.where(np.isfinite(scores), scores, 0.0)
    rows = np.arange(len(scores))
    columns = worth.argmax(axis=1)
    if len(set(columns.tolist())) < len(columns):  # else no row is in another's way
        from scipy.optimize import linear_sum_assignment  # takes a second to import

        rows, columns = linear_sum_assignment(worth, maximize=True)
    best = np.full(len(scores), -1, np.intp)
    best[rows] = columns
    best[rows[worth[rows, columns] <= 0]] = -1
    return best


def _losses(
    scores: _Floats, best: _Places, held: _Places, free: _Places
) -> tuple[_Floats, _Floats]:
    """`[n + 1, n + 1]`: what is lost when a row takes over the column of another; the last place
    stands for all that is alone, rows and columns. And `[n, free]`: what is lost when a row takes a
    column that no row has."""
    count = len(held)
    kept = scores[held, best[held]]
    alone = np.setdiff1d(np.arange(len(scores)), held)
    loss = np.zeros((count + 1, count + 1))
    loss[:count, :count] = kept[:, None] - scores[np.ix_(held, best[held])]
    spare = kept[:, None] - scores[np.ix_(held, free)]
    loss[:count, count] = np.minimum(kept, spare.min(axis=1, initial=np.inf))
    taken = scores[np.ix_(alone, best[held])].max(axis=0, initial=0.0)
    loss[count, :count] = -taken
    return loss, spare


_Around = tuple[float, _Places, _Floats, float]


def _cycles(loss: _Floats, limit: float) -> list[_Around]:
    """For each place but the last: the lightest cycle through it; the places that it could go to
    on a cycle below the limit, with the weights of these cycles; and the way home from the last
    place, to be added to the loss of a way there."""
    potential = _potentials(loss)
    size = len(loss)
    for start in range(0, size, _BLOCK):  # in place: there may be millions
        rows = slice(start, start + _BLOCK)
        loss[rows] += potential[rows, None] - potential[None, :]
    np.maximum(loss, 0.0, out=loss)
    np.fill_diagonal(loss, np.inf)
    bounds = loss.min(axis=1) + loss.min(axis=0)
    nobody = np.empty(0, np.intp), np.empty(0)
    # Without a cycle below the limit, what is known is a bound.
    found: list[_Around] = [(max(float(b), limit), *nobody, np.inf) for b in bounds[:-1]]
    for members in _components(loss < limit):
        if len(members) > _SEARCHED:
            for place in members[members < size - 1].tolist():
                ways = members[loss[place, members] < limit]
                home = potential[place] - potential[-1] if size - 1 in members else np.inf
                found[place] = float(bounds[place]), ways, loss[place, ways], home
            continue
        within = loss[np.ix_(members, members)]
        back = _shortest(within)
        cycles = within + back.T
        for k, place in enumerate(members.tolist()):
            if place == size - 1:
                continue
            ways = np.flatnonzero(cycles[k] < limit)
            home = np.inf
            if members[-1] == size - 1:
                home = back[-1, k] + potential[place] - potential[-1]
            lightest = float(cycles[k].min())
            if lightest < limit:
                found[place] = lightest, members[ways], cycles[k, ways], home
    return found


def _potentials(loss: _Floats) -> _Floats:
    """The shortest ways to each place from anywhere; with them no loss is below 0."""
    ways = np.zeros(len(loss))
    for _ in range(len(loss)):
        shorter = ways.copy()
        for start in range(0, len(loss), _BLOCK):
            rows = slice(start, start + _BLOCK)
            np.minimum(shorter, (ways[rows, None] + loss[rows]).min(axis=0), out=shorter)
        if np.allclose(shorter, ways, rtol=0, atol=1e-12):
            break
        ways = shorter
    return ways


def _components(edges: NDArray[np.bool_]) -> Iterator[_Places]:
    """Strongly connected components of two places and more."""
    if len(edges) <= 3:
        yield np.arange(len(edges))
        return
    if not edges.any():
        return
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    _, labels = connected_components(csr_array(edges), connection="strong")
    order = np.argsort(labels, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if len(members) > 1:
            yield members


def _shortest(loss: _Floats) -> _Floats:
    """All-pairs shortest ways."""
    ways = loss.copy()
    np.fill_diagonal(ways, 0.0)
    for middle in range(len(ways)):
        np.minimum(ways, ways[:, middle, None] + ways[None, middle], out=ways)
    return ways
