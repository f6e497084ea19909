"""Wider layers by rule: the network computes what it did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg


def randomised(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) + 0.2 * ("var" in name))
    return model.eval()


def network(width: int, hidden: int, seed: int) -> nn.Module:
    """Convolutions, one of them depthwise, norms with statistics, dense layers."""
    return randomised(
        nn.Sequential(
            nn.Conv2d(3, width, 3),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, groups=width),
            nn.Conv2d(width, 8, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, hidden),
            nn.Tanh(),
            nn.Linear(hidden, 5),
        ),
        seed,
    )


@pytest.mark.parametrize(("width", "hidden"), [(12, 14), (13, 7), (6, 21)])
def test_a_wider_network_computes_the_same(width: int, hidden: int) -> None:
    source, target = network(6, 7, 1), network(width, hidden, 2)
    receipt = rg.load(source, target, rules=[rg.widen("*")], adapt=True)
    assert receipt.adapted
    x = torch.rand(2, 3, 9, 9)
    torch.testing.assert_close(target(x), source(x), rtol=1e-4, atol=1e-4)


def test_nothing_is_widened_unasked() -> None:
    plan = rg.plan(network(6, 7, 1), network(12, 7, 2))
    assert not plan.complete or plan.fresh
    assert not any(isinstance(op, rg.ops.Widen) for g in plan.grafts.values() for op in g.ops)


def test_only_what_the_rule_names_is_widened() -> None:
    plan = rg.plan(network(6, 7, 1), network(6, 14, 2), rules=[rg.widen("7.*"), rg.widen("9.*")])
    assert plan.complete
    assert plan.adapted == ["7.weight", "7.bias", "9.weight"]


def test_from_keras() -> None:
    keras = pytest.importorskip("keras")
    layers = [keras.layers.Dense(6, activation="relu"), keras.layers.Dense(4)]
    source = keras.Sequential([keras.layers.Input((3,)), *layers])
    target = nn.Sequential(nn.Linear(3, 15), nn.ReLU(), nn.Linear(15, 4))
    rg.load(source, target, rules=[rg.widen("*")], adapt=True)
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    made = target(torch.as_tensor(x)).detach().numpy()
    np.testing.assert_allclose(made, np.asarray(source(x)), rtol=1e-4, atol=1e-5)


def test_the_script_widens_as_well(tmp_path: Path) -> None:
    source, target = network(6, 7, 1), network(15, 7, 2)
    torch.save(source.state_dict(), tmp_path / "x.pth")
    plan = rg.plan(tmp_path / "x.pth", target, rules=[rg.widen("*")])
    rg.apply(plan, tmp_path / "x.pth", target)
    scope: dict[str, object] = {}
    exec(plan.to_python(), scope)
    arrays = {name: value.numpy() for name, value in source.state_dict().items()}
    made = scope["convert"](arrays)  # type: ignore[operator]
    for name, value in target.state_dict().items():
        if name in made:
            np.testing.assert_array_equal(made[name], value.numpy())
