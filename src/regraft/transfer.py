"""Carries a plan out: streams tensors from a reader through operations into a sink.

Nothing is written before the plan is complete and every shape is checked. What was there before
is kept in a journal until the end, so that a failure half-way leaves the model as it was. Values
that are at hand and only need to be copied into the model's own memory come last: nothing can fail
any more, and neither memory nor time is spent on undoing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from regraft import operations
from regraft.copying import Copied, Overlaps, Surveys, copy, copy_all, survey
from regraft.errors import IncompletePlan, RegraftError, TransferError
from regraft.journal import BUDGET, Journal
from regraft.plans import Graft, Plan
from regraft.readiness import fill_counts, torn_apart
from regraft.receipts import Hashes, Receipt, doubts
from regraft.renewing import Renewed, renew_all
from regraft.sinks import Sink
from regraft.tensors import Catalogue, Read, stored_bytes
from regraft.values import stays

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

Progress = Callable[[str, int], None]
# A target's present values by name.
Own: TypeAlias = "Callable[[str], Array]"


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


def carried_out(plan: Plan, source: Catalogue) -> Plan:
    """The plan as it is carried out: it may have been made of another file of the same tensors, and
    what is made comes from this one."""
    if plan.source.label == source.label:
        return plan
    return msgspec.structs.replace(
        plan, source=msgspec.structs.replace(plan.source, label=source.label)
    )


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
    memories = {graft.target: sink.memory(graft.target) for graft in writes}
    torn = torn_apart(writes, source, target, memories)
    log = Journal(sink) if journal is None else journal
    try:
        if not partial:
            fill_counts(plan, target, sink, log)
        plain = [graft for graft in writes if not graft.ops and graft.target not in torn]
        quick = journal is None and not sink.settles
        sure, renewed = _sure(plain, read, sink, memories) if quick else ({}, [])
        at_hand = {name: array for name, (array, _) in sure.items()}
        at_hand |= {one.name: one.array for one in renewed}
        others = [graft for graft in writes if graft.target not in at_hand]
        found, lying = _write(plan, others, torn, read, sink, log, progress)
        _same(found)
        sink.settle()
        _look_again(found, torn, sink, _TORN)
        if sink.settles:
            looked = {name: survey(array) for name, array in lying.items()}
            found |= {name: Copied(meant, meant.digest) for name, meant in looked.items()}
            lying = {}
            _look_again(found, found, sink, _CHANGES)
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
    copied, second = _copy_last(plan, sure, replaced)
    found |= replaced | copied
    _same(found, "other programs change the file or the model meanwhile; build the model again")
    if interrupt := first or second:
        raise interrupt
    known = {(remark.code, remark.where) for remark in plan.warnings}
    seen = [(graft, found[graft.target].meant) for graft in writes if graft.target in found]
    told = [remark for graft, meant in seen for remark in doubts(graft, meant)]
    new = [remark for remark in told if (remark.code, remark.where) not in known]
    held = lying | {name: copied.held for name, copied in found.items()}
    hashes = Hashes({graft.target: held[graft.target] for graft in writes})
    made = carried_out(plan, source)
    return Receipt(made, sink.model, hashes, (*plan.warnings, *new))


def _copy_last(
    plan: Plan, sure: Mapping[str, tuple[Array, Array]], replaced: Iterable[str]
) -> tuple[dict[str, Copied], BaseException | None]:
    """Copies what is at hand; an interrupt waits and is returned. Nothing undoes it, and nothing
    should fail: what does is a `TransferError` that names what has new values already."""
    try:
        copied, interrupt = copy_all(list(sure.values()))
    except Exception as error:
        raise TransferError(
            plan.target.label,
            found=f"{type(error).__name__}: {error}"[:300],
            expected="every tensor written",
            hint="some of these have their new values already: build the model again",
            problems=[*replaced, *sure],
        ) from error
    return dict(zip(sure, copied, strict=True)), interrupt


def _sure(
    grafts: Sequence[Graft], read: Read, sink: Sink, memories: Mapping[str, Array | None]
) -> tuple[dict[str, tuple[Array, Array]], list[Renewed]]:
    """Arrays and the memory they are to be copied to, or how their tensors take memory, where that
    is all there is to do: no operation, values that lie in memory or in a mapped file, and a place
    that takes them as they are."""
    overlaps = Overlaps(memory for memory in memories.values() if memory is not None)
    # Of a small model former values can be kept as of any other.
    without = (graft.spec for graft in grafts if memories[graft.target] is None)
    large = sum(stored_bytes(math.prod(spec.shape), spec.dtype) for spec in without) > BUDGET
    found: dict[str, tuple[Array, Array]] = {}
    renewed: list[Renewed] = []
    for graft in grafts:
        name, memory = graft.target, memories[graft.target]
        if len(graft.sources) != 1:
            continue
        renewal = sink.renewal(name) if memory is None and large else None
        if memory is None and renewal is None:
            continue
        array = read(graft.sources[0], None)
        if not stays(array) or not array.flags.c_contiguous or overlaps(array):
            continue
        if memory is not None and _alike(array, memory):
            found[name] = array, memory
        elif renewal is not None and array.nbytes and _alike(array, sink.look(name)):
            renewed.append(Renewed(name, array, renewal))
    return found, renewed if sum(one.array.nbytes for one in renewed) > BUDGET else []


def _alike(array: Array, memory: Array) -> bool:
    return array.dtype == memory.dtype and array.shape == memory.shape


def _write(
    plan: Plan,
    grafts: Sequence[Graft],
    torn: Sequence[str],
    read: Read,
    sink: Sink,
    journal: Journal,
    progress: Progress | None,
) -> tuple[dict[str, Copied], dict[str, Array]]:
    """Writes tensors one by one, while the next one's former values are being kept, and those
    before are being hashed. Values of tensors that took the pages of the file come apart: what is
    there is what was meant."""
    found: dict[str, Copied] = {}
    lying: dict[str, Array] = {}
    with Surveys() as surveys:
        for graft, following in zip_longest(grafts, grafts[1:]):
            name = graft.target
            array = make(plan, graft, read, sink.read)
            journal.remember(name)
            if following is not None:
                journal.remember(following.target)
            journal.ready(name)
            memory = sink.memory(name)
            if name in torn:  # what is there is only looked at when all are written
                meant = survey(array)
                sink.write(name, array)
                found[name] = Copied(meant, meant.digest)
            elif sink.adopts(name, array):
                sink.write(name, array)
                lying[name] = array
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
    return found, lying


def _look_again(found: dict[str, Copied], names: Iterable[str], sink: Sink, hint: str) -> None:
    """Hashes tensors once more that later writes, or the model's own code, may have changed."""
    again = {name: survey(sink.look(name)).digest for name in names if name in found}
    _same({name: found[name]._replace(held=digest) for name, digest in again.items()}, hint)


_CHANGES = "the model changes what it is given; the model was put back as it was"
_TORN = (
    "the model keeps these in one memory, and the source has different values for them: leave all "
    "but one of the source's out (unused=[…]); the model was put back as it was"
)


def _same(found: dict[str, Copied], hint: str = _CHANGES) -> None:
    wrong = [name for name, copied in found.items() if copied.held != copied.meant.digest]
    if wrong:
        raise TransferError(
            wrong[0],
            found="other values than were written",
            expected="the same bytes back",
            hint=hint,
            problems=wrong,
        )
