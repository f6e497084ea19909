"""The likeliest tree of a family: who came from whom, out of distances, directions and bends.

Distances say who is next to whom, log-odds which of two came first. Three files say more: in a
chain b → x → y the second step goes on from where the first ended, at a right angle to it or
straight on; two children x and y of b differ by a step that goes back to b first. So a tree has a
cost for each edge, and one for each bend; the least is sought by starting from the best tree of
edges alone (Edmonds' arborescence) and moving one branch at a time, from every root.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import exp, log, log1p
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What a distance larger by a factor of e costs, in log-odds; distances below the least are equal.
_NEARNESS, _LEAST = 5.0, 1e-7
# What a tensor costs that is changed on the way. The same bits never come about twice, so that in
# the true tree the files which share them are next to each other: it has the fewest changes.
_ANEW = 4.0
# Log-odds of a chain against two children of one, by the parts of the second step along the first,
# in lengths of the first and of the second: fitted on 153 triples of the same 40 families as the
# directions (`kinship`), of which it tells 152 right.
_ALONG_FIRST, _ALONG_SECOND, _BETWEEN, _STRAIGHT, _MOST = 9.0, 20.0, 0.7, 4.7, 0.5
# Where nothing else tells, a base has several children rather than one, and a file came from the
# base rather than by way of another: for each step between them.
_LONELY, _DEPTH = 0.7, 0.1
# Roots that are tried in families of more files, and rounds of moves.
_ROOTS, _ROUNDS = 8, 40


class Family(NamedTuple):
    """What is known of `n` files.

    - `distances` [n, n]: symmetric. `odds` [n, n]: log-odds for the row before the column. `apart`
      [n, n]: log-odds against the one coming from the other either way.
    - `changed` [n, n]: how many tensors are not the same bits in both.
    - `inner`: groups of tensors (bodies, heads, vectors), the most telling first: for each group
      inner products [tensors, n, n], NaN where a file has no such tensor. `sizes`: for each group
      how many values those are of [tensors].
    """

    distances: NDArray[np.float64]
    odds: NDArray[np.float64]
    apart: NDArray[np.float64]
    changed: NDArray[np.float64]
    inner: Sequence[NDArray[np.float64]] = ()
    sizes: Sequence[NDArray[np.float64]] = ()


Parents = dict[int, int]


def likeliest(family: Family) -> Parents:
    """The parent of each file but one."""
    count = len(family.distances)
    if count < 2:
        return {}
    edges = _edge_costs(family)
    bends = _Bends(family.inner, family.sizes)
    best: tuple[float, Parents] | None = None
    for root in _roots(edges):
        parents = _arborescence(edges, root)
        cost, parents = _settled(parents, edges, bends)
        if best is None or cost < best[0] - 1e-9:
            best = cost, parents
    assert best is not None
    return best[1]


def surprise(odds: float) -> float:
    """−log of the probability that these log-odds give."""
    return log1p(exp(-odds)) if odds > 0 else -odds + log1p(exp(odds))


def _edge_costs(family: Family) -> NDArray[np.float64]:
    near = _NEARNESS * family.distances
    near += _ANEW * family.changed
    return near + np.logaddexp(0, -family.odds) + np.logaddexp(0, family.apart) - log(2)


def _roots(edges: NDArray[np.float64]) -> list[int]:
    """All files, in large families those that would be the best parents."""
    order = np.argsort(np.where(np.eye(len(edges), dtype=bool), 0, edges).sum(axis=1))
    return [int(i) for i in (order if len(edges) <= _ROOTS else order[:_ROOTS])]


def _arborescence(edges: NDArray[np.float64], root: int) -> Parents:
    import networkx as nx

    graph: Any = nx.DiGraph()
    count = len(edges)
    graph.add_nodes_from(range(count))
    for a in range(count):
        for b in range(count):
            if a != b and b != root:
                graph.add_edge(a, b, weight=float(edges[a, b]))
    return {b: a for a, b in nx.minimum_spanning_arborescence(graph).edges}


class _Bends:
    """Costs of the places of three files in a tree."""

    def __init__(
        self, groups: Sequence[NDArray[np.float64]], sizes: Sequence[NDArray[np.float64]]
    ) -> None:
        self._groups = list(zip(groups, sizes, strict=True))
        self._known: dict[tuple[int, int, int], float | None] = {}

    def odds(self, first: int, second: int, third: int) -> float | None:
        """Log-odds of first → second → third against two children of the first, by the first group
        in which both steps change something; `None` where none does."""
        key = first, second, third
        if key not in self._known:
            ways = (self._odds(*group, *key) for group in self._groups)
            self._known[key] = next((odds for odds in ways if odds is not None), None)
        return self._known[key]

    @staticmethod
    def _odds(
        g: NDArray[np.float64], sizes: NDArray[np.float64], b: int, x: int, y: int
    ) -> float | None:
        parts = np.stack([
            g[:, x, y] - g[:, x, x] - g[:, b, y] + g[:, b, x],
            g[:, x, x] + g[:, b, b] - 2 * g[:, b, x],
            g[:, y, y] + g[:, x, x] - 2 * g[:, x, y],
            g[:, b, b] + g[:, x, x] + g[:, y, y],
        ])  # fmt: skip
        held = ~np.isnan(parts).any(axis=0)
        along, first, second, size = (float(part) for part in parts[:, held].sum(axis=1))
        if not size or min(first, second) <= _LEAST * size:
            return None
        tau = min(max(along / first, -1.0), _MOST)
        rho = min(max(along / second, -1.0), _MOST)
        # At −½ both lie as far from the first: children of one. At −1 the third lies between the
        # others, which speaks against this chain less than for another.
        back = rho if rho > -0.5 else -0.5 - _BETWEEN * (rho + 0.5)
        # A long step that went anywhere has a part along a short one by chance.
        ratio, count = second / first, float(sizes[held].sum())
        by_first = (_ALONG_FIRST * tau + _STRAIGHT) / (1 + _ALONG_FIRST * ratio / count)
        return by_first + _ALONG_SECOND * back / (1 + _ALONG_SECOND / ratio / count)

    def cost(self, node: int, parents: Mapping[int, int], siblings: list[int]) -> float:
        """Of a file's place: below its parent and that one's, and beside its siblings."""
        parent = parents.get(node)
        if parent is None:
            return 0.0
        total = 0.0
        before = parents.get(parent)
        if before is not None:
            odds = self.odds(before, parent, node)
            total += 0.0 if odds is None else surprise(odds)
        worst = (self.odds(parent, other, node) for other in siblings if other != node)
        total += max((surprise(-odds) for odds in worst if odds is not None), default=0.0)
        return total


def _total(parents: Parents, edges: NDArray[np.float64], bends: _Bends) -> float:
    total = float(sum(edges[parent, child] for child, parent in parents.items()))
    total += _DEPTH * sum(_depth(child, parents) - 1 for child in parents)
    children: dict[int, list[int]] = {}
    for child, parent in parents.items():
        children.setdefault(parent, []).append(child)
    if len(next(some for parent, some in children.items() if parent not in parents)) == 1:
        total += _LONELY
    return total + sum(bends.cost(c, parents, children[p]) for c, p in parents.items())


def _depth(node: int, parents: Parents) -> int:
    steps = 0
    while node in parents:
        node, steps = parents[node], steps + 1
    return steps


def _settled(parents: Parents, edges: NDArray[np.float64], bends: _Bends) -> tuple[float, Parents]:
    """The tree once no single move makes it likelier."""
    cost = _total(parents, edges, bends)
    for _ in range(_ROUNDS):
        found = min(
            ((_total(other, edges, bends), i, other) for i, other in enumerate(_moves(parents))),
            default=None,
            key=lambda item: item[:2],
        )
        if found is None or found[0] >= cost - 1e-9:
            break
        cost, _, parents = found
    return cost, parents


def _moves(parents: Parents) -> Iterator[Parents]:
    """Every file below every other that is not below itself; and every edge at the root turned."""
    nodes = {*parents, *parents.values()}
    for child, parent in parents.items():
        below = _below(child, parents)
        for other in sorted(nodes - below - {parent}):
            yield {**parents, child: other}
    root = next(iter(nodes - parents.keys()))
    for child in [c for c, p in parents.items() if p == root]:
        turned = {c: p for c, p in parents.items() if c != child}
        yield {**turned, root: child}


def _below(node: int, parents: Parents) -> set[int]:
    found = {node}
    while True:
        more = {c for c, p in parents.items() if p in found} - found
        if not more:
            return found
        found |= more
