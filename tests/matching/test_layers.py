"""Layer by layer between Keras, PyTorch and Flax: layouts proven by equal outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg

K = keras.layers
Case = tuple[tuple[int, ...], Callable[[], Any], Callable[[], nn.Module]]


class Separable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Conv2d(4, 8, 3, groups=4, bias=False)
        self.point = nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.point(self.depth(x))


# Shape of one sample in Keras (channels last), the layer there and its counterpart.
CASES: dict[str, Case] = {
    "dense": ((6,), lambda: K.Dense(5), lambda: nn.Linear(6, 5)),
    "square dense": ((6,), lambda: K.Dense(6), lambda: nn.Linear(6, 6)),
    "conv1d": ((9, 4), lambda: K.Conv1D(5, 3), lambda: nn.Conv1d(4, 5, 3)),
    "conv2d": ((8, 7, 4), lambda: K.Conv2D(5, (3, 2)), lambda: nn.Conv2d(4, 5, (3, 2))),
    "square conv2d": ((8, 7, 3), lambda: K.Conv2D(3, 3), lambda: nn.Conv2d(3, 3, 3)),
    "conv3d": ((5, 6, 7, 2), lambda: K.Conv3D(3, 2), lambda: nn.Conv3d(2, 3, 2)),
    "grouped": ((8, 7, 4), lambda: K.Conv2D(6, 3, groups=2), lambda: nn.Conv2d(4, 6, 3, groups=2)),
    "depthwise": (
        (8, 7, 4),
        lambda: K.DepthwiseConv2D(3, depth_multiplier=2),
        lambda: nn.Conv2d(4, 8, 3, groups=4),
    ),
    "plain depthwise": (
        (8, 7, 4), lambda: K.DepthwiseConv2D(3), lambda: nn.Conv2d(4, 4, 3, groups=4),
    ),
    "separable": ((8, 7, 4), lambda: K.SeparableConv2D(5, 3, depth_multiplier=2), Separable),
    "transposed": (
        (6, 7, 4), lambda: K.Conv2DTranspose(5, 3, 2), lambda: nn.ConvTranspose2d(4, 5, 3, 2),
    ),
    "square transposed": (
        (6, 7, 4), lambda: K.Conv2DTranspose(4, 3), lambda: nn.ConvTranspose2d(4, 4, 3),
    ),
    "batch norm": (
        (6, 7, 4), lambda: K.BatchNormalization(epsilon=1e-5), lambda: nn.BatchNorm2d(4),
    ),
    "layer norm": ((6,), lambda: K.LayerNormalization(epsilon=1e-5), lambda: nn.LayerNorm(6)),
    "group norm": (
        (6, 7, 4), lambda: K.GroupNormalization(2, epsilon=1e-5), lambda: nn.GroupNorm(2, 4),
    ),
    "grouped depthwise": (
        (9, 4), lambda: K.DepthwiseConv1D(3, depth_multiplier=2),
        lambda: nn.Conv1d(4, 8, 3, groups=4),
    ),
    "transposed conv1d": (
        (6, 4), lambda: K.Conv1DTranspose(5, 3, 2), lambda: nn.ConvTranspose1d(4, 5, 3, 2),
    ),
    "transposed conv3d": (
        (3, 4, 5, 2), lambda: K.Conv3DTranspose(3, 2), lambda: nn.ConvTranspose3d(2, 3, 2),
    ),
    "slope": ((6, 7, 4), lambda: K.PReLU(shared_axes=[1, 2]), lambda: nn.PReLU(4)),
}  # fmt: skip


def channels_first(x: Any) -> Any:
    return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if x.ndim > 2 else x


@pytest.mark.parametrize("name", CASES)
def test_keras_and_pytorch(name: str) -> None:
    shape, make_keras, make_torch = CASES[name]
    generator = np.random.default_rng(0)
    ours = keras.Sequential([K.Input(shape), make_keras()])
    for variable in ours.weights:
        variable.assign(generator.uniform(0.2, 1.0, variable.shape))
    x = generator.normal(size=(2, *shape)).astype(np.float32)
    expected = channels_first(np.asarray(ours(x, training=False)))
    theirs = nn.Sequential(make_torch())
    probe = rg.Probe(channels_first(x), expected)
    assert rg.plan(ours, theirs).complete
    assert rg.load(ours, theirs, probe=probe, accept=["little-in-common"]).verified

    again = keras.Sequential([K.Input(shape), make_keras()])
    back = rg.Probe(x, np.asarray(ours(x, training=False)))
    assert rg.plan(theirs, again).complete
    assert rg.load(theirs, again, probe=back, accept=["little-in-common"]).verified


def test_flax_transposed_convolutions_are_turned_round() -> None:
    import jax
    from flax import linen

    layer = linen.ConvTranspose(5, (3, 3), padding="VALID", strides=(2, 2))
    x = np.random.default_rng(0).normal(size=(2, 6, 7, 4)).astype(np.float32)
    tree = jax.tree.map(np.asarray, layer.init(jax.random.key(0), x))
    generator = np.random.default_rng(1)
    tree = jax.tree.map(lambda leaf: jax.numpy.asarray(generator.normal(size=leaf.shape)), tree)
    named = {"params": {"ConvTranspose_0": tree["params"]}}
    expected = channels_first(np.asarray(layer.apply(tree, x)))
    model = nn.Sequential(nn.ConvTranspose2d(4, 5, 3, 2))
    probe = rg.Probe(channels_first(x), expected)
    assert rg.load(named, model, probe=probe, accept=["little-in-common"]).verified


class Fused(nn.Module):
    """PyTorch's own attention, of four heads."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 4, bias=bias, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn(x, x, x)[0]


class Split(nn.Module):
    """The same with a layer for each projection."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(16, 16, bias=bias) for _ in range(4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (layer(x).unflatten(-1, (4, 4)).transpose(1, 2) for layer in layers)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out_proj(y.transpose(1, 2).flatten(2))


def keras_attention() -> Any:
    tokens = K.Input((7, 16))
    model = keras.Model(tokens, K.MultiHeadAttention(4, 4)(tokens, tokens))
    generator = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(generator.uniform(-1.0, 1.0, variable.shape))
    return model


@pytest.mark.parametrize("kind", [Fused, Split])
def test_heads_as_an_axis_of_keras(kind: type[Fused | Split]) -> None:
    """As many heads as their size, and as wide as the model: only roles tell the axes apart."""
    x = np.random.default_rng(1).normal(size=(2, 7, 16)).astype(np.float32)
    ours, theirs = keras_attention(), kind().eval()
    expected = np.asarray(ours(x, training=False))
    plan = rg.plan(ours, theirs)
    assert plan.complete, str(plan)
    loaded: Any = rg.apply(plan, ours, theirs).model
    with torch.no_grad():
        np.testing.assert_allclose(loaded(torch.from_numpy(x)).numpy(), expected, atol=1e-4)
    again = keras_attention()
    for variable in again.weights:
        variable.assign(variable * 0)
    back = rg.plan(theirs, again)
    assert back.complete, str(back)
    rg.apply(back, theirs, again)
    np.testing.assert_allclose(np.asarray(again(x, training=False)), expected, atol=1e-4)


@pytest.mark.parametrize("kind", [Fused, Split])
@pytest.mark.parametrize("bias", [True, False])
def test_heads_as_an_axis_of_flax(kind: type[Fused | Split], bias: bool) -> None:
    import jax
    from flax import linen

    layer = linen.MultiHeadDotProductAttention(4, use_bias=bias)
    x = np.random.default_rng(1).normal(size=(2, 7, 16)).astype(np.float32)
    generator = np.random.default_rng(2)
    tree: Any = jax.tree.map(
        lambda leaf: jax.numpy.asarray(generator.normal(size=leaf.shape), "float32"),
        layer.init(jax.random.key(0), x, x),
    )
    model = kind(bias).eval()
    plan = rg.plan(tree, model)
    assert plan.complete, str(plan)
    loaded: Any = rg.apply(plan, tree, model).model
    expected = np.asarray(layer.apply(tree, x, x))
    with torch.no_grad():
        np.testing.assert_allclose(loaded(torch.from_numpy(x)).numpy(), expected, atol=1e-4)
    back = rg.plan(loaded, jax.tree.map(jax.numpy.zeros_like, tree))
    assert back.complete, str(back)
    again: Any = rg.apply(back, loaded, jax.tree.map(jax.numpy.zeros_like, tree)).model
    np.testing.assert_allclose(np.asarray(layer.apply(again, x, x)), expected, atol=1e-4)


def test_a_kernel_of_three_axes_without_a_telling_name_is_open() -> None:
    """It may be a convolution over a whole sequence or an attention's that reads heads."""
    import jax

    tree = {"params": {"mixing": {"kernel": jax.numpy.ones((4, 4, 16))}}}
    plan = rg.plan(tree, nn.Sequential(nn.Linear(16, 16, bias=False)))
    open_ = plan.undecided["0.weight"]
    assert len(open_.alternatives) > 1
    assert all("rg.pin" in way.rule for way in open_.alternatives)


def test_leaving_a_count_out_leaves_its_layer_in(tmp_path: Path) -> None:
    source, target = (
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        for _ in range(2)
    )
    rg.convert(source, tmp_path / "model.npz")
    plan = rg.plan(tmp_path / "model.npz", target, rules=[rg.leave("1.num_batches_tracked")])
    assert {g.sources for g in plan.grafts.values() if g.written} == {
        (name,) for name in target.state_dict() if not name.endswith("tracked")
    }
    assert plan.complete
    assert not plan.unused
    assert not plan.warnings


def test_a_norm_that_is_left_out_is_no_folded_norm() -> None:
    source, target = (
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        for _ in range(2)
    )
    plan = rg.plan(source, target, rules=[rg.leave("1.*")])
    assert [w.code for w in plan.warnings] == ["norm-left-out"]
    assert not plan.grafts["1.num_batches_tracked"].sources
    with pytest.raises(rg.IncompletePlan, match="norm-left-out"):
        rg.load(source, target, unused=["1.*"])
