"""Adapting: tensors of another size, where there is one way that a person would name.

Each module of this package is a case, with its rule and the rule's source in its docstring:
`input_channels`, `positions`, `relative_positions`, `vocabularies`, `widths` (which must be asked
for); `CASES` is their order. A case looks at what a first pairing left over on both sides, pairs it
by names and places (`leftovers`), and says how one is made of the other. That is put down as a
rewrite of a view, so that the second
pairing sees tensors of one size, and layouts, names and order speak as they do everywhere. The
grafts are of kind `adapt`: they are listed, and nobody loads them without allowing it.

Where more than one way is thinkable, nothing is rewritten, and the ways are alternatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from regraft.matching.adapting import (
    input_channels,
    positions,
    relative_positions,
    vocabularies,
    widths,
)
from regraft.matching.adapting.changes import Change, Half, Situation, Way
from regraft.matching.layouts import conversions
from regraft.matching.leftovers import Leftovers
from regraft.matching.modules import Leaf, Module
from regraft.matching.rewrites import Views
from regraft.matching.settling import alternative, graft, spec_of
from regraft.matching.views import Expression, Rewrite, View
from regraft.operations import AnyOp, Slice, infer
from regraft.plans import Alternative, Undecided
from regraft.rules import Rule, Widen, matches_any

CASES: tuple[Callable[[Situation], Iterable[Change]], ...] = (
    input_channels.find,
    positions.find,
    relative_positions.find,
    vocabularies.find,
    widths.find,
)


def adapted(
    views: Views,
    sources: Sequence[Module],
    targets: Sequence[Module],
    left: Leftovers,
    rules: Iterable[Rule] = (),
) -> tuple[Views, dict[str, Undecided]]:
    """The views in which left-over tensors have the sizes that are wanted, and what stays open.

    The same views where nothing is to be adapted.
    """
    ours, theirs = Half(views.source.catalogue, sources), Half(views.target.catalogue, targets)
    wide = [rule.target for rule in rules if isinstance(rule, Widen)]
    situation = Situation(ours, theirs, left, lambda name: matches_any(wide, name))
    changes = [change for find in CASES for change in find(situation)]
    changes = [change for change in changes if _is_seen_as_stored(change, views)]
    open_ = {c.target.info.name: _question(c) for c in changes if c.reason}
    settled = _agreeing([change for change in changes if not change.reason])
    if not settled:
        return views, open_
    downs = {c.source.info.name: _of_source(c) for c in settled if c.ways[0].ops}
    ups = [_of_target(change) for change in settled if change.ways[0].keep]

    def both(source: View, target: View) -> tuple[View, View]:
        return source.rewritten(downs.values()), target.rewritten(ups)

    source, target = both(views.source, views.target)
    variants = tuple((label, *both(*sides)) for label, *sides in views.variants)
    return replace(views, source=source, target=target, variants=variants), open_


def _is_seen_as_stored(change: Change, views: Views) -> bool:
    """The target's own entries are those of a stored tensor, or they are nobody's."""
    name = change.target.info.name
    return views.target.held.get(name) == Expression.of(name)


def _agreeing(changes: Sequence[Change]) -> list[Change]:
    """Without tensors of which cases say different things."""
    ways: dict[str, set[Way]] = {}
    for change in changes:
        for leaf in (change.source, change.target):
            ways.setdefault(leaf.info.name, set()).add(change.ways[0])
    return [
        change
        for change in changes
        if len(ways[change.source.info.name]) == len(ways[change.target.info.name]) == 1
    ]


def _of_source(change: Change) -> Rewrite:
    """The source's tensor seen in the size that is wanted."""
    info, way = change.source.info, change.ways[0]
    seen = info._replace(shape=_shape(change.source, way))
    down = {info.name: Expression((info.name,) * way.copies, way.ops)}
    return Rewrite((info,), (seen,), down, {}, way.text, adapts=True)


def _of_target(change: Change) -> Rewrite:
    """The target's tensor seen as what the source has of it."""
    info, keep = change.target.info, change.ways[0].keep
    assert keep is not None
    seen = _first(change.target, change.source, keep.axis)
    given = Slice(keep.axis, keep.start, keep.start + seen.info.shape[keep.axis])
    down = {info.name: Expression((info.name,), (given,))}
    up = {info.name: Expression((info.name,), (keep,))}
    return Rewrite((info,), (seen.info,), down, up, change.ways[0].text, adapts=True)


def _shape(leaf: Leaf, way: Way) -> tuple[int, ...]:
    return infer(way.ops, (leaf.info.shape,) * way.copies)


def _first(target: Leaf, source: Leaf, axis: int) -> Leaf:
    """The target with as many entries on this axis as the source has values for."""
    shape = list(target.info.shape)
    shape[axis] = shape[axis] * source.info.size // target.info.size
    return replace(target, info=target.info._replace(shape=tuple(shape)))


def _question(change: Change) -> Undecided:
    info = change.target.info
    ways = tuple(one for way in change.ways for one in _alternatives(change, way))
    fresh = Alternative((), (), 0.0, f"rg.fresh({info.name!r})")
    return Undecided(spec_of(info), change.reason, (*ways, fresh), "")


def _alternatives(change: Change, way: Way) -> Iterable[Alternative]:
    info = change.source.info
    seen = replace(change.source, info=info._replace(shape=_shape(change.source, way)))
    wanted = _first(change.target, change.source, way.keep.axis) if way.keep else change.target
    behind: tuple[AnyOp, ...] = (way.keep,) if way.keep else ()
    for conversion in conversions(seen, wanted):
        ops = (*way.ops, *conversion.ops, *behind)
        yield alternative(graft(change.target.info, [info] * way.copies, ops))
