"""`diff`, `trace` and `report`: what became of the weights."""

from __future__ import annotations

from pathlib import Path

import click

import regraft as rg
from regraft.cli.options import (
    NEGATIVE,
    as_json_option,
    container_option,
    force_option,
    out_option,
    plan_of,
)
from regraft.cli.output import painted, show, show_json
from regraft.errors import FormatError


@click.command(epilog="Example:  regraft diff base.safetensors tuned.safetensors")
@click.argument("source", metavar="BASE")
@click.argument("tuned")
@click.option("--plan", "plan_path", help="How TUNED was made from BASE, where names differ.")
@container_option
@as_json_option
def diff(
    source: str, tuned: str, plan_path: str | None, container: str | None, as_json: bool
) -> int:
    """Compare two files tensor by tensor: identical, moved, fresh or gone. Status 1: different."""
    made = plan_of(plan_path) if plan_path else None
    found = rg.diff(source, tuned, plan=made, container=container)
    if as_json:
        show_json(found.to_json())
    else:
        show(painted(str(found)))
    return 0 if found.same else NEGATIVE


@click.command(epilog="Example:  regraft trace tuned.safetensors")
@click.argument("source", metavar="FILE")
@as_json_option
def trace(source: str, as_json: bool) -> None:
    """Say where each tensor of a file that Regraft wrote came from."""
    told = rg.trace(source)
    if as_json:
        show_json(told.to_json())
    else:
        show(painted(str(told)))


@click.command(epilog="Example:  regraft report tuned.safetensors --base base.h5 -o tuned.html")
@click.argument("source", metavar="FILE")
@click.option("--base", type=click.Path(), help="What FILE is to be compared with.")
@out_option
@force_option
def report(source: str, base: str | None, out: str, force: bool) -> None:
    """Write an HTML page about a saved plan, or about a file and how it differs from its base."""
    if source.endswith(".plan.json"):
        rg.report(out, title=source, plan=plan_of(source), force=force)
    else:
        compared = rg.diff(base, source) if base else None
        with rg.open(source) as found:
            told = rg.trace(source) if "regraft.lineage" in found.metadata else None
        if compared is None and told is None:
            raise FormatError(
                source,
                found="a file without lineage",
                expected="a plan, a file that Regraft wrote, or --base to compare with",
            )
        rg.report(out, title=Path(source).name, diff=compared, lineage=told, force=force)
    show(f"written to {out}")
