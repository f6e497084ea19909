"""Activations in numpy, computed in double precision, so that any framework's are met."""

from __future__ import annotations

from collections.abc import Callable
from math import erf, sqrt
from typing import Any

import numpy as np

from regraft.verification.causes._arrays import Array

_erf: Callable[[Any], Any] = np.frompyfunc(erf, 1, 1)


def _sigmoid(x: Any) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _softplus(x: Any) -> Any:
    return np.logaddexp(0, x)


def gelu(x: Any) -> Any:
    return 0.5 * x * (1 + _erf(x / sqrt(2)).astype(np.float64))


def _gelu_tanh(x: Any) -> Any:
    return 0.5 * x * (1 + np.tanh(sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _elu(x: Any) -> Any:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _leaky(slope: float) -> Callable[[Any], Any]:
    return lambda x: np.where(x > 0, x, slope * x)


_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda x: x * _sigmoid(x),
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu(0.01)": _leaky(0.01),
    "leaky_relu(0.2)": _leaky(0.2),
    "leaky_relu(0.1)": _leaky(0.1),
    "leaky_relu(0.3)": _leaky(0.3),
    "leaky_relu(0.02)": _leaky(0.02),
    "leaky_relu(0.05)": _leaky(0.05),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "elu": _elu,
    "selu": lambda x: 1.0507009873554805 * np.where(
        x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))
    ),
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "hardsigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hardsigmoid(0.2)": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "hardtanh": lambda x: np.clip(x, -1, 1),
    "softplus": _softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "relu squared": lambda x: np.square(np.maximum(x, 0)),
    "exp": lambda x: np.exp(np.minimum(x, 80)),
    "no activation": lambda x: x,
}  # fmt: skip


def activation(name: str) -> Callable[[Array], Array]:
    """The function by its name, in the dtype of what it is given."""
    function = _FUNCTIONS[name]

    def apply(x: Array) -> Array:
        with np.errstate(all="ignore"):
            return function(x.astype(np.float64)).astype(x.dtype)

    return apply


NAMES = tuple(_FUNCTIONS)
