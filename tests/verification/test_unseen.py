"""What the unseen pairs of the benchmark showed to be wrong, and is not any more."""

from __future__ import annotations

import pytest

import regraft as rg
from benchmarks.divergences import unseen, unseen_frameworks

_CASES = {case.name: case for case in (*unseen.CASES, *unseen_frameworks.CASES)}


@pytest.mark.parametrize(
    "name",
    [
        "keras flatten equal, back",
        "next no gamma",
        "encoder mask inverted",
        "vit rounded",
        "vit vkq",
        "vit transposed patches",
        "keras average",
        "llama theta",
        "keras block causal",
    ],
)
def test_an_unseen_pair(name: str) -> None:
    case = _CASES[f"unseen {name}"]
    source, target, inputs = case.make()
    report = rg.verify(target, inputs, source=source)
    assert report.equal == (not case.kinds)
    assert report.first_divergence in case.where if case.kinds else not report.causes
    assert [(c.kind, c.proven) for c in report.causes] == [(kind, True) for kind in case.kinds]
