"""Pairs of modules: who is compared with whom, who wins, and by how much.

Modules of one class (equal roles and shapes) are parted by the paired containers that they are in,
so that the layers of a block are compared with those of its counterpart only. Within such a cell
the best one-to-one answer is found; a pairing is settled where every other answer is worse by a
margin.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regraft.matching.assignment import Choice, assign
from regraft.matching.cells import Cell, Pairs, batches
from regraft.matching.directions import direction_of
from regraft.matching.fitting import number_classes
from regraft.matching.modules import Module
from regraft.matching.names import automatic
from regraft.matching.observations import Observations
from regraft.matching.order import sequence
from regraft.matching.projections import at_odds
from regraft.matching.scoring import Scorer
from regraft.plans import Evidence
from regraft.tensors import Catalogue

# A pairing is settled when the best answer that says otherwise scores less by this much.
MARGIN = 0.8
# Margins are sums of numbers with three places.
_ROUNDING = 1e-6
# Candidates of an open pairing that are kept.
_KEPT = 64


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
        return self.margin >= MARGIN - _ROUNDING


class Pairer:
    """Pairs two catalogues' modules; `pairings` gives the answer."""

    def __init__(
        self,
        source: Catalogue,
        sources: Sequence[Module],
        target: Catalogue,
        targets: Sequence[Module],
    ) -> None:
        self._target = target
        self._sources, self._targets = sequence(source, sources), sequence(target, targets)
        fits: dict[tuple[object, object], bool] = {}
        self._classes = number_classes(self._sources, self._targets, fits)
        sides = self._sources, self._targets
        self._seen = Observations((source, target), sides, self._classes, fits)
        self._scorer = Scorer(self._seen)
        self._source_places = {id(m): place for place, m in enumerate(self._sources)}
        self._found: dict[int, Pairing] = {}  # by the target's index

    @property
    def coverage(self) -> float:
        """Share of the smaller side's modules that fit some module of the other."""
        return self._seen.coverage

    def pairings(self) -> list[Pairing]:
        """One Pairing for each target module, in the target's order."""
        by_class: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for side, modules in enumerate((self._sources, self._targets)):
            for place, module in enumerate(modules):
                by_class[self._classes[id(module)]][side].append(place)
        classes = [Cell(*sides) for sides in by_class.values() if sides[1]]
        # Norms last: they follow the layers that they are attached to.
        for norms in (False, True):
            self._pair([cell for cell in classes if self._holds_norms(cell) is norms])
        nothing: tuple[Candidate, ...] = ()
        return [
            self._found.get(place, Pairing(target, nothing, 0.0))
            for place, target in enumerate(self._targets)
        ]

    def _holds_norms(self, cell: Cell) -> bool:
        sides = zip((self._sources, self._targets), cell, strict=True)
        return any("var" in side[place].leaves for side, places in sides for place in places)

    def _pair(self, classes: Iterable[Cell]) -> None:
        """Pairs the modules of these classes, and notes what is settled."""
        plain: list[Cell] = []
        equal: list[tuple[int, int, int]] = []
        cells: list[Cell] = []
        for cell in classes:
            places = self._plain_equality(cell)
            if places:
                equal += [(len(plain), row, column) for row, column in places]
                plain.append(cell)
            else:
                parts = (way for part in self._cells(cell) for way in self._ways(part))
                cells += [part for part in parts if part.sources]
        if equal:
            told = self._scorer.reasons(Pairs.chosen(plain, equal))
            for (number, row, column), why in zip(equal, told, strict=True):
                best = Candidate(self._sources[plain[number].sources[column]], 0.0, why)
                self._note(plain[number].targets[row], (best,), sum(e.weight for e in why))
        while cells:
            self._note_all(cells, list(self._choices(cells)))
            cells = [rest for cell in cells for rest in self._rest(cell)]

    def _rest(self, cell: Cell) -> Iterator[Cell]:
        """What of a cell is open once some of it is settled, where it is as many on both sides:
        numbers and order may tell these apart that did not tell all. Or the cell without layers for
        which nothing was left and that are tied to one that has got it: which it is is the same."""
        settled = [p for p in cell.targets if (found := self._found.get(p)) and found.settled]
        taken = {int(self._scorer.partners[place]) for place in settled}
        served = {self._tied[p] for p in cell.targets if p in self._found and p in self._tied}
        spare = {p for p in cell.targets if p not in self._found and self._tied.get(p) in served}
        rest = Cell(
            [place for place in cell.sources if place not in taken],
            [place for place in cell.targets if place not in settled and place not in spare],
        )
        if (settled and rest.square) or (spare and rest.targets):
            yield rest

    @cached_property
    def _tied(self) -> dict[int, str]:
        """By target, where all it holds is one tensor that others hold as well, which one it is."""
        first = {name: names[0] for names in self._target.ties for name in names}
        lone = {p: leaf.info.name for p, m in enumerate(self._targets) if len(m.leaves) == 1
                for leaf in m.leaves.values()}  # fmt: skip
        return {place: first[name] for place, name in lone.items() if name in first}

    def _note_all(self, cells: list[Cell], choices: list[tuple[int, int, Choice]]) -> None:
        listed = [(n, row, column) for n, row, choice in choices for column, _ in choice.near]
        if not listed:
            return
        told = iter(self._scorer.reasons(Pairs.chosen(cells, listed)))
        for number, row, choice in choices:
            sources = cells[number].sources
            candidates = tuple(
                Candidate(self._sources[sources[column]], loss, next(told))
                for column, loss in choice.near
            )
            self._note(cells[number].targets[row], candidates, choice.margin)

    def _note(self, place: int, candidates: tuple[Candidate, ...], margin: float) -> None:
        pairing = Pairing(self._targets[place], candidates, margin)
        self._found[place] = pairing
        if pairing.settled:
            self._scorer.partners[place] = self._source_places[id(candidates[0].source)]

    def _choices(self, cells: list[Cell]) -> Iterator[tuple[int, int, Choice]]:
        """The best answer within each cell: its number, the row and what was chosen for it."""
        scores: dict[int, NDArray[np.float64]] = {}
        for pairs in batches(cells):
            weighed = self._scorer.scores(pairs)
            ends = np.flatnonzero(np.diff(pairs.of)) + 1
            for part in np.split(np.arange(len(pairs)), ends):
                number = int(pairs.of[part[0]])
                sources, targets = cells[number]
                if number not in scores:
                    scores[number] = np.empty((len(targets), len(sources)))
                scores[number][pairs.rows[part], pairs.columns[part]] = weighed[part]
                if pairs.rows[part[-1]] < len(targets) - 1:
                    continue
                for row, choice in enumerate(assign(scores.pop(number), MARGIN)):
                    if choice is not None:
                        yield number, row, choice._replace(near=choice.near[:_KEPT])

    def _cells(self, cell: Cell) -> Iterator[Cell]:
        """Modules of one class parted by the paired containers they are in, innermost first; those
        that no container parts, that are not as many on both sides, or of which none can be the
        other by what they say, stay together."""
        trees = self._seen.trees
        rest: tuple[list[int], list[int]] = ([*cell.sources], [*cell.targets])
        sides = self._sources, self._targets
        levels = [
            {place: trees.strong(sides[side][place]) for place in rest[side]} for side in (0, 1)
        ]
        for depth in range(max(map(len, levels[0].values()), default=0), 0, -1):
            parted: dict[int, tuple[list[int], list[int]]] = {}
            for side in (0, 1):
                for place in rest[side]:
                    around = levels[side][place]
                    if len(around) >= depth:
                        parted.setdefault(around[depth - 1], ([], []))[side].append(place)
            done: tuple[set[int], set[int]] = (set(), set())
            for left, right in parted.values():
                if len(left) == len(right) and self._may_meet(left, right):
                    yield Cell(left, right)
                    done[0].update(left)
                    done[1].update(right)
            rest = tuple([p for p in rest[side] if p not in done[side]] for side in (0, 1))  # pyright: ignore[reportAssignmentType]
        left, right = (
            [p for p in rest[side] if not trees.is_surplus(sides[side][p])] for side in (0, 1)
        )
        if right:
            yield Cell(left, right)

    def _may_meet(self, left: Iterable[int], right: Sequence[int]) -> bool:
        says = [self._targets[place].says for place in right]
        return any(not at_odds(self._sources[p].says, other) for p in left for other in says)

    def _ways(self, cell: Cell) -> Iterator[Cell]:
        """A cell parted by the way that recurrent layers run, where all of them say it."""
        said = [
            [direction_of(side[place].path) for place in places]
            for side, places in zip((self._sources, self._targets), cell, strict=True)
        ]
        ways = {way for side in said for way in side}
        for way in sorted(ways) if "" not in ways else ():
            left, right = (
                [place for place, says in zip(places, side, strict=True) if says == way]
                for places, side in zip(cell, said, strict=True)
            )
            yield Cell(left, right)
        if "" in ways:
            yield cell

    def _plain_equality(self, cell: Cell) -> list[tuple[int, int]]:
        """The common case without arithmetic, where every target has one source of equal path: rows
        and columns of these pairs."""
        columns = {self._sources[place].path: n for n, place in enumerate(cell.sources)}
        found: list[tuple[int, int]] = []
        for row, place in enumerate(cell.targets):
            target = self._targets[place]
            column = columns.get(target.path)
            if column is None or not self._seen.equal_names(cell.sources[column], place):
                return []
            found.append((row, column))
        running = not self._seen.names.identical and any(
            automatic(self._targets[place]) for place in cell.targets
        )
        return [] if running else found
