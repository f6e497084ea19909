"""Numbers that draw: what a step draws depends on the run's seed and its own number alone.

So nothing of the generators' state has to be kept for a run to go on after a kill.
"""

from __future__ import annotations

import random

import numpy as np


def derived(seed: int, *of: int) -> int:
    """A seed of 32 bits for one purpose: a step of an epoch in a process."""
    return int(np.random.SeedSequence([abs(seed), *of]).generate_state(1)[0])


def set_all(seed: int) -> None:
    """Python's and numpy's generators; each framework's is set beside it."""
    random.seed(seed)
    np.random.seed(seed)


def even(count: int, size: int, seed: int) -> list[list[int]]:
    """The samples in batches of at most `size`, for measuring statistics: shuffled, as data sorted
    by class has batches unlike any in training; of one size, or one less, as each counts the same.
    """
    parts = np.array_split(np.asarray(order(count, seed, 0)), -(-count // size))
    return [part.tolist() for part in parts]


def order(count: int, seed: int, epoch: int) -> list[int]:
    """The samples in this epoch's order."""
    return np.random.default_rng(derived(seed, epoch, 1)).permutation(count).tolist()
