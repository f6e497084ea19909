"""Causes with outputs alone: where nothing is known of the source but what it gives in the end.

Each kind of change is tried everywhere in the model at once (one epsilon in all norms of a class),
and then in each place by itself; each try is one run of the target. Which module is the first to
part cannot be told so, unless the change is of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from regraft.calls import Call, Edit, Taps
from regraft.tensors import Array, Arrays
from regraft.verification import causes
from regraft.verification.causes import Hypothesis, Scene
from regraft.verification.choosing import CLOSER, SMALLER, UNTRIED
from regraft.verification.comparison import Cause, Report
from regraft.verification.sites import Site
from regraft.verification.traces import Listener

# Runs of the model: those after which nothing was found, and those after which something was, as
# only what no other kind explains is proven.
_RUNS, _MOST = 120, 800


@dataclass(frozen=True)
class Guesser:
    taps: Taps
    inputs: Any
    arrays: list[Array]
    listener: Listener
    compared: Callable[[Arrays], Report]

    def search(self, expected: Arrays, actual: Arrays) -> tuple[list[Cause], int]:
        """Causes whose change makes the outputs agree, and how many runs it took."""
        scene = self._scene(next(iter(expected.values())), next(iter(actual.values())))
        limit = self.compared(actual).max_rel / SMALLER
        fitting: list[tuple[float, Hypothesis]] = []
        runs, all_tried = 0, True
        for hypothesis in _together(scene):
            if runs >= (_MOST if fitting else _RUNS):
                all_tried = False
                break
            runs += 1
            try:
                report = self.compared(self.taps.run(self.inputs, None, hypothesis.edits))
            except Exception:  # a change that the model's code does not bear
                continue
            if report.equal and report.max_rel <= limit:
                fitting.append((report.max_rel, hypothesis))
        if not fitting:
            return [], runs
        least = min(error for error, _ in fitting)
        near = [h for error, h in fitting if error <= CLOSER * max(least, 1.2e-7)]
        one_kind = len({h.kind for h in near}) == 1
        chosen, sure = near[:1] if one_kind else near, one_kind and all_tried
        reason = "" if sure else UNTRIED if one_kind else "several changes explain it equally well"
        return [
            Cause(h.kind, h.modules, sure, h.text, h.fix, least, reason) for h in chosen
        ], runs  # fmt: skip

    def _scene(self, expected: Array, actual: Array) -> Scene:
        site = Site("", ("output", "", 0), Call("", 0, ()), 1.0, expected, actual, self.arrays)
        return Scene(
            site, self.taps.framework, self.taps.modules(), {}, lambda _: None,
            self.listener.functions, {}, lambda _: [], inputs=self.arrays, whole=True,
        )  # fmt: skip


def _together(scene: Scene) -> Iterator[Hypothesis]:
    """Changes that are alike as one, and then those of which there are several one by one."""
    alike: dict[str, list[Hypothesis]] = {}
    for hypothesis in causes.proposals(scene):
        alike.setdefault(hypothesis.key, []).append(hypothesis)
    for several in alike.values():
        edits: dict[int, Edit] = {id(edit): edit for h in several for edit in h.edits}
        modules = tuple(dict.fromkeys(path for h in several for path in h.modules))
        fix = "\n".join(dict.fromkeys(h.fix for h in several))
        yield Hypothesis(several[0].kind, tuple(edits.values()), modules, several[0].text, fix)
    for several in alike.values():
        if len(several) > 1:
            yield from several
