"""Which of the changes that were tried is the cause, and whether that is certain."""

from __future__ import annotations

from dataclasses import dataclass

from regraft.calls import Composed, Edit, Entered, InFunction, Rewritten
from regraft.verification.causes import Hypothesis
from regraft.verification.closeness import noise
from regraft.verification.sites import Site

# How much smaller the error has to be with a change, and how much closer than the next one it must
# be to be preferred.
SMALLER, CLOSER = 8.0, 3.0
# Why nothing is proven where the bound of tries was reached.
UNTRIED = "more changes are possible than were tried"
# Kinds that say how a tensor differs, where "weights" only says that it does.
_OF_TENSORS = frozenset(
    ("tied-head", "dtype", "qkv-order", "flatten-order", "channel-order", "spatial-transpose")
)


@dataclass
class Try:
    hypothesis: Hypothesis
    error: float
    left: int
    more: Hypothesis | None = None


def fitting(site: Site, tries: list[Try]) -> list[Try]:
    """Those after which the values agree up to rounding, and far better than before."""
    limit = min(noise(site.actual), site.error / SMALLER)
    return [t for t in tries if t.error <= limit]


def chosen_of(tries: list[Try]) -> tuple[list[Hypothesis], list[Hypothesis]]:
    """The best of what fits: what leaves least in the module, is closest, and changes a setting
    rather than values. Of several kinds that are as good, none."""
    if not tries:
        return [], []
    if any(t.more for t in tries):
        return _chosen_pair(tries)
    if any(t.hypothesis.kind in _OF_TENSORS for t in tries):
        tries = [t for t in tries if t.hypothesis.kind != "weights"]
    least = min(t.left for t in tries)
    tries = [t for t in tries if t.left == least]
    best = min(t.error for t in tries)
    near = [t for t in tries if t.error <= CLOSER * max(best, 1.2e-7)]
    plain = min(_plainness(t.hypothesis) for t in near)
    near = [t for t in near if _plainness(t.hypothesis) == plain]
    kinds = {t.hypothesis.kind for t in near}
    if len(kinds) == 1:
        return [min(near, key=lambda t: round(t.error / 1.2e-7)).hypothesis], []
    return [], [t.hypothesis for t in near]


def _chosen_pair(tries: list[Try]) -> tuple[list[Hypothesis], list[Hypothesis]]:
    """The pair of changes that fits, where all that fit are of the same two kinds."""
    best = min(tries, key=lambda t: (t.left, round(t.error / 1.2e-7)))
    both = [best.hypothesis, *([best.more] if best.more else [])]
    kinds = {frozenset((t.hypothesis.kind, t.more.kind if t.more else "")) for t in tries}
    return (both, []) if len(kinds) == 1 else ([], both)


def _plainness(hypothesis: Hypothesis) -> int:
    """0 for settings and tensors, more for values that are made anew."""

    def of(edit: Edit) -> int:
        if isinstance(edit, (Rewritten, Entered)):
            return 2
        if isinstance(edit, Composed):
            return 1
        return int(isinstance(edit, InFunction) and not edit.arguments)

    return max(map(of, hypothesis.edits))
