"""Settling what is undecided by running the target: the one choice whose outputs are right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, product

import msgspec

from regraft.operations import Each, Slice, Unstack
from regraft.plans import Alternative, Evidence, Graft, Plan, Remark
from regraft.verification.comparison import Report

# Models are run at most this often to settle one plan.
RUNS = 128
Choice = dict[str, Alternative]


def settle(plan: Plan, run: Callable[[Plan], Report], *, runs: int = RUNS) -> Plan:
    """The plan with its open questions answered by the probe, where just one answer is right.

    **Arguments:**

    - `run`: loads a complete candidate plan, compares the outputs and puts the model back.
    - `runs`: how many candidates to try at most.

    Where none or several answers give the expected outputs, or there are more candidates than
    runs, the plan is returned as it was, with a note that says so.
    """
    if not plan.undecided or not all(u.alternatives for u in plan.undecided.values()):
        return plan
    candidates = list(islice(_choices(plan), runs + 1))
    if len(candidates) > runs:
        return _noted(plan, f"more than {runs} combinations are open: settle some by rules first")
    right: list[Choice] = []
    for choice in candidates:
        if run(_with(plan, choice, ())).equal:
            right.append(choice)
        if len(right) > 1:
            return _noted(plan, "several answers give the expected outputs: it cannot tell them")
    if not right:
        return _noted(plan, f"none of {len(candidates)} answers gives the expected outputs")
    says = Evidence(
        "probe", 5.0, f"alone of {len(candidates)} possible answers gives the expected outputs"
    )
    return _with(plan, right[0], (says,))


def _choices(plan: Plan) -> Iterator[Choice]:
    """Combinations that use no source tensor in two ways, by group; most likely ones first."""
    groups: dict[str, list[str]] = {}
    for name, open_ in plan.undecided.items():
        groups.setdefault(open_.group or name, []).append(name)
    taken = {use for graft in plan.grafts.values() for use in _uses(graft)}
    for parts in product(*(list(_group(plan, names)) for names in groups.values())):
        choice = {name: way for part in parts for name, way in part.items()}
        used = [use for way in choice.values() for use in _uses(way)]
        if len(used) == len(set(used)) and not taken & set(used):
            yield choice


def _uses(way: Alternative | Graft) -> Iterator[object]:
    """What a way takes of its sources: whole tensors, or parts that leave the rest to others."""
    parts = any(isinstance(op, (Slice, Unstack, Each)) for op in way.ops)
    yield from ((name, way.ops) if parts else name for name in way.sources)


def _group(plan: Plan, names: list[str]) -> Iterator[Choice]:
    """One convention holds for a whole group where its members have as many alternatives."""
    ways = [plan.undecided[name].alternatives for name in names]
    together = len({len(w) for w in ways}) == 1
    for row in zip(*ways, strict=True) if together else product(*ways):
        yield dict(zip(names, row, strict=True))


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
