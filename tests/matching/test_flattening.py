"""Flatten order: known from both graphs, settled by a probe, or open; never guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg


def keras_net() -> Any:
    layers = keras.layers
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(6, 3, padding="same", name="a")(image)
    x = layers.MaxPooling2D()(layers.ReLU()(layers.BatchNormalization(name="b")(x)))
    x = layers.Dropout(0.3)(layers.Flatten()(x))
    x = layers.Dense(16, activation="relu", name="hidden")(x)
    model = keras.Model(image, layers.Dense(5, name="out")(x))
    generator = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(generator.uniform(0.2, 1.0, variable.shape))
    return model


class TorchNet(nn.Module):
    """`order`: how the map is flattened; `traced`: whether torch.fx can follow."""

    def __init__(self, order: str = "channels first", traced: bool = True) -> None:
        super().__init__()
        self.order, self.traced = order, traced
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6, eps=1e-3), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.classifier = nn.Sequential(nn.Linear(96, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        if not self.traced and x.sum() > 1e9:
            x = x + 1
        if self.order == "channels last":
            x = x.permute(0, 2, 3, 1)
        return self.classifier(x.reshape(x.shape[0], -1))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, rg.Probe]:
    model = keras_net()
    folder = tmp_path_factory.mktemp("flatten")
    model.save(folder / "net.keras")
    model.save_weights(folder / "net.weights.h5")
    x = np.random.default_rng(1).normal(size=(3, 8, 8, 1)).astype(np.float32)
    return folder, rg.Probe(x.transpose(0, 3, 1, 2).copy(), np.asarray(model(x)))


@pytest.mark.parametrize("order", ["channels first", "channels last"])
def test_two_graphs_settle_it(order: str, source: tuple[Path, rg.Probe]) -> None:
    folder, probe = source
    model = TorchNet(order)
    assert rg.load(folder / "net.keras", model).loaded
    assert rg.verify(model, probe).equal


@pytest.mark.parametrize("order", ["channels first", "channels last"])
def test_a_file_without_a_graph_has_its_frameworks_order(
    order: str, source: tuple[Path, rg.Probe]
) -> None:
    folder, probe = source
    model = TorchNet(order)
    assert rg.load(folder / "net.weights.h5", model).loaded
    assert rg.verify(model, probe).equal


@pytest.mark.parametrize("order", ["channels first", "channels last"])
@pytest.mark.parametrize("file", ["net.keras", "net.weights.h5"])
def test_code_that_cannot_be_followed_leaves_it_open_and_a_probe_settles_it(
    order: str, file: str, source: tuple[Path, rg.Probe]
) -> None:
    folder, probe = source
    model = TorchNet(order, traced=False)
    plan = rg.plan(folder / file, model)
    assert list(plan.undecided) == ["classifier.0.weight"]
    assert len(plan.undecided["classifier.0.weight"].alternatives) == 2
    receipt = rg.load(folder / file, model, probe=probe)
    assert receipt.verified
    evidence = receipt.plan.grafts["classifier.0.weight"].evidence
    assert [e.kind for e in evidence] == ["probe"]


def test_the_rule_in_the_alternative_settles_it(source: tuple[Path, rg.Probe]) -> None:
    folder, probe = source
    model = TorchNet(traced=False)
    plan = rg.plan(folder / "net.keras", model)
    way = plan.undecided["classifier.0.weight"].alternatives[0]
    rule = eval(way.rule, {"rg": rg})  # the text that `why` prints, ready to paste
    rg.load(folder / "net.keras", model, rules=[rule])
    assert rg.verify(model, probe).equal


def test_a_wrong_probe_settles_nothing(source: tuple[Path, rg.Probe]) -> None:
    folder, probe = source
    model = TorchNet(traced=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wrong = rg.Probe(probe.inputs, probe.outputs + 1)
    plan = rg.plan(folder / "net.keras", model, probe=wrong)
    assert not plan.complete
    assert "none of 2 possible answers" in plan.notes[-1].text
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_back_to_keras(source: tuple[Path, rg.Probe]) -> None:
    folder, probe = source
    model = TorchNet()
    rg.load(folder / "net.keras", model)
    again = keras_net()
    for variable in again.weights:
        variable.assign(variable * 0)
    image = probe.inputs.transpose(0, 2, 3, 1)
    assert rg.load(model, again, probe=rg.Probe(image, probe.outputs)).verified


def nested_net(reshape: bool) -> Any:
    layers = keras.layers
    body = keras.Sequential(
        [layers.Input((8, 8, 1)), layers.Conv2D(6, 3, padding="same"),
         layers.BatchNormalization(), layers.ReLU(), layers.MaxPooling2D()], name="body",
    )  # fmt: skip
    image = keras.Input((8, 8, 1))
    x = body(image)
    x = layers.Reshape((-1,))(x) if reshape else layers.Flatten()(x)
    head = keras.Sequential(
        [layers.Input((96,)), layers.Dense(16, activation="relu"), layers.Dense(5)], name="head"
    )
    model = keras.Model(image, head(x))
    generator = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(generator.uniform(0.2, 1.0, variable.shape))
    return model


@pytest.mark.parametrize("reshape", [False, True])
@pytest.mark.parametrize("ending", ["", "keras", "weights.h5", "h5"])
def test_models_inside_a_keras_model_are_looked_into(
    ending: str, reshape: bool, tmp_path: Path
) -> None:
    model = nested_net(reshape)
    x = np.random.default_rng(1).normal(size=(3, 8, 8, 1)).astype(np.float32)
    source: Any = model
    if ending:
        source = tmp_path / f"net.{ending}"
        (model.save_weights if ending == "weights.h5" else model.save)(source)
    target = TorchNet()
    assert rg.load(source, target).loaded
    probe = rg.Probe(x.transpose(0, 3, 1, 2).copy(), np.asarray(model(x)))
    assert rg.verify(target, probe).equal
