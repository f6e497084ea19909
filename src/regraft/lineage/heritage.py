"""Which checkpoint of a folder came from which: families, each a tree, and merged files.

A family are files whose weights correlate; inside it the tree is the likeliest one (`likeliest`).
Files that are another's rounding hang on that one; files that are means of others hang on all of
these. Where a lineage in a file names its source, it is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations
from math import exp

import msgspec
import numpy as np

from regraft.lineage.hints import skipped, trained_alike
from regraft.lineage.kinship import changes, inner_products, lengths, related, same_values, shared
from regraft.lineage.likeliest import LIKELY, Rests, likeliest
from regraft.lineage.likeliest import Family as Kinships
from regraft.lineage.means import means
from regraft.lineage.pairs import CERTAIN, Kin, Pairs
from regraft.lineage.pedigree import Direction, Edge, FamilyTree
from regraft.lineage.portraits import Portrait
from regraft.lineage.roundings import derivation

# A file came from a merged one where that is nearer by this factor than the next.
_CLOSER = 0.8


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
        self.all = {portrait.name: portrait for portrait in family}
        self.pairs = Pairs(family, by_values)

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
            first, copy = (name, twin) if self.pairs.original(name, twin) > 0 else (twin, name)
            if first != twin:
                standing[standing.index(twin)] = first
                found[:] = [self._copy(first, e.child) if e.parent == twin else e for e in found]
            found.append(self._copy(first, copy))
        return standing

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
            parent = min(ways, key=lambda p: (p in origins, self.pairs.of(p, child).distance))
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

    def _tree(self, standing: list[str], merged: dict[str, tuple[str, ...]]) -> Iterator[Edge]:
        """The likeliest tree of all but merged files, which then get all of their parents, and as
        children those that are next to them."""
        single = [name for name in standing if name not in merged]
        found = likeliest(self._known([self.all[name] for name in single]))
        parents = {single[b]: single[a] for b, a in found.parents.items()}
        for number, before in found.parents.items():
            child, parent = single[number], single[before]
            near = [m for m in merged if not self._leads_to(child, merged[m], parents)]
            best = min(near, key=lambda m: self.pairs.of(m, child).distance, default=parent)
            closer = (
                self.pairs.of(best, child).distance
                < _CLOSER * self.pairs.of(parent, child).distance
            )
            if closer:
                yield self._edge(best, child, 0.5)
            else:
                yield self._edge(parent, child, found.certainty[number], found.rests[number])
        for child, some in merged.items():
            for parent in some:
                yield self._certain(parent, child, f"a mean of {len(some)} files")

    def _known(self, family: list[Portrait]) -> Kinships:
        names = [portrait.name for portrait in family]

        def each(of: Callable[[Kin], float]) -> np.ndarray:
            pairs = [[of(self.pairs.of(a, b)) if a != b else 0.0 for b in names] for a in names]
            return np.array(pairs).reshape(len(names), len(names))

        apart = np.zeros((len(names), len(names)))
        if not self.pairs.by_values:
            for (i, a), (j, b) in permutations(enumerate(family), 2):
                apart[i, j] = trained_alike(a, b) + skipped(a.name, b.name, names)
        times = [] if self.pairs.by_values else [portrait.time for portrait in family]
        by_time = [p.name for p in sorted(family, key=lambda p: p.time)]
        return Kinships(
            lengths(family, self.pairs.heads),
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
            [n for n in matrices if n not in self.pairs.heads],
            [n for n in matrices if n in self.pairs.heads],
            [n for n in moved if len(names[n]) <= 1],
        )
        groups = [group for group in groups if group]
        values = {n: p.values.size for portrait in family for n, p in portrait.parts.items()}
        sizes = [np.array([float(values[n]) for n in group]) for group in groups]
        return [np.stack([inner_products(family, n) for n in g]) for g in groups], sizes

    def _edge(self, parent: str, child: str, confidence: float, rests: Rests = "") -> Edge:
        kin = self.pairs.of(parent, child)
        if any(reason.odds >= CERTAIN / 2 for reason in kin.hints):
            return self._certain(parent, child)
        direction: Direction = "likely" if confidence >= LIKELY else "open"
        return Edge(
            parent, child, kin.distance, direction, self.pairs.why(parent, child), confidence, rests
        )

    def _certain(self, parent: str, child: str, how: str = "") -> Edge:
        why = ((how,) if how else ()) + self.pairs.why(parent, child)
        near = self.pairs.of(parent, child).distance
        return Edge(parent, child, near, "certain", why, 1.0, how or "lineage")

    def _copy(self, first: str, copy: str) -> Edge:
        """Nothing but names and times tells an original."""
        confidence = 1 / (1 + exp(-self.pairs.original(first, copy)))
        edge = self._edge(first, copy, confidence, "names and counters")
        return msgspec.structs.replace(
            edge,
            why=("the same values", *edge.why),
            rests=edge.rests if confidence >= LIKELY else "",
        )
