"""Sides that are the same by every name: seen at once, and only where nothing speaks against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import regraft as rg
from regraft.matching import identical, match, searching
from regraft.targets import _fx
from regraft.tensors import Catalogue, TensorInfo


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8),
        nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 8),
    )  # fmt: skip


def is_identical(plan: rg.Plan) -> bool:
    return plan.complete and all(
        "of both sides" in g.evidence[0].text for g in plan.grafts.values()
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(network().state_dict(), tmp_path / "model.pth")
    return tmp_path / "model.pth"


def test_a_model_and_its_own_file_need_neither_search_nor_tracing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("not needed")

    monkeypatch.setattr(searching, "search", never)
    monkeypatch.setattr(_fx, "flow_of", never)
    plan = rg.plan(file, network())
    assert plan.complete
    assert is_identical(plan)
    assert {g.kind for g in plan.grafts.values()} == {"copy"}
    assert not plan.warnings


def test_a_dtype_of_its_own_is_cast(file: Path) -> None:
    plan = rg.plan(file, network().half())
    assert is_identical(plan)
    kinds = {g.target: g.kind for g in plan.grafts.values()}
    assert kinds["0.weight"] == "convert"
    assert kinds["1.num_batches_tracked"] == "copy"
    assert [w.code for w in plan.warnings] == ["lossy-cast"]


def test_nan_and_negative_variances_are_still_told(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = float("nan")
        model[1].running_var[0] = -1.0
    torch.save(model.state_dict(), tmp_path / "model.pth")
    plan = rg.plan(tmp_path / "model.pth", network())
    assert is_identical(plan)
    assert {w.code for w in plan.warnings} == {"not-finite", "negative-variance"}


def test_layers_of_another_class_under_the_same_names_are_searched() -> None:
    source, target = nn.Sequential(nn.Conv2d(4, 4, 3)), nn.Sequential(nn.ConvTranspose2d(4, 4, 3))
    assert not is_identical(rg.plan(source, target))
    assert is_identical(rg.plan(source, nn.Sequential(nn.Conv2d(4, 4, 3))))


class Chain(nn.Module):
    def __init__(self, backwards: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.backwards = backwards

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(self.b(x)) if self.backwards else self.b(self.a(x))


def test_another_dataflow_under_the_same_names_is_searched() -> None:
    assert is_identical(rg.plan(Chain(False), Chain(False)))
    assert not is_identical(rg.plan(Chain(False), Chain(True)))


def infos(*names: str, framework: str = "torch", dtype: str = "float32") -> Catalogue:
    return Catalogue([TensorInfo(name, (4, 4), dtype) for name in names], framework=framework)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (infos("a.weight", "b.weight"), infos("b.weight", "a.weight")),  # another order
        (infos("a.weight"), infos("a.weight", "b.weight")),
        (infos("a.weight", "b.weight"), infos("a.weight")),
        (infos("a.weight"), infos("a.weight", framework="jax")),
        (infos("a.w", framework=""), infos("a.w", framework="")),  # of layouts that nobody knows
        (infos("a.step", dtype="int64"), infos("a.step", dtype="int32")),
        (infos("a.weight", dtype="int8"), infos("a.weight")),
    ],
)
def test_anything_else_is_searched(source: Catalogue, target: Catalogue) -> None:
    conventions = source.framework, target.framework
    counted = {
        t.name: t._replace(kind="counter") if t.name.endswith("step") else t
        for t in target.values()
    }
    target = Catalogue(counted.values(), framework=target.framework)
    assert not identical.are(source, target, conventions)


_SHAPES = st.sampled_from([(4, 4), (4, 8), (8, 4), (8, 4, 3, 3), (4, 4, 3, 3)])


@given(st.lists(_SHAPES, min_size=1, max_size=8))
def test_the_search_would_say_the_same(shapes: list[tuple[int, ...]]) -> None:
    def side() -> Catalogue:
        tensors = [
            TensorInfo(f"stage{i // 3}.{i % 3}.layer.{leaf}", size, "float32")
            for i, shape in enumerate(shapes)
            for leaf, size in (("weight", shape), ("bias", shape[:1]))
        ]
        return Catalogue(tensors, framework="torch", label="model")

    at_once = match(side(), side())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identical, "are", lambda *_: False)
        searched = match(side(), side())
    assert is_identical(at_once)
    assert not is_identical(searched)
    ways = [{g.target: (g.sources, g.ops, g.kind) for g in p.grafts.values()}
            for p in (at_once, searched)]  # fmt: skip
    assert ways[0] == ways[1]
    assert at_once.summary == searched.summary
    assert at_once.warnings == searched.warnings
