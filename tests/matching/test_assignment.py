"""Margins and losses of the best assignment, compared with all assignments there are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from regraft.matching import assignment
from regraft.matching.assignment import assign

LIMIT = 0.8


def answers(scores: NDArray[np.float64], row: int = 0) -> Iterator[tuple[float, dict[int, int]]]:
    """All one-to-one answers with their scores; who is not in one is alone."""
    if row == len(scores):
        yield 0.0, {}
        return
    for total, chosen in answers(scores, row + 1):
        yield total, chosen
        for column in np.flatnonzero(np.isfinite(scores[row])).tolist():
            if column not in chosen.values():
                yield total + scores[row, column], {row: column, **chosen}


def drawn(seed: int) -> NDArray[np.float64]:
    """Scores of a few rows and columns, most of them near each other, some infeasible."""
    generator = np.random.default_rng(seed)
    shape = tuple(generator.integers(1, 6, 2))
    scores = generator.integers(0, 8, shape) / 4 + generator.random(shape) / 100
    scores[generator.random(shape) < 0.25] = -np.inf
    return scores


@pytest.mark.parametrize("seed", range(300))
def test_margins_are_those_of_all_answers(seed: int) -> None:
    scores = drawn(seed)
    everything = list(answers(scores))
    most, best = max(everything, key=lambda answer: answer[0])
    for row, choice in enumerate(assign(scores.copy(), LIMIT)):
        if row not in best or scores[row, best[row]] <= 0:
            continue
        assert choice is not None
        assert choice.column == best[row]
        others = [total for total, chosen in everything if chosen.get(row) != best[row]]
        margin = most - max(others)
        if margin < LIMIT:
            assert choice.margin == pytest.approx(margin, abs=1e-9)
        else:
            assert LIMIT - 1e-9 <= choice.margin <= margin + 1e-9
        near = dict(choice.near)
        assert next(iter(near)) == best[row]
        for column in np.flatnonzero(np.isfinite(scores[row])).tolist():
            ways = [total for total, chosen in everything if chosen.get(row) == column]
            loss = most - max(ways)
            assert (column in near) == (loss < LIMIT - 1e-9) or abs(loss - LIMIT) < 1e-6
            if column in near:
                assert near[column] == pytest.approx(loss, abs=1e-9)


def test_of_what_is_too_large_to_search_less_is_settled_and_never_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where margins are but bounds, none is above what it is."""
    for seed in range(100):
        scores = drawn(seed)
        exact = assign(scores.copy(), LIMIT)
        with monkeypatch.context() as patch:
            patch.setattr(assignment, "_SEARCHED", 1)
            bounds = assign(scores.copy(), LIMIT)
        for one, other in zip(exact, bounds, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert other.column == one.column
                assert other.margin <= one.margin + 1e-9
                assert {column for column, _ in one.near} <= {column for column, _ in other.near}


def test_hundreds_of_equals_are_all_open() -> None:
    choices = assign(np.ones((700, 700)), LIMIT)
    assert all(choice is not None and choice.margin == 0 for choice in choices)
    assert all(choice is not None and len(choice.near) == 700 for choice in choices)


def test_what_nobody_wants_is_alone() -> None:
    assert assign(np.full((2, 3), -np.inf), LIMIT) == [None, None]
    assert assign(np.empty((2, 0)), LIMIT) == [None, None]
    assert assign(np.zeros((1, 1)), LIMIT) == [None]
