"""`plan`, `why`, `apply`, `load`, `convert`: from a file into a model."""

from __future__ import annotations

from pathlib import Path

import click

import regraft as rg
from regraft.cli.options import (
    NEGATIVE,
    Said,
    allowing_options,
    arguments_of,
    as_json_option,
    built,
    container_option,
    dry_run_option,
    force_option,
    free,
    like,
    names_of,
    out_option,
    partial_option,
    plan_of,
    probe_of,
    probe_option,
    said_options,
    settings_option,
    would,
)
from regraft.cli.output import loading, painted, progress, show, show_json
from regraft.errors import RegraftError


@click.command(
    epilog="Example:  regraft plan base.h5 mymodels:net --fresh 'head.*' -o net.plan.json"
)
@click.argument("source")
@click.argument("target")
@settings_option
@said_options
@container_option
@probe_option
@click.option("-o", "--out", type=click.Path(), help="Save the plan as JSON; - is stdout.")
@click.option("--python", "script", type=click.Path(), help="Write a stand-alone script, too.")
@force_option
@as_json_option
def plan(
    source: str,
    target: str,
    settings: tuple[str, ...],
    said: Said,
    container: str | None,
    probe_path: str | None,
    out: str | None,
    script: str | None,
    force: bool,
    as_json: bool,
) -> int:
    """Find out how the weights of SOURCE fit TARGET; nothing is loaded.

    TARGET is module:callable, file.py:callable or another checkpoint. The status is 1 where the
    plan is not complete.
    """
    made = rg.plan(
        source,
        target,
        rules=said.rules(),
        probe=probe_of(probe_path),
        container=container,
        arguments=arguments_of(settings),
    )
    for path in (out, script):
        free(path, force)
    if out == "-" or as_json:
        click.echo(made.encode().decode(), nl=False)
    else:
        show(painted(str(made)))
    if out and out != "-":
        made.save(out)
    if script:
        Path(script).write_text(made.to_python(), "utf-8")
    return 0 if made.complete else NEGATIVE


@click.command(epilog="Example:  regraft why base.plan.json 'head.*'")
@click.argument("plan_path", metavar="PLAN")
@click.argument("patterns", nargs=-1, required=True, shell_complete=names_of)
@as_json_option
def why(plan_path: str, patterns: tuple[str, ...], as_json: bool) -> None:
    """Say where target tensors come from and on what evidence, or what is open about them.

    PLAN is a plan saved by `regraft plan -o`; PATTERNS are glob patterns for target names.
    """
    made = plan_of(plan_path)
    names = [name for name in made.target.tensors if like(name, patterns)]
    if not names:
        raise RegraftError(
            ", ".join(patterns),
            found="no target tensor of such a name",
            expected=f"names such as {next(iter(made.target.tensors), '')!r}",
        )
    if as_json:
        held: dict[str, object] = {**made.grafts, **made.undecided}
        show_json({"schema_version": 1, "tensors": {n: held[n] for n in names if n in held}})
        return
    for name in names:
        show(painted(made.why(name)))


@click.command(
    "apply",
    epilog="Example:  regraft apply net.plan.json base.h5 mymodels:net -o my.safetensors",
)
@click.argument("plan_path", metavar="PLAN")
@click.argument("source")
@click.argument("target", required=False)
@settings_option
@out_option
@partial_option
@probe_option
@force_option
@dry_run_option
def apply_plan(
    plan_path: str,
    source: str,
    target: str | None,
    settings: tuple[str, ...],
    out: str,
    partial: bool,
    probe_path: str | None,
    force: bool,
    dry_run: bool,
) -> None:
    """Carry a saved plan out and write the result, with its lineage.

    Without TARGET the tensors are written as the plan makes them, and no model is built.
    """
    if would(dry_run, [plan_path, source], out):
        return
    made = plan_of(plan_path)
    free(out, force)
    with loading() as progress:
        if target is None:
            rg.convert(source, out, plan=made, force=force, progress=progress)
            show(f"{len(made.grafts)} tensors written to {out}")
            return
        model, _ = built(target, settings)
        receipt = rg.apply(
            made, source, model, partial=partial, probe=probe_of(probe_path), progress=progress
        )
        rg.save(model, out, receipt=receipt, force=force)
    show(f"{receipt}\nwritten to {out}")


@click.command(
    epilog="Example:  regraft load base.h5 mymodels:net --fresh 'head.*' -o my.safetensors"
)
@click.argument("source")
@click.argument("target")
@settings_option
@said_options
@allowing_options
@partial_option
@container_option
@probe_option
@out_option
@force_option
@dry_run_option
def load(
    source: str,
    target: str,
    settings: tuple[str, ...],
    said: Said,
    adapt: bool,
    accept: tuple[str, ...],
    partial: bool,
    container: str | None,
    probe_path: str | None,
    out: str,
    force: bool,
    dry_run: bool,
) -> None:
    """Plan, load into the model that TARGET makes, and write it with its lineage.

    Every difference between the two sides is an error that says how to allow it.
    """
    if would(dry_run, [source], out):
        return
    free(out, force)
    model, _ = built(target, settings)
    with loading() as progress:
        receipt = rg.load(
            source,
            model,
            rules=said.rules(),
            adapt=adapt,
            accept=accept,
            partial=partial,
            probe=probe_of(probe_path),
            container=container,
            progress=progress,
        )
        rg.save(model, out, receipt=receipt, force=force)
    show(f"{receipt}\nwritten to {out}")
    for name, open_ in receipt.plan.undecided.items():
        show(f"  {click.style('undecided', fg='red')}  {name}  {open_.reason}")


@click.command(epilog="Example:  regraft convert model.h5 model.safetensors")
@click.argument("source")
@click.argument("out", metavar="FILE")
@click.option("--plan", "plan_path", help="Write what this plan makes of the tensors.")
@click.option("--to", "format_name", help="The format, where FILE's ending does not tell.")
@click.option("--max-shard", metavar="SIZE", help="Write several files of this size, such as 5GB.")
@container_option
@force_option
@dry_run_option
def convert(
    source: str,
    out: str,
    plan_path: str | None,
    format_name: str | None,
    max_shard: str | None,
    container: str | None,
    force: bool,
    dry_run: bool,
) -> None:
    """Write the same tensors in the format that the ending of FILE names."""
    if would(dry_run, [source, *([plan_path] if plan_path else [])], out):
        return
    made = plan_of(plan_path) if plan_path else None
    with progress("writing") as advance:
        written = rg.convert(
            source,
            out,
            plan=made,
            container=container,
            format=format_name,
            force=force,
            max_shard=max_shard,
            progress=lambda name, _bytes: advance(1, name),
        )
    show(f"written to {written}")
