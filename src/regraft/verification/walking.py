"""A walk along the source's trace: the target runs, and each module is given what the source's had.

Where a module's inputs agree with those of its pair, it is handed exactly these, so that rounding
does not add up; where its results do not agree although its inputs did, that is a divergence. What
follows is handed the source's values again, so that one run shows every place where the two part,
each for itself (teacher forcing, as it is known from training).

A result that is different may still be meant so: one framework's layer applies its activation
itself, the other's code does it afterwards. So a divergence stands only once a value that was made
from the result is different, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from regraft.calls import Call, FunctionCall, Module
from regraft.tensors import Array
from regraft.verification.closeness import nearest, noise
from regraft.verification.kinds_of_modules import category
from regraft.verification.pairing import Pairs
from regraft.verification.sites import Place, Site, Step
from regraft.verification.spelt_out import entered
from regraft.verification.traces import Recorded, Trace


@dataclass
class _Open:
    call: Call
    source: Recorded | None
    inputs: list[Array]
    agreed: bool
    input_error: float
    dirty: bool = False


@dataclass
class Walk:
    """The watcher of a target's run along `trace`. `memo` says, once known, which call of the
    source a call is paired with, so that a second walk pairs alike."""

    trace: Trace
    pairs: Pairs
    modules: dict[str, Module]
    memo: dict[tuple[str, int], Recorded | None] = field(
        default_factory=dict[tuple[str, int], "Recorded | None"]
    )
    sites: list[Site] = field(default_factory=list[Site])
    steps: list[Step] = field(default_factory=list[Step])
    functions: list[FunctionCall] = field(default_factory=list[FunctionCall])
    errors: dict[Place, float] = field(default_factory=dict[Place, float])
    values: dict[Place, list[Array]] = field(default_factory=dict[Place, list[Array]])
    """What went in and came out of each call, where `keep` asks for it."""
    keep: bool = False
    _open: list[_Open] = field(default_factory=list[_Open])
    _pending: list[Site] = field(default_factory=list[Site])
    _left: tuple[str, int] | None = None
    _at: tuple[str, ...] = ()
    _used: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])

    def function(self, call: FunctionCall) -> None:
        self.functions.append(call)

    def enter(self, call: Call, inputs: list[Array]) -> Sequence[Array | None] | None:
        source = self._source(call, inputs)
        open_ = _Open(call, source, inputs, False, 0.0)
        self._open.append(open_)
        self._watch(("input", call.path, call.number), inputs)
        if source is None:
            return None
        found = entered(self.trace, source, inputs, _compared(source.inputs, inputs))
        known = [(e, fitted) for e, fitted in found if fitted is not None]
        open_.input_error = max((e for e, _ in known), default=0.0)
        place: Place = ("input", call.path, call.number)
        self.errors[place] = open_.input_error if known else float("inf")
        open_.agreed = bool(known) or not inputs
        if known and open_.input_error > noise(*inputs):
            self._confirm(place, open_, source, found)
        elif known:
            self._unblame(source)
        self._at, self._left = (*call.inside, call.path), None
        forced = [fitted for _, fitted in found]
        open_.inputs = [a if f is None else f for a, f in zip(inputs, forced, strict=True)]
        self._watch(("input", call.path, call.number), open_.inputs)
        return forced

    def leave(self, call: Call, outputs: list[Array]) -> Sequence[Array | None] | None:
        open_ = self._open.pop()
        place: Place = ("output", call.path, call.number)
        self._watch(place, outputs)
        source = open_.source
        if source is None or source.ended < 0:
            return None
        self._at = call.inside
        found = _compared(source.outputs, outputs)
        known = [(e, fitted) for e, fitted in found if fitted is not None]
        if not known:
            return None
        worst = max(e for e, _ in known)
        self.errors[place] = worst
        self.steps.append(Step(call.path, call.number, source.path, open_.input_error, worst))
        inner = [s for s in self._pending if call.path in s.scope.inside]
        if worst <= noise(*outputs):
            self._pending = [s for s in self._pending if s not in inner]
            return [fitted for _, fitted in found]
        if not open_.agreed or inner:
            return None
        index = max(range(len(found)), key=lambda i: found[i][0] if found[i][1] is not None else -1)
        expected = found[index][1]
        assert expected is not None
        leaf = not self.modules[call.path].children
        self._pending.append(
            Site(
                call.path, place, call, worst, expected, outputs[index], open_.inputs, source,
                leaf=leaf,
            )
        )  # fmt: skip
        self._left = (call.path, call.number)
        return None

    def finish(self) -> list[Site]:
        """The divergences, once the run is over: what is still pending reached the outputs."""
        self._settle(None)
        self.sites.sort(key=lambda site: site.time)
        return self.sites

    def _watch(self, place: Place, arrays: list[Array]) -> None:
        if self.keep:
            self.values[place] = arrays

    def _unblame(self, source: Recorded) -> None:
        """The value after a different result is right, and new: the result was meant so."""
        if self._left is None or not self._pending or not source.keys:
            return
        last = self._pending[-1]
        if (last.module, last.place[2]) != self._left or last.source is None:
            return
        if self.trace.born.get(source.keys[0], 0) > last.source.ended:
            self._pending.pop()

    def _confirm(
        self,
        place: Place,
        open_: _Open,
        source: Recorded,
        found: list[tuple[float, Array | None]],
    ) -> None:
        """What a module is given is wrong: what was pending stands, or it is the code between."""
        index = max(range(len(found)), key=lambda i: found[i][0] if found[i][1] is not None else -1)
        expected = found[index][1]
        assert expected is not None
        container = self._between(open_.call)
        site = Site(
            container.path if container else "",
            place,
            container or open_.call,
            open_.input_error,
            expected,
            open_.inputs[index],
            self._inputs_of(container),
            source,
            leaf=False,
        )
        self._settle(site)

    def _settle(self, glue: Site | None) -> None:
        pending, self._pending = self._pending, []
        leaves = [s for s in pending if s.leaf] or pending[:1]
        for site in leaves:
            site.instead = glue and replace(glue, behind=site.module)
        if leaves:
            self.sites += leaves
        elif glue:
            self.sites.append(glue)

    def _between(self, call: Call) -> Call | None:
        """The innermost running module that encloses both this call and what was compared last."""
        last = set(self._at)
        running = [o.call for o in self._open[:-1]]
        common = [c for c in running if c.path in last]
        return common[-1] if common else (running[0] if running else None)

    def _inputs_of(self, call: Call | None) -> list[Array]:
        return next((o.inputs for o in self._open if o.call == call), [])

    def _source(self, call: Call, inputs: list[Array]) -> Recorded | None:
        key = call.path, call.number
        if key not in self.memo:
            paths = self.pairs.get(call.path)
            self.memo[key] = (
                self._of_pair(paths, call.number) if paths else self._by_kind(call, inputs)
            )
        return self.memo[key]

    def _of_pair(self, paths: tuple[str, ...], number: int) -> Recorded | None:
        calls = [self.trace.find(path, number) for path in paths]
        known = [c for c in calls if c is not None and c.whole]
        if not known or len(known) != len(calls):
            return None
        if len(known) == 1:
            return known[0]
        # Several modules in a row whose tensors were merged into one (a norm folded into a kernel):
        # what the first was given, and what the last made of it.
        known.sort(key=lambda c: c.began)
        first, last = known[0], known[-1]
        merged = Recorded(first.path, number, first.inside, first.began, last.ended)
        merged.inputs, merged.keys, merged.outputs = first.inputs, first.keys, last.outputs
        return merged

    def _by_kind(self, call: Call, inputs: list[Array]) -> Recorded | None:
        """A source module without tensors, of the same kind and with the same input."""
        wanted = category(self.modules[call.path])
        if wanted is None or not inputs:
            return None
        for recorded in self.trace.calls:
            at = recorded.path, recorded.number
            if recorded.path not in self.pairs.free or at in self._used or not recorded.inputs:
                continue
            if category(self.trace.modules[recorded.path]) != wanted or not recorded.whole:
                continue
            if recorded.inputs[0].size != inputs[0].size:
                continue
            if nearest(recorded.inputs[0], inputs[0])[0] <= noise(inputs[0]):
                self._used.add(at)
                return recorded
        return None


def _compared(expected: list[Array], actual: list[Array]) -> list[tuple[float, Array | None]]:
    """For each actual array the error, and the expected one in its layout, by their order.
    (inf, None) where there is none of its shape."""
    found: list[tuple[float, Array | None]] = []
    for index, array in enumerate(actual):
        if index >= len(expected):
            found.append((0.0, None))
            continue
        found.append(nearest(expected[index], array))
    return found
