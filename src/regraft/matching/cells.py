"""Pairs of modules that are compared, as arrays of indices; cells, within which they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Pairs that are weighed at once: enough for arithmetic on arrays to pay, and few megabytes.
_AT_ONCE = 1 << 17


class Cell(NamedTuple):
    """Modules, by index, that are compared with each other and with no others."""

    sources: Sequence[int]
    targets: Sequence[int]

    @property
    def alone(self) -> bool:
        """Whether there is but one pair."""
        return len(self.sources) == len(self.targets) == 1

    @property
    def square(self) -> bool:
        """Whether there are as many on both sides, and more than one."""
        return len(self.sources) == len(self.targets) > 1


class Pairs:
    """Some pairs of modules in their cells.

    - `cells`: the cells; `of`: the number of the cell of each pair.
    - `rows`, `columns`: the places of a pair's target and source within its cell.
    - `sources`, `targets`: indices of its modules.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        of: NDArray[np.intp],
        rows: NDArray[np.intp],
        columns: NDArray[np.intp],
    ) -> None:
        self.cells, self.of, self.rows, self.columns = cells, of, rows, columns
        ours, theirs = (
            np.array([i for cell in cells for i in cell[side]], np.intp) for side in (0, 1)
        )
        starts = [np.cumsum([0, *(len(cell[side]) for cell in cells)])[of] for side in (0, 1)]
        self.sources = ours[starts[0] + columns]
        self.targets = theirs[starts[1] + rows]

    @classmethod
    def chosen(cls, cells: Sequence[Cell], places: Iterable[tuple[int, int, int]]) -> Pairs:
        """Pairs by the number of their cell, row and column."""
        table = np.array(list(places), np.intp).reshape(-1, 3)
        return cls(cells, table[:, 0], table[:, 1], table[:, 2])

    @property
    def same_place(self) -> NDArray[np.bool_]:
        """Whether both have the same place in a cell that has as many on both sides."""
        return (self.rows == self.columns) & (self.each(lambda cell: cell.square) > 0)

    def cell(self, k: int) -> Cell:
        """The cell of the k-th pair."""
        return self.cells[self.of[k]]

    def each(self, ask: Callable[[Cell], float]) -> NDArray[np.float64]:
        """For each pair what `ask` says of its cell."""
        met = np.zeros(len(self.cells))
        for number in np.unique(self.of).tolist():
            met[number] = ask(self.cells[number])
        return met[self.of]

    def __len__(self) -> int:
        return len(self.of)


def batches(cells: Sequence[Cell]) -> Iterator[Pairs]:
    """All pairs of all cells, in the cells' order, some at a time: those of small cells together,
    those of a large one by rows."""
    waiting: list[tuple[int, range]] = []
    count = 0
    for number, cell in enumerate(cells):
        width = len(cell.sources)
        step = max(1, _AT_ONCE // max(1, width))
        for start in range(0, len(cell.targets), step):
            rows = range(start, min(start + step, len(cell.targets)))
            if waiting and count + len(rows) * width > _AT_ONCE:
                yield _together(cells, waiting)
                waiting, count = [], 0
            waiting.append((number, rows))
            count += len(rows) * width
    if waiting:
        yield _together(cells, waiting)


def _together(cells: Sequence[Cell], waiting: Sequence[tuple[int, range]]) -> Pairs:
    widths = [len(cells[number].sources) for number, _ in waiting]
    sizes = [len(rows) * width for (_, rows), width in zip(waiting, widths, strict=True)]
    numbers = np.repeat([number for number, _ in waiting], sizes)
    shapes = zip(waiting, widths, strict=True)
    blocks = [np.divmod(np.arange(len(rows) * width), width) for (_, rows), width in shapes]
    starts = np.repeat([rows.start for _, rows in waiting], sizes)
    rows = np.concatenate([row for row, _ in blocks]) + starts
    return Pairs(cells, numbers, rows, np.concatenate([column for _, column in blocks]))
