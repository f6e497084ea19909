"""Evidence of order: two lists of layers aligned by their kinds and shapes alone.

The longest common subsequence of both sides' layer classes pairs layers. How far to believe it
is a question of chance: with few classes any order would align, so belief grows with the number
of different orders that the same layers could have stood in, and falls where the sequences do
not agree. Order alone never settles layers of different families of names: branches of one
block are registered in any order.

A file may have been sorted by its writer without saying so (Haiku's trees, JAX' flattening). Its
numbers give it away: `linear_10` between `linear_1` and `linear_2` is the order of text.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from rapidfuzz.distance import LCSseq

from regraft.matching.modules import Module, number_of, parts_of
from regraft.tensors import Catalogue
from regraft.tensors import Order as Origin

# Log10 of the number of orders from which on chance is out of the question.
_SURE = 3.0
# Sequences that agree less than this say nothing.
_LEAST_AGREEMENT = 0.8


class Order:
    """Which modules stand at the same place, and how far to believe it (0 to 1)."""

    def __init__(
        self, sources: Sequence[Module], targets: Sequence[Module], classes: Mapping[int, int]
    ) -> None:
        a = [classes[id(m)] for m in sources]
        b = [classes[id(m)] for m in targets]
        found = _common(a, b)
        # Pairs of modules, by id, at the same place: of those that any such alignment has. Of two
        # networks in a file, or of a stack that is too high, it is chance which one is met.
        self.pairs = {(id(sources[i]), id(targets[j])) for i, j in _certain(found, a, b)}
        self.agreement = len(found) / max(1, min(len(a), len(b)))
        surplus = max(0.0, (self.agreement - _LEAST_AGREEMENT) / (1 - _LEAST_AGREEMENT))
        self.belief = surplus * min(1.0, _log10_orders(b) / _SURE)


def _common(a: Sequence[int], b: Sequence[int]) -> list[tuple[int, int]]:
    """Places of a longest common subsequence in both."""
    return [
        (step.src_start + k, step.dest_start + k)
        for step in LCSseq.opcodes(a, b)
        if step.tag == "equal"
        for k in range(step.src_end - step.src_start)
    ]


def _certain(
    found: Sequence[tuple[int, int]], a: Sequence[int], b: Sequence[int]
) -> list[tuple[int, int]]:
    """Those places that the common subsequence has however it lies in both: where it comes as early
    as it can and as late as it can."""
    common = [a[i] for i, _ in found]
    ends = [
        (_earliest(common, side), [len(side) - 1 - i for i in _earliest(common[::-1], side[::-1])])
        for side in (a, b)
    ]
    return [
        place for n, place in enumerate(found)
        if all(early[n] == late[-1 - n] for early, late in ends)
    ]  # fmt: skip


def _earliest(common: Sequence[int], side: Sequence[int]) -> list[int]:
    """The earliest places of a subsequence."""
    places: list[int] = []
    for one in common:
        places.append(side.index(one, places[-1] + 1 if places else 0))
    return places


def sequence(catalogue: Catalogue, modules: Sequence[Module]) -> list[Module]:
    """Modules in the order they were defined in, as far as the catalogue tells.

    A sorted file's order says nothing; names read with their numbers as numbers are then the
    best there is.
    """
    if catalogue.order != "sorted":
        return list(modules)
    return sorted(modules, key=lambda m: _natural_path(m.path))


def origin(catalogue: Catalogue) -> Origin:
    """The catalogue's `order`, or `sorted` where the file does not say so but its numbers do."""
    if catalogue.order != "stored":
        return catalogue.order
    families: dict[str, dict[tuple[str, ...], None]] = defaultdict(dict)
    for name in catalogue:
        owner = tuple(parts_of(name)[:-1])
        if any(character.isdigit() for part in owner for character in part):
            families[re.sub(r"\d+", "#", "/".join(owner))][owner] = None
    return "sorted" if any(map(_sorted_as_text, families.values())) else "stored"


def _sorted_as_text(owners: Collection[tuple[str, ...]]) -> bool:
    """Whether owners that differ by number stand in the order of text, and not of numbers."""
    if all(a <= b for a, b in pairwise(map(_natural_path, owners))):
        return False
    joined = ["/".join(owner) for owner in owners]
    return list(owners) == sorted(owners) or joined == sorted(joined)


def _natural_path(path: Sequence[str]) -> list[list[tuple[int, int, str]]]:
    return [_natural(part) for part in path]


def _natural(part: str) -> list[tuple[int, int, str]]:
    pieces = re.findall(r"\d+|\D+", part)
    return [(0, number_of(p), "") if p.isdigit() else (1, 0, p) for p in pieces]


def _log10_orders(classes: Sequence[int]) -> float:
    """Log10 of the number of distinct orders of these classes."""
    orders = math.lgamma(len(classes) + 1)
    orders -= sum(math.lgamma(n + 1) for n in Counter(classes).values())
    return orders / math.log(10)
