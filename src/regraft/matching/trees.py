"""Evidence of structure: blocks of one side and the blocks of the other that hold the same layers.

A container is a part of the name tree (`layer1.0`, `encoder.layer.3.attention`, `block_1_` of
names without dots). Its signature is
how many layers of each class it holds, classes being roles and shapes alone: so `layer2.1`,
`stages.1.blocks.1` and `features.6` are equal where they hold the same layers, however they are
named and nested. Containers of one signature that are as many on both sides are paired: by equal
paths, by the words that tell their families apart, by their numbers; and where nothing but the
order of definition is left, that pairing is weak.

The layers of paired containers are compared with each other and with no others, which is both
evidence and what keeps planning fast: alignment of repeated blocks costs no more than sorting.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from regraft.matching.modules import Module, number_of
from regraft.matching.names import canonical_words
from regraft.matching.projections import sublayer_of

STRONG, WEAK = 1.0, 0.4


@dataclass(eq=False)
class Container:
    """A part of the name tree and the layers in it that the other side has a class of, too."""

    path: tuple[str, ...]  # words and numbers that its layers' paths begin with
    members: list[Module]

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        return tuple(number_of(token) for token in self.path if token.isdigit())

    @cached_property
    def family(self) -> str:
        """The path without its numbers, and without what wraps all."""
        return ".".join("#" if t.isdigit() else t for t in self.path)

    @cached_property
    def words(self) -> frozenset[str]:
        return frozenset(canonical_words(t for t in self.path if not t.isdigit()))


@dataclass(frozen=True, eq=False)
class Aligned:
    """Two containers that hold the same layers; `weight` is how far to believe it (0 to 1)."""

    source: Container
    target: Container
    weight: float
    same_order: bool


class Trees:
    """The paired containers of two sides, by the module that is in them, innermost last."""

    def __init__(
        self, sources: Sequence[Module], targets: Sequence[Module], classes: Mapping[int, int]
    ) -> None:
        self._classes = classes
        both = {classes[id(m)] for m in sources} & {classes[id(m)] for m in targets}
        ours = self._containers([m for m in sources if classes[id(m)] in both])
        theirs = self._containers([m for m in targets if classes[id(m)] in both])
        self.pairs: list[Aligned] = []
        self._surplus: set[int] = set()
        self._align(ours, theirs)
        # By id of modules outside of all paired blocks: whether they stand before or behind these.
        self.outside: dict[int, bool] = {}
        self._levels: dict[int, list[int]] = defaultdict(list)
        for side, modules in (("source", sources), ("target", targets)):
            self._note_outside(modules, side)
        for number, pair in enumerate(self.pairs):
            for module in (*pair.source.members, *pair.target.members):
                self._levels[id(module)].append(number)

    def strong(self, module: Module) -> Sequence[int]:
        """The paired containers around a module that can be relied on, by their numbers in `pairs`,
        outermost first."""
        numbers = self._levels.get(id(module), ())
        return [number for number in numbers if self.pairs[number].weight >= STRONG]

    def is_surplus(self, module: Module) -> bool:
        """Whether a layer is in one of the blocks that a deeper stack has and the other has not."""
        return id(module) in self._surplus

    def _note_outside(self, modules: Sequence[Module], side: str) -> None:
        inside = {id(m) for pair in self.pairs for m in getattr(pair, side).members}
        inside |= self._surplus
        places = [i for i, m in enumerate(modules) if id(m) in inside]
        for place, module in enumerate(modules):
            if places and id(module) not in inside and not places[0] < place < places[-1]:
                self.outside[id(module)] = place < places[0]

    # Containers

    def _containers(self, modules: Sequence[Module]) -> dict[object, list[Container]]:
        """By signature, in the order of their first layers; one for each set of layers."""
        held: dict[tuple[str, ...], list[Module]] = defaultdict(list)
        for module in modules:
            for cut in range(1, len(module.tokens)):
                held[module.tokens[:cut]].append(module)
        by_signature: dict[object, list[Container]] = defaultdict(list)
        met: set[tuple[int, int, int]] = set()
        # Of containers with the same layers the outermost stands for all.
        for path, members in sorted(held.items(), key=lambda item: len(item[0])):
            key = id(members[0]), id(members[-1]), len(members)
            if len(members) < 2 or len(members) == len(modules) or key in met:
                continue
            met.add(key)
            counts = Counter(self._classes[id(m)] for m in members)
            by_signature[frozenset(counts.items())].append(Container(path, members))
        positions = {id(m): i for i, m in enumerate(modules)}
        for containers in by_signature.values():
            containers.sort(key=lambda c: positions[id(c.members[0])])
        return by_signature

    def _align(
        self, ours: dict[object, list[Container]], theirs: dict[object, list[Container]]
    ) -> None:
        """Pairs containers of equal signatures, the largest first."""
        common = [s for s in ours if s in theirs]
        common.sort(key=lambda s: -len(ours[s][0].members))
        inside: dict[int, int] = {}  # module → number of the last pair of containers around it
        for signature in common:
            groups: dict[int, tuple[list[Container], list[Container]]] = {}
            for side, containers in enumerate((ours[signature], theirs[signature])):
                for container in containers:
                    around = {inside.get(id(m), -1) for m in container.members}
                    place = around.pop() if len(around) == 1 else -2
                    groups.setdefault(place, ([], []))[side].append(container)
            for place, (left, right) in groups.items():
                left, right, surplus = _stacks(left, right)
                self._surplus |= {id(m) for container in surplus for m in container.members}
                if place == -2 or len(left) != len(right):
                    continue
                for pair in self._paired(left, right):
                    self.pairs.append(pair)
                    for module in (*pair.source.members, *pair.target.members):
                        inside[id(module)] = len(self.pairs) - 1

    def _paired(self, left: list[Container], right: list[Container]) -> Iterable[Aligned]:
        if len(left) == 1:
            yield self._pair(left[0], right[0], STRONG)
            return
        by_path = {c.path: c for c in right}
        if all(c.path in by_path for c in left):
            for container in left:
                yield self._pair(container, by_path[container.path], STRONG)
            return
        ours, theirs = _families(left), _families(right)
        if len(ours) == len(theirs) > 1:
            partners = _by_words(ours, theirs)
            if partners is not None:
                for a, b in partners:
                    yield from self._in_order(a, b)
                return
        if len(ours) == len(theirs) == 1:
            yield from self._in_order(left, right)
        elif len(left) == 2 and 1 in (len(ours), len(theirs)):
            yield from self._two_attentions(left, right)

    def _two_attentions(self, left: list[Container], right: list[Container]) -> Iterable[Aligned]:
        """A decoder's two attentions, which one side counts and of which the other calls one the
        attention to itself: that is the first one."""
        sides: list[list[Container]] = []
        for side in (left, right):
            if len(_families(side)) == 1 and _numbered(side):
                sides.append(sorted(side, key=lambda c: c.numbers))
            elif sum(map(_is_to_itself, side)) == 1:
                sides.append(sorted(side, key=_is_to_itself, reverse=True))
        if len(sides) == 2:
            for a, b in zip(*sides, strict=True):
                yield self._pair(a, b, STRONG)

    def _in_order(self, left: list[Container], right: list[Container]) -> Iterable[Aligned]:
        """By their numbers, which are positions; weak where they do not grow along. Containers
        that numbers do not tell apart are not paired: their order may be any."""
        told = len(left) == 1 or (_told_apart(left) and _told_apart(right))
        if len(left) != len(right) or not told:
            return
        weight = STRONG if _monotone(left) and _monotone(right) else WEAK
        left = sorted(left, key=lambda c: c.numbers)
        right = sorted(right, key=lambda c: c.numbers)
        for a, b in zip(left, right, strict=True):
            yield self._pair(a, b, weight)

    def _pair(self, a: Container, b: Container, weight: float) -> Aligned:
        order = [self._classes[id(m)] for m in a.members] == [
            self._classes[id(m)] for m in b.members
        ]
        return Aligned(a, b, weight, order)


def _stacks(
    left: list[Container], right: list[Container]
) -> tuple[list[Container], list[Container], list[Container]]:
    """Of two stacks of unequal height, numbered without gaps, as many blocks as the lower one has;
    and the other blocks of the higher one.

    A deeper or shallower model takes its blocks by number; which are left over is said.
    """
    if len(left) == len(right) or not (_numbered(left) and _numbered(right)):
        return left, right, []
    height = min(len(left), len(right))
    return left[:height], right[:height], [*left[height:], *right[height:]]


def _numbered(containers: Sequence[Container]) -> bool:
    """Whether these are one family, in order, told apart by a number that counts from 0 or 1."""
    if len(_families(containers)) != 1 or len(containers) < 2:
        return False
    varying = [place for place in zip(*(c.numbers for c in containers), strict=False)
               if len(set(place)) > 1]  # fmt: skip
    counted = [list(range(start, start + len(containers))) for start in (0, 1)]
    return len(varying) == 1 and list(varying[0]) in counted


def _is_to_itself(container: Container) -> bool:
    """Whether all of its layers say that they are in a self-attention."""
    return all(sublayer_of(m.path[:-1]) == "self-attention" for m in container.members)


def _families(containers: Iterable[Container]) -> dict[str, list[Container]]:
    found: dict[str, list[Container]] = defaultdict(list)
    for container in containers:
        found[container.family].append(container)
    return found


def _told_apart(containers: Sequence[Container]) -> bool:
    """Whether each has numbers of its own."""
    return len({c.numbers for c in containers}) == len(containers) and all(
        c.numbers for c in containers
    )


def _monotone(containers: Sequence[Container]) -> bool:
    """Whether numbers grow along."""
    return all(a.numbers <= b.numbers for a, b in pairwise(containers))


def _by_words(
    ours: Mapping[str, list[Container]], theirs: Mapping[str, list[Container]]
) -> list[tuple[list[Container], list[Container]]] | None:
    """Families paired by the words that tell them apart; `None` where words do not."""
    from scipy.optimize import linear_sum_assignment

    left, right = list(ours.values()), list(theirs.values())
    common = [frozenset.intersection(*(f[0].words for f in side)) for side in (left, right)]
    scores = np.zeros((len(left), len(right)))
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            mine, yours = a[0].words - common[0], b[0].words - common[1]
            union = mine | yours
            scores[i, j] = len(mine & yours) / len(union) if union else 0.0
            if len(a) != len(b):
                scores[i, j] = -1.0
    rows, columns = linear_sum_assignment(scores, maximize=True)
    pairs = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    open_ = [i for i, j in pairs.items() if scores[i, j] <= 0.0]
    if len(open_) > 1 or any(scores[i, pairs[i]] < 0 for i in pairs):
        return None
    for i, j in pairs.items():
        others = np.delete(scores[i], j)
        if i not in open_ and others.max(initial=0.0) >= scores[i, j]:
            return None
    return [(left[i], right[j]) for i, j in pairs.items()]
