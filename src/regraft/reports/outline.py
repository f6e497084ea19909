"""Which rows of the tree of names are shown: all of them, or as many levels as fit a screen."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from regraft.reports.folding import Fold, Tied

# A module of tensors only is one row that names them, unless there are more than this.
_NAMED = 6

Order = Callable[[Fold], Any]


class Row(NamedTuple):
    """A line of the outline: what is at `depth` below `path`, the labels of what it is in.

    - `inner`: what is inside of it, shown below where it is `opened`.
    """

    depth: int
    path: str
    fold: Fold
    inner: tuple[Fold, ...]
    opened: bool


class _Entry:
    """A fold on its way to be a row."""

    def __init__(self, fold: Fold, order: Order | None) -> None:
        self.fold = fold
        self.inner = _sorted(fold.inside, order)
        self.entries: list[_Entry] = []

    @property
    def worth_opening(self) -> bool:
        """Whether a row that names what is inside would not tell everything."""
        return len(self.inner) > _NAMED or any(
            inner.tensor is None or inner.times > self.fold.times or isinstance(inner.tensor, Tied)
            for inner in self.inner
        )

    def open(self, order: Order | None) -> list[_Entry]:
        self.entries = [_Entry(fold, order) for fold in self.inner]
        return self.entries

    def rows(self, depth: int, path: str) -> Iterator[Row]:
        yield Row(depth, path, self.fold, self.inner, bool(self.entries))
        for entry in self.entries:
            yield from entry.rows(depth + 1, path + self.fold.label)


def screenful(root: Fold, rows: int, order: Order | None = None) -> tuple[list[Row], list[Fold]]:
    """The folded tree, opened level by level while it has no more than so many rows; and what
    there is no room for even so.

    On each level the parts with the fewest rows are opened first, and those with equally many
    together, so that equals are shown alike.
    """
    top = _sorted(root.inside, order)
    level = listed = [_Entry(fold, order) for fold in top[:rows]]
    shown = len(top)
    while level:
        closed = sorted((entry for entry in level if entry.worth_opening), key=_size)
        level = []
        for size, group in itertools.groupby(closed, key=_size):
            entries = list(group)
            shown += size * len(entries)
            if shown > rows:
                break
            level += [inner for entry in entries for inner in entry.open(order)]
    return [row for entry in listed for row in entry.rows(0, "")], list(top[rows:])


def _size(entry: _Entry) -> int:
    return len(entry.inner)


def whole(root: Fold, order: Order | None = None) -> Iterator[Row]:
    """Every module and every tensor, nothing folded."""
    return _whole(root, -1, "", order)


def _whole(fold: Fold, depth: int, path: str, order: Order | None) -> Iterator[Row]:
    inner = _sorted(fold.unfolded(), order)
    if depth >= 0:
        yield Row(depth, path, fold, inner, bool(inner))
    for part in inner:
        yield from _whole(part, depth + 1, path + fold.label, order)


def _sorted(inner: list[Fold], order: Order | None) -> tuple[Fold, ...]:
    return tuple(sorted(inner, key=order) if order else inner)
