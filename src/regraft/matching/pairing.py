"""Pairs of modules: which fit at all, how strongly each kind of evidence speaks, who wins.

Scores add up; their weights were set so that no single weak reason reaches `MARGIN`:
equal paths 2.0, dataflow 2.0, shared words 1.0, numbers 1.0 (0.3 where nothing else ties the two
sides together), order 1.0 inside families of names that differ by number only and 0.3 across
families, and 1.0 for fitting at all, halved where the two sides share little.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from regraft.matching import assignment, dataflow, directions
from regraft.matching.attachments import attached
from regraft.matching.layouts import compatible, conversions
from regraft.matching.modules import Leaf, Module
from regraft.matching.names import Names, automatic
from regraft.matching.order import Order, sequence
from regraft.matching.projections import THIRD_NORM, at_odds, edge_of, norm_place, projection_of
from regraft.matching.trees import Trees
from regraft.plans import Evidence
from regraft.tensors import Catalogue

# A pairing is settled when the best answer that says otherwise scores less by this much.
MARGIN = 0.8
# Below this share of modules that fit somewhere, a fit may be chance.
_COVERAGE = 0.5
# Evidence with a smaller weight is not worth a line.
_MENTIONED = 0.05


class Candidate(NamedTuple):
    """One way to serve a target module; `loss` is what the whole answer loses by it."""

    source: Module
    loss: float
    evidence: tuple[Evidence, ...]


class Pairing(NamedTuple):
    """What was found for one target module: candidates, best first, and the winner's margin."""

    target: Module
    candidates: tuple[Candidate, ...]
    margin: float

    @property
    def settled(self) -> bool:
        return self.margin >= MARGIN


def number_classes(
    sources: Iterable[Module],
    targets: Iterable[Module],
    known: dict[tuple[object, object], bool] | None = None,
) -> dict[int, int]:
    """Numbers modules of both sides (by id) so that those that fit each other have equal numbers.

    A class is a connected component of "fits": finer classes would need transitivity. `known`
    collects which keys fit.
    """
    known = {} if known is None else known
    sources, targets = list(sources), list(targets)
    ours = {m.key: m for m in sources}
    theirs = {m.key: m for m in targets}
    parent: dict[object, object] = {("s", k): ("s", k) for k in ours}
    parent |= {("t", k): ("t", k) for k in theirs}

    def root(node: object) -> object:
        while parent[node] != node:
            node = parent[node]
        return node

    sizes: dict[int, list[tuple[object, Module]]] = defaultdict(list)
    for key, module in ours.items():
        for size in {leaf.info.size for leaf in module.leaves.values()}:
            sizes[size].append((key, module))
    for key, module in theirs.items():
        for size in {leaf.info.size for leaf in module.leaves.values()}:
            for other, source in sizes[size]:
                fits = known.get((other, key))
                if fits is None:
                    fits = known[other, key] = _fits(source, module)
                if fits:
                    parent[root(("s", other))] = root(("t", key))
    numbers: dict[object, int] = {}
    classes: dict[int, int] = {}
    for side, modules in (("s", sources), ("t", targets)):
        for module in modules:
            classes[id(module)] = numbers.setdefault(root((side, module.key)), len(numbers))
    return classes


def served(sources: Sequence[Module], targets: Sequence[Module]) -> int:
    """How many modules could have a counterpart, by roles and shapes alone, one for one."""
    classes = number_classes(sources, targets)
    ours = Counter(classes[id(m)] for m in sources)
    theirs = Counter(classes[id(m)] for m in targets)
    return (ours & theirs).total()


def fitting_leaves(source: Module, target: Module) -> dict[Leaf, Leaf]:
    """Target tensors of a module and the source tensors that can make them, one for one."""
    pairs: dict[Leaf, Leaf] = {}
    for role, leaf in target.leaves.items():
        same = source.leaves.get(role)
        candidates = [same] if same else list(source.leaves.values())
        for candidate in candidates:
            if compatible(candidate, leaf) and conversions(candidate, leaf):
                pairs[leaf] = candidate
                break
    return pairs


class Pairer:
    """All evidence between two catalogues' modules; `pairings` gives the answer."""

    def __init__(
        self,
        source: Catalogue,
        sources: Sequence[Module],
        target: Catalogue,
        targets: Sequence[Module],
    ) -> None:
        self._catalogues = source, target
        self._sources, self._targets = sequence(source, sources), sequence(target, targets)
        self._fits: dict[tuple[object, object], bool] = {}
        self._classes = number_classes(self._sources, self._targets, self._fits)
        self._names = Names(self._sources, self._targets, self._feasible)
        self.order = Order(self._sources, self._targets, self._classes)
        self.trees = Trees(self._sources, self._targets, self._classes)
        self._attached = {
            **attached(source, self._sources), **attached(target, self._targets)
        }  # fmt: skip
        self._ordered = "sorted" not in (source.order, target.order)
        self._partners: dict[int, Module] = {}  # target module → its settled source module

    def pairings(self) -> list[Pairing]:
        """One Pairing for each target module, in the target's order."""
        by_class: dict[int, tuple[list[Module], list[Module]]] = defaultdict(lambda: ([], []))
        for side, modules in enumerate((self._sources, self._targets)):
            for module in modules:
                by_class[self._classes[id(module)]][side].append(module)
        found: dict[int, Pairing] = {}
        # Norms last: they follow the layers that they are attached to.
        for sources, targets in sorted(by_class.values(), key=_holds_norms):
            for pairing in self._pair_class(sources, targets):
                found[id(pairing.target)] = pairing
                if pairing.settled:
                    self._partners[id(pairing.target)] = pairing.candidates[0].source
        return [found[id(module)] for module in self._targets]

    @cached_property
    def coverage(self) -> float:
        """Share of the smaller side's modules that fit some module of the other."""
        fitting = {c for c in self._classes.values() if self._both(c)}
        shares = [
            sum(self._classes[id(m)] in fitting for m in side) / max(1, len(side))
            for side in (self._sources, self._targets)
        ]
        return max(shares)

    def _both(self, number: int) -> bool:
        return number in self._source_classes and number in self._target_classes

    @cached_property
    def _source_classes(self) -> set[int]:
        return {self._classes[id(m)] for m in self._sources}

    @cached_property
    def _target_classes(self) -> set[int]:
        return {self._classes[id(m)] for m in self._targets}

    def _feasible(self, source: Module, target: Module) -> bool:
        if not self._fits.get((source.key, target.key), False):
            return False
        return not at_odds(source.path, target.path)

    def _strangers(self, source: Module, target: Module) -> bool:
        """Whether names tell the two apart, and no block that both are in says otherwise."""
        strangers = self._names.strangers(source, target)
        return strangers and self.trees.agreement(source, target) <= 0

    @cached_property
    def _prints(self) -> tuple[dict[int, dataflow.Fingerprint], ...]:
        sides = zip(self._catalogues, (self._sources, self._targets), strict=True)
        if not all(catalogue.flow for catalogue in self._catalogues):
            return ({}, {})
        return tuple(dataflow.fingerprints(c.flow, m, self._classes) for c, m in sides)

    def _pair_class(self, sources: list[Module], targets: list[Module]) -> Iterable[Pairing]:
        if not targets:
            return
        if not sources:
            yield from (Pairing(target, (), 0.0) for target in targets)
            return
        plain = self._plain_equality(sources, targets)
        if plain:
            yield from plain
            return
        for cell in self._cells(sources, targets):
            for left, right in directions.parted(*cell):
                yield from self._pair_cell(left, right)

    def _cells(
        self, sources: list[Module], targets: list[Module]
    ) -> Iterable[tuple[list[Module], list[Module]]]:
        """Modules of one class parted by the paired containers they are in, innermost first; those
        that no container parts, or that are not as many on both sides, stay together."""
        for depth in range(max(len(self.trees.strong(m)) for m in sources), 0, -1):
            parted: dict[int, tuple[list[Module], list[Module]]] = {}
            for source in sources:
                levels = self.trees.strong(source)
                if len(levels) >= depth:
                    parted.setdefault(id(levels[depth - 1]), ([], []))[0].append(source)
            for target in targets:
                levels = self.trees.strong_of_target(target)
                if len(levels) >= depth:
                    parted.setdefault(id(levels[depth - 1]), ([], []))[1].append(target)
            done: set[int] = set()
            for left, right in parted.values():
                if len(left) == len(right):
                    yield left, right
                    done |= {id(m) for m in (*left, *right)}
            sources = [m for m in sources if id(m) not in done]
            targets = [m for m in targets if id(m) not in done]
        beyond = [m for m in targets if self.trees.is_surplus(m)]
        sources = [m for m in sources if not self.trees.is_surplus(m)]
        targets = [m for m in targets if not self.trees.is_surplus(m)]
        if targets:
            yield sources, targets
        if beyond:
            yield [], beyond

    def _pair_cell(self, sources: list[Module], targets: list[Module]) -> Iterable[Pairing]:
        if not sources:
            yield from (Pairing(target, (), 0.0) for target in targets)
            return
        evidence: dict[tuple[int, int], tuple[Evidence, ...]] = {}
        scores = np.full((len(targets), len(sources)), -np.inf)
        for row, target in enumerate(targets):
            for column, source in enumerate(sources):
                if self._feasible(source, target) and not self._strangers(source, target):
                    reasons = self._evidence(source, target, sources, targets)
                    evidence[row, column] = reasons
                    scores[row, column] = sum(e.weight for e in reasons)
        for row, choice in enumerate(assignment.assign(scores)):
            if choice is None:
                yield Pairing(targets[row], (), 0.0)
                continue
            near = [int(c) for c in np.argsort(choice.losses, kind="stable")]
            candidates = tuple(
                Candidate(sources[c], float(choice.losses[c]), evidence[row, c])
                for c in near
                if c == choice.column or choice.losses[c] < MARGIN
            )
            yield Pairing(targets[row], candidates, choice.margin)

    def _plain_equality(self, sources: list[Module], targets: list[Module]) -> list[Pairing]:
        """The common case without arithmetic: every target has one source of equal path."""
        partner: dict[int, Module] = {}
        paths: dict[tuple[str, ...], Module] = {m.path: m for m in sources}
        for target in targets:
            source = paths.get(target.path)
            if source is None or not self._names.exact(source, target):
                return []
            partner[id(target)] = source
        if self._running_numbers(targets):
            return []
        result: list[Pairing] = []
        for target in targets:
            source = partner[id(target)]
            reasons = self._evidence(source, target, sources, targets)
            margin = sum(e.weight for e in reasons)
            result.append(Pairing(target, (Candidate(source, 0.0, reasons),), margin))
        return result

    def _running_numbers(self, targets: Sequence[Module]) -> bool:
        return not self._names.identical and any(automatic(m) for m in targets)

    def _evidence(
        self,
        source: Module,
        target: Module,
        sources: Sequence[Module],
        targets: Sequence[Module],
    ) -> tuple[Evidence, ...]:
        names, reasons = self._names, list[Evidence]()

        def say(kind: str, weight: float, text: str) -> None:
            if weight >= _MENTIONED:
                reasons.append(Evidence(kind, round(weight, 3), text))  # pyright: ignore[reportArgumentType]

        numbered = names.identical or not (automatic(source) or automatic(target))
        exact = names.exact(source, target) if numbered else 0.0
        say("names", 2.0 * exact, f"{source.name} is {target.name} under a wrapper's prefix"
            if source.path != target.path else "equal names")  # fmt: skip
        words = names.words(source, target)
        say("names", words, f"{source.name} and {target.name} share words")
        flow = self._flow(source, target)
        say("dataflow", 2.0 * flow, "the same steps lead to it and follow from it"
            if flow > 0.99 else "what leads to it or follows from it agrees")  # fmt: skip
        tied = 1.0 if exact or words >= 0.2 or self.order.belief >= 0.5 else 0.3
        numbers = names.numbers(source, target) if numbered else 0.0
        say("numbers", tied * numbers, f"positions {source.numbers} and {target.numbers} agree")
        part = projection_of(source.path)
        if part and part == projection_of(target.path):
            say("names", 0.8, f"both are called the {part} projection")
        edge = edge_of(source.path)
        if edge and edge == edge_of(target.path):
            say("names", 0.5, f"both are called the {edge} of a model")
        here, there = norm_place(source.path), norm_place(target.path)
        if here and here == there and not self._three_norms:
            say("names", 0.8, f"both are called the norm of the {here} layers")
        agreement = self.trees.agreement(source, target)
        say("tree", 0.6 * min(agreement, 2.0), "in blocks that hold the same layers")
        ours, theirs = self._attached.get(id(source)), self._attached.get(id(target))
        if ours and theirs and self._partners.get(id(theirs)) is ours:
            say("attachment", 1.5, f"{ours.name} and {theirs.name}, which they follow, are paired")
        if len(sources) == len(targets) > 1 and sources.index(source) == targets.index(target):
            counted = self._places_count(sources, targets)
            say("numbers", (0.0, 0.45, 0.9)[counted],
                "the same place among layers of a block that numbers tell apart")  # fmt: skip
        before = self.trees.before_blocks(source, target)
        if before is not None and self._ordered:
            say("order", 0.5, f"both stand {'before' if before else 'behind'} the repeated blocks")
        if self._ordered and self.trees.same_place(source, target):
            say("order", 0.3, "the same place in blocks that hold the same layers in one order")
        elif self.order.aligned(source, target):
            family = _one_family(sources) and _one_family(targets)
            weight = (1.0 if family else 0.3) * self.order.belief
            say("order", weight, "the same place among layers of these kinds and shapes")
        alone = len(sources) == len(targets) == 1
        fit = 1.0 if self.coverage >= _COVERAGE else 0.5
        served = len(fitting_leaves(source, target))
        fit *= (1 + served / max(len(source.leaves), len(target.leaves))) / 2
        say("shape", fit, "the only two layers with these roles and shapes"
            if alone else f"{len(sources)} layers have these roles and shapes")  # fmt: skip
        return tuple(reasons)

    @cached_property
    def _three_norms(self) -> bool:
        """Whether blocks have a third norm, so that `norm2` may be another one's."""
        return any(THIRD_NORM.match(m.path[-1].lower()) for m in (*self._sources, *self._targets)
                   if m.path)  # fmt: skip

    def _places_count(self, sources: Sequence[Module], targets: Sequence[Module]) -> int:
        """On how many sides numbers alone tell the modules apart, in the order they stand in; 0
        where the other side's order means nothing."""
        sides = zip(self._catalogues, (sources, targets), strict=True)
        told = [(_counted(modules), catalogue.order != "sorted") for catalogue, modules in sides]
        return sum(counted for counted, _ in told) * all(a or b for a, b in told)

    def _flow(self, source: Module, target: Module) -> float:
        ours, theirs = self._prints
        if id(source) not in ours or id(target) not in theirs:
            return 0.0
        return dataflow.similarity(ours[id(source)], theirs[id(target)])


def _fits(source: Module, target: Module) -> bool:
    """Whether the largest tensors of both are served; a missing bias does not part two layers."""
    pairs = fitting_leaves(source, target)
    if not pairs:
        return False
    largest = max(target.leaves.values(), key=lambda leaf: leaf.info.size)
    counterpart = max(source.leaves.values(), key=lambda leaf: leaf.info.size)
    return largest.info.size == counterpart.info.size and largest in pairs


def _holds_norms(sides: tuple[list[Module], list[Module]]) -> bool:
    return any("var" in m.leaves for side in sides for m in side)


def _counted(modules: Sequence[Module]) -> bool:
    """Whether nothing but numbers, growing in the order of definition, tells the modules apart."""
    numbers = [m.numbers for m in modules]
    return len({m.words for m in modules}) == 1 and numbers == sorted(set(numbers))


def _one_family(modules: Sequence[Module]) -> bool:
    return len({m.family for m in modules}) == 1
