"""Keras 2 (tf_keras) as target and as source; skipped where it is not installed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg
from regraft import targets
from regraft.errors import TargetError, TransferError, VerificationFailed
from regraft.targets._variables import Variables

with warnings.catch_warnings(action="ignore"):
    tf_keras = pytest.importorskip("tf_keras")
layers = tf_keras.layers
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

IMAGES = np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype(np.float32)
LAST = np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1))
ROWS = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)


def sequential() -> Any:
    return tf_keras.Sequential(
        [layers.Input((6, 6, 3)), layers.Conv2D(4, 3, name="stem"),
         layers.BatchNormalization(epsilon=1e-5, name="bn"), layers.ReLU(), layers.Flatten(),
         layers.Dropout(0.5), layers.Dense(2, name="head")]
    )  # fmt: skip


def torch_twin() -> Any:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                         nn.Dropout(), nn.Linear(64, 2)).eval()  # fmt: skip


class Inner(tf_keras.Model):
    def __init__(self) -> None:
        super().__init__(name="inner")
        self.gate = self.add_weight(name="gate", shape=(3,))
        self.dense = layers.Dense(3, name="dense")
        self.norm = layers.BatchNormalization(name="norm")

    def call(self, x: Any, training: bool = False) -> Any:
        return self.norm(self.dense(x), training=training) * self.gate


class Outer(tf_keras.Model):
    """Nested, subclassed, with a list of layers and recurrent ones."""

    def __init__(self) -> None:
        super().__init__(name="outer")
        self.inner = Inner()
        self.blocks = [layers.Dense(3, name="dense") for _ in range(2)]
        self.both = layers.Bidirectional(layers.LSTM(2, name="cell"))
        self.noise = layers.GaussianNoise(0.1)

    def call(self, x: Any, training: bool = False) -> Any:
        x = self.noise(self.inner(x, training=training), training=training)
        for block in self.blocks:
            x = block(x)
        return {"y": self.both(x[:, None])}


def built() -> Any:
    model = Outer()
    model(ROWS)
    return model


def filled(model: Any, seed: int) -> Any:
    generator = np.random.default_rng(seed)
    if isinstance(model, nn.Module):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                values = torch.from_numpy(generator.uniform(0.2, 1, tensor.shape))
                tensor.copy_(values)
        return model
    for variable in model.weights:
        variable.assign(generator.uniform(0.2, 1, variable.shape))
    return model


def values(model: Any) -> list[np.ndarray]:
    return [variable.numpy() for variable in model.weights]


def same(model: Any, held: list[np.ndarray]) -> None:
    for now, then in zip(values(model), held, strict=True):
        np.testing.assert_array_equal(now, then)


def test_to_and_from_torch() -> None:
    source, target = filled(torch_twin(), 1), filled(sequential(), 2)
    target.get_layer("stem").trainable = False
    receipt = rg.load(source, target, probe=IMAGES)
    assert receipt.verified
    norm, bn = source[1], target.get_layer("bn")
    for variable, tensor in ((bn.gamma, norm.weight), (bn.beta, norm.bias),
                             (bn.moving_mean, norm.running_mean),
                             (bn.moving_variance, norm.running_var)):  # fmt: skip
        np.testing.assert_array_equal(variable.numpy(), tensor.detach().numpy())
    assert [layer.name for layer in target.layers if not layer.trainable] == ["stem"]
    back = torch_twin()
    assert rg.load(target, back, probe=LAST).verified
    assert all(
        torch.equal(a, b) for a, b in zip(source.parameters(), back.parameters(), strict=True)
    )


def test_nested_and_subclassed_models() -> None:
    source, target = filled(built(), 1), filled(built(), 2)
    target.compile("adam", "mse")
    assert rg.load(source, target, probe=ROWS).verified
    same(target, values(source))
    names = list(targets.find(target).skeleton(target))
    assert len(names) == len(set(names)) == len(target.weights)
    assert "inner/gate" in names
    assert {"inner/norm/moving_mean", "dense/kernel_0", "dense/kernel_1"} <= {*names}


@pytest.mark.parametrize("name", ["m.h5", "w.h5", "m.keras"])
def test_its_files_go_into_it(name: str, tmp_path: Path) -> None:
    source, target = filled(sequential(), 1), filled(sequential(), 2)
    path = tmp_path / name
    (source.save_weights if name == "w.h5" else source.save)(path)
    assert rg.load(path, target, probe=rg.Probe(LAST, source(LAST).numpy())).verified
    same(target, values(source))
    rg.save(target, tmp_path / "m.safetensors")
    assert rg.load(tmp_path / "m.safetensors", filled(sequential(), 3)).loaded


def test_what_it_does_not_reach_is_said() -> None:
    with pytest.raises(TargetError, match="call the model once"):
        rg.plan(filled(built(), 1), Outer())
    assert rg.load(filled(built(), 1), Outer(), probe=ROWS).verified  # built by the probe
    model = sequential()
    target = targets.find(model)
    target.trainable(model, ["head/kernel", "head/bias"])
    assert [v.name for v in model.trainable_variables] == ["head/kernel:0", "head/bias:0"]
    with pytest.raises(TargetError, match="whole layers"):
        target.trainable(model, ["head/kernel", "bn/gamma", "bn/beta"])
    assert [v.name for v in model.trainable_variables] == ["head/kernel:0", "head/bias:0"]
    with pytest.raises(TargetError, match="Keras 3"):
        rg.finetune(model, (LAST, np.array([0, 1])), epochs=1)


def test_a_failure_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, target = filled(sequential(), 1), filled(sequential(), 2)
    before, write = values(target), Variables.write
    path = tmp_path / "m.h5"
    source.save(path)
    with pytest.raises(VerificationFailed):
        rg.load(path, target, probe=rg.Probe(LAST, source(LAST).numpy() + 1))
    same(target, before)

    def failing(self: Any, name: str, array: Any) -> None:
        if name == "head/bias":
            raise ValueError("injected")
        write(self, name, array)

    monkeypatch.setattr(Variables, "write", failing)
    with pytest.raises(TransferError, match="injected"):
        rg.load(path, target)
    same(target, before)
