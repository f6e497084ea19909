"""Plans: what goes where, through which operations, on what evidence. Values without tensors.

A Plan knows the shapes of both sides, so that it can be checked, inverted and turned into a
script without either file. It is saved as JSON that a person can read, edit and review.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from regraft import markup, operations
from regraft.atomic import replacing
from regraft.errors import PlanError, ShapeMismatch, StalePlan
from regraft.operations import AnyOp, Keep, Op
from regraft.rules import Rule
from regraft.tensors import Catalogue

SCHEMA_VERSION = 1
_NUMBER = re.compile(r"\d+")
# Up to so many numbers in a row are written one by one; numbers of more digits always are.
_APART, _DIGITS = 2, 9
Kind = Literal["copy", "convert", "adapt", "fresh"]


def kind_of(ops: Sequence[Op], *, parts: bool = False) -> Kind:
    """The kind of a graft that goes through these operations.

    `parts`: what slices drop is known to be used elsewhere (one of a fused q, k and v).
    """
    if not parts and any(op.adapts for op in ops):
        return "adapt"
    return "convert" if ops else "copy"


class Evidence(msgspec.Struct, frozen=True):
    """One reason for a pairing. `weight` is what it added to the score; `text` is for people."""

    kind: Literal[
        "rule", "names", "numbers", "order", "tree", "attachment", "dataflow", "shape", "role",
        "values", "rewrite", "probe",
    ]  # fmt: skip
    weight: float
    text: str


class Spec(msgspec.Struct, frozen=True):
    """Shape and dtype of a tensor that a plan speaks of."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class Graft(msgspec.Struct, frozen=True):
    """One target tensor, the source tensors it is made of, how, and why.

    `kind`: `copy` (the same bytes), `convert` (the same values in another layout, dtype or
    grouping, or merged from the parts they were stored in), `adapt` (values changed or dropped:
    resized, sliced, some of them the model's own), `fresh` (the model keeps the values it was made
    with). A `convert` without sources is a constant (the zero bias of a layer that has none in the
    source). `counter` marks tensors that no output depends on (`num_batches_tracked`): they are
    never worth a word and not listed as fresh.
    """

    target: str
    spec: Spec
    kind: Kind
    sources: tuple[str, ...] = ()
    ops: tuple[AnyOp, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    counter: bool = False

    @property
    def written(self) -> bool:
        """Whether a value is made for it."""
        return self.kind != "fresh"

    @property
    def keeps(self) -> bool:
        """Whether some entries stay as the target has them, so that a live target is needed."""
        return any(isinstance(op, Keep) for op in self.ops)


class Alternative(msgspec.Struct, frozen=True):
    """One way in which an undecided target could be made, and the rule that would choose it."""

    sources: tuple[str, ...]
    ops: tuple[AnyOp, ...]
    score: float
    rule: str
    kind: Kind = "fresh"


class Undecided(msgspec.Struct, frozen=True):
    """A target tensor whose pairing is open. `group` joins those that one answer settles."""

    spec: Spec
    reason: str
    alternatives: tuple[Alternative, ...] = ()
    group: str = ""


class Remark(msgspec.Struct, frozen=True):
    """A warning or a note: a stable code, the tensor or place it is about, and a sentence."""

    code: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.code}: {self.where}: {self.text}"


class Side(msgspec.Struct, frozen=True):
    """Source or target as the plan saw it."""

    label: str
    framework: str
    container: str
    tensors: dict[str, Spec]

    @classmethod
    def of(cls, catalogue: Catalogue) -> Side:
        tensors = {t.name: Spec(t.shape, t.dtype) for t in catalogue.values()}
        return cls(catalogue.label, catalogue.framework, catalogue.container, tensors)


class Summary(msgspec.Struct, frozen=True):
    """A `{i}` rule that sums up `count` grafts of one kind and one chain of operations."""

    source: str
    target: str
    kind: Kind
    ops: tuple[AnyOp, ...]
    count: int


class Plan(msgspec.Struct, frozen=True):
    """All Grafts, what is unused, what is undecided, and the rules that sum it up.

    `complete` is True when every target tensor is settled. `undecided` maps target names to
    what is open about them; `warnings` are reasons to doubt, `notes` harmless remarks.
    """

    source: Side
    target: Side
    grafts: dict[str, Graft]
    unused: tuple[str, ...] = ()
    undecided: dict[str, Undecided] = {}
    warnings: tuple[Remark, ...] = ()
    notes: tuple[Remark, ...] = ()
    summary: tuple[Summary, ...] = ()
    rules: tuple[Rule, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def complete(self) -> bool:
        """Whether every target tensor is settled and nothing is undecided."""
        return not self.undecided and self.grafts.keys() == self.target.tensors.keys()

    @property
    def fresh(self) -> list[str]:
        """Target tensors that keep the model's own values, counters left out."""
        return [g.target for g in self.grafts.values() if g.kind == "fresh" and not g.counter]

    @property
    def adapted(self) -> list[str]:
        """Target tensors whose values are not all, or not only, those of the source."""
        return [g.target for g in self.grafts.values() if g.kind == "adapt"]

    @property
    def used(self) -> list[str]:
        """Source tensors that some graft reads, in the source's order."""
        read = {name for graft in self.grafts.values() for name in graft.sources}
        return [name for name in self.source.tensors if name in read]

    def why(self, target: str) -> str:
        """The evidence for one target tensor, or what is open about it, in words.

        **Raises** `PlanError` where the target has no such tensor.
        """
        if target in self.grafts:
            graft = self.grafts[target]
            rows = [f"{target}  {graft.spec}  {graft.kind}"]
            rows += [f"  from  {name}  {self.source.tensors[name]}" for name in graft.sources]
            rows += [f"  op    {op}" for op in graft.ops]
            rows += [f"  {e.weight:+.2f} {e.kind}: {e.text}" for e in graft.evidence]
            return "\n".join(rows)
        if target in self.undecided:
            open_ = self.undecided[target]
            rows = [f"{target}  {open_.spec}  undecided: {open_.reason}"]
            for alternative in open_.alternatives:
                ops = "".join(f", {op}" for op in alternative.ops)
                rows.append(f"  {alternative.score:+.2f} {' + '.join(alternative.sources)}{ops}")
                rows += [f"        {line}" for line in alternative.rule.splitlines()]
            return "\n".join(rows)
        raise PlanError(target, found="no such tensor", expected=f"one of {self.target.label}")

    def check(self, source: Catalogue | None = None, target: Catalogue | None = None) -> None:
        """Checks every graft's shapes, and that both sides still are what was planned for.

        **Raises** `ShapeMismatch` or `StalePlan`, each with all findings.
        """
        problems: list[str] = []
        for graft in self.grafts.values():
            if not graft.written:
                continue
            try:
                made = operations.infer(graft.ops, self.shapes_of(graft))
            except (ShapeMismatch, KeyError) as error:
                problems.append(f"{graft.target}: {error}")
                continue
            if made != graft.spec.shape:
                problems.append(f"{graft.target}: ops make {made}, the model has {graft.spec}")
        if problems:
            raise ShapeMismatch(
                self.target.label,
                found=f"{len(problems)} grafts that do not fit",
                expected="operations that make the target's shapes",
                hint="correct the ops of these grafts, or plan again",
                problems=problems,
            )
        read = set(self.used)
        sources = {name: spec for name, spec in self.source.tensors.items() if name in read}
        _same(self.source, sources, source, "source")
        _same(self.target, self.target.tensors, target, "target")

    def shapes_of(self, graft: Graft) -> tuple[tuple[int, ...], ...]:
        """Shapes of the source tensors of a graft."""
        return tuple(self.source.tensors[name].shape for name in graft.sources)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as indented JSON, whole or not at all."""
        with replacing(Path(path)) as file:
            file.write(self.encode())

    def encode(self) -> bytes:
        """The JSON that `save` writes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads a plan. **Raises** `PlanError` where the file is none of ours."""
        try:
            return cls.decode(Path(path).read_bytes(), str(path))
        except OSError as error:
            raise PlanError(
                str(path), found=f"{error.strerror}", expected="a plan saved by plan.save"
            ) from error

    @classmethod
    def decode(cls, data: bytes, label: str) -> Plan:
        """A plan from its JSON. **Raises** `PlanError` where it is none."""
        try:
            plan = msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise PlanError(
                label, found=str(error), expected="a plan saved by plan.save"
            ) from error
        if plan.schema_version != SCHEMA_VERSION:
            raise PlanError(
                label,
                found=f"schema_version {plan.schema_version}",
                expected=f"{SCHEMA_VERSION}",
                hint="plan again with this version of regraft",
            )
        return plan

    def inverse(self) -> Plan:
        """The plan back: from the target's tensors to the source's.

        A source tensor of which values were lost, or which was not used, is `fresh` there.
        """
        from regraft.inverses import way_back

        grafts = {name: way_back(self, name) for name in self.source.tensors}
        read = {name for graft in grafts.values() for name in graft.sources}
        unused = (g.target for g in self.grafts.values() if not g.counter)
        return Plan(
            source=self.target,
            target=self.source,
            grafts=grafts,
            unused=tuple(name for name in unused if name not in read),
        )

    def for_target(self, larger: Any, source: Any = None) -> Plan:
        """The plan for a larger model of the same family: more layers, wider ones.

        **Arguments:**

        - `larger`: a live model or a Catalogue, whose tensors are named as this plan's target.
        - `source`: the larger source (a Checkpoint, a Catalogue, a live model), to check at once
          that it has the tensors that the plan expects; otherwise `apply` does.

        **Raises** `PlanError`, with all findings, where names and sizes do not tell (heads that are
        interleaved, resized tables): plan for the larger source itself then; `StalePlan` where
        `source` has other tensors.
        """
        from regraft.scaling import scaled

        return scaled(self, catalogue_of(larger), None if source is None else catalogue_of(source))

    def to_key_mapping(self) -> dict[str, str]:
        """The regular expressions that transformers' `from_pretrained(key_mapping=…)` takes.

        **Raises** `PlanError` where the plan does more than rename (and cast), or where expressions
        that are applied one after another would mix names up.
        """
        from regraft.key_mappings import key_mapping

        return key_mapping(self)

    def to_python(self) -> str:
        """A stand-alone script that does the conversion with numpy and without regraft."""
        from regraft.scripts import conversion_script

        return conversion_script(self)

    def __str__(self) -> str:
        return "\n".join(_rows(self))

    def __repr__(self) -> str:
        return f"<Plan {self.source.label} → {self.target.label}: {_counts(self)}>"

    def _repr_html_(self) -> str:
        caption = f"{self.source.label} → {self.target.label}: {_counts(self)}"
        state = "complete" if self.complete else "not complete"
        rows = list(_cells(self))
        head = ("kind", "target", "source", "how")
        return markup.table(f"{caption}; {state}", head, rows, len(rows))

    def to_json(self) -> dict[str, Any]:
        """The plan as plain Python values, the same as `save` writes."""
        return msgspec.to_builtins(self)


def _only_catalogues(given: Any) -> Catalogue:
    if isinstance(given, Catalogue):
        return given
    raise PlanError(type(given).__name__, found="no Catalogue", expected="a Catalogue")


# Plans know no framework and no file: the wiring room says what the tensors of a live model are.
catalogue_of: Callable[[Any], Catalogue] = _only_catalogues


def _same(planned: Side, tensors: Mapping[str, Spec], present: Catalogue | None, what: str) -> None:
    if present is None:
        return
    problems = [
        f"{name}: planned for {spec}, found {found and Spec(found.shape, found.dtype)}"
        for name, spec in tensors.items()
        if (found := present.get(name)) is None or Spec(found.shape, found.dtype) != spec
    ]
    if what == "target":
        problems += [f"{name}: not in the plan" for name in present if name not in tensors]
    if problems:
        raise StalePlan(
            f"the plan's {what}",
            found=present.label,
            expected=f"the tensors of {planned.label} as they were planned for",
            hint="plan again for this pair",
            problems=problems,
        )


def _counts(plan: Plan) -> str:
    kinds = ("copy", "convert", "adapt")
    counts = {kind: sum(g.kind == kind for g in plan.grafts.values()) for kind in kinds}
    counts |= {
        "fresh": len(plan.fresh),
        "undecided": len(plan.undecided),
        "unused": len(plan.unused),
    }
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "empty"


def _folded(what: str, items: Iterable[tuple[str, Spec, str]]) -> Iterable[str]:
    """A line for each tensor; those that differ by numbers only share one."""
    groups: dict[tuple[str, ...], list[tuple[str, Spec, str]]] = {}
    for item in items:
        name, spec, text = item
        key = _NUMBER.sub("#", name), str(spec), _NUMBER.sub("#", text)
        groups.setdefault(key, []).append(item)
    for members in groups.values():
        _, spec, text = members[0]
        names = _with_holes([member[0] for member in members])
        times = f" × {len(members)}" if len(members) > 1 else ""
        yield f"  {what:<10} {names}  {spec}{times}  {text}".rstrip()


def _with_holes(names: Sequence[str]) -> str:
    """Names that differ by numbers only as one: `blocks.{3,4}.norm.weight`, `blocks.{0…11}.…`."""
    columns = zip(*(_NUMBER.findall(name) for name in names), strict=True)
    numbers = iter([_values(sorted(set(column), key=lambda n: (len(n), n))) for column in columns])
    return _NUMBER.sub(lambda _: next(numbers), names[0])


def _values(numbers: Sequence[str]) -> str:
    if len(numbers) == 1:
        return numbers[0]
    first, last = numbers[0], numbers[-1]
    span = int(last) - int(first) if len(last) <= _DIGITS else -1
    if len(numbers) > _APART and span == len(numbers) - 1:
        return f"{{{first}…{last}}}"
    return f"{{{','.join(numbers)}}}"


def _cells(plan: Plan) -> Iterable[tuple[object, ...]]:
    """The plan as rows of a table, what a person has to look at first."""
    for remark in plan.warnings:
        yield "warning", remark.where, remark.code, remark.text
    for name, open_ in plan.undecided.items():
        yield "undecided", name, "", open_.reason
    for name in plan.fresh:
        yield "fresh", name, "", "; ".join(e.text for e in plan.grafts[name].evidence)
    for name in plan.unused:
        yield "unused", "", name, ""
    for rule in plan.summary:
        ops = ", ".join(map(str, rule.ops))
        yield rule.kind, rule.target, rule.source, f"{ops} × {rule.count}" if ops else rule.count


def _rows(plan: Plan) -> Iterable[str]:
    yield f"{plan.source.label} → {plan.target.label}: {_counts(plan)}"
    width = max((len(s.source) for s in plan.summary), default=0)
    for rule in plan.summary:
        ops = "".join(f", {op}" for op in rule.ops)
        times = f"  × {rule.count}" if rule.count > 1 else ""
        yield f"  {rule.source:<{width}} → {rule.target}  {rule.kind}{ops}{times}"
    fresh = (plan.grafts[name] for name in plan.fresh)
    yield from _folded(
        "fresh", ((g.target, g.spec, "; ".join(e.text for e in g.evidence)) for g in fresh)
    )
    yield from _folded("undecided", ((n, u.spec, u.reason) for n, u in plan.undecided.items()))
    yield from _folded("unused", ((n, plan.source.tensors[n], "") for n in plan.unused))
    for remark in plan.warnings:
        yield f"  warning    {remark}"
    yield (
        "complete"
        if plan.complete
        else "not complete: `why` lists alternatives and the rules to settle them"
    )
