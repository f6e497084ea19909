"""What is seen of the modules of both sides, as tables; each is made when it is first asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

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
    half_of,
    norm_place,
    projection_of,
)
from regraft.matching.tables import Around, Flags, Kinds, Places, Positions, Said, Sides
from regraft.matching.towers import in_company
from regraft.matching.trees import Trees
from regraft.tensors import Catalogue


class Claim(NamedTuple):
    """What modules say of themselves, how far an agreement counts, and its words; `sole`: whether
    it tells layers of one block apart, so that their order does not."""

    said: Said
    weight: float
    text: str
    sole: bool


class Observations:
    """Names, numbers, order, trees, dataflow and attachments of two catalogues' modules."""

    def __init__(
        self,
        catalogues: tuple[Catalogue, Catalogue],
        sides: Sides,
        classes: Mapping[int, int],
        fits: Mapping[tuple[object, object], bool],
    ) -> None:
        self._catalogues, self._classes, self._fits = catalogues, classes, fits
        self.sides = sides
        self.names = Names(*sides, self._feasible)
        self.trees = Trees(*sides, classes)
        self.order = Order(*sides, classes)
        self.around = Around(sides, self.trees.pairs, classes)
        self.positions = Positions(sides, family_of, self.names.places)
        self.ordered = "sorted" not in (catalogues[0].order, catalogues[1].order)

    def _feasible(self, source: Module, target: Module) -> bool:
        fits = self._fits.get((source.key, target.key), False)
        return fits and not at_odds(source.says, target.says)

    @cached_property
    def coverage(self) -> float:
        """Share of the smaller side's modules that fit some module of the other."""
        classes = [{self._classes[id(m)] for m in side} for side in self.sides]
        both = classes[0] & classes[1]
        if not any(self.sides):
            return 1.0  # rules have said it all
        return max(
            sum(self._classes[id(m)] in both for m in side) / max(1, len(side))
            for side in self.sides
        )

    @cached_property
    def fitting(self) -> Kinds:
        return Kinds(self.sides, lambda m: m.key, lambda a, b: self._fits.get((a.key, b.key)))

    @cached_property
    def odd(self) -> Kinds:
        return Kinds(self.sides, lambda m: claims(m.says), lambda a, b: at_odds(a.says, b.says))

    @cached_property
    def strange(self) -> Kinds:
        return Kinds(self.sides, telling, self.names.other_words)

    @cached_property
    def told_by_names(self) -> bool:
        """Whether layers that are called otherwise are other layers: nearly all have equal names,
        and what is left is no complete set of counterparts, of several sorts."""
        counts = [Counter(self._classes[id(m)] for m in side) for side in self.sides]
        exact = self.names.exact_pairs
        named = {id(m) for m in self.sides[1]} - {target for _, target in exact}
        left = {self._classes[one] for one in named}
        return self.names.told and (counts[0] != counts[1] or len(left) < 2)

    def equal_names(self, source: int, target: int) -> bool:
        """Whether the paths of two modules are equal under the prefixes that most vote for."""
        return (id(self.sides[0][source]), id(self.sides[1][target])) in self.names.exact_pairs

    @cached_property
    def served(self) -> Kinds:
        return Kinds(self.sides, lambda m: m.key, _share_served)

    @cached_property
    def company(self) -> Flags:
        """By source, whether it stands with the layers that cannot be mistaken."""
        found = in_company(*self.sides, self._classes)
        return np.array([id(m) in found for m in self.sides[0]], bool)

    @cached_property
    def families(self) -> Kinds:
        return Kinds(self.sides, lambda m: m.family)

    @cached_property
    def words(self) -> Kinds:
        return Kinds(self.sides, lambda m: frozenset(word_counts(m).items()), self.names.words)

    @cached_property
    def flow(self) -> Kinds:
        prints: dict[int, dataflow.Fingerprint] = {}
        if all(catalogue.flow for catalogue in self._catalogues):
            for catalogue, side in zip(self._catalogues, self.sides, strict=True):
                prints |= dataflow.fingerprints(catalogue.flow, side, self._classes)

        def similar(source: Module, target: Module) -> float:
            ours, theirs = prints.get(id(source)), prints.get(id(target))
            return dataflow.similarity(ours, theirs) if ours and theirs else 0.0

        return Kinds(self.sides, lambda m: prints.get(id(m)), similar)

    @cached_property
    def pooled(self) -> tuple[Places, ...]:
        """By module, 1 or 0 for whether it reads a pooled map; -1 where the graphs do not say."""
        sides = zip(self._catalogues, self.sides, strict=True)
        found = [dataflow.pooled(catalogue.flow, side) for catalogue, side in sides]
        said = all(found)
        return tuple(
            np.array([int(told[id(m)]) if said and id(m) in told else -1 for m in side], np.intp)
            for told, side in zip(found, self.sides, strict=True)
        )

    @cached_property
    def claims(self) -> list[Claim]:
        ways: list[tuple[Callable[[tuple[str, ...]], str], float, str, bool]] = [
            (projection_of, 0.8, "both are called the {} projection", True),
            (edge_of, 0.5, "both are called the {} of a model", False),
        ]
        # With a third norm in blocks, `norm2` may be another one's.
        lasts = (m.says[-1].lower() for side in self.sides for m in side if m.path)
        if not any(map(THIRD_NORM.match, lasts)):
            ways.append((norm_place, 0.8, "both are called the norm of the {} layers", True))
        halves = [{half_of(m.says) for m in side} for side in self.sides]
        if all({"encoder", "decoder"} <= told for told in halves):
            ways.append((half_of, 0.5, "both are in the {} of a model that has two halves", False))
        return [Claim(Said(self.sides, of), weight, text, sole) for of, weight, text, sole in ways]

    @cached_property
    def running(self) -> tuple[Flags, ...]:
        """Whether the framework made up a module's name."""
        return tuple(np.array([automatic(m) for m in side], bool) for side in self.sides)

    @cached_property
    def mute(self) -> tuple[Flags, ...]:
        """Whether a module's name means nothing where it is expected to."""
        return tuple(np.array([m.alias == "" for m in side], bool) for side in self.sides)

    def exact(self, pairs: Pairs) -> Flags:
        return np.isin(pairs.sources * len(self.sides[1]) + pairs.targets, self._exact_joint)

    @cached_property
    def _exact_joint(self) -> Places:
        return self._joint(self.names.exact_pairs)

    @cached_property
    def aligned(self) -> Places:
        """By source, the target at the same place in the order."""
        found = np.full(len(self.sides[0]), -1, np.intp)
        places, targets = np.divmod(self._joint(self.order.pairs), max(1, len(self.sides[1])))
        found[places] = targets
        return found

    def _joint(self, found: Iterable[tuple[int, int]]) -> Places:
        """Pairs of modules, by id, as numbers."""
        ours, theirs = self._places
        count = len(self.sides[1])
        return np.array([ours[a] * count + theirs[b] for a, b in found], np.intp)

    @cached_property
    def _places(self) -> tuple[dict[int, int], ...]:
        return tuple({id(m): place for place, m in enumerate(side)} for side in self.sides)

    @cached_property
    def attached(self) -> tuple[Places, ...]:
        """By module, the layer that it is attached to; -1: none."""
        found: list[Places] = []
        for catalogue, side, places in zip(self._catalogues, self.sides, self._places, strict=True):
            layers = attached(catalogue, side)
            at = [places[id(layers[id(m)])] if id(m) in layers else -1 for m in side]
            found.append(np.array(at, np.intp))
        return tuple(found)

    @cached_property
    def outside(self) -> tuple[Places, ...]:
        """By module: 1 before all paired blocks, 0 behind them, -1 neither."""
        outside = self.trees.outside
        return tuple(
            np.array([outside.get(id(m), -1) for m in side], np.intp) for side in self.sides
        )

    def places_told(self, cell: Cell) -> int:
        """On how many sides numbers alone tell a cell's modules apart, in the order they stand in;
        0 where the other side's order means nothing."""
        if not cell.square:
            return 0
        told = [
            (_counted([side[i] for i in places]), catalogue.order != "sorted")
            for catalogue, side, places in zip(self._catalogues, self.sides, cell, strict=True)
        ]
        return sum(counted for counted, _ in told) * all(a or b for a, b in told)

    def one_family(self, cell: Cell) -> bool:
        """Whether on both sides the names of a cell's modules differ by number only."""
        families = self.families.codes
        sides = zip(families, cell, strict=True)
        return all(len(set(codes[list(places)].tolist())) == 1 for codes, places in sides)


def _share_served(source: Module, target: Module) -> float:
    return len(fitting_leaves(source, target)) / max(len(source.leaves), len(target.leaves))


def _counted(modules: Sequence[Module]) -> bool:
    """Whether nothing but numbers, growing in the order of definition, tells the modules apart."""
    numbers = [m.numbers for m in modules]
    return len({m.words for m in modules}) == 1 and numbers == sorted(set(numbers))
