"""Rewrites: which of a side's tensors are to be seen otherwise, so that both sides are held alike.

Each module of this package finds rewrites of one kind by `find(here, there)`, for the side `here`
with the other side in view; `KINDS` is their order. A finding is taken only if it serves: more of
the target's layers then have a counterpart, counted with multiplicity. Where a convention is not
known (q, k and v one after another, or interleaved by head), a finding has variants, which are
alternatives of the plan.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from regraft.matching.experiments import NOT_ASKED, Asked
from regraft.matching.fitting import number_classes, served
from regraft.matching.rewrites import (
    axis_of_parts,
    cells,
    folded,
    fused,
    loose_biases,
    recurrent,
    reparametrised,
    rotary,
    stacked,
)
from regraft.matching.rewrites.finding import Finding, Sight
from regraft.matching.views import View
from regraft.tensors import Catalogue, Read

KINDS: tuple[Callable[[Sight, Sight], Sequence[Finding]], ...] = (
    reparametrised.find,
    cells.find,
    cells.find_directions,
    recurrent.find,
    stacked.find,
    axis_of_parts.find,
    loose_biases.find,
    fused.find,
    fused.find_partly,
    folded.find,
    rotary.find,
)


@dataclass(frozen=True)
class Views:
    """Both sides as matching sees them, and the other readings of what is open."""

    source: View
    target: View
    variants: tuple[tuple[str, View, View], ...] = ()


def aligned(
    source: Catalogue,
    target: Catalogue,
    read_source: Read | None = None,
    asked: Asked = NOT_ASKED,
) -> Views:
    """Both sides, rewritten so that as many layers as possible have a counterpart."""
    views = Views(View.plain(source), View.plain(target))
    for find in KINDS:
        for side in ("source", "target"):
            ours = Sight(views.source, True, read_source)
            theirs = Sight(views.target, False, None, asked)
            here, there = (ours, theirs) if side == "source" else (theirs, ours)
            found = [f for f in find(here, there) if f.rewrites]
            if len(found) > 1:  # nested ones exclude each other: the best comes first
                found.sort(key=lambda f: (f.certain, _gain(views, _seen(views, side, f))))
            for finding in reversed(found):
                views = _taken(views, side, finding)
    return views


def _taken(views: Views, side: str, finding: Finding) -> Views:
    """The views with a finding, where it serves."""
    view = views.source if side == "source" else views.target
    if any(info.name not in view.catalogue for r in finding.rewrites for info in r.old):
        return views  # an earlier finding has touched these tensors
    after = _seen(views, side, finding)
    if not finding.certain and _gain(views, after) <= 0 and not _cuts_to_fit(finding, views, after):
        return views
    variants = [(label, *_sides(v, finding.rewrites, side)) for label, *v in views.variants]
    base = (views.source, views.target)
    for rewrites in finding.variants:
        variants.append((finding.label, *_sides(base, rewrites, side)))
    return replace(after, variants=tuple(variants))


def _seen(views: Views, side: str, finding: Finding) -> Views:
    view = views.source if side == "source" else views.target
    return replace(views, **{side: view.rewritten(finding.rewrites)})


def _sides(views: Sequence[View], rewrites: Sequence[object], side: str) -> tuple[View, View]:
    source, target = views
    if side == "source":
        return source.rewritten(rewrites), target  # pyright: ignore[reportArgumentType]
    return source, target.rewritten(rewrites)  # pyright: ignore[reportArgumentType]


def _gain(before: Views, after: Views) -> int:
    """How many more layers have a counterpart, less those that a rewrite took out of the target."""
    return _unserved(before) - _unserved(after)


def _cuts_to_fit(finding: Finding, before: Views, after: Views) -> bool:
    """Whether layers that are only cut into smaller ones find more of the other side by size.

    Of a deeper stack the surplus blocks are cut as well: counted, they outweigh what is served.
    """
    sizes = [(sum(x.size for x in r.old), sum(x.size for x in r.new)) for r in finding.rewrites]
    return all(a == b for a, b in sizes) and _unserved_size(after) < _unserved_size(before)


def _unserved_size(views: Views) -> int:
    sources, targets = views.source.modules, views.target.modules
    classes = number_classes(sources, targets)
    count: dict[int, int] = defaultdict(int)
    size: dict[int, int] = {}
    for sign, side in ((1, sources), (-1, targets)):
        for module in side:
            count[classes[id(module)]] += sign
            size[classes[id(module)]] = module.size
    return sum(abs(number) * size[one] for one, number in count.items())


def _unserved(views: Views) -> int:
    sources = views.source.modules
    targets = views.target.modules
    count = served(sources, targets)
    return len(targets) - count + len(sources) - count
