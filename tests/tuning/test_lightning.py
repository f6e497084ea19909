"""Policies in Lightning's Trainer, and runs that go on after they were stopped."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import regraft as rg
from regraft.tuning import processes
from regraft.tuning.lightning import Follow
from regraft.tuning.policies import Policy
from regraft.tuning.torch import Tuning

sys.path.insert(0, str(Path(__file__).parent))
from networks import TRUNK, changed, samples, torch_net, values


class Task(lightning.LightningModule):
    def __init__(self, model: nn.Module, tuning: Tuning) -> None:
        super().__init__()
        self.model, self.tuning = model, tuning
        self.seen: list[Any] = []

    def training_step(self, batch: Any, index: int) -> Any:
        return functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: Any, index: int) -> None:
        self.seen.append(self.model[3].weight.detach().clone())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.tuning.groups(0.05, weight_decay=0.1))


def fit(
    policy: Policy, folder: Path, epochs: int = 2, **more: Any
) -> tuple[nn.Module, Task, Follow]:
    model = torch_net()
    tuning = Tuning(model, policy)
    task, follow = Task(model, tuning), Follow(tuning)
    x, y = samples()
    loader = DataLoader(TensorDataset(torch.as_tensor(x), torch.as_tensor(y)), 8)
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=[follow], logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, accelerator="cpu", devices=1,
    )  # fmt: skip
    trainer.fit(task, loader, loader, **more)
    trainer.save_checkpoint(folder / "end.ckpt")
    return model, task, follow


@pytest.mark.filterwarnings("ignore:.*(num_workers|log_every_n_steps|exists and is not empty).*")
@pytest.mark.parametrize(
    "policy",
    [Policy(freeze=("0.*", "1.*")), Policy(linear_probe=True, head=("3.*",), ema=0.9),
     Policy(freeze_depth=-1, layer_decay=0.5), Policy(freeze=("0.*", "1.weight", "1.bias"), batchnorm="freeze")],
)  # fmt: skip
def test_frozen_tensors_are_the_same_bits(policy: Policy, tmp_path: Path) -> None:
    before = values(torch_net())
    model, task, follow = fit(policy, tmp_path)
    assert follow.receipt is not None
    assert follow.receipt.held
    assert set(follow.receipt.frozen) == set(TRUNK)
    assert changed(before, values(model)) == {"3.weight", "3.bias"}
    if policy.ema:  # validation and the end have the average
        assert torch.equal(task.seen[-1], model.get_submodule("3").weight)


@pytest.mark.filterwarnings("ignore:.*(num_workers|log_every_n_steps|exists and is not empty).*")
def test_gradual_unfreezing(tmp_path: Path) -> None:
    before = values(torch_net())
    model, _, follow = fit(Policy(thaw_every=2, head=("3.*",)), tmp_path)
    assert changed(before, values(model)) == {"3.weight", "3.bias"}
    assert follow.receipt is not None
    assert set(follow.receipt.idle) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    model, _, _ = fit(Policy(thaw_every=1, head=("3.*",)), tmp_path)
    assert changed(before, values(model)) >= {"3.weight", "0.weight", "1.weight", "1.running_mean"}


@pytest.mark.parametrize("how", [{}, {"accumulate": 2}, {"precision": "bf16"}, {"clip": 1.0}])
def test_l2_sp(how: dict[str, Any], tmp_path: Path) -> None:
    """Lightning makes the gradients within the optimizer's step; the pull is added to them, and not
    clipped."""
    torch.save(torch_net(1).state_dict(), tmp_path / "base.pth")
    apart: list[float] = []
    for strength in (0.0, 1e4):
        model = torch_net(2)
        receipt = rg.load(tmp_path / "base.pth", model)
        start = values(model)
        rg.finetune(
            model, samples(), receipt=receipt, source=tmp_path / "base.pth", epochs=6, lr=0.01,
            batch_size=8, policy=Policy(l2_sp=strength), **how,
        )  # fmt: skip
        apart.append(float(np.linalg.norm(values(model)["0.weight"] - start["0.weight"])))
    assert apart[1] < 0.7 * apart[0]


SETTINGS: dict[str, Any] = {
    "epochs": 4, "lr": 0.02, "weight_decay": 0.1, "schedule": "cosine", "warmup": 0.1,
    "accumulate": 2, "clip": 1.0, "batch_size": 7, "seed": 5,
}  # fmt: skip
POLICY = Policy(ema=0.9, probe_epochs=1, head=("4.*",), layer_decay=0.7, freeze=("0.bias",))


def dropout_net() -> nn.Module:
    net = torch_net()
    return nn.Sequential(*net[:3], nn.Dropout(0.4), net[3])


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3, 4])
def test_a_run_that_goes_on_ends_the_same(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at the end of an epoch, or in the middle of one: dropout, order, rates and averages
    are what they would have been."""
    whole = dropout_net()
    expected = rg.finetune(whole, samples(), policy=POLICY, **SETTINGS)
    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == after * 8 + 3:
            raise Stop

    def stop(epoch: Any) -> None:
        if epoch.number == after == 4:
            raise Stop

    model = dropout_net()
    handle = model.register_forward_pre_hook(count)
    with pytest.raises(Stop):
        rg.finetune(
            model, samples(), policy=POLICY, checkpoints=tmp_path, progress=stop, **SETTINGS
        )
    handle.remove()
    torch.manual_seed(99)
    again = dropout_net()
    rows: list[int] = []
    found = rg.finetune(
        again, samples(), policy=POLICY, checkpoints=tmp_path, log=tmp_path / "log",
        progress=lambda epoch: rows.append(epoch.number), **SETTINGS,
    )  # fmt: skip
    assert found.curve == expected.curve
    assert rows == [1, 2, 3, 4]
    assert changed(values(whole), values(again)) == set()
    assert found.receipt.frozen == expected.receipt.frozen
    assert found.receipt.learned == expected.receipt.learned
    assert (tmp_path / "log" / "curve.csv").read_text().count("\n") == 5
    with pytest.raises(rg.StalePlan, match="settings"):
        rg.finetune(
            dropout_net(), samples(), policy=POLICY, checkpoints=tmp_path, **{**SETTINGS, "lr": 0.1}
        )
    with pytest.raises(rg.StalePlan, match="data"):
        rg.finetune(dropout_net(), samples(38), policy=POLICY, checkpoints=tmp_path, **SETTINGS)
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(rg.StalePlan, match="processes"):
        rg.finetune(dropout_net(), samples(), policy=POLICY, checkpoints=tmp_path, **SETTINGS)
    monkeypatch.undo()
    (kept,) = tmp_path.glob("*.ckpt")
    kept.write_bytes(kept.read_bytes()[:-2000])
    with pytest.raises(rg.CorruptFile, match="remove it"):
        rg.finetune(dropout_net(), samples(), policy=POLICY, checkpoints=tmp_path, **SETTINGS)


def test_what_starts_later_is_refused_in_several_processes() -> None:
    """Gradients are shared by what learned at the start: the rest would go apart silently."""
    tuning = Tuning(torch_net(), Policy(probe_epochs=1, head=("3.*",)))
    trainer = type("Trainer", (), {"world_size": 2, "optimizers": []})
    with pytest.raises(rg.TargetError, match="fit twice"):
        Follow(tuning).on_train_start(trainer, None)


def test_a_run_from_other_pretrained_values_is_another(tmp_path: Path) -> None:
    """From live models, too, which have no file's hash."""
    for seed, raises in ((1, False), (1, False), (2, True)):
        model = torch_net(9)
        receipt = rg.load(torch_net(seed), model)
        wanted = pytest.raises(rg.StalePlan, match="starting weights") if raises else nullcontext()
        with wanted:
            rg.finetune(model, samples(), receipt=receipt, checkpoints=tmp_path, epochs=1)


def test_without_a_receipt_the_starting_weights_tell_a_run(tmp_path: Path) -> None:
    first = torch_net(1)
    done = rg.finetune(first, samples(), checkpoints=tmp_path, epochs=1)
    again = torch_net(1)
    assert rg.finetune(again, samples(), checkpoints=tmp_path, epochs=1).curve == done.curve
    assert changed(values(first), values(again)) == set()
    # One that was trained is no start either, nor one of other statistics.
    other = torch_net(1)
    other[1].running_var[0] += 1
    for model in (torch_net(2), first, other):
        before = values(model)
        with pytest.raises(rg.StalePlan, match="starting weights"):
            rg.finetune(model, samples(), checkpoints=tmp_path, epochs=1)
        assert changed(before, values(model)) == set()


def test_with_a_receipt_only_what_is_fresh_may_be_drawn_anew(tmp_path: Path) -> None:
    said: dict[str, Any] = {"fresh": ["3.*"], "unused": ["3.*"]}
    ends: list[Any] = []
    for seed in (3, 4):
        model = torch_net(seed)
        receipt = rg.load(torch_net(1), model, **said)
        rg.finetune(model, samples(), receipt=receipt, checkpoints=tmp_path, epochs=1)
        ends.append(values(model))
    assert changed(*ends) == set()
    receipt = rg.load(torch_net(1), model, **said)
    with torch.no_grad():
        model[0].bias.add_(1)  # since it was loaded
    with pytest.raises(rg.StalePlan, match="starting weights"):
        rg.finetune(model, samples(), receipt=receipt, checkpoints=tmp_path, epochs=1)


class _Averaging(lightning.Callback):
    """What averages weights at the end of training, as Lightning's WeightAveraging does."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        with torch.no_grad():
            pl_module.model[0].weight.mul_(0.99)


def _fit(policy: Policy, folder: Path, model: nn.Module, optimizer: Any = None, **more: Any) -> Any:
    tuning = Tuning(model, policy)
    follow, task = Follow(tuning, **more), Task(model, tuning)
    if optimizer:
        task.configure_optimizers = lambda: optimizer(model.parameters())
    x, y = (torch.as_tensor(part) for part in samples())
    trainer = lightning.Trainer(
        max_epochs=2, callbacks=[follow, _Averaging()], logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, accelerator="cpu", devices=1,
        enable_checkpointing=False,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(x, y), 8)
    trainer.fit(task, loader, loader)
    return follow


def test_what_other_callbacks_do_at_the_end_is_seen(tmp_path: Path) -> None:
    with pytest.raises(rg.VerificationFailed, match=r"0\.weight"):
        _fit(Policy(freeze=("0.*",)), tmp_path, torch_net())


def test_rates_that_an_optimizer_does_not_have_are_told(tmp_path: Path) -> None:
    with pytest.raises(rg.TargetError, match="proportion"):
        _fit(Policy(layer_decay=0.5, head=("3.*",)), tmp_path, torch_net(), torch.optim.AdamW)


@pytest.mark.parametrize("policy", ["adapt", "recalibrate"])
def test_statistics_are_measured_on_the_training_batches(policy: Any, tmp_path: Path) -> None:
    model = torch_net()
    first = values(model)
    mean = torch.stack([model[0](torch.as_tensor(samples()[0])[i : i + 8]).mean(0)
                        for i in range(0, 40, 8)]).mean(0).detach()  # fmt: skip
    follow = _fit(
        Policy(batchnorm=policy, freeze=("3.bias",)), tmp_path, model, inputs=lambda batch: batch[0]
    )
    assert follow.receipt.held
    assert "1.running_mean" in changed(first, values(model))
    if policy == "adapt":
        torch.testing.assert_close(model[1].running_mean, mean)
        assert "1.running_mean" in follow.receipt.frozen
