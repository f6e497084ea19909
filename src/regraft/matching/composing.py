"""From what was settled between two views to grafts of the tensors that are stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, product
from typing import NamedTuple

from regraft.matching.rewrites import Views
from regraft.matching.settling import Settled, alternative, graft, spec_of
from regraft.matching.views import Expression, View, composed, tidied
from regraft.operations import AnyOp, Cast
from regraft.plans import Alternative, Evidence, Graft, Undecided
from regraft.tensors import TensorInfo

# Ways of one stored tensor that are listed, whatever its parts have.
_LISTED = 16


class _Way(NamedTuple):
    """How one seen target tensor is made of seen source tensors; no names and no ops: fresh."""

    names: tuple[str, ...]
    ops: tuple[AnyOp, ...]
    kind: str
    score: float = 0.0


def compose(state: Settled, views: Views) -> None:
    """Replaces grafts and open questions of seen tensors by those of stored ones."""
    seen = set(views.target.catalogue)
    grafts = {name: g for name, g in state.grafts.items() if name in seen}
    undecided = {name: u for name, u in state.undecided.items() if name in seen}
    for name in (*grafts, *undecided):
        state.grafts.pop(name, None)
        state.undecided.pop(name, None)
    for info in views.target.stored.values():
        _compose_one(info, views, grafts, undecided, state)


def _compose_one(
    info: TensorInfo,
    views: Views,
    grafts: Mapping[str, Graft],
    undecided: Mapping[str, Undecided],
    state: Settled,
) -> None:
    name = info.name
    held = views.target.held.get(name)
    if held is None:
        state.grafts[name] = _kept(info, views.target)
        return
    open_ = [undecided[part] for part in held.names if part in undecided]
    known = [grafts[part] for part in held.names if part in grafts]
    if len(open_) + len(known) < len(held.names):
        return  # nothing was said of a part: the plan reports it
    if known and not open_ and all(not g.written for g in known):
        state.grafts[name] = Graft(
            name, spec_of(info), "fresh", evidence=known[0].evidence, counter=known[0].counter
        )
        return
    if any(not g.written for g in known):
        missing = next(g.target for g in known if not g.written)
        state.undecided[name] = Undecided(spec_of(info), f"nothing in the source for {missing}")
        return
    evidence = tuple(_evidence(held, known, views))
    if not open_:
        ways = {g.target: _Way(g.sources, g.ops, g.kind) for g in known}
        made = list(_readings(info, ways, views, evidence))
        if len(made) == 1:
            state.grafts[name] = made[0]
        else:
            label = next((label for label, *_ in views.variants), "")
            state.undecided[name] = Undecided(
                spec_of(info), f"{label}: not told", tuple(map(alternative, made)), label
            )
        return
    alternatives = tuple(islice(_alternatives(info, held, grafts, undecided, views), _LISTED))
    reasons = "; ".join(dict.fromkeys(u.reason for u in open_))
    state.undecided[name] = Undecided(spec_of(info), reasons, alternatives, open_[0].group)


def _kept(info: TensorInfo, view: View) -> Graft:
    """A stored tensor that no seen one makes: it stays as the model has it."""
    reasons = view.reasons.get(info.name, ())
    return Graft(info.name, spec_of(info), "fresh", evidence=reasons)


def _evidence(held: Expression, known: Sequence[Graft], views: Views) -> Iterator[Evidence]:
    told: dict[Evidence, None] = {}
    for one in known:
        told |= dict.fromkeys(one.evidence)
        for source in one.sources:
            told |= dict.fromkeys(views.source.reasons.get(source, ()))
    for part in held.names:
        told |= dict.fromkeys(views.target.reasons.get(part, ()))
    yield from told


def _readings(
    info: TensorInfo, ways: Mapping[str, _Way], views: Views, evidence: Iterable[Evidence]
) -> Iterator[Graft]:
    """The graft under each reading of what is open about the views; equal ones once."""
    met: set[tuple[object, ...]] = set()
    for _, source, target in (("", views.source, views.target), *views.variants):
        made = _graft(info, ways, source, target, evidence)
        key = made.sources, made.ops
        if key not in met:
            met.add(key)
            yield made


def _graft(
    info: TensorInfo,
    ways: Mapping[str, _Way],
    source: View,
    target: View,
    evidence: Iterable[Evidence],
) -> Graft:
    held = target.held[info.name]
    made: dict[str, Expression] = {}
    for part in held.names:
        way = ways[part]
        ops = tuple(op for op in way.ops if not isinstance(op, Cast))
        made[part] = composed(Expression(way.names, ops), source.made)
    joined = composed(held, made)
    whole = tidied(joined, {name: source.stored[name].shape for name in joined.names})
    adapted = any(
        ways[part].kind == "adapt"
        or part in target.adapted
        or not source.adapted.isdisjoint(ways[part].names)
        for part in held.names
    )
    infos = [source.stored[name] for name in whole.names]
    return graft(info, infos, whole.ops, evidence, parts=not adapted)


def _alternatives(
    info: TensorInfo,
    held: Expression,
    grafts: Mapping[str, Graft],
    undecided: Mapping[str, Undecided],
    views: Views,
) -> Iterator[Alternative]:
    """Combinations of the parts' ways; parts of one group change together."""
    open_ = {part: undecided[part] for part in held.names if part in undecided}
    settled = {
        part: _Way(g.sources, g.ops, g.kind)
        for part in held.names
        if (g := grafts.get(part)) is not None
    }
    groups: dict[str, list[str]] = {}
    for part, question in open_.items():
        groups.setdefault(question.group or part, []).append(part)
    for choice in product(*(_rows(open_, members) for members in groups.values())):
        ways = settled | {part: way for row in choice for part, way in row.items()}
        if any(way.kind == "fresh" for way in ways.values()):
            if all(way.kind == "fresh" for way in ways.values()):
                yield Alternative((), (), 0.0, f"rg.fresh({info.name!r})")
            continue
        score = sum(way.score for way in ways.values())
        for made in _readings(info, ways, views, ()):
            yield alternative(made, score)


def _rows(open_: Mapping[str, Undecided], members: Sequence[str]) -> Iterator[dict[str, _Way]]:
    lists = [
        [_Way(a.sources, a.ops, a.kind, a.score) for a in open_[part].alternatives]
        for part in members
    ]
    together = len({len(ways) for ways in lists}) == 1
    for row in zip(*lists, strict=True) if together else product(*lists):
        yield dict(zip(members, row, strict=True))
