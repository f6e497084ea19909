"""Keras: subclassed and nested models, unbuilt ones, roles, what is left alone; inputs as a probe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch

import regraft as rg
from regraft import targets
from regraft.errors import TargetError, TransferError, VerificationFailed

layers = keras.layers


class Inner(keras.Model):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.dense, self.norm = layers.Dense(3, name="fc"), layers.BatchNormalization(name="norm")
        self.drop = layers.Dropout(0.5)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.drop(self.norm(self.dense(x), training=training), training=training)


class Outer(keras.Model):
    """Subclassed, with a model in it, a list of layers and a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner(name="inner")
        self.blocks = [layers.Dense(6, name="a"), layers.Dense(2, name="b")]
        self.tail = keras.Sequential([layers.Dense(4, name="c")], name="tail")

    def call(self, x: Any, training: bool = False) -> Any:
        x = self.inner(x, training=training)
        for block in self.blocks:
            x = block(x)
        return self.tail(x)


class TorchInner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3, eps=1e-3)

    def forward(self, x: Any) -> Any:
        return self.norm(self.fc(x))


class TorchOuter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = TorchInner()
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(3, 6), torch.nn.Linear(6, 2)])
        self.tail = torch.nn.Sequential(torch.nn.Linear(2, 4))

    def forward(self, x: Any) -> Any:
        x = self.inner(x)
        for block in self.blocks:
            x = block(x)
        return self.tail(x)


def randomised(model: Any, seed: int = 1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.8 + 0.2)
    return model.eval()


X = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)


def built() -> Outer:
    model = Outer()
    model(X)
    return model


def values(model: Any) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(v)) for v in model.weights]


def test_nested_subclassed_models_from_a_live_source() -> None:
    source, target = randomised(TorchOuter()), built()
    target.compile("adam", "mse")
    target.fit(X, np.ones((4, 4)), verbose=0)
    target.blocks[0].trainable = False
    optimizer = [keras.ops.convert_to_numpy(v).copy() for v in target.optimizer.variables]
    seed = keras.ops.convert_to_numpy(target.inner.drop.seed_generator.state).copy()
    receipt = rg.load(source, target, probe=X)  # inputs alone: both are run
    assert receipt.verified
    assert sorted(receipt.hashes) == sorted(receipt.plan.target.tensors)
    assert not any("seed" in n or "adam" in n for n in receipt.hashes)
    np.testing.assert_array_equal(target.inner.norm.moving_variance,
                                  source.inner.norm.running_var.numpy())  # fmt: skip
    np.testing.assert_array_equal(target.inner.norm.beta, source.inner.norm.bias.detach().numpy())
    for before, now in zip(optimizer, target.optimizer.variables, strict=True):
        np.testing.assert_array_equal(before, keras.ops.convert_to_numpy(now))
    np.testing.assert_array_equal(
        seed, keras.ops.convert_to_numpy(target.inner.drop.seed_generator.state)
    )
    assert [layer.trainable for layer in target.blocks] == [False, True]
    back = TorchOuter().eval()
    rg.load(target, back, probe=X)
    torch.testing.assert_close(back.inner.norm.running_var, source.inner.norm.running_var)


def test_unbuilt_models_say_how_and_are_built_by_a_probe() -> None:
    source = randomised(TorchOuter())
    with pytest.raises(TargetError, match="call the model once"):
        rg.plan(source, Outer())
    assert rg.load(source, Outer(), probe=X).verified
    lazy = torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.Linear(3, 2))
    known = randomised(torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 2)))
    assert rg.load(known, lazy, probe=X).verified


def test_layers_that_are_not_built_are_told() -> None:
    class Halves(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = layers.Dense(3, name="a"), layers.Dense(2, name="b")

        def call(self, x: Any) -> Any:
            return self.a(x)

    model = Halves()
    model.built = True  # as model.build sets it, whose layers may be made later
    with pytest.raises(TargetError, match="2 of its layers are not built"):
        targets.find(model).skeleton(model)
    model(X)
    assert targets.find(model).skeleton(model).notes == ("not built, so without weights: b",)


def images(channels_last: bool) -> tuple[Any, Any]:
    source = randomised(torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1)))  # fmt: skip
    target = keras.Sequential(
        [layers.Input((None, None, 3)), layers.Conv2D(4, 3, activation="relu"), layers.Conv2D(2, 1)]
    )
    return (source, target) if channels_last else (target, source)


@pytest.mark.parametrize("to_keras", [True, False])
def test_images_are_moved_where_only_that_fits(to_keras: bool) -> None:
    source, target = images(to_keras)
    shape = (2, 3, 9, 8) if to_keras else (2, 9, 8, 3)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert rg.load(source, target, probe=x).verified


def test_images_that_fit_both_ways_are_not_guessed() -> None:
    source, target = images(True)
    source.append(torch.nn.AdaptiveAvgPool2d(1)).append(torch.nn.Flatten())
    target.add(layers.GlobalAveragePooling2D())
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 3)).astype(np.float32)
    with pytest.raises(VerificationFailed, match="both"):
        rg.plan(source, target, probe=x)


def test_inputs_alone_need_a_live_source() -> None:
    with pytest.raises(TargetError, match="outputs"):
        rg.plan({"weight": np.ones((2, 3), np.float32)}, torch.nn.Linear(3, 2), probe=X)
    catalogue = targets.find(built()).skeleton(built())
    with pytest.raises(TargetError, match="live model"):
        rg.plan(catalogue, built(), probe=X)


def test_a_failure_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from regraft.targets import keras as target_module

    target = built()
    before = values(target)
    write = target_module._KerasSink.write

    def failing(self: Any, name: str, array: Any) -> None:
        if name == "b/kernel":
            raise MemoryError("injected")
        write(self, name, array)

    monkeypatch.setattr(target_module._KerasSink, "write", failing)
    with pytest.raises(TransferError, match="injected"):
        rg.load(randomised(TorchOuter()), target)
    for now, then in zip(values(target), before, strict=True):
        np.testing.assert_array_equal(now, then)


def unnamed(kind: str, seed: int) -> Any:
    """A model of distinct values, with a layer whose variables Keras' files number, and whose class does not
    tell which they are."""
    model = _unnamed(kind)
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(rng.uniform(0.2, 1, variable.shape))
    return model


def _unnamed(kind: str) -> Any:
    if kind == "no scale":
        return keras.Sequential(
            [keras.Input((4,)), layers.Dense(4), layers.BatchNormalization(scale=False)]
        )
    if kind == "wrapper":
        wrapped = layers.SpectralNormalization(layers.Dense(4))
        return keras.Sequential([keras.Input((4,)), wrapped, layers.Dense(2)])
    tokens = keras.Input((5,), dtype="int32")
    table = layers.ReversibleEmbedding(11, 6)
    hidden = layers.Dense(6)(table(tokens))
    return keras.Model(tokens, table(hidden, reverse=True))


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
@pytest.mark.parametrize("kind", ["no scale", "wrapper", "reversed table"])
def test_variables_without_names_are_told_by_their_places(
    kind: str, ending: str, tmp_path: Path
) -> None:
    source, model = unnamed(kind, 1), unnamed(kind, 2)
    path = tmp_path / f"model{ending}"
    (source.save_weights if "weights" in ending else source.save)(path)
    rg.load(path, model)
    for found, wanted in zip(values(model), values(source), strict=True):
        assert np.array_equal(found, wanted)


def test_another_model_does_not_tell_what_variables_are(tmp_path: Path) -> None:
    source = unnamed("no scale", 1)
    source.save_weights(tmp_path / "m.weights.h5")
    wider = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4), layers.BatchNormalization(), layers.Dense(2)]
    )
    plan = rg.plan(tmp_path / "m.weights.h5", wider)
    unsure = next(name for name in plan.source.tensors if name.endswith("/0"))
    assert all(unsure not in graft.sources for graft in plan.grafts.values())
