"""The command line: each command parses, makes one call and renders.

Data goes to stdout; progress, warnings and errors to stderr. Nothing is imported before it is
needed, so that `--help` and `inspect` answer at once.
"""

from __future__ import annotations

import fnmatch
import os
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import regraft as rg
from regraft.errors import INTERRUPTED, FormatError, RegraftError

if TYPE_CHECKING:
    pass

F = TypeVar("F", bound=Callable[..., Any])
NEGATIVE, INTERNAL = 1, 70


def main() -> None:
    """Runs the command line with exit codes as documented, and without tracebacks."""
    try:
        code = cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted")
        code = INTERRUPTED
    except RegraftError as error:
        _say(f"{type(error).__name__}: {error}", fg="red")
        code = error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        _say(f"{FormatError.__name__}: {error}", fg="red")
        code = FormatError.exit_code
    except Exception as error:  # a defect of ours: say so, and how to see more of it
        if os.environ.get("REGRAFT_TRACEBACK"):
            raise
        _say(f"internal error: {type(error).__name__}: {error}", fg="red")
        _say("  this is a defect of regraft; REGRAFT_TRACEBACK=1 shows where")
        code = INTERNAL
    sys.exit(code if isinstance(code, int) else 0)


def _color() -> bool | None:
    return False if os.environ.get("NO_COLOR") else None


def _say(text: str, **style: Any) -> None:
    """A line for the person, on stderr; the first line styled."""
    first, *rest = text.split("\n")
    click.echo("\n".join([click.style(first, **style), *rest]), err=True, color=_color())


def _print(text: str) -> None:
    click.echo(text, color=_color())


def _json(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=1).decode())


_TONES = {
    "complete": "green",
    "not": "red",
    "undecided": "red",
    "gone": "red",
    "fresh": "yellow",
    "unused": "yellow",
    "warning": "yellow",
    "moved": "cyan",
    "tuned": "cyan",
}


def _painted(text: str) -> str:
    """Rows of a plan, a diff or a trace: the first one bold, the others' first words coloured."""
    head, *rows = text.split("\n")
    painted = [click.style(head, bold=True)]
    for row in rows:
        word = row.lstrip().partition(" ")[0]
        tone = _TONES.get(word)
        painted.append(row.replace(word, click.style(word, fg=tone), 1) if tone else row)
    return "\n".join(painted)


@contextmanager
def _progress(what: str, total: int | None = None) -> Generator[Callable[[int, str], None]]:
    """A progress bar on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _amount, _text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
               TextColumn("{task.fields[text]}"))  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total, text="")
        yield lambda amount, text: bar.update(task, advance=amount, text=text)


# Options that several commands share


def _names_of(context: click.Context, parameter: click.Parameter, text: str) -> list[Any]:
    """Completes tensor names from the source or the plan that was already typed."""
    from click.shell_completion import CompletionItem

    given = context.params.get("source") or context.params.get("plan_path")
    try:
        if given and str(given).endswith(".json") and not str(given).endswith(".index.json"):
            names: Iterable[str] = rg.Plan.load(given).target.tensors
        else:
            names = rg.open(str(given)) if given else ()
    except RegraftError:
        return []
    return [CompletionItem(name) for name in names if name.startswith(text)]


def _options(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        made: Any = function
        for option in reversed(options):
            made = option(made)
        return made

    return decorate


_as_json = click.option("--json", "as_json", is_flag=True, help="Print facts as one JSON object.")
_container = click.option(
    "--container", help="The part of the file to open, such as ema; '' for all of it."
)
_force = click.option("--force", is_flag=True, help="Overwrite a file that exists.")
_dry_run = click.option(
    "--dry-run", is_flag=True, help="Say what would be read and written; do neither."
)
_settings = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE",
    help="An argument for module:callable; may be repeated.",
)  # fmt: skip
_said = _options(
    click.option("--rules", "rules_path", type=click.Path(), help="A TOML file of rules."),
    click.option("--rename", nargs=2, multiple=True, metavar="SOURCE TARGET",
                 help="Source names like SOURCE go to target names like TARGET."),
    click.option("--fresh", multiple=True, metavar="TEMPLATE",
                 help="Target tensors that keep the model's own values."),
    click.option("--leave", "--unused", "leave", multiple=True, metavar="TEMPLATE",
                 shell_complete=_names_of, help="Source tensors that are not used."),
)  # fmt: skip
_allowing = _options(
    click.option("--adapt", is_flag=True, help="Allow values to be changed (resized, sliced)."),
    click.option("--accept", multiple=True, metavar="CODE", help="A warning that is no obstacle."),
)
_partial = click.option("--partial", is_flag=True, help="Load what is certain, list the rest.")
_probe = click.option(
    "--probe", "probe_path", type=click.Path(),
    help="A file with arrays input and output, to compare outputs.",
)  # fmt: skip
_out = click.option("-o", "--out", required=True, type=click.Path(), help="The file to write.")


def _rules(
    path: str | None, rename: Iterable[tuple[str, str]], fresh: Iterable[str], leave: Iterable[str]
) -> list[Any]:
    said: list[Any] = [*(rg.rename(a, b) for a, b in rename), *map(rg.fresh, fresh)]
    return [*said, *map(rg.leave, leave), *(rg.load_rules(path) if path else ())]


def _arguments(settings: Iterable[str]) -> dict[str, object] | None:
    from regraft.targets.callables import parse_settings

    return parse_settings(settings) or None


def _probe_of(path: str | None) -> rg.Probe | None:
    if path is None:
        return None
    found = rg.open(path)
    return rg.Probe.from_arrays({name: found.read(name) for name in found}, found.label)


def _plan_of(path: str) -> rg.Plan:
    if path == "-":
        return rg.Plan.decode(sys.stdin.buffer.read(), "stdin")
    return rg.Plan.load(path)


def _would(dry_run: bool, reads: Iterable[object], writes: object) -> bool:
    if dry_run:
        for path in reads:
            _print(f"would read   {path}")
        _print(f"would write  {writes}{' (exists)' if Path(str(writes)).exists() else ''}")
    return dry_run


@contextmanager
def _loading() -> Generator[Callable[[str, int], None]]:
    with _progress("loading") as advance:
        yield lambda name, _bytes: advance(1, name)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="regraft")
def cli() -> None:
    """Move pretrained weights into your model, and know that they arrived.

    \b
    regraft inspect resnet.pth
    regraft plan resnet.pth mymodels:resnet --set num_classes=7 -o resnet.plan.json
    regraft load resnet.pth mymodels:resnet -o mine.safetensors

    Exit status: 0 as asked, 1 a negative result (not complete, different), 2 usage, 3 and above
    an accident of one kind: file 3, model 4, plan 5, writing 6, missing library 8, interrupted 130.
    """


@cli.command(epilog="Example:  regraft inspect model.pth 'encoder.*' --fold")
@click.argument("source", metavar="FILE")
@click.argument("patterns", nargs=-1, shell_complete=_names_of)
@_container
@click.option("--fold", is_flag=True, help="Join names that differ by numbers only.")
@click.option("--values", is_flag=True, help="Also read the values: range, mean, deviation, NaN.")
@_as_json
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
        infos = [i for i in found.values() if _like(i.name, patterns)]
        if patterns and not infos:
            raise RegraftError(
                source, found="no tensor of such a name", expected=f"one of {len(found)} names"
            )
        if as_json:
            _json(listing.as_json(found, infos))
            return
        _print(click.style(listing.headline(found, len(infos)), bold=True))
        for note in found.notes:
            _say(f"  {note}")
        if values:
            from regraft.reports.statistics import rows

            lines: Iterable[tuple[str, ...]] = rows(infos, found.read)
        else:
            lines = listing.rows(infos, fold)
        for line in listing.table(lines):
            _print(line)


def _like(name: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@cli.command(epilog="Example:  regraft plan base.h5 mymodels:net --fresh 'head.*' -o net.plan.json")
@click.argument("source")
@click.argument("target")
@_settings
@_said
@_container
@_probe
@click.option("-o", "--out", type=click.Path(), help="Save the plan as JSON; - is stdout.")
@click.option("--python", "script", type=click.Path(), help="Write a stand-alone script, too.")
@_force
@_as_json
def plan(
    source: str,
    target: str,
    settings: tuple[str, ...],
    rules_path: str | None,
    rename: tuple[tuple[str, str], ...],
    fresh: tuple[str, ...],
    leave: tuple[str, ...],
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
        rules=_rules(rules_path, rename, fresh, leave),
        probe=_probe_of(probe_path),
        container=container,
        arguments=_arguments(settings),
    )
    for path in (out, script):
        _free(path, force)
    if out == "-" or as_json:
        click.echo(made.encode().decode(), nl=False)
    else:
        _print(_painted(str(made)))
    if out and out != "-":
        made.save(out)
    if script:
        Path(script).write_text(made.to_python(), "utf-8")
    return 0 if made.complete else NEGATIVE


def _free(path: str | None, force: bool) -> None:
    if path and path != "-" and Path(path).exists() and not force:
        raise FormatError(
            path, found="a file that exists", hint="choose another name, or give --force"
        )


@cli.command(epilog="Example:  regraft why base.plan.json 'head.*'")
@click.argument("plan_path", metavar="PLAN")
@click.argument("patterns", nargs=-1, required=True, shell_complete=_names_of)
@_as_json
def why(plan_path: str, patterns: tuple[str, ...], as_json: bool) -> None:
    """Say where target tensors come from and on what evidence, or what is open about them.

    PLAN is a plan saved by `regraft plan -o`; PATTERNS are glob patterns for target names.
    """
    made = _plan_of(plan_path)
    names = [name for name in made.target.tensors if _like(name, patterns)]
    if not names:
        raise RegraftError(
            ", ".join(patterns),
            found="no target tensor of such a name",
            expected=f"names such as {next(iter(made.target.tensors), '')!r}",
        )
    if as_json:
        held: dict[str, object] = {**made.grafts, **made.undecided}
        _json({"schema_version": 1, "tensors": {n: held[n] for n in names if n in held}})
        return
    for name in names:
        _print(_painted(made.why(name)))


@cli.command(
    "apply",
    epilog="Example:  regraft apply net.plan.json base.h5 mymodels:net -o my.safetensors",
)
@click.argument("plan_path", metavar="PLAN")
@click.argument("source")
@click.argument("target", required=False)
@_settings
@_out
@_partial
@_probe
@_force
@_dry_run
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
    if _would(dry_run, [plan_path, source], out):
        return
    made = _plan_of(plan_path)
    _free(out, force)
    with _loading() as progress:
        if target is None:
            rg.convert(source, out, plan=made, force=force, progress=progress)
            _print(f"{len(made.grafts)} tensors written to {out}")
            return
        model, _ = _built(target, settings)
        receipt = rg.apply(
            made, source, model, partial=partial, probe=_probe_of(probe_path), progress=progress
        )
        rg.save(model, out, receipt=receipt, force=force)
    _print(f"{receipt}\nwritten to {out}")


def _built(target: str, settings: Iterable[str]) -> tuple[object, list[str]]:
    from regraft.targets.callables import build

    return build(target, _arguments(settings))


@cli.command(
    epilog="Example:  regraft load base.h5 mymodels:net --fresh 'head.*' -o my.safetensors"
)
@click.argument("source")
@click.argument("target")
@_settings
@_said
@_allowing
@_partial
@_container
@_probe
@_out
@_force
@_dry_run
def load(
    source: str,
    target: str,
    settings: tuple[str, ...],
    rules_path: str | None,
    rename: tuple[tuple[str, str], ...],
    fresh: tuple[str, ...],
    leave: tuple[str, ...],
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
    if _would(dry_run, [source], out):
        return
    _free(out, force)
    model, _ = _built(target, settings)
    with _loading() as progress:
        receipt = rg.load(
            source,
            model,
            rules=_rules(rules_path, rename, fresh, leave),
            adapt=adapt,
            accept=accept,
            partial=partial,
            probe=_probe_of(probe_path),
            container=container,
            progress=progress,
        )
        rg.save(model, out, receipt=receipt, force=force)
    _print(f"{receipt}\nwritten to {out}")
    for name, open_ in receipt.plan.undecided.items():
        _print(f"  {click.style('undecided', fg='red')}  {name}  {open_.reason}")


@cli.command(epilog="Example:  regraft convert model.h5 model.safetensors")
@click.argument("source")
@click.argument("out", metavar="FILE")
@click.option("--plan", "plan_path", help="Write what this plan makes of the tensors.")
@click.option("--to", "format_name", help="The format, where FILE's ending does not tell.")
@_container
@_force
@_dry_run
def convert(
    source: str,
    out: str,
    plan_path: str | None,
    format_name: str | None,
    container: str | None,
    force: bool,
    dry_run: bool,
) -> None:
    """Write the same tensors in another format: .safetensors, .pth or .npz."""
    if _would(dry_run, [source, *([plan_path] if plan_path else [])], out):
        return
    made = _plan_of(plan_path) if plan_path else None
    with _progress("writing") as advance:
        rg.convert(
            source,
            out,
            plan=made,
            container=container,
            format=format_name,
            force=force,
            progress=lambda name, _bytes: advance(1, name),
        )
    _print(f"written to {out}")


@cli.command(epilog="Example:  regraft verify base.h5 mymodels:net probe.npz")
@click.argument("source")
@click.argument("target")
@click.argument("probe_path", metavar="PROBE")
@_settings
@_said
@_allowing
@_container
@_as_json
def verify(
    source: str,
    target: str,
    probe_path: str,
    settings: tuple[str, ...],
    rules_path: str | None,
    rename: tuple[tuple[str, str], ...],
    fresh: tuple[str, ...],
    leave: tuple[str, ...],
    adapt: bool,
    accept: tuple[str, ...],
    container: str | None,
    as_json: bool,
) -> int:
    """Load SOURCE into the model that TARGET makes and compare its outputs with PROBE's.

    PROBE holds arrays input and output (or inputs.<name>, outputs.<name>). Status 1: different.
    """
    model, _ = _built(target, settings)
    probe = _probe_of(probe_path)
    assert probe is not None
    rules = _rules(rules_path, rename, fresh, leave)
    rg.load(source, model, rules=rules, adapt=adapt, accept=accept, container=container)
    report = rg.verify(model, probe)
    if as_json:
        _json(report.to_json())
    else:
        tone = "green" if report.equal else "red"
        first, *rest = str(report).split("\n")
        _print("\n".join([click.style(first, fg=tone), *rest]))
    return 0 if report.equal else NEGATIVE


@cli.command(
    epilog="Example:  regraft finetune base.h5 mymodels:net --set num_classes=5 --fresh 'head.*' "
    "--unused 'fc.*' --data photos/ --size 96 -o mine.safetensors"
)
@click.argument("source")
@click.argument("target")
@click.option("--data", required=True, type=click.Path(),
              help="A folder of images by class, or an .npz with x and y.")  # fmt: skip
@_settings
@_said
@_allowing
@_container
@_out
@click.option("--freeze", multiple=True, metavar="TEMPLATE", help="Tensors that do not learn.")
@click.option("--linear-probe", is_flag=True, help="Only what is fresh learns.")
@click.option("--epochs", default=10, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1))
@click.option("--lr", default=1e-3, show_default=True, help="AdamW's learning rate.")
@click.option("--weight-decay", default=0.0, show_default=True)
@click.option("--patience", type=click.IntRange(0),
              help="Stop after so many epochs without a better validation loss.")  # fmt: skip
@click.option("--seed", default=0, show_default=True)
@click.option("--validation", default=0.2, show_default=True,
              help="Share of each class that is held out.")  # fmt: skip
@click.option("--size", type=click.IntRange(1), multiple=True,
              help="Height and width of images; once for squares.")  # fmt: skip
@click.option("--gray", is_flag=True, help="Images with one channel.")
@click.option("--report", "page", type=click.Path(), help="Write an HTML report, too.")
@_force
@_dry_run
@_as_json
def finetune(
    source: str,
    target: str,
    data: str,
    settings: tuple[str, ...],
    rules_path: str | None,
    rename: tuple[tuple[str, str], ...],
    fresh: tuple[str, ...],
    leave: tuple[str, ...],
    adapt: bool,
    accept: tuple[str, ...],
    container: str | None,
    out: str,
    freeze: tuple[str, ...],
    linear_probe: bool,
    epochs: int,
    validation: float,
    size: tuple[int, ...],
    gray: bool,
    page: str | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Load SOURCE into the model that TARGET makes, fine-tune it and write it with lineage."""
    if _would(dry_run, [source, data], out):
        return
    for path in (out, page):
        _free(path, force)
    model, _ = _built(target, settings)
    receipt = rg.load(
        source,
        model,
        rules=_rules(rules_path, rename, fresh, leave),
        adapt=adapt,
        accept=accept,
        container=container,
    )
    _say(str(receipt))
    with _progress("fine-tuning", epochs) as advance:
        tuned = rg.finetune(
            model,
            data,
            receipt=receipt,
            freeze=freeze,
            linear_probe=linear_probe,
            validation=validation,
            size=size,
            gray=gray,
            progress=lambda epoch: advance(1, str(epoch)),
            epochs=epochs,
            **options,
        )
    rg.save(
        model, out, receipt=receipt, trained=tuned.trained, training=tuned.training, force=force
    )
    if page:
        rg.report(
            page, title=f"{Path(source).name} fine-tuned", receipt=receipt, tuned=tuned,
            diff=rg.diff(source, out), lineage=rg.trace(out), force=force,
        )  # fmt: skip
    if as_json:
        _json(tuned.to_json())
        return
    for epoch in tuned.curve:
        mark = "  best" if epoch.number == tuned.best else ""
        _print(f"  {epoch}{click.style(mark, fg='green')}")
    _print(f"written to {out}")


@cli.command(epilog="Example:  regraft diff base.safetensors tuned.safetensors")
@click.argument("source", metavar="BASE")
@click.argument("tuned")
@click.option("--plan", "plan_path", help="How TUNED was made from BASE, where names differ.")
@_container
@_as_json
def diff(
    source: str, tuned: str, plan_path: str | None, container: str | None, as_json: bool
) -> int:
    """Compare two files tensor by tensor: identical, moved, fresh or gone. Status 1: different."""
    made = _plan_of(plan_path) if plan_path else None
    found = rg.diff(source, tuned, plan=made, container=container)
    if as_json:
        _json(found.to_json())
    else:
        _print(_painted(str(found)))
    return 0 if found.same else NEGATIVE


@cli.command(epilog="Example:  regraft trace tuned.safetensors")
@click.argument("source", metavar="FILE")
@_as_json
def trace(source: str, as_json: bool) -> None:
    """Say where each tensor of a file that Regraft wrote came from."""
    told = rg.trace(source)
    if as_json:
        _json(told.to_json())
    else:
        _print(_painted(str(told)))


@cli.command(epilog="Example:  regraft report tuned.safetensors --base base.h5 -o tuned.html")
@click.argument("source", metavar="FILE")
@click.option("--base", type=click.Path(), help="What FILE is to be compared with.")
@_out
@_force
def report(source: str, base: str | None, out: str, force: bool) -> None:
    """Write an HTML page about a saved plan, or about a file and how it differs from its base."""
    if source.endswith(".plan.json"):
        rg.report(out, title=source, plan=_plan_of(source), force=force)
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
    _print(f"written to {out}")


@cli.command(epilog="Example:  regraft demo --folder demo")
@click.option("--folder", default="regraft-demo", show_default=True, type=click.Path(),
              help="Where the demo keeps its files.")  # fmt: skip
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1))
@_as_json
def demo(folder: str, seeds: int, as_json: bool) -> None:
    """Show the main job on handwritten digits: Keras weights in a PyTorch model, fine-tuned."""
    from regraft import demonstration

    with _progress("demo") as advance:
        found = demonstration.run(Path(folder), seeds, say=lambda text: advance(0, text))
    if as_json:
        _json(found.to_json())
    else:
        _print(str(found))
