"""How strongly evidence speaks for pairs of layers, weighed for many pairs at once.

Every kind of evidence is a `Ground`: what it adds for each pair, and its words. Weights add up to a
score; they were set so that no single weak reason reaches the margin at which a pairing is settled
(`pairing.MARGIN`): equal paths 2.0, dataflow 2.0, shared words 1.0, numbers 1.0 (0.3 where nothing
else ties the two sides together), order 1.0 inside families of names that differ by number only and
0.3 across families, and 1.0 for fitting at all, halved where the two sides share little.

Scores are summed for all pairs of a cell; words are found only for the pairs that end up in a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regraft.matching.cells import Pairs
from regraft.matching.modules import Module
from regraft.matching.observations import Observations
from regraft.matching.tables import Flags, Weights
from regraft.plans import Evidence

# Below this share of modules that fit somewhere, a fit may be chance.
_COVERAGE = 0.5
# What a layer loses of its fit that shares no tensor but the largest with many others.
_SERVED = 0.9
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

    def __init__(self, seen: Observations) -> None:
        self._seen = seen
        self.partners = np.full(len(seen.sides[1]), -1, np.intp)

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

    # What can be at all

    def _possible(self, pairs: Pairs) -> Flags:
        possible = (self._seen.fitting.value(pairs) > 0) & (self._seen.odd.value(pairs) == 0)
        if self._seen.told_by_names:
            # Names tell the two apart, and no block that both are in says otherwise.
            other = (self._seen.strange.value(pairs) > 0) & ~self._seen.exact(pairs)
            possible &= ~other | (self._seen.around.agreement(pairs)[0] > 0)
        return possible

    # What speaks for it

    def _grounds(self, pairs: Pairs) -> Iterator[Ground]:
        agreement, same_rank = self._seen.around.agreement(pairs)
        yield from self._named(pairs)
        yield from self._claimed(pairs)
        yield Ground(
            "tree",
            0.6 * np.minimum(agreement, 2.0),
            lambda _: "in blocks that hold the same layers",
        )
        yield Ground(
            "tree",
            1.0 * self._seen.company[pairs.sources],
            lambda _: "in the part of the source that holds all unmistakable layers",
        )
        yield self._attachments(pairs)
        yield from self._in_order(pairs, same_rank)
        yield self._shape(pairs)

    def _named(self, pairs: Pairs) -> Iterator[Ground]:
        """Equal paths, shared words, dataflow and numbers."""

        def both(k: int) -> tuple[Module, Module]:
            return self._seen.sides[0][int(pairs.sources[k])], self._seen.sides[1][
                int(pairs.targets[k])
            ]

        def paths(k: int) -> str:
            source, target = both(k)
            if source.path == target.path:
                return "equal names"
            return f"{source.name} is {target.name} under a wrapper's prefix"

        running = self._seen.running[0][pairs.sources] | self._seen.running[1][pairs.targets]
        numbered = ~running | self._seen.names.identical
        exact = self._seen.exact(pairs) & numbered
        yield Ground("names", 2.0 * exact, paths)
        words = self._seen.words.value(pairs)
        yield Ground("names", words, lambda k: "{.name} and {.name} share words".format(*both(k)))
        flow = self._seen.flow.value(pairs)
        yield Ground(
            "dataflow",
            2.0 * flow,
            lambda k: (
                "the same steps lead to it and follow from it"
                if flow[k] > 0.99
                else "what leads to it or follows from it agrees"
            ),
        )
        ours, theirs = (
            pooled[at]
            for pooled, at in zip(self._seen.pooled, (pairs.sources, pairs.targets), strict=True)
        )
        yield Ground(
            "dataflow",
            0.45 * ((ours >= 0) & (ours == theirs)),
            lambda k: "both read a pooled map" if ours[k] else "both read a map as it is",
        )
        tied = exact | (words >= 0.2) | (self._seen.order.belief >= 0.5) | self._called_alike(pairs)
        yield Ground(
            "numbers",
            np.where(tied, 1.0, 0.3) * self._seen.positions.agree(pairs) * numbered,
            lambda k: "positions {.numbers} and {.numbers} agree".format(*both(k)),
        )

    def _called_alike(self, pairs: Pairs) -> Flags:
        """Whether both say that they are the same projection, in whatever words."""
        return self._seen.claims[0].said.agrees(pairs)

    def _claimed(self, pairs: Pairs) -> Iterator[Ground]:
        """Names that say which part of an attention, of a model or of a block a layer is."""
        for said, weight, text, _ in self._seen.claims:
            yield Ground(
                "names",
                weight * said.agrees(pairs),
                lambda k, said=said, text=text: text.format(said.word(pairs, k)),
            )

    def _attachments(self, pairs: Pairs) -> Ground:
        ours, theirs = self._seen.attached[0][pairs.sources], self._seen.attached[1][pairs.targets]
        both = (ours >= 0) & (theirs >= 0)
        return Ground(
            "attachment",
            1.5 * (both & (self.partners[np.where(both, theirs, 0)] == ours)),
            lambda k: (
                f"{self._seen.sides[0][int(ours[k])].name} and "
                f"{self._seen.sides[1][int(theirs[k])].name}, which they follow, are paired"
            ),
        )

    def _in_order(self, pairs: Pairs, same_rank: Flags) -> Iterator[Ground]:
        # Which is the gate, and which it gates, is no question of order; nor do layers whose names
        # say that they are two different ones have one place.
        spoken = ~(self._seen.mute[0][pairs.sources] | self._seen.mute[1][pairs.targets])
        for claim in self._seen.claims:
            if claim.sole:
                spoken &= ~claim.said.differs(pairs)
        told = pairs.each(self._seen.places_told) * spoken
        yield Ground(
            "numbers",
            0.45 * (told * pairs.same_place),
            lambda _: "the same place among layers of a block that numbers tell apart",
        )
        before = self._seen.outside[0][pairs.sources]
        outside = (before >= 0) & (before == self._seen.outside[1][pairs.targets])
        yield Ground(
            "order",
            0.5 * (outside & self._seen.ordered),
            lambda k: f"both stand {'before' if before[k] else 'behind'} the repeated blocks",
        )
        in_blocks = same_rank & self._seen.ordered & spoken
        yield Ground(
            "order",
            0.3 * in_blocks,
            lambda _: "the same place in blocks that hold the same layers in one order",
        )
        aligned = (self._seen.aligned[pairs.sources] == pairs.targets) & ~in_blocks & spoken
        family = pairs.each(self._seen.one_family) > 0
        yield Ground(
            "order",
            np.where(family, 1.0, 0.3) * self._seen.order.belief * aligned,
            lambda _: "the same place among layers of these kinds and shapes",
        )

    def _shape(self, pairs: Pairs) -> Ground:
        fit = 1.0 if self._seen.coverage >= _COVERAGE else 0.5

        def text(k: int) -> str:
            cell = pairs.cell(k)
            if cell.alone:
                return "the only two layers with these roles and shapes"
            return f"{len(cell.sources)} layers have these roles and shapes"

        # Among several, one that lacks a tensor is less likely than one that has the same.
        share = np.where(pairs.each(lambda cell: cell.alone) > 0, 0.5, _SERVED)
        return Ground("shape", fit * (1 - share * (1 - self._seen.served.value(pairs))), text)
