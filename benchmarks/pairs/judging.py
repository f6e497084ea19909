"""Verdicts on Regraft: what it claims, and whether the outputs agree.

| verdict | meaning |
|---|---|
| proven | loaded, outputs equal (a transfer: and the sets exactly as a person states them) |
| refused | undecided, or a difference that nobody allowed, or a typed error |
| flagged | everything settled, but a warning names a doubt |
| misstated | a transfer whose sets are not those that a person states |
| wrong | everything settled without a warning, and outputs differ; or a trap was not seen |
| blind | a trap that only outputs can reveal, and there were none |
| exposed | a trap that the probe's outputs revealed |
| crashed | an untyped error |
| broken | the pair itself cannot be built: our fault, not Regraft's |

A trap is passed by `refused`, `flagged`, `exposed`, and by `proven`, where a probe found the
answer after all.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import regraft as rg
from benchmarks.pairs.collection import Built, Pair
from regraft import targets
from regraft.rules import matches_any

PASSED_TRAP = ("refused", "flagged", "exposed", "proven")


@dataclass
class Verdict:
    """What came of one way to load one pair. `reason` is one line, `details` many."""

    verdict: str
    reason: str = ""
    seconds: float = 0.0
    details: tuple[str, ...] = ()
    # What comes of a complete plan whose unused and fresh tensors nobody should have allowed, if
    # somebody does: `equal`, or how outputs differ.
    waved_through: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Bench:
    """One built pair on which ways to load are tried, each on the target as it was."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.built, self._folder = pair.made()
        built = self.built
        self._framework = targets.find(built.target)
        sink = self._framework.sink(built.target)
        infos = self._framework.skeleton(built.target)
        self._before = {name: sink.read(name) for name in infos}
        self.outputs = built.outputs
        if self.outputs is None:
            if built.truth is None:
                raise ValueError("a pair without outputs needs a truth")
            self.outputs = self.answer(built.truth(built.target))
            self.restore()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def restore(self) -> None:
        """The target as it was built."""
        sink = self._framework.sink(self.built.target)
        for name, array in self._before.items():
            sink.write(name, array)

    def answer(self, model: Any) -> dict[str, Any]:
        """What a target answers to the pair's inputs."""
        if self.built.run is not None:
            return flat(self.built.run(model))
        return dict(targets.find(model).run(model, self.built.inputs))

    def probe(self) -> rg.Probe:
        """The probe that a user who has the source model would make."""
        given: dict[str, float] = {}
        if self.built.tolerance > Built.tolerance:  # a coarser model, which no output tells
            largest = max(float(np.abs(a).max()) for a in flat(self.outputs).values())
            given = {"rtol": self.built.tolerance, "atol": self.built.tolerance * largest}
        return rg.Probe(self.built.inputs, self.outputs, self.built.run, **given)

    def right(self, model: Any) -> str:
        """Empty where the model gives the expected outputs, else what differs."""
        try:
            return difference(flat(self.outputs), self.answer(model), self.built.tolerance)
        except Exception as error:  # a wrongly loaded model may fail in any way
            return f"{type(error).__name__}: {error}"


def flat(outputs: Any, name: str = "") -> dict[str, Any]:
    """Outputs of any nesting as numpy arrays by name."""
    if isinstance(outputs, Mapping):
        parts = [flat(v, f"{name}.{k}" if name else str(k)) for k, v in outputs.items()]
    elif isinstance(outputs, (list, tuple)):
        parts = [flat(v, f"{name or 'output'}.{i}") for i, v in enumerate(outputs)]
    else:
        detached = outputs.detach().cpu() if hasattr(outputs, "detach") else outputs
        return {name or "output": np.asarray(detached)}
    return {key: array for part in parts for key, array in part.items()}


def difference(expected: Mapping[str, Any], actual: Mapping[str, Any], tolerance: float) -> str:
    """Empty where outputs are equal up to rounding."""
    if len(expected) == len(actual) == 1:
        actual = {next(iter(expected)): next(iter(actual.values()))}
    for name, wanted in expected.items():
        if name not in actual:
            return f"no output {name}"
        a, b = np.asarray(wanted, np.float64), np.asarray(actual[name], np.float64)
        if a.shape != b.shape:
            return f"{name} has shape {b.shape}, expected {a.shape}"
        if not np.isfinite(a).all() or not np.isfinite(b).all():
            return f"{name} holds NaN or Inf"
        error, largest = float(np.abs(a - b).max()), float(np.abs(a).max())
        if error > tolerance * largest:
            return f"{name} is off by {error / largest if largest else error:.1e} of its largest"
    return ""


def judge(bench: Bench, *, probe: bool = False, told: bool = False) -> Verdict:
    """Lets Regraft plan, load what it is certain of, and compares.

    `probe`: it gets inputs and outputs. `told`: it gets a transfer's fresh and unused as rules.
    """
    bench.restore()
    started = time.perf_counter()
    try:
        verdict = _judged(bench, bench.probe() if probe else None, told)
    except rg.RegraftError as error:
        exposed = isinstance(error, rg.VerificationFailed)
        rows = str(error).splitlines()
        verdict = Verdict("refused", f"{type(error).__name__}: {rows[0]}", details=tuple(rows[:12]))
        if exposed and bench.pair.expects == "trap":
            verdict.verdict = "exposed"
    except Exception as error:
        told = tuple(traceback.format_exc().splitlines()[-6:])
        verdict = Verdict("crashed", f"{type(error).__name__}: {error}"[:200], details=told)
    verdict.seconds = round(verdict.seconds or time.perf_counter() - started, 2)
    return verdict


def _judged(bench: Bench, probe: rg.Probe | None, told: bool) -> Verdict:
    built, rules = bench.built, []
    if told:
        rules = [rg.fresh(name) for name in built.sets.fresh]
        rules += [rg.leave(name) for name in built.sets.unused]
    started = time.perf_counter()
    plan = rg.plan(built.source, built.target, rules=rules, probe=probe, container=built.container)
    seconds = time.perf_counter() - started
    refusal = _refusal(plan, bench)
    if refusal:
        refusal.seconds = seconds
        if plan.complete and refusal.verdict == "refused":
            receipt = rg.apply(plan, built.source, built.target)
            off = bench.right(receipt.model)
            refusal.waved_through = off or "equal"
        return refusal
    receipt = rg.apply(plan, built.source, built.target, probe=probe)
    seconds = time.perf_counter() - started
    off = bench.right(receipt.model)
    return Verdict(_final(bench, off, probed=probe is not None), off, seconds)


def _final(bench: Bench, off: str, *, probed: bool) -> str:
    if bench.pair.expects == "trap" and not probed:
        return "blind" if bench.pair.reveals == "probe" else "wrong"
    return "wrong" if off else "proven"


def _refusal(plan: rg.Plan, bench: Bench) -> Verdict | None:
    """Why a plan is not loaded, where it is not."""
    built, expects = bench.built, bench.pair.expects
    if plan.undecided or not plan.complete:
        reasons = Counter(open_.reason for open_ in plan.undecided.values())
        rows = [f"{n}: {o.reason} ({len(o.alternatives)} ways)" for n, o in plan.undecided.items()]
        rows += [f"note: {note}" for note in plan.notes if note.code == "probe"]
        missing = plan.target.tensors.keys() - plan.grafts.keys() - plan.undecided.keys()
        rows += [f"{name}: neither settled nor undecided" for name in missing]
        told = "; ".join(f"{reason[:60]} × {count}" for reason, count in reasons.most_common(2))
        count = f"{len(plan.undecided)} of {len(plan.target.tensors)} open"
        return Verdict("refused", f"{count}: {told}", details=tuple(rows))
    doubts = [w for w in plan.warnings if w.code not in built.accept]
    if doubts:
        codes = ", ".join(sorted({w.code for w in doubts}))
        return Verdict("flagged", codes, details=tuple(str(w) for w in doubts))
    if expects == "transfer":
        rows = [*_apart(plan, built)]
        if rows:
            kinds = Counter(row.partition(":")[0] for row in rows)
            told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            return Verdict("misstated", told, details=tuple(rows))
        return None
    rows = _unallowed(plan, built)
    if rows:
        return Verdict("refused", f"{len(rows)} not allowed: {rows[0]}", details=tuple(rows))
    return None


def _weights(plan: rg.Plan, names: Any) -> set[str]:
    """Without integers, which are constants of the model and nobody's weights."""
    specs = plan.target.tensors
    return {n for n in names if "int" not in specs[n].dtype and specs[n].dtype != "bool"}


def _apart(plan: rg.Plan, built: Built) -> list[str]:
    """Where a transfer's sets differ from those that a person states."""
    rows: list[str] = []
    sides = (
        ("fresh", built.sets.fresh, _weights(plan, plan.fresh), _weights(plan, plan.grafts)),
        ("adapted", built.sets.adapted, set(plan.adapted), set(plan.target.tensors)),
        ("unused", built.sets.unused, set(plan.unused), set(plan.source.tensors)),
    )
    for what, templates, said, every in sides:
        expected = {name for name in every if matches_any(templates, name)}
        if any(not any(matches_any((t,), name) for name in every) for t in templates):
            raise ValueError(f"a template of {what} names nothing: {templates}")
        rows += [f"{what} too much: {name}" for name in sorted(said - expected)]
        rows += [f"{what} too few: {name}" for name in sorted(expected - said)]
    return rows


def _unallowed(plan: rg.Plan, built: Built) -> list[str]:
    allowed = built.sets
    sides = (
        ("fresh", _weights(plan, plan.fresh), allowed.fresh),
        ("adapted", plan.adapted, allowed.adapted),
        ("unused", plan.unused, allowed.unused),
    )
    return [
        f"{what} {name}"
        for what, names, templates in sides
        for name in names
        if not matches_any(templates, name)
    ]


def check(bench: Bench, *, sensitivity: bool = False) -> list[str]:
    """What is wrong with the pair itself; empty where it is what it says.

    A solvable pair's truth must give equal outputs, and the target as built must not. With
    `sensitivity`, each tensor of the truth is shuffled in turn, and those of which no output
    notices are named: biases of keys, which shift all scores of a query alike, and biases that are
    zero are none to worry about.
    """
    built, expects = bench.built, bench.pair.expects
    problems: list[str] = []
    if not np.isfinite(np.concatenate([np.ravel(a) for a in flat(bench.outputs).values()])).all():
        return ["the expected outputs are not finite"] if expects != "trap" else []
    if not bench.right(built.target):
        problems.append("the target gives the expected outputs before anything is loaded")
    if built.truth is None:
        if expects != "trap":
            problems.append("no truth")
        return problems
    model = built.truth(built.target)
    off = bench.right(model)
    if off:
        problems.append(f"the truth is wrong: {off}")
    elif sensitivity and expects != "trap":
        problems += _unnoticed(bench, model)
    bench.restore()
    return problems


def _unnoticed(bench: Bench, model: Any) -> list[str]:
    framework = targets.find(model)
    rows: list[str] = []
    for info in framework.skeleton(model).values():
        if info.size < 2 or info.kind != "weight" or "int" in info.dtype:
            continue
        sink = framework.sink(model)
        kept = sink.read(info.name)
        shifted = np.roll(kept.reshape(-1), 1).reshape(kept.shape)
        sink.write(info.name, shifted)
        if not bench.right(sink.model):
            rows.append(f"unnoticed when shuffled: {info.name}")
        sink.write(info.name, kept)
    return rows


Rival = Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]]


def judge_rival(bench: Bench, rival: Rival) -> Verdict:
    """Lets somebody else's way load arrays into the target, and compares."""
    from benchmarks.pairs.rivals import Refused

    bench.restore()
    built = bench.built
    started = time.perf_counter()
    try:
        made = rival(_source_arrays(built), bench._before)
    except Refused as refusal:
        return Verdict("refused", str(refusal)[:120], round(time.perf_counter() - started, 2))
    except rg.RegraftError as error:
        return Verdict("refused", f"cannot be opened: {error.where}"[:120])
    seconds = round(time.perf_counter() - started, 2)
    sink = bench._framework.sink(built.target)
    for name, array in made.items():
        sink.write(name, np.asarray(array).astype(bench._before[name].dtype))
    off = bench.right(sink.model)
    bad = bool(off) or bench.pair.expects == "trap"
    return Verdict("wrong" if bad else "proven", off, seconds)


def _source_arrays(built: Built) -> dict[str, Any]:
    if isinstance(built.source, (str,)) or hasattr(built.source, "__fspath__"):
        opened = rg.open(built.source, container=built.container)
        return {name: opened.read(name) for name in opened}
    framework = targets.find(built.source)
    sink = framework.sink(built.source)
    return {name: sink.read(name) for name in framework.skeleton(built.source)}
