"""`python -m benchmarks.pairs`: runs the pairs and prints the table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.pairs import tables, workers
from benchmarks.pairs.collection import KINDS, Pair, collect
from benchmarks.pairs.rivals import RIVALS


def main() -> int:
    """Exit status 1 where a pair is broken or, without `--check`, something is silently wrong."""
    options = _options()
    chosen = [pair for pair in collect().values() if _chosen(pair, options)]
    if not chosen:
        print("no such pair", file=sys.stderr)
        return 2
    if options.list:
        for pair in chosen:
            print(f"{pair.kind:<15} {pair.expects:<9} {pair.family:<22} {pair.name}")
        return 0
    rows: list[dict[str, Any]] = []
    lookup = {pair.name: pair for pair in chosen}

    def done(row: dict[str, Any]) -> None:
        pair = lookup[row["name"]]
        row |= {"kind": pair.kind, "family": pair.family, "expects": pair.expects}
        row["reveals"] = pair.reveals
        rows.append(row)
        if not options.json:
            print("\n".join(tables.lines(row, verbose=options.verbose)), flush=True)

    tasks = [workers.Task(pair.name, _parts(pair, options)) for pair in chosen]
    workers.run(tasks, processes=options.processes, seconds=options.seconds, done=done)
    rows.sort(key=lambda row: list(lookup).index(row["name"]))
    if options.output:
        text = tables.markdown(rows) if options.output.suffix == ".md" else json.dumps(rows)
        options.output.write_text(text + "\n", "utf-8")
    if options.json:
        print(json.dumps({"schema_version": 1, "rows": rows}))
    elif not options.check and not options.sensitivity:
        print("\n" + tables.totals(rows))
    return int(any(tables.is_bad(row) for row in rows))


def _parts(pair: Pair, options: argparse.Namespace) -> tuple[str, ...]:
    if options.check or options.sensitivity:
        return ("sensitivity" if options.sensitivity else "check",)
    # Nobody has outputs of a model that was changed on purpose; there, a person can say what
    # stays fresh and what is left.
    more = ("told",) if pair.expects == "transfer" else ("probe",)
    return ("plain", *(() if options.no_probe else more), *(RIVALS if options.rivals else ()))


def _chosen(pair: Pair, options: argparse.Namespace) -> bool:
    return (
        (not options.only or any(part in pair.name for part in options.only))
        and (not options.kind or pair.kind in options.kind)
        and (not options.family or pair.family in options.family)
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pairs", description=__doc__)
    add = parser.add_argument
    add("--only", action="append", metavar="NAME", help="pairs whose name contains this")
    add("--kind", action="append", choices=KINDS)
    add("--family", action="append", help="pairs of one module of families/")
    add("--no-probe", action="store_true", help="only without any input")
    add("--rivals", action="store_true", help="also what people use today")
    add("--check", action="store_true", help="check the pairs themselves by their truths")
    add("--sensitivity", action="store_true", help="and that outputs notice every tensor")
    add("--list", action="store_true", help="only name them")
    add("--json", action="store_true", help="one object instead of a table")
    add("--output", type=Path, help="also write a file: .md a table, otherwise JSON")
    add("--verbose", "-v", action="store_true", help="what is undecided, name by name")
    add("--processes", type=int, default=2)
    add("--seconds", type=float, default=20.0, help="time limit of each way to load a pair")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
