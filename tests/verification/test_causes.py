"""The first divergence and its cause, on planted differences of small models."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import regraft as rg
from benchmarks.divergences import cases
from regraft.verification import causes

DOCS = Path(__file__).parents[2] / "docs" / "causes.md"


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_a_planted_difference_is_found_and_nothing_else(case: Any) -> None:
    source, target, inputs = case.make()
    before = _state(target)
    report = rg.verify(target, inputs, source=source)
    assert report.equal == (not case.kinds)
    proven = {cause.kind for cause in report.causes if cause.proven}
    assert proven == set(case.kinds), str(report)
    if case.kinds:
        assert report.first_divergence in case.where, str(report)
    _same(target, before)


def test_every_kind_is_planted_and_documented() -> None:
    assert {kind for case in cases.CASES for kind in case.kinds} == set(causes.kinds())
    text = DOCS.read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == causes.kinds()
    for kind in causes.kinds():
        assert (causes.load(kind).__doc__ or "").strip() in text, kind


def _state(model: torch.nn.Module) -> Any:
    """Values, modes, settings and hooks."""
    told = {
        name: (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m)))
        for name, m in model.named_modules()
    }
    settings = {n: getattr(m, "eps", None) for n, m in model.named_modules()}
    return copy.deepcopy(model.state_dict()), told, settings


def _same(model: torch.nn.Module, before: Any) -> None:
    values, told, settings = _state(model)
    assert told == before[1]
    assert settings == before[2]
    assert all(torch.equal(values[name], before[0][name]) for name in values)


def test_a_model_that_fails_half_way_is_put_back() -> None:
    source, target, inputs = next(c for c in cases.CASES if c.name == "former eps 1e-6").make()
    before = _state(target)

    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    handle = target.blocks[1].mlp.fc2.register_forward_pre_hook(fail)
    report = rg.verify(target, rg.Probe(inputs, source(torch.tensor(inputs))), source=source)
    handle.remove()
    assert not report.equal
    assert "broken" in str(report)
    _same(target, before)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("name", ["former eps 1e-6", "cnn corners", "former k before q"])
def test_a_recorded_probe_stands_for_the_source(name: str, suffix: str, tmp_path: Path) -> None:
    case = next(c for c in cases.CASES if c.name == name)
    source, target, inputs = case.make()
    path = tmp_path / f"probe{suffix}"
    rg.record(source, inputs, path)
    with rg.open(path) as file:
        probe = rg.Probe.from_arrays({key: file.read(key) for key in file})
    report = rg.verify(target, probe)
    assert report.first_divergence in case.where
    assert [(c.kind, c.proven) for c in report.causes] == [(kind, True) for kind in case.kinds]


def test_outputs_alone_tell_a_setting_of_the_whole_model() -> None:
    case = next(c for c in cases.CASES if c.name == "former gelu tanh")
    source, target, inputs = case.make()
    report = rg.verify(target, rg.Probe(inputs, source(torch.tensor(inputs))))
    assert [(c.kind, c.proven) for c in report.causes] == [("activation", True)]
    assert report.first_divergence is None


def test_a_probe_of_nonsense_is_an_error() -> None:
    arrays = {"input": np.ones(2), "output": np.ones(2), "trace": np.ones(4, np.uint8)}
    with pytest.raises(rg.VerificationFailed, match="trace"):
        rg.Probe.from_arrays(arrays)
