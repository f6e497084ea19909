"""What is known of each pair of files in a family, and how it is told."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from regraft.lineage.arithmetic import linked
from regraft.lineage.directions import order_by_values, sums_between
from regraft.lineage.hints import order_by_hints
from regraft.lineage.kinship import Reason, distance
from regraft.lineage.portraits import Portrait

# Log-odds of a direction that is certain; those of the older one of two copies as the original.
CERTAIN, _EARLIER = 20.0, 0.5
_HEADS = ("head", "classifier", "logits", "predictions", "lm_head", "fc_out", "score")


class Kin(NamedTuple):
    """What is known of a pair: its distance, the log-odds for `b` as a sum with `a`, and reasons
    for `a` before `b` from values and from all else."""

    distance: float
    linked: float
    values: tuple[Reason, ...]
    hints: tuple[Reason, ...]

    def seen_from_the_other(self, linked: float) -> Kin:
        values, hints = (tuple(-reason for reason in some) for some in (self.values, self.hints))
        return Kin(self.distance, linked, values, hints)


class Pairs:
    """Pairs of a family's files by name; `by_values` alone, or by all that is known of them."""

    def __init__(self, family: list[Portrait], by_values: bool) -> None:
        self.all = {portrait.name: portrait for portrait in family}
        self.by_values = by_values
        self.heads = _heads(family)
        self._kin: dict[tuple[str, str], Kin] = {}

    def of(self, a: str, b: str) -> Kin:
        """The pair as seen from `a`."""
        if (a, b) not in self._kin:
            one, other = self.all[a], self.all[b]
            hints = [] if self.by_values else list(order_by_hints(one, other))
            told = self._told(a, b)
            if told:
                hints.append(Reason(told, "the lineage in the file"))
            values = tuple(order_by_values(one, other, self.heads))
            forward, back = linked(sums_between(one, other))
            kin = Kin(distance(one, other, self.heads), forward, values, tuple(hints))
            self._kin[a, b] = kin
            self._kin[b, a] = kin.seen_from_the_other(back)
        return self._kin[a, b]

    def original(self, a: str, b: str) -> float:
        """Log-odds for the first of two copies as the one that the other was made from."""
        one, other = self.all[a], self.all[b]
        everyone = [p for p in self.all.values() if p.name not in (a, b)]
        ours, theirs = (sum(len(p.names & e.names) for e in everyone) for p in (one, other))
        hints = sum(reason.odds for reason in self.of(a, b).hints)
        return hints + (ours > theirs) - (ours < theirs) + self.earlier(a, b)

    def earlier(self, a: str, b: str) -> float:
        """Log-odds for one of two by the times of their files alone."""
        if self.by_values:
            return 0.0
        return _EARLIER * float(np.sign(self.all[b].time - self.all[a].time))

    def _told(self, a: str, b: str) -> float:
        """What their lineages say."""
        if self.by_values:
            return 0.0
        one, other = self.all[a], self.all[b]
        if one.sha256 and one.sha256 in other.sources:
            return CERTAIN
        return -CERTAIN if other.sha256 and other.sha256 in one.sources else 0.0

    def why(self, parent: str, child: str) -> tuple[str, ...]:
        """All reasons for a direction with their log-odds, the weightiest first."""
        kin = self.of(parent, child)
        back = self.of(child, parent).linked
        reasons = [*kin.values, *kin.hints]
        if abs(kin.linked - back) > 1:
            reasons.append(Reason(kin.linked - back, "last bits: sums with the other's values"))
        told = [
            f"{reason.text} ({reason.odds:+.1f})"
            for reason in sorted(reasons, key=lambda reason: -reason.odds)
        ]
        early = self.earlier(parent, child)
        if early:
            told.append(f"times of the files: {'before' if early > 0 else 'after'}")
        return tuple(told)


def _heads(family: list[Portrait]) -> frozenset[str]:
    """Matrices that fine-tuning replaces: of a head's name, or in other shapes in other files; else
    the last one."""
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for portrait in family:
        for name, part in portrait.parts.items():
            if len(part.shape) > 1:
                shapes.setdefault(name, set()).add(part.shape)
    found = {name for name, some in shapes.items() if len(some) > 1}
    found |= {n for n in shapes if any(word in n.lower() for word in _HEADS)}
    if not found and len(shapes) > 1:
        found = {next(reversed(shapes))}
    return frozenset(found)
