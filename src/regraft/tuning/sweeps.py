"""A learning rate to start with, from a short run in which it grows.

Smith 2017, Cyclical Learning Rates for Training Neural Networks, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from regraft.errors import TargetError

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 80
# The run ends where the loss is so many times its lowest; losses are smoothed over some steps.
_DIVERGED, _SMOOTHING = 4.0, 0.9
_LAG = round(_SMOOTHING / (1 - _SMOOTHING))  # steps by which a mean of this kind comes late


def sweep(step: Callable[[float], float]) -> tuple[list[float], list[float]]:
    """Rates from low to high and the losses at them; `step(rate)` takes a step and gives its
    loss before it."""
    rates: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for number in range(STEPS):
        rate = LOWEST * (HIGHEST / LOWEST) ** (number / (STEPS - 1))
        loss = step(rate)
        if not math.isfinite(loss):
            break
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        rates.append(rate)
        losses.append(mean / (1 - _SMOOTHING ** (number + 1)))
        if losses[-1] > _DIVERGED * min(losses):
            break
    return rates, losses


def suggested(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the loss falls fastest: that of the smoothed one, less its lag.

    **Raises** `TargetError` where it falls nowhere.
    """
    slopes = {
        i: losses[i + 1] - losses[i - 1] for i in range(5, len(losses) - 1)
    }  # the first few are not smooth yet
    best = min(slopes, key=lambda i: slopes[i], default=None)
    if best is None or slopes[best] >= 0:
        raise TargetError(
            "the learning-rate finder",
            found=f"a loss that falls at no rate between {LOWEST:g} and {HIGHEST:g}",
            expected="a model and data with something to learn",
            hint="give a rate (--lr 0.001)",
        )
    return rates[max(best - _LAG, 0)]
