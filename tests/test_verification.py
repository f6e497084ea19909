"""Comparing outputs: what is equal, what is not, and what a probe cannot tell."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg
from regraft.verification import compare


def report(a: Any, b: Any, **options: Any) -> rg.Report:
    return compare({"output": np.asarray(a)}, {"output": np.asarray(b)}, **options)


X = np.random.default_rng(0).normal(size=(4, 10)).astype(np.float32)


def test_verdicts() -> None:
    assert report(X, X).verdict == "equal to the bit"
    near = report(X, X * (1 + 1e-6))
    assert near.verdict == "equal up to rounding"
    assert 0 < near.max_abs < 1e-5
    far = report(X, X + 1e-2)
    assert (far.equal, far.verdict) == (False, "different")
    assert far.max_abs == pytest.approx(1e-2, rel=1e-3)
    assert report(X, X + 1e-2, atol=0.1).equal


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_tolerance_follows_the_dtype(dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    a = X.astype(kind)
    eps = float(ml_dtypes.finfo(kind).eps)
    assert report(a, (a.astype(np.float64) * (1 + 2 * eps)).astype(kind)).equal
    assert not report(a, (a.astype(np.float64) + 1).astype(kind)).equal


def test_what_can_never_be_equal() -> None:
    odd = X.copy()
    odd[1, 2] = np.nan
    assert not report(X, odd).equal
    assert not report(odd, X).equal
    same = report(odd, odd)
    assert same.equal
    assert any("NaN" in warning for warning in same.warnings)
    assert not report(X, X[:2]).equal
    assert not report(X[:0], X[:0]).equal
    assert not compare({"a": X, "b": X}, {"a": X}).equal
    assert not report(np.arange(3), np.arange(3) + 1).equal
    assert report(np.arange(3), np.arange(3)).equal


def test_blind_probes_are_told() -> None:
    assert any("constant" in w for w in report(np.ones((4, 3)), np.ones((4, 3))).warnings)
    rows = np.tile(np.arange(3.0), (4, 1))
    assert any("every sample" in w for w in report(rows, rows).warnings)


def test_probes_of_every_kind() -> None:
    class Two(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, Any]:
            return {"sum": a + b, "parts": [a, b]}

    y = X[::-1].copy()
    expected = {"sum": X + y, "parts": [X, y]}
    assert rg.verify(Two(), rg.Probe((X, y), expected)).equal
    assert rg.verify(Two(), rg.Probe({"b": y, "a": X}, expected)).equal
    run = rg.Probe(run=lambda m: m(torch.tensor(X), torch.tensor(y))["sum"], outputs=X + y)
    assert rg.verify(Two(), run).equal
    failing = rg.verify(Two(), rg.Probe(X, X))
    assert not failing.equal
    assert "TypeError" in str(failing)
    for wrong in ({"inputs": X}, {"outputs": X}):
        with pytest.raises(rg.VerificationFailed):
            rg.Probe(**wrong)
    arrays = {"inputs.0": X, "inputs.1": y, "outputs.sum": X + y}
    assert isinstance(rg.Probe.from_arrays(arrays).inputs, tuple)
    with pytest.raises(rg.VerificationFailed):
        rg.Probe.from_arrays({"x": X})


def test_whole_numbers_beyond_what_a_float_tells() -> None:
    large = np.array([2**53, 5], np.int64)
    assert not compare({"output": large}, {"output": large + np.array([1, 0])}).equal
    assert compare({"output": large}, {"output": large.copy()}).equal


def test_outputs_that_are_not_compared_are_told() -> None:
    output = np.arange(6.0).reshape(2, 3)
    report = compare({"a": output}, {"a": output, "b": output})
    assert report.equal
    assert [w for w in report.warnings if "not compared" in w and w.endswith(": b")]
