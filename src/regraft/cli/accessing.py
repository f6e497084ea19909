"""`restore`, `export`, `delta` and `lineage`: the weights afterwards."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

import regraft as rg
from regraft.cli.options import (
    as_json_option,
    dry_run_option,
    force_option,
    free,
    out_option,
    plan_of,
    would,
)
from regraft.cli.output import progress, show, show_json


@click.command(
    epilog="Example:  regraft restore tuned.safetensors --tensors 'layer4.*' --base base.pth "
    "-o rewound.safetensors"
)
@click.argument("source", metavar="TUNED")
@click.option("--tensors", "patterns", multiple=True, required=True, metavar="GLOB",
              help="Tensors to rewind; may be repeated.")  # fmt: skip
@click.option("--base", required=True, type=click.Path(), help="The file that TUNED came from.")
@click.option("--plan", "plan_path", help="How TUNED was made from the base, without lineage.")
@out_option
@force_option
@dry_run_option
@as_json_option
def restore(
    source: str,
    patterns: tuple[str, ...],
    base: str,
    plan_path: str | None,
    out: str,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write TUNED with some tensors rewound to their pretrained values."""
    if would(dry_run, [source, base], out):
        return
    free(out, force)
    plan = plan_of(plan_path) if plan_path else None
    done = rg.restore(source, base, out, tensors=patterns, plan=plan, force=force)
    if as_json:
        facts = {"path": str(done.path), "rewound": done.rewound, "kept": done.kept}
        show_json({"schema_version": 1, **facts})
        return
    show(f"{len(done.rewound)} tensors rewound, written to {done.path}")
    for name in done.kept:
        show(f"  kept  {name}  it was fresh: the base has no values for it")


@click.command(epilog="Example:  regraft export tuned.safetensors --as source -o tuned.h5")
@click.argument("source", metavar="TUNED")
@click.option("--as", "to", default="source", show_default=True, type=click.Choice(["source"]),
              help="Whose names and layout: those of the file that TUNED came from.")  # fmt: skip
@click.option("--base", type=click.Path(),
              help="That file: what TUNED lacks (its head) is taken from it.")  # fmt: skip
@out_option
@force_option
@dry_run_option
@as_json_option
def export(
    source: str,
    to: str,
    base: str | None,
    out: str,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write tuned weights under the names and in the layout of the library they came from."""
    if would(dry_run, [source, *([base] if base else [])], out):
        return
    free(out, force)
    done = rg.export(source, out, to=to, base=base, force=force)
    if as_json:
        facts = {"written": done.written, "left": done.left, "filled": done.filled}
        show_json({"schema_version": 1, "path": str(done.path), **facts})
        return
    show(f"{len(done.written)} tensors written to {done.path}")
    for name in done.left:
        show(f"  left    {name}  the source has no such tensor")
    for name in done.filled:
        show(f"  filled  {name}  taken from {base}")


@click.group()
def delta() -> None:
    """Store a tuned file as what it adds to its base, without loss.

    \b
    Example:
      regraft delta make base.safetensors tuned.safetensors -o tuned.delta
      regraft delta apply base.safetensors tuned.delta -o tuned.safetensors
    """


@delta.command(epilog="Example:  regraft delta make base.pth tuned.pth -o tuned.delta")
@click.argument("base")
@click.argument("source", metavar="TUNED")
@click.option("--plan", "plan_path", help="How TUNED was made from BASE, where names differ.")
@out_option
@force_option
@dry_run_option
@as_json_option
def make(
    base: str,
    source: str,
    plan_path: str | None,
    out: str,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write what TUNED adds to BASE: TUNED comes back of it byte for byte."""
    if would(dry_run, [base, source], out):
        return
    free(out, force)
    plan = plan_of(plan_path) if plan_path else None
    with progress("comparing", Path(source).stat().st_size if Path(source).exists() else None) as p:
        written = rg.make_delta(
            base, source, out, plan=plan, force=force, progress=lambda name, n: p(n, name)
        )
    size, whole = written.stat().st_size, Path(source).stat().st_size
    if as_json:
        show_json({"schema_version": 1, "path": str(written), "bytes": size, "tuned_bytes": whole})
        return
    show(f"{size:,} bytes, {size / max(1, whole):.1%} of {source}, written to {written}")


@delta.command(epilog="Example:  regraft delta apply base.pth tuned.delta -o tuned.pth")
@click.argument("base")
@click.argument("source", metavar="DELTA")
@out_option
@force_option
@dry_run_option
@as_json_option
def apply(
    base: str, source: str, out: str, force: bool, dry_run: bool, as_json: bool
) -> None:  # fmt: skip
    """Write the tuned file again, held to its hash. BASE must hold the tensors of the old base."""
    if would(dry_run, [base, source], out):
        return
    free(out, force)
    with progress("writing") as advance:
        written = rg.apply_delta(
            base, source, out, force=force, progress=lambda name, n: advance(n, name)
        )
    size = written.stat().st_size
    if as_json:
        show_json({"schema_version": 1, "path": str(written), "bytes": size})
        return
    show(f"{size:,} bytes written to {written}, the same to the bit")


@click.command(epilog="Example:  regraft lineage checkpoints/")
@click.argument("folder", type=click.Path())
@click.option("--by-values", is_flag=True,
              help="Look at values alone: at no lineage, counters, names and times.")  # fmt: skip
@as_json_option
def lineage(folder: str, by_values: bool, as_json: bool) -> None:
    """Say which checkpoint of FOLDER came from which, by their values, as a tree.

    What values leave open is told by counters in the files, names, and last the times of the files;
    each edge says which. --json gives nodes, edges as [parent, child], and what each edge rests on.
    """
    with progress("reading") as advance:
        found = rg.family_tree(
            folder, by_values=by_values, progress=lambda name, n: advance(n, name)
        )
    if as_json:
        show_json(found.to_json())
        return
    _draw(found)


def _draw(found: rg.FamilyTree) -> None:
    """Trees in the terminal; a merged file stands below each of its parents, whole below the
    first."""
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    drawn: set[str] = set()

    def add(branch: Tree, name: str) -> None:
        if name in drawn:
            return
        drawn.add(name)
        for edge in found.edges:
            if edge.parent == name:
                told = Text(edge.child)
                told.append(f"  {edge}", style="dim" if edge.direction != "open" else "yellow")
                add(branch.add(told), edge.child)

    # In a file or a pipe no line is cut.
    width = None if sys.stdout.isatty() else 10_000
    console = Console(highlight=False, width=width, no_color=bool(os.environ.get("NO_COLOR")))
    for root in found.roots:
        tree = Tree(Text(root, style="bold"))
        add(tree, root)
        console.print(tree)
    for remark in found.remarks:
        console.print(Text(f"note  {remark}", style="dim"))
