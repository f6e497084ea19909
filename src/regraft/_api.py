"""The verbs. Each takes what people have at hand (paths, live models, plans) and wires the rooms.

This and `_sides` are the only rooms that see both formats and targets.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft import checkpoints, keras_layout, lineage, matching, plans, targets, transfer
from regraft._sides import Given, Side, source_side, target_side
from regraft.checkpoints import Checkpoint
from regraft.errors import (
    IncompletePlan,
    RuleMatchedNothing,
    StalePlan,
    TargetError,
    VerificationFailed,
)
from regraft.lineage import Diff, Lineage
from regraft.matching.rewrites import NOT_ASKED, Asked
from regraft.plans import Plan, Remark
from regraft.rules import Fresh, Leave, Rule, load_rules, matches
from regraft.rules import fresh as fresh_rule
from regraft.rules import leave as leave_rule
from regraft.tensors import Catalogue, TensorInfo
from regraft.transfer import Progress, Receipt
from regraft.tuning import Epoch, Settings, Tuned, best_of, trainer_of
from regraft.tuning import data as training_data
from regraft.verification import Probe, Report, probe_of, settle
from regraft.verification import verify as compare_outputs

if TYPE_CHECKING:
    from regraft.tensors import Array, Sink

# Metadata that stays true of the same tensors in another file.
_KEPT = (lineage.KEY, keras_layout.KEY)
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
    ours, theirs, wanted = _sides(source, target, container, arguments, probe, meta=probe is None)
    return _plan(ours, theirs, _rules(rules), wanted)


def _sides(
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
    theirs = target_side(target, arguments=arguments, meta=meta, inputs=inputs)
    if given:
        return ours, theirs, probe
    live = [side for side in (ours, theirs) if side.model is not None]
    if len(live) < 2:
        raise TargetError(
            (theirs if ours in live else ours).catalogue.label,
            found="inputs without outputs, and no live model that would give them",
            expected="a live model on both sides, or outputs, too",
            hint="give rg.Probe(inputs=x, outputs=y)",
        )
    runs = [functools.partial(targets.find(side.model).run, side.model) for side in live]
    frameworks = ours.catalogue.framework, theirs.catalogue.framework
    return ours, theirs, probe_of(probe, runs[0], runs[1], frameworks)


def _catalogue_of(given: Given) -> Catalogue:
    """What a path, a live model or a Catalogue holds, without its values."""
    return target_side(given, meta=True).catalogue


plans.catalogue_of = _catalogue_of


def _rules(rules: Rules) -> tuple[Rule, ...]:
    return tuple(load_rules(rules) if isinstance(rules, (str, os.PathLike)) else rules)


def _plan(ours: Side, theirs: Side, rules: Iterable[Rule], probe: Probe | None) -> Plan:
    made = matching.match(
        ours.catalogue,
        theirs.catalogue,
        rules,
        read_source=ours.read,
        # A live model's present values are no evidence: it was just made.
        read_target=theirs.read if theirs.model is None else None,
        asked=_asking(theirs) if theirs.model is not None and theirs.read else NOT_ASKED,
    )
    if theirs.notes:
        remarks = [Remark("target", theirs.catalogue.label, note) for note in theirs.notes]
        made = _replace(made, notes=(*made.notes, *remarks))
    if probe is None or made.complete:
        return made
    sink = theirs.sink()

    def run(candidate: Plan) -> Report:
        with transfer.kept(sink) as journal:
            transfer.apply(
                candidate, ours.catalogue, ours.reader(), theirs.catalogue, sink, journal=journal
            )
            return _compared(sink, probe)

    return settle(made, run)


def _asking(side: Side) -> Asked:
    """The experiments with a live model that its target has."""
    target = targets.find(side.model)
    experiments = (getattr(target, name, None) for name in Asked._fields)
    return Asked(*(e and functools.partial(e, side.model) for e in experiments))


def _replace(made: Plan, **changes: Any) -> Plan:
    import msgspec

    return msgspec.structs.replace(made, **changes)


def _compared(sink: Sink, probe: Probe) -> Report:
    model = sink.model
    return compare_outputs(lambda inputs: targets.find(model).run(model, inputs), probe, model)


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
    ours, theirs, wanted = _sides(source, model, made.source.container or None, arguments, probe)
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
    journal = transfer.Journal(sink)
    receipt = transfer.apply(
        made,
        ours.catalogue,
        ours.reader(),
        theirs.catalogue,
        sink,
        partial=partial,
        progress=progress,
        journal=journal,
    )
    if isinstance(ours.catalogue, Checkpoint):
        parent = ours.catalogue.metadata.get(lineage.KEY, "")
        receipt = replace(receipt, source_hash=ours.catalogue.sha256, parent=parent)
    if probe is None:
        return receipt
    try:
        report = _compared(sink, probe)
    except BaseException:
        journal.undo()
        raise
    if report.equal:
        return transfer.verified(receipt)
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
    ours, theirs, wanted = _sides(source, model, container, arguments, probe)
    made = _plan(ours, theirs, (*said, *_rules(rules)), wanted)
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


def verify(model: Given, probe: Probe, *, arguments: Mapping[str, object] | None = None) -> Report:
    """Runs the model on the probe's inputs and compares its outputs with the expected ones.

    **Raises** `TargetError` where the model cannot be had; a difference is a Report, no error.
    """
    side = target_side(model, arguments=arguments)
    return _compared(side.sink(), probe)


def convert(
    source: Given,
    path: str | os.PathLike[str],
    *,
    plan: Plan | str | os.PathLike[str] | None = None,
    container: str | None = None,
    format: str | None = None,
    force: bool = False,
    max_shard: int | str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes the same tensors in another format, or what a plan makes of them; streams.

    **Arguments:**

    - `path`: its ending names the format (`.safetensors`, `.pth`, `.npz`, `.gguf`, `.msgpack`,
      `.weights.h5`), unless `format` does.
    - `plan`: the tensors are written as the plan's target has them, with lineage in the file.
    - `force`: overwrite a file that exists.
    - `max_shard`: bytes, or a text such as `"5GB"`: where the tensors take more, they are written
      to several files of that size and an index, whose path is returned.

    **Raises** `UnknownFormat` where the format cannot be written; `IncompletePlan` where the plan
    leaves tensors without values; `FormatError`.
    """
    if plan is None:
        side = source_side(source, container)
        read = side.reader()
        kept = {k: v for k, v in side.catalogue.metadata.items() if k in _KEPT}
        items = ((info, _reading(read, info, progress)) for info in side.catalogue.values())
        framework = side.catalogue.framework
        return checkpoints.write(
            path, items, kept, format=format, force=force, max_shard=max_shard, framework=framework
        )
    made = plan if isinstance(plan, Plan) else Plan.load(plan)
    side = source_side(source, container or made.source.container or None)
    transfer.ready(made)
    made.check(side.catalogue)
    lacking = [*made.fresh, *(name for name, graft in made.grafts.items() if graft.keeps)]
    if lacking:
        raise IncompletePlan(
            str(path),
            found=f"{len(lacking)} tensors for which the source has no values, or not all",
            expected="values for every tensor of a file",
            hint="load into a live model, which has values of its own, and rg.save it",
            problems=lacking,
        )
    tensors, metadata = _through(made, side, progress)
    framework = made.target.framework
    return checkpoints.write(
        path, tensors, metadata, format=format, force=force, max_shard=max_shard,
        framework=framework,
    )  # fmt: skip


def _reading(
    read: Callable[[str, None], Array], info: TensorInfo, progress: Progress | None
) -> Callable[[], Array]:
    def get() -> Array:
        array = read(info.name, None)
        if progress:
            progress(info.name, info.nbytes)
        return array

    return get


def _through(
    made: Plan, side: Side, progress: Progress | None
) -> tuple[Iterable[tuple[TensorInfo, Callable[[], Array]]], dict[str, str]]:
    """The tensors that a plan makes, and their lineage."""
    read = side.reader()

    def get(name: str, _: object = None) -> Array:
        graft = made.grafts[name]
        if graft.written:
            return transfer.make(made, graft, read)
        import numpy as np

        return np.zeros(graft.spec.shape, graft.spec.dtype)  # a counter, which starts at 0

    hashes = {n: transfer.fingerprint(get(n)) for n, g in made.grafts.items() if g.written}
    digest = checkpoints.content_hash(side.path) if side.path else ""
    parent = side.catalogue.metadata.get(lineage.KEY, "")
    receipt = Receipt(made, None, hashes, made.warnings, source_hash=digest, parent=parent)
    told = lineage.describe(receipt, ((n, get(n)) for n in made.grafts))
    infos = (TensorInfo(n, g.spec.shape, g.spec.dtype) for n, g in made.grafts.items())
    items = ((info, _reading(get, info, progress)) for info in infos)
    return items, lineage.encode(told)


def save(
    model: Given,
    path: str | os.PathLike[str],
    *,
    receipt: Receipt | None = None,
    trained: Mapping[str, bool] | None = None,
    training: Mapping[str, str] | None = None,
    format: str | None = None,
    force: bool = False,
    max_shard: int | str | None = None,
) -> Path:
    """Writes a live model's tensors, with lineage where its receipt is given.

    **Arguments:**

    - `receipt`: what `load` or `apply` gave: for each tensor the file then says where it came from
      and whether it has changed since.
    - `trained`: by name, whether training was allowed to change a tensor (`finetune` knows).
    - `training`: settings worth remembering, as text.
    - `force`: overwrite a file that exists.
    - `max_shard`: as in `convert`.

    **Raises** `TargetError` for anything but a model, `StalePlan` where the receipt is another
    model's, `FormatError`.
    """
    side = target_side(model)
    read = side.reader()
    infos = list(side.catalogue.values())
    metadata = {k: v for k, v in side.catalogue.metadata.items() if k == keras_layout.KEY}
    if receipt is not None:
        alien = [name for name in receipt.hashes if name not in side.catalogue]
        if alien:
            raise StalePlan(
                side.catalogue.label,
                found=f"a receipt that speaks of {alien[0]!r}",
                expected="the receipt of this very model",
                problems=alien,
            )
        arrays = ((info.name, read(info.name, None)) for info in infos)
        told = lineage.describe(receipt, arrays, trained=trained, training=training)
        metadata |= lineage.encode(told)
    items = ((info, _reading(read, info, None)) for info in infos)
    framework = side.catalogue.framework
    return checkpoints.write(
        path, items, metadata, format=format, force=force, max_shard=max_shard, framework=framework
    )


def trace(path: Given) -> Lineage:
    """Where each tensor of a saved model came from.

    Values are read and compared with the hashes in the lineage: what was changed by other means
    since is told as `changed`. **Raises** `FormatError` where the file holds no lineage.
    """
    side = source_side(path)
    told = lineage.decode(side.catalogue.metadata, side.catalogue.label)
    return lineage.checked(told, side.catalogue, side.reader())


def diff(
    base: Given,
    tuned: Given,
    *,
    plan: Plan | str | os.PathLike[str] | None = None,
    container: str | None = None,
) -> Diff:
    """What became of each tensor: identical, moved (relative L2, max, cosine), fresh or gone.

    Tensors are paired by name; where `tuned` holds lineage of this base, or `plan` says how one
    was made from the other, through its operations.
    """
    before, after = source_side(base, container), source_side(tuned, container)
    made = plan if isinstance(plan, Plan) or plan is None else Plan.load(plan)
    if made is None and lineage.KEY in after.catalogue.metadata:
        told = lineage.decode(after.catalogue.metadata, after.catalogue.label)
        if lineage.speaks_of(told, before.catalogue):
            made = lineage.plan_of(told, before.catalogue, after.catalogue)
    if made is None:
        read = before.reader()
        return lineage.diff(
            before.catalogue, lambda name: read(name, None), after.catalogue, after.reader()
        )
    made.check(before.catalogue)
    return lineage.diff_through(
        made, before.catalogue, before.reader(), after.catalogue, after.reader()
    )


def pretrained(tuned: Given, base: Given) -> dict[str, Array]:
    """The weights as they were before training, by the tuned model's names and in its layout.

    Tensors that were fresh have no pretrained values and are left out; entries that a model added
    to a pretrained tensor (rows of a vocabulary) are as they are now. **Raises** `FormatError`
    where `tuned` holds no lineage, `StalePlan` where `base` is not the file it speaks of.
    """
    after = source_side(tuned)
    told = lineage.decode(after.catalogue.metadata, after.catalogue.label)
    before = source_side(base, told.container or None)
    made = lineage.plan_of(told, before.catalogue, after.catalogue)
    found: dict[str, Array] = {}
    wrong: list[str] = []
    for name, origin in told.tensors.items():
        if origin.kind == "fresh":
            continue
        graft = made.grafts[name]
        if not graft.written:
            wrong.append(f"{name}: {', '.join(origin.sources)} is missing")
            continue
        found[name] = transfer.make(
            made, graft, before.reader(), lambda name: after.reader()(name, None)
        )
        # Entries that were the model's own from the start are not in the base.
        if not graft.keeps and transfer.fingerprint(found[name]) != origin.loaded_hash:
            wrong.append(f"{name}: other values than were loaded")
    if wrong:
        raise StalePlan(
            before.catalogue.label,
            found="another file than the lineage speaks of",
            expected=f"{told.source}, sha256 {told.source_hash or 'unknown'}",
            problems=wrong,
        )
    return found


def finetune(
    model: Given,
    data: Any,
    *,
    receipt: Receipt | None = None,
    freeze: Iterable[str] = (),
    linear_probe: bool = False,
    settings: Settings | None = None,
    validation: float = 0.2,
    size: Iterable[int] = (),
    gray: bool = False,
    progress: Callable[[Epoch], None] | None = None,
    **options: Any,
) -> Tuned:
    """Fine-tunes a live model in place: PyTorch through Lightning, Keras through `model.fit`.

    **Arguments:**

    - `data`: a folder of images by class, an `.npz` with `x` and `y`, `(x, y)` or a `Data`.
    - `receipt`: what loading gave; `linear_probe` needs it.
    - `freeze`: templates of tensors that are not to learn.
    - `linear_probe`: learn only what is fresh, so that the pretrained weights stay as they are.
    - `settings`: a `Settings`, or its fields as further keyword arguments (`epochs=10`).
    - `validation`: share of each class that is held out where the data brings no split.
    - `size`, `gray`: how images of a folder are read.
    - `progress`: called with each finished `Epoch`.

    **Raises** `TargetError`, `FormatError` for data that does not fit, `RuleMatchedNothing` for a
    template that names no tensor, `MissingDependency`.
    """
    chosen = settings or Settings(**options)
    side = target_side(model)
    live: Any = side.model
    framework = side.catalogue.framework
    if live is None:
        raise TargetError(side.catalogue.label, found="no model", expected="a live model")
    trainer = trainer_of(framework)
    samples = training_data.load(
        data, channels_first=framework == "torch", size=tuple(size), gray=gray
    ).split(validation, chosen.seed)
    learns = _learning(side.catalogue, receipt, tuple(freeze), linear_probe)
    targets.find(live).trainable(live, [name for name, yes in learns.items() if yes])
    _answers_fit(live, samples)
    curve = trainer.fit(live, samples, chosen, progress or (lambda _: None))
    told = {key: str(value) for key, value in asdict(chosen).items()}
    told |= {"samples": str(len(samples.x)), "trainer": framework}
    if freeze or linear_probe:
        told["frozen"] = "all but the fresh" if linear_probe else ", ".join(freeze)
    return Tuned(live, tuple(curve), best_of(curve), learns, told)


def _learning(
    catalogue: Catalogue, receipt: Receipt | None, freeze: tuple[str, ...], linear_probe: bool
) -> dict[str, bool]:
    """By tensor, whether it may learn."""
    idle = [t for t in freeze if not any(matches(t, name) for name in catalogue)]
    if idle:
        raise RuleMatchedNothing(
            f"freeze {idle[0]!r}",
            found="no tensor of such a name",
            expected=f"a template for names such as {next(iter(catalogue), '')!r}",
            problems=idle,
        )
    if not linear_probe:
        return {name: not any(matches(t, name) for t in freeze) for name in catalogue}
    if receipt is None or not receipt.fresh:
        raise TargetError(
            catalogue.label,
            found="nothing fresh" if receipt else "no receipt",
            expected="a receipt with fresh tensors, which alone learn in a linear probe",
            hint="load with fresh=['head.*'] first, and give receipt=",
        )
    fresh = set(receipt.fresh)
    return {name: name in fresh for name in catalogue}


def _answers_fit(model: Any, data: training_data.Data) -> None:
    """Raises `TargetError` where the model has too few outputs, before training fails on it."""
    outputs = targets.find(model).run(model, data.x[:1])
    shapes = [array.shape for array in outputs.values()]
    if data.classification and (not shapes or shapes[0][-1] < data.count):
        raise TargetError(
            type(model).__name__,
            found=f"outputs of shape {shapes[0] if shapes else ()}",
            expected=f"{data.count} classes, as the data has",
            hint="build the model with as many classes (--set num_classes=…)",
        )
