"""`verify` and `probe`: whether outputs agree, and what a right model gives."""

from __future__ import annotations

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
    force_option,
    free,
    probe_of,
    said_options,
    settings_option,
)
from regraft.cli.output import show, show_json
from regraft.errors import StalePlan, VerificationFailed


@click.command(epilog="Example:  regraft verify base.h5 mymodels:net probe.npz")
@click.argument("source")
@click.argument("target")
@click.argument("probe_path", metavar="PROBE")
@click.option("--live", help="module:callable that makes the source's own model, run as well.")
@click.option("--report", "page", type=click.Path(), help="Write an HTML page about it, too.")
@settings_option
@said_options
@allowing_options
@container_option
@force_option
@as_json_option
def verify(
    source: str,
    target: str,
    probe_path: str,
    live: str | None,
    page: str | None,
    settings: tuple[str, ...],
    said: Said,
    adapt: bool,
    accept: tuple[str, ...],
    container: str | None,
    force: bool,
    as_json: bool,
) -> int:
    """Load SOURCE into the model that TARGET makes and compare its outputs with PROBE's.

    PROBE holds arrays input and output (or inputs.<name>, outputs.<name>). Where it was made by
    `regraft probe record`, or --live gives the source's model, or SOURCE is an ONNX file (which
    onnxruntime runs), the first module that differs is named, and why. Status 1: different.
    """
    free(page, force)
    model, _ = built(target, settings)
    probe = probe_of(probe_path)
    assert probe is not None
    receipt = rg.load(
        source, model, rules=said.rules(), adapt=adapt, accept=accept, container=container
    )
    other = built(live, ())[0] if live else source
    try:
        report = rg.verify(model, probe, source=other, plan=receipt.plan)
    except StalePlan:  # the source's own model names its tensors otherwise than the file
        report = rg.verify(model, probe, source=other, rules=said.rules())
    if page:
        rg.report(page, title=f"{source} and {target}", verification=report, force=force)
    if as_json:
        show_json(report.to_json())
    else:
        tone = "green" if report.equal else "red"
        first, *rest = str(report).split("\n")
        show("\n".join([click.style(first, fg=tone), *rest]))
    return 0 if report.equal else NEGATIVE


@click.group()
def probe() -> None:
    """Record what a right model gives, for others to be compared with."""


@probe.command(epilog="Example:  regraft probe record mymodels:net --shape 2,3,224,224 -o net.npz")
@click.argument("source")
@settings_option
@click.option("-o", "--out", required=True, type=click.Path(), help=".npz or .safetensors.")
@click.option("--input", "input_path", type=click.Path(), help="A file with an array input.")
@click.option("--shape", help="Sizes of inputs that are made, such as 2,3,224,224.")
@click.option("--kind", default="random", show_default=True, help="random, impulse, ramp, token.")
@click.option("--high", default=0, help="Whole numbers below this: the size of a vocabulary.")
@click.option("--seed", default=0, show_default=True, help="Of random inputs.")
@click.option("--outputs-only", is_flag=True, help="Without what every module was given and made.")
@click.option(
    "--execute",
    is_flag=True,
    help="Run the code that SOURCE holds (TorchScript, SavedModel): only if you trust it.",
)
@force_option
def record(
    source: str,
    settings: tuple[str, ...],
    out: str,
    input_path: str | None,
    shape: str | None,
    kind: str,
    high: int,
    seed: int,
    outputs_only: bool,
    execute: bool,
    force: bool,
) -> None:
    """Run the model that SOURCE makes (module:callable), or that it is (an ONNX file, which needs
    onnxruntime), and keep what it gives."""
    from regraft.verification import inputs

    free(out, force)
    if input_path:
        given = _inputs(input_path)
    elif shape:
        given = inputs.made(kind, _sizes(shape), seed=seed, high=high)
    else:
        raise click.UsageError("give --input or --shape")
    made = rg.record(
        source, given, out, activations=not outputs_only, execute=execute,
        arguments=arguments_of(settings), force=force,
    )  # fmt: skip
    calls = len(made.trace.calls) if made.trace else 0
    show(f"{len(made.expected)} outputs and {calls} calls of modules written to {out}")


def _sizes(shape: str) -> list[int]:
    try:
        return [int(part) for part in shape.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{shape}: expected sizes such as 2,3,224,224") from error


def _inputs(path: str) -> object:
    """The inputs of a file: `input`, or `inputs.<name>`, or its only array."""
    found = rg.open(path)
    arrays = {name: found.read(name) for name in found}
    named = {k.removeprefix("inputs."): a for k, a in arrays.items() if k.startswith("inputs.")}
    if "input" in arrays or len(arrays) == 1:
        return arrays.get("input", next(iter(arrays.values())))
    if named and all(name.isdigit() for name in named):
        return tuple(named[name] for name in sorted(named, key=int))
    if named:
        return named
    raise VerificationFailed(
        path, found=f"arrays {', '.join(list(arrays)[:8])}", expected="'input', or 'inputs.<name>'"
    )
