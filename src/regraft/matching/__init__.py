"""Matching: two Catalogues and Rules in, a Plan out. No framework, no files.

`roles` and `modules` say what tensors are for, `layouts` how they convert; `names`, `order`,
`dataflow` and `values` are the kinds of evidence; `pairing` adds them up and `assignment` finds
the best one-to-one answer with margins; `adapting` makes tensors of other sizes fit and lets them
be paired once more; `settling` turns it into grafts and open questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from regraft.matching import (
    adapting,
    composing,
    compression,
    keras_graph,
    keras_places,
    lists,
    missing,
    rewrites,
    ruling,
    semantics,
    settling,
    ties,
    values,
)
from regraft.matching.fitting import fitting_leaves
from regraft.matching.flattening import flattened
from regraft.matching.leftovers import Leftovers
from regraft.matching.modules import Leaf, Module, conventions_of, is_constant, modules_of, parts_of
from regraft.matching.order import origin
from regraft.matching.pairing import Pairer
from regraft.matching.settling import Pair, Settled, graft, spec_of
from regraft.matching.views import without
from regraft.operations import Cast
from regraft.plans import Evidence, Graft, Plan, Remark, Side, Undecided
from regraft.rules import Rule
from regraft.tensors import Catalogue, Read, TensorInfo


def match(
    source: Catalogue,
    target: Catalogue,
    rules: Iterable[Rule] = (),
    *,
    read_source: Read | None = None,
    read_target: Read | None = None,
    asked: rewrites.Asked = rewrites.NOT_ASKED,
) -> Plan:
    """Plans how the source's tensors fit the target's.

    **Arguments:**

    - `rules`: what is said by a person; earlier rules win.
    - `read_source`: gives values of the source, for evidence and doubts; `None`: no values.
    - `read_target`: gives values of the target where it is a checkpoint whose values mean
      something, `None` for a model with fresh ones.
    - `asked`: experiments with a live target; see `rewrites.rotary` and `rewrites.fused`.

    **Raises** `RuleMatchedNothing`, `ShapeMismatch`, `PlanError` for rules that do not hold.
    """
    rules = tuple(rules)
    source, target = _read_closely(source), _read_closely(target)
    source, target = keras_places.told(source, target), keras_places.told(target, source)
    all_sources = modules_of(source, conventions_of(source))
    all_targets = modules_of(target, conventions_of(target))
    state = Settled()
    left_alone = ruling.apply_rules(
        rules, source, target, (_leaves(all_sources), _leaves(all_targets)), state
    )
    _follow(all_sources, all_targets, state, left_alone)
    lists.settle_list(source, target, _leaves(all_targets), state)
    spoken_for = {name for g in state.grafts.values() for name in g.sources} | left_alone
    spoken_for |= {pair.source.info.name for pair in state.pairs}
    spoken_for |= {n for u in state.undecided.values() for a in u.alternatives for n in a.sources}
    spoken_for |= {n for m in all_sources if _names(m) & spoken_for for n in _names(m)}
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
    _settle_counters(source, target, state)
    if read_source and read_target:
        _settle_by_values(source, target, state, read_source, read_target)
    sides = all_sources, all_targets
    return _plan(source, target, rules, state, *sides, met.pairer, read_source)


class _Met:
    """The modules of two views, and how they pair."""

    def __init__(self, views: rewrites.Views) -> None:
        ours, theirs = views.source.catalogue, views.target.catalogue
        self.sources, self.targets = views.source.modules, views.target.modules
        self.pairer = Pairer(ours, self.sources, theirs, self.targets)
        self.pairings = self.pairer.pairings()
        self.left = Leftovers(self.sources, self.pairings, theirs.ties)


def _read_closely(catalogue: Catalogue) -> Catalogue:
    """The catalogue with what it tells without saying so: the dataflow that is in its Keras
    config, and that it was sorted."""
    config = catalogue.metadata.get("model_config", "")
    order, flow = origin(catalogue), catalogue.flow
    if config and not flow:
        flow = keras_graph.flow_of(config, catalogue)
    if order == catalogue.order and flow is catalogue.flow:
        return catalogue
    return Catalogue(
        catalogue.values(),
        framework=catalogue.framework,
        order=order,
        ties=catalogue.ties,
        container=catalogue.container,
        label=catalogue.label,
        metadata=catalogue.metadata,
        notes=catalogue.notes,
        flow=flow,
        settings=catalogue.settings,
    )


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


def _plan(
    source: Catalogue,
    target: Catalogue,
    rules: tuple[Rule, ...],
    state: Settled,
    sources: Sequence[Module],
    targets: Sequence[Module],
    pairer: Pairer,
    read_source: Read | None,
) -> Plan:
    undecided = {n: u for n, u in state.undecided.items() if n not in state.grafts}
    for name, info in target.items():
        if name not in state.grafts and name not in undecided:
            undecided[name] = Undecided(spec_of(info), "nothing in the source was found for it")
    grafts = {name: state.grafts[name] for name in target if name in state.grafts}
    read = {name for g in grafts.values() for name in g.sources}
    asked = {n for u in undecided.values() for way in u.alternatives for n in way.sources}
    read |= asked
    unused = tuple(
        name for name, info in source.items() if name not in read and not is_constant(info)
    )
    warnings = [*_doubts(grafts, pairer)]
    notes = [Remark("source", source.label, note) for note in source.notes]
    for matters, remark in semantics.differing_epsilons(source, target, sources, targets, grafts):
        (warnings if matters else notes).append(remark)
    if read_source:
        warnings += values.doubts(source, sources, read_source, read)
    warnings += values.partly_used(source, grafts.values(), asked, read_source)
    return Plan(
        source=Side.of(source),
        target=Side.of(target),
        grafts=grafts,
        unused=unused,
        undecided={name: undecided[name] for name in target if name in undecided},
        warnings=tuple(warnings),
        notes=tuple(notes),
        summary=compression.summarise(grafts.values()),
        rules=rules,
    )


def _doubts(grafts: dict[str, Graft], pairer: Pairer) -> Iterable[Remark]:
    """Warnings that need no values."""
    lossy = [g.target for g in grafts.values() if _loses(g)]
    if lossy:
        first = next(op for op in grafts[lossy[0]].ops if isinstance(op, Cast))
        yield Remark(
            "lossy-cast", lossy[0], f"{len(lossy)} tensors go from {first.source} to {first.dtype}"
        )
    codes = [g.target for g in grafts.values() if _takes_codes(g)]
    if codes:
        yield Remark(
            "integer-weights", codes[0], f"{len(codes)} weights are made of integers as they are: "
            "these may be codes, and their scales something that was not recognised"
        )  # fmt: skip
    if pairer.coverage < 0.5:
        yield Remark(
            "little-in-common",
            "all",
            f"only {pairer.coverage:.0%} of the layers have a counterpart of their roles and "
            "shapes: this may be another architecture",
        )


def _takes_codes(graft: Graft) -> bool:
    first = next((op for op in graft.ops if isinstance(op, Cast)), None)
    matrix = len(graft.spec.shape) > 1
    return bool(first and matrix and "int" in first.source and "float" in first.dtype)


def _loses(graft: Graft) -> bool:
    return any(isinstance(op, Cast) and not op.lossless for op in graft.ops)
