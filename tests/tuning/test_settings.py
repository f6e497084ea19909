"""Settings and BatchNorm's policies in `rg.finetune` with PyTorch."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch

import regraft as rg
from regraft.tuning import processes
from regraft.tuning.metrics import measured
from regraft.tuning.seeds import even
from regraft.tuning.sweeps import suggested, sweep

sys.path.insert(0, str(Path(__file__).parent))
from networks import changed, samples, torch_net, values


def _statistics(net: Any, x: Any, size: int) -> tuple[Any, Any]:
    """Of what goes into the norm, averaged over batches of nearly one size, shuffled: data sorted
    by class, and a last batch of one sample, would give other statistics than training sees."""
    hidden = net[0](torch.as_tensor(x)).detach().numpy()
    parts = [hidden[batch] for batch in even(len(x), size, seed=0)]
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1
    return np.mean([p.mean(0) for p in parts], 0), np.mean([p.var(0, ddof=1) for p in parts], 0)


@pytest.mark.parametrize("count", [40, 31])
@pytest.mark.parametrize("policy", ["recalibrate", "adapt"])
def test_statistics_of_the_new_data(policy: Any, count: int) -> None:
    net, (x, y) = torch_net(), samples(count)
    said = rg.Policy(batchnorm=policy, freeze=("0.*",), ema=0.5)
    tuned = rg.finetune(net, (x, y), policy=said, epochs=2, batch_size=10, lr=0.05, validation=0)
    mean, variance = _statistics(net, x, 10)
    np.testing.assert_allclose(values(net)["1.running_mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values(net)["1.running_var"], variance, rtol=1e-4)
    assert ("1.running_mean" in tuned.receipt.frozen) == (policy == "adapt")
    assert net[1].momentum == 0.1


def test_precision_accumulation_and_rate() -> None:
    net = torch_net()
    before = values(net)
    tuned = rg.finetune(net, samples(80), epochs=6, lr="auto", precision="bf16", accumulate=2,
                        batch_size=8, freeze=["0.*"])  # fmt: skip
    assert tuned.curve[-1].loss < tuned.curve[0].loss
    assert 1e-6 < float(tuned.training["lr"]) < 1
    assert {array.dtype.name for array in values(net).values()} == {"float32", "int64"}
    assert not {"0.weight", "0.bias"} & changed(before, values(net))


def test_accumulated_steps_are_those_of_a_larger_batch() -> None:
    found: list[dict[str, Any]] = []
    for size, steps in ((20, 1), (10, 2)):
        net = torch_net()
        rg.finetune(net, samples(), epochs=2, batch_size=size, accumulate=steps, validation=0,
                    policy=rg.Policy(batchnorm="freeze"))  # fmt: skip
        found.append(values(net))
    for name, array in found[0].items():
        np.testing.assert_allclose(array, found[1][name], atol=1e-5, err_msg=name)


def test_one_place_knows_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (processes.count(), processes.count_here(), processes.rank()) == (1, 1, 0)
    assert processes.is_first()
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert (processes.count(), processes.count_here(), processes.rank()) == (8, 2, 3)
    assert not processes.is_first()
    package = Path(rg.__file__).parent
    readers = [
        p
        for p in package.rglob("*.py")
        if re.search(r'"(LOCAL_)?(RANK|WORLD_SIZE)"', p.read_text())
    ]
    assert readers == [Path(processes.__file__)]


def test_schedules() -> None:
    linear = rg.Settings(schedule="linear", warmup=0.5)
    assert [round(linear.share(i, 4), 3) for i in range(4)] == [0.333, 0.667, 1.0, 0.5]
    cosine = rg.Settings(schedule="cosine")
    assert [round(cosine.share(i, 4), 3) for i in range(5)] == [1.0, 0.854, 0.5, 0.146, 0.0]
    assert rg.Settings().share(3, 4) == 1
    for wrong in (
        {"lr": 0},
        {"lr": "fast"},
        {"epochs": 0},
        {"schedule": "step"},
        {"precision": "8"},
    ):
        with pytest.raises(rg.TargetError):
            rg.Settings(**wrong)  # pyright: ignore


def test_metrics() -> None:
    outputs = np.eye(3)[[0, 0, 1, 2]]
    found = measured(outputs, np.array([0, 1, 1, 2]), classification=True)
    assert found == {"accuracy": 0.75, "f1": pytest.approx((2 / 3 + 2 / 3 + 1) / 3)}
    assert measured(np.array([[1.0], [3.0]]), np.array([2.0, 1.0]), classification=False) == {
        "mae": 1.5
    }


def test_the_finder_of_rates() -> None:
    """On w² with plain steps the loss falls fastest below the rate at which it grows."""
    w = 1.0

    def step(rate: float) -> float:
        nonlocal w
        loss, w = w * w, w - 30 * rate * w
        return loss

    rate = suggested(*sweep(step))
    assert 1e-4 < rate < 2 / 30
    with pytest.raises(rg.TargetError):
        suggested([0.1 * i for i in range(1, 20)], [float(i) for i in range(1, 20)])


@pytest.mark.parametrize("framework", ["torch", "keras"])
@pytest.mark.parametrize(("count", "size", "together"), [(40, 16, 2), (44, 8, 3), (40, 4, 4)])
def test_sums_of_batches_are_the_large_batch(
    framework: str, count: int, size: int, together: int
) -> None:
    """The last sum of an epoch, of fewer or smaller batches, too."""
    x = np.random.default_rng(1).normal(size=(count, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)

    def tuned(batch_size: int, accumulate: int) -> list[Any]:
        if framework == "torch":
            torch.manual_seed(0)
            net: Any = torch.nn.Linear(4, 2)
        else:
            keras.utils.set_random_seed(0)
            net = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(2)])
        rg.finetune(net, (x, y), validation=0, epochs=2, batch_size=batch_size,
                    accumulate=accumulate, lr=0.1)  # fmt: skip
        held = net.parameters() if framework == "torch" else net.trainable_variables
        return [np.asarray(p.detach() if framework == "torch" else p.numpy()) for p in held]

    for one, other in zip(tuned(size, together), tuned(size * together, 1), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
