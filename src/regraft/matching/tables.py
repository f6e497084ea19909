"""Modules of both sides as tables, so that evidence can be weighed for many pairs at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from regraft.matching.cells import Pairs
from regraft.matching.modules import Module
from regraft.matching.trees import Aligned

Places = NDArray[np.intp]
Weights = NDArray[np.float64]
Flags = NDArray[np.bool_]
Sides = tuple[Sequence[Module], Sequence[Module]]


class Kinds:
    """Modules by what some evidence sees of them: `of` one module, `ask` of two.

    `ask` is asked once for each two kinds that meet.
    """

    def __init__(
        self,
        sides: Sides,
        of: Callable[[Module], Hashable],
        ask: Callable[[Module, Module], float | None] = lambda _, __: 0.0,
    ) -> None:
        codes: dict[Hashable, int] = {}
        self._sides, self._ask = sides, ask
        self.codes = tuple(
            np.array([codes.setdefault(of(m), len(codes)) for m in side], np.intp) for side in sides
        )
        self._count = len(codes)
        self._known: dict[int, float] = {}

    def value(self, pairs: Pairs) -> Weights:
        """What is said of each pair's kinds; `None` counts as 0."""
        ours, theirs = self.codes
        joint = ours[pairs.sources] * self._count + theirs[pairs.targets]
        met, first, inverse = np.unique(joint, return_index=True, return_inverse=True)
        values = np.empty(len(met))
        for place, (code, k) in enumerate(zip(met.tolist(), first.tolist(), strict=True)):
            known = self._known.get(code)
            if known is None:
                source = self._sides[0][int(pairs.sources[k])]
                known = float(self._ask(source, self._sides[1][int(pairs.targets[k])]) or 0.0)
                self._known[code] = known
            values[place] = known
        return values[inverse]


class Said:
    """What each module says of itself, in a word or not at all."""

    def __init__(self, sides: Sides, of: Callable[[tuple[str, ...]], str]) -> None:
        words: dict[str, int] = {"": 0}
        self._codes = tuple(
            np.array([words.setdefault(of(m.says), len(words)) for m in side], np.intp)
            for side in sides
        )
        self._words = list(words)

    def agrees(self, pairs: Pairs) -> Flags:
        ours = self._codes[0][pairs.sources]
        return (ours > 0) & (ours == self._codes[1][pairs.targets])

    def differs(self, pairs: Pairs) -> Flags:
        """Whether both say something, and not the same."""
        ours, theirs = self._codes[0][pairs.sources], self._codes[1][pairs.targets]
        return (ours > 0) & (theirs > 0) & (ours != theirs)

    def word(self, pairs: Pairs, k: int) -> str:
        return self._words[self._codes[0][pairs.sources[k]]]


# Places of the source's numbers, those of the target's that answer to them, and the shift between.
Shifts = tuple[tuple[int, int, int], ...]


class Positions:
    """The numbers of modules' paths, which are positions, and how they agree under the shifts that
    lead from one family of names to the other."""

    def __init__(
        self,
        sides: Sides,
        family: Callable[[Module], str],
        shifts: Callable[[Module, Module], Shifts],
    ) -> None:
        self._tables = tuple(padded([m.numbers for m in side], 0) for side in sides)
        self._known: dict[Shifts, int] = {}

        def number(source: Module, target: Module) -> float:
            found = shifts(source, target)
            # From 1 on; 0 where they cannot be compared.
            return 1.0 + self._known.setdefault(found, len(self._known)) if found else 0.0

        self._families = Kinds(sides, family, number)

    def agree(self, pairs: Pairs) -> Weights:
        """1 where all positions agree, up to 0.3 where some do, 0 where none or no numbers."""
        groups = self._families.value(pairs)
        result = np.zeros(len(pairs))
        for shifts, number in list(self._known.items()):
            chosen = np.flatnonzero(groups == number + 1)
            if not len(chosen):
                continue
            ours, theirs, steps = (list(column) for column in zip(*shifts, strict=True))
            before = self._tables[0][pairs.sources[chosen][:, None], ours]
            after = self._tables[1][pairs.targets[chosen][:, None], theirs]
            agree = (after - before == np.array(steps)).sum(axis=1)
            result[chosen] = np.where(agree == len(shifts), 1.0, 0.3 * agree / len(shifts))
        return result


class Around:
    """The paired containers around modules, outermost first, and a module's rank among those of
    its class in each."""

    def __init__(self, sides: Sides, aligned: Sequence[Aligned], classes: Mapping[int, int]):
        # The last entry is for none.
        self._weights = np.array([*(pair.weight for pair in aligned), 0.0])
        self._ordered = np.array([*(pair.same_order for pair in aligned), False])
        tables: list[tuple[Places, Places]] = []
        for side, members in zip(sides, ("source", "target"), strict=True):
            places = {id(m): place for place, m in enumerate(side)}
            levels: list[list[int]] = [[] for _ in side]
            ranks: list[list[int]] = [[] for _ in side]
            for number, pair in enumerate(aligned):
                met: Counter[int] = Counter()
                for module in getattr(pair, members).members:
                    place, one = places[id(module)], classes[id(module)]
                    levels[place].append(number)
                    ranks[place].append(met[one])
                    met[one] += 1
            tables.append((padded(levels, -1), padded(ranks, -1)))
        self._tables = tables

    def agreement(self, pairs: Pairs) -> tuple[Weights, Flags]:
        """For each pair how many levels both are in, less those that part them; and whether both
        are the n-th of their class in the innermost of these, which holds layers of the same
        classes in the same order."""
        (ours, our_ranks), (theirs, their_ranks) = self._tables
        here, there = ours[pairs.sources], theirs[pairs.targets]
        score = np.zeros(len(pairs))
        same = np.zeros(len(pairs), bool)
        for depth in range(here.shape[1]):
            level = here[:, depth]
            match = (there == level[:, None]) & (level >= 0)[:, None]
            held = match.any(axis=1)
            score += np.where(held, 1.0, -1.0) * self._weights[level]
            rank = their_ranks[pairs.targets, match.argmax(axis=1)]
            agrees = self._ordered[level] & (our_ranks[pairs.sources, depth] == rank)
            same[held] = agrees[held]
        return score, same


def padded(rows: Sequence[Sequence[int]], fill: int) -> Places:
    """`[rows, longest]`."""
    table = np.full((len(rows), max(1, max(map(len, rows), default=0))), fill, np.intp)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    return table
