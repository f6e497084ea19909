"""`inspect`: what is in a file. Kept light: it is to answer at once."""

from __future__ import annotations

import gc
import re
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

import regraft as rg
from regraft.cli.options import as_json_option, container_option, like, names_of
from regraft.cli.output import pages, progress, say, screen, show_json
from regraft.errors import FormatError
from regraft.reports import facts as known
from regraft.reports import listing, oddities

if TYPE_CHECKING:
    from regraft.checkpoints import Checkpoint
    from regraft.reports.facts import Facts
    from regraft.reports.folding import Fold
    from regraft.reports.statistics import Statistics
    from regraft.tensors import TensorInfo

# Rows of the folded view where there is no screen to fill, and the fewest on a screen.
_ROWS, _FEWEST = 40, 12
_EXAMPLES = """\b
Example:
  regraft inspect model.pth
  regraft inspect model.pth --names 'layer4.*'
  regraft inspect model.pth --names '*' --sort size --limit 10
  regraft inspect model.pth --stats
"""


@click.command(epilog=_EXAMPLES)
@click.argument("source", metavar="FILE")
@click.argument("patterns", nargs=-1, shell_complete=names_of)
@click.option(
    "--names",
    "more",
    multiple=True,
    metavar="GLOB",
    shell_complete=names_of,
    help="List single tensors of such names; may be repeated. PATTERNS do the same.",
)
@click.option("--tree", is_flag=True, help="The whole tree of modules, nothing folded.")
@click.option(
    "--stats",
    is_flag=True,
    help="Read the values: range, mean, deviation, zeros, NaN, Inf; and what is odd.",
)
@click.option(
    "--sort",
    default="order",
    type=click.Choice(["name", "size", "shape", "dtype", "order"]),
    help="Order of rows; size and shape: the largest first.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Show at most so many rows.")
@click.option("--no-pager", is_flag=True, help="Print long output, too, without a pager.")
@container_option
@as_json_option
def inspect(
    source: str,
    patterns: tuple[str, ...],
    more: tuple[str, ...],
    tree: bool,
    stats: bool,
    sort: str,
    limit: int | None,
    no_pager: bool,
    container: str | None,
    as_json: bool,
) -> None:
    """Tell what is in a file, without its framework and without running any of it.

    Without options: what it is as a whole, and its modules, those that repeat as one row.
    PATTERNS are glob patterns for tensor names; what they match is listed tensor by tensor.
    """
    if tree and stats:
        raise click.UsageError("--tree shows modules, --stats shows tensors: choose one")
    patterns = (*patterns, *more)
    with _without_collection():
        found = rg.open(source, container=container)
    with found, nullcontext() if stats else _without_collection():
        facts = known.facts(found)
        odd = oddities.of_file(found, facts)
        infos, unmatched = _named(found, patterns)
        odd += [oddities.Oddity("no-such-name", f"no tensor is called {p!r}") for p in unmatched]
        if sort != "order":
            infos.sort(key=lambda info: _key(sort, info.name, info.nbytes, info))
        measured = _measured(found, infos) if stats else None
        if measured is not None:
            odd += oddities.of_values(found, infos, measured)
        if as_json:
            show_json(listing.as_json(found, facts, infos[:limit], odd, measured))
            return
        head = _head(found, facts, len(infos), brief=bool(patterns))
        if measured is not None:
            lines = _statistics(infos, measured, limit)
        elif patterns and not tree:
            lines = _tensors(infos, facts, limit)
        else:
            lines = _outline(infos, facts, sort, limit, tree, len(head))
    pages([*head, *lines], pager=not no_pager)
    for one in odd:
        say(f"{click.style('warning', fg='yellow')}  {listing.printable(str(one))}")


@contextmanager
def _without_collection() -> Generator[None]:
    """Python's search for dead cycles visits all that is listed again and again, a quarter of the
    time where there are many tensors; a listing leaves no cycles behind."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _named(found: Checkpoint, patterns: tuple[str, ...]) -> tuple[list[TensorInfo], list[str]]:
    """Tensors that a pattern matches, all without patterns; and the patterns that match none."""
    if not patterns:
        return list(found.values()), []
    matched = {pattern: [n for n in found if like(n, (pattern,))] for pattern in patterns}
    chosen = {name for names in matched.values() for name in names}
    if not chosen:
        raise FormatError(
            found.label,
            found=f"no tensor called {' or '.join(patterns)}",
            expected=f"one of {len(found):,} names",
            hint=_nearest(found, patterns[0]),
        )
    infos = [info for info in found.values() if info.name in chosen]
    return infos, [pattern for pattern, names in matched.items() if not names]


def _nearest(names: Iterable[str], wanted: str) -> str:
    from rapidfuzz import process

    near = process.extractOne(wanted.replace("*", ""), list(names), score_cutoff=60)
    return f"{near[0]!r} is nearest to it" if near else "without --names everything is shown"


def _key(sort: str, name: str, nbytes: int, info: TensorInfo) -> Any:
    """What to sort by: names with their numbers as numbers, sizes from the largest down."""
    if sort == "size":
        return -nbytes
    if sort == "shape":
        return -len(info.shape), [-n for n in info.shape]
    if sort == "dtype":
        return info.dtype
    parts = re.split(r"([0-9]+)", name)
    return [(len(p.lstrip("0")), p) if i % 2 else (0, p) for i, p in enumerate(parts)]


def _measured(found: Checkpoint, infos: list[TensorInfo]) -> dict[str, Statistics]:
    from regraft.reports.statistics import measured

    done: dict[str, Statistics] = {}
    with progress("reading", sum(info.nbytes for info in infos)) as advance:
        for info, statistics in measured(infos, found.read, oddities.output_axes(found)):
            done[info.name] = statistics
            advance(info.nbytes, listing.printable(info.name))
    return done


# Lines


def _head(found: Checkpoint, facts: Facts, shown: int, brief: bool) -> list[str]:
    """What is known of the whole file; but its headline where a person asked for some tensors."""
    title = listing.headline(found, facts)
    if shown != len(found):
        title += f" · {shown:,} shown"
    told = [] if brief else listing.remarks(found, facts)
    lines = [f"  {click.style(word.ljust(10), fg='blue')}  {text}" for word, text in told]
    return [click.style(title, bold=True), *lines, *[""] * bool(found)]


def _outline(
    infos: list[TensorInfo], facts: Facts, sort: str, limit: int | None, whole: bool, above: int
) -> list[str]:
    from regraft.reports import folding, outline

    width, height = screen()
    rows = limit or (max(_FEWEST, height - above - 2) if height else _ROWS)

    def order(fold: Fold) -> Any:
        return _key(sort, fold.label, fold.nbytes, fold.items[0][1])

    root = folding.whole(infos, facts.again)
    ordered = None if sort == "order" else order
    if whole:
        shown, left = list(islice(outline.whole(root, ordered), limit)), []
    else:
        shown, left = outline.screenful(root, rows, ordered)
    cells = [listing.of_outline(row, facts.again, whole_names=width is None) for row in shown]
    lines = [
        _painted(line, "cyan" if row.fold.tensor is None else None)
        for row, line in zip(shown, listing.table(cells, right=(2,), width=width), strict=True)
    ]
    if left:
        tensors = sum(fold.tensors for fold in left)
        lines.append(_more(len(left), f" ({tensors:,} tensors)", "--limit or --tree shows them"))
    return lines


def _tensors(infos: list[TensorInfo], facts: Facts, limit: int | None) -> list[str]:
    cells = [listing.of_tensor(info, facts.again) for info in infos[:limit]]
    lines = [_painted(line) for line in listing.table(cells, right=(2,), width=screen()[0])]
    return _limited(lines, len(infos))


def _statistics(
    infos: list[TensorInfo], measured: dict[str, Statistics], limit: int | None
) -> list[str]:
    cells = [listing.of_values(info, measured[info.name]) for info in infos[:limit]]
    columns = range(3, len(listing.STATISTICS))
    head, *rows = listing.table(
        [listing.STATISTICS, *cells], columns, screen()[0], listing.NAMES_FIRST
    )
    lines = [click.style("".join(head), dim=True)]
    for info, row in zip(infos, rows, strict=False):
        odd = measured[info.name].nan or measured[info.name].inf
        lines.append(click.style("".join(row), fg="red") if odd else "".join(row))
    return _limited(lines, len(infos) + 1)


def _painted(cells: Sequence[str], tone: str | None = None) -> str:
    """A row: its name in a colour, what comes after the bytes dimmed."""
    name, *middle, dtype, note = cells
    last = click.style(f"{dtype}{note}".rstrip(), dim=True)
    return "".join((click.style(name, fg=tone) if tone else name, *middle, last))


def _limited(lines: list[str], count: int) -> list[str]:
    left = count - len(lines)
    return [*lines, _more(left, "", "a larger --limit shows them")] if left else lines


def _more(count: int, what: str, how: str) -> str:
    return click.style(f"  … {count:,} more rows{what}: {how}", dim=True)
