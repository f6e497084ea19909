"""Carries a plan out: streams tensors from a reader through operations into a sink.

Nothing is written before the plan is complete and every shape is checked. What was there before
is kept in a journal until the end, so that a failure half-way leaves the model as it was. Values
that are at hand and only need to be copied into the model's own memory come last: nothing can fail
any more, and neither memory nor time is spent on undoing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING, TypeAlias

from regraft import markup, operations
from regraft.copying import Copied, Overlaps, Survey, Surveys, copy, copy_all, survey
from regraft.errors import IncompletePlan, RegraftError, TransferError
from regraft.journal import BUDGET, Journal
from regraft.plans import Graft, Plan, Remark
from regraft.renewing import Renewed, renew_all
from regraft.tensors import Catalogue, Read, Sink
from regraft.values import stays

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

Progress = Callable[[str, int], None]
# A target's present values by name.
Own: TypeAlias = "Callable[[str], Array]"


@dataclass(frozen=True)
class Receipt:
    """What `apply` did.

    - `hashes`: xxh3-128 of each target tensor's bytes as read back from the model, by name.
    - `fresh`, `adapted`, `unused`: as in the plan. `warnings`: the plan's, and what the values
      showed on their way.
    - `verified`: True only if a probe's outputs agreed.
    - `model`: the model, or the new tree where the framework's arrays are immutable.
    - `source_hash`: sha256 of the source file, computed when it is first asked for; `""` where the
      source is no file, or was changed since.
    - `parent`: the lineage that the source file itself held, as JSON, `""` for none.
    """

    plan: Plan = field(repr=False)
    model: object = field(repr=False)
    hashes: dict[str, str] = field(repr=False)
    warnings: tuple[Remark, ...] = ()
    verified: bool = False
    hashing: Callable[[], str] = field(default=str, repr=False, compare=False)
    parent: str = field(default="", repr=False)

    @cached_property
    def source_hash(self) -> str:
        return self.hashing()

    @property
    def fresh(self) -> list[str]:
        return self.plan.fresh

    @property
    def adapted(self) -> list[str]:
        return self.plan.adapted

    @property
    def unused(self) -> list[str]:
        return list(self.plan.unused)

    @property
    def loaded(self) -> list[str]:
        """Names of the target tensors that were written."""
        return list(self.hashes)

    def __str__(self) -> str:
        counts = {"fresh": self.fresh, "adapted": self.adapted, "unused": self.unused}
        told = ", ".join(f"{len(names)} {word}" for word, names in counts.items() if names)
        state = "outputs verified" if self.verified else "outputs not compared"
        rows = [f"{len(self.hashes)} tensors loaded{told and ', '}{told}; {state}"]
        return "\n".join([*rows, *(f"  warning  {remark}" for remark in self.warnings)])

    def _repr_html_(self) -> str:
        grafts = [g for g in self.plan.grafts.values() if not g.counter]
        rows = [("warning", r.where, r.code, r.text) for r in self.warnings]
        rows += [
            (g.kind, g.target, " + ".join(g.sources), self.hashes.get(g.target, "")) for g in grafts
        ]
        caption = str(self).split("\n")[0]
        return markup.table(caption, ("kind", "tensor", "from", "xxh3"), rows, len(rows))


def make(
    plan: Plan, graft: Graft, read: Read, own: Own | None = None, slices: Slices | None = None
) -> Array:
    """The target's array of one graft, in the target's shape and dtype, or the part of it under
    `slices`, for which no more is read than it takes.

    `own` gives the target's values where some of them stay; **raises** `TransferError` where it
    is needed and not there.
    """
    pushed = None if graft.keeps else slices  # what stays is laid into the whole
    ops, needed = operations.push_down(graft.ops, plan.shapes_of(graft), pushed)
    arrays = [read(name, part) for name, part in zip(graft.sources, needed, strict=True)]
    made = operations.run(ops, arrays, own(graft.target) if own and graft.keeps else None)
    return made if slices is pushed else made[slices]


def fingerprint(array: Array) -> str:
    """xxh3-128 of the values in row-major order."""
    return survey(array).digest


def ready(plan: Plan) -> None:
    """Raises `IncompletePlan` unless every target tensor is settled."""
    if plan.complete:
        return
    open_ = [f"{name}: {u.reason}" for name, u in plan.undecided.items()]
    missing = [n for n in plan.target.tensors if n not in plan.grafts and n not in plan.undecided]
    raise IncompletePlan(
        plan.target.label,
        found=f"{len(open_) + len(missing)} tensors undecided",
        expected="every target tensor settled",
        hint="see plan.why(name) for the alternatives and the rules that settle them, give a "
        "probe, or load with partial=True",
        problems=[*open_, *(f"{name}: not in the plan" for name in missing)],
    )


def apply(
    plan: Plan,
    source: Catalogue,
    read: Read,
    target: Catalogue,
    sink: Sink,
    *,
    partial: bool = False,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> Receipt:
    """Writes every graft into the sink and reads it back.

    **Arguments:**

    - `source`, `target`: the catalogues as they are now; the plan must still fit them.
    - `partial`: write what is settled and leave what is undecided as it is.
    - `progress`: called with each name and its bytes once it is written.
    - `journal`: remembers how to undo what was written, where the caller may still want to.

    **Raises** `IncompletePlan`, `ShapeMismatch`, `StalePlan` before the first write;
    `TransferError` after it, with the model as it was before.
    """
    if not partial:
        ready(plan)
    plan.check(source, target)
    writes = [graft for graft in plan.grafts.values() if graft.written]
    log = Journal(sink) if journal is None else journal
    try:
        sure, renewed = _sure(writes, read, sink) if journal is None else ({}, [])
        at_hand = {name: array for name, (array, _) in sure.items()}
        at_hand |= {one.name: one.array for one in renewed}
        others = [graft for graft in writes if graft.target not in at_hand]
        found = _write(plan, others, read, sink, log, progress)
        _same(found)
        for name, array in at_hand.items():
            if progress:
                progress(name, array.nbytes)
    except BaseException as error:
        log.undo()
        if isinstance(error, RegraftError) or not isinstance(error, Exception):
            raise
        raise TransferError(
            plan.target.label,
            found=f"{type(error).__name__}: {error}"[:300],
            expected="every tensor written",
            hint="the model was put back as it was",
        ) from error
    try:
        replaced, first = renew_all(renewed)
    except BaseException:
        log.undo()
        raise
    if journal is None:
        log.close()
    try:
        copied, second = copy_all(list(sure.values()))
    except Exception as error:  # there is nothing that should
        raise TransferError(
            plan.target.label,
            found=f"{type(error).__name__}: {error}"[:300],
            expected="every tensor written",
            hint="some of these have their new values already: build the model again",
            problems=[*replaced, *sure],
        ) from error
    found |= replaced | dict(zip(sure, copied, strict=True))
    _same(found, "other programs change the file or the model meanwhile; build the model again")
    if interrupt := first or second:
        raise interrupt
    known = {(remark.code, remark.where) for remark in plan.warnings}
    doubts = [doubt for graft in writes for doubt in _doubts(graft, found[graft.target].meant)]
    new = [remark for remark in doubts if (remark.code, remark.where) not in known]
    hashes = {graft.target: found[graft.target].held for graft in writes}
    return Receipt(plan, sink.model, hashes, (*plan.warnings, *new))


def _sure(
    grafts: Sequence[Graft], read: Read, sink: Sink
) -> tuple[dict[str, tuple[Array, Array]], list[Renewed]]:
    """Arrays and the memory they are to be copied to, or how their tensors take memory, where that
    is all there is to do: no operation, values that lie in memory or in a mapped file, and a place
    that takes them as they are."""
    plain = [graft for graft in grafts if not graft.ops]
    memories = {graft.target: sink.memory(graft.target) for graft in plain}
    overlaps = Overlaps(memory for memory in memories.values() if memory is not None)
    found: dict[str, tuple[Array, Array]] = {}
    renewed: list[Renewed] = []
    for graft in plain:
        name, memory = graft.target, memories[graft.target]
        if len(graft.sources) != 1:
            continue
        renewal = sink.renewal(name) if memory is None else None
        if memory is None and renewal is None:
            continue
        array = read(graft.sources[0], None)
        if not stays(array) or not array.flags.c_contiguous or overlaps(array):
            continue
        if memory is not None and _alike(array, memory):
            found[name] = array, memory
        elif renewal is not None and array.nbytes and _alike(array, sink.look(name)):
            renewed.append(Renewed(name, array, renewal))
    # Of a small model former values can be kept as of any other.
    return found, renewed if sum(one.array.nbytes for one in renewed) > BUDGET else []


def _alike(array: Array, memory: Array) -> bool:
    return array.dtype == memory.dtype and array.shape == memory.shape


def _write(
    plan: Plan,
    grafts: Sequence[Graft],
    read: Read,
    sink: Sink,
    journal: Journal,
    progress: Progress | None,
) -> dict[str, Copied]:
    """Writes tensors one by one, while the next one's former values are being kept, and those
    before are being hashed."""
    found: dict[str, Copied] = {}
    with Surveys() as surveys:
        for graft, following in zip_longest(grafts, grafts[1:]):
            name = graft.target
            array = make(plan, graft, read, sink.read)
            journal.remember(name)
            if following is not None:
                journal.remember(following.target)
            journal.ready(name)
            memory = sink.memory(name)
            if sink.adopts(name, array):
                # The tensor lies in the file: what is there is what was meant.
                sink.write(name, array)
                surveys.once(name, sink.look(name))
            elif memory is not None and _alike(array, memory):
                found[name] = copy(array, memory)
            else:
                meant = surveys.begin(array)
                sink.write(name, array)
                surveys.end(name, meant, sink.look(name))
            if progress:
                progress(name, array.nbytes)
        sink.finish()
        found |= surveys.found()
    return found


def _same(
    found: dict[str, Copied],
    hint: str = "the model changes what it is given; the model was put back as it was",
) -> None:
    wrong = [name for name, copied in found.items() if copied.held != copied.meant.digest]
    if wrong:
        raise TransferError(
            wrong[0],
            found="other values than were written",
            expected="the same bytes back",
            hint=hint,
            problems=wrong,
        )


def _doubts(graft: Graft, seen: Survey) -> list[Remark]:
    """NaN and Inf, seen on the way, under the source's name."""
    size = math.prod(graft.spec.shape)
    text = f"{seen.odd} of {size} values are NaN or Inf"
    return [Remark("not-finite", (*graft.sources, graft.target)[0], text)] if seen.odd else []


def verified(receipt: Receipt) -> Receipt:
    """The receipt with its outputs compared and found equal."""
    return replace(receipt, verified=True)
