"""What Keras' optimizers lack: a rate for each variable, and a pull towards pretrained values."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


class Pull(keras.Regularizer):
    """L2-SP (Li et al. 2018): ½α‖w − w⁰‖², beside what was there before.

    `pretrained` is w⁰, in the variable's layout; `None`: 0.
    """

    def __init__(self, strength: float, pretrained: Any = None, beside: Any = None) -> None:
        self.strength, self._pretrained, self._beside = strength, pretrained, beside

    def __call__(self, x: Any) -> Any:
        pretrained = None if self._pretrained is None else np.asarray(self._pretrained)
        away: Any = x if pretrained is None else keras.ops.subtract(x, pretrained)
        squares: Any = keras.ops.sum(keras.ops.square(away))
        term = 0.5 * self.strength * squares
        return term if self._beside is None else term + self._beside(x)


class Paced:
    """Mixed into an optimizer's class: each variable has a rate of its own, and a moving average,
    where there is one, is that of `Policy.ema`.

    - `rates`: by the id of a variable.
    - `means`: averages that this optimizer goes on from, likewise. `averaged`: their steps.
    """

    rates: dict[int, float]
    means: dict[int, Any]
    averaged: int

    def _rate(self, variable: Any) -> float:
        return self.rates.get(id(variable), 1.0)

    def _backend_update_step(
        self, grads: Any, trainable_variables: Any, learning_rate: Any
    ) -> None:
        groups: dict[float, list[tuple[Any, Any]]] = {}
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            groups.setdefault(self._rate(variable), []).append((gradient, variable))
        above: Any = super()
        for rate, members in groups.items():
            ours, variables = zip(*members, strict=True)
            above._backend_update_step(list(ours), list(variables), learning_rate * rate)

    def _apply_weight_decay(self, variables: Any) -> None:
        this: Any = self
        if this.weight_decay is None:
            return
        for variable in variables:
            if this._use_weight_decay(variable):
                share = this.weight_decay * self._rate(variable)
                lr = keras.ops.cast(this.learning_rate, variable.dtype)
                variable.assign(variable - variable * (lr * share))

    def go_on_from(self, other: Any) -> None:
        """Takes over another one's averages."""
        self.averaged = other.steps
        self.means = dict(other.means)
        self.means |= {id(v): _copied(mean) for v, mean in other.averages()}

    def build(self, variables: Any) -> None:
        above: Any = super()
        above.build(variables)
        for variable, mean in self.averages():
            # A copy: JAX takes the variables' own arrays away at each step.
            start = self.means.get(id(variable))
            mean.assign(_copied(variable) if start is None else start)

    def _update_model_variables_moving_average(self, trainable_variables: Any) -> None:
        this: Any = self
        # Keras comes here with every batch, also where gradients are only added up.
        batches = this.gradient_accumulation_steps or 1
        seen: Any = keras.ops.add(keras.ops.cast(this._iterations, "int32"), 1)
        steps: Any = keras.ops.cast(keras.ops.floor_divide(seen, batches), "float32")
        steps = keras.ops.add(steps, self.averaged)
        decay: Any = keras.ops.minimum(this.ema_momentum, steps / (steps + 9.0))
        decay = keras.ops.where(keras.ops.equal(keras.ops.mod(seen, batches), 0), decay, 1.0)
        for variable, mean in self.averages():
            share: Any = keras.ops.cast(decay, mean.dtype)
            mean.assign(mean * share + variable * (1 - share))

    def finalize_variable_values(self, var_list: Any) -> None:
        """The average takes the variables' place when the Tuning is finished, not with each fit:
        another may go on from these."""

    @property
    def steps(self) -> int:
        """How many steps were averaged in all."""
        return self.averaged + int(keras.ops.convert_to_numpy(self.iterations))  # pyright: ignore

    def averages(self) -> list[tuple[Any, Any]]:
        """Pairs of a variable and its moving average."""
        this: Any = self
        if not this.use_ema or not this.built:
            return []
        pairs = zip(this._trainable_variables, this._model_variables_moving_average, strict=True)
        return list(pairs)


def _copied(variable: Any) -> Any:
    return np.array(keras.ops.convert_to_numpy(variable))
