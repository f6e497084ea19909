"""What a report must not hide, and what observation must not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import regraft as rg
from benchmarks.divergences import cases
from benchmarks.divergences.cases import distinct
from regraft._api import proving as proving_api
from regraft._api import recording as recording_api
from regraft.calls import Call, Setting
from regraft.targets._torch_taps import TorchTaps
from regraft.verification import choosing, guessing, proving
from regraft.verification.causes import Hypothesis, head_count
from regraft.verification.recording import encoded
from regraft.verification.sites import Site
from regraft.verification.traces import Recorder

X = np.random.default_rng(0).normal(size=(4, 8)).astype("f4")


class InPlace(nn.Module):
    """Adds what its activation was given, or, where that works in place, what it made of it."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU(inplace=inplace)

    def forward(self, x: Any) -> Any:
        h = self.a(x)
        return self.b(self.act(h)) + h


def test_an_activation_in_place_acts_as_it_does_without_observation() -> None:
    source, target = distinct(InPlace(inplace=False)), InPlace(inplace=True).eval()
    target.load_state_dict(source.state_dict())
    right = source(torch.tensor(X)).detach().numpy()
    wrong = target(torch.tensor(X)).detach().numpy()
    report = rg.verify(target, X, source=source)
    assert not report.equal
    assert report.max_abs == np.abs(right - wrong).max() > 0.1
    probe = rg.record(target, X)
    assert np.array_equal(probe.outputs, wrong)


class OwnStatistics(nn.Module):
    """Normalises with the batch's statistics, keeps them, and counts its calls, in any mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Any) -> Any:
        self.calls = self.calls + 1
        n = self.bn
        return functional.batch_norm(
            self.a(x), n.running_mean, n.running_var, n.weight, n.bias, training=True
        )


def test_statistics_that_code_changes_in_any_mode_are_put_back() -> None:
    class Right(OwnStatistics):
        def forward(self, x: Any) -> Any:
            return self.bn(self.a(x))

    source, target = distinct(Right()), OwnStatistics().eval()
    target.load_state_dict(source.state_dict())
    before = {name: value.clone() for name, value in target.state_dict().items()}
    random = torch.get_rng_state()
    report = rg.verify(target, rg.Probe(X, source(torch.tensor(X))), source=source)
    assert not report.equal
    rg.record(target, X)
    after = target.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(torch.get_rng_state(), random)


def _with_outputs_alone(factor: float, monkeypatch: Any, **bounds: int) -> Any:
    """What is told of a target with another GELU and a kernel that is `factor` of what it was."""
    case = next(c for c in cases.CASES if c.name == "former gelu tanh")
    source, target, inputs = case.make()
    with torch.no_grad():
        target.head.weight *= factor
    for name, value in bounds.items():
        monkeypatch.setattr(guessing, name, value)
    return rg.verify(target, rg.Probe(inputs, source(torch.tensor(inputs)), rtol=1e-4, atol=1e-5))


def test_outputs_alone_prove_nothing_that_was_not_tried(monkeypatch: Any) -> None:
    (cause,) = _with_outputs_alone(1.0, monkeypatch).causes
    assert cause.proven
    (cause,) = _with_outputs_alone(1.0, monkeypatch, _RUNS=30, _MOST=40).causes
    assert not cause.proven
    assert cause.reason == choosing.UNTRIED


def test_a_change_that_brings_outputs_just_within_the_tolerance_is_no_cause(
    monkeypatch: Any,
) -> None:
    report = _with_outputs_alone(1.00007, monkeypatch)
    assert not report.equal
    assert not report.causes


def _verified(name: str) -> Any:
    source, target, inputs = next(c for c in cases.CASES if c.name == name).make()
    return rg.verify(target, inputs, source=source)


def test_a_site_proves_nothing_that_was_not_tried(monkeypatch: Any) -> None:
    (cause,) = _verified("former gelu tanh").causes
    assert cause.proven
    monkeypatch.setattr(proving, "_TRIES", 20)
    (cause,) = _verified("former gelu tanh").causes
    assert not cause.proven
    assert cause.reason == choosing.UNTRIED


def test_changes_that_the_whole_model_does_not_bear_are_not_proven(monkeypatch: Any) -> None:
    """Each is borne in its module; with both the model fails, and the report says what is left."""
    run = TorchTaps.run

    def failing(self: Any, inputs: Any, watcher: Any = None, edits: Any = ()) -> Any:
        if edits:
            raise RuntimeError("these do not go together")
        return run(self, inputs, watcher, edits)

    monkeypatch.setattr(TorchTaps, "run", failing)
    report = _verified("former gelu tanh")
    assert not report.equal
    assert [(c.kind, c.proven) for c in report.causes] == [("activation", False)]


def test_the_error_of_a_cause_is_that_of_the_first_module() -> None:
    report = _verified("former eps 1e-6")
    (cause,) = report.causes
    assert len(cause.modules) > 1
    first = next(step for step in report.steps if step.path == cause.modules[0])
    assert cause.error == first.output


def test_a_rival_in_one_place_is_not_proven_by_another_place() -> None:
    def site(path: str) -> Any:
        array = np.ones(3, np.float32)
        return Site(path, ("output", path, 0), Call(path, 0, ()), 0.1, array, array, [])

    change = Hypothesis("weights", (Setting("a", {"x": 1}),), ("a",), "w", "")
    elsewhere = Hypothesis("weights", (Setting("b", {"x": 1}),), ("b",), "w", "")
    other = Hypothesis("dtype", (Setting("a", {"y": 1}),), ("a",), "d", "")
    told = [
        proving.Told(site("a"), [], [change, other], untried=False),
        proving.Told(site("b"), [elsewhere], [], untried=False),
    ]
    made = proving.causes_of(told, proven=True)
    assert [(c.kind, c.modules) for c in made if c.proven] == [("weights", ("b",))]
    assert {(c.kind, c.modules) for c in made if not c.proven} == {
        ("weights", ("a",)), ("dtype", ("a",))
    }  # fmt: skip


def test_inputs_without_outputs_and_source_are_an_error() -> None:
    with pytest.raises(rg.VerificationFailed, match="inputs without outputs"):
        rg.verify(InPlace(inplace=False), X)


def test_calls_that_a_trace_did_not_keep_are_told(monkeypatch: Any) -> None:
    assert not _verified("former eps 1e-6").warnings
    for module in (proving_api, recording_api):
        monkeypatch.setattr(module, "Recorder", lambda: Recorder(budget=10_000))
    (warning,) = _verified("former eps 1e-6").warnings
    assert "calls of the source's modules were not compared" in warning
    source, target, inputs = next(c for c in cases.CASES if c.name == "former eps 1e-6").make()
    probe = rg.Probe.from_arrays(encoded(rg.record(source, inputs)))
    assert rg.verify(target, probe).warnings == (warning,)


def test_a_source_that_does_not_give_the_probes_outputs_is_told() -> None:
    source, target = distinct(InPlace(inplace=False)), distinct(InPlace(inplace=False))
    right = source(torch.tensor(X)).detach()
    assert not rg.verify(target, rg.Probe(X, right), source=source).warnings
    (warning,) = rg.verify(target, rg.Probe(X, right + 1), source=source).warnings
    assert "does not give the probe's outputs" in warning


def test_models_are_made_once(monkeypatch: Any) -> None:
    made: list[str] = []

    def build(name: str, *_: Any, **__: Any) -> Any:
        made.append(name)
        torch.manual_seed(0)
        return distinct(InPlace(inplace=False)), []

    monkeypatch.setattr("regraft.targets.callables.build", build)
    report = rg.verify("there:model", X, source="here:model")
    assert report.equal
    assert sorted(made) == ["here:model", "there:model"]


def test_a_factor_that_scores_are_divided_by_follows_from_the_number_of_heads() -> None:
    settings = {"scale": 0.5, "norm_factor": 2.0}
    assert head_count.rescaled(settings, 8, 2) == {"scale": 0.25, "norm_factor": 4.0}
