"""Planning: both sides seen, matched, and what stays open settled by a probe."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from regraft import matching, plans, targets, transfer
from regraft._sides import Given, Side, ran, source_side, target_side
from regraft.copying import Overlaps
from regraft.errors import TargetError
from regraft.journal import kept
from regraft.matching.experiments import NOT_ASKED, Asked
from regraft.plans import Plan, Remark
from regraft.rules import Rule, load_rules
from regraft.tensors import Catalogue
from regraft.verification import Probe, Report, as_taken, probe_of, settle
from regraft.verification import verify as compare_outputs

if TYPE_CHECKING:
    from regraft.sinks import Sink
    from regraft.tensors import Read

Rules = Iterable[Rule] | str | os.PathLike[str]


def plan(
    source: Given,
    target: Given,
    *,
    rules: Rules = (),
    probe: Probe | Any = None,
    container: str | None = None,
    arguments: Mapping[str, object] | None = None,
) -> Plan:
    """Plans how the weights of `source` fit `target`; writes nothing.

    **Arguments:**

    - `source`: a path, an open Checkpoint, a live model or a Catalogue.
    - `target`: a live model, `'module:callable'`, a path or a Catalogue.
    - `rules`: what you know better, or the path of a TOML file of rules; earlier ones win.
    - `probe`: settles what stays open by running a live target; the model is put back each time.
      Where the source is a live model, inputs are enough: both are run. Images are given as the
      source takes them. Models that are not built yet (lazy layers) are built by the inputs.
    - `container`: the part of the source file to open.
    - `arguments`: keyword arguments for `'module:callable'`.

    **Raises** what opening the source raises; `TargetError`; `RuleMatchedNothing`, `ShapeMismatch`
    and `PlanError` for rules that do not hold.
    """
    # Without a probe nothing is run: names, shapes and the graph are all that is needed.
    ours, theirs, wanted = both_sides(
        source, target, container, arguments, probe, meta=probe is None
    )
    return plan_sides(ours, theirs, rules_of(rules), wanted)


def both_sides(
    source: Given,
    target: Given,
    container: str | None,
    arguments: Mapping[str, object] | None,
    probe: Any,
    *,
    meta: bool = False,
) -> tuple[Side, Side, Probe | None]:
    """Both sides, and the probe: a live source that is given mere inputs says itself what should
    come out. Models that are not built yet are built by the inputs."""
    given = probe is None or isinstance(probe, Probe)
    ours = source_side(source, container, None if given else probe)
    inputs = probe.inputs if isinstance(probe, Probe) else probe
    theirs = target_side(
        target, arguments=arguments, meta=meta, inputs=inputs, source=ours.catalogue
    )
    ours = replace(ours, inputs=inputs)
    if given:
        wanted = probe if probe is None else placed(probe, theirs)
        return ours, replace(theirs, inputs=wanted and wanted.inputs), wanted
    source_run, target_run = ours.run(), theirs.run() if theirs.model is not None else None
    if source_run is None or theirs.model is None:
        raise TargetError(
            (theirs if source_run else ours).catalogue.label,
            found="inputs without outputs, and no live model that would give them",
            expected="a live model on both sides (or an ONNX file as the source), or outputs, too",
            hint="give rg.Probe(inputs=x, outputs=y)",
        )
    frameworks = ours.catalogue.framework, theirs.catalogue.framework
    source_run = functools.partial(ran, ours.catalogue.label, source_run)
    # What has no values yet cannot be run yet.
    runs = target_run if theirs.read is not None else None
    wanted = probe_of(probe, source_run, runs, frameworks)
    return ours, replace(theirs, inputs=wanted.inputs), wanted


def placed(probe: Probe, theirs: Side) -> Probe:
    """A recorded probe with images as the target takes them."""
    run = theirs.run() if theirs.model is not None else None
    return as_taken(probe, run, theirs.catalogue.framework) if run is not None else probe


def _catalogue_of(given: Given) -> Catalogue:
    """What a path, a live model or a Catalogue holds, without its values."""
    return target_side(given, meta=True).catalogue


plans.catalogue_of = _catalogue_of


def rules_of(rules: Rules) -> tuple[Rule, ...]:
    return tuple(load_rules(rules) if isinstance(rules, (str, os.PathLike)) else rules)


def plan_sides(ours: Side, theirs: Side, rules: Iterable[Rule], probe: Probe | None) -> Plan:
    rules = tuple(rules)
    made = _matched(ours, theirs, rules)
    if not made.complete or _by_place_alone(made):
        # To follow a model's code on a probe's inputs takes seconds: only where it may matter.
        seen = ours.followed(), theirs.followed()
        if seen[0] is not ours or seen[1] is not theirs:
            ours, theirs = seen
            made = _matched(ours, theirs, rules)
        made = _noted(made, theirs, theirs.catalogue.notes)
    if probe is None or made.complete:
        return made
    sink = theirs.sink()

    reader = reader_apart(ours, theirs)

    def run(candidate: Plan) -> Report:
        with kept(sink) as journal:
            transfer.apply(
                candidate, ours.catalogue, reader, theirs.catalogue, sink, journal=journal
            )
            return compared(sink, probe)

    return settle(made, run)


def _by_place_alone(made: Plan) -> bool:
    """Whether some layer is where it is for its number or its place among others, and neither its
    name nor what it is computed from speaks for it."""
    kinds = [{e.kind for e in graft.evidence} for graft in made.grafts.values()]
    return any(k & {"numbers", "order"} and not k & {"names", "dataflow", "rule"} for k in kinds)


def _matched(ours: Side, theirs: Side, rules: tuple[Rule, ...]) -> Plan:
    made = matching.match(
        ours.catalogue,
        theirs.catalogue,
        rules,
        read_source=ours.read,
        # A live model's present values are no evidence: it was just made.
        read_target=theirs.read if theirs.model is None else None,
        asked=_asking(theirs) if theirs.model is not None and theirs.read else NOT_ASKED,
    )
    return _noted(made, theirs, theirs.notes)


def _noted(made: Plan, theirs: Side, notes: Iterable[str]) -> Plan:
    remarks = [Remark("target", theirs.catalogue.label, note) for note in notes]
    return _replace(made, notes=(*made.notes, *remarks)) if remarks else made


def reader_apart(ours: Side, theirs: Side) -> Read:
    """The source's values. A live source that shares memory with the target is copied first: its
    values must not change while they are being read."""
    read = ours.reader()
    if ours.model is None or theirs.model is None:
        return read
    here, there = ours.sink(), theirs.sink()
    places = (there.memory(name) for name in theirs.catalogue)
    overlaps = Overlaps(place for place in places if place is not None)
    mine = (here.memory(name) for name in ours.catalogue)
    if ours.model is not theirs.model and not any(overlaps(a) for a in mine if a is not None):
        return read
    copies = {name: read(name, None).copy() for name in ours.catalogue}
    return lambda name, slices: copies[name] if slices is None else copies[name][slices]


def _asking(side: Side) -> Asked:
    """The experiments with a live model that its target has."""
    target = targets.find(side.model)
    experiments = (getattr(target, name, None) for name in Asked._fields)
    return Asked(*(e and functools.partial(e, side.model) for e in experiments))


def _replace(made: Plan, **changes: Any) -> Plan:
    import msgspec

    return msgspec.structs.replace(made, **changes)


def compared(sink: Sink, probe: Probe) -> Report:
    model = sink.model
    return compare_outputs(lambda inputs: targets.find(model).run(model, inputs), probe, model)
