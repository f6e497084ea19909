"""How good predictions are: accuracy and F1 of classes, mean absolute error of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np


def measured(outputs: Any, y: Any, *, classification: bool) -> dict[str, float]:
    """The metrics that fit the task, by name.

    **Arguments:**

    - `outputs`: `(n, classes)` for class numbers, or as `y`. `y`: the answers.

    `f1` is the mean over the classes that occur among answers or predictions (macro F1).
    """
    if not classification:
        return {"mae": float(np.abs(outputs.reshape(y.shape) - y).mean())}
    found = outputs.argmax(1)
    return {"accuracy": float((found == y).mean()), "f1": _f1(found, y)}


def _f1(found: Any, y: Any) -> float:
    scores: list[float] = []
    for label in np.union1d(found, y):
        right = int(((found == label) & (y == label)).sum())
        scores.append(2 * right / int((found == label).sum() + (y == label).sum()))
    return float(np.mean(scores))


def probabilities(outputs: Any) -> bool:
    """Whether a model ends in a softmax, seen from what it gives for a sample or two."""
    return bool((outputs >= 0).all() and (abs(outputs.sum(-1) - 1) < 1e-4).all())
