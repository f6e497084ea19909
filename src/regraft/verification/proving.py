"""Proof of causes: each hypothesis about a divergence is tried where it happens, and then on the
whole model.

A walk along the source's trace finds every place where the target parts from it. There, one call of
one module is run again with each change that a cause proposes; a cause is proven where with one
change, and with no change of another kind, the values agree up to rounding, which did not before,
and where the whole model agrees with it, too, or parts only later. The change then stays, so that
what lies behind it can be found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, islice
from typing import Any, NamedTuple

from regraft.calls import Edit, Module, Taps
from regraft.tensors import Array, Arrays
from regraft.verification import causes
from regraft.verification.causes import Hypothesis, Scene
from regraft.verification.causes._scene import Tensor, Tie
from regraft.verification.choosing import UNTRIED, Try, chosen_of, fitting
from regraft.verification.closeness import alike, certain, noise
from regraft.verification.comparison import Cause
from regraft.verification.pairing import Pairs
from regraft.verification.sites import Place, Site, Step
from regraft.verification.traces import Recorded, Trace
from regraft.verification.walking import Walk

# Rounds of walks, and sites that are looked at one by one in each.
_ROUNDS, _SITES = 4, 200
_TRIES = 400
# Pairs of changes that are tried where no single one explains a place: those after which nothing
# was found, and those after which something was, as only what no other pair explains is proven.
_PAIRS, _MOST_PAIRS = 150, 5000


@dataclass
class Found:
    """What was found: sites in order, and what explains each."""

    causes: list[Cause]
    first: str | None
    steps: list[Step]
    passes: int
    agrees: bool = False
    """Whether the whole model agrees with all changes that were found."""


# Changes among which those that undo one another are looked for.
_SEVERAL = 4


class Told(NamedTuple):
    site: Site
    chosen: list[Hypothesis]
    rivals: list[Hypothesis]
    untried: bool


@dataclass
class Prover:
    """A target that is compared with a trace of its source.

    - `inputs`: what the target is run on, or a function that calls it; `arrays` the same as arrays.
    - `tensors`, `ties`, `unused`: see `Scene`. `agreed`: whether outputs do, without a change.
    """

    taps: Taps
    trace: Trace
    pairs: Pairs
    inputs: Any
    arrays: list[Array]
    modules: dict[str, Module]
    tensors: Callable[[str], list[Tensor]]
    ties: Callable[[str], list[Tie]]
    unused: Callable[[], dict[str, Array]]
    agrees: Callable[[Arrays], bool]
    calls_of: Mapping[str, tuple[str, ...]]
    agreed: bool = False
    passes: int = 0
    _cut: set[Place] = field(default_factory=set[Place])
    """Places at which more is proposed than is tried."""
    _memo: dict[tuple[str, int], Recorded | None] = field(
        default_factory=dict[tuple[str, int], "Recorded | None"]
    )

    def search(self) -> Found:
        """Walks, explains, and walks again until nothing new is found."""
        edits: tuple[Edit, ...] = ()
        told: list[Told] = []
        seen: set[tuple[str, str, int]] = set()
        steps: list[Step] = []
        for _ in range(_ROUNDS):
            walk = self._walked(edits)
            if walk is None:
                break
            steps = steps or walk.steps
            fresh = [site for site in walk.sites if site.place not in seen]
            if not fresh:
                break
            added: list[Edit] = []
            known: dict[str, Hypothesis] = {}
            for site in fresh[:_SITES]:
                seen.add(site.place)
                chosen, rivals, site = self._explained(site, (*edits, *added), known)
                if site.error <= noise(site.actual):
                    continue  # gone with what was found before
                if not chosen and not rivals and site.error < certain(site.actual):
                    continue  # rounding, as far as anybody can tell
                told.append(Told(site, chosen, rivals, self._is_cut(site)))
                added += [edit for hypothesis in chosen for edit in hypothesis.edits]
            edits = (*edits, *added)
            if not added:
                break
        told = self._without_void(told)
        edits = tuple(edit for one in told for h in one.chosen for edit in h.edits)
        return self._summed(told, edits, steps)

    def _without_void(self, told: list[Told]) -> list[Told]:
        """Without changes that together change nothing: an activation taken away and given again,
        where one side has it in the layer and the other behind it. Of changes that give the same
        outputs as all of them the fewest are kept."""
        # The same change in several places is one: it may be small, and is not undone by itself.
        places: dict[str, list[Hypothesis]] = {}
        for one in told:
            for hypothesis in one.chosen:
                places.setdefault(hypothesis.key, []).append(hypothesis)
        every = list(places)
        if not 2 <= len(every) <= _SEVERAL:
            return told

        def outputs(chosen: Sequence[str]) -> Arrays:
            self.passes += 1
            edits = tuple(e for key in chosen for h in places[key] for e in h.edits)
            return self.taps.run(self.inputs, None, edits)

        try:
            whole = outputs(every)
            fewer = (few for n in range(len(every) - 1) for few in combinations(every, n))
            enough = next((few for few in fewer if alike(outputs(few), whole)), None)
        except Exception:  # the model's own code, under changes that belong together
            return told
        if enough is None:
            return told
        kept = [one._replace(chosen=[h for h in one.chosen if h.key in enough]) for one in told]
        return [now for now, one in zip(kept, told, strict=True) if now.chosen or not one.chosen]

    def _walked(self, edits: tuple[Edit, ...]) -> Walk | None:
        """A walk with what was found so far; None where the model's code does not bear that."""
        walk = Walk(self.trace, self.pairs, self.modules, memo=self._memo)
        self.passes += 1
        try:
            self.taps.run(self.inputs, walk, edits)
        except Exception:  # changes that were borne each in its module, and not together
            if not edits:
                raise
            return None
        walk.finish()
        return walk

    def _explained(
        self, site: Site, edits: tuple[Edit, ...], known: dict[str, Hypothesis]
    ) -> tuple[list[Hypothesis], list[Hypothesis], Site]:
        """The change (rarely two) that makes a site agree, or those of several kinds that do."""
        views = [view for view in self._views(site) if not self._gone(view, site, edits)]
        if site.error <= noise(site.actual):
            return [], [], site
        tried = {id(view): self._tries(view, edits, known) for view in views[:1]}
        # One change where the value is next used explains more than two where it is made.
        for pairs in (False, True):
            for view in views:
                if id(view) not in tried:
                    tried[id(view)] = self._tries(view, edits, known)
                fit = fitting(view, tried[id(view)])
                if not fit and pairs:
                    fit = list(self._both(view, tried[id(view)], edits))
                chosen, rivals = chosen_of(fit)
                if chosen:
                    known.update((hypothesis.key, hypothesis) for hypothesis in chosen)
                    return chosen, [], _at(view, chosen[0])
                if rivals:
                    return [], rivals, site
        return [], [], site

    def _views(self, site: Site) -> list[Site]:
        """Where a divergence can be looked at: the results of its module, and the place where they
        are used next. That comes first where one side's layer applies an activation itself that
        the other's code applies after it."""
        if site.instead is None or self._gray_glue(site.instead):
            return [site]
        source = self._pair_of(site.module)
        own = self.modules[site.module].settings.get("activation")
        theirs = (
            self.trace.modules[source].settings if source and source in self.trace.modules else {}
        )
        fused = own != theirs.get("activation") and {own, theirs.get("activation")} != {
            None, "linear"
        }  # fmt: skip
        return [site.instead, site] if fused else [site, site.instead]

    def _gone(self, view: Site, site: Site, edits: tuple[Edit, ...]) -> bool:
        """Whether what was changed before has mended a place."""
        if not edits:
            return False
        walk = self._again(view, edits)
        view.error = walk.errors.get(view.place, view.error) if walk else view.error
        if view.error > noise(view.actual):
            return False
        site.error = view.error
        return True

    def _gray_glue(self, site: Site) -> bool:
        return not site.leaf and site.error <= noise(site.actual)

    def _tries(
        self, site: Site, edits: tuple[Edit, ...], known: Mapping[str, Hypothesis]
    ) -> list[Try]:
        """Every change that is proposed, tried; what explained the same elsewhere at first, and
        nothing else where that explains it here."""
        scene = self._scene(site, self._again(site, edits, keep=True))
        proposed = list(islice(causes.proposals(scene), _TRIES + 1))
        same = [h for h in proposed if h.key in known]
        tried = [self._try(site, h.edits, h, edits) for h in same]
        if not fitting(site, tried):
            if len(proposed) > _TRIES:
                self._cut.add(site.place)
            fresh = (h for h in proposed[:_TRIES] if h not in same)
            tried += [self._try(site, h.edits, h, edits) for h in fresh]
        return tried

    def _is_cut(self, site: Site) -> bool:
        places = [site.place, *([site.instead.place] if site.instead else [])]
        return not self._cut.isdisjoint(places)

    def _try(
        self, site: Site, change: tuple[Edit, ...], told: Hypothesis, edits: tuple[Edit, ...]
    ) -> Try:
        walk = self._again(site, (*edits, *change))
        error = walk.errors.get(site.place, float("inf")) if walk else float("inf")
        return Try(told, error, len(walk.sites) if walk else 0)

    def _both(self, site: Site, tried: list[Try], edits: tuple[Edit, ...]) -> Iterator[Try]:
        """Two changes of different kinds at once, those that come closest by themselves first."""
        moved = [t for t in tried if t.error != site.error and t.error < float("inf")]
        moved.sort(key=lambda t: t.error)
        pairs = (
            (a.hypothesis, b.hypothesis)
            for i, b in enumerate(moved)
            for a in moved[:i]
            if a.hypothesis.kind != b.hypothesis.kind
        )
        found = False
        for number, (a, b) in enumerate(pairs):
            if number >= (_MOST_PAIRS if found else _PAIRS):
                self._cut.add(site.place)
                return
            made = self._try(site, (*a.edits, *b.edits), a, edits)
            if fitting(site, [made]):
                found = True
                yield replace(made, more=b)

    def _again(self, site: Site, edits: tuple[Edit, ...], *, keep: bool = False) -> Walk | None:
        walk = Walk(self.trace, self.pairs, self.modules, memo=self._memo, keep=keep)
        try:
            self.taps.again(site.scope.frame, walk, edits)
        except Exception:  # a change that the model's code does not bear is no explanation
            return None
        walk.finish()
        return walk

    def _scene(self, site: Site, before: Walk | None) -> Scene:
        inside = {
            path: call
            for (path, _), call in self._memo.items()
            if call is not None and _within(path, site.scope.path) and path != site.scope.path
        }
        return Scene(
            site,
            self.taps.framework,
            self.modules,
            self.trace.modules,
            self._pair_of,
            before.functions if before else [],
            inside,
            self.tensors,
            self.unused,
            self.arrays,
            self.ties,
            self.calls_of,
            self._earlier(site),
            {
                path: error
                for (kind, path, _), error in (before.errors if before else {}).items()
                if kind == "input"
            },
            {(kind, path): v for (kind, path, _), v in (before.values if before else {}).items()},
        )

    def _earlier(self, site: Site) -> list[Recorded]:
        began = site.source.began if site.source else 0
        return [call for call in self.trace.calls if 0 <= call.ended < began]

    def _pair_of(self, path: str) -> str | None:
        pair = self.pairs.get(path)
        if pair is not None:
            return pair[0]
        call = next((c for (p, _), c in self._memo.items() if p == path and c), None)
        return call.path if call else None

    def _summed(
        self,
        told: list[Told],
        edits: tuple[Edit, ...],
        steps: list[Step],
    ) -> Found:
        told.sort(key=lambda entry: entry.site.time)
        proven = agree = False
        if edits:
            self.passes += 1
            try:
                agree = self.agrees(self.taps.run(self.inputs, None, edits))
                # Outputs that agreed and no longer do: the source is put together otherwise (images
                # and kernels turned, and results turned back), and comes to the same.
                left = not all(entry.chosen for entry in told)
                proven = agree or (left and not self.agreed)
            except Exception:  # changes that bear each other only one by one
                proven = False
        first = told[0].site.module if told else None
        return Found(causes_of(told, proven=proven), first, steps, self.passes, agree)


def causes_of(told: Sequence[Told], *, proven: bool) -> list[Cause]:
    """What was found in several places as one cause of each kind of change; `proven`: with all of
    them the whole model agrees. What is proven in one place may be one of several possibilities in
    another, and is told as such there."""
    made: dict[tuple[str, str], Cause] = {}
    # What was chosen elsewhere because it explained a place is no better known than there.
    untried = {h.key for entry in told if entry.untried for h in entry.chosen}
    for entry in told:
        for hypothesis in entry.chosen or entry.rivals:
            reason = _doubt(entry, proven=proven, tried=hypothesis.key not in untried)
            cause = made.get((hypothesis.key, reason))
            paths = (*(cause.modules if cause else ()), *hypothesis.modules)
            made[hypothesis.key, reason] = Cause(
                hypothesis.kind, tuple(dict.fromkeys(paths)), not reason, hypothesis.text,
                _joined(cause.fix if cause else "", hypothesis.fix),
                cause.error if cause else entry.site.error, reason,
            )  # fmt: skip
    return list(made.values())


def _doubt(told: Told, *, proven: bool, tried: bool) -> str:
    """Why what explains a place is not proven; nothing where it is."""
    if not told.chosen:
        return "several changes explain it equally well"
    if not proven:
        return "the module agrees with it, and the model's outputs do not"
    return "" if tried else UNTRIED


def _at(site: Site, hypothesis: Hypothesis) -> Site:
    """A change of a module without a pair says more exactly where the divergence is."""
    if hypothesis.modules and hypothesis.modules[0] != site.module and site.place[0] == "input":
        site.module = hypothesis.modules[0]
    return site


def _within(path: str, scope: str) -> bool:
    return not scope or path == scope or path.startswith((f"{scope}.", f"{scope}/"))


def _joined(fix: str, more: str) -> str:
    return f"{fix}\n{more}" if fix else more
