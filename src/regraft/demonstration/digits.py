"""Handwritten digits, bundled with scikit-learn: 1,797 images of 8 × 8 pixels."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from regraft.errors import MissingDependency

if TYPE_CHECKING:
    from regraft.tensors import Array

NOISE = 0.35
SHOTS = 3


class Halves(NamedTuple):
    """Images `(n, 8, 8, 1)` between 0 and 1, and digits `(n,)`, of two disjoint halves."""

    x: Array
    y: Array
    x_other: Array
    y_other: Array


def halves() -> Halves:
    """Every second image each, so that both halves hold all digits and all writers' sheets."""
    try:
        datasets: Any = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise MissingDependency("scikit-learn", extra="demo", purpose="the digits") from error
    found = datasets.load_digits()
    x = (found.images / 16.0).astype(np.float32)[..., None]
    y = found.target.astype(np.int64)
    return Halves(x[0::2], y[0::2], x[1::2], y[1::2])


def few_shot(halves: Halves, seed: int) -> tuple[Array, Array, Array, Array]:
    """The shifted task: noisy images, three labelled ones of each digit; the rest is for testing.

    Images are `(n, 1, 8, 8)`, as the PyTorch model takes them.
    """
    generator = np.random.default_rng(seed)
    noise = generator.normal(0, NOISE, halves.x_other.shape)
    noisy = np.add(halves.x_other, noise, dtype=np.float32, casting="same_kind")
    x, y = noisy.transpose(0, 3, 1, 2).copy(), halves.y_other
    chosen = [generator.permutation(np.flatnonzero(y == digit))[:SHOTS] for digit in range(10)]
    labelled = np.concatenate(chosen)
    rest = np.setdiff1d(np.arange(len(y)), labelled)
    return x[labelled], y[labelled], x[rest], y[rest]
