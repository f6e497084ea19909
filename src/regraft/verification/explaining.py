"""Verification with a reason: outputs compared, and where they differ, where and why.

The wiring room gives what it takes as functions: the taps of the target, the source's trace, the
tensors of both sides. See `walking` for how places are found and `proving` for how causes are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from regraft import transfer
from regraft.calls import Taps
from regraft.errors import RegraftError
from regraft.plans import Plan
from regraft.tensors import Array, Arrays, Catalogue, Read
from regraft.verification.causes._scene import Tensor, Tie
from regraft.verification.comparison import Report, compare
from regraft.verification.guessing import Guesser
from regraft.verification.pairing import pair
from regraft.verification.probes import Probe, flat
from regraft.verification.proving import Found, Prover
from regraft.verification.traces import BUDGET, Listener, Trace

# Unused source tensors of at most so many elements may be factors of a layer scale.
_FACTORS = 1 << 16


@dataclass(frozen=True)
class Other:
    """The source's side: what it recorded, how its tensors are named, and their values."""

    trace: Trace
    owner: Callable[[str], str]
    separator: str
    catalogue: Catalogue | None = None
    read: Read | None = None
    outputs: Arrays | None = None
    """What it gave where it was run on a probe's own inputs."""


def explain(
    probe: Probe,
    taps: Taps,
    separator: str,
    own: Read,
    target: Catalogue,
    plan: Plan | None,
    other: Other | None,
) -> Report:
    """Runs the target, compares, and where something differs finds out where and why."""
    inputs = probe.run if probe.run is not None else probe.inputs
    listener = Listener()
    try:
        actual = taps.run(inputs, listener)
    except RegraftError:
        raise
    except Exception as error:  # the model's own code may raise anything
        return Report.failed(f"{type(error).__name__}: {error}")
    expected = probe.expected

    def compared(outputs: Arrays) -> Report:
        return compare(expected, outputs, rtol=probe.rtol, atol=probe.atol)

    report = replace(compared(actual), passes=1)
    if report.verdict == "equal to the bit":
        return report
    report = replace(report, warnings=(*report.warnings, *_blind_spots(other, compared)))
    arrays = [array for _, array in flat(probe.inputs)]
    if other is None:
        if report.equal or set(expected) != set(actual):
            return report
        guesser = Guesser(taps, inputs, arrays, listener, compared)
        found, runs = guesser.search(expected, actual)
        modules = [path for cause in found if cause.proven for path in cause.modules]
        first = modules[0] if len(modules) == 1 else None
        return replace(report, causes=tuple(found), first_divergence=first, passes=1 + runs)
    called = list(dict.fromkeys(call.path for call in listener.calls))
    pairs = pair(plan, (other.owner, taps.owner), other.trace, called, (other.separator, separator))
    tensors = _Tensors(plan, target, taps.owner, own, other)
    prover = Prover(
        taps,
        other.trace,
        pairs,
        inputs,
        arrays,
        taps.modules(),
        tensors.of,
        tensors.ties,
        tensors.unused,
        lambda outputs: compared(outputs).equal,
        _calls_of(listener),
        report.equal,
    )
    return _told(report, prover.search())


def _blind_spots(other: Other | None, compared: Callable[[Arrays], Report]) -> Iterator[str]:
    """Why the source's calls say less than it seems."""
    if other is None:
        return
    missing = other.trace.left_out
    if missing:
        yield (
            f"{len(missing)} of {len(other.trace.calls)} calls of the source's modules were not "
            f"compared, first that of {missing[0].path or 'the model itself'}: a trace keeps at "
            f"most {BUDGET >> 30} GiB; the first divergence may lie before what is told (try a "
            "smaller batch)"
        )
    if other.outputs is not None and not compared(other.outputs).equal:
        yield (
            "the source itself, run on the probe's inputs, does not give the probe's outputs: "
            "what its calls show need not be why the model's outputs differ from these"
        )


def _told(report: Report, found: Found) -> Report:
    """The report with what was found. Where outputs agree up to rounding, only what is proven
    counts: a difference in a setting that no output of this probe shows much of. What takes their
    agreement away is none: modules may differ where the next one makes up for it."""
    proven = any(cause.proven for cause in found.causes) and (found.agrees or not report.equal)
    told = replace(report, steps=tuple(found.steps), passes=report.passes + found.passes)
    if report.equal and not proven:
        return told
    causes = tuple(c for c in found.causes if c.proven or not report.equal)
    return replace(
        told,
        equal=False,
        verdict="different",
        first_divergence=found.first,
        causes=causes,
    )


def _calls_of(listener: Listener) -> Mapping[str, tuple[str, ...]]:
    """What the first call of each module calls, in order."""
    found: dict[str, list[str]] = {}
    seen: dict[str, int] = {}
    for call in listener.calls:
        seen.setdefault(call.path, call.number)
        if call.inside and seen.get(call.inside[-1]) == 0:
            found.setdefault(call.inside[-1], []).append(call.path)
    return {path: tuple(children) for path, children in found.items()}


class _Tensors:
    """The target's tensors by module, as the plan makes them and as they are."""

    def __init__(
        self,
        plan: Plan | None,
        target: Catalogue,
        owner: Callable[[str], str],
        own: Read,
        other: Other,
    ) -> None:
        self._plan, self._target, self._own, self._other = plan, target, own, other
        self._owner = owner
        self._names: dict[str, list[str]] = {}
        for name, info in target.items():
            if info.kind == "weight":
                self._names.setdefault(owner(name), []).append(name)
        self._known: dict[str, list[Tensor]] = {}

    def of(self, path: str) -> list[Tensor]:
        if path not in self._known:
            self._known[path] = list(filter(None, map(self._tensor, self._names.get(path, ()))))
        return self._known[path]

    def _tensor(self, name: str) -> Tensor | None:
        plan, read = self._plan, self._other.read
        graft = plan.grafts.get(name) if plan else None
        if plan is None or read is None or graft is None or not graft.written or graft.keeps:
            return None
        return Tensor(name, transfer.make(plan, graft, read), self._own(name, None))

    def unused(self) -> dict[str, Array]:
        plan, other = self._plan, self._other
        if plan is None or other.read is None or other.catalogue is None:
            return {}
        small = [n for n in plan.unused if np.prod(other.catalogue[n].shape) <= _FACTORS]
        return {name: other.read(name, None) for name in small}

    def ties(self, path: str) -> list[Tie]:
        """Output layers whose tensor is the embedding's on one side only."""
        found: list[Tie] = []
        ours = self._other.catalogue.ties if self._other.catalogue is not None else []
        theirs = self._target.ties
        for name in self._names.get(path, ()):
            tensor = self._tensor(name)
            tied = next((group for group in theirs if name in group), None)
            if tensor is None:
                tensor = self._like_an_embedding(name)
            if tensor is None or tensor.same or tensor.expected.ndim != 2:
                continue
            graft = self._plan.grafts.get(name) if self._plan else None
            source = graft.sources[0] if graft and graft.sources else ""
            there = next((group for group in ours if source in group), None)
            if tied and not there:
                partner = next(n for n in tied if n != name)
                found.append(Tie(name, partner, True, tensor.expected, tensor.actual))
            elif not tied and (there or not source):
                partner = self._partner(name, tensor.expected)
                if partner:
                    found.append(Tie(name, partner, False, tensor.expected, tensor.actual))
        return found

    def _partner(self, name: str, values: Array) -> str | None:
        """Another tensor of the target that has these values."""
        for other, info in self._target.items():
            alike = other != name and info.shape == values.shape
            if alike and np.array_equal(self._own(other, None), values):
                return other
        return None

    def _like_an_embedding(self, name: str) -> Tensor | None:
        """Of a tensor without a source, the values of the embedding that it could be tied to."""
        shape = self._target[name].shape
        if len(shape) != 2:
            return None
        for other, info in self._target.items():
            if other != name and info.shape == shape and "embed" in info.module.lower():
                return Tensor(name, self._own(other, None), self._own(name, None))
        return None
