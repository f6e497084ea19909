"""What a first pairing left over on both sides, and which of it belongs together.

Sizes do not agree here, so it is names and places that must: equal names under the prefixes that
the settled layers have; the same end of a model by name (`tokens`, `position`, `head`); containers
that hold settled counterparts. Each kind of evidence narrows down the candidates of the one before;
a layer has a partner only where one is left, and where nobody else wants that one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from regraft.matching.modules import Leaf, Module
from regraft.matching.pairing import Pairing
from regraft.matching.projections import at_odds, edge_of
from regraft.matching.rewrites import Views
from regraft.matching.views import View
from regraft.operations import AnyOp, Keep

Path = tuple[str, ...]


class Way(NamedTuple):
    """One way to make a target tensor of a source tensor of another size.

    - `ops`: on the source, which is named `copies` times: they give it the size that is wanted and
      leave it in its own layout.
    - `keep`: the target's own entries stay behind those of the source; on the target.
    - `text`: the rule, for people.
    """

    text: str
    ops: tuple[AnyOp, ...] = ()
    copies: int = 1
    keep: Keep | None = None


class Change(NamedTuple):
    """A source tensor and the target tensor of another size that is to be made of it.

    One way is a settled one; several are an open question, whose `reason` says what is not known.
    """

    source: Leaf
    target: Leaf
    ways: tuple[Way, ...]
    reason: str = ""


@dataclass(frozen=True)
class Half:
    """One side: its view, and all of its modules in order."""

    view: View
    modules: Sequence[Module]

    @cached_property
    def kernels(self) -> list[Leaf]:
        return [m.leaves["kernel"] for m in self.modules if "kernel" in m.leaves]


class Leftovers:
    """The modules without a counterpart: `targets` that nothing fits, `sources` not used."""

    def __init__(
        self,
        views: Views,
        sources: Sequence[Module],
        targets: Sequence[Module],
        pairings: Iterable[Pairing],
    ) -> None:
        self.source, self.target = Half(views.source, sources), Half(views.target, targets)
        self.targets: list[Module] = []
        used: set[int] = set()
        self._partners: list[tuple[Module, Module]] = []
        for pairing in pairings:
            used |= {id(candidate.source) for candidate in pairing.candidates}
            if not pairing.candidates:
                self.targets.append(pairing.target)
            elif pairing.settled:
                self._partners.append((pairing.candidates[0].source, pairing.target))
        self.sources = [module for module in sources if id(module) not in used]

    def pairs(
        self, fits: Callable[[Module, Module], bool], targets: Iterable[Module] | None = None
    ) -> list[tuple[Module, Module]]:
        """Left-over layers that `fits` allows and that belong together, source first."""
        chosen: list[tuple[Module, Module]] = []
        for target in self.targets if targets is None else targets:
            candidates = [
                source
                for source in self.sources
                if fits(source, target) and not at_odds(source.path, target.path)
            ]
            source = self._narrowed(target, candidates)
            if source is not None:
                chosen.append((source, target))
        wanted = Counter(id(source) for source, _ in chosen)
        return [(source, target) for source, target in chosen if wanted[id(source)] == 1]

    def _narrowed(self, target: Module, candidates: Sequence[Module]) -> Module | None:
        for agree in (self.same_name, _same_edge, self._same_container):
            if len(candidates) > 1:
                candidates = [c for c in candidates if agree(c, target)] or candidates
        return candidates[0] if len(candidates) == 1 else None

    def same_name(self, source: Module, target: Module) -> bool:
        """Whether the paths are equal, or differ by prefixes as those of settled layers do."""
        here, there, shared = _prefixes(source.path, target.path)
        return bool(shared) and (here == there == () or self._wrappers[here, there] > 0)

    @cached_property
    def _wrappers(self) -> Counter[tuple[Path, Path]]:
        """Pairs of prefixes before the part that names of settled layers share."""
        found = (_prefixes(source.path, target.path) for source, target in self._partners)
        return Counter((here, there) for here, there, shared in found if shared)

    def _same_container(self, source: Module, target: Module) -> bool:
        """Whether the settled layers around the target have their counterparts around the source."""
        for cut in range(len(target.path) - 1, 0, -1):
            around = self._around.get(target.path[:cut])
            if around:
                common = _common_start([module.path for module in around])
                return bool(common) and source.path[: len(common)] == common
        return False

    @cached_property
    def _around(self) -> dict[Path, list[Module]]:
        """By the path of a target's container, the sources that its settled layers have."""
        found: dict[Path, list[Module]] = defaultdict(list)
        for source, target in self._partners:
            for cut in range(1, len(target.path)):
                found[target.path[:cut]].append(source)
        return found


def _same_edge(source: Module, target: Module) -> bool:
    return edge_of(source.path) == edge_of(target.path) != ""


def _prefixes(source: Path, target: Path) -> tuple[Path, Path, Path]:
    """Both paths without the end that they share, and that end."""
    shared = 0
    while shared < min(len(source), len(target)) and source[-1 - shared] == target[-1 - shared]:
        shared += 1
    rest = len(source) - shared, len(target) - shared
    return source[: rest[0]], target[: rest[1]], source[rest[0] :]


def _common_start(paths: Sequence[Path]) -> Path:
    first, last = min(paths), max(paths)
    same = 0
    while same < min(len(first), len(last)) and first[same] == last[same]:
        same += 1
    return first[:same]
