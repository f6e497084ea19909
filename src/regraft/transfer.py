"""Carries a plan out: streams tensors from a reader through operations into a sink.

Nothing is written before the plan is complete and every shape is checked. What was there before
is kept until the end, so that a failure half-way leaves the model as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import xxhash

from regraft import markup, operations
from regraft.errors import IncompletePlan, RegraftError, TransferError
from regraft.plans import Graft, Plan, Remark
from regraft.tensors import Catalogue, Read, Sink
from regraft.values import bits, not_finite

if TYPE_CHECKING:
    from regraft.tensors import Array

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
    - `source_hash`: sha256 of the source file, `""` where the source is no file.
    - `parent`: the lineage that the source file itself held, as JSON, `""` for none.
    """

    plan: Plan = field(repr=False)
    model: object = field(repr=False)
    hashes: dict[str, str] = field(repr=False)
    warnings: tuple[Remark, ...] = ()
    verified: bool = False
    source_hash: str = ""
    parent: str = field(default="", repr=False)

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


def stream(plan: Plan, read: Read, own: Own | None = None) -> Iterator[tuple[Graft, Array]]:
    """Each graft that is written with its finished array; one at a time, slices pushed down."""
    for graft in plan.grafts.values():
        if graft.written:
            yield graft, make(plan, graft, read, own)


def make(plan: Plan, graft: Graft, read: Read, own: Own | None = None) -> Array:
    """The target's array of one graft, in the target's shape and dtype.

    `own` gives the target's values where some of them stay; **raises** `TransferError` where it
    is needed and not there.
    """
    ops, needed = operations.push_down(graft.ops, plan.shapes_of(graft))
    arrays = [read(name, part) for name, part in zip(graft.sources, needed, strict=True)]
    return operations.run(ops, arrays, own(graft.target) if own and graft.keeps else None)


def fingerprint(array: Array) -> str:
    """xxh3-128 of the values in row-major order."""
    return xxhash.xxh3_128_hexdigest(bits(array).data)


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
    journal = Journal(sink) if journal is None else journal
    hashes: dict[str, str] = {}
    doubts: list[Remark] = []
    try:
        for graft, array in stream(plan, read, sink.read):
            doubts += _doubts(graft, array)
            journal.remember(graft.target)
            sink.write(graft.target, array)
            hashes[graft.target] = _read_back(graft.target, array, sink)
            if progress:
                progress(graft.target, array.nbytes)
        sink.finish()
    except BaseException as error:
        journal.undo()
        if isinstance(error, RegraftError) or not isinstance(error, Exception):
            raise
        raise TransferError(
            plan.target.label,
            found=f"{type(error).__name__}: {error}"[:300],
            expected="every tensor written",
            hint="the model was put back as it was",
        ) from error
    known = {(remark.code, remark.where) for remark in plan.warnings}
    new = [remark for remark in doubts if (remark.code, remark.where) not in known]
    return Receipt(plan, sink.model, hashes, (*plan.warnings, *new))


class Journal:
    """How to put tensors back as they were before they were written."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._undo: dict[str, Callable[[], None]] = {}

    def remember(self, name: str) -> None:
        """To be called before a tensor is written; what it was at the first call counts."""
        if name not in self._undo:
            self._undo[name] = self._sink.undo(name)

    def undo(self) -> None:
        """Puts everything back, last things first.

        **Raises** `TransferError`, once the rest is as it was, for what cannot be put back.
        """
        problems: list[str] = []
        while self._undo:
            name, put_back = self._undo.popitem()
            try:
                put_back()
            except Exception as error:  # the framework's own: out of memory, a lost device
                problems.append(f"{name}: {type(error).__name__}: {error}"[:300])
        self._sink.finish()
        if problems:
            raise TransferError(
                "the model",
                found=f"{len(problems)} tensors that could not be put back as they were",
                expected="the values from before",
                hint="build the model again",
                problems=problems,
            )


@contextmanager
def kept(sink: Sink) -> Generator[Journal]:
    """Puts what is written under the journal back at the end: for trying a plan out."""
    journal = Journal(sink)
    try:
        yield journal
    finally:
        journal.undo()


def _read_back(name: str, array: Array, sink: Sink) -> str:
    held, meant = fingerprint(sink.read(name)), fingerprint(array)
    if held != meant:
        raise TransferError(
            name,
            found="other values than were written",
            expected="the same bytes back",
            hint="the model changes what it is given; the model was put back as it was",
        )
    return held


def _doubts(graft: Graft, array: Array) -> list[Remark]:
    """NaN and Inf, seen on the way, under the source's name."""
    count = not_finite(array)
    text = f"{count} of {array.size} values are NaN or Inf"
    return [Remark("not-finite", (*graft.sources, graft.target)[0], text)] if count else []


def verified(receipt: Receipt) -> Receipt:
    """The receipt with its outputs compared and found equal."""
    return replace(receipt, verified=True)
