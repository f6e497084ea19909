"""Policies around `model.fit`: frozen is frozen, each tensor at its rate; runs go on the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import regraft as rg
from regraft.tuning.keras import Follow, Tuning
from regraft.tuning.keras_data import Schedule
from regraft.tuning.keras_statistics import measure
from regraft.tuning.policies import Policy
from regraft.tuning.references import Reference

sys.path.insert(0, str(Path(__file__).parent))
from networks import changed, samples

NAMES = {"first/kernel", "first/bias", "norm/gamma", "norm/beta", "norm/moving_mean",
         "norm/moving_variance", "head/kernel", "head/bias"}  # fmt: skip
HEAD = {"head/kernel", "head/bias"}


def net(dropout: float = 0.0) -> Any:
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((3,)), layers.Dense(8, name="first"), layers.BatchNormalization(name="norm"),
         layers.ReLU(), layers.Dropout(dropout), layers.Dense(2, name="head")]
    )  # fmt: skip
    generator = np.random.default_rng(3)
    for variable in model.weights:
        if "seed" not in variable.path:
            variable.assign(variable + 0.1 * generator.random(variable.shape))
    return model


def values(model: Any) -> dict[str, Any]:
    found = {"/".join(v.path.split("/")[-2:]): np.array(v.numpy()) for v in model.weights}
    return {name: array for name, array in found.items() if name in NAMES}


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit(model: Any, policy: Policy, base: Any, epochs: int = 2) -> Tuning:
    tuning = Tuning(model, policy)
    tuning.begin()
    x, y = samples()
    for phase in tuning.phases(epochs):
        model.compile(tuning.optimizer(base), LOSS)
        model.fit(x, y, 10, phase.stop, verbose=0, initial_epoch=phase.start, shuffle=False,
                  callbacks=[Follow(tuning)])  # fmt: skip
    return tuning


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize(
    "policy",
    [Policy(freeze=("first/*", "norm/*")), Policy(linear_probe=True, head=("head/*",), ema=0.9),
     Policy(freeze_depth=-1), Policy(freeze=("first/*",), batchnorm="freeze")],
)  # fmt: skip
def test_frozen_tensors_are_the_same_bits(policy: Policy, optimizer: str) -> None:
    model = net()
    before = values(model)
    more = {"momentum": 0.9} if optimizer == "SGD" else {}
    base = getattr(keras.optimizers, optimizer)(0.05, weight_decay=0.1, **more)
    receipt = fit(model, policy, base).finish().check()
    assert changed(before, values(model)) == HEAD == set(receipt.learned)
    assert set(receipt.frozen) == NAMES - HEAD
    assert all(layer.trainable for layer in model.layers)


def test_phases() -> None:
    model = net()
    before = values(model)
    tuning = Tuning(model, Policy(probe_epochs=2, head=("head/*",)))
    tuning.begin()
    x, y = samples()
    moved: list[set[str]] = []
    for phase in tuning.phases(3):
        model.compile(tuning.optimizer(keras.optimizers.AdamW(0.05)), LOSS)
        model.fit(
            x,
            y,
            initial_epoch=phase.start,
            epochs=phase.stop,
            verbose=0,
            callbacks=[Follow(tuning)],
        )
        moved.append(changed(before, values(model)))
    assert moved[0] == HEAD
    assert moved[1] >= NAMES - {"first/bias"}
    assert tuning.finish().epochs == 3
    with pytest.raises(rg.TargetError, match="phases"):
        tuning = Tuning(net(), Policy(probe_epochs=1, head=("head/*",)))
        tuning.begin()
        tuning.model.compile("sgd", LOSS)
        tuning.model.fit(x, y, epochs=2, verbose=0, callbacks=[Follow(tuning)])


def test_each_tensor_has_its_rate_and_decay() -> None:
    """One step of SGD is the gradient times the rate; decay is left off norms and biases."""
    x, y = samples()
    steps: dict[float, dict[str, Any]] = {}
    for decay in (1.0, 0.1):
        model = net()
        before = values(model)
        tuning = Tuning(model, Policy(layer_decay=decay, head=("head/*",), head_lr=2.0))
        tuning.begin()
        model.compile(tuning.optimizer(keras.optimizers.SGD(0.1)), LOSS)
        model.fit(x, y, len(x), 1, verbose=0)
        steps[decay] = {n: a - before[n] for n, a in values(model).items()}
    np.testing.assert_allclose(
        steps[0.1]["first/kernel"], 0.1 * steps[1.0]["first/kernel"], rtol=0.01, atol=1e-6
    )
    np.testing.assert_allclose(steps[0.1]["head/kernel"], steps[1.0]["head/kernel"], rtol=1e-5)
    model = net()
    before = values(model)
    tuning = Tuning(model, Policy())
    tuning.begin()
    model.compile(
        tuning.optimizer(keras.optimizers.SGD(0.1, weight_decay=0.5)),
        lambda y, out: 0.0 * keras.ops.sum(out),
    )
    model.fit(x, y, len(x), 1, verbose=0)
    assert changed(before, values(model)) == {
        "first/kernel",
        "head/kernel",
        "norm/moving_mean",
        "norm/moving_variance",
    }
    np.testing.assert_allclose(
        values(model)["head/kernel"], before["head/kernel"] * 0.95, rtol=1e-6
    )


def test_l2_sp(tmp_path: Path) -> None:
    """With no loss of its own a step goes the strength times the way back."""
    net().save_weights(tmp_path / "base.weights.h5")
    model = net()
    receipt = rg.load(tmp_path / "base.weights.h5", model)
    pretrained = values(model)
    for variable in model.trainable_variables:
        variable.assign(variable + 1.0)
    reference = Reference(receipt, rg.open(tmp_path / "base.weights.h5").read)
    tuning = Tuning(model, Policy(l2_sp=0.5), receipt=receipt, reference=reference)
    tuning.begin()
    model.compile(
        tuning.optimizer(keras.optimizers.SGD(1.0)), lambda y, out: 0.0 * keras.ops.sum(out)
    )
    x, y = samples()
    model.fit(x, y, len(x), 1, verbose=0)
    for name in HEAD | {"first/kernel", "norm/gamma"}:
        np.testing.assert_allclose(values(model)[name] - pretrained[name], 0.5, rtol=1e-5)
    tuning.finish()
    assert all(variable.regularizer is None for variable in model.trainable_variables)


def test_statistics_measured_anew() -> None:
    model = net(0.5)
    x, _ = samples()
    assert measure(model, [x[:20], x[20:]]) == 1
    hidden = x @ values(model)["first/kernel"] + values(model)["first/bias"]
    np.testing.assert_allclose(values(model)["norm/moving_mean"], hidden.mean(0), rtol=1e-4)
    parts = np.mean([hidden[:20].var(0), hidden[20:].var(0)], 0)
    np.testing.assert_allclose(values(model)["norm/moving_variance"], parts, rtol=1e-4)
    assert model.get_layer("norm").momentum == 0.99


SETTINGS: dict[str, Any] = {
    "epochs": 4, "lr": 0.02, "weight_decay": 0.1, "schedule": "cosine", "warmup": 0.1,
    "accumulate": 2, "clip": 1.0, "batch_size": 7, "seed": 5,
}  # fmt: skip
POLICY = Policy(ema=0.9, probe_epochs=1, head=("head/*",), layer_decay=0.7, freeze=("first/bias",))


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3])
def test_a_run_that_goes_on_ends_the_same(after: int, tmp_path: Path) -> None:
    whole = net(0.4)
    expected = rg.finetune(whole, samples(), policy=POLICY, **SETTINGS)

    def stop(epoch: Any) -> None:
        if epoch.number == after:
            raise Stop

    with pytest.raises(Stop):
        rg.finetune(
            net(0.4), samples(), policy=POLICY, checkpoints=tmp_path, progress=stop, **SETTINGS
        )
    again = net(0.4)
    found = rg.finetune(again, samples(), policy=POLICY, checkpoints=tmp_path, **SETTINGS)
    assert found.curve == expected.curve
    assert changed(values(whole), values(again)) == set()
    assert found.receipt.frozen == expected.receipt.frozen
    assert "first/bias" in found.receipt.frozen
    with pytest.raises(rg.StalePlan, match="policy"):
        rg.finetune(net(0.4), samples(), checkpoints=tmp_path, **SETTINGS)
    other = net(0.4)
    mean = other.get_layer("norm").moving_mean
    mean.assign(mean + 1)
    with pytest.raises(rg.StalePlan, match="starting weights"):
        rg.finetune(other, samples(), policy=POLICY, checkpoints=tmp_path, **SETTINGS)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:-2000])
    with pytest.raises(rg.CorruptFile, match="remove it"):
        rg.finetune(net(0.4), samples(), policy=POLICY, checkpoints=tmp_path, **SETTINGS)


def test_rates_follow_the_updates() -> None:
    """Batches whose gradients are only added up are no steps of the schedule."""
    settings = rg.Settings(epochs=2, lr=0.5, schedule="linear", accumulate=2)
    schedule = Schedule(0.5, settings, 0.0, 4.0)
    optimizer = keras.optimizers.SGD(schedule, gradient_accumulation_steps=2)
    variable = keras.Variable([1.0])
    optimizer.build([variable])
    moved: list[float] = []
    for _ in range(8):
        before = float(variable.numpy()[0])
        optimizer.apply([keras.ops.ones((1,))], [variable])
        moved.append(before - float(variable.numpy()[0]))
    np.testing.assert_allclose(moved, [0, 0.5, 0, 0.375, 0, 0.25, 0, 0.125], atol=1e-6)


def test_precision_accumulation_and_rate() -> None:
    model = net()
    tuned = rg.finetune(
        model, samples(80), epochs=6, lr="auto", precision="bf16", accumulate=2, batch_size=8
    )
    assert tuned.curve[-1].loss < tuned.curve[0].loss
    assert 1e-6 < float(tuned.training["lr"]) < 1
    assert all(array.dtype == np.float32 for array in values(model).values())
    assert model.get_layer("first").compute_dtype == "float32"


@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow"])
def test_what_learns_later_does_on_every_backend(backend: str) -> None:
    """TensorFlow's objects pass over a flag that is set to what it was, and what lies below it."""
    code = """
import sys
sys.path.insert(0, {folder!r})
from test_keras import Policy, changed, fit, keras, net, values
model = net()
before = values(model)
policy = Policy(probe_epochs=1, head=("head/*",), ema=0.5, layer_decay=0.5)
receipt = fit(model, policy, keras.optimizers.AdamW(0.05, weight_decay=0.1)).finish()
assert changed(before, values(model)) == set(before), changed(before, values(model))
assert not receipt.idle, receipt.idle
print(keras.backend.backend())
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code.format(folder=str(Path(__file__).parent))],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == backend


class _Seen(keras.callbacks.Callback):
    """The head's kernel where a fit begins, and after each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[Any] = []
        self.batches: list[Any] = []

    def _kernel(self) -> Any:
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        return values(self.model)["head/kernel"]

    def on_train_begin(self, logs: Any = None) -> None:
        self.begun.append(values(self.model)["head/kernel"])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches.append(self._kernel())


@pytest.mark.parametrize("accumulate", [None, 2])
def test_the_average_goes_on_over_phases(accumulate: int | None) -> None:
    model, seen = net(), _Seen()
    mean = values(model)["head/kernel"]
    tuning = Tuning(model, Policy(ema=0.9, probe_epochs=1, head=("head/*",)))
    tuning.begin()
    x, y = samples()
    base = keras.optimizers.SGD(0.5, gradient_accumulation_steps=accumulate)
    for phase in tuning.phases(2):
        model.compile(tuning.optimizer(base), LOSS)
        model.fit(x, y, 10, phase.stop, verbose=0, initial_epoch=phase.start, shuffle=False,
                  callbacks=[Follow(tuning), seen])  # fmt: skip
    # The second phase goes on from the weights, not from their average.
    np.testing.assert_array_equal(seen.begun[1], seen.batches[3])
    tuning.finish()
    for step, kernel in enumerate(seen.batches[(accumulate or 1) - 1 :: accumulate or 1], 1):
        share = min(0.9, step / (step + 9))
        mean = share * mean + (1 - share) * kernel
    np.testing.assert_allclose(values(model)["head/kernel"], mean, rtol=1e-5, atol=1e-6)


def test_what_an_optimizer_of_their_own_does_not_keep_is_told() -> None:
    model = net()
    x, y = samples()
    for policy in (Policy(ema=0.5), Policy(layer_decay=0.5, head=("head/*",))):
        tuning = Tuning(model, policy)
        tuning.begin()
        model.compile("adamw", LOSS)
        with pytest.raises(rg.TargetError, match="optimizer"):
            model.fit(x, y, verbose=0, callbacks=[Follow(tuning)])
        tuning.release()
    tuning = Tuning(model, Policy(ema=0.5))
    tuning.begin()
    before = values(model)
    model.fit(x, y, verbose=0)
    with pytest.raises(rg.TargetError, match="no step"):
        tuning.finish()
    assert "head/kernel" in changed(before, values(model))


def test_statistics_are_adapted_before_training() -> None:
    model = net()
    tuning = Tuning(model, Policy(batchnorm="adapt"))
    with pytest.raises(rg.TargetError, match="adapt"):
        tuning.begin()
    with pytest.raises(rg.TargetError, match="no batch"):
        tuning.adapt([])
    x = samples()[0]
    tuning.adapt([x[:20], x[20:]])
    seen = np.array(keras.Model(model.inputs, model.layers[0].output).predict(x, verbose=0))
    np.testing.assert_allclose(values(model)["norm/moving_mean"], seen.mean(0), rtol=1e-4)
    tuning.begin()
    assert "norm/moving_mean" in tuning.finish().check().frozen


def test_measuring_leaves_flags_as_they_are() -> None:
    model = net()
    norm = model.get_layer("norm")
    norm.gamma.trainable = False
    measure(model, [samples()[0]])
    assert norm.trainable
    assert not norm.gamma.trainable
