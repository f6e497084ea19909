"""LoRA through PEFT: only adapters learn, and merging gives plain weights with their lineage."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regraft as rg
from regraft.tuning.lora import Lora

sys.path.insert(0, str(Path(__file__).parent))
from networks import changed, samples, values

pytest.importorskip("peft")


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 2)
    )


def train(model: Any) -> None:
    x, y = (torch.as_tensor(part) for part in samples())
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1
    )
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.filterwarnings("ignore:.*:UserWarning:peft")
def test_adapters_are_merged_back_with_lineage(tmp_path: Path) -> None:
    torch.save(net(1)[:4].state_dict(), tmp_path / "base.pth")
    model = net(2)
    receipt = rg.load(tmp_path / "base.pth", model, fresh=["4.*"])
    before = values(model)
    lora = Lora(model, ("0.weight", "3.weight"), rank=2, receipt=receipt)
    train(lora.model)
    x = torch.as_tensor(samples()[0])
    expected = lora.model.eval()(x)
    merged = lora.merge()
    torch.testing.assert_close(merged.eval()(x), expected)
    learned = {"0.weight", "3.weight", "4.weight", "4.bias"}
    assert changed(before, values(merged)) == learned
    assert lora.receipt is not None
    assert set(lora.receipt.frozen) == set(before) - learned
    assert (
        torch.linalg.matrix_rank(merged[3].weight - torch.as_tensor(before["3.weight"]), rtol=1e-3)
        == 2
    )
    path = rg.save(merged, tmp_path / "tuned.safetensors", receipt=receipt, trained=lora.trained)
    states = {name: origin.state for name, origin in rg.trace(path).tensors.items()}
    assert states == {
        "0.weight": "tuned", "0.bias": "frozen", "1.weight": "frozen", "1.bias": "frozen",
        "3.weight": "tuned", "3.bias": "frozen", "4.weight": "fresh", "4.bias": "fresh",
    }  # fmt: skip


def test_what_cannot_be_adapted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(rg.RuleMatchedNothing):
        Lora(net(0), ("q.weight",))
    with pytest.raises(rg.TargetError):
        Lora(net(0), ("1.weight",))  # a norm
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(rg.MissingDependency, match="lora"):
        Lora(net(0), ("0.weight",))
