"""Sums grafts up as `{i}` rules: what a person reviews instead of a hundred single lines."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from regraft.operations import Op, Reshape
from regraft.plans import Graft, Summary
from regraft.rules import carry

_NUMBER = re.compile(r"(?<![A-Za-z])\d+|(?<=[A-Za-z_])\d+(?!d)")
_LETTERS = "ijklmnopqrstuvw"


def summarise(grafts: Iterable[Graft]) -> tuple[Summary, ...]:
    """Rules in the order of their first target; one-source grafts of equal form share a rule.

    A number that stays the same becomes a hole on both sides; one that changes between the sides
    stays as it is, and then more rules are needed.
    """
    groups: dict[tuple[str, str, str, tuple[Op, ...]], list[Graft]] = defaultdict(list)
    for graft in grafts:
        if graft.kind == "fresh":
            continue
        source, target = _templates(" + ".join(graft.sources), graft.target)
        groups[source, target, graft.kind, _form(graft.ops)].append(graft)
    rules: list[Summary] = []
    for (source, target, _, _), members in groups.items():
        first = members[0]
        if len(members) == 1:
            source, target = " + ".join(first.sources), first.target
        rules.append(Summary(source, target, first.kind, first.ops, len(members)))
    return tuple(_joined(rules))


def _form(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """Operations without the sizes that differ from layer to layer."""
    return tuple(Reshape(()) if isinstance(op, Reshape) else op for op in ops)


def _templates(source: str, target: str) -> tuple[str, str]:
    """Both names with the numbers that they share, place by place, as `{i}`, `{j}` …"""
    ours, theirs = _NUMBER.findall(source), _NUMBER.findall(target)
    if len(ours) != len(theirs):
        return source, target
    shared = [a == b for a, b in zip(ours, theirs, strict=True)]
    return _holes(source, shared), _holes(target, shared)


def _holes(name: str, shared: list[bool]) -> str:
    letters, places = iter(_LETTERS), iter(shared)
    return _NUMBER.sub(
        lambda found: f"{{{next(letters, found[0])}}}" if next(places) else found[0], name
    )


def _joined(rules: list[Summary]) -> Iterable[Summary]:
    """Rules with holes whose ends are equal on both sides are joined with `*` where it holds."""
    by_ends: dict[tuple[str, str, str], list[Summary]] = defaultdict(list)
    for rule in rules:
        by_ends[(*_stems(rule), rule.kind)].append(rule)
    for (source, target, _), members in by_ends.items():
        wide = f"{source}*", f"{target}*"
        plain = all(not m.ops and carry(wide[0], m.source, wide[1]) == m.target for m in members)
        if len(members) == 1 or not plain or any(" + " in m.source for m in members):
            yield from members
        else:
            count = sum(member.count for member in members)
            yield Summary(*wide, members[0].kind, (), count)


def _stems(rule: Summary) -> tuple[str, str]:
    """Both sides without the longest end that they share, cut at a separator."""
    shared = 0
    limit = min(len(rule.source), len(rule.target))
    while shared < limit and rule.source[-1 - shared] == rule.target[-1 - shared]:
        shared += 1
    if shared == limit and rule.source == rule.target:
        return "", ""
    cut = len(rule.source) - shared
    while cut < len(rule.source) and cut > 0 and rule.source[cut - 1] not in "./":
        cut += 1
    back = len(rule.source) - cut
    return rule.source[:cut], rule.target[: len(rule.target) - back]
