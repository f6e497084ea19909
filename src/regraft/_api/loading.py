"""Loading: a plan carried out on a live model, and proven."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from regraft import transfer
from regraft._api import keeping
from regraft._api.planning import Rules, both_sides, compared, plan_sides, reader_apart, rules_of
from regraft._sides import Given, Side
from regraft.checkpoints import Checkpoint
from regraft.errors import IncompletePlan, VerificationFailed
from regraft.journal import Journal
from regraft.plans import Plan
from regraft.receipts import Receipt, verified
from regraft.rules import Fresh, Leave, matches
from regraft.rules import fresh as fresh_rule
from regraft.rules import leave as leave_rule
from regraft.transfer import Progress
from regraft.verification import Probe


def apply(
    plan: Plan | str | os.PathLike[str],
    source: Given,
    model: Given,
    *,
    partial: bool = False,
    probe: Probe | Any = None,
    arguments: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> Receipt:
    """Carries a plan out on a live model, tensor by tensor, and reads every tensor back.

    **Arguments:**

    - `plan`: a Plan or the path of a saved one.
    - `partial`: write what is settled and leave the rest of the model as it is.
    - `probe`: compares outputs afterwards; where they differ the model is put back. Inputs are
      enough where the source is a live model.
    - `progress`: called with each tensor's name and bytes.

    **Raises** `IncompletePlan`, `ShapeMismatch` or `StalePlan` before the first write;
    `TransferError` or `VerificationFailed` after it, with the model as it was.
    """
    made = plan if isinstance(plan, Plan) else Plan.load(plan)
    ours, theirs, wanted = both_sides(
        source, model, made.source.container or None, arguments, probe
    )
    return _apply(made, ours, theirs, partial=partial, probe=wanted, progress=progress)


def _apply(
    made: Plan,
    ours: Side,
    theirs: Side,
    *,
    partial: bool,
    probe: Probe | None,
    progress: Progress | None,
) -> Receipt:
    sink = theirs.sink()
    journal = Journal(sink) if probe else None
    receipt = transfer.apply(
        made,
        ours.catalogue,
        reader_apart(ours, theirs),
        theirs.catalogue,
        sink,
        partial=partial,
        progress=progress,
        journal=journal,
    )
    if isinstance(ours.catalogue, Checkpoint):
        parent = keeping.text_of(ours)
        receipt = replace(receipt, hashing=ours.content, parent=parent)
    receipt = replace(receipt, keeper=keeping.Keeper())
    if probe is None or journal is None:
        return receipt
    try:
        report = compared(sink, probe)
    except BaseException:
        journal.undo()
        raise
    if report.equal:
        journal.close()
        return verified(receipt)
    journal.undo()
    raise VerificationFailed(
        theirs.catalogue.label,
        report=report,
        found=str(report),
        expected="the probe's outputs",
        hint="the model was put back as it was; see report.rows, and plan.why(name)",
    )


def load(
    source: Given,
    model: Given,
    *,
    rules: Rules = (),
    fresh: Iterable[str] = (),
    unused: Iterable[str] = (),
    adapt: bool = False,
    accept: Iterable[str] = (),
    partial: bool = False,
    probe: Probe | Any = None,
    container: str | None = None,
    arguments: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> Receipt:
    """Plans and applies in one go. Every difference is an error that says how to allow it.

    Dtype and device are those of the model: change them on the model before (`model.half()`,
    `model.to("cuda")`), and values are converted on their way.

    **Arguments:**

    - `fresh`: templates of target tensors that are to keep the model's own values.
    - `unused`: templates of source tensors that are to be left out.
    - `adapt`: whether values may be changed (resized, sliced).
    - `accept`: codes of warnings that are no reason to stop (`"not-finite"`).
    - `partial`: load what is certain and list the rest; an undecided pairing is never loaded.
    - others as in `plan` and `apply`.

    **Raises** what `plan` and `apply` raise; `IncompletePlan` lists every difference at once.
    """
    said = [*(fresh_rule(name) for name in fresh), *(leave_rule(name) for name in unused)]
    ours, theirs, wanted = both_sides(source, model, container, arguments, probe)
    made = plan_sides(ours, theirs, (*said, *rules_of(rules)), wanted)
    if not partial:
        _allowed(made, adapt, set(accept))
    return _apply(made, ours, theirs, partial=partial, probe=wanted, progress=progress)


def _allowed(made: Plan, adapt: bool, accept: set[str]) -> None:
    """Raises `IncompletePlan` with all differences that were not allowed."""
    fresh = [r.target for r in made.rules if isinstance(r, Fresh)]
    leave = [r.source for r in made.rules if isinstance(r, Leave)]
    problems = [f"{name}: undecided: {open_.reason}" for name, open_ in made.undecided.items()]
    problems += [
        f"{name}: fresh, it would keep the model's own values; allow with fresh=[{name!r}]"
        for name in made.fresh
        if not any(matches(template, name) for template in fresh)
    ]
    problems += [
        f"{name}: in the source, but not used; allow with unused=[{name!r}]"
        for name in made.unused
        if not any(matches(template, name) for template in leave)
    ]
    if not adapt:
        problems += [f"{n}: values would change; allow with adapt=True" for n in made.adapted]
    problems += [
        f"{w.where}: {w.code}: {w.text}; allow with accept=[{w.code!r}]"
        for w in made.warnings
        if w.code not in accept
    ]
    if problems:
        raise IncompletePlan(
            f"{made.source.label} → {made.target.label}",
            found=f"{len(problems)} differences",
            expected="every tensor of both sides accounted for",
            hint="allow each as told, settle what is undecided by rules or a probe "
            "(see rg.plan(source, model).why(name)), or load with partial=True",
            problems=problems,
        )
