"""Matching: two Catalogues and Rules in, a Plan out. No framework, no files.

`identical` sees at once what needs no search. `roles` and `modules` say what tensors are for,
`layouts` how they convert; `names`, `order`, `dataflow` and `values` are the kinds of evidence;
`pairing` adds them up and `assignment` finds the best one-to-one answer with margins; `adapting`
makes tensors of other sizes fit and lets them be paired once more; `settling` turns it into grafts
and open questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from regraft.matching import compression, identical, keras_graph, keras_places, semantics, values
from regraft.matching.experiments import NOT_ASKED, Asked
from regraft.matching.modules import Module, conventions_of, is_constant, modules_of
from regraft.matching.order import origin
from regraft.matching.settling import Settled, spec_of
from regraft.operations import Cast
from regraft.plans import Graft, Plan, Remark, Side, Undecided
from regraft.rules import Rule
from regraft.tensors import Catalogue, Read


def match(
    source: Catalogue,
    target: Catalogue,
    rules: Iterable[Rule] = (),
    *,
    read_source: Read | None = None,
    read_target: Read | None = None,
    asked: Asked = NOT_ASKED,
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
    source = _read_closely(source)
    conventions = conventions_of(source), conventions_of(target)
    state = Settled()
    same = not rules and identical.are(source, target, conventions)
    if same and (not source.flow or source.flow == _read_closely(target).flow):
        state.grafts = identical.grafts(source, target)
        layers = modules_of(source, conventions[0])
        return _plan(source, target, rules, state, layers, layers, 1.0, read_source)
    target = _read_closely(target)
    source, target = keras_places.told(source, target), keras_places.told(target, source)
    all_sources = modules_of(source, conventions_of(source))
    all_targets = modules_of(target, conventions_of(target))
    from regraft.matching import searching  # which takes longer to import than this takes

    coverage = searching.search(
        searching.Sides(source, target, all_sources, all_targets),
        rules, state, (read_source, read_target), asked,
    )  # fmt: skip
    return _plan(source, target, rules, state, all_sources, all_targets, coverage, read_source)


def _read_closely(catalogue: Catalogue) -> Catalogue:
    """The catalogue with what it tells without saying so: the dataflow that is in its Keras
    config, and that it was sorted."""
    config = catalogue.metadata.get("model_config", "")
    order = origin(catalogue)
    drawn = bool(config) and not catalogue.flow
    if order == catalogue.order and not drawn:
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
        flow=keras_graph.flow_of(config, catalogue) if drawn else catalogue.flow,
        settings=catalogue.settings,
    )


def _plan(
    source: Catalogue,
    target: Catalogue,
    rules: tuple[Rule, ...],
    state: Settled,
    sources: Sequence[Module],
    targets: Sequence[Module],
    coverage: float,
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
    warnings = [*_doubts(grafts, coverage)]
    notes = [Remark("source", source.label, note) for note in source.notes]
    for matters, remark in semantics.differing_epsilons(source, target, sources, targets, grafts):
        (warnings if matters else notes).append(remark)
    warnings += semantics.norms_left_out(sources, targets, grafts, unused)
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


def _doubts(grafts: dict[str, Graft], coverage: float) -> Iterable[Remark]:
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
    if coverage < 0.5:
        yield Remark(
            "little-in-common",
            "all",
            f"only {coverage:.0%} of the layers have a counterpart of their roles and "
            "shapes: this may be another architecture",
        )


def _takes_codes(graft: Graft) -> bool:
    first = next((op for op in graft.ops if isinstance(op, Cast)), None)
    matrix = len(graft.spec.shape) > 1
    return bool(first and matrix and "int" in first.source and "float" in first.dtype)


def _loses(graft: Graft) -> bool:
    return any(isinstance(op, Cast) and not op.lossless for op in graft.ops)
