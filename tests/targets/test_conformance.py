"""What every target owes, for every framework of the registry."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch

from regraft import targets
from regraft.errors import TargetError


def torch_model() -> Any:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout())


def keras_model() -> Any:
    layers = keras.layers
    return keras.Sequential(
        [layers.Input((3,)), layers.Dense(4), layers.BatchNormalization(), layers.Dropout(0.5)]
    )


def jax_tree() -> Any:
    import jax.numpy as jnp

    return {"params": {"dense": {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)}}}


class Holder:
    """An object that is no framework's."""

    def __init__(self) -> None:
        self.held = arrays()

    def state_dict(self) -> dict[str, Any]:
        return dict(self.held)

    def load_state_dict(self, held: dict[str, Any]) -> None:
        self.held = dict(held)


def arrays() -> dict[str, Any]:
    return {"kernel": np.ones((3, 4), np.float32), "bias": np.zeros(4, np.float32)}


def tf_keras_model() -> Any:
    with warnings.catch_warnings(action="ignore"):
        layers = pytest.importorskip("tf_keras").layers
        return sys.modules["tf_keras"].Sequential(
            [layers.Input((3,)), layers.Dense(4), layers.BatchNormalization(), layers.Dropout(0.5)]
        )


MODELS: dict[str, Callable[[], Any]] = {
    "torch": torch_model, "keras": keras_model, "jax": jax_tree, "arrays": arrays,
    "objects": Holder, "tf_keras": tf_keras_model,
}  # fmt: skip
# Those that can be run, and say which of their tensors learn.
LIVE = ["keras", "tf_keras", "torch"]
# What tensors are called and how they lie, where a target does not say it by its own name.
FRAMEWORKS = {"arrays": "", "objects": "", "tf_keras": "keras"}


def test_every_target_has_a_sample() -> None:
    assert tuple(sorted(MODELS)) == targets.names()


@pytest.mark.parametrize("name", targets.names())
def test_exactly_one_target_owns_a_model(name: str) -> None:
    model = MODELS[name]()
    assert [n for n in targets.names() if targets.load(n).owns(model)] == [name]
    assert targets.find(model) is targets.load(name)


@pytest.mark.parametrize("name", targets.names())
def test_skeleton_and_sink_agree(name: str) -> None:
    target, model = targets.load(name), MODELS[name]()
    skeleton = target.skeleton(model)
    assert skeleton.framework == FRAMEWORKS.get(name, name)
    assert skeleton.nbytes > 0
    sink = target.sink(model)
    generator = np.random.default_rng(0)
    for info in skeleton.values():
        before = sink.read(info.name)
        assert (before.shape, before.dtype.name) == (info.shape, info.dtype)
        values = generator.uniform(1, 9, info.shape).astype(info.dtype)
        sink.write(info.name, values)
        held = sink.read(info.name)
        np.testing.assert_array_equal(held, values)
        held += 1  # a copy: the model must not see it
        np.testing.assert_array_equal(sink.read(info.name), values)
    sink.finish()
    written = target.sink(sink.model)
    for info in skeleton.values():
        np.testing.assert_array_equal(written.read(info.name), sink.read(info.name))


@pytest.mark.parametrize("name", LIVE)
def test_run_is_inference_and_leaves_the_mode_alone(name: str) -> None:
    target, model = targets.load(name), MODELS[name]()
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    if name == "torch":
        model.train()
    statistics = {n: target.sink(model).read(n) for n in target.skeleton(model)}
    first, second = target.run(model, x), target.run(model, x)
    assert list(first) == ["output"]
    np.testing.assert_array_equal(first["output"], second["output"])  # no dropout
    for n, values in statistics.items():
        np.testing.assert_array_equal(target.sink(model).read(n), values)
    if name == "torch":
        assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", LIVE)
def test_trainable_sets_exactly_these(name: str) -> None:
    target, model = targets.load(name), MODELS[name]()
    first = next(iter(target.skeleton(model)))
    if name == "tf_keras":  # whose layers train whole
        with pytest.raises(TargetError, match="whole layers"):
            target.trainable(model, [first])
        return
    target.trainable(model, [first])
    if name == "torch":
        learning = [n for n, p in model.named_parameters() if p.requires_grad]
    else:
        learning = [v.path.split("/")[-2] + "/" + v.name for v in model.trainable_variables]
    assert [n.split("/")[-1].split(".")[-1] for n in learning] == [
        first.split("/")[-1].split(".")[-1]
    ]


def test_trees_say_how_they_can_be_run() -> None:
    for name in sorted(set(targets.names()) - set(LIVE)):
        target = targets.load(name)
        with pytest.raises(TargetError):
            target.run(MODELS[name](), np.ones(1))
        with pytest.raises(TargetError):
            target.trainable({}, [])


def test_models_that_cannot_be_described() -> None:
    class Unbuilt(keras.Model):
        pass

    for model in (torch.nn.LazyLinear(3), Unbuilt(), 3, "x", None):
        with pytest.raises(TargetError):
            targets.find(model).skeleton(model)


def test_wrappers_are_seen_through() -> None:
    inner = torch_model()
    wrapped = torch.nn.DataParallel(inner)
    assert list(targets.load("torch").skeleton(wrapped)) == list(inner.state_dict())


@pytest.mark.parametrize("backend", ["tensorflow", "torch", "jax"])
def test_keras_on_each_backend(backend: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("backend_check.py")
    done = subprocess.run(
        [sys.executable, str(script), backend, str(tmp_path / "m.keras")],
        capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("verified 12 ")
