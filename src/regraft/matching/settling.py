"""From pairs of modules to grafts: which conversion, what stays open, what is fresh.

A pairing of tensors can be certain while its layout is not: a square kernel does not say whether
it is transposed. Layout conventions belong to whole files, so kernels that are not square vote
for those that are; what no vote settles is undecided, with each convention as an alternative.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from regraft.matching.fitting import fitting_leaves
from regraft.matching.flattening import Flat, variants
from regraft.matching.layouts import Conversion, conversions
from regraft.matching.modules import Leaf, Module
from regraft.operations import AnyOp, Cast, Fill, Keep, dtype_of
from regraft.plans import Alternative, Evidence, Graft, Spec, Undecided, kind_of
from regraft.tensors import TensorInfo, numpy_dtype

if TYPE_CHECKING:
    from regraft.matching.pairing import Pairing

# Alternatives listed for one undecided tensor.
_LISTED = 8


class Pair(NamedTuple):
    """A target tensor with its settled source tensor; the conversion may still be open."""

    source: Leaf
    target: Leaf
    evidence: tuple[Evidence, ...]


@dataclass
class Settled:
    """What has been settled and what is open, while a plan is being made."""

    grafts: dict[str, Graft] = field(default_factory=dict[str, Graft])
    undecided: dict[str, Undecided] = field(default_factory=dict[str, Undecided])
    pairs: list[Pair] = field(default_factory=list[Pair])
    partners: dict[tuple[str, ...], Module] = field(default_factory=dict[tuple[str, ...], Module])


def spec_of(info: TensorInfo) -> Spec:
    return Spec(info.shape, info.dtype)


def graft(
    target: TensorInfo,
    sources: Sequence[TensorInfo],
    ops: Sequence[AnyOp],
    evidence: Iterable[Evidence] = (),
    *,
    parts: bool = False,
) -> Graft:
    """A graft of these operations, with the cast that the target's dtype needs.

    `parts`: what slices drop is used elsewhere; see `plans.kind_of`.
    """
    ops = list(ops)
    made = dtype_of(ops, [numpy_dtype(source.dtype).name for source in sources])
    if target.dtype != made:
        end = len(ops) - 1 if ops and isinstance(ops[-1], Keep) else len(ops)
        ops.insert(end, Cast(target.dtype, sources[0].dtype if len(sources) == 1 else made))
    names = tuple(source.name for source in sources)
    kind = kind_of(ops, parts=parts)
    return Graft(target.name, spec_of(target), kind, names, tuple(ops), tuple(evidence))


# What a norm with statistics does that has no scale, or no shift, of its own.
_IDENTITY = {
    "scale": (1.0, "a norm without a scale multiplies by one"),
    "bias": (0.0, "a norm without a shift adds nothing"),
}


def take_pairings(pairings: Iterable[Pairing], state: Settled) -> None:
    """Sorts pairings into pairs of tensors and undecided ones; what nothing fits is left."""
    for number, pairing in enumerate(pairings):
        if pairing.settled:
            _take_settled(pairing, state)
        elif pairing.candidates:
            _take_open(pairing, state, f"layers {number}")


def _take_settled(pairing: Pairing, state: Settled) -> None:
    best = pairing.candidates[0]
    state.partners[pairing.target.path] = best.source
    served = fitting_leaves(best.source, pairing.target)
    for leaf in pairing.target.leaves.values():
        if leaf in served:
            state.pairs.append(Pair(served[leaf], leaf, best.evidence))
        elif "var" in best.source.leaves and leaf.role in _IDENTITY:
            value, text = _IDENTITY[leaf.role]
            says = (Evidence("role", 1.0, f"{best.source.name} has none: {text}"),)
            ops = (Fill(leaf.info.shape, value, leaf.info.dtype),)
            state.grafts[leaf.info.name] = graft(leaf.info, [], ops, says)
        else:
            state.undecided[leaf.info.name] = Undecided(
                spec_of(leaf.info), f"{best.source.name} has no tensor for this role and shape"
            )


def _take_open(pairing: Pairing, state: Settled, group: str) -> None:
    target = pairing.target
    candidates = pairing.candidates[:_LISTED]
    for leaf in target.leaves.values():
        alternatives: list[Alternative] = []
        for candidate in candidates:
            source = fitting_leaves(candidate.source, target).get(leaf)
            for conversion in _ways(source, leaf) if source else ():
                made = graft(leaf.info, [source.info], conversion.ops) if source else None
                assert made is not None
                alternatives.append(alternative(made, -round(candidate.loss, 3)))
        reason = (
            f"{len(pairing.candidates)} source layers fit nearly equally well"
            if len(pairing.candidates) > 1
            else "one source layer fits, but too little speaks for it"
        )
        state.undecided[leaf.info.name] = Undecided(
            spec_of(leaf.info), reason, tuple(alternatives), group
        )


def _ways(source: Leaf, target: Leaf) -> tuple[Conversion, ...]:
    """The conversions that may be meant: between layers of one sort in one framework it is none,
    whatever else such a shape could mean there (a depthwise kernel, where the class is not known).
    """
    found = conversions(source, target)
    alike = (source.framework, source.kind) == (target.framework, target.kind)
    kept = [way for way in found if not way.ops] if alike and source.framework else []
    return (kept[0],) if len(kept) == 1 else found


def alternative(made: Graft, score: float = 0.0) -> Alternative:
    """A graft as one of several ways, with the rule that would choose it."""
    return Alternative(made.sources, made.ops, score, _pin_rule(made), made.kind)


def _pin_rule(made: Graft) -> str:
    """The rule that chooses this way, ready to paste."""
    sources = repr(made.sources[0]) if len(made.sources) == 1 else repr(list(made.sources))
    if not made.ops:
        return f"rg.pin({made.target!r}, {sources})"
    ops = ", ".join(f"rg.ops.{op!r}" for op in made.ops)
    return f"rg.pin({made.target!r}, {sources}, [{ops}])"


def settle_layouts(
    state: Settled, source_flats: Mapping[str, Flat], target_flats: Mapping[str, Flat]
) -> None:
    """Chooses a conversion for every pair, by the votes of those that have only one."""
    options = {pair.target.info.name: _ways(pair.source, pair.target) for pair in state.pairs}
    voted = _voted(options.values())
    for pair in state.pairs:
        name = pair.target.info.name
        possible = options[name]
        chosen = [c for c in possible if c.conventions & voted] if len(possible) > 1 else possible
        flats = source_flats.get(pair.source.info.name), target_flats.get(name)
        if len(chosen) == 1 and any(flats):
            orders = variants(pair.source, pair.target, chosen[0], flats)
            if len(orders) > 1:
                state.undecided[name] = _open_order(pair, orders)
                continue
            chosen = orders
        if len(chosen) == 1:
            evidence = (*pair.evidence, _layout_evidence(chosen[0], pair, len(possible)))
            state.grafts[name] = graft(
                pair.target.info, [pair.source.info], chosen[0].ops, evidence
            )
            continue
        alternatives = [
            graft(pair.target.info, [pair.source.info], conversion.ops)
            for conversion in (chosen or possible)
        ]
        labels = " or ".join(_label(c) for c in (chosen or possible))
        state.undecided[name] = Undecided(
            spec_of(pair.target.info),
            f"{pair.source.info.name} fits in more than one layout: {labels}; "
            "the shape does not tell and the file does not say",
            tuple(map(alternative, alternatives)),
            "layout",
        )


def _open_order(pair: Pair, orders: Sequence[Conversion]) -> Undecided:
    ways = [graft(pair.target.info, [pair.source.info], way.ops) for way in orders]
    return Undecided(
        spec_of(pair.target.info),
        f"{pair.source.info.name} reads a flattened map, in channels-last order or in "
        "channels-first order; the shape does not tell, and the graphs are not known",
        tuple(map(alternative, ways)),
        "flatten",
    )


def _voted(options: Iterable[Sequence[Conversion]]) -> frozenset[str]:
    """Conventions that every tensor of the file allows; empty where they contradict."""
    allowed: frozenset[str] | None = None
    for conversions_ in options:
        conventions = frozenset(name for c in conversions_ for name in c.conventions)
        if conventions and "as stored" not in conventions:
            allowed = conventions if allowed is None else allowed & conventions
    return allowed or frozenset()


def _label(conversion: Conversion) -> str:
    return "/".join(sorted(conversion.conventions))


def _layout_evidence(conversion: Conversion, pair: Pair, possible: int) -> Evidence:
    ops = ", ".join(map(str, conversion.ops)) or "as it is"
    flattened = "flattened" in _label(conversion)
    why = (
        f"{_label(conversion)}, in the other framework's order: {ops}"
        if flattened
        else f"the only layout of {pair.source.role} that fits: {ops}"
        if possible == 1
        else f"{_label(conversion)}, as the kernels of this file that are not square: {ops}"
    )
    return Evidence("role", 0.0, why)
