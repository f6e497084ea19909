"""Recurrent layers: one layer in every framework, whatever its gates, biases and directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

import regraft as rg

STEPS, INPUTS, UNITS = 4, 5, 7
X = np.random.default_rng(1).normal(size=(2, STEPS, INPUTS)).astype(np.float32)
KINDS = {
    "LSTM": (nn.LSTM, linen.OptimizedLSTMCell, nnx.OptimizedLSTMCell),
    "GRU": (nn.GRU, linen.GRUCell, nnx.GRUCell),
    "SimpleRNN": (nn.RNN, linen.SimpleCell, nnx.SimpleCell),
}
# Layers, whether they run both ways.
STACKS = [(1, False), (2, False), (3, True)]


class Net(nn.Module):
    def __init__(self, kind: type[nn.Module], layers: int, both: bool, **options: Any) -> None:
        super().__init__()
        self.rec = kind(INPUTS, UNITS, layers, batch_first=True, bidirectional=both, **options)
        self.out = nn.Linear(2 * UNITS if both else UNITS, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rec(x)[0])


class FlaxNet(linen.Module):
    cell: Any
    layers: int
    both: bool

    @linen.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(self.layers):
            one: Any = linen.RNN(self.cell(UNITS))
            x = linen.Bidirectional(one, linen.RNN(self.cell(UNITS)))(x) if self.both else one(x)
        return linen.Dense(3)(x)


def torch_net(kind: str, layers: int, both: bool, seed: int, **options: Any) -> nn.Module:
    model = Net(KINDS[kind][0], layers, both, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


def keras_net(kind: str, layers: int, both: bool, seed: int, **options: Any) -> Any:
    model = keras.Sequential([keras.layers.Input((STEPS, INPUTS))])
    for _ in range(layers):
        layer = getattr(keras.layers, kind)(UNITS, return_sequences=True, **options)
        model.add(keras.layers.Bidirectional(layer) if both else layer)
    model.add(keras.layers.Dense(3))
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(0.5 * generator.normal(size=variable.shape))
    return model


def flax_net(kind: str, layers: int, both: bool, seed: int) -> tuple[FlaxNet, Any]:
    net = FlaxNet(KINDS[kind][1], layers, both)
    return net, random_tree(net.init(jax.random.key(0), X), seed)


def random_tree(tree: Any, seed: int) -> Any:
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jax.numpy.asarray(0.5 * generator.normal(size=leaf.shape), "float32"), tree
    )


def answer(model: Any) -> Any:
    if isinstance(model, nn.Module):
        with torch.no_grad():
            return model(torch.from_numpy(X)).numpy()
    return np.asarray(model(X, training=False))


def planned(source: Any, target: Any) -> Any:
    """The loaded target of a plan that settles everything without a word from anybody."""
    plan = rg.plan(source, target)
    assert plan.complete, str(plan)
    assert not plan.unused
    assert not plan.adapted
    assert not [name for name in plan.fresh if not plan.grafts[name].ops]
    return rg.apply(plan, source, target).model


def assert_equal(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, atol=1e-5)


@pytest.mark.parametrize(("layers", "both"), STACKS)
@pytest.mark.parametrize("kind", KINDS)
def test_keras_and_pytorch(kind: str, layers: int, both: bool) -> None:
    ours, theirs = keras_net(kind, layers, both, 0), torch_net(kind, layers, both, 9)
    expected = answer(ours)
    assert_equal(answer(planned(ours, theirs)), expected)
    again = keras_net(kind, layers, both, 7)
    assert_equal(answer(planned(theirs, again)), expected)


@pytest.mark.parametrize("ending", ["keras", "weights.h5", "pth"])
@pytest.mark.parametrize("kind", KINDS)
def test_files_whose_order_means_nothing(kind: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"net.{ending}"
    ours, theirs = keras_net(kind, 3, True, 0), torch_net(kind, 3, True, 9)
    if ending == "pth":
        torch.save(theirs.state_dict(), path)
        assert_equal(answer(planned(path, ours)), answer(theirs))
        return
    (ours.save if ending == "keras" else ours.save_weights)(path)
    assert_equal(answer(planned(path, theirs)), answer(ours))


@pytest.mark.parametrize(("layers", "both"), STACKS)
@pytest.mark.parametrize("kind", KINDS)
def test_flax_cells(kind: str, layers: int, both: bool) -> None:
    net, tree = flax_net(kind, layers, both, 0)
    expected = np.asarray(net.apply(tree, X))
    for made in (torch_net(kind, layers, both, 9), keras_net(kind, layers, both, 9)):
        assert_equal(answer(planned(tree, made)), expected)
        again = planned(made, random_tree(tree, 5))
        assert_equal(net.apply(again, X), expected)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_fused_cells_of_nnx(kind: str, both: bool) -> None:
    cell = KINDS[kind][2]

    class Stack(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            one, two = (nnx.RNN(cell(INPUTS, UNITS, rngs=rngs)) for _ in range(2))
            self.rnn = nnx.Bidirectional(one, two) if both else one
            self.out = nnx.Linear(2 * UNITS if both else UNITS, 3, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            y: Any = self.rnn(x)
            return self.out(y)

    graph, state, rest = nnx.split(Stack(), nnx.Param, ...)
    tree = random_tree(nnx.to_pure_dict(state), 0)

    def run(values: Any) -> Any:
        nnx.replace_by_pure_dict(state, values)
        return np.asarray(nnx.merge(graph, state, rest)(X))

    expected = run(tree)
    model = torch_net(kind, 1, both, 9)
    assert_equal(answer(planned(tree, model)), expected)
    if kind == "GRU":  # it has no bias on the recurrent side: what PyTorch has there cannot go in
        assert not rg.plan(torch_net(kind, 1, both, 8), tree).complete
        return
    assert_equal(run(planned(model, random_tree(tree, 5))), expected)


def test_a_gru_that_resets_before_is_not_served() -> None:
    """Without `reset_after` Keras computes something that PyTorch has no layer for."""
    for bias in (True, False):
        model = keras_net("GRU", 1, False, 0, reset_after=False, use_bias=bias)
        plan = rg.plan(model, torch_net("GRU", 1, False, 9, bias=bias))
        assert {"rec.weight_ih_l0", "rec.weight_hh_l0"} <= set(plan.undecided)


def test_within_one_framework_nothing_is_reordered() -> None:
    plan = rg.plan(torch_net("GRU", 2, True, 0), torch_net("GRU", 2, True, 9))
    assert plan.complete
    assert all(not graft.ops for graft in plan.grafts.values())
