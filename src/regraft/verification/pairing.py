"""Which module of the target is which of the source.

A module that holds tensors is the one that its tensors come from in the plan. A container is the
one that holds the same of them. What holds no tensors (activations, pools) is found during a run,
by its kind and by what goes into it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from regraft.operations import Cast, Reshape, Transpose
from regraft.plans import Plan
from regraft.verification.traces import Trace

_PLAIN = (Cast, Reshape, Transpose)


@dataclass(frozen=True)
class Pair:
    """The source modules of a target module. `strict`: its results have to be the source's."""

    sources: tuple[str, ...]
    strict: bool


@dataclass
class Pairs:
    """Pairs by the target's path. `free`: source modules that no plan speaks of."""

    by_target: dict[str, Pair]
    separators: tuple[str, str]
    free: set[str] = field(default_factory=set[str])

    def get(self, path: str) -> Pair | None:
        return self.by_target.get(path)


def pair(
    plan: Plan | None,
    owners: tuple[Callable[[str], str], Callable[[str], str]],
    trace: Trace,
    called: Sequence[str],
    separators: tuple[str, str],
) -> Pairs:
    """Pairs of the modules that both sides call. `owners`: the module of a tensor, of each side;
    `called`: the target's modules in the order of their calls."""
    leaves = _of_plan(plan, owners) if plan else _of_names(trace, called)
    there = set(trace.paths)
    leaves = {
        target: pair_
        for target, pair_ in leaves.items()
        if target in set(called) and all(source in there for source in pair_.sources)
    }
    used = {source for pair_ in leaves.values() for source in pair_.sources}
    # What no plan speaks of, but both sides call by the same name.
    alike = [path for path in called if path and path in there and path not in leaves]
    alike = [path for path in alike if path not in used and path in _innermost(called)]
    if plan:
        held = {owners[1](name) for name in plan.grafts}
        leaves |= {path: Pair((path,), False) for path in alike if path in held}
        used.update(path for path in alike if path in held)
    containers = _containers(leaves, trace.paths, called, separators)
    taken = used | {source for pair_ in containers.values() for source in pair_.sources}
    return Pairs(containers | leaves, separators, {p for p in trace.paths if p not in taken})


def _of_plan(
    plan: Plan, owners: tuple[Callable[[str], str], Callable[[str], str]]
) -> dict[str, Pair]:
    source_owner, target_owner = owners
    sources: dict[str, dict[str, None]] = defaultdict(dict)
    plain: dict[str, bool] = defaultdict(lambda: True)
    users: dict[str, set[str]] = defaultdict(set)
    for name, graft in plan.grafts.items():
        module = target_owner(name)
        if not graft.sources:
            continue
        for source in graft.sources:
            sources[module][source_owner(source)] = None
            users[source_owner(source)].add(module)
        plain[module] &= len(graft.sources) == 1
        plain[module] &= all(isinstance(op, _PLAIN) for op in graft.ops)
    return {
        module: Pair(
            tuple(found),
            plain[module] and len(found) == 1 and len(users[next(iter(found))]) == 1,
        )
        for module, found in sources.items()
    }


def _of_names(trace: Trace, called: Sequence[str]) -> dict[str, Pair]:
    """Without a plan: modules of the same path, where most have one; otherwise the order of the
    innermost ones, where there are as many."""
    there = set(trace.paths)
    same = [path for path in called if path and path in there]
    if 2 * len(same) >= len([path for path in called if path]):
        return {path: Pair((path,), True) for path in same}
    ours, theirs = _innermost(trace.paths), _innermost(called)
    if len(ours) != len(theirs):
        return {}
    return {t: Pair((s,), False) for s, t in zip(ours, theirs, strict=True)}


def _innermost(paths: Sequence[str]) -> list[str]:
    outer = {part for path in paths for part in _ancestors(path, "./")}
    return [path for path in paths if path and path not in outer]


def _ancestors(path: str, separators: str) -> Iterable[str]:
    for i, letter in enumerate(path):
        if letter in separators:
            yield path[:i]


def _containers(
    leaves: Mapping[str, Pair],
    there: Sequence[str],
    called: Sequence[str],
    separators: tuple[str, str],
) -> dict[str, Pair]:
    """Containers whose leaves are the same; of several that hold each other the outer ones first,
    where there are as many on both sides, and else those of the same last name."""
    ours = _held(((s, s) for pair_ in leaves.values() for s in pair_.sources), there, separators[0])
    pairs_of = {t: pair_.sources for t, pair_ in leaves.items()}
    theirs = _held(
        ((t, s) for t, sources in pairs_of.items() for s in sources), called, separators[1]
    )
    by_content: dict[frozenset[str], list[str]] = defaultdict(list)
    for path, content in ours.items():
        by_content[content].append(path)
    groups: dict[frozenset[str], list[str]] = defaultdict(list)
    for path, content in theirs.items():
        groups[content].append(path)
    found: dict[str, Pair] = {"": Pair(("",), False)}
    for content, paths in groups.items():
        candidates = [p for p in by_content.get(content, []) if p]
        inner = [p for p in paths if p and p not in leaves]
        if len(candidates) == len(inner):
            matched = list(zip(inner, candidates, strict=True))
        else:
            last = {_last(c): c for c in candidates}
            matched = [(p, last[_last(p)]) for p in inner if _last(p) in last]
            if not matched and candidates and inner:
                matched = [(inner[0], candidates[0])]
        found |= {target: Pair((source,), False) for target, source in matched}
    return found


def _last(path: str) -> str:
    return path.replace("/", ".").rpartition(".")[2]


def _held(
    leaves: Iterable[tuple[str, str]], paths: Sequence[str], separator: str
) -> dict[str, frozenset[str]]:
    """By container, outer ones first, the source modules of the leaves in it."""
    content: dict[str, set[str]] = defaultdict(set)
    for leaf, source in leaves:
        for outer in _ancestors(leaf, separator):
            content[outer].add(source)
    known = set(paths)
    return {p: frozenset(content[p]) for p in sorted(content, key=len) if p in known}
