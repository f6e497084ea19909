"""The likeliest tree of a family: who came from whom, out of all that is known of its files.

A tree has a cost for each edge (how far, how many tensors changed, which came first), for each bend
(`bends`), for its root (`rooted`), and for times that run against it. The least is sought from the
best trees of edges alone (Edmonds' arborescences) by changing one thing at a time. Then the same
tree is weighed from each of its files as the root, which gives the probability of each direction;
and with less evidence, which tells what a direction rests on.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from regraft.lineage.bends import Bends
from regraft.lineage.rooted import Parents, depth, moves, rootings, surprise_of_root

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What a length larger by 1 (a distance by a factor of e) costs, in log-odds.
_NEARNESS = 5.0
# What a tensor costs that is changed on the way. The same bits never come about twice, so that in
# the true tree the files which share them are next to each other: it has the fewest changes.
_ANEW = 4.0
# Where nothing else tells, a file came from the base rather than by way of another.
_DEPTH = 0.1
# How often times of files are those of their making, in order of names (in which folders are
# copied, too) and otherwise; and how often a child then is the younger.
_IN_ORDER, _MADE, _YOUNGER = 0.5, 0.75, 0.99
# Roots that are tried in families of more files, how many of their trees are then changed, rounds.
_ROOTS, _FEW, _ROUNDS = 8, 2, 40
# A direction is told from this probability on; none is surer than so: of those that came out at
# more than 99.9 %, so many were right.
LIKELY, _SUREST = 0.8, 0.98

Rests = Literal["values", "shape", "names and counters", "times", ""]


class Family(NamedTuple):
    """What is known of `n` files; arrays are [n, n], with the parent's row and the child's column.

    - `lengths`: symmetric, logarithms. `odds`, `hints`: log-odds for the row before the column, by
      values and by all else. `linked`: log-odds for the column as made from the row in one sum.
      `apart`: log-odds against the one coming from the other either way.
    - `changed`: how many tensors are not the same bits in both.
    - `inner`: groups of tensors (bodies, heads, vectors), the most telling first: for each group
      inner products [tensors, n, n], NaN where a file has no such tensor. `sizes`: for each group
      how many values those are of [tensors].
    - `times` [n]: of the last change. `in_order`: whether these run as the names do.
    """

    lengths: NDArray[np.float64]
    odds: NDArray[np.float64]
    hints: NDArray[np.float64]
    linked: NDArray[np.float64]
    apart: NDArray[np.float64]
    changed: NDArray[np.float64]
    inner: Sequence[NDArray[np.float64]] = ()
    sizes: Sequence[NDArray[np.float64]] = ()
    times: Sequence[float] = ()
    in_order: bool = False


class Likeliest(NamedTuple):
    """The parent of each file but one; the probability of each direction, by the child; and what
    tells it: `values`, with them the `shape` of the tree, or more than these; `""` where it is not
    told."""

    parents: Parents
    certainty: dict[int, float]
    rests: dict[int, Rests]


def likeliest(family: Family) -> Likeliest:
    """The likeliest tree."""
    if len(family.lengths) < 2:
        return Likeliest({}, {}, {})
    bends = Bends(family.inner, family.sizes)
    whole = _Costs(family, bends)
    starts = [_arborescence(whole.edges, root) for root in _roots(whole.edges)]
    starts.sort(key=whole.total)
    few = _FEW if len(family.lengths) > _ROOTS else _ROOTS
    settled = [_settled(parents, whole) for parents in starts[:few]]
    _, best = min(settled, key=lambda found: found[0])
    certainty = _probabilities(best, whole)
    rests = _what_tells(best, family, bends)
    return Likeliest(
        best, certainty, {c: rests[c] if p >= LIKELY else "" for c, p in certainty.items()}
    )


class _Costs:
    """Costs of whole trees, by all or by some of the evidence."""

    def __init__(
        self, family: Family, bends: Bends, *, shape: bool = True, hints: bool = True,
        times: bool = True,
    ) -> None:  # fmt: skip
        self.bends, self.shape = bends, shape
        odds = family.odds + family.hints if hints else family.odds
        near = _NEARNESS * family.lengths + _ANEW * family.changed
        near += np.logaddexp(0, -odds) - family.linked
        self.edges = near + np.logaddexp(0, family.apart) - log(2)
        self._each: list[list[float]] = self.edges.tolist()
        self.times = family.times if times else ()
        self.made = _IN_ORDER if family.in_order else _MADE

    def total(self, parents: Parents, limit: float = inf) -> float:
        """Of one tree; infinite where it is certain to reach the limit: bends, depth and root cost
        no less than nothing."""
        total = sum(self._each[parent][child] for child, parent in parents.items())
        total += self._against_times(parents)
        if total >= limit:
            return inf
        total += _DEPTH * sum(depth(child, parents) - 1 for child in parents)
        children: dict[int, list[int]] = {}
        for child, parent in parents.items():
            children.setdefault(parent, []).append(child)
        total += sum(self.bends.cost(c, parents, children[p]) for c, p in parents.items())
        return total + (surprise_of_root(parents) if self.shape else 0.0)

    def _against_times(self, parents: Parents) -> float:
        """Times are those of the files' making, and nearly all children are younger; or they are
        those of copies, and say nothing."""
        if not self.times:
            return 0.0
        steps = [self.times[child] - self.times[parent] for child, parent in parents.items()]
        younger, older = sum(s > 0 for s in steps), sum(s < 0 for s in steps)
        made = younger * log(2 * _YOUNGER) + older * log(2 - 2 * _YOUNGER)
        return -float(np.logaddexp(log(self.made) + made, log(1 - self.made)))


def _roots(edges: NDArray[np.float64]) -> list[int]:
    """All files, in large families those that would be the best parents."""
    order = np.argsort(np.where(np.eye(len(edges), dtype=bool), 0, edges).sum(axis=1))
    return [int(i) for i in (order if len(edges) <= _ROOTS else order[:_ROOTS])]


def _arborescence(edges: NDArray[np.float64], root: int) -> Parents:
    import networkx as nx

    graph: Any = nx.DiGraph()
    size = len(edges)
    graph.add_nodes_from(range(size))
    for a in range(size):
        for b in range(size):
            if a != b and b != root:
                graph.add_edge(a, b, weight=float(edges[a, b]))
    return {b: a for a, b in nx.minimum_spanning_arborescence(graph).edges}


def _settled(parents: Parents, costs: _Costs) -> tuple[float, Parents]:
    """The tree once no single change makes it likelier."""
    cost = costs.total(parents)
    for _ in range(_ROUNDS):
        found = min(
            ((costs.total(other, cost), i, other) for i, other in enumerate(moves(parents))),
            default=None,
            key=lambda item: item[:2],
        )
        if found is None or found[0] >= cost - 1e-9:
            break
        cost, _, parents = found
    return cost, parents


def _probabilities(parents: Parents, costs: _Costs) -> dict[int, float]:
    """Of the direction of each edge, by its child, as this tree has it: with all of its files as
    the root."""
    trees = list(rootings(parents))
    totals = -np.array([costs.total(tree) for tree in trees])
    weights = np.exp(totals - totals.max())
    weights /= weights.sum()
    return {
        child: min(
            _SUREST,
            float(sum(w for w, tree in zip(weights, trees, strict=True) if tree.get(child) == p)),
        )
        for child, p in parents.items()
    }


def _what_tells(parents: Parents, family: Family, bends: Bends) -> dict[int, Rests]:
    """The least evidence with which each direction is told."""
    told: dict[int, Rests] = dict.fromkeys(parents, "")
    ways: tuple[tuple[Rests, dict[str, bool]], ...] = (
        ("values", {"shape": False, "hints": False, "times": False}),
        ("shape", {"hints": False, "times": False}),
        ("names and counters", {"times": False}),
        ("times", {}),
    )
    for name, kept in ways:
        found = _probabilities(parents, _Costs(family, bends, **kept))
        for child, probability in found.items():
            if probability >= LIKELY and not told[child]:
                told[child] = name
    return told
