"""Inputs for probes, the same each time: random, and such as show one thing clearly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from regraft.errors import VerificationFailed
from regraft.tensors import Array


def _random(shape: Sequence[int], seed: int, high: int) -> Array:
    generator = np.random.default_rng(seed)
    if high:
        return generator.integers(0, high, shape, np.int64)
    return generator.standard_normal(shape, np.float32)


def _impulse(shape: Sequence[int], seed: int, high: int) -> Array:
    """One at one place of each sample, which is another one in each, and zero elsewhere."""
    del high
    made = np.zeros(shape, np.float32)
    size = int(np.prod(shape[1:]))
    places = np.random.default_rng(seed).permutation(size)
    for sample in range(shape[0]):
        made[sample].reshape(-1)[places[sample % size]] = 1.0
    return made


def _ramp(shape: Sequence[int], seed: int, high: int) -> Array:
    """From −1 to 1 along all axes in turn: rows and columns, and their directions, differ."""
    del seed, high
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def _token(shape: Sequence[int], seed: int, high: int) -> Array:
    """The same token at all places of a sample, another one in each."""
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, max(high, 1), (shape[0], *[1] * (len(shape) - 1)), np.int64)
    return np.broadcast_to(rows, tuple(shape)).copy()


_KINDS: dict[str, Callable[[Sequence[int], int, int], Array]] = {
    "random": _random,
    "impulse": _impulse,
    "ramp": _ramp,
    "token": _token,
}


def kinds() -> list[str]:
    return list(_KINDS)


def made(kind: str, shape: Sequence[int], *, seed: int = 0, high: int = 0) -> Array:
    """Inputs of a shape, float32, or whole numbers below `high` where that is given.

    **Raises** `VerificationFailed` for an unknown kind and for shapes without samples.
    """
    if kind not in _KINDS or not shape or min(shape) < 1:
        raise VerificationFailed(
            f"{kind} inputs of shape {list(shape)}", found="no such inputs",
            expected=f"one of {', '.join(_KINDS)}, and sizes of 1 and more",
        )  # fmt: skip
    return _KINDS[kind](shape, seed, high)
