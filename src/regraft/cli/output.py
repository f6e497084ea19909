"""What commands print: data on stdout, progress and errors on stderr, colours where wanted."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
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


def show_json(value: object) -> None:
    import json

    def plain(value: object) -> object:
        import msgspec

        return msgspec.to_builtins(value)

    # NaN is no JSON; what was not measured is null.
    click.echo(json.dumps(_finite(value), indent=1, default=plain, ensure_ascii=False))


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
               TextColumn("{task.fields[text]}"))  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total, text="")
        yield lambda amount, text: bar.update(task, advance=amount, text=text)


@contextmanager
def loading() -> Generator[Callable[[str, int], None]]:
    with progress("loading") as advance:
        yield lambda name, _bytes: advance(1, name)
