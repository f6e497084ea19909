"""`inspect`: what is in a file. Kept light: it is to answer at once."""

from __future__ import annotations

from collections.abc import Iterable

import click

import regraft as rg
from regraft.cli.options import (
    as_json_option,
    container_option,
    like,
    names_of,
)
from regraft.cli.output import say, show, show_json
from regraft.errors import RegraftError


@click.command(epilog="Example:  regraft inspect model.pth 'encoder.*' --fold")
@click.argument("source", metavar="FILE")
@click.argument("patterns", nargs=-1, shell_complete=names_of)
@container_option
@click.option("--fold", is_flag=True, help="Join names that differ by numbers only.")
@click.option("--values", is_flag=True, help="Also read the values: range, mean, deviation, NaN.")
@as_json_option
def inspect(
    source: str,
    patterns: tuple[str, ...],
    container: str | None,
    fold: bool,
    values: bool,
    as_json: bool,
) -> None:
    """List what is in a file, without its framework and without running any of it.

    PATTERNS are glob patterns for tensor names.
    """
    from regraft.reports import listing

    with rg.open(source, container=container) as found:
        infos = [i for i in found.values() if like(i.name, patterns)]
        if patterns and not infos:
            raise RegraftError(
                source, found="no tensor of such a name", expected=f"one of {len(found)} names"
            )
        if as_json:
            show_json(listing.as_json(found, infos))
            return
        show(click.style(listing.headline(found, len(infos)), bold=True))
        for note in found.notes:
            say(f"  {note}")
        if values:
            from regraft.reports.statistics import rows

            lines: Iterable[tuple[str, ...]] = rows(infos, found.read)
        else:
            lines = listing.rows(infos, fold)
        for line in listing.table(lines):
            show(line)
