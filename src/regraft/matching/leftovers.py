"""What pairing left over on both sides, and which of it belongs together.

Sizes do not agree here, so it is names and places that must: equal names under the prefixes that
the settled layers have; the same end of a model by name (`tokens`, `position`, `head`); containers
that hold settled counterparts. Each kind of evidence narrows down the candidates of the one before;
a layer has a partner only where one is left, and where nobody else wants that one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

from regraft.matching.modules import Module
from regraft.matching.pairing import Pairing
from regraft.matching.projections import at_odds, edge_of

Path = tuple[str, ...]
# From this share on, what holds for settled layers is taken to hold for the others.
_NEARLY_ALL = 0.8
# Of more layers than these that are left over, only those of equal names are looked at.
_MOST = 256


class Leftovers:
    """The modules without a counterpart: `targets` that nothing fits, `sources` not used.

    `partners`: the settled pairs, source first. `ties`: the target's, of which all are served by
    one source.
    """

    def __init__(
        self,
        sources: Sequence[Module],
        pairings: Iterable[Pairing],
        ties: Iterable[tuple[str, ...]] = (),
    ) -> None:
        self._tied = {name: names[0] for names in ties for name in names}
        self.targets: list[Module] = []
        self.partners: list[tuple[Module, Module]] = []
        used: set[int] = set()
        for pairing in pairings:
            used |= {id(candidate.source) for candidate in pairing.candidates}
            if not pairing.candidates:
                self.targets.append(pairing.target)
            elif pairing.settled:
                self.partners.append((pairing.candidates[0].source, pairing.target))
        self._all_sources = sources
        self.sources = [module for module in sources if id(module) not in used]
        self._unused = {id(module) for module in self.sources}

    def pairs(
        self, fits: Callable[[Module, Module], bool], among: Callable[[Module], bool]
    ) -> list[tuple[Module, Module]]:
        """Left-over layers that `fits` allows and that belong together, source first; of those
        that `among` chooses on either side."""
        sources = [module for module in self.sources if among(module)]
        places = {id(source) for source in sources}
        chosen: list[tuple[Module, Module]] = []
        for target in (module for module in self.targets if among(module)):
            many = len(sources) > _MOST
            near = [s for s in self.called_like(target) if id(s) in places] if many else sources
            candidates = [s for s in near if fits(s, target) and not at_odds(s.says, target.says)]
            source = self._narrowed(target, candidates)
            if source is not None:
                chosen.append((source, target))
        wanted: dict[int, set[frozenset[str]]] = defaultdict(set)
        for source, target in chosen:
            wanted[id(source)].add(self._storage(target))
        return [(source, target) for source, target in chosen if len(wanted[id(source)]) == 1]

    def _storage(self, target: Module) -> frozenset[str]:
        names = (leaf.info.name for leaf in target.leaves.values())
        return frozenset(self._tied.get(name, name) for name in names)

    def _narrowed(self, target: Module, candidates: Sequence[Module]) -> Module | None:
        for agree in (self._same_name, _same_edge, self._same_container):
            if len(candidates) > 1:
                candidates = [c for c in candidates if agree(c, target)] or candidates
        return candidates[0] if len(candidates) == 1 else None

    def is_tied(self, name: str) -> bool:
        """Whether the target ties a tensor to another one."""
        return name in self._tied

    def is_unused(self, source: Module) -> bool:
        return id(source) in self._unused

    # Names

    def called_like(self, target: Module) -> list[Module]:
        """Sources, used or not, whose paths are equal, or differ by prefixes as those of settled
        layers do."""
        same = self._by_last_part.get(target.path[-1:], ())
        return [source for source in same if self._same_name(source, target)]

    def _same_name(self, source: Module, target: Module) -> bool:
        here, there, shared = _prefixes(source.path, target.path)
        return bool(shared) and (here == there == () or self._wrappers[here, there] > 0)

    @cached_property
    def _by_last_part(self) -> dict[Path, list[Module]]:
        return _grouped((source.path[-1:], source) for source in self._all_sources)

    @cached_property
    def same_naming(self) -> bool:
        """Whether one pair of prefixes explains the names of nearly all settled layers."""
        most = max(self._wrappers.values(), default=0)
        return most >= 3 and most >= _NEARLY_ALL * len(self.partners)

    @cached_property
    def _wrappers(self) -> Counter[tuple[Path, Path]]:
        """Pairs of prefixes before the part that names of settled layers share."""
        found = (_prefixes(source.path, target.path) for source, target in self.partners)
        return Counter((here, there) for here, there, shared in found if shared)

    # Stacks

    def is_beyond(self, target: Module) -> bool:
        """Whether the target is numbered beyond all settled layers whose names differ from its own
        by number only, and no source is left over of the kind that these have got."""
        highest, families = self._families.get(target.family, ([], set()))
        beyond = any(a > b for a, b in zip(target.numbers, highest, strict=False))
        return beyond and not families & self._families_left

    @cached_property
    def _families(self) -> dict[str, tuple[list[int], set[str]]]:
        """By the family of settled targets their highest numbers, place by place, and the families
        of their partners."""
        found: dict[str, tuple[list[int], set[str]]] = {}
        for source, target in self.partners:
            highest, families = found.setdefault(target.family, ([*target.numbers], set()))
            highest[:] = map(max, highest, target.numbers)
            families.add(source.family)
        return found

    @cached_property
    def _families_left(self) -> set[str]:
        return {source.family for source in self.sources}

    def of_size(self, target: Module) -> list[Module]:
        """Left-over sources whose largest tensor has as many values as the target's."""
        return self._by_size.get(_largest(target), [])

    @cached_property
    def _by_size(self) -> dict[int, list[Module]]:
        found: dict[int, list[Module]] = defaultdict(list)
        for source in self.sources:
            found[_largest(source)].append(source)
        return found

    def held_otherwise(self) -> dict[int, Module]:
        """By `id(target)`, an unused source that may hold the values of the target and its family
        in another way: merged, cut up, or computed. Both families, of which one has several
        members, have equally many values; or all that is left over has, taken together."""
        ours = {_total(f): f for f in (self.sources, *_by_family(self.sources)) if f}
        found: dict[int, Module] = {}
        for family in (self.targets, *_by_family(self.targets)):
            sources = ours.get(_total(family), ())
            if sources and len(family) + len(sources) > 2:
                found |= {id(target): sources[0] for target in family}
        return found

    # Places

    def has_neighbours(self, target: Module) -> bool:
        """Whether a source is left over where the layers around the target have their partners."""
        around = self._counterpart_of_container(target)
        return around in self._containers

    def _same_container(self, source: Module, target: Module) -> bool:
        around = self._counterpart_of_container(target)
        return bool(around) and source.path[: len(around)] == around

    def _counterpart_of_container(self, target: Module) -> Path:
        """What holds the partners of the settled layers that are nearest to the target."""
        around = (target.path[:cut] for cut in range(len(target.path) - 1, 0, -1))
        return next((self._counterparts[path] for path in around if path in self._counterparts), ())

    @cached_property
    def _counterparts(self) -> dict[Path, Path]:
        """For each container of settled targets the innermost one that holds all their partners."""
        found: dict[Path, Path] = {}
        for source, target in self.partners:
            for cut in range(1, len(target.path)):
                path, around = target.path[:cut], source.path[:-1]
                found[path] = _common_start(found.get(path, around), around)
        return found

    @cached_property
    def _containers(self) -> set[Path]:
        return {s.path[:cut] for s in self.sources for cut in range(1, len(s.path))}


def _largest(module: Module) -> int:
    return max(leaf.info.size for leaf in module.leaves.values())


def _by_family(modules: Iterable[Module]) -> list[list[Module]]:
    return list(_grouped((tuple(module.family.split(".")), module) for module in modules).values())


def _total(modules: Iterable[Module]) -> int:
    return sum(map(_largest, modules))


def _same_edge(source: Module, target: Module) -> bool:
    return edge_of(source.path) == edge_of(target.path) != ""


def _grouped(items: Iterable[tuple[Path, Module]]) -> dict[Path, list[Module]]:
    found: dict[Path, list[Module]] = defaultdict(list)
    for path, module in items:
        found[path].append(module)
    return found


def _prefixes(source: Path, target: Path) -> tuple[Path, Path, Path]:
    """Both paths without the end that they share, and that end."""
    shared = 0
    while shared < min(len(source), len(target)) and source[-1 - shared] == target[-1 - shared]:
        shared += 1
    rest = len(source) - shared, len(target) - shared
    return source[: rest[0]], target[: rest[1]], source[rest[0] :]


def _common_start(a: Path, b: Path) -> Path:
    same = 0
    while same < min(len(a), len(b)) and a[same] == b[same]:
        same += 1
    return a[:same]
