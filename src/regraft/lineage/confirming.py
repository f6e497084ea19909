"""Which pairs of two files rest on more than a guess, where neither a lineage nor a plan tells.

Names that agree are a hint: libraries number their layers by chance, and two trainings of one
architecture name all alike. Values confirm it: a tensor that was trained on from another is the
same to the bit or correlates with it beyond chance, even after many epochs; one of another start
does not. What values cannot tell of (constants, a few numbers, a layer that was begun anew) is
borne out by its company: pairs whose names change in the same way, most of which values confirm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from typing import Literal, NamedTuple

import numpy as np

from regraft.lineage.correspondence import PARTS, SAMPLE, VALUES, correlation
from regraft.lineage.fingerprints import constant
from regraft.plans import Graft, Plan
from regraft.tensors import Catalogue, Read
from regraft.transfer import make
from regraft.values import bits

# The least correlation of tensors of one origin, in itself and in standard deviations of that of
# independent ones. Of two epochs of one training that lie far apart half the tensors pass; of two
# trainings from different starts none (measured on mini-XCEPTION, CIFAR's ResNets, silero-vad).
_RELATED, _DEVIATIONS = 0.3, 6.0
# Of another tensor of the base, with which a tensor then belongs rather than with its namesake.
_RIVAL, _SHOWN = 0.8, 3

# `still`: the same, which proves nothing, as it would be in any two models, and does no harm.
Voice = Literal["same", "close", "apart", "silent", "still"]


class Doubt(NamedTuple):
    """A pair that is no more than a guess: the base's tensors, why it is one, and what else of the
    base may be meant, each with its correlation."""

    sources: tuple[str, ...]
    reason: str
    others: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        told = ", ".join(f"{name} ({value:.2f})" for name, value in self.others)
        return f"{' + '.join(self.sources)}: {self.reason}" + (f"; or {told}" if told else "")


def unconfirmed(
    plan: Plan, base: Catalogue, read: Read, after: Read, names: Iterable[str]
) -> dict[str, Doubt]:
    """Those of the newer file's `names` whose pairs neither values nor their company confirm; what
    has no pair is no guess."""
    return _Hearing(plan, base, read, after).doubts(names)


class _Hearing:
    """What values say of each pair; read when it is first asked for."""

    def __init__(self, plan: Plan, base: Catalogue, read: Read, after: Read) -> None:
        self._plan, self._base, self._read, self._after = plan, base, read, after
        self._company: dict[tuple[str, str], list[Graft]] = defaultdict(list)
        for graft in plan.grafts.values():
            way = _way(graft)
            if graft.written and way is not None:
                self._company[way].append(graft)
        self._voice = cache(self._heard)

    def doubts(self, names: Iterable[str]) -> dict[str, Doubt]:
        found: dict[str, Doubt] = {}
        for graft in (self._plan.grafts[name] for name in names):
            if not graft.written:
                continue
            voice, way = self._voice(graft.target), _way(graft)
            if voice in ("same", "close", "still"):
                continue
            rivals = self._rivals(graft) if voice == "apart" else []
            if rivals and rivals[0][1] >= _RIVAL:
                reason = "the values are another tensor's"
            elif way is None or not self._borne_out(way):
                reason = "values do not bear it out"
            else:
                continue
            found[graft.target] = Doubt(graft.sources, reason, tuple(rivals[:_SHOWN]))
        return found

    def _borne_out(self, way: tuple[str, str]) -> bool:
        voices = [self._voice(graft.target) for graft in self._company[way]]
        yes = sum(voice in ("same", "close") for voice in voices)
        return yes > 0 and yes >= voices.count("apart")

    def _heard(self, name: str) -> Voice:
        graft = self._plan.grafts[name]
        before, after = make(self._plan, graft, self._read, self._own), self._after(name, None)
        if before.shape != after.shape:
            return "silent"
        same = before.dtype == after.dtype and np.array_equal(bits(before), bits(after))
        if before.size < VALUES or constant(before) or constant(after):
            return "still" if same else "silent"
        if same:
            return "same"
        return "close" if correlation(before, after) >= _least(before.size) else "apart"

    def _own(self, name: str) -> np.ndarray:
        return self._after(name, None)

    def _rivals(self, graft: Graft) -> list[tuple[str, float]]:
        """Other tensors of the base in this shape, the likest first."""
        after = self._after(graft.target, None)
        found = (
            (name, correlation(self._read(name, None), after))
            for name, info in self._base.items()
            if info.shape == after.shape and name not in graft.sources
        )
        related = [item for item in found if item[1] >= _least(after.size)]
        return sorted(related, key=lambda item: -item[1])


def _least(size: int) -> float:
    return max(_RELATED, _DEVIATIONS / min(size, SAMPLE) ** 0.5)


def _way(graft: Graft) -> tuple[str, str] | None:
    """What stands in both names before the parts at their ends that agree; `None` where the last
    parts do not, or the tensor was made of several."""
    if len(graft.sources) != 1:
        return None
    ours, theirs = ([m.end() for m in PARTS.finditer(n)] for n in (graft.sources[0], graft.target))
    best: tuple[str, str] | None = None
    for i, j in zip([0, *ours][::-1], [0, *theirs][::-1], strict=False):
        if graft.sources[0][i:] != graft.target[j:]:
            break
        best = graft.sources[0][:i], graft.target[:j]
    return best
