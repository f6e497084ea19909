"""Settling what is undecided by running the target: the one choice whose outputs are right.

Questions that one convention answers change together. Those that compete for the same sources make
a cluster, whose answers are listed with no source used twice. Answers of all clusters are put
together by a beam search, the most plausible first: those in which containers keep together (where
`encoder.0` came from `reader.0`, `encoder.1` is not expected to come from `writer.1`), and then
those that pairing gave the higher scores.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import msgspec

from regraft.operations import Each, Slice, Unstack
from regraft.plans import Alternative, Evidence, Graft, Plan, Remark
from regraft.verification.comparison import Report

# Models are run at most this often to settle one plan.
RUNS = 128
# Answers of one cluster that are looked at; steps that listing them may take.
_ANSWERS, _STEPS = 256, 20_000
# How much closer to the expected outputs the best of several answers must be, if not exact.
_CLOSER, _ROUNDING = 3.0, 1e-12
Choice = dict[str, Alternative]


def settle(plan: Plan, run: Callable[[Plan], Report], *, runs: int = RUNS) -> Plan:
    """The plan with its open questions answered by the probe, where just one answer is right.

    **Arguments:**

    - `run`: loads a complete candidate plan, compares the outputs and puts the model back.
    - `runs`: how many candidates to try at most, the most plausible first.

    Of several answers that give the expected outputs the one is taken that is by far the closest.
    Where there is none, the plan is returned as it was, with a note that says so, and how many were
    tried.
    """
    if not plan.undecided or not all(u.alternatives for u in plan.undecided.values()):
        return plan
    candidates, exhausted = _candidates(plan, runs)
    right: list[tuple[float, Choice]] = []
    for choice in candidates:
        report = run(_with(plan, choice, ()))
        if report.equal:
            right.append((report.max_abs, choice))
    right.sort(key=lambda answer: answer[0])
    tried = f"{len(candidates)} {'possible' if exhausted else 'most plausible'} answers"
    if not right:
        more = "" if exhausted else "; there are more: settle some by rules first"
        return _noted(plan, f"none of {tried} gives the expected outputs{more}")
    (error, best), *others = right
    text = f"alone of {tried} gives the expected outputs"
    if others:
        # Such as two epsilons: both within the tolerance, one of them to the last digit.
        if others[0][0] < _CLOSER * max(error, _ROUNDING):
            return _noted(plan, "several answers give the expected outputs: it cannot tell them")
        text = f"of {tried} by far the closest: off by {error:.1g}, the next by {others[0][0]:.1g}"
    return _with(plan, best, (Evidence("probe", 5.0, text),))


class _State(NamedTuple):
    """Answers to some clusters. `home`: for each container of the target where its tensors come
    from; `parted`: how often that was contradicted, and a source used again."""

    parted: int
    loss: float
    choice: Choice
    home: Mapping[str, str]


def _candidates(plan: Plan, most: int) -> tuple[list[Choice], bool]:
    """The most plausible answers to everything, and whether these are all there are."""
    states = [_State(0, 0.0, {}, {})]
    taken = {use for graft in plan.grafts.values() for use in _uses(graft)}
    exhausted = True
    for answers, whole in _clusters(plan):
        exhausted &= whole
        longer = (_joined(state, answer, taken) for state in states for answer in answers)
        kept = heapq.nsmallest(most + 1, longer, key=lambda s: (s.parted, s.loss))
        exhausted &= len(kept) <= most and len(states) * len(answers) <= most
        states = kept[:most]
    return [state.choice for state in states], exhausted


def _joined(state: _State, answer: Choice, taken: set[object]) -> _State:
    home = dict(state.home)
    parted = state.parted
    for name, way in answer.items():
        parted += not taken.isdisjoint(_uses(way))
        for target, source in _containers(name, way):
            parted += home.setdefault(target, source) != source
    loss = state.loss - sum(way.score for way in answer.values())
    return _State(parted, loss, state.choice | answer, home)


def _containers(name: str, way: Alternative) -> Iterator[tuple[str, str]]:
    """The containers of a target tensor and of its first source, level by level from within."""
    if not way.sources:
        return
    ours, theirs = way.sources[0].replace("/", ".").split("."), name.replace("/", ".").split(".")
    for depth in range(2, min(len(ours), len(theirs))):
        yield ".".join(theirs[:-depth]), ".".join(ours[:-depth])


def _clusters(plan: Plan) -> Iterator[tuple[list[Choice], bool]]:
    """Answers to the questions that compete for sources, and whether these are all there are."""
    questions = list(_questions(plan))
    parent = list(range(len(questions)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    first: dict[object, int] = {}
    for number, rows in enumerate(questions):
        for use in {use for row in rows for way in row.values() for use in _uses(way)}:
            parent[root(number)] = root(first.setdefault(use, number))
    members: dict[int, list[list[Choice]]] = defaultdict(list)
    for number, rows in enumerate(questions):
        members[root(number)].append(rows)
    for cluster in members.values():
        found = list(islice(_answers(cluster), _ANSWERS + 1))
        yield found[:_ANSWERS], len(found) <= _ANSWERS


def _answers(cluster: Sequence[list[Choice]]) -> Iterator[Choice]:
    """Answers to all questions of a cluster that use no source in two ways."""
    steps = 0
    todo: list[tuple[Choice, set[object], int]] = [({}, set(), 0)]
    while todo and steps < _STEPS:
        choice, used, number = todo.pop()
        if number == len(cluster):
            yield choice
            continue
        for row in reversed(cluster[number]):
            steps += 1
            uses = [use for way in row.values() for use in _uses(way)]
            if len(uses) == len(set(uses)) and used.isdisjoint(uses):
                todo.append((choice | row, used | set(uses), number + 1))


def _questions(plan: Plan) -> Iterator[list[Choice]]:
    """The ways of each question: of a whole group, where its members have as many alternatives,
    so that one convention holds for all of them; of each tensor otherwise."""
    groups: dict[str, list[str]] = {}
    for name, open_ in plan.undecided.items():
        groups.setdefault(open_.group or name, []).append(name)
    for names in groups.values():
        ways = [plan.undecided[name].alternatives for name in names]
        if len({len(several) for several in ways}) == 1:
            yield [dict(zip(names, row, strict=True)) for row in zip(*ways, strict=True)]
        else:
            yield from ([{name: way} for way in several] for name, several in
                        zip(names, ways, strict=True))  # fmt: skip


def _uses(way: Alternative | Graft) -> Iterator[object]:
    """The source that a way takes for itself, or the part of it. What is merged of several tensors
    (a norm folded into a kernel and into a bias) leaves them to others."""
    if len(way.sources) == 1:
        parts = any(isinstance(op, (Slice, Unstack, Each)) for op in way.ops)
        yield (way.sources[0], way.ops) if parts else way.sources[0]


def _with(plan: Plan, choice: Choice, evidence: tuple[Evidence, ...]) -> Plan:
    made = {name: _graft(plan, name, way, evidence) for name, way in choice.items()}
    grafts = {n: made.get(n) or plan.grafts[n] for n in plan.target.tensors}
    used = {source for way in choice.values() for source in way.sources}
    return msgspec.structs.replace(
        plan,
        grafts=grafts,
        undecided={},
        unused=tuple(name for name in plan.unused if name not in used),
    )


def _graft(plan: Plan, name: str, way: Alternative, evidence: tuple[Evidence, ...]) -> Graft:
    return Graft(name, plan.undecided[name].spec, way.kind, way.sources, way.ops, evidence)


def _noted(plan: Plan, text: str) -> Plan:
    return msgspec.structs.replace(plan, notes=(*plan.notes, Remark("probe", "undecided", text)))
