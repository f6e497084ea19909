"""What is printed: a line for each pair, totals, and a page in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from benchmarks.pairs.collection import KINDS

Row = dict[str, Any]
PASSED_TRAP = ("refused", "flagged", "exposed", "proven")
_SHOWN = 40


def good(row: Row, mode: str = "plain") -> bool:
    """Whether a verdict is what a person would want of this pair."""
    verdict = row.get(mode, {}).get("verdict")
    if row["expects"] == "trap":
        return verdict in PASSED_TRAP
    return verdict == "proven"


def wrong(row: Row, mode: str) -> bool:
    """Whether this is silently wrong."""
    return row.get(mode, {}).get("verdict") == "wrong"


def is_bad(row: Row) -> bool:
    """What the exit status is about."""
    broken = row.get("plain", {}).get("verdict") == "broken"
    return broken or bool(row.get("check")) or wrong(row, "plain") or wrong(row, "probe")


def lines(row: Row, *, verbose: bool = False) -> list[str]:
    """One pair, as it is printed when it is done."""
    if "check" in row:
        told = "; ".join(row["check"][:_SHOWN]) or "as it says"
        return [f"{row['kind']:<15} {row['name']:<58} {told}  {row['build_seconds']} s"]
    plain, probe = row["plain"], row.get("probe", {})
    seconds = f"{plain['seconds']:.1f} s"
    cells = f"{plain['verdict']:<10} {probe.get('verdict', '–'):<10} {seconds:>7}"
    result = [f"{row['kind']:<15} {row['name']:<58} {cells}  {plain['reason'][:110]}"]
    if row.get("rivals"):
        told = ", ".join(f"{name} {v['verdict']}" for name, v in row["rivals"].items())
        result.append(f"{'':<16}{told}")
    if verbose:
        told: tuple[str, ...] = ()
        for mode in ("plain", "probe"):
            part = row.get(mode)
            if part and not good(row, mode):
                result.append(f"    {mode}: {part['verdict']}: {part['reason']}")
                result += [f"      {text}" for text in part["details"][:_SHOWN] if text not in told]
                told = tuple(part["details"])
    return result


def totals(rows: list[Row]) -> str:
    """The counts by kind, the bars of the project, and those of the rivals."""
    blocks = [_aligned(_by_kind(rows))]
    if any("rivals" in row for row in rows):
        blocks.append(_aligned(_rivals(rows)))
    blocks.append("\n".join(_bars(rows)))
    return "\n\n".join(blocks)


_COLUMNS = ("proven", "refused", "flagged", "misstated", "wrong", "blind", "other")


def _by_kind(rows: list[Row]) -> list[list[str]]:
    table = [["kind", "pairs", "good", *_COLUMNS, "good with probe", "wrong with probe", "seconds"]]
    for kind in (*KINDS, "all"):
        held = [row for row in rows if kind in (row["kind"], "all")]
        if not held:
            continue
        counts = Counter(row["plain"]["verdict"] for row in held)
        other = sum(count for word, count in counts.items() if word not in _COLUMNS)
        probed = [row for row in held if "probe" in row]
        numbers = [
            len(held),
            sum(map(good, held)),
            *(counts[word] for word in _COLUMNS[:-1]),
            other,
            sum(good(row, "probe") for row in probed),
            sum(wrong(row, "probe") for row in probed),
        ]
        seconds = sum(row["plain"]["seconds"] for row in held)
        table.append([kind, *map(str, numbers), f"{seconds:.1f}"])
    return table


def _rivals(rows: list[Row]) -> list[list[str]]:
    """Proven among what has an answer, silently wrong among all."""
    answered = [row for row in rows if row["expects"] != "trap"]
    table = [["way", "proven", "refused", "silently wrong", "traps not seen"]]
    ours = {
        "regraft": [row["plain"] for row in answered],
        "regraft, with a probe": [row.get("probe", row["plain"]) for row in answered],
    }
    trapped = {
        "regraft": [row for row in rows if row["expects"] == "trap" and wrong(row, "plain")],
        "regraft, with a probe": [
            row for row in rows if row["expects"] == "trap" and wrong(row, "probe")
        ],
    }
    names = dict.fromkeys(name for row in rows for name in row.get("rivals", {}))
    for name in names:
        ours[name] = [row["rivals"][name] for row in answered if "rivals" in row]
        trapped[name] = [
            row
            for row in rows
            if row["expects"] == "trap" and row.get("rivals", {}).get(name, {}).get("verdict") == "wrong"
        ]
    for name, verdicts in ours.items():
        counts = Counter(verdict["verdict"] for verdict in verdicts)
        wrongs = counts["wrong"] + counts["misstated"]
        refused = len(verdicts) - counts["proven"] - wrongs
        numbers = (counts["proven"], refused, wrongs, len(trapped[name]))
        table.append([name, *map(str, numbers)])
    return table


def _bars(rows: list[Row]) -> Iterable[str]:
    def share(what: str, held: list[Row], mode: str = "plain") -> str:
        count = sum(good(row, mode) for row in held)
        percent = f"{100 * count / len(held):.0f} %" if held else "–"
        return f"{what}: {count} of {len(held)} ({percent})"

    solvable = [row for row in rows if row["expects"] == "solvable"]
    traps = [row for row in rows if row["expects"] == "trap"]
    seen = [row for row in traps if row["reveals"] == "plan"]
    yield share("solvable proven with no input", solvable)
    if any("probe" in row for row in rows):
        yield share("solvable proven with a probe", solvable, "probe")
    yield share("transfers as a person states them", [r for r in rows if r["expects"] == "transfer"])
    yield share("traps that a plan can show, flagged", seen)
    if any("probe" in row for row in rows):
        yield share("all traps, flagged with a probe", traps, "probe")
    bad = [row["name"] for row in rows if wrong(row, "plain")]
    probed = [row["name"] for row in rows if wrong(row, "probe")]
    yield f"silently wrong: {len(bad)}" + "".join(f"\n  {name}" for name in bad)
    if any("probe" in row for row in rows):
        yield f"wrong with a probe: {len(probed)}" + "".join(f"\n  {name}" for name in probed)


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
    if any("rivals" in row for row in rows):
        parts += [*_grid(_rivals(rows)), ""]
    parts += [f"- {line}" for text in _bars(rows) for line in text.splitlines()]
    table = [["kind", "pair", "no input", "with probe", "seconds", "reason"]]
    for row in rows:
        plain, probe = row["plain"], row.get("probe", {})
        reason = plain["reason"].replace("|", "\\|")[:120]
        cells = [row["kind"], row["name"], plain["verdict"], probe.get("verdict", "–")]
        table.append([*cells, f"{plain['seconds']:.1f}", reason])
    return "\n".join([*parts, "", *_grid(table)])


def _grid(table: list[list[str]]) -> list[str]:
    head, *rest = (f"| {' | '.join(row)} |" for row in table)
    return [head, "|" + "---|" * len(table[0]), *rest]
