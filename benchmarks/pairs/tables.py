"""What is printed: a line for each pair, totals, and a page in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from benchmarks.pairs.collection import KINDS
from benchmarks.pairs.rivals import RIVALS

Row = dict[str, Any]
PASSED_TRAP = ("refused", "flagged", "exposed", "proven")
_SHOWN = 40


def good(row: Row, mode: str = "plain") -> bool:
    """Whether a verdict is what a person would want of this pair."""
    verdict = row.get(mode, {}).get("verdict")
    if row["expects"] == "trap":
        return verdict in PASSED_TRAP
    return verdict == "proven"


def helped(row: Row) -> Row:
    """The verdict with a probe, or of a transfer that was told what is fresh and unused."""
    return row.get("probe") or row.get("told") or {}


def wrong(row: Row, mode: str) -> bool:
    """Whether this is silently wrong."""
    return row.get(mode, {}).get("verdict") == "wrong"


def is_bad(row: Row) -> bool:
    """What the exit status is about."""
    broken = any(isinstance(v, dict) and v.get("verdict") == "broken" for v in row.values())
    return broken or any(wrong(row, mode) for mode in ("plain", "probe", "told"))


def lines(row: Row, *, verbose: bool = False) -> list[str]:
    """One pair, as it is printed when it is done."""
    checked = row.get("check") or row.get("sensitivity")
    if checked:
        told = f"{checked['verdict']:<8} {row.get('build_seconds', 0):>6} s  {checked['reason']}"
        return [f"{row['kind']:<15} {row['name']:<58} {told}"]
    plain, probe = row["plain"], helped(row)
    seconds = f"{plain['seconds']:.1f} s"
    cells = f"{plain['verdict']:<10} {probe.get('verdict', '–'):<10} {seconds:>7}"
    result = [f"{row['kind']:<15} {row['name']:<58} {cells}  {plain['reason'][:110]}"]
    if any(name in row for name in RIVALS):
        told = ", ".join(f"{name}: {row[name]['verdict']}" for name in RIVALS if name in row)
        result.append(f"{'':<16}{told}")
    if verbose:
        told: tuple[str, ...] = ()
        for mode in ("plain", "probe", "told"):
            part = row.get(mode)
            if part and not good(row, mode):
                result.append(f"    {mode}: {part['verdict']}: {part['reason']}")
                result += [f"      {text}" for text in part["details"][:_SHOWN] if text not in told]
                told = tuple(part["details"])
    return result


def totals(rows: list[Row]) -> str:
    """The counts by kind, the bars of the project, and those of the rivals."""
    blocks = [_aligned(_by_kind(rows))]
    if any(name in row for row in rows for name in RIVALS):
        blocks.append(_aligned(_rivals(rows)))
    blocks.append("\n".join(_bars(rows)))
    return "\n\n".join(blocks)


_COLUMNS = ("proven", "refused", "flagged", "misstated", "wrong", "blind", "other")


def _by_kind(rows: list[Row]) -> list[list[str]]:
    table = [["kind", "pairs", "good", *_COLUMNS, "good with help", "wrong with help", "seconds"]]
    for kind in (*KINDS, "all"):
        held = [row for row in rows if kind in (row["kind"], "all")]
        if not held:
            continue
        counts = Counter(row["plain"]["verdict"] for row in held)
        other = sum(count for word, count in counts.items() if word not in _COLUMNS)
        numbers = [
            len(held),
            sum(map(good, held)),
            *(counts[word] for word in _COLUMNS[:-1]),
            other,
            sum(good(row, mode) for row in held for mode in ("probe", "told")),
            sum(wrong(row, mode) for row in held for mode in ("probe", "told")),
        ]
        seconds = sum(row["plain"]["seconds"] for row in held)
        table.append([kind, *map(str, numbers), f"{seconds:.1f}"])
    return table


def _rivals(rows: list[Row]) -> list[list[str]]:
    """Proven among what has an answer; silently wrong there, and traps that were not seen."""
    ways = {"regraft": "plain", "regraft, with a probe": "probe"} | {name: name for name in RIVALS}
    table = [["way", "proven", "refused", "silently wrong", "traps not seen"]]
    for way, part in ways.items():
        held = [row for row in rows if part in row or (part == "probe" and "plain" in row)]
        if not held:
            continue
        verdicts = [(row["expects"], row.get(part, row["plain"])["verdict"]) for row in held]
        answers = Counter(verdict for expects, verdict in verdicts if expects != "trap")
        wrongs = answers["wrong"] + answers["misstated"]
        refused = answers.total() - answers["proven"] - wrongs
        unseen = sum(1 for expects, verdict in verdicts if expects == "trap" and verdict == "wrong")
        table.append([way, *map(str, (answers["proven"], refused, wrongs, unseen))])
    return table


def _bars(rows: list[Row]) -> Iterable[str]:
    def share(what: str, held: list[Row], mode: str = "plain") -> str:
        count = sum(good(row, mode) for row in held)
        percent = f"{100 * count / len(held):.0f} %" if held else "–"
        return f"{what}: {count} of {len(held)} ({percent})"

    solvable = [row for row in rows if row["expects"] == "solvable"]
    transfers = [row for row in rows if row["expects"] == "transfer"]
    traps = [row for row in rows if row["expects"] == "trap"]
    seen = [row for row in traps if row["reveals"] == "plan"]
    yield share("solvable proven with no input", solvable)
    if any("probe" in row for row in rows):
        yield share("solvable proven with a probe", solvable, "probe")
    yield share("transfers as a person states them", transfers)
    if any("told" in row for row in transfers):
        yield share("transfers with fresh and unused told", transfers, "told")
    yield share("traps that a plan can show, flagged", seen)
    if any("probe" in row for row in rows):
        yield share("all traps, flagged with a probe", traps, "probe")
    bad = [row["name"] for row in rows if wrong(row, "plain")]
    probed = [row["name"] for row in rows if wrong(row, "probe") or wrong(row, "told")]
    waved = [
        row["name"]
        for row in solvable
        if row["plain"].get("waved_through") not in ("", "equal", None)
    ]
    yield f"silently wrong: {len(bad)}" + "".join(f"\n  {name}" for name in bad)
    if any(helped(row) for row in rows):
        yield f"wrong with help: {len(probed)}" + "".join(f"\n  {name}" for name in probed)
    yield (
        "complete without a warning, refused only for what it lists as fresh or unused, and wrong "
        f"if that is waved through: {len(waved)}" + "".join(f"\n  {name}" for name in waved)
    )


def _aligned(table: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    return "\n".join(rows)


def markdown(rows: list[Row]) -> str:
    """A page: totals, rivals, and every pair."""
    parts = ["# Pairs", "", *_grid(_by_kind(rows)), ""]
    if any(name in row for row in rows for name in RIVALS):
        parts += [*_grid(_rivals(rows)), ""]
    parts += [f"- {line}" for text in _bars(rows) for line in text.splitlines()]
    table = [["kind", "pair", "no input", "with help", "seconds", "reason"]]
    for row in rows:
        plain, probe = row["plain"], helped(row)
        reason = plain["reason"].replace("|", "\\|")[:120]
        cells = [row["kind"], row["name"], plain["verdict"], probe.get("verdict", "–")]
        table.append([*cells, f"{plain['seconds']:.1f}", reason])
    return "\n".join([*parts, "", *_grid(table)])


def _grid(table: list[list[str]]) -> list[str]:
    head, *rest = (f"| {' | '.join(row)} |" for row in table)
    return [head, "|" + "---|" * len(table[0]), *rest]
