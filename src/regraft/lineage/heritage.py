"""Which checkpoint of a folder came from which: families, each a tree, and merged files.

A family are files whose weights correlate; inside it the tree is the likeliest one (`likeliest`).
Files that are another's rounding hang on that one; files that are means of others hang on all of
these. Where a lineage in a file names its source, it is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations
from math import exp
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from regraft.lineage.arithmetic import linked
from regraft.lineage.directions import order_by_values, sums_between
from regraft.lineage.hints import order_by_hints, skipped, trained_alike
from regraft.lineage.kinship import (
    Reason,
    changes,
    derivation,
    distance,
    inner_products,
    lengths,
    related,
    same_values,
    shared,
)
from regraft.lineage.likeliest import LIKELY, Rests, likeliest
from regraft.lineage.likeliest import Family as Kinships
from regraft.lineage.means import means
from regraft.lineage.portraits import Portrait

# Log-odds of a direction that is certain; those of the older one of two copies as the original.
_CERTAIN, _EARLIER = 20.0, 0.5
# A file came from a merged one where that is nearer by this factor than the next.
_CLOSER = 0.8
_HEADS = ("head", "classifier", "logits", "predictions", "lm_head", "fc_out", "score")

Direction = Literal["certain", "likely", "open"]
_RESTS = {
    "values": "by values",
    "shape": "by the shape of the tree",
    "names and counters": "not without names or counters",
    "times": "only by times of the files",
}


class Edge(msgspec.Struct, frozen=True):
    """One file came from another.

    - `distance`: that of `kinship.distance`.
    - `direction`: `certain` (a lineage, a rounding, a mean), `likely`, or `open`: next to each
      other for sure, but which came first is a guess. `confidence`: its probability as far as the
      evidence's odds hold, for the tree of which it is part.
    - `rests`: what the direction could not do without: `values` alone, with these the `shape` of
      the tree (the middle of a star is its base), `names and counters`, or no less than the `times`
      of the files; what makes it certain; `""` where it is open.
    - `why`: reasons and their log-odds, the weightiest first.
    """

    parent: str
    child: str
    distance: float
    direction: Direction
    why: tuple[str, ...]
    confidence: float = 0.5
    rests: str = ""

    def __str__(self) -> str:
        how = self.direction
        if how == "likely":
            how += f" ({self.confidence:.0%}), {_RESTS[self.rests]}"
        first = f": {self.why[0]}" if self.why else ""
        return f"distance {self.distance:.3g}, direction {how}{first}"


class FamilyTree(msgspec.Struct, frozen=True):
    """All files of a folder: `families` are groups of kin, their root first; `edges` go from parent
    to child (a merged file has several parents); `remarks` say what was not read, and why."""

    nodes: tuple[str, ...]
    edges: tuple[Edge, ...]
    families: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...] = ()

    @property
    def roots(self) -> tuple[str, ...]:
        """Files without a parent here."""
        children = {edge.child for edge in self.edges}
        return tuple(name for name in self.nodes if name not in children)

    def to_json(self) -> dict[str, Any]:
        pairs = [[edge.parent, edge.child] for edge in self.edges]
        told = {(e.parent, e.child): e for e in self.edges}
        return {
            "schema_version": 1,
            "nodes": list(self.nodes),
            "edges": pairs,
            "undirected": [[e.parent, e.child] for e in told.values() if e.direction == "open"],
            "evidence": [msgspec.to_builtins(edge) for edge in self.edges],
            "families": [list(family) for family in self.families],
            "remarks": list(self.remarks),
        }

    def __str__(self) -> str:
        rows = [f"{len(self.nodes)} files, {len(self.families)} families"]
        for root in self.roots:
            rows += self._rows(root, "", None)
        return "\n".join([*rows, *(f"note  {remark}" for remark in self.remarks)])

    def _rows(self, name: str, indent: str, edge: Edge | None) -> Iterator[str]:
        yield f"{indent}{name}" + (f"  ({edge})" if edge else "")
        for one in self.edges:
            if one.parent == name:
                yield from self._rows(one.child, f"{indent}  ", one)


class _Kin(NamedTuple):
    """What is known of a pair: its distance, the log-odds for `b` as a sum with `a`, and reasons
    for `a` before `b` from values and from all else."""

    distance: float
    linked: float
    values: tuple[Reason, ...]
    hints: tuple[Reason, ...]

    def seen_from_the_other(self, linked: float) -> _Kin:
        values, hints = (tuple(-reason for reason in some) for some in (self.values, self.hints))
        return _Kin(self.distance, linked, values, hints)


def family_tree(
    portraits: Sequence[Portrait], remarks: Sequence[str] = (), *, by_values: bool = False
) -> FamilyTree:
    """The trees of all files whose portraits are given; `by_values` alone or by all that is known
    of them."""
    edges: list[Edge] = []
    families: list[tuple[str, ...]] = []
    for family in _families(portraits, by_values):
        found = _Family(family, by_values).edges() if len(family) > 1 else []
        edges += found
        children = {edge.child for edge in found}
        families.append(tuple(sorted((p.name for p in family), key=lambda n: (n in children, n))))
    nodes = tuple(portrait.name for portrait in portraits)
    return FamilyTree(nodes, tuple(edges), tuple(families), tuple(remarks))


def _families(portraits: Sequence[Portrait], by_values: bool) -> list[list[Portrait]]:
    """Groups of kin; kinship is passed on."""
    group = list(range(len(portraits)))

    def of(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    for i, j in combinations(range(len(portraits)), 2):
        if of(i) != of(j) and (
            related(portraits[i], portraits[j])
            or (not by_values and _told(portraits[i], portraits[j]))
        ):
            group[of(j)] = of(i)
    families: dict[int, list[Portrait]] = {}
    for i, portrait in enumerate(portraits):
        families.setdefault(of(i), []).append(portrait)
    return list(families.values())


def _told(a: Portrait, b: Portrait) -> bool:
    """Whether one's lineage names the other."""
    return bool(a.sha256 and a.sha256 in b.sources) or bool(b.sha256 and b.sha256 in a.sources)


class _Family:
    """Files that are kin, and the search for their tree."""

    def __init__(self, family: list[Portrait], by_values: bool) -> None:
        self.by_values = by_values
        self.all = {portrait.name: portrait for portrait in family}
        self.heads = _heads(family)
        self.kin: dict[tuple[str, str], _Kin] = {}

    def edges(self) -> list[Edge]:
        found: list[Edge] = []
        standing = self._without_copies(found)
        standing = self._without_derived(standing, found)
        merged = means([self.all[name] for name in standing])
        found += self._tree(standing, merged)
        order = {name: i for i, name in enumerate(self.all)}
        return sorted(found, key=lambda e: (order[e.parent], order[e.child]))

    def _without_copies(self, found: list[Edge]) -> list[str]:
        """One of each group of files with equal values; its copies hang on it."""
        standing: list[str] = []
        for name, portrait in self.all.items():
            twin = next((s for s in standing if same_values(self.all[s], portrait)), None)
            if twin is None:
                standing.append(name)
                continue
            first, copy = (name, twin) if self._original(name, twin) > 0 else (twin, name)
            if first != twin:
                standing[standing.index(twin)] = first
                found[:] = [self._copy(first, e.child) if e.parent == twin else e for e in found]
            found.append(self._copy(first, copy))
        return standing

    def _original(self, a: str, b: str) -> float:
        """Log-odds for the first of two copies as the one that the other was made from."""
        one, other = self.all[a], self.all[b]
        everyone = [p for p in self.all.values() if p.name not in (a, b)]
        ours, theirs = (sum(len(p.names & e.names) for e in everyone) for p in (one, other))
        hints = sum(reason.odds for reason in self._pair(a, b).hints)
        return hints + (ours > theirs) - (ours < theirs) + self._earlier(a, b)

    def _earlier(self, a: str, b: str) -> float:
        if self.by_values:
            return 0.0
        return _EARLIER * float(np.sign(self.all[b].time - self.all[a].time))

    def _told(self, a: str, b: str) -> float:
        """What their lineages say."""
        if self.by_values:
            return 0.0
        one, other = self.all[a], self.all[b]
        if one.sha256 and one.sha256 in other.sources:
            return _CERTAIN
        return -_CERTAIN if other.sha256 and other.sha256 in one.sources else 0.0

    def _without_derived(self, standing: list[str], found: list[Edge]) -> list[str]:
        """Without what is another file's rounding, unless others share with it what its origin does
        not have."""
        origins: dict[str, dict[str, str]] = {}
        for parent, child in permutations(standing, 2):
            if child in origins.get(parent, {}):
                continue
            how = derivation(self.all[parent], self.all[child])
            if how and not self._has_heirs(parent, child, standing):
                origins.setdefault(child, {})[parent] = how
        for child, ways in origins.items():
            # What is no rounding itself, and then what is nearest.
            parent = min(ways, key=lambda p: (p in origins, self._pair(p, child).distance))
            found.append(self._certain(parent, child, ways[parent]))
        return [name for name in standing if name not in origins]

    def _has_heirs(self, origin: str, derived: str, standing: list[str]) -> bool:
        one, other = self.all[origin], self.all[derived]
        for name in standing:
            if name in (origin, derived):
                continue
            third = self.all[name]
            for n in shared(other, third):
                part = other.parts[n]
                same = part.hash == third.parts[n].hash and not part.constant
                if same and (n not in one.parts or one.parts[n].hash != part.hash):
                    return True
        return False

    def _pair(self, a: str, b: str) -> _Kin:
        """The pair as seen from `a`."""
        if (a, b) not in self.kin:
            one, other = self.all[a], self.all[b]
            hints = [] if self.by_values else list(order_by_hints(one, other))
            told = self._told(a, b)
            if told:
                hints.append(Reason(told, "the lineage in the file"))
            values = tuple(order_by_values(one, other, self.heads))
            forward, back = linked(sums_between(one, other))
            kin = _Kin(distance(one, other, self.heads), forward, values, tuple(hints))
            self.kin[a, b] = kin
            self.kin[b, a] = kin.seen_from_the_other(back)
        return self.kin[a, b]

    def _tree(self, standing: list[str], merged: dict[str, tuple[str, ...]]) -> Iterator[Edge]:
        """The likeliest tree of all but merged files, which then get all of their parents, and as
        children those that are next to them."""
        single = [name for name in standing if name not in merged]
        found = likeliest(self._known([self.all[name] for name in single]))
        parents = {single[b]: single[a] for b, a in found.parents.items()}
        for number, before in found.parents.items():
            child, parent = single[number], single[before]
            near = [m for m in merged if not self._leads_to(child, merged[m], parents)]
            best = min(near, key=lambda m: self._pair(m, child).distance, default=parent)
            closer = self._pair(best, child).distance < _CLOSER * self._pair(parent, child).distance
            if closer:
                yield self._edge(best, child, 0.5)
            else:
                yield self._edge(parent, child, found.certainty[number], found.rests[number])
        for child, some in merged.items():
            for parent in some:
                yield self._certain(parent, child, f"a mean of {len(some)} files")

    def _known(self, family: list[Portrait]) -> Kinships:
        names = [portrait.name for portrait in family]

        def each(of: Callable[[_Kin], float]) -> np.ndarray:
            pairs = [[of(self._pair(a, b)) if a != b else 0.0 for b in names] for a in names]
            return np.array(pairs).reshape(len(names), len(names))

        apart = np.zeros((len(names), len(names)))
        if not self.by_values:
            for (i, a), (j, b) in permutations(enumerate(family), 2):
                apart[i, j] = trained_alike(a, b) + skipped(a.name, b.name, names)
        times = [] if self.by_values else [portrait.time for portrait in family]
        by_time = [p.name for p in sorted(family, key=lambda p: p.time)]
        return Kinships(
            lengths(family, self.heads),
            each(lambda kin: sum(reason.odds for reason in kin.values)),
            each(lambda kin: sum(reason.odds for reason in kin.hints)),
            each(lambda kin: kin.linked),
            apart,
            changes(family),
            *self._inner(family),
            times,
            in_order=by_time == sorted(names),
        )

    @staticmethod
    def _leads_to(name: str, some: tuple[str, ...], parents: dict[str, str]) -> bool:
        """Whether one of these is the file, or came from it."""
        for one in some:
            while one != name and one in parents:
                one = parents[one]
            if one == name:
                return True
        return False

    def _inner(self, family: list[Portrait]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Inner products of bodies, of heads and of vectors; each tensor brought to one size."""
        names = {n: p.shape for portrait in reversed(family) for n, p in portrait.parts.items()}
        moved = [n for n in names if len({p.parts[n].hash for p in family if n in p.parts}) > 1]
        matrices = [n for n in moved if len(names[n]) > 1]
        groups = (
            [n for n in matrices if n not in self.heads],
            [n for n in matrices if n in self.heads],
            [n for n in moved if len(names[n]) <= 1],
        )
        groups = [group for group in groups if group]
        values = {n: p.values.size for portrait in family for n, p in portrait.parts.items()}
        sizes = [np.array([float(values[n]) for n in group]) for group in groups]
        return [np.stack([inner_products(family, n) for n in g]) for g in groups], sizes

    def _edge(self, parent: str, child: str, confidence: float, rests: Rests = "") -> Edge:
        kin = self._pair(parent, child)
        if any(reason.odds >= _CERTAIN / 2 for reason in kin.hints):
            return self._certain(parent, child)
        direction: Direction = "likely" if confidence >= LIKELY else "open"
        return Edge(
            parent, child, kin.distance, direction, self._why(parent, child), confidence, rests
        )

    def _certain(self, parent: str, child: str, how: str = "") -> Edge:
        why = ((how,) if how else ()) + self._why(parent, child)
        near = self._pair(parent, child).distance
        return Edge(parent, child, near, "certain", why, 1.0, how or "lineage")

    def _copy(self, first: str, copy: str) -> Edge:
        """Nothing but names and times tells an original."""
        confidence = 1 / (1 + exp(-self._original(first, copy)))
        edge = self._edge(first, copy, confidence, "names and counters")
        return msgspec.structs.replace(
            edge,
            why=("the same values", *edge.why),
            rests=edge.rests if confidence >= LIKELY else "",
        )

    def _why(self, parent: str, child: str) -> tuple[str, ...]:
        kin = self._pair(parent, child)
        back = self._pair(child, parent).linked
        reasons = [*kin.values, *kin.hints]
        if abs(kin.linked - back) > 1:
            reasons.append(Reason(kin.linked - back, "last bits: sums with the other's values"))
        told = [
            f"{reason.text} ({reason.odds:+.1f})"
            for reason in sorted(reasons, key=lambda reason: -reason.odds)
        ]
        early = self._earlier(parent, child)
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
