"""One network, made in every way in which a target may hold it: dense, batch norm, dense.

Each kind says how to make one, and where its tensors are under common names; kernels are `[in,
out]` there. Widths differ, so that every axis shows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import flax
import flax.linen
import jax
import jax.numpy as jnp
import keras
import numpy as np
import torch
from flax import nnx

from regraft import targets

Values = dict[str, np.ndarray[Any, Any]]
SHAPES = {
    "fc.kernel": (3, 4), "fc.bias": (4,), "norm.scale": (4,), "norm.shift": (4,),
    "norm.mean": (4,), "norm.var": (4,), "head.kernel": (4, 2), "head.bias": (2,),
}  # fmt: skip


def values(seed: int = 0) -> Values:
    generator = np.random.default_rng(seed)
    return {n: generator.uniform(0.2, 2, s).astype(np.float32) for n, s in SHAPES.items()}


class Kind(NamedTuple):
    """`names` are the model's names by the common ones; `rows`: whether kernels are `[out, in]`."""

    target: str
    make: Callable[[], Any]
    names: dict[str, str]
    rows: bool = False


class TorchNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        return self.head(self.norm(self.fc(x)))


class KerasNet(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.fc = keras.layers.Dense(4, name="fc")
        self.norm = keras.layers.BatchNormalization(name="norm", epsilon=1e-5)
        self.head = keras.layers.Dense(2, name="head")

    def call(self, x: Any, training: bool = False) -> Any:
        return self.head(self.norm(self.fc(x), training=training))


def subclassed() -> Any:
    model = KerasNet()
    model(np.ones((1, 3), np.float32))
    return model


def functional(keras: Any = keras) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [layers.Input((3,)), layers.Dense(4, name="fc"),
         layers.BatchNormalization(name="norm", epsilon=1e-5), layers.Dense(2, name="head")]
    )  # fmt: skip


def legacy() -> Any:
    with warnings.catch_warnings(action="ignore"):
        import tf_keras  # pyright: ignore[reportMissingImports]

        return functional(tf_keras)


class LinenNet(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x: Any) -> Any:
        x = flax.linen.Dense(4, name="fc")(x)
        x = flax.linen.BatchNorm(use_running_average=True, name="norm")(x)
        return flax.linen.Dense(2, name="head")(x)


def linen() -> Any:
    return LinenNet().init(jax.random.key(0), jnp.ones((1, 3)))


class NnxNet(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.fc, self.norm = nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(self.norm(self.fc(x)))


def numpy_arrays() -> Any:
    return {n: t.numpy().copy() for n, t in TorchNet().state_dict().items() if "num_" not in n}


def state_dict() -> Any:
    return {name: tensor.clone() for name, tensor in TorchNet().state_dict().items()}


class Holder:
    """An object of no framework that gives its arrays and takes them back."""

    def __init__(self) -> None:
        self.held = numpy_arrays()

    def state_dict(self) -> dict[str, Any]:
        return dict(self.held)

    def load_state_dict(self, held: dict[str, Any]) -> None:
        self.held = dict(held)


TORCH = dict(zip(SHAPES, ("fc.weight", "fc.bias", "norm.weight", "norm.bias", "norm.running_mean",
                          "norm.running_var", "head.weight", "head.bias"), strict=True))  # fmt: skip
KERAS = dict(zip(SHAPES, ("fc/kernel", "fc/bias", "norm/gamma", "norm/beta", "norm/moving_mean",
                          "norm/moving_variance", "head/kernel", "head/bias"), strict=True))  # fmt: skip
NNX = dict(zip(SHAPES, ("fc/kernel", "fc/bias", "norm/scale", "norm/bias", "norm/mean", "norm/var",
                        "head/kernel", "head/bias"), strict=True))  # fmt: skip
LINEN = {n: f"{'batch_stats' if n in ('norm.mean', 'norm.var') else 'params'}/{name}"
         for n, name in NNX.items()}  # fmt: skip

KINDS = {
    "torch": Kind("torch", TorchNet, TORCH, rows=True),
    "keras functional": Kind("keras", functional, KERAS),
    "keras subclassed": Kind("keras", subclassed, KERAS),
    "linen": Kind("jax", linen, LINEN),
    "frozen linen": Kind("jax", lambda: flax.core.freeze(linen()), LINEN),
    "nnx": Kind("jax", NnxNet, NNX),
    "arrays": Kind("arrays", numpy_arrays, TORCH, rows=True),
    "state dict": Kind("arrays", state_dict, TORCH, rows=True),
    "object": Kind("objects", Holder, TORCH, rows=True),
}


# Targets whose framework is not installed here.
ABSENT: set[str] = set()
if find_spec("tf_keras"):
    KINDS["keras 2"] = Kind("tf_keras", legacy, KERAS)
else:
    ABSENT.add("tf_keras")


def filled(name: str, given: Values) -> Any:
    """A model of a kind that holds these values."""
    kind = KINDS[name]
    sink = targets.load(kind.target).sink(kind.make())
    for common, array in given.items():
        sink.write(kind.names[common], _turned(kind, array))
    sink.finish()
    return sink.model


def held(name: str, model: Any) -> Values:
    """The values of a model of a kind, read anew."""
    kind = KINDS[name]
    sink = targets.load(kind.target).sink(model)
    return {common: _turned(kind, sink.read(own)) for common, own in kind.names.items()}


def _turned(kind: Kind, array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.T) if kind.rows and array.ndim == 2 else array
