"""An exponential moving average of a module's values, and how it takes their place."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from regraft.tuning.policies import decay_at


class Average:
    """The average of what moves; statistics and counters are taken as they are now.

    See `Policy.ema`. Averages of short floats are kept in float32, where small steps are not lost.

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
        self.updates = 0
        now = held()
        self._means = {name: _wide(now[name].detach().clone()) for name in moving}

    @torch.no_grad()
    def update(self) -> None:
        """To be called after each step of the optimizer."""
        self.updates += 1
        decay = decay_at(self.updates, self._decay)
        held = self._held()
        for name, mean in self._means.items():
            value = held[name].detach()
            if (mean.is_floating_point() or mean.is_complex()) and name not in self._exact:
                mean.lerp_(value.to(mean.dtype), 1 - decay)
            else:
                mean.copy_(value)

    @torch.no_grad()
    def put(self) -> None:
        """Puts the average in the place of the values."""
        held = self._held()
        for name, mean in self._means.items():
            held[name].copy_(mean)

    @contextmanager
    def in_place(self) -> Generator[None]:
        """The average in the place of the values, for a while."""
        values = {name: tensor.detach().clone() for name, tensor in self._held().items()
                  if name in self._means}  # fmt: skip
        self.put()
        try:
            yield
        finally:
            held = self._held()
            with torch.no_grad():
                for name, value in values.items():
                    held[name].copy_(value)

    def state(self) -> dict[str, Any]:
        return {"updates": self.updates, "means": dict(self._means)}

    def resume(self, state: Mapping[str, Any]) -> None:
        self.updates = state["updates"]
        for name, mean in state["means"].items():
            self._means[name].copy_(mean)


def _wide(tensor: Any) -> Any:
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor
