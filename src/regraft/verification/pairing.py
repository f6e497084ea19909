"""Which module of the target is which of the source.

A module that holds tensors is the one that its tensors come from in the plan. A container is the
one that holds the same of them. What holds no tensors (activations, pools) is found during a run,
by its kind and by what goes into it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from regraft.plans import Plan
from regraft.verification.traces import Trace


@dataclass
class Pairs:
    """The source modules of a target module, by its path. `free`: source modules that no plan
    speaks of."""

    by_target: dict[str, tuple[str, ...]]
    free: set[str]

    def get(self, path: str) -> tuple[str, ...] | None:
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
    there, here, innermost = set(trace.paths), set(called), set(_innermost(called))
    leaves = {
        target: sources
        for target, sources in leaves.items()
        if target in here and there.issuperset(sources)
    }
    used = {source for sources in leaves.values() for source in sources}
    # What no plan speaks of, but both sides call by the same name.
    alike = [path for path in called if path and path in there and path not in leaves]
    alike = [path for path in alike if path not in used and path in innermost]
    if plan:
        held = {owners[1](name) for name in plan.grafts}
        leaves |= {path: (path,) for path in alike if path in held}
        used.update(path for path in alike if path in held)
    containers = _containers(leaves, trace.paths, called, separators)
    taken = used | {source for sources in containers.values() for source in sources}
    return Pairs(containers | leaves, {p for p in trace.paths if p not in taken})


def _of_plan(
    plan: Plan, owners: tuple[Callable[[str], str], Callable[[str], str]]
) -> dict[str, tuple[str, ...]]:
    source_owner, target_owner = owners
    sources: dict[str, dict[str, None]] = defaultdict(dict)
    for name, graft in plan.grafts.items():
        module = target_owner(name)
        for source in graft.sources:
            sources[module][source_owner(source)] = None
    return {module: tuple(found) for module, found in sources.items()}


def _of_names(trace: Trace, called: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Without a plan: modules of the same path, where most have one; otherwise the order of the
    innermost ones, where there are as many."""
    there = set(trace.paths)
    same = [path for path in called if path and path in there]
    if 2 * len(same) >= len([path for path in called if path]):
        return {path: (path,) for path in same}
    ours, theirs = _innermost(trace.paths), _innermost(called)
    if len(ours) != len(theirs):
        return {}
    return {t: (s,) for s, t in zip(ours, theirs, strict=True)}


def _innermost(paths: Sequence[str]) -> list[str]:
    outer = {part for path in paths for part in _ancestors(path, "./")}
    return [path for path in paths if path and path not in outer]


def _ancestors(path: str, separators: str) -> Iterable[str]:
    for i, letter in enumerate(path):
        if letter in separators:
            yield path[:i]


def _containers(
    leaves: Mapping[str, tuple[str, ...]],
    there: Sequence[str],
    called: Sequence[str],
    separators: tuple[str, str],
) -> dict[str, tuple[str, ...]]:
    """Containers whose leaves are the same; of several that hold each other the outer ones first,
    where there are as many on both sides, and else those of the same last name."""
    ours = _held(((s, s) for sources in leaves.values() for s in sources), there, separators[0])
    theirs = _held(
        ((t, s) for t, sources in leaves.items() for s in sources), called, separators[1]
    )
    by_content: dict[frozenset[str], list[str]] = defaultdict(list)
    for path, content in ours.items():
        by_content[content].append(path)
    groups: dict[frozenset[str], list[str]] = defaultdict(list)
    for path, content in theirs.items():
        groups[content].append(path)
    found: dict[str, tuple[str, ...]] = {"": ("",)}
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
        found |= {target: (source,) for target, source in matched}
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
