"""Proving: outputs compared, the first divergence found, and its cause named."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from regraft import targets
from regraft._api.planning import Rules, both_sides, compared, placed, plan_sides, rules_of
from regraft._sides import Given, Side, ran, source_side, target_side
from regraft.calls import Taps
from regraft.errors import (
    MissingDependency,
    PlanError,
    RegraftError,
    StalePlan,
    TargetError,
    VerificationFailed,
)
from regraft.plans import Plan
from regraft.rules import Rule
from regraft.tensors import Arrays
from regraft.verification import Probe, Report
from regraft.verification.explaining import Other, explain
from regraft.verification.traces import Recorder


def verify(
    model: Given,
    probe: Probe | Any,
    source: Given | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    *,
    rules: Rules = (),
    arguments: Mapping[str, object] | None = None,
) -> Report:
    """Runs the model on the probe's inputs and compares its outputs with the expected ones; where
    they differ, finds the first module that differs, and why.

    **Arguments:**

    - `probe`: inputs and outputs; with a live `source`, inputs as the source takes them are enough.
    - `source`: the live model that the weights came from, or an ONNX file, which onnxruntime runs
      (other files say what the tensors are, and no more). Both run under observation, and each
      explanation is tried: what makes the outputs agree is proven. Where the source is in inference
      mode and the model is not, or only some of its modules are not, the model is run as it is, and
      otherwise in inference mode.
    - `plan`: what was loaded; without it one is made, with `rules`: what you know better.

    The model is as it was afterwards. **Raises** `TargetError` where the model cannot be had; a
    difference is a Report, no error. `VerificationFailed` for inputs without outputs and a source;
    `StalePlan` for a plan that speaks of tensors which the model or the source does not have,
    `PlanError` for one that is none and for rules that do not hold.
    """
    carried_out = _given_plan(plan)
    container = (carried_out.source.container or None) if carried_out else None
    ours, theirs, given = _sides(model, probe, source, arguments, container)
    taps = theirs.taps if theirs.model is not None else None
    if taps is None:
        return compared(theirs.sink(), given)
    taps.as_it_is = _as_it_is(taps, ours)
    if carried_out is not None:
        _check(carried_out, ours, theirs)
    made_plan = carried_out or _planned(ours, theirs, rules_of(rules))
    other, warnings = _known_of(ours, given, probe)
    report = explain(
        given, taps, _separator(theirs), theirs.reader(), theirs.catalogue, made_plan, other
    )
    return replace(report, warnings=(*report.warnings, *warnings))


def _sides(
    model: Given,
    probe: Probe | Any,
    source: Given | None,
    arguments: Mapping[str, object] | None,
    container: str | None,
) -> tuple[Side | None, Side, Probe]:
    if isinstance(probe, Probe):
        theirs = target_side(model, arguments=arguments, inputs=probe.inputs)
        ours = None if source is None else source_side(source, container)
        return ours, theirs, placed(probe, theirs)
    if source is None:
        raise VerificationFailed(
            "probe", found=f"{type(probe).__name__}: inputs without outputs",
            expected="what the source model gives for them",
            hint="give rg.Probe(inputs=x, outputs=y), or the source as a live model: source=…",
        )  # fmt: skip
    ours, theirs, made = both_sides(source, model, container, arguments, probe)
    assert made is not None
    return ours, theirs, made


def _known_of(ours: Side | None, given: Probe, probe: Any) -> tuple[Other | None, tuple[str, ...]]:
    """What is known of the source besides its outputs, and what could have been. A live source is
    run; a file that can be run is, too, where the probe does not say it all already."""
    if ours is None or (ours.model is None and given.trace is not None):
        return _recorded(given, ours), ()
    if ours.model is not None:
        return _other(ours, given, probe), ()
    try:
        return (_other(ours, given, probe) if ours.taps is not None else None), ()
    except (MissingDependency, TargetError) as error:
        why = " ".join(str(error).split())
        return None, (f"the source was not run, and only outputs are compared: {why}",)


def _recorded(probe: Probe, ours: Side | None) -> Other | None:
    """The source as a recorded probe knows it, with the tensors of its file where that is given."""
    if probe.trace is None:
        return None
    separator = "." if probe.trace.framework == "torch" else "/"
    held = (ours.catalogue, ours.read) if ours else (None, None)
    owners = probe.trace.owners

    def owner(name: str) -> str:
        return owners[name] if name in owners else name.rpartition(separator)[0]

    return Other(probe.trace, owner, separator, *held)


def _separator(side: Side) -> str:
    return "." if side.catalogue.framework in ("torch", "") else "/"


def _as_it_is(taps: Taps, ours: Side | None) -> bool:
    """Whether training modes are part of what is compared."""
    modules = taps.modules()
    root = modules[""].mode
    mixed = not root and any(module.mode for module in modules.values())
    if mixed or ours is None or ours.model is None or not root:
        return mixed
    source = ours.taps
    return source is not None and not source.modules()[""].mode


def _given_plan(plan: object) -> Plan | None:
    made = Plan.load(plan) if isinstance(plan, (str, os.PathLike)) else plan
    if made is None or isinstance(made, Plan):
        return made
    raise PlanError("plan", found=type(made).__name__, expected="a Plan, or the path of one")


def _check(made: Plan, ours: Side | None, theirs: Side) -> None:
    """Raises `StalePlan` for a plan of others. Dtypes are not asked for: models are cast after they
    were loaded, which is a cause to find."""
    made.check()
    written = {name: g.spec.shape for name, g in made.grafts.items() if g.written}
    read = {name: made.source.tensors[name].shape for name in made.used}
    known = [("target", made.target, written, theirs.catalogue)]
    known += [("source", made.source, read, ours.catalogue)] if ours else []
    for what, planned, shapes, present in known:
        problems = [
            f"{name}: planned for {list(shape)}, found {found and list(found.shape)}"
            for name, shape in shapes.items()
            if (found := present.get(name)) is None or tuple(found.shape) != tuple(shape)
        ]
        if problems:
            raise StalePlan(
                f"the plan's {what}", found=present.label,
                expected=f"the tensors of {planned.label} as they were planned for",
                hint="give the plan that was carried out, or none: one is made", problems=problems,
            )  # fmt: skip


def _planned(ours: Side | None, theirs: Side, rules: tuple[Rule, ...]) -> Plan | None:
    if ours is None or not ours.catalogue:
        return None
    try:
        return plan_sides(ours, theirs, rules, None)
    except RegraftError:
        if rules:  # what the caller said does not hold
            raise
        return None


def _other(ours: Side, probe: Probe, given: Any) -> Other:
    """The source, run under observation."""
    taps = ours.taps
    if taps is None:
        raise TargetError(
            ours.catalogue.label, found="a model that cannot be observed",
            expected=f"a live model of {', '.join(targets.names())}",
        )  # fmt: skip
    own = isinstance(given, Probe)
    recorder = Recorder()
    inputs = given.inputs if own else given
    outputs: Arrays = ran(ours.catalogue.label, taps.run, inputs, recorder)
    trace = recorder.trace(taps.modules(), taps.framework)
    return Other(
        trace,
        taps.owner,
        _separator(ours),
        ours.catalogue,
        ours.read,
        outputs if probe is given else None,
    )
