"""Which modules fit each other at all, by roles and shapes alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from regraft.matching.layouts import compatible, conversions
from regraft.matching.modules import Leaf, Module


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


def _fits(source: Module, target: Module) -> bool:
    """Whether the largest tensors of both are served; a missing bias does not part two layers, nor
    does a missing scale part two norms with statistics."""
    pairs = fitting_leaves(source, target)
    if not pairs:
        return False
    if "var" in target.leaves and "var" in source.leaves:
        return target.leaves["var"] in pairs
    largest = max(target.leaves.values(), key=lambda leaf: leaf.info.size)
    counterpart = max(source.leaves.values(), key=lambda leaf: leaf.info.size)
    return largest.info.size == counterpart.info.size and largest in pairs
