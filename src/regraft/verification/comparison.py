"""Comparing outputs: errors, tolerances with their reason, and a verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

from regraft import markup
from regraft.errors import VerificationFailed
from regraft.tensors import Array, Arrays
from regraft.values import bits
from regraft.verification.closeness import wide

# Kinds of numpy's dtypes: objects, texts, bytes, times.
_NO_NUMBERS = "OUSmM"
Verdict = Literal["equal to the bit", "equal up to rounding", "different"]


@dataclass(frozen=True)
class Tolerance:
    """|actual − expected| ≤ atol + rtol × |expected|, and why these numbers."""

    rtol: float
    atol: float
    reason: str


@dataclass(frozen=True)
class OutputRow:
    """One output's comparison. `max_abs` and `max_rel` are over all its elements."""

    name: str
    shape: tuple[int, ...]
    verdict: Verdict
    max_abs: float
    max_rel: float
    reason: str = ""


@dataclass(frozen=True)
class Cause:
    """Why outputs differ.

    - `kind`: one of the closed list of `docs/causes.md`. `modules`: the target's, by path.
    - `proven`: whether outputs agree with the change and with no change of another kind; what is
      not proven is a suspicion, with its `reason`.
    - `text`: what is different. `fix`: the change as code, a line for each module.
    - `error`: the relative error at the first of the modules.
    """

    kind: str
    modules: tuple[str, ...]
    proven: bool
    text: str
    fix: str
    error: float = 0.0
    reason: str = ""

    def __str__(self) -> str:
        state = "proven" if self.proven else f"suspected ({self.reason})"
        where = self.modules[0] or "the model itself"
        more = f" and {len(self.modules) - 1} more" if len(self.modules) > 1 else ""
        return f"{self.kind}  {state}: {self.text}, in {where}{more}"


@dataclass(frozen=True)
class Report:
    """The comparison of a target's outputs with a probe's.

    - `equal`: whether every output is equal, to the bit or up to rounding.
    - `max_abs`, `max_rel`: the largest absolute error, and the largest relative to the largest
      magnitude of its output; inf where outputs cannot be compared.
    - `rows`: one per output. `tolerance`: what was allowed and why.
    - `warnings`: why equality may mean less than it seems.
    - `first_divergence`: path of the target's module where the two part, `""` for the code of the
      model itself; None where there is none, or nothing is known of the source but outputs.
    - `causes`: why. `steps`: the calls that were compared, in order, with their errors.
    - `passes`: how many runs of the whole target it took.

    Where the source was run as well, a report can be `different` although outputs are within the
    tolerance: a setting was proven to differ, and this probe shows little of it.
    """

    equal: bool
    verdict: Verdict
    max_abs: float
    max_rel: float
    rows: tuple[OutputRow, ...]
    tolerance: Tolerance | None
    warnings: tuple[str, ...] = ()
    first_divergence: str | None = None
    causes: tuple[Cause, ...] = ()
    steps: tuple[Any, ...] = ()
    passes: int = 0

    @classmethod
    def failed(cls, reason: str) -> Report:
        """The report of a model that could not be run, or of outputs that cannot be compared."""
        row = OutputRow("model", (), "different", float("inf"), float("inf"), reason)
        return cls(False, "different", float("inf"), float("inf"), (row,), None)

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": 1, **asdict(self)}

    def _repr_html_(self) -> str:
        rows: list[tuple[object, ...]] = [
            (row.name, list(row.shape), row.verdict, row.max_abs, row.max_rel, row.reason)
            for row in self.rows
        ]
        rows += [("warning", "", text, "", "", "") for text in self.warnings]
        rows += [("cause", "", str(cause), cause.error, "", cause.fix) for cause in self.causes]
        head = ("output", "shape", "verdict", "largest error", "relative", "")
        return markup.table(str(self).split("\n")[0], head, rows, len(rows))

    def __str__(self) -> str:
        lines = [f"{self.verdict}: largest error {self.max_abs:.3g}, relative {self.max_rel:.3g}"]
        if self.tolerance:
            told = self.tolerance
            lines[0] += f" (allowed {told.atol:.3g} + {told.rtol:.3g} × expected: {told.reason})"
        for row in self.rows:
            lines.append(f"  {row.name}  {list(row.shape)}  {row.verdict}  {row.reason}".rstrip())
        if self.first_divergence is not None:
            lines.append(f"  first divergence  {self.first_divergence or 'the model itself'}")
        for cause in self.causes:
            lines += [f"  {cause}", *(f"    fix  {line}" for line in cause.fix.split("\n")[:4])]
        return "\n".join([*lines, *(f"  warning  {text}" for text in self.warnings)])


def compare(
    expected: Arrays, actual: Arrays, *, rtol: float | None = None, atol: float | None = None
) -> Report:
    """Compares outputs by name; one output on each side is compared whatever its name, and so are
    as many where one side names them and the other has them in a row.

    The default tolerance follows from the coarser dtype of both sides. Sums over a layer's inputs
    are ordered differently by different frameworks, and errors grow with depth: 2¹⁰ units in
    the last place relative to the largest output is what deep float32 networks show in practice,
    while a wrong weight or setting shows as 1e-3 and more. A NaN or Inf on either side is a
    difference unless both sides have the same one there, and then a warning.

    **Raises** `VerificationFailed` for expected values that are no numbers.
    """
    if len(expected) == len(actual) and (len(expected) == 1 or _in_a_row(expected, actual)):
        actual = dict(zip(expected, actual.values(), strict=True))
    missing = [name for name in expected if name not in actual]
    if missing or not expected:
        held = ", ".join(actual) or "none"
        return Report.failed(f"outputs {', '.join(missing) or 'none'} expected, {held} found")
    for name, wanted in expected.items():
        if wanted.dtype.kind in _NO_NUMBERS:
            raise VerificationFailed(
                f"probe, {name}", found=f"values of {wanted.dtype}", expected="numbers"
            )
        if actual[name].dtype.kind in _NO_NUMBERS:
            return Report.failed(f"{name} holds values of {actual[name].dtype}, not numbers")
    warnings = _blind(expected)
    more = [name for name in actual if name not in expected]
    if more:
        warnings.append(f"not compared, as the probe has none of it: {', '.join(more)}")
    rows: list[OutputRow] = []
    allowed: Tolerance | None = None
    for name, wanted in expected.items():
        tolerance = _tolerance(wanted, actual[name], rtol, atol)
        if allowed is None or tolerance.atol > allowed.atol:
            allowed = tolerance
        rows.append(_row(name, wanted, actual[name], tolerance))
        if wanted.size and not np.isfinite(wide(wanted)).all():
            warnings.append(f"{name} is expected to hold NaN or Inf")
    verdicts = [row.verdict for row in rows]
    verdict: Verdict = (
        "different"
        if "different" in verdicts
        else "equal up to rounding"
        if "equal up to rounding" in verdicts
        else "equal to the bit"
    )
    return Report(
        equal=verdict != "different",
        verdict=verdict,
        max_abs=max(row.max_abs for row in rows),
        max_rel=max(row.max_rel for row in rows),
        rows=tuple(rows),
        tolerance=allowed,
        warnings=tuple(warnings),
    )


def _in_a_row(*sides: Arrays) -> bool:
    """Whether one of two sides has outputs by position alone, and the other by other names."""
    rows = [list(side) == [f"output.{i}" for i in range(len(side))] for side in sides]
    return rows.count(True) == 1


def _tolerance(a: Array, b: Array, rtol: float | None, atol: float | None) -> Tolerance:
    eps = max((_eps(x) for x in (a, b)), default=0.0)
    finite = wide(a)[np.isfinite(wide(a))]
    largest = float(np.abs(finite).max(initial=0.0))
    reason = f"2^10 units in the last place of {a.dtype.name}"
    if rtol is not None or atol is not None:
        reason = "as given"
    default = min(eps * 1024, 0.05)
    return Tolerance(
        default if rtol is None else rtol,
        default * 0.1 * largest if atol is None else atol,
        reason if eps else "integers must be equal",
    )


def _eps(array: Array) -> float:
    try:
        return float(ml_dtypes.finfo(array.dtype).eps)
    except ValueError:
        return 0.0


def _row(name: str, wanted: Array, actual: Array, tolerance: Tolerance) -> OutputRow:
    def row(verdict: Verdict, worst: float, relative: float, reason: str = "") -> OutputRow:
        return OutputRow(name, tuple(actual.shape), verdict, worst, relative, reason)

    inf = float("inf")
    if wanted.shape != actual.shape:
        return row("different", inf, inf, f"expected shape {list(wanted.shape)}")
    if wanted.size == 0:
        return row("different", inf, inf, "nothing to compare: the output is empty")
    if wanted.dtype == actual.dtype and np.array_equal(bits(wanted), bits(actual)):
        return row("equal to the bit", 0.0, 0.0)
    a, b = wide(wanted), wide(actual)
    if wanted.dtype.kind == "c" or actual.dtype.kind == "c":
        a, b = np.asarray(wanted, np.complex128), np.asarray(actual, np.complex128)
    odd = ~(np.isfinite(a) & np.isfinite(b))
    if not np.array_equal(a[odd], b[odd], equal_nan=True):
        where = int(np.flatnonzero(odd)[0])
        return row("different", inf, inf, f"NaN or Inf on one side only, e.g. at {where}")
    error = np.abs(a - b)[~odd]
    magnitude = np.abs(a)[~odd]
    worst = float(error.max(initial=0.0))
    largest = float(magnitude.max(initial=0.0))
    relative = worst / largest if largest else (0.0 if not worst else inf)
    within = bool((error <= tolerance.atol + tolerance.rtol * magnitude).all())
    if not (tolerance.atol or tolerance.rtol):  # whole numbers, some beyond what a float can tell
        within = np.array_equal(wanted, actual)
    return row("equal up to rounding" if within else "different", worst, relative)


def _blind(expected: Arrays) -> list[str]:
    """Reasons why these outputs could not tell a right model from a wrong one."""
    told: list[str] = []
    for name, array in expected.items():
        if array.size and bool((array == array.reshape(-1)[0]).all()):
            told.append(f"{name} is constant: this probe cannot tell models apart")
        elif array.ndim > 1 and len(array) > 1 and bool((array == array[:1]).all()):
            told.append(f"{name} is the same for every sample: the inputs may not reach it")
    return told
