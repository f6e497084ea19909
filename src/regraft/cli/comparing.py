"""`diff`, `trace` and `report`: what became of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import regraft as rg
from regraft.cli.options import (
    NEGATIVE,
    as_json_option,
    force_option,
    free,
    out_option,
    plan_of,
)
from regraft.cli.output import painted, progress, say, show, show_json
from regraft.errors import FormatError


@click.command(
    epilog="Example:  regraft diff base.safetensors tuned.safetensors --html changes.html"
)
@click.argument("source", metavar="BASE")
@click.argument("tuned")
@click.option("--plan", "plan_path", type=click.Path(),
              help="How TUNED was made from BASE (regraft plan -o), where names "
              "differ.")  # fmt: skip
@click.option("--ranks", is_flag=True, help="Take the effective rank of each change, too.")
@click.option("--modules", is_flag=True, help="Sum tensors up by module.")
@click.option(
    "--html",
    "page",
    is_flag=False,
    flag_value="diff.html",
    type=click.Path(),
    metavar="[PATH]",
    help="Draw drift by depth and the largest changes; after the files, to diff.html by default.",
)
@click.option("--container", help="The part of BASE to open, such as ema; '' for all of it.")
@click.option("--tuned-container", help="The part of TUNED to open.")
@force_option
@as_json_option
def diff(
    source: str,
    tuned: str,
    plan_path: str | None,
    ranks: bool,
    modules: bool,
    page: str | None,
    container: str | None,
    tuned_container: str | None,
    force: bool,
    as_json: bool,
) -> int:
    """Compare two files tensor by tensor, whatever their formats, names and layouts.

    \b
    identical  the same to the bit
    renamed    the same to the bit, under another name or in another layout
    moved      other values: L2 is the length of the change relative to the
               base's, max the largest change, cos the angle's cosine
    fresh      only TUNED has it
    gone       only BASE has it

    BASE and TUNED are files, folders or an index of shards. Status 1: different.
    """
    free(page, force)
    made = plan_of(plan_path) if plan_path else None
    newer = rg.open(tuned, container=tuned_container) if tuned_container is not None else tuned
    with progress("comparing") as advance:
        found = rg.diff(
            source, newer, plan=made, container=container, ranks=ranks,
            progress=lambda name, size: advance(size, name),
        )  # fmt: skip
    if page:
        title = f"{Path(source).name} → {Path(tuned).name}"
        rg.report(page, title=title, diff=found, force=force)
        say(f"written to {page}")
    if as_json:
        show_json(found.to_json())
    elif modules:
        show(painted(_by_module(found)))
    else:
        show(painted(str(found)))
    return 0 if found.same else NEGATIVE


def _by_module(found: rg.Diff) -> str:
    rows = [str(found).split("\n", 1)[0]]
    modules = found.modules()
    width = max(map(len, modules), default=0)
    for path, module in modules.items():
        told = ", ".join(f"{count} {status}" for status, count in module.counts.items())
        drift = f"  L2 {module.rel_l2:.3g}" if module.rel_l2 == module.rel_l2 else ""
        rows.append(f"  {path or '(root)':<{width}}  {told}{drift}")
    return "\n".join(rows)


@click.command(epilog="Example:  regraft trace tuned.safetensors --base base.pth")
@click.argument("source", metavar="FILE")
@click.option("--base", "bases", multiple=True, type=click.Path(),
              help="A file it may have come from: its hash is compared; may be repeated. "
              "Files that lie beside FILE are found.")  # fmt: skip
@as_json_option
def trace(source: str, bases: tuple[str, ...], as_json: bool) -> int:
    """Say where each tensor of a file that Regraft wrote came from, and from where that came.

    The file's own values and its sources at hand are held to their hashes. Status 1: something was
    changed since.
    """
    told = rg.trace(source)
    sources = rg.sources_of(source, bases)
    if as_json:
        show_json(told.to_json() | {"sources": [s.to_json() for s in sources]})
    else:
        show(painted(str(told)))
        for row in lines_of(sources):
            show(row)
    changed = any(s.state == "changed" for s in sources) or "changed" in told.counts()
    return NEGATIVE if changed else 0


def lines_of(sources: list[Any]) -> list[str]:
    """The chain of sources, each under what was made of it."""
    tones = {"verified": "green", "changed": "red", "absent": "yellow"}
    return [
        f"{'  ' * s.depth}{'└ ' if s.depth else ''}{s.name}  sha256 {s.sha256[:12] or 'unknown'}  "
        f"{click.style(s.state, fg=tones[s.state])}"
        for s in sources
    ]


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
            told = rg.trace(source) if rg.has_lineage(found) else None
        if compared is None and told is None:
            raise FormatError(
                source,
                found="a file without lineage",
                expected="a plan, a file that Regraft wrote, or --base to compare with",
            )
        rg.report(out, title=Path(source).name, diff=compared, lineage=told, force=force)
    show(f"written to {out}")
