"""Rooted trees as the parent of each file but one: where else their root could be, how they could
change, and how families come about.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import lgamma, log

import numpy as np

Parents = dict[int, int]

# How often a family is one run (a chain from its end), children of one base, or files each made
# from any that was there before.
_CHAIN, _STAR, _ANY = 0.3, 0.3, 0.4


def root_of(parents: Parents) -> int:
    return next(p for p in parents.values() if p not in parents)


def below(node: int, parents: Parents) -> set[int]:
    """The file and all that came from it."""
    found = {node}
    while more := {c for c, p in parents.items() if p in found} - found:
        found |= more
    return found


def depth(node: int, parents: Parents) -> int:
    steps = 0
    while node in parents:
        node, steps = parents[node], steps + 1
    return steps


def rooted_at(root: int, parents: Parents) -> Parents:
    """The same tree from another root: edges on the way to it turn around."""
    turned = {child: parent for child, parent in parents.items() if child != root}
    node = root
    while node in parents:
        turned[parents[node]] = node
        node = parents[node]
    return turned


def rootings(parents: Parents) -> Iterator[Parents]:
    """The tree from each of its files, its own root first."""
    first = root_of(parents)
    yield parents
    for node in sorted({*parents, *parents.values()} - {first}):
        yield rooted_at(node, parents)


def moves(parents: Parents) -> Iterator[Parents]:
    """Every file below every other that is not below itself; every file in its parent's place; and
    the tree from every other root."""
    nodes = {*parents, *parents.values()}
    for child, parent in parents.items():
        for other in sorted(nodes - below(child, parents) - {parent}):
            yield {**parents, child: other}
    for child, parent in parents.items():
        change = {child: parent, parent: child}
        yield {change.get(c, c): change.get(p, p) for c, p in parents.items()}
    for turned in rootings(parents):
        if turned is not parents:
            yield turned


def surprise_of_root(parents: Parents) -> float:
    """−log of the probability that the root is where it is, given the tree without directions.

    A run is a chain, and starts at an end; children of one base lie around it; where each file is
    made from any before, a tree has so many histories as its files can be put into an order with
    parents first: n! over the product of all sizes of branches (Knuth; Shah and Zaman call it rumor
    centrality).
    """
    count = len(parents) + 1
    sizes = _sizes(parents)
    root = root_of(parents)
    near: dict[int, list[int]] = {node: [] for node in sizes}
    for child, parent in parents.items():
        near[parent].append(child)
        near[child].append(parent)
    chain = max(len(some) for some in near.values()) <= 2
    star = max(len(some) for some in near.values()) == count - 1
    histories = {root: -sum(log(size) for size in sizes.values())}
    for node in _from_the_root(parents, near, root):
        # One edge turned: the branch becomes all but itself.
        histories[node] = histories[parents[node]] + log(sizes[node]) - log(count - sizes[node])
    ways = {
        node: np.logaddexp.reduce([
            log(_ANY) - lgamma(count) + value,
            log(_CHAIN) - lgamma(count + 1) if chain and len(near[node]) == 1 else -np.inf,
            log(_STAR) - log(count) if star and len(near[node]) == count - 1 else -np.inf,
        ])
        for node, value in histories.items()
    }  # fmt: skip
    return float(np.logaddexp.reduce(list(ways.values())) - ways[root])


def _sizes(parents: Parents) -> dict[int, int]:
    sizes = dict.fromkeys({*parents, *parents.values()}, 0)
    for node in sizes:
        here: int | None = node
        while here is not None:
            sizes[here] += 1
            here = parents.get(here)
    return sizes


def _from_the_root(parents: Parents, near: dict[int, list[int]], root: int) -> list[int]:
    """All files but the root, each after its parent."""
    order = [root]
    for node in order:
        order += [other for other in near[node] if parents.get(other) == node]
    return order[1:]
