"""An exponential moving average of a module's values, and how it takes their place."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


class Average:
    """The average of what moves; statistics and counters are taken as they are now.

    Polyak & Juditsky 1992, Acceleration of Stochastic Approximation by Averaging; the first steps
    are averaged evenly, so that the start does not weigh on a short run.

    **Arguments:**

    - `held`: the tensors by name, asked for at every step, as trainers may exchange them.
    - `moving`: names to average; those in `exact` are copied.
    """

    def __init__(
        self,
        held: Callable[[], Mapping[str, Any]],
        moving: list[str],
        exact: frozenset[str],
        decay: float,
    ) -> None:
        self._held, self._exact, self._decay = held, exact, decay
        self._updates = 0
        now = held()
        self._means = {name: now[name].detach().clone() for name in moving}

    @torch.no_grad()
    def update(self) -> None:
        """To be called after each step of the optimizer."""
        self._updates += 1
        decay = min(self._decay, self._updates / (self._updates + 9))
        held = self._held()
        for name, mean in self._means.items():
            value = held[name].detach()
            if mean.dtype.is_floating_point and name not in self._exact:
                mean.lerp_(value.to(mean.dtype), 1 - decay)
            else:
                mean.copy_(value)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the average and the values."""
        held = self._held()
        for name, mean in self._means.items():
            value = held[name].detach().clone()
            held[name].copy_(mean)
            mean.copy_(value)

    @contextmanager
    def in_place(self) -> Generator[None]:
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def state(self) -> dict[str, Any]:
        return {"updates": self._updates, "means": dict(self._means)}

    def resume(self, state: Mapping[str, Any]) -> None:
        self._updates = state["updates"]
        for name, mean in state["means"].items():
            self._means[name].copy_(mean)
