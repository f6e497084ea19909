"""The search: modules paired by all kinds of evidence, and what is open afterwards settled.

Rules come first, then what is known without pairing (lists without names); the rest is seen through
rewrites under which both sides have like layers, paired, fitted where sizes differ, paired once
more, and composed back into operations from stored tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from regraft.matching import (
    adapting,
    composing,
    lists,
    missing,
    rewrites,
    ruling,
    settling,
    ties,
    values,
)
from regraft.matching.experiments import Asked
from regraft.matching.fitting import fitting_leaves
from regraft.matching.flattening import flattened
from regraft.matching.leftovers import Leftovers
from regraft.matching.modules import Leaf, Module, is_constant, parts_of
from regraft.matching.pairing import Pairer
from regraft.matching.settling import Pair, Settled, graft, spec_of
from regraft.matching.views import without
from regraft.plans import Evidence, Graft
from regraft.rules import Rule
from regraft.tensors import Catalogue, Read, TensorInfo


class Sides(NamedTuple):
    """Both sides as catalogues and as modules."""

    source: Catalogue
    target: Catalogue
    sources: Sequence[Module]
    targets: Sequence[Module]


def search(
    sides: Sides,
    rules: Sequence[Rule],
    state: Settled,
    reads: tuple[Read | None, Read | None],
    asked: Asked,
) -> float:
    """Settles all that can be settled, in `state`. Returns the share of layers that have a
    counterpart of their roles and shapes.

    **Raises** as `match` does.
    """
    source, target, all_sources, all_targets = sides
    read_source, read_target = reads
    left_alone = ruling.apply_rules(
        rules, source, target, (_leaves(all_sources), _leaves(all_targets)), state
    )
    _follow(all_sources, all_targets, state, left_alone)
    lists.settle_list(source, target, _leaves(all_targets), state)
    spoken_for = {name for g in state.grafts.values() for name in g.sources}
    spoken_for |= {pair.source.info.name for pair in state.pairs}
    spoken_for |= {n for u in state.undecided.values() for a in u.alternatives for n in a.sources}
    spoken_for |= {n for m in all_sources if _names(m) & spoken_for for n in _names(m)}
    spoken_for |= left_alone  # of which the rest of the layer is still to be had
    decided = (
        state.grafts.keys()
        | state.undecided.keys()
        | {pair.target.info.name for pair in state.pairs}
    )
    seen = rewrites.aligned(
        without(source, spoken_for), without(target, decided), read_source, asked
    )
    met = _Met(seen)
    fitting, open_sizes = adapting.adapted(seen, met.sources, met.targets, met.left, rules)
    if fitting is not seen:
        seen, met = fitting, _Met(fitting)
    settling.take_pairings(met.pairings, state)
    settling.settle_layouts(
        state,
        flattened(source, all_sources) | flattened(seen.source.catalogue, met.sources),
        flattened(target, all_targets) | flattened(seen.target.catalogue, met.targets),
    )
    state.undecided |= open_sizes
    missing.settle_missing(
        met.left, met.targets, state, met.pairer.coverage, ordered=target.order != "sorted"
    )
    composing.compose(state, seen)
    ties.settle_tied(target, state)
    ties.settle_heads(source, target, state)
    _settle_counters(without(source, left_alone), target, state)
    if read_source and read_target:
        _settle_by_values(source, target, state, read_source, read_target)
    return met.pairer.coverage


class _Met:
    """The modules of two views, and how they pair."""

    def __init__(self, views: rewrites.Views) -> None:
        ours, theirs = views.source.catalogue, views.target.catalogue
        self.sources, self.targets = views.source.modules, views.target.modules
        self.pairer = Pairer(ours, self.sources, theirs, self.targets)
        self.pairings = self.pairer.pairings()
        self.left = Leftovers(self.sources, self.pairings, theirs.ties)


def _leaves(modules: Iterable[Module]) -> dict[str, Leaf]:
    return {leaf.info.name: leaf for m in modules for leaf in m.leaves.values()}


def _follow(
    sources: Iterable[Module], targets: Iterable[Module], state: Settled, left_alone: set[str]
) -> None:
    """A layer's other tensors go where rules sent one of them."""
    home = {name: module for module in sources for name in _names(module)}
    said = {name: g.sources for name, g in state.grafts.items() if len(g.sources) == 1}
    said |= {pair.target.info.name: (pair.source.info.name,) for pair in state.pairs}
    fresh = {name for name, g in state.grafts.items() if not g.sources}
    taken = {source for ways in said.values() for source in ways} | left_alone
    for target in targets:
        homes = [home[said[name][0]] for name in _names(target) if name in said]
        if not homes or any(module is not homes[0] for module in homes):
            continue
        state.partners[target.path] = homes[0]
        for leaf, source in fitting_leaves(homes[0], target).items():
            open_ = leaf.info.name not in said and leaf.info.name not in fresh
            if open_ and source.info.name not in taken:
                says = Evidence("rule", 2.0, "beside a tensor that a rule sent the same way")
                state.pairs.append(Pair(source, leaf, (says,)))
                taken.add(source.info.name)


def _names(module: Module) -> set[str]:
    return {leaf.info.name for leaf in module.leaves.values()}


def _settle_counters(source: Catalogue, target: Catalogue, state: Settled) -> None:
    """Counters and constants follow their layer where it has one; nobody is asked about them."""
    beside: dict[tuple[tuple[str, ...], str, tuple[int, ...]], TensorInfo] = {}
    for info in source.values():
        if is_constant(info):
            *path, leaf = parts_of(info.name)
            beside[tuple(path), leaf, info.shape] = info
    for info in target.values():
        if not is_constant(info) or info.name in state.grafts:
            continue
        *path, leaf = parts_of(info.name)
        partner = state.partners.get(tuple(path))
        where = partner.path if partner else tuple(path)
        found = beside.get((where, leaf, info.shape))
        if found and found.dtype == info.dtype:
            says = Evidence("names", 1.0, "beside the layer's weights on both sides")
            state.grafts[info.name] = graft(info, [found], (), (says,))
        else:
            says = Evidence("role", 1.0, f"a {info.kind} that no output depends on")
            state.grafts[info.name] = Graft(
                info.name, spec_of(info), "fresh", evidence=(says,), counter=True
            )


def _settle_by_values(
    source: Catalogue, target: Catalogue, state: Settled, read_source: Read, read_target: Read
) -> None:
    """Where the target holds the values that just one alternative gives, that one it is."""
    groups: dict[tuple[str, int], list[str]] = {}
    for name, open_ in state.undecided.items():
        key = open_.group or name, len(open_.alternatives)
        groups.setdefault(key, []).append(name)
    for names in groups.values():
        questions = [(name, state.undecided[name].alternatives) for name in names]
        right = values.right_alternative(questions, read_source, read_target)
        for question in questions:
            own = right
            if right is None and len(questions) > 1:  # then each for itself
                own = values.right_alternative([question], read_source, read_target)
            if own is not None:
                name, way = question[0], question[1][own]
                says = Evidence("values", 5.0, "alone gives the values that the target holds")
                infos = [source[n] for n in way.sources]
                state.grafts[name] = graft(target[name], infos, way.ops, (says,))
                del state.undecided[name]
