"""Probes, plans and inputs that do not fit: typed errors that say so, whatever is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import regraft as rg
from regraft.verification.recording import encoded

X = np.random.default_rng(3).standard_normal((3, 8), np.float32)


def net(seed: int, outputs: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, outputs)).eval()


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)))


SOURCE, TARGET = net(0), net(0)
with torch.no_grad():
    TARGET[0].weight[2, 3] += 0.5
RECORDED = rg.record(SOURCE, X)
ARRAYS = encoded(RECORDED)
KEPT = json.loads(ARRAYS["trace"].tobytes())


@pytest.mark.parametrize("source", ["live", "file", None])
@pytest.mark.parametrize("recorded", [True, False])
def test_plans_of_others(source: Any, recorded: bool, tmp_path: Path) -> None:
    file = tmp_path / "source.npz"
    np.savez(file, **{name: tensor.numpy() for name, tensor in SOURCE.state_dict().items()})
    given = {"live": SOURCE, "file": file, None: None}[source]
    probe = RECORDED if recorded else rg.Probe(X, RECORDED.outputs)
    assert not rg.verify(TARGET, probe, source=given, plan=rg.plan(SOURCE, TARGET)).equal
    others = [(SOURCE, Named()), (net(1, 7), net(1, 7))]
    others += [(Named(), TARGET)] if source else []
    for one, another in others:
        with pytest.raises(rg.StalePlan):
            rg.verify(TARGET, probe, source=given, plan=rg.plan(one, another))
    with pytest.raises(rg.PlanError, match="int"):
        rg.verify(TARGET, probe, source=given, plan=3)  # pyright: ignore[reportArgumentType]


def test_a_model_that_was_cast_after_its_plan_is_still_explained() -> None:
    plan = rg.plan(SOURCE, TARGET)
    model = net(0)
    model.load_state_dict(TARGET.state_dict())
    report = rg.verify(model.bfloat16(), X, source=SOURCE, plan=plan)
    assert report.first_divergence == "0"


@pytest.mark.parametrize("inputs", [X[:, :5], "abc", (X, None), {"q": X}, np.float32(3)])
def test_inputs_that_the_source_does_not_take(inputs: Any) -> None:
    with pytest.raises(rg.TargetError, match="inputs that the model takes"):
        rg.record(SOURCE, inputs)
    with pytest.raises(rg.TargetError, match="inputs that the model takes"):
        rg.verify(TARGET, inputs, source=SOURCE)
    report = rg.verify(TARGET, rg.Probe(inputs, RECORDED.outputs))
    assert not report.equal
    assert report.rows[0].reason


@pytest.mark.parametrize("outputs", [np.array(["a", "b"]), np.array([None, 1], object)])
def test_outputs_that_are_no_numbers(outputs: Any) -> None:
    for source in (SOURCE, None):
        with pytest.raises(rg.VerificationFailed, match="numbers"):
            rg.verify(TARGET, rg.Probe(X, outputs), source=source)


@pytest.mark.parametrize("outputs", [X, np.ones((3, 4), np.complex64), np.ones((3, 4, 1))])
def test_outputs_of_another_shape_or_kind(outputs: Any) -> None:
    for source in (SOURCE, None):
        assert not rg.verify(TARGET, rg.Probe(X, outputs), source=source).equal


def probed(arrays: dict[str, Any]) -> None:
    """A probe that is malformed is either refused or does no harm."""
    try:
        probe = rg.Probe.from_arrays(arrays, "probe.npz")
    except rg.VerificationFailed as error:
        assert "probe.npz" in str(error)
        return
    for target in (TARGET, Named()):
        for source in (SOURCE, None):
            rg.verify(target, probe, source=source)
            rg.verify(target, probe)


def changed(path: list[Any], value: Any) -> dict[str, Any]:
    kept = json.loads(json.dumps(KEPT))
    inner = kept
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    return {**ARRAYS, "trace": np.frombuffer(json.dumps(kept).encode(), np.uint8)}


REFUSED = {
    "no bytes": {**ARRAYS, "trace": np.zeros(3)},
    "a text": {**ARRAYS, "trace": np.array("abc")},
    "cut off": {**ARRAYS, "trace": ARRAYS["trace"][:-5]},
    "no modules": changed(["modules"], {}),
    "unknown module": changed(["calls", 1, 0], "zzz"),
    "unknown container": changed(["calls", 1, 2], ["zzz"]),
    "unknown value": changed(["calls", 1, 5], ["activations.99"]),
    "no value": changed(["calls", 1, 6], ["trace"]),
    "uneven table": changed(["modules", "0"], ["Linear", {"a": {"array": [[1], [2, 3]]}}, []]),
    "version": changed(["schema_version"], 9),
    "value is gone": {k: v for k, v in ARRAYS.items() if k != "activations.1"},
    "value of text": {**ARRAYS, "activations.1": np.array(["x"])},
    "no input": {k: v for k, v in ARRAYS.items() if k != "input"},
    "no output": {k: v for k, v in ARRAYS.items() if k != "output"},
}
HARMLESS = {
    "number": changed(["calls", 1, 1], -5),
    "began": changed(["calls", 1, 3], 10**6),
    "ended": changed(["calls", 1, 4], -1),
    "no inputs": changed(["calls", 1, 5], []),
    "no outputs": changed(["calls", 1, 6], []),
    "keys": changed(["calls", 1, 7], []),
    "framework": changed(["framework"], "xyz"),
    "owners": changed(["owners"], {"0.weight": "zzz"}),
    "settings": changed(["modules", "0"], ["Linear", {"eps": "x", "kernel_size": ["a"]}, ["0"]]),
    "twice": changed(["calls"], KEPT["calls"] * 2),
    "no calls": changed(["calls"], []),
    "shape": {**ARRAYS, "activations.1": np.zeros((2, 2), np.float32)},
}


@pytest.mark.parametrize("what", REFUSED)
def test_traces_that_contradict_themselves(what: str) -> None:
    with pytest.raises(rg.VerificationFailed, match=r"probe\.npz"):
        rg.Probe.from_arrays(REFUSED[what], "probe.npz")


@pytest.mark.parametrize("what", HARMLESS)
def test_traces_that_say_odd_things(what: str) -> None:
    rg.Probe.from_arrays(HARMLESS[what], "probe.npz")
    probed(HARMLESS[what])


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, ARRAYS["trace"].size - 1), value=st.integers(0, 255))
def test_any_byte_of_a_trace_may_be_wrong(place: int, value: int) -> None:
    trace = ARRAYS["trace"].copy()
    trace[place] = value
    probed({**ARRAYS, "trace": trace})
