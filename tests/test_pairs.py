"""The pairs in benchmarks/: that the instrument measures what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.pairs import judging, rivals, truths
from benchmarks.pairs.collection import KINDS, PAIRS, collect

ROOT = Path(__file__).parent.parent
# Quick ones that need nothing but torch.
QUICK = (
    "one-letter names, every shape once",
    "data parallel, epoch and optimizer beside",
    "stacked over layers to one by one",
    "weight norm, old form, to plain",
    "other number of classes",
)


def test_there_are_pairs_of_every_kind() -> None:
    pairs = collect().values()
    assert len(pairs) >= 200
    for kind in KINDS:
        assert sum(pair.kind == kind for pair in pairs) >= 12
    assert sum(pair.expects == "trap" for pair in pairs) >= 17


def test_naming_them_imports_no_framework() -> None:
    code = (
        "import sys; from benchmarks.pairs.collection import collect; collect();"
        "print([m for m in ('torch', 'keras', 'jax', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", QUICK)
def test_a_pair_is_what_it_says(name: str) -> None:
    with judging.Bench(collect()[name]) as bench:
        assert judging.check(bench, sensitivity=True) == []
        assert judging.judge(bench).verdict in ("proven", "refused", "flagged")


def test_a_wrong_loader_is_found_out() -> None:
    """Every tensor from the first that fits: the outputs must tell."""
    with judging.Bench(PAIRS["data parallel, epoch and optimizer beside"]) as bench:
        assert judging.judge_rival(bench, rivals.naive_loop).verdict == "wrong"
        assert judging.judge_rival(bench, rivals.prefixes_stripped).verdict == "proven"


def test_a_trap_counts_as_wrong_where_anybody_claims_success() -> None:
    with judging.Bench(collect()["two networks of one shape in one file"]) as bench:
        assert judging.judge_rival(bench, rivals.longest_suffix).verdict == "wrong"


def test_outputs_are_equal_up_to_rounding_only() -> None:
    y = np.array([1.0, -2.0])
    assert judging.difference({"a": y}, {"b": y + 1e-6}, 1e-4) == ""
    assert judging.difference({"a": y}, {"a": y + 1e-2}, 1e-4)
    assert judging.difference({"a": y}, {"a": y[:1]}, 1e-4)
    assert judging.difference({"a": y, "b": y}, {"a": y}, 1e-4)
    assert judging.difference({"a": y}, {"a": y * np.nan}, 1e-4)


def test_rivals_do_what_they_are_called() -> None:
    source = {"x.conv.kernel": np.ones((3, 3, 2, 4)), "y.w": np.ones((5, 6))}
    target = {"a.weight": np.zeros((4, 2, 3, 3)), "b.weight": np.zeros((6, 5))}
    assert set(rivals.order_and_shape(source, target)) == set(target)
    assert set(rivals.zip_in_order(source, target)) == set(target)
    assert set(rivals.naive_loop(source, target)) == set(target)
    assert set(rivals.prefixes_stripped(source, target)) == set()
    with pytest.raises(rivals.Refused):
        rivals.zip_in_order(source, {"a.weight": target["a.weight"]})


def test_truths_are_strict() -> None:
    from torch import nn

    layer = nn.Linear(2, 3)
    with pytest.raises(ValueError, match="missing"):
        truths.load_torch(layer, {"weight": np.ones((3, 2))})
    with pytest.raises(ValueError, match="unknown"):
        truths.load_torch(layer, {"weight": np.ones((3, 2)), "bias": np.ones(3), "x": np.ones(1)})
