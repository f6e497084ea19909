"""Two changes at one place: proven only where no other pair was left untried."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import regraft as rg
from regraft.verification import proving
from regraft.verification.choosing import UNTRIED

X = np.random.default_rng(2).standard_normal((6, 12), np.float32)


class Block(nn.Module):
    """A norm and an activation in the code of one module."""

    def __init__(self, eps: float, approximate: str) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(12)), nn.Parameter(torch.rand(12))
        self.eps, self.approximate = eps, approximate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.layer_norm(x, (12,), self.weight, self.bias, self.eps)
        return functional.gelu(x, approximate=self.approximate)


def model(eps: float, approximate: str) -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(12, 12), Block(eps, approximate), nn.Linear(12, 3)).eval()


def test_both_are_proven() -> None:
    report = rg.verify(model(1e-2, "tanh"), X, source=model(1e-5, "none"))
    assert report.first_divergence == "1"
    assert {c.kind for c in report.causes if c.proven} == {"norm-epsilon", "activation"}


@pytest.mark.parametrize("most", [1, 2, 5])
def test_they_are_suspected_where_pairs_are_left(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proving, "_MOST_PAIRS", most)
    report = rg.verify(model(1e-2, "tanh"), X, source=model(1e-5, "none"))
    assert not report.equal
    assert not [cause for cause in report.causes if cause.proven]
    for cause in report.causes:
        assert cause.reason == UNTRIED or "equally well" in cause.reason
