"""The property that matters most: what is settled is right, whatever names and order do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regraft import matching, transfer
from regraft.errors import IncompletePlan
from regraft.plans import Plan
from regraft.sinks import Sink
from regraft.tensors import Catalogue, TensorInfo

Values = dict[str, np.ndarray[Any, Any]]
# Suffixes of one layer's tensors, and how their shapes follow from its widths (in, out).
LAYERS: dict[str, dict[str, Any]] = {
    "conv": {"weight": lambda i, o: (o, i, 3, 3), "bias": lambda i, o: (o,)},
    "norm": {
        "weight": lambda i, o: (o,),
        "bias": lambda i, o: (o,),
        "running_mean": lambda i, o: (o,),
        "running_var": lambda i, o: (o,),
    },
    "dense": {"weight": lambda i, o: (o, i), "bias": lambda i, o: (o,)},
}


class MemorySink(Sink):
    """A model that is a dictionary."""

    def __init__(self, values: Values) -> None:
        self.values = values
        self.written: list[str] = []

    def write(self, name: str, array: Any) -> None:
        self.values[name] = np.array(array)
        self.written.append(name)

    def read(self, name: str) -> Any:
        return self.values[name].copy()

    @property
    def model(self) -> object:
        return self.values


widths = st.sampled_from([4, 8])
layer = st.tuples(st.sampled_from(sorted(LAYERS)), widths, widths)
word = st.text("bcdfghklmnprstvz", min_size=3, max_size=6)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Values, Values, dict[str, str], str]:
    """A source and a target of equal layers, and which tensor is which."""
    layers = draw(st.lists(layer, min_size=2, max_size=9))
    style = draw(st.sampled_from(["numbers", "words", "wrapped", "offset"]))
    names = [f"block{i}" for i in range(len(layers))]
    if style == "words":
        words = draw(
            st.lists(word, unique=True, min_size=2 * len(layers), max_size=2 * len(layers))
        )
        left, right = words[: len(layers)], words[len(layers) :]
    elif style == "offset":
        left, right = names, [f"stage.{i + 1}" for i in range(len(layers))]
    else:
        left = names
        right = [f"module.{n}" for n in names] if style == "wrapped" else list(names)
    generator = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    source: Values = {}
    target: Values = {}
    truth: dict[str, str] = {}
    for (kind, i, o), a, b in zip(layers, left, right, strict=True):
        for suffix, shape in LAYERS[kind].items():
            source[f"{a}.{suffix}"] = generator.uniform(0.5, 1.5, shape(i, o)).astype(np.float32)
            target[f"{b}.{suffix}"] = np.zeros(shape(i, o), np.float32)
            truth[f"{b}.{suffix}"] = f"{a}.{suffix}"
    shuffled = draw(st.sampled_from(["source", "target", "both", "neither"]))
    if shuffled in ("source", "both"):
        source = {n: source[n] for n in draw(st.permutations(list(source)))}
    if shuffled in ("target", "both"):
        target = {n: target[n] for n in draw(st.permutations(list(target)))}
    return source, target, truth, shuffled


def catalogue(values: Values, order: Any) -> Catalogue:
    infos = [TensorInfo(n, v.shape, v.dtype.name) for n, v in values.items()]
    return Catalogue(infos, framework="torch", order=order, label="x")


def planned(source: Values, target: Values, shuffled: str) -> Plan:
    def read(name: str, part: Any) -> Any:
        return source[name] if part is None else source[name][part]

    # A file may lie about nothing but its own order, which "stored" does not vouch for.
    ours = catalogue(source, "sorted" if shuffled in ("source", "both") else "stored")
    theirs = catalogue(target, "sorted" if shuffled in ("target", "both") else "definition")
    return matching.match(ours, theirs, read_source=read)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(pairs())
def test_what_is_settled_is_right(pair: tuple[Values, Values, dict[str, str], str]) -> None:
    source, target, truth, shuffled = pair
    plan = planned(source, target, shuffled)
    wrong = {
        name: graft.sources
        for name, graft in plan.grafts.items()
        if graft.sources and graft.sources != (truth[name],)
    }
    assert not wrong


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(pairs())
def test_nothing_is_loaded_from_an_undecided_pairing(
    pair: tuple[Values, Values, dict[str, str], str],
) -> None:
    source, target, _, shuffled = pair
    plan = planned(source, target, shuffled)
    assert not plan.undecided.keys() & plan.grafts.keys()
    sink = MemorySink({name: values.copy() for name, values in target.items()})

    def read(name: str, part: Any) -> Any:
        return source[name] if part is None else source[name][part]

    sides = catalogue(source, "stored"), catalogue(target, "definition")
    if plan.undecided:
        with pytest.raises(IncompletePlan):
            transfer.apply(plan, sides[0], read, sides[1], sink)
        assert sink.written == []
    receipt = transfer.apply(plan, sides[0], read, sides[1], sink, partial=True)
    assert set(sink.written) == set(receipt.hashes)
    for name in plan.undecided:
        np.testing.assert_array_equal(sink.values[name], target[name])
    for name in receipt.hashes:
        np.testing.assert_array_equal(sink.values[name], source[plan.grafts[name].sources[0]])


@pytest.mark.parametrize("style", ["numbers", "wrapped"])
def test_equal_names_are_settled_in_any_order(style: str) -> None:
    """Honest is not timid: what names say plainly is settled."""
    generator = np.random.default_rng(0)
    source = {
        f"{'module.' if style == 'wrapped' else ''}block{i}.{suffix}": generator.normal(
            size=shape(8, 8)
        ).astype(np.float32)
        for i in range(6)
        for suffix, shape in LAYERS["conv"].items()
    }
    target = {n.removeprefix("module."): np.zeros_like(v) for n, v in reversed(source.items())}
    plan = planned(source, target, "target")
    assert plan.complete
    assert all(g.sources[0].endswith(name) for name, g in plan.grafts.items())
