"""A plan learnt on a small model, for a larger one of the same family.

Every graft becomes a form: names with holes for their numbers, and operations. A tensor of the
larger model takes the form of the small one's that is called alike, and its numbers say which
sources it has (the same number, another by a constant, or a number that never changes). Going back
through the operations from the larger shape gives the sources' shapes; parts of a fused tensor keep
their shares of it. What sizes alone do not tell (heads, resized tables, numbers that two others
make) is refused: then the larger source must be planned for itself.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from regraft.errors import PlanError
from regraft.operations import (
    AnyOp,
    Blocks,
    Cast,
    Concat,
    Flip,
    Reshape,
    Shape,
    Shapes,
    Slice,
    Stack,
    Transpose,
    Unstack,
)
from regraft.plans import Graft, Plan, Remark, Side, Spec
from regraft.tensors import Catalogue

_NUMBER = re.compile(r"\d{1,15}")
_SHOWN = 20


class _Slot(NamedTuple):
    """A number in a source's name: that of the target at `place`, plus `shift`; or, where `place`
    is -1, always `shift`."""

    place: int
    shift: int


class _Form(NamedTuple):
    """Grafts that differ by numbers and sizes only: the first of them, and for each of its sources
    the name without numbers and where each number comes from."""

    graft: Graft
    sources: tuple[tuple[str, tuple[_Slot, ...]], ...]


class _Unknown(Exception):
    """What the small plan does not tell of the larger model, in words."""


def scaled(plan: Plan, target: Catalogue, source: Catalogue | None = None) -> Plan:
    """See `Plan.for_target`."""
    forms = _forms(plan.grafts.values())
    counts: dict[str, int] = defaultdict(int)  # how many layers of a family there are
    for name in target:
        counts[_family(name)] += 1
    problems: list[str] = []
    grafts: dict[str, Graft] = {}
    specs: dict[str, Spec] = {}
    for info in target.values():
        try:
            form = _form_of(plan, forms, info.name)
            graft, shapes = _larger(plan, form, info.name, Spec(info.shape, info.dtype), counts)
        except _Unknown as error:
            problems.append(f"{info.name}: {error}")
            continue
        grafts[info.name] = graft
        for name, small, shape in zip(graft.sources, form.graft.sources, shapes, strict=True):
            spec = Spec(shape, plan.source.tensors[small].dtype)
            if specs.setdefault(name, spec) != spec:
                problems.append(f"{info.name}: {name} would be {spec} and {specs[name]}")
    if problems:
        raise PlanError(
            target.label,
            found=f"{len(problems)} tensors of which the plan does not tell the source",
            expected=f"a larger model of the family of {plan.target.label}",
            hint="plan for the larger source itself: rg.plan(source, model)",
            problems=problems[:_SHOWN],
        )
    text = "made from the plan for a smaller model; sources that it does not use are not listed"
    made = Plan(
        source=Side(f"{plan.source.label}, larger", plan.source.framework, "", specs),
        target=Side.of(target),
        grafts=grafts,
        notes=(Remark("for-target", target.label, text),),
    )
    made.check(source)
    return made


# Forms


def _forms(grafts: Iterable[Graft]) -> dict[str, list[_Form]]:
    """By the target's name without numbers."""
    groups: dict[tuple[object, ...], list[Graft]] = defaultdict(list)
    for graft in grafts:
        groups[_key(graft)].append(graft)
    forms: dict[str, list[_Form]] = defaultdict(list)
    for members in groups.values():
        first = members[0]
        sources = tuple(
            (_family(name), tuple(_slots(members, place)))
            for place, name in enumerate(first.sources)
        )
        forms[_family(first.target)].append(_Form(first, sources))
    return forms


def _key(graft: Graft) -> tuple[object, ...]:
    """Equal for grafts of one form."""
    families = (_family(graft.target), *map(_family, graft.sources))
    return families, tuple(type(op) for op in graft.ops), graft.kind


def _family(name: str) -> str:
    return _NUMBER.sub("#", name)


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(map(int, _NUMBER.findall(name)))


def _slots(members: Sequence[Graft], place: int) -> Iterator[_Slot]:
    """Where each number of the sources at `place` comes from."""
    ours = [_numbers(graft.sources[place]) for graft in members]
    theirs = [_numbers(graft.target) for graft in members]
    for slot, values in enumerate(zip(*ours, strict=True)):
        columns = list(zip(*theirs, strict=True))
        order = sorted(range(len(columns)), key=lambda k: k != slot)
        shifts = {k: {a - b for a, b in zip(values, columns[k], strict=True)} for k in order}
        same = [k for k in order if shifts[k] == {0}]
        other = [k for k in order if len(shifts[k]) == 1 and len(set(values)) > 1]
        if same:
            yield _Slot(same[0], 0)
        elif other:
            yield _Slot(other[0], shifts[other[0]].pop())
        elif len(set(values)) == 1:
            yield _Slot(-1, values[0])
        else:
            yield _Slot(-2, 0)  # no number of the target alone tells


def _form_of(plan: Plan, forms: Mapping[str, list[_Form]], name: str) -> _Form:
    candidates = forms.get(_family(name), [])
    own = plan.grafts.get(name)
    if own is not None and len(candidates) > 1:
        candidates = [form for form in candidates if _key(form.graft) == _key(own)]
    if not candidates:
        raise _Unknown("the plan has no tensor of such a name")
    if len(candidates) > 1:
        raise _Unknown(f"the plan treats tensors of such a name in {len(candidates)} ways")
    return candidates[0]


def _named(family: str, slots: Sequence[_Slot], numbers: Sequence[int]) -> str:
    if any(slot.place < -1 for slot in slots):
        raise _Unknown(f"the numbers of {family} follow from no number of the target alone")
    values = iter(s.shift + (numbers[s.place] if s.place >= 0 else 0) for s in slots)
    return re.sub("#", lambda _: str(next(values)), family)


# Shapes


def _larger(
    plan: Plan, form: _Form, name: str, spec: Spec, counts: Mapping[str, int]
) -> tuple[Graft, list[Shape]]:
    """The graft of a larger tensor and the shapes of its sources, by going back through the small
    graft's operations."""
    small = form.graft
    numbers = _numbers(name)
    sources = tuple(_named(family, slots, numbers) for family, slots in form.sources)
    stages: list[Shapes] = [plan.shapes_of(small)]
    if small.written:
        for op in small.ops:
            stages.append(op.infer(stages[-1]))
        if len(stages[-1][0]) != len(spec.shape):
            raise _Unknown(f"{len(spec.shape)} axes, where the small model has {small.spec}")
    large: list[Shape] = [spec.shape]
    ops: list[AnyOp] = []
    for op, before, after in zip(
        reversed(small.ops), reversed(stages[:-1]), reversed(stages[1:]), strict=True
    ):
        if isinstance(op, Unstack):
            op = _entry(op, small.target, numbers)
        large, op = _step_back(op, before, after, large, counts[_family(name)])
        ops.insert(0, op)
    kind, counter = small.kind, small.counter
    return Graft(name, spec, kind, sources, tuple(ops), small.evidence, counter), large


def _entry(op: Unstack, small: str, numbers: Sequence[int]) -> Unstack:
    """The entry that the larger tensor's number names, as the small one's did."""
    places = [place for place, number in enumerate(_numbers(small)) if number == op.index]
    if len(places) != 1:
        raise _Unknown(f"{op}, and no one number of {small} says so")
    return Unstack(op.axis, numbers[places[0]])


def _step_back(
    op: AnyOp, before: Shapes, after: Shapes, large: list[Shape], count: int
) -> tuple[list[Shape], AnyOp]:
    """The larger shapes before an operation, and the operation as it is for the larger tensors."""
    if isinstance(op, Transpose):
        place = [op.axes.index(i) for i in range(len(op.axes))]
        return [tuple(shape[p] for p in place) for shape in large], op
    if isinstance(op, (Flip, Cast, Blocks)) or [*after] == large:
        return ([*before] if [*after] == large else large), op
    (shape,) = large
    if isinstance(op, Reshape):
        return [_unreshaped(before[0], after[0], shape)], Reshape(shape)
    if isinstance(op, Slice):
        share = op.stop - op.start
        sizes = [_share(n, shape[op.axis], share) for n in (before[0][op.axis], op.start, op.stop)]
        return [_with(shape, op.axis, sizes[0])], Slice(op.axis, sizes[1], sizes[2])
    if isinstance(op, Unstack):
        return [(*shape[: op.axis], count, *shape[op.axis :])], op
    if isinstance(op, Concat):
        parts, total = [part[op.axis] for part in before], after[0][op.axis]
        return [_with(shape, op.axis, _share(n, shape[op.axis], total)) for n in parts], op
    if isinstance(op, Stack) and shape[op.axis] == len(before):
        return [(*shape[: op.axis], *shape[op.axis + 1 :])] * len(before), op
    raise _Unknown(f"sizes alone do not tell what {op} is for the larger model")


def _share(size: int, wanted: int, whole: int) -> int:
    """`size` of `whole`, where the whole is now as large as wanted."""
    found, rest = divmod(size * wanted, whole)
    if rest:
        raise _Unknown(f"{wanted} entries, where the small model's parts are {size} of {whole}")
    return found


def _with(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _unreshaped(before: Shape, after: Shape, large: Shape) -> Shape:
    """The larger shape before a reshape: runs of axes with equal products belong together; a run
    that was one axis before is the product, one that was several must be the same."""
    result: list[int] = []
    start = first = 0
    while start < len(before):
        stop, last = start + 1, first + 1
        while math.prod(before[start:stop]) != math.prod(after[first:last]):
            smaller = math.prod(before[start:stop]) < math.prod(after[first:last])
            stop, last = stop + smaller, last + (not smaller)
        wanted = large[first:last]
        if stop - start > 1 and wanted != after[first:last]:
            raise _Unknown(f"how {list(wanted)} are parted, as {list(before[start:stop])} were")
        result += [math.prod(wanted)] if stop - start == 1 else before[start:stop]
        start, first = stop, last
    return tuple(result)
