"""Receipts of tensors that got the pages of their file: looked at when somebody asks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg
from regraft import receipts, transfer
from regraft.errors import TransferError

SIDE = 256  # tensors of 256 KiB, which are worth pages of their own


def network(device: str = "cpu") -> nn.Module:
    with torch.device(device):
        return nn.Sequential(*(nn.Linear(SIDE, SIDE) for _ in range(3)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(network().state_dict(), tmp_path / "model.pth")
    return tmp_path / "model.pth"


def expected(file: Path) -> dict[str, str]:
    state = torch.load(file, weights_only=True)
    return {name: transfer.fingerprint(tensor.numpy()) for name, tensor in state.items()}


def test_pages_are_looked_at_when_somebody_asks(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []

    def survey(array: Any) -> Any:
        looked.append(array.nbytes)
        return transfer.survey(array)

    monkeypatch.setattr(receipts, "survey", survey)
    model = network("meta")
    receipt = rg.load(file, model)
    assert len(receipt.hashes) == len(receipt.loaded) == 6
    assert not looked
    assert receipt.hashes == expected(file)
    assert receipt.warnings == ()
    assert str(receipt).startswith("6 tensors loaded")
    assert len(looked) == 3  # the matrices, each once


def test_training_does_not_change_what_was_loaded(file: Path) -> None:
    model = network("meta")
    receipt = rg.load(file, model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    assert receipt.hashes == expected(file)
    rg.save(model, file.with_name("tuned.safetensors"), receipt=receipt)
    lineage = rg.trace(file.with_name("tuned.safetensors"))
    assert {origin.state for origin in lineage.tensors.values()} == {"tuned"}


def test_not_a_number_is_told(file: Path) -> None:
    broken = network()
    with torch.no_grad():
        broken[1].weight[3, 3] = float("inf")
    # Planning looks at all values of small files.
    padding = {"padding": torch.zeros(9 << 20)}
    torch.save({**broken.state_dict(), **padding}, file)
    receipt = rg.load(file, network("meta"), unused=["padding"])
    assert [(w.code, w.where) for w in receipt.warnings] == [("not-finite", "1.weight")]
    assert "1 of 65536 values are NaN or Inf" in str(receipt)


def test_a_file_that_was_changed_in_place_is_told(file: Path) -> None:
    receipt = rg.load(file, network("meta"))
    with file.open("r+b") as opened:
        opened.seek(100_000)
        opened.write(b"changed")
    os.utime(file, ns=(1, 1))
    with pytest.raises(TransferError, match="changed after it was loaded"):
        receipt.hashes["0.weight"]
    assert [w.code for w in receipt.warnings] == ["file-changed"]
    assert receipt.hashes["0.bias"]  # small tensors are copied
    assert receipt.source_hash == ""


def test_another_file_in_its_place_changes_nothing(file: Path) -> None:
    model = network("meta")
    receipt = rg.load(file, model)
    wanted = expected(file)
    torch.save(network().state_dict(), file.with_name("other.pth"))
    file.with_name("other.pth").replace(file)
    assert receipt.hashes == wanted
    assert receipt.warnings == ()
    held = {n: transfer.fingerprint(np.asarray(t)) for n, t in model.state_dict().items()}
    assert held == wanted


def test_a_file_that_is_gone_changes_nothing(file: Path) -> None:
    receipt = rg.load(file, network("meta"))
    wanted = expected(file)
    file.unlink()
    assert receipt.hashes == wanted
