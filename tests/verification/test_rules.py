"""What the user knows better counts when it is proven, too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import regraft as rg
from regraft.cli import cli

MODELS = """
import torch
from torch import nn

class Source(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.left(x) * torch.tanh(self.right(x))

class Target(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return torch.sigmoid(self.one(x)) * self.two(x)

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = source()

    def forward(self, x):
        return self.model(x)

def source():
    torch.manual_seed(4)
    return Source().eval()

def target():
    torch.manual_seed(5)
    return Target().eval()
"""
X = np.random.default_rng(1).standard_normal((4, 8), np.float32)
RULES = ("left.*", "two.*"), ("right.*", "one.*")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.chdir(tmp_path)
    Path("twins.py").write_text(MODELS)
    known: dict[str, object] = {}
    exec(MODELS, known)
    return known


def test_a_live_source_is_paired_by_the_rules(models: dict[str, object]) -> None:
    source, target = models["source"](), models["target"]()  # pyright: ignore[reportCallIssue]
    rules = [rg.rename(a, b) for a, b in RULES]
    rg.load(source, target, rules=rules)
    report = rg.verify(target, X, source=source, rules=rules)
    assert [c.kind for c in report.causes if c.proven] == ["activation"], str(report)
    with pytest.raises(rg.PlanError):
        rg.verify(target, X, source=source, rules=[rg.rename("nothing.weight", "one.weight")])


def test_the_command_plans_with_the_rules(models: dict[str, object]) -> None:
    source: nn.Module = models["source"]()  # pyright: ignore[reportCallIssue]
    with torch.no_grad():
        np.savez("probe.npz", input=X, output=source(torch.tensor(X)).numpy())
    torch.save(source.state_dict(), "source.pth")
    said = [word for a, b in RULES for word in ("--rename", a, b)]
    words = ["verify", "source.pth", "twins.py:target", "probe.npz", "--json", *said]
    for live in ([], ["--live", "twins.py:source"]):
        done = CliRunner().invoke(cli, [*words, *live], standalone_mode=False)
        assert done.exception is None, done.exception
        told = json.loads(done.stdout)
        assert not told["equal"]
    assert [c["kind"] for c in told["causes"] if c["proven"]] == ["activation"]


def test_rules_that_a_live_source_of_other_names_does_not_bear(models: dict[str, object]) -> None:
    source: nn.Module = models["source"]()  # pyright: ignore[reportCallIssue]
    np.savez("probe.npz", input=X, output=np.zeros((4, 8), np.float32))
    torch.save(source.state_dict(), "source.pth")
    words = ["verify", "source.pth", "twins.py:target", "probe.npz", "--live", "twins.py:Wrapped"]
    said = [word for a, b in RULES for word in ("--rename", a, b)]
    done = CliRunner().invoke(cli, [*words, *said], standalone_mode=False)
    assert isinstance(done.exception, rg.RuleMatchedNothing)
