"""One-to-one assignment with margins: how much worse is the best answer that says otherwise?

The margin of a pair is the loss of the best complete assignment without that pair. It is exact:
every other assignment differs from the best one by alternating cycles, so the margin is the
lightest cycle through the pair, found by all-pairs shortest paths (Floyd and Warshall).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Choice(NamedTuple):
    """The best column for one row, its margin, and the losses of all columns (0 for the best)."""

    column: int
    margin: float
    losses: NDArray[np.float64]


def assign(scores: NDArray[np.float64]) -> list[Choice | None]:
    """For each row its Choice, or `None` where it stays alone (score 0 is as good as alone).

    **Arguments:**

    - `scores`: `[rows, columns]`, 0 or more; infeasible pairs are `-inf`.
    """
    rows, columns = scores.shape
    size = rows + columns  # every row and every column may stay alone
    square = np.full((size, size), -np.inf)
    square[:rows, :columns] = scores
    square[range(rows), range(columns, size)] = 0.0
    square[range(rows, size), range(columns)] = 0.0
    square[rows:, columns:] = 0.0
    best = _best(square)
    kept = square[range(size), best]
    # Row i could take over the column of row j at this loss.
    loss = kept[:, None] - square[:, best]
    shortest = loss.copy()
    for middle in range(size):
        np.minimum(shortest, shortest[:, middle, None] + shortest[None, middle], out=shortest)
    holder = np.argsort(best)  # column → row that has it
    result: list[Choice | None] = []
    for row in range(rows):
        if best[row] >= columns:
            result.append(None)
            continue
        # Take a column away from its holder, who must then find a way back to ours.
        losses = np.maximum(loss[row] + np.where(np.arange(size) == row, 0, shortest[:, row]), 0)
        others = np.delete(losses, row)
        per_column = losses[holder[:columns]]
        result.append(Choice(int(best[row]), float(others.min()), per_column))
    return result


def _best(square: NDArray[np.float64]) -> NDArray[np.intp]:
    from scipy.optimize import linear_sum_assignment  # takes a second to import

    finite = np.where(np.isfinite(square), square, -1e6)
    _, columns = linear_sum_assignment(finite, maximize=True)
    return columns
