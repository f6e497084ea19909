"""Plans as values and the algebra of rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import regraft as rg
from regraft import operations as ops
from regraft import rules, transfer
from regraft.matching import match
from regraft.plans import Graft, Plan, Side, Spec
from regraft.tensors import Catalogue, TensorInfo

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


def chain(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[ops.AnyOp, ...]:
    """A few operations that keep every value."""
    made: list[ops.AnyOp] = []
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["transpose", "reshape", "flip"]))
        if kind == "transpose":
            op: ops.AnyOp = ops.Transpose(tuple(draw(st.permutations(range(len(shape))))))
        elif kind == "reshape":
            op = ops.Reshape((int(np.prod(shape)),))
        else:
            op = ops.Flip(draw(st.integers(0, len(shape) - 1)))
        made.append(op)
        shape = ops.infer([op], (shape,))
    return tuple(made)


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, dict[str, Any]]:
    grafts: dict[str, Graft] = {}
    source: dict[str, Spec] = {}
    target: dict[str, Spec] = {}
    values: dict[str, Any] = {}
    generator = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    for number in range(draw(st.integers(1, 5))):
        shape = draw(shapes)
        steps = chain(draw, shape)
        made = ops.infer(steps, (shape,))
        source[f"s{number}"], target[f"t{number}"] = Spec(shape, "float32"), Spec(made, "float32")
        values[f"s{number}"] = generator.normal(size=shape).astype(np.float32)
        grafts[f"t{number}"] = Graft(
            f"t{number}", Spec(made, "float32"), "convert" if steps else "copy",
            (f"s{number}",), steps,
        )  # fmt: skip
    sides = Side("a", "", "", source), Side("b", "", "", target)
    return Plan(source=sides[0], target=sides[1], grafts=grafts), values


@given(plans())
def test_json_round_trip(made: tuple[Plan, dict[str, Any]]) -> None:
    plan, _ = made
    assert Plan.decode(plan.encode(), "x") == plan
    assert msgspec.json.encode(plan.to_json()) == msgspec.json.encode(plan)
    plan.check()
    assert plan.complete


@given(plans())
def test_there_and_back_is_the_identity(made: tuple[Plan, dict[str, Any]]) -> None:
    plan, values = made

    def read(store: dict[str, Any]) -> Any:
        return lambda name, part: store[name] if part is None else store[name][part]

    inverse = plan.inverse()
    there = {n: transfer.make(plan, g, read(values)) for n, g in plan.grafts.items()}
    back = {n: transfer.make(inverse, g, read(there)) for n, g in inverse.grafts.items()}
    assert back.keys() == values.keys()
    for name, array in values.items():
        np.testing.assert_array_equal(back[name], array)


def test_a_plan_with_wrong_shapes_is_refused() -> None:
    spec = Spec((2, 3), "float32")
    graft = Graft("t", Spec((2, 2), "float32"), "copy", ("s",), ())
    plan = Plan(
        source=Side("a", "", "", {"s": spec}),
        target=Side("b", "", "", {"t": Spec((2, 2), "float32")}),
        grafts={"t": graft},
    )
    with pytest.raises(rg.ShapeMismatch) as caught:
        plan.check()
    assert "t: ops make (2, 3)" in caught.value.problems[0]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema_version": 99}', b"\xff"])
def test_files_that_are_no_plans(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(rg.PlanError):
        Plan.load(tmp_path / "x.json")


# Rules

words = st.text("abc.", min_size=1, max_size=5).filter(lambda w: "*" not in w)


@given(words, st.integers(0, 99), words)
def test_templates_carry_numbers_and_rests(a: str, number: int, rest: str) -> None:
    name = f"{a}.{number}.{rest}"
    assert rules.carry(f"{a}.{{i}}.*", name, "x{i}/*") == f"x{number}/{rest}"
    assert rules.matches("*", name)
    assert not rules.matches(f"{a}.{{i}}.*", f"{a}.x.{rest}") or "x" in a


def test_templates_take_other_characters_literally() -> None:
    assert rules.matches("a[0].b?", "a[0].b?")
    assert not rules.matches("a.b", "axb")
    assert rules.matches("b{i}.c{i}", "b2.c2")
    assert not rules.matches("b{i}.c{i}", "b2.c3")
    with pytest.raises(rg.PlanError):
        rules.carry("a.{i}", "a.3", "b.{j}")


def test_rules_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(
        '[[rule]]\nrule = "rename"\nsource = "a.*"\ntarget = "b.*"\n'
        '[[rule]]\nrule = "pin"\ntarget = "h"\nsources = ["g"]\n'
        'ops = [{op = "transpose", axes = [1, 0]}]\n'
    )
    found = rg.load_rules(path)
    assert [rule.origin for rule in found] == [f"{path} rule 1", f"{path} rule 2"]
    assert msgspec.structs.replace(found[0], origin="") == rg.rename("a.*", "b.*")
    assert msgspec.structs.replace(found[1], origin="") == rg.pin("h", "g", [ops.Transpose((1, 0))])
    for wrong in ("[[rule]]\nrule = 'no'", "x = 1", "[[rule]", "[[rule]]\nrule='fresh'"):
        path.write_text(wrong)
        with pytest.raises(rg.PlanError, match=r"rules\.toml"):
            rg.load_rules(path)


def _side(names: dict[str, tuple[int, ...]]) -> rg.Catalogue:
    infos = [rg.TensorInfo(name, shape, "float32") for name, shape in names.items()]
    return rg.Catalogue(infos, framework="torch", order="stored", label="side")


def test_rules_win_over_evidence() -> None:
    source = _side({"a.weight": (4, 4), "b.weight": (4, 4)})
    target = _side({"a.weight": (4, 4), "b.weight": (4, 4)})
    plan = rg.plan(source, target, rules=[rg.rename("a.*", "b.*"), rg.rename("b.*", "a.*")])
    assert plan.complete
    assert plan.grafts["a.weight"].sources == ("b.weight",)
    plan = rg.plan(source, target, rules=[rg.fresh("a.*"), rg.leave("a.*")])
    assert plan.fresh == ["a.weight"]
    assert plan.grafts["b.weight"].sources == ("b.weight",)
    turned = rg.plan(source, target, rules=[rg.pin("a.weight", "b.weight", [ops.Flip(0)]),
                                            rg.leave("a.*"), rg.fresh("b.*")])  # fmt: skip
    assert turned.grafts["a.weight"].ops == (ops.Flip(0),)
    with pytest.raises(rg.ShapeMismatch):
        rg.plan(source, target, rules=[rg.pin("a.weight", "b.weight", [ops.Slice(0, 0, 2)])])


def test_exceptions_that_differ_by_numbers_share_a_line() -> None:
    names = [f"blocks.{i}.{part}.weight" for i in range(12) for part in ("norm", "odd.7")]
    names += ["head.1.bias", "head.3.bias", f"x.{'9' * 5000}.y", "x.1.y"]
    side = Catalogue([TensorInfo(name, (3,), "float32") for name in names], label="a")
    text = str(match(Catalogue([], label="b"), side))
    assert "  undecided  blocks.{0…11}.norm.weight  float32[3] × 12  " in text
    assert "  undecided  blocks.{0…11}.odd.7.weight  float32[3] × 12  " in text
    assert "  undecided  head.{1,3}.bias  float32[3] × 2  " in text
    assert "x.{1,999" in text
    unused = str(match(side, Catalogue([], label="b")))
    assert "  unused     blocks.{0…11}.norm.weight  float32[3] × 12\n" in unused
