"""Recurrent layers: gates in another order are reordered, what does not fit is asked."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg

X = np.random.default_rng(1).normal(size=(2, 4, 5)).astype(np.float32)


class Net(nn.Module):
    def __init__(self, kind: type[nn.Module], **options: Any) -> None:
        super().__init__()
        self.rec = kind(5, 7, batch_first=True, **options)
        self.out = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rec(x)[0][:, -1])


def source(layer: Any) -> tuple[Any, Any]:
    layers = keras.layers
    model = keras.Sequential([layers.Input((4, 5)), layer, layers.Dense(3, name="out")])
    generator = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(generator.uniform(-1, 1, variable.shape))
    return model, np.asarray(model(X))


@pytest.mark.parametrize("name", ["LSTM", "SimpleRNN"])
def test_without_bias_all_is_settled(name: str) -> None:
    layer = getattr(keras.layers, name)(7, use_bias=False, name="rec")
    kind = nn.LSTM if name == "LSTM" else nn.RNN
    model, expected = source(layer)
    assert rg.load(model, Net(kind, bias=False), probe=rg.Probe(X, expected)).verified


def test_gru_gates_change_places() -> None:
    model, expected = source(keras.layers.GRU(7, name="rec"))
    target = Net(nn.GRU)
    plan = rg.plan(model, target)
    assert set(plan.undecided) == {"rec.bias_ih_l0", "rec.bias_hh_l0"}
    bias = next(name for name in plan.source.tensors if name.startswith("rec/") and "bias" in name)
    order = rg.ops.Blocks(0, (1, 0, 2))
    rules = [
        rg.pin(
            f"rec.{name}_l0", bias, [rg.ops.Slice(0, row, row + 1), rg.ops.Reshape((21,)), order]
        )
        for row, name in enumerate(("bias_ih", "bias_hh"))
    ]
    receipt = rg.load(model, target, rules=rules, adapt=True, probe=rg.Probe(X, expected))
    assert receipt.verified


def test_a_gru_of_another_kind_is_not_served() -> None:
    """Without `reset_after` Keras computes something that PyTorch has no layer for."""
    model, _ = source(keras.layers.GRU(7, reset_after=False, name="rec"))
    plan = rg.plan(model, Net(nn.GRU))
    assert {"rec.bias_ih_l0", "rec.bias_hh_l0"} <= set(plan.undecided)


def test_within_one_framework_nothing_is_reordered() -> None:
    ours, theirs = Net(nn.GRU), Net(nn.GRU)
    plan = rg.plan(ours, theirs)
    assert plan.complete
    assert all(not graft.ops for graft in plan.grafts.values())
