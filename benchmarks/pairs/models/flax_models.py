"""Flax models, linen and NNX, as counterparts of the torch ones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx


class ConvNet(nn.Module):
    """Convolutions and norms that Flax numbers; statistics lie in a tree of their own."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for _before, after in ((3, 8), (8, 8), (8, 16), (16, 16)):
            x = nn.Conv(after, (3, 3), padding=((1, 1), (1, 1)), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(True, epsilon=1e-5)(x))
        return nn.Dense(5)(x.mean((1, 2)))


class Block(nn.Module):
    """A residual block in the style of Flax' own examples."""

    filters: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: Any) -> Any:
        residual, pads = x, ((1, 1), (1, 1))
        y = nn.Conv(self.filters, (3, 3), self.strides, padding=pads, use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(True, epsilon=1e-5)(y))
        y = nn.Conv(self.filters, (3, 3), padding=pads, use_bias=False)(y)
        y = nn.BatchNorm(True, epsilon=1e-5)(y)
        if residual.shape != y.shape:
            residual = nn.Conv(
                self.filters, (1, 1), self.strides, padding="VALID", use_bias=False,
                name="conv_proj",
            )(residual)  # fmt: skip
            residual = nn.BatchNorm(True, epsilon=1e-5, name="norm_proj")(residual)
        return nn.relu(residual + y)


class ResNet(nn.Module):
    depths: Sequence[int] = (2, 2)
    classes: int = 10

    @nn.compact
    def __call__(self, x: Any) -> Any:
        pads = ((1, 1), (1, 1))
        x = nn.Conv(16, (3, 3), padding=pads, use_bias=False, name="conv_init")(x)
        x = nn.relu(nn.BatchNorm(True, epsilon=1e-5, name="bn_init")(x))
        for stage, depth in enumerate(self.depths):
            for place in range(depth):
                x = Block(16 * 2**stage, 2 if stage and not place else 1)(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))


class EncoderBlock(nn.Module):
    """Post-norm, as `SplitEncoder.Block`; returns a pair, so that it can be scanned."""

    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> Any:
        y = nn.MultiHeadDotProductAttention(4)(x, x)
        x = nn.LayerNorm(epsilon=1e-5)(x + y)
        y = nn.Dense(16)(nn.relu(nn.Dense(32)(x)))
        return nn.LayerNorm(epsilon=1e-5)(x + y), None


class Encoder(nn.Module):
    """`scanned`: all blocks in one, with arrays `[layers, …]`."""

    layers: int = 2
    scanned: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Dense(16)(x)
        if self.scanned:
            blocks = nn.scan(
                EncoderBlock, variable_axes={"params": 0}, split_rngs={"params": True},
                length=self.layers,
            )  # fmt: skip
            x, _ = blocks(name="blocks")(x, None)
        else:
            for _ in range(self.layers):
                x, _ = EncoderBlock()(x)
        return nn.Dense(5)(x.mean(1))


class Recurrent(nn.Module):
    """One recurrent layer and a head on its last step."""

    kind: str = "LSTM"

    @nn.compact
    def __call__(self, x: Any) -> Any:
        cell = nn.OptimizedLSTMCell(8) if self.kind == "LSTM" else nn.GRUCell(8)
        return nn.Dense(5)(nn.RNN(cell)(x)[:, -1])


class LeNet(nn.Module):
    """The map is flattened as it is, channels last."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for width in (6, 16):
            x = nn.relu(nn.Conv(width, (5, 5), padding="VALID")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(40)(x))
        return nn.Dense(10)(nn.relu(nn.Dense(24)(x)))


class Depthwise(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.relu(nn.Conv(6, (3, 3), padding="SAME", feature_group_count=3, use_bias=False)(x))
        x = nn.relu(nn.Conv(10, (1, 1))(x))
        x = nn.relu(nn.Conv(10, (3, 3), padding="SAME", feature_group_count=5)(x))
        return nn.Dense(5)(x.mean((1, 2)))


class NnxNet(nnx.Module):
    """NNX keeps norms' statistics beside their scales, and lists under numbers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        widths = (3, 8, 8, 16)
        pairs = list(itertools.pairwise(widths))
        self.convs = nnx.List(
            nnx.Conv(a, b, (3, 3), padding=((1, 1), (1, 1)), use_bias=False, rngs=rngs)
            for a, b in pairs
        )
        self.norms = nnx.List(
            nnx.BatchNorm(b, use_running_average=True, epsilon=1e-5, rngs=rngs) for _, b in pairs
        )
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.head(x.mean((1, 2)))


class NnxEncoder(nnx.Module):
    """Attention of NNX, whose kernels are `[width, heads, head]`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Linear(6, 16, rngs=rngs)
        self.attention = nnx.List(
            nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs) for _ in range(2)
        )
        self.norm_a = nnx.List(nnx.LayerNorm(16, epsilon=1e-5, rngs=rngs) for _ in range(2))
        self.wide = nnx.List(nnx.Linear(16, 32, rngs=rngs) for _ in range(2))
        self.narrow = nnx.List(nnx.Linear(32, 16, rngs=rngs) for _ in range(2))
        self.norm_b = nnx.List(nnx.LayerNorm(16, epsilon=1e-5, rngs=rngs) for _ in range(2))
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.embed(x)
        for i in range(2):
            x = self.norm_a[i](x + self.attention[i](x))
            x = self.norm_b[i](x + self.narrow[i](nnx.relu(self.wide[i](x))))
        return self.head(x.mean(1))


def initial(net: nn.Module, x: Any) -> Any:
    """A tree of a linen model, without running it on values."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
