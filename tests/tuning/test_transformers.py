"""Policies in transformers' Trainer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regraft as rg
from regraft.tuning.policies import Policy
from regraft.tuning.torch import Tuning

sys.path.insert(0, str(Path(__file__).parent))
from networks import TRUNK, changed, samples, torch_net, values

pytest.importorskip("accelerate")
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from regraft.tuning.transformers import Follow

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


class Net(nn.Module):
    """With a BatchNorm, which the models of transformers hardly have."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch_net()

    def forward(self, x: Any, labels: Any = None) -> dict[str, Any]:
        logits = self.net(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def train(model: nn.Module, data: Any, policy: Policy, folder: Path, **more: Any) -> Follow:
    tuning = Tuning(model, policy)
    follow = Follow(tuning)
    arguments = TrainingArguments(
        str(folder), num_train_epochs=2, per_device_train_batch_size=8, use_cpu=True,
        report_to=[], save_strategy="epoch", disable_tqdm=True, logging_strategy="no", seed=4,
        dataloader_pin_memory=False,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(tuning.groups(0.05, weight_decay=0.1))
    trainer = Trainer(
        model, arguments, train_dataset=data, optimizers=(optimizer, None), callbacks=[follow]
    )
    trainer.train(**more)
    return follow


def rows() -> list[dict[str, Any]]:
    return [{"x": torch.as_tensor(x), "labels": int(y)} for x, y in zip(*samples(), strict=True)]


@pytest.mark.parametrize(
    "policy",
    [Policy(freeze=("net.0.*", "net.1.weight", "net.1.bias")),
     Policy(linear_probe=True, head=("net.3.*",), ema=0.9),
     Policy(thaw_every=2, head=("net.3.*",))],
)  # fmt: skip
def test_frozen_tensors_are_the_same_bits(policy: Policy, tmp_path: Path) -> None:
    """The Trainer sets training mode at every step; statistics stay all the same."""
    model = Net()
    before = values(model)
    follow = train(model, rows(), policy, tmp_path)
    assert changed(before, values(model)) == {"net.3.weight", "net.3.bias"}
    assert follow.receipt is not None
    if not policy.thaw_every:
        assert set(follow.receipt.frozen) == {f"net.{name}" for name in TRUNK}
    assert follow.receipt.held


def test_a_language_model_by_depth(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=8,
    )
    model = BertForSequenceClassification(config)
    before = values(model)
    data = [{"input_ids": torch.randint(20, (6,)), "labels": i % 2} for i in range(8)]
    follow = train(
        model, data, Policy(freeze_depth=2, layer_decay=0.5, head=("classifier.*",)), tmp_path
    )
    assert follow.receipt is not None
    assert all(
        n.startswith(("bert.embeddings", "bert.encoder.layer.0.")) for n in follow.receipt.frozen
    )
    assert len(follow.receipt.frozen) == 21
    assert changed(before, values(model)) == set(before) - set(follow.receipt.frozen)


def test_the_trainer_goes_on_with_the_average(tmp_path: Path) -> None:
    policy = Policy(ema=0.9, freeze=("net.0.weight",))
    whole = Net()
    train(whole, rows(), policy, tmp_path)
    again = Net()
    follow = train(
        again, rows(), policy, tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-5")
    )
    assert changed(values(whole), values(again)) == set()
    assert follow.receipt is not None
    assert follow.receipt.held
    (tmp_path / "checkpoint-5" / "regraft_tuning.pt").unlink()
    with pytest.raises(rg.TargetError, match="regraft_tuning"):
        train(
            Net(), rows(), policy, tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-5")
        )


@pytest.mark.parametrize("kind", ["adapt", "recalibrate"])
def test_statistics_go_through_the_module_around_the_model(kind: Any, tmp_path: Path) -> None:
    model = Net()
    before = values(model.net)
    tuning = Tuning(model.net, Policy(batchnorm=kind))
    follow = Follow(tuning)
    arguments = TrainingArguments(
        str(tmp_path), num_train_epochs=1, per_device_train_batch_size=8, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        logging_strategy="no",
    )  # fmt: skip
    optimizer = torch.optim.SGD(tuning.groups(0.0))
    trainer = Trainer(
        model, arguments, train_dataset=rows(), optimizers=(optimizer, None), callbacks=[follow]
    )
    trainer.train()
    assert follow.receipt is not None
    assert changed(before, values(model.net)) >= {"1.running_mean", "1.running_var"}
    seen = model.net[0](torch.as_tensor(samples()[0])).mean(0)
    torch.testing.assert_close(model.net[1].running_mean, seen)


def test_rates_that_the_trainers_own_optimizer_does_not_have_are_told(tmp_path: Path) -> None:
    model = Net()
    follow = Follow(Tuning(model, Policy(layer_decay=0.5, head=("net.3.*",))))
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True)
    trainer = Trainer(model, arguments, train_dataset=rows(), callbacks=[follow])
    with pytest.raises(rg.TargetError, match="proportion"):
        trainer.train()
