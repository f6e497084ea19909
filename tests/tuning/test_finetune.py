"""Fine-tuning in both trainers: what is frozen stays, the best epoch is kept, runs repeat."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import regraft as rg
from regraft.tuning import data as training_data
from regraft.tuning.data import Data, Reading

sys.path.insert(0, str(Path(__file__).parent))
from networks import samples, torch_net, values


def keras_net(softmax: bool = False) -> Any:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [layers.Input((3,)), layers.Dense(8, name="first"), layers.BatchNormalization(name="norm"),
         layers.ReLU(), layers.Dense(2, "softmax" if softmax else None, name="head")]
    )  # fmt: skip


CASES = {
    "torch": (torch_net, ["0.*", "1.*"], "3.weight"),
    "keras": (keras_net, ["first/*", "norm/*"], "head/kernel"),
}


@pytest.mark.parametrize("framework", CASES)
def test_frozen_tensors_stay_and_others_learn(framework: str) -> None:
    make, freeze, learns = CASES[framework]
    model = make()
    before = values(model)
    seen: list[int] = []
    tuned = rg.finetune(
        model, samples(), freeze=freeze, epochs=5, lr=0.05, progress=lambda e: seen.append(e.number)
    )
    after = values(model)
    for name in before:
        if not name.startswith(("3.", "head/")):
            np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    assert not np.array_equal(before[learns], after[learns])
    assert [epoch.number for epoch in tuned.curve] == seen == [1, 2, 3, 4, 5]
    assert all(epoch.val_loss is not None for epoch in tuned.curve)
    assert tuned.trained[learns]
    assert not any(tuned.trained[n] for n in tuned.trained if not n.startswith(("3.", "head/")))
    assert tuned.training["epochs"] == "5"


@pytest.mark.parametrize("framework", CASES)
def test_it_learns_and_repeats(framework: str) -> None:
    make, _, _ = CASES[framework]
    runs = [rg.finetune(make(), samples(80), epochs=20, lr=0.02, seed=3) for _ in range(2)]
    assert runs[0].curve == runs[1].curve
    assert runs[0].curve[-1].loss < runs[0].curve[0].loss
    assert max(epoch.accuracy or 0 for epoch in runs[0].curve) >= 0.8


@pytest.mark.parametrize("framework", CASES)
def test_early_stopping_and_the_best_epoch(framework: str) -> None:
    """With answers turned round in validation, every epoch of learning makes it worse."""
    make, _, _ = CASES[framework]
    x, y = samples()
    data = Data(x, y, x, 1 - y)
    model = make()
    tuned = rg.finetune(model, data, epochs=50, lr=0.05, patience=2)
    assert len(tuned.curve) < 50
    assert tuned.best < len(tuned.curve)
    again = make()
    once = rg.finetune(again, data, epochs=tuned.best, lr=0.05)
    assert once.curve == tuned.curve[: tuned.best]
    for name, array in values(again).items():
        np.testing.assert_array_equal(array, values(model)[name], err_msg=name)


def test_models_that_end_in_a_softmax() -> None:
    plain, soft = keras_net(), keras_net(softmax=True)
    a = rg.finetune(plain, samples(), epochs=2, validation=0)
    b = rg.finetune(soft, samples(), epochs=2, validation=0)
    assert a.curve[0].loss == pytest.approx(b.curve[0].loss, rel=1e-4)
    rows = [rg.finetune(nn.Sequential(torch_net(), *tail), samples(), epochs=2, validation=0)
            for tail in ([], [nn.Softmax(1)])]  # fmt: skip
    assert rows[0].curve[0].loss == pytest.approx(rows[1].curve[0].loss, rel=1e-4)


def test_linear_probe_learns_only_what_is_fresh(tmp_path: Path) -> None:
    torch.save(torch_net()[:3].state_dict(), tmp_path / "trunk.pth")
    model = torch_net()
    receipt = rg.load(tmp_path / "trunk.pth", model, fresh=["3.*"])
    before = values(model)
    tuned = rg.finetune(model, samples(), receipt=receipt, linear_probe=True, epochs=2)
    changed = {
        name for name, array in values(model).items() if not np.array_equal(array, before[name])
    }
    assert changed == {"3.weight", "3.bias"}
    rg.save(model, tmp_path / "t.safetensors", receipt=receipt, trained=tuned.trained)
    assert rg.trace(tmp_path / "t.safetensors").counts() == {"frozen": 7, "fresh": 2}
    with pytest.raises(rg.TargetError):
        rg.finetune(model, samples(), linear_probe=True)


def test_a_live_source_is_held_as_it_was(tmp_path: Path) -> None:
    """L2-SP's values may lie in the very memory that is trained: it pulls to what they were."""
    torch.save(torch_net(1).state_dict(), tmp_path / "base.pth")
    found: list[dict[str, Any]] = []
    for live in (False, True):
        model = torch_net(2)
        receipt = rg.load(tmp_path / "base.pth", model)
        source = model if live else tmp_path / "base.pth"
        policy = rg.Policy(l2_sp=100.0)
        rg.finetune(
            model, samples(), receipt=receipt, source=source, policy=policy, epochs=2, batch_size=8,
            validation=0,
        )  # fmt: skip
        found.append(values(model))
    for name, array in found[0].items():
        np.testing.assert_array_equal(array, found[1][name], err_msg=name)


def test_settings_and_single_values_together() -> None:
    settings = rg.Settings(epochs=9, lr=0.02)
    tuned = rg.finetune(torch_net(), samples(), settings=settings, epochs=2)
    assert len(tuned.curve) == 2
    assert tuned.training["lr"] == "0.02"


def test_the_loss_is_told_without_the_pull(tmp_path: Path) -> None:
    """In one way for all trainers: the curve is that of the data."""
    keras = pytest.importorskip("keras")
    x, y = samples()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="first")])
    model.save(tmp_path / "base.keras")
    receipt = rg.load(tmp_path / "base.keras", model)
    model.get_layer("first").bias.assign([5.0, -5.0])
    tuned = rg.finetune(
        model, (x, y), receipt=receipt, source=tmp_path / "base.keras", epochs=1, lr=1e-9,
        batch_size=16, validation=0, policy=rg.Policy(l2_sp=100.0),
    )  # fmt: skip
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert tuned.curve[0].loss == pytest.approx(float(loss(y, model(x))), rel=1e-4)


def test_regression() -> None:
    x, _ = samples()
    tuned = rg.finetune(nn.Linear(3, 1), (x, x.sum(1)), epochs=30, lr=0.1)
    assert tuned.curve[-1].loss < 0.5 * tuned.curve[0].loss
    assert tuned.curve[-1].accuracy is None


def test_what_cannot_be_trained() -> None:
    with pytest.raises(rg.RuleMatchedNothing):
        rg.finetune(torch_net(), samples(), freeze=["nothing.*"])
    x, y = samples()
    with pytest.raises(rg.TargetError, match="6 classes"):
        rg.finetune(torch_net(), (x, y * 5))
    with pytest.raises(rg.FormatError):
        rg.finetune(torch_net(), (x, y[:3]))
    with pytest.raises(rg.FormatError, match="x_val"):
        Data(x, y, x)
    with pytest.raises(rg.FormatError, match="class number -1"):
        Data(x, y - 1)
    with pytest.raises(rg.FormatError, match="class number -1"):
        Data(x, y, x, y - 1)
    with pytest.raises(rg.TargetError):
        rg.finetune({"w": np.ones(3)}, (x, y))


def _images(folder: Path, sizes: tuple[int, ...] = (8, 8)) -> Path:
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number, size in enumerate(sizes):
            pixels = generator.integers(0, 255, (size, size, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_images_by_class(tmp_path: Path) -> None:
    folder = _images(tmp_path / "photos")
    found = training_data.load(folder, channels_first=True)
    assert found.x.shape == (4, 3, 8, 8)
    assert found.classes == ("cat", "dog")
    assert found.y.tolist() == [0, 0, 1, 1]
    assert 0 <= found.x.min() <= found.x.max() <= 1
    gray = training_data.load(folder, channels_first=False, reading=Reading(size=(4, 6), gray=True))
    assert gray.x.shape == (4, 4, 6, 1)
    tuned = rg.finetune(
        nn.Sequential(nn.Flatten(), nn.Linear(24, 2)), folder, reading=Reading(gray=True),
        size=(4, 6), epochs=1,
    )  # fmt: skip
    assert len(tuned.curve) == 1
    with pytest.raises(rg.FormatError, match="size"):
        training_data.load(_images(tmp_path / "mixed", (8, 9)), channels_first=True)
    (folder / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(rg.FormatError):
        training_data.load(folder, channels_first=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(rg.FormatError, match="subfolders"):
        training_data.load(tmp_path / "empty", channels_first=True)


def test_npz_and_splits(tmp_path: Path) -> None:
    x, y = samples(21)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    found = training_data.load(tmp_path / "d.npz", channels_first=True)
    split = found.split(0.25, seed=1)
    assert split.x_val is not None
    assert split.y_val is not None
    assert len(split.x) + len(split.x_val) == 21
    assert set(split.y_val.tolist()) == {0, 1}
    assert found.split(0, seed=1) is found
    np.savez(tmp_path / "e.npz", x=x)
    with pytest.raises(rg.FormatError):
        training_data.load(tmp_path / "e.npz", channels_first=True)
    np.savez(tmp_path / "f.npz", x=np.array([{}], object), y=y[:1])
    with pytest.raises(rg.FormatError):
        training_data.load(tmp_path / "f.npz", channels_first=True)
