"""Evidence of company: of two towers of equal layers, the one that the unmistakable layers are in.

A file may hold several networks side by side, of which the model is one (CLIP's towers for images
and for texts have blocks of equal sizes). Layers of which there is but one on both sides, by roles
and shapes alone, cannot be mistaken: the patch embedding, the table of positions. Where all of
these are in one part of the source, the others that are in this part go with them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from regraft.matching.modules import Module

# One layer of a unique shape may be chance.
_LEAST = 2


def in_company(
    sources: Sequence[Module], targets: Sequence[Module], classes: Mapping[int, int]
) -> set[int]:
    """Ids of the sources that are in the part with all unmistakable layers, where that part has
    just as many layers of their class as the target, and other parts have some, too."""
    wanted = Counter(classes[id(m)] for m in targets)
    held = Counter(classes[id(m)] for m in sources)
    parts: dict[str, list[Module]] = defaultdict(list)
    depth = _common(sources)
    for module in sources:
        if len(module.path) <= depth:
            return set()
        parts[module.path[depth]].append(module)
    sure = {one for one, count in wanted.items() if count == held[one] == 1}
    where = Counter(name for name, part in parts.items() for m in part if classes[id(m)] in sure)
    if len(parts) < 2 or len(where) != 1 or where.total() < _LEAST:
        return set()
    tower = parts[next(iter(where))]
    inside = Counter(classes[id(m)] for m in tower)
    return {
        id(m) for m in tower
        if inside[one := classes[id(m)]] == wanted[one] < held[one]
    }  # fmt: skip


def _common(modules: Sequence[Module]) -> int:
    """How many parts all paths begin with."""
    paths = [module.path for module in modules]
    least, most = min(paths, default=()), max(paths, default=())
    same = 0
    while same < min(len(least), len(most)) and least[same] == most[same]:
        same += 1
    return same
