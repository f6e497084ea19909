"""Options and arguments that several commands share, and what they mean."""

from __future__ import annotations

import fnmatch
import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

import regraft as rg
from regraft.cli.output import show
from regraft.errors import FormatError, RegraftError

F = TypeVar("F", bound=Callable[..., Any])
NEGATIVE = 1  # the exit status of a negative result


def names_of(context: click.Context, parameter: click.Parameter, text: str) -> list[Any]:
    """Completes tensor names from the source or the plan that was already typed."""
    from click.shell_completion import CompletionItem

    given = context.params.get("source") or context.params.get("plan_path")
    try:
        if given and str(given).endswith(".json") and not str(given).endswith(".index.json"):
            names: Iterable[str] = rg.Plan.load(given).target.tensors
        else:
            names = rg.open(str(given)) if given else ()
    except (RegraftError, OSError):
        return []
    return [CompletionItem(name) for name in names if name.startswith(text)]


def options(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        made: Any = function
        for option in reversed(options):
            made = option(made)
        return made

    return decorate


as_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print facts as one JSON object."
)
container_option = click.option(
    "--container", help="The part of the file to open, such as ema; '' for all of it."
)
force_option = click.option("--force", is_flag=True, help="Overwrite a file that exists.")
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Say what would be read and written; do neither."
)
settings_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE",
    help="An argument for module:callable; may be repeated.",
)  # fmt: skip
_rules_options = options(
    click.option("--rules", "rules_path", type=click.Path(), help="A TOML file of rules."),
    click.option("--rename", nargs=2, multiple=True, metavar="SOURCE TARGET",
                 help="Source names like SOURCE go to target names like TARGET."),
    click.option("--fresh", multiple=True, metavar="TEMPLATE",
                 help="Target tensors that keep the model's own values."),
    click.option("--leave", "--unused", "leave", multiple=True, metavar="TEMPLATE",
                 shell_complete=names_of, help="Source tensors that are not used."),
    click.option("--widen", multiple=True, metavar="TEMPLATE",
                 help="Target tensors that may be wider than the source's."),
)  # fmt: skip
allowing_options = options(
    click.option("--adapt", is_flag=True, help="Allow values to be changed (resized, sliced)."),
    click.option("--accept", multiple=True, metavar="CODE", help="A warning that is no obstacle."),
)
partial_option = click.option(
    "--partial", is_flag=True, help="Load what is certain, list the rest."
)
probe_option = click.option(
    "--probe", "probe_path", type=click.Path(),
    help="A file with arrays input and output, to compare outputs.",
)  # fmt: skip
out_option = click.option(
    "-o", "--out", required=True, type=click.Path(), help="The file to write."
)


class Said(NamedTuple):
    """What the options of rules say."""

    rules_path: str | None
    rename: tuple[tuple[str, str], ...]
    fresh: tuple[str, ...]
    leave: tuple[str, ...]
    widen: tuple[str, ...]

    def rules(self) -> list[Any]:
        said: list[Any] = [*(rg.rename(a, b) for a, b in self.rename), *map(rg.fresh, self.fresh)]
        said += [*map(rg.leave, self.leave), *map(rg.widen, self.widen)]
        return [*said, *(rg.load_rules(self.rules_path) if self.rules_path else ())]


def said_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of rules, which the command is given as one: `said`."""

    @functools.wraps(command)
    def gathered(**given: Any) -> Any:
        said = Said(*(given.pop(name) for name in Said._fields))
        return command(said=said, **given)

    return _rules_options(gathered)


def arguments_of(settings: Iterable[str]) -> dict[str, object] | None:
    from regraft.targets.callables import parse_settings

    return parse_settings(settings) or None


def probe_of(path: str | None) -> rg.Probe | None:
    if path is None:
        return None
    found = rg.open(path)
    return rg.Probe.from_arrays({name: found.read(name) for name in found}, found.label)


def plan_of(path: str) -> rg.Plan:
    if path == "-":
        return rg.Plan.decode(sys.stdin.buffer.read(), "stdin")
    return rg.Plan.load(path)


def would(dry_run: bool, reads: Iterable[object], writes: object) -> bool:
    if dry_run:
        for path in reads:
            show(f"would read   {path}")
        show(f"would write  {writes}{' (exists)' if Path(str(writes)).exists() else ''}")
    return dry_run


def like(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name is, or matches, one of the patterns; any is where there are none."""
    return not patterns or name in patterns or any(fnmatch.fnmatchcase(name, p) for p in patterns)


def free(path: str | None, force: bool) -> None:
    if path and path != "-" and Path(path).exists() and not force:
        raise FormatError(
            path, found="a file that exists", hint="choose another name, or give --force"
        )


def built(
    target: str, settings: Iterable[str], *, seed: int | None = None
) -> tuple[object, list[str]]:
    """The model; with a seed, what it draws for tensors without pretrained values is the same
    every time."""
    from regraft.targets.callables import build

    return build(target, arguments_of(settings), seed=seed)
