"""Lists of arrays, which have places and no names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg


def network(hidden: int = 12) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, hidden, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(hidden, 5),
    )  # fmt: skip


def test_a_list_of_the_model_is_read_by_its_places(tmp_path: Path) -> None:
    source, target = network(), network()
    torch.save(list(source.state_dict().values()), tmp_path / "list.pth")
    receipt = rg.load(tmp_path / "list.pth", target)
    assert not receipt.warnings
    for name, value in source.state_dict().items():
        torch.testing.assert_close(target.state_dict()[name], value, rtol=0, atol=0)


def test_a_list_of_another_implementation_is_open_and_a_probe_settles_it(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    generator = np.random.default_rng(0)
    inputs = keras.layers.Input((9, 9, 3))
    x = keras.layers.Conv2D(8, 3)(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(epsilon=1e-5)(x))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(12, 3)(x))
    model = keras.Model(inputs, keras.layers.Dense(5)(x))
    model.set_weights([generator.uniform(0.2, 1, w.shape) for w in model.get_weights()])
    np.savez(tmp_path / "list.npz", *model.get_weights())
    target = network().eval()
    plan = rg.plan(tmp_path / "list.npz", target)
    assert not plan.complete
    assert all(u.group == "list" for u in plan.undecided.values())
    x = generator.normal(size=(2, 9, 9, 3)).astype("float32")
    probe = rg.Probe(x.transpose(0, 3, 1, 2), np.asarray(model(x)))
    receipt = rg.load(tmp_path / "list.npz", target, probe=probe)
    assert receipt.verified


@pytest.mark.parametrize("hidden", [12, 8])
def test_a_list_of_another_length_or_of_other_shapes_is_none_of_the_model(
    tmp_path: Path, hidden: int
) -> None:
    values = list(network(hidden).state_dict().values())
    torch.save(values if hidden == 8 else values[:-1], tmp_path / "list.pth")
    plan = rg.plan(tmp_path / "list.pth", network())
    assert not plan.complete
    assert not any(graft.kind == "convert" for graft in plan.grafts.values())
