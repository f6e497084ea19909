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
        away = x if self._pretrained is None else x - np.asarray(self._pretrained)
        squares: Any = keras.ops.sum(keras.ops.square(away))
        term = 0.5 * self.strength * squares
        return term if self._beside is None else term + self._beside(x)


class Paced:
    """Mixed into an optimizer's class: each variable has a rate of its own."""

    rates: dict[int, float]
    overwrite: bool

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

    def finalize_variable_values(self, var_list: Any) -> None:
        above: Any = super()
        if self.overwrite:
            above.finalize_variable_values(var_list)

    def averages(self) -> list[tuple[Any, Any]]:
        """Pairs of a variable and its moving average."""
        this: Any = self
        if not this.use_ema:
            return []
        pairs = zip(this._trainable_variables, this._model_variables_moving_average, strict=True)
        return list(pairs)
