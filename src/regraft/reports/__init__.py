"""HTML reports: one file that opens anywhere, with no reference to the network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from regraft.atomic import replacing
from regraft.errors import FormatError, MissingDependency

if TYPE_CHECKING:
    from regraft.lineage import Diff, Lineage
    from regraft.plans import Plan
    from regraft.receipts import Receipt
    from regraft.tuning import Tuned
    from regraft.verification import Report

__all__ = ["Table", "report"]

_TEMPLATE = "report.html"


class Table(NamedTuple):
    """A table of a caller's own, such as results of several runs."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def report(
    path: str | os.PathLike[str],
    *,
    title: str = "Regraft report",
    plan: Plan | None = None,
    receipt: Receipt | None = None,
    verification: Report | None = None,
    tuned: Tuned | None = None,
    diff: Diff | None = None,
    lineage: Lineage | None = None,
    tables: Sequence[Table] = (),
    force: bool = False,
) -> Path:
    """Writes what is given as one HTML page, charts included.

    **Raises** `FormatError` where the file exists and `force` is False, `MissingDependency`
    without jinja2 or, where there is something to draw, plotly.
    """
    where = Path(path)
    if where.exists() and not force:
        raise FormatError(
            str(path),
            found="a file that exists",
            hint="choose another name, or overwrite it with force=True (--force)",
        )
    if not where.parent.is_dir():
        raise FormatError(str(path), found="no such folder", hint="make the folder first")
    page = _render(
        title=title,
        plan=plan or (receipt.plan if receipt else None),
        receipt=receipt,
        verification=verification,
        tuned=tuned,
        diff=diff,
        lineage=lineage,
        tables=tables,
        charts=_charts(tuned, diff, verification),
    )
    with replacing(where) as file:
        file.write(page.encode())
    return where


def _render(**facts: Any) -> str:
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependency("jinja2", extra="report", purpose="HTML reports") from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("regraft.reports", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE).render(**facts)


def _charts(
    tuned: Tuned | None, diff: Diff | None, verification: Report | None = None
) -> Mapping[str, str]:
    """Charts as HTML by name; the drawing library's script comes with the first of them."""
    entries = [entry for entry in diff.values() if entry.status == "moved"] if diff else []
    moved = [e for e in entries if e.rel_l2 == e.rel_l2]
    steps = verification is not None and len(verification.steps) > 1
    if not moved and not steps and (tuned is None or len(tuned.curve) < 2):
        return {}
    from regraft.reports import charts

    drawn: dict[str, str] = {}
    if tuned is not None and len(tuned.curve) > 1:
        drawn["curve"] = charts.learning_curve(tuned, first=True)
    if diff is not None and moved:
        known = [module.rel_l2 for module in diff.modules().values()]
        if len(known) > 1 and any(rel < float("inf") for rel in known):
            drawn["drift"] = charts.drift(diff, first=not drawn)
        if not all(entry.from_zero for entry in moved):
            drawn["changes"] = charts.changes(diff, first=not drawn)
        if any(entry.from_zero for entry in moved):
            drawn["from_zero"] = charts.from_zero(diff, first=not drawn)
    if verification is not None and steps:
        drawn["steps"] = charts.errors(verification, first=not drawn)
    return drawn
