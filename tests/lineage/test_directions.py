"""What tells the direction of a step: sums, draws, growth; and where the root of a tree may be."""

from __future__ import annotations

from itertools import permutations
from math import exp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.lineage import rooted, written
from regraft.lineage.arithmetic import linked, sums
from regraft.lineage.directions import order_by_values
from regraft.lineage.kinship import lengths, replaced
from regraft.lineage.portraits import Part, Portrait


def part(array: np.ndarray) -> Part:
    return Part(
        array.shape, array.dtype.name, str(hash(array.tobytes())),
        array.reshape(-1).astype(np.float64),
    )  # fmt: skip


def portrait(name: str, **arrays: np.ndarray) -> Portrait:
    return Portrait(name, {n: part(a) for n, a in arrays.items()})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(3))
def test_a_sum_leaves_its_trace_one_way(dtype: str, seed: int) -> None:
    draw = np.random.default_rng(seed)
    a = draw.standard_normal((100, 100)).astype(dtype)
    b = a + (0.02 * draw.standard_normal(a.shape)).astype(dtype)
    forward, back = linked(sums(part(a), part(b)))
    assert forward > 8
    assert back < 1
    assert linked(sums(part(b), part(a))) == (back, forward)


def test_many_steps_and_other_precisions_leave_none() -> None:
    draw = np.random.default_rng(0)
    a = b = draw.standard_normal((100, 100)).astype(np.float32)
    for _ in range(30):
        b = b + (0.005 * draw.standard_normal(a.shape)).astype(np.float32)
    assert max(linked(sums(part(a), part(b)))) < 0
    assert sums(part(a), part(b.astype(np.float64))).values == 0
    exact = (a + 0.02 * draw.standard_normal(a.shape)).astype(np.float32)
    assert max(linked(sums(part(a), part(exact)))) < 0


def test_a_grid_under_both_tells_little() -> None:
    draw = np.random.default_rng(0)
    a = draw.standard_normal((100, 100)).astype(np.float16).astype(np.float32)
    b = (a + 0.02 * draw.standard_normal(a.shape)).astype(np.float16).astype(np.float32)
    forward, back = linked(sums(part(a), part(b)))
    assert abs(forward - back) < 3


def test_uniform_draws_are_known_until_something_is_added() -> None:
    from torch import nn

    for inputs in (30, 100, 400):
        fresh = nn.Linear(inputs, 20).weight.detach().numpy()
        assert part(fresh).drawn
        assert not part(fresh + np.float32(1e-3) * np.random.randn(20, inputs)).drawn
    draw = np.random.default_rng(0)
    assert part(draw.random((50, 20), dtype=np.float32) - np.float32(0.5)).drawn
    normal = draw.standard_normal((50, 20)).astype(np.float32)
    for other in (normal, normal.astype(np.float16).astype(np.float32), np.zeros((50, 20))):
        assert not part(other).drawn


@pytest.mark.parametrize("shrunk", [1.0, 0.97])
def test_noise_and_decay_tell_the_direction(shrunk: float) -> None:
    draw = np.random.default_rng(1)
    a = {n: draw.standard_normal((60, 60)) for n in ("x", "y", "z")}
    b = {n: shrunk * v + 0.1 * draw.standard_normal(v.shape) for n, v in a.items()}
    one, other = portrait("a", **a), portrait("b", **b)
    odds = sum(reason.odds for reason in order_by_values(one, other, frozenset()))
    assert odds > 3
    back = sum(reason.odds for reason in order_by_values(other, one, frozenset()))
    assert back == pytest.approx(-odds)


def test_a_new_head_says_nothing_of_the_direction() -> None:
    draw = np.random.default_rng(0)
    body = draw.standard_normal((40, 40))
    old = {"body": body, "head.weight": draw.standard_normal((5, 40)), "head.bias": np.ones(5)}
    new = {"body": body, "head.weight": draw.standard_normal((5, 40)), "head.bias": np.zeros(5)}
    new["head.bias"][0] = 0.3
    one, other = portrait("a", **old), portrait("b", **new)
    assert replaced(one, other) == {"head.weight", "head.bias"}
    assert order_by_values(one, other, frozenset()) == []


def test_no_two_are_nearer_than_any_on_the_path_between() -> None:
    draw = np.random.default_rng(0)
    models = [{n: draw.standard_normal((50, 50)) for n in ("x", "y")}]
    for scale in (0.3, 0.02, 0.1):
        models.append({n: a + scale * draw.standard_normal(a.shape) for n, a in models[-1].items()})
    far = lengths([portrait(str(i), **m) for i, m in enumerate(models)], frozenset())
    assert np.array_equal(far, far.T)
    for i in range(4):
        for j in range(i + 1, 4):
            assert far[i, j] >= max(far[k, k + 1] for k in range(i, j)) - 0.01


@st.composite
def trees(draw: st.DrawFn) -> rooted.Parents:
    count = draw(st.integers(2, 7))
    order = draw(st.permutations(range(count)))
    return {order[i]: order[draw(st.integers(0, i - 1))] for i in range(1, count)}


@given(trees())
@settings(max_examples=60, deadline=None)
def test_rootings_are_one_tree_and_their_probabilities_sum_to_one(tree: rooted.Parents) -> None:
    edges = {frozenset(edge) for edge in tree.items()}
    roots: list[int] = []
    total = 0.0
    for turned in rooted.rootings(tree):
        assert {frozenset(edge) for edge in turned.items()} == edges
        roots.append(rooted.root_of(turned))
        total += exp(-rooted.surprise_of_root(turned))
    assert sorted(roots) == sorted({*tree, *tree.values()})
    assert total == pytest.approx(1)


@given(trees())
@settings(max_examples=30, deadline=None)
def test_moves_are_trees(tree: rooted.Parents) -> None:
    nodes = {*tree, *tree.values()}
    for moved in rooted.moves(tree):
        assert {*moved, *moved.values()} == nodes
        assert len(moved) == len(tree)
        assert rooted.below(rooted.root_of(moved), moved) == nodes


def test_histories_are_counted() -> None:
    """Against all orders with parents first: the tree 0 → 1 → 2, 0 → 3."""
    tree = {1: 0, 2: 1, 3: 0}
    histories = [
        sum(all(o.index(p) < o.index(c) for c, p in turned.items()) for o in permutations(range(4)))
        for turned in (rooted.rooted_at(root, tree) for root in (0, 3))
    ]
    odds = rooted.surprise_of_root(rooted.rooted_at(3, tree)) - rooted.surprise_of_root(tree)
    # A path may be a run as well, which starts at 3 and not at 0.
    run = 0.3 / 24
    expected = (0.4 * histories[0] / (6 * 24)) / (0.4 * histories[1] / (6 * 24) + run)
    assert odds == pytest.approx(np.log(expected))


def test_dates_and_counters_in_texts() -> None:
    keras = {"date_saved": "2024-03-01@12:00:00", "keras_version": "3.0"}
    assert written.date(keras) == written.date({"saved": "2024-03-01T12:00:00"})
    assert written.date({"saved": "soon", "time": "12"}) is None
    told = {"epoch": "3", "optim.step": "70.0", "sch.step": "9", "steps": "many", "lr": "1"}
    assert dict(written.counters(told)) == {"epoch": 3, "step": 70}
