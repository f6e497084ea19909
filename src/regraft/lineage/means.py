"""Merged files: those that are weighted means of others (soups, interpolations)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from regraft.lineage.portraits import Portrait

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A merged file is a mean of others up to this share of its distance to the next of them; each has
# at least this weight. Values that are looked at, at most; and at least, for each file.
_REST, _LEAST, _VALUES, _ENOUGH = 0.02, 0.02, 20_000, 50


def common_names(family: Sequence[Portrait]) -> list[str]:
    """Tensors that all files have, in one shape, and in which not all are equal."""
    first, *others = family
    return [
        name
        for name, part in first.parts.items()
        if all(name in p.parts and p.parts[name].shape == part.shape for p in others)
        and any(p.parts[name].hash != part.hash for p in others)
    ]


def means(family: Sequence[Portrait]) -> dict[str, tuple[str, ...]]:
    """Merged files with those they are means of: found by non-negative least squares over places in
    which files differ."""
    if len(family) < 3:
        return {}
    names = common_names(family)
    if not names:
        return {}
    rows = np.concatenate([np.stack([p.parts[n].values for p in family]) for n in names], axis=1)
    rows = rows[:, np.ptp(rows, axis=0) > 0]
    rows = rows[:, :: max(1, rows.shape[1] // _VALUES)]
    if rows.shape[1] < _ENOUGH * len(family):
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for i, portrait in enumerate(family):
        others = [j for j in range(len(family)) if j != i]
        weights = _weights(rows[i], rows[others])
        if weights is not None:
            found[portrait.name] = tuple(
                family[j].name for j, w in zip(others, weights, strict=True) if w > _LEAST
            )
    return found


def _weights(row: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Weights that sum to 1 and give the row, two of them at least; `None` where none do."""
    from scipy.optimize import nnls

    near = float(np.linalg.norm(others - row, axis=1).min())
    if not near:
        return None
    scale = float(np.abs(others).max()) * len(row) ** 0.5 * 100
    system = np.vstack([others.T, np.full(len(others), scale)])
    weights, _ = nnls(system, np.append(row, scale))
    rest = float(np.linalg.norm(weights @ others - row))
    several = int((weights > _LEAST).sum()) > 1
    return weights if several and rest <= _REST * near else None
