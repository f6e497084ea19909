"""What commands print: data on stdout, progress and errors on stderr, colours where wanted."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import click


def _color() -> bool | None:
    return False if os.environ.get("NO_COLOR") else None


def say(text: str, **style: Any) -> None:
    """A line for the person, on stderr; the first line styled."""
    first, *rest = text.split("\n")
    click.echo("\n".join([click.style(first, **style), *rest]), err=True, color=_color())


def show(text: str) -> None:
    click.echo(text, color=_color())


def counted(names: Sequence[str]) -> str:
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}"


def screen() -> tuple[int, int] | tuple[None, None]:
    """Columns and lines of the terminal that stdout is, nothing where it is none."""
    if not sys.stdout.isatty():
        return None, None
    import shutil

    return shutil.get_terminal_size()


def pages(lines: Sequence[str], *, pager: bool) -> None:
    """Prints lines, through a pager where they are more than a terminal shows."""
    _, height = screen()
    if pager and height is not None and len(lines) >= height:
        click.echo_via_pager("\n".join(lines), color=_color())
    else:
        show("\n".join(lines))


def show_json(value: object) -> None:
    """Plain values, structs and numpy's scalars as JSON; NaN is no JSON: what was not measured is
    null."""
    import msgspec

    try:
        encoded = msgspec.json.encode(value, enc_hook=lambda scalar: scalar.item())
        text = msgspec.json.format(encoded, indent=1).decode()
    except UnicodeEncodeError:  # a name with halves of characters: only escaped is it text
        import json

        text = json.dumps(_finite(msgspec.to_builtins(value)), indent=1)
    click.echo(text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, (list, tuple)) else value


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


def painted(text: str) -> str:
    """Rows of a plan, a diff or a trace: the first one bold, the others' first words coloured."""
    head, *rows = text.split("\n")
    painted = [click.style(head, bold=True)]
    for row in rows:
        word = row.lstrip().partition(" ")[0]
        tone = _TONES.get(word)
        painted.append(row.replace(word, click.style(word, fg=tone), 1) if tone else row)
    return "\n".join(painted)


@contextmanager
def progress(what: str, total: int | None = None) -> Generator[Callable[[int, str], None]]:
    """A progress bar on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _amount, _text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
               TextColumn("{task.fields[text]}", markup=False))  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total, text="")
        yield lambda amount, text: bar.update(task, advance=amount, text=text)


@contextmanager
def loading() -> Generator[Callable[[str, int], None]]:
    with progress("loading") as advance:
        yield lambda name, _bytes: advance(1, name)
