"""How strongly evidence speaks for pairs of layers, weighed for many pairs at once.

Every kind of evidence is a `Ground`: what it adds for each pair, and its words. Weights add up to a
score; they were set so that no single weak reason reaches the margin at which a pairing is settled
(`pairing.MARGIN`): equal paths 2.0, dataflow 2.0, shared words 1.0, numbers 1.0 (0.3 where nothing
else ties the two sides together), order 1.0 inside families of names that differ by number only and
0.3 across families, and 1.0 for fitting at all, halved where the two sides share little.

Scores are summed for all pairs of a cell; words are found only for the pairs that end up in a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regraft.matching import dataflow
from regraft.matching.attachments import attached
from regraft.matching.cells import Cell, Pairs
from regraft.matching.fitting import fitting_leaves
from regraft.matching.modules import Module
from regraft.matching.names import Names, automatic, family_of, telling, word_counts
from regraft.matching.order import Order
from regraft.matching.projections import (
    THIRD_NORM,
    at_odds,
    claims,
    edge_of,
    norm_place,
    projection_of,
)
from regraft.matching.tables import Around, Flags, Kinds, Places, Positions, Said, Weights
from regraft.matching.trees import Trees
from regraft.plans import Evidence
from regraft.tensors import Catalogue

# Below this share of modules that fit somewhere, a fit may be chance.
_COVERAGE = 0.5
# Evidence with a smaller weight is not worth a line.
_MENTIONED = 0.05


class Ground(NamedTuple):
    """One reason, for many pairs: what it adds for each of them, and its words for the k-th."""

    kind: str
    weights: NDArray[np.floating[Any]]
    text: Callable[[int], str]


class Scorer:
    """All evidence between two catalogues' modules.

    `partners`: by target, the source that it was paired with for certain, by index; -1: none yet.
    """

    def __init__(
        self,
        catalogues: tuple[Catalogue, Catalogue],
        sides: tuple[Sequence[Module], Sequence[Module]],
        classes: Mapping[int, int],
        fits: Mapping[tuple[object, object], bool],
    ) -> None:
        self._catalogues, self._sides, self._classes, self._fits = catalogues, sides, classes, fits
        self.names = Names(*sides, self._feasible)
        self.trees = Trees(*sides, classes)
        self._order = Order(*sides, classes)
        self._around = Around(sides, self.trees.pairs, classes)
        self._positions = Positions(sides, family_of, self.names.places)
        self._ordered = "sorted" not in (catalogues[0].order, catalogues[1].order)
        self.partners = np.full(len(sides[1]), -1, np.intp)

    def scores(self, pairs: Pairs) -> Weights:
        """`[pairs]`: the sum of all evidence for each; `-inf` where a pair cannot be."""
        total = np.where(self._possible(pairs), 0.0, -np.inf)
        for ground in self._grounds(pairs):
            total += np.where(ground.weights >= _MENTIONED, np.round(ground.weights, 3), 0.0)
        return total

    def reasons(self, pairs: Pairs) -> list[tuple[Evidence, ...]]:
        """For each pair the evidence that is worth a line."""
        found: list[list[Evidence]] = [[] for _ in range(len(pairs))]
        for kind, weights, text in self._grounds(pairs):
            for k in np.flatnonzero(weights >= _MENTIONED).tolist():
                weight = round(float(weights[k]), 3)
                found[k].append(Evidence(kind, weight, text(k)))  # pyright: ignore[reportArgumentType]
        return [tuple(reasons) for reasons in found]

    def equal_names(self, source: int, target: int) -> bool:
        """Whether the paths of two modules are equal under the prefixes that most vote for."""
        return (id(self._sides[0][source]), id(self._sides[1][target])) in self.names.exact_pairs

    @cached_property
    def coverage(self) -> float:
        """Share of the smaller side's modules that fit some module of the other."""
        classes = [{self._classes[id(m)] for m in side} for side in self._sides]
        both = classes[0] & classes[1]
        if not any(self._sides):
            return 1.0  # rules have said it all
        return max(
            sum(self._classes[id(m)] in both for m in side) / max(1, len(side))
            for side in self._sides
        )

    # What can be at all

    def _feasible(self, source: Module, target: Module) -> bool:
        fits = self._fits.get((source.key, target.key), False)
        return fits and not at_odds(source.path, target.path)

    def _possible(self, pairs: Pairs) -> Flags:
        possible = (self._fitting.value(pairs) > 0) & (self._odd.value(pairs) == 0)
        if self.names.told:
            # Names tell the two apart, and no block that both are in says otherwise.
            other = (self._strange.value(pairs) > 0) & ~self._exact(pairs)
            possible &= ~other | (self._around.agreement(pairs)[0] > 0)
        return possible

    @cached_property
    def _fitting(self) -> Kinds:
        return Kinds(self._sides, lambda m: m.key, lambda a, b: self._fits.get((a.key, b.key)))

    @cached_property
    def _odd(self) -> Kinds:
        return Kinds(self._sides, lambda m: claims(m.path), lambda a, b: at_odds(a.path, b.path))

    @cached_property
    def _strange(self) -> Kinds:
        return Kinds(self._sides, telling, self.names.other_words)

    # What speaks for it

    def _grounds(self, pairs: Pairs) -> Iterator[Ground]:
        agreement, same_rank = self._around.agreement(pairs)
        yield from self._named(pairs)
        yield from self._claimed(pairs)
        yield Ground(
            "tree",
            0.6 * np.minimum(agreement, 2.0),
            lambda _: "in blocks that hold the same layers",
        )
        yield self._attachments(pairs)
        yield from self._in_order(pairs, same_rank)
        yield self._shape(pairs)

    def _named(self, pairs: Pairs) -> Iterator[Ground]:
        """Equal paths, shared words, dataflow and numbers."""

        def both(k: int) -> tuple[Module, Module]:
            return self._sides[0][int(pairs.sources[k])], self._sides[1][int(pairs.targets[k])]

        def paths(k: int) -> str:
            source, target = both(k)
            if source.path == target.path:
                return "equal names"
            return f"{source.name} is {target.name} under a wrapper's prefix"

        running = self._running[0][pairs.sources] | self._running[1][pairs.targets]
        numbered = ~running | self.names.identical
        exact = self._exact(pairs) & numbered
        yield Ground("names", 2.0 * exact, paths)
        words = self._words.value(pairs)
        yield Ground("names", words, lambda k: "{.name} and {.name} share words".format(*both(k)))
        flow = self._flow.value(pairs)
        yield Ground(
            "dataflow",
            2.0 * flow,
            lambda k: (
                "the same steps lead to it and follow from it"
                if flow[k] > 0.99
                else "what leads to it or follows from it agrees"
            ),
        )
        ours, theirs = self._pooled[0][pairs.sources], self._pooled[1][pairs.targets]
        yield Ground(
            "dataflow",
            0.45 * ((ours >= 0) & (ours == theirs)),
            lambda k: "both read a pooled map" if ours[k] else "both read a map as it is",
        )
        tied = exact | (words >= 0.2) | (self._order.belief >= 0.5)
        yield Ground(
            "numbers",
            np.where(tied, 1.0, 0.3) * self._positions.agree(pairs) * numbered,
            lambda k: "positions {.numbers} and {.numbers} agree".format(*both(k)),
        )

    def _claimed(self, pairs: Pairs) -> Iterator[Ground]:
        """Names that say which part of an attention, of a model or of a block a layer is."""
        for said, weight, text in self._claims:
            yield Ground(
                "names",
                weight * said.agrees(pairs),
                lambda k, said=said, text=text: text.format(said.word(pairs, k)),
            )

    def _attachments(self, pairs: Pairs) -> Ground:
        ours, theirs = self._attached[0][pairs.sources], self._attached[1][pairs.targets]
        both = (ours >= 0) & (theirs >= 0)
        return Ground(
            "attachment",
            1.5 * (both & (self.partners[np.where(both, theirs, 0)] == ours)),
            lambda k: (
                f"{self._sides[0][int(ours[k])].name} and "
                f"{self._sides[1][int(theirs[k])].name}, which they follow, are paired"
            ),
        )

    def _in_order(self, pairs: Pairs, same_rank: Flags) -> Iterator[Ground]:
        told = pairs.each(self._places_told)
        yield Ground(
            "numbers",
            0.45 * (told * pairs.same_place),
            lambda _: "the same place among layers of a block that numbers tell apart",
        )
        before = self._outside[0][pairs.sources]
        outside = (before >= 0) & (before == self._outside[1][pairs.targets])
        yield Ground(
            "order",
            0.5 * (outside & self._ordered),
            lambda k: f"both stand {'before' if before[k] else 'behind'} the repeated blocks",
        )
        in_blocks = same_rank & self._ordered
        yield Ground(
            "order",
            0.3 * in_blocks,
            lambda _: "the same place in blocks that hold the same layers in one order",
        )
        aligned = (self._aligned[pairs.sources] == pairs.targets) & ~in_blocks
        family = pairs.each(self._one_family) > 0
        yield Ground(
            "order",
            np.where(family, 1.0, 0.3) * self._order.belief * aligned,
            lambda _: "the same place among layers of these kinds and shapes",
        )

    def _shape(self, pairs: Pairs) -> Ground:
        fit = 1.0 if self.coverage >= _COVERAGE else 0.5

        def text(k: int) -> str:
            cell = pairs.cell(k)
            if cell.alone:
                return "the only two layers with these roles and shapes"
            return f"{len(cell.sources)} layers have these roles and shapes"

        return Ground("shape", fit * (1 + self._served.value(pairs)) / 2, text)

    # What the evidence is taken from

    @cached_property
    def _served(self) -> Kinds:
        return Kinds(self._sides, lambda m: m.key, _share_served)

    @cached_property
    def _families(self) -> Kinds:
        return Kinds(self._sides, lambda m: m.family)

    @cached_property
    def _words(self) -> Kinds:
        return Kinds(self._sides, lambda m: frozenset(word_counts(m).items()), self.names.words)

    @cached_property
    def _flow(self) -> Kinds:
        prints: dict[int, dataflow.Fingerprint] = {}
        if all(catalogue.flow for catalogue in self._catalogues):
            for catalogue, side in zip(self._catalogues, self._sides, strict=True):
                prints |= dataflow.fingerprints(catalogue.flow, side, self._classes)

        def similar(source: Module, target: Module) -> float:
            ours, theirs = prints.get(id(source)), prints.get(id(target))
            return dataflow.similarity(ours, theirs) if ours and theirs else 0.0

        return Kinds(self._sides, lambda m: prints.get(id(m)), similar)

    @cached_property
    def _pooled(self) -> tuple[Places, ...]:
        """By module, 1 or 0 for whether it reads a pooled map; -1 where the graphs do not say."""
        sides = zip(self._catalogues, self._sides, strict=True)
        found = [dataflow.pooled(catalogue.flow, side) for catalogue, side in sides]
        said = all(found)
        return tuple(
            np.array([int(told[id(m)]) if said and id(m) in told else -1 for m in side], np.intp)
            for told, side in zip(found, self._sides, strict=True)
        )

    @cached_property
    def _claims(self) -> list[tuple[Said, float, str]]:
        ways: list[tuple[Callable[[tuple[str, ...]], str], float, str]] = [
            (projection_of, 0.8, "both are called the {} projection"),
            (edge_of, 0.5, "both are called the {} of a model"),
        ]
        # With a third norm in blocks, `norm2` may be another one's.
        lasts = (m.path[-1].lower() for side in self._sides for m in side if m.path)
        if not any(map(THIRD_NORM.match, lasts)):
            ways.append((norm_place, 0.8, "both are called the norm of the {} layers"))
        return [(Said(self._sides, of), weight, text) for of, weight, text in ways]

    @cached_property
    def _running(self) -> tuple[Flags, ...]:
        """Whether the framework made up a module's name."""
        return tuple(np.array([automatic(m) for m in side], bool) for side in self._sides)

    def _exact(self, pairs: Pairs) -> Flags:
        return np.isin(pairs.sources * len(self._sides[1]) + pairs.targets, self._exact_joint)

    @cached_property
    def _exact_joint(self) -> Places:
        return self._joint(self.names.exact_pairs)

    @cached_property
    def _aligned(self) -> Places:
        """By source, the target at the same place in the order."""
        found = np.full(len(self._sides[0]), -1, np.intp)
        places, targets = np.divmod(self._joint(self._order.pairs), max(1, len(self._sides[1])))
        found[places] = targets
        return found

    def _joint(self, found: Iterable[tuple[int, int]]) -> Places:
        """Pairs of modules, by id, as numbers."""
        ours, theirs = self._places
        count = len(self._sides[1])
        return np.array([ours[a] * count + theirs[b] for a, b in found], np.intp)

    @cached_property
    def _places(self) -> tuple[dict[int, int], ...]:
        return tuple({id(m): place for place, m in enumerate(side)} for side in self._sides)

    @cached_property
    def _attached(self) -> tuple[Places, ...]:
        """By module, the layer that it is attached to; -1: none."""
        found: list[Places] = []
        for catalogue, side, places in zip(
            self._catalogues, self._sides, self._places, strict=True
        ):
            layers = attached(catalogue, side)
            at = [places[id(layers[id(m)])] if id(m) in layers else -1 for m in side]
            found.append(np.array(at, np.intp))
        return tuple(found)

    @cached_property
    def _outside(self) -> tuple[Places, ...]:
        """By module: 1 before all paired blocks, 0 behind them, -1 neither."""
        outside = self.trees.outside
        return tuple(
            np.array([outside.get(id(m), -1) for m in side], np.intp) for side in self._sides
        )

    def _places_told(self, cell: Cell) -> int:
        """On how many sides numbers alone tell a cell's modules apart, in the order they stand in;
        0 where the other side's order means nothing."""
        if not cell.square:
            return 0
        told = [
            (_counted([side[i] for i in places]), catalogue.order != "sorted")
            for catalogue, side, places in zip(self._catalogues, self._sides, cell, strict=True)
        ]
        return sum(counted for counted, _ in told) * all(a or b for a, b in told)

    def _one_family(self, cell: Cell) -> bool:
        """Whether on both sides the names of a cell's modules differ by number only."""
        families = self._families.codes
        sides = zip(families, cell, strict=True)
        return all(len(set(codes[list(places)].tolist())) == 1 for codes, places in sides)


def _share_served(source: Module, target: Module) -> float:
    return len(fitting_leaves(source, target)) / max(len(source.leaves), len(target.leaves))


def _counted(modules: Sequence[Module]) -> bool:
    """Whether nothing but numbers, growing in the order of definition, tells the modules apart."""
    numbers = [m.numbers for m in modules]
    return len({m.words for m in modules}) == 1 and numbers == sorted(set(numbers))
