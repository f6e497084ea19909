"""The learning curve on disk: `curve.csv`, and events for TensorBoard where they are wanted.

Both are written anew from the whole curve, so that a run that goes on after a kill leaves the same
files as one that was not interrupted.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.atomic import replacing
from regraft.errors import MissingDependency

if TYPE_CHECKING:
    from regraft.tuning import Epoch


def table(folder: Path, curve: Sequence[Epoch]) -> Path:
    """Writes `curve.csv` with one row an epoch, whole or not at all; empty where not measured."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [asdict(epoch) for epoch in curve]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["number"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = folder / "curve.csv"
    with replacing(path) as file:
        file.write(text.getvalue().encode())
    return path


class Board:
    """Events for TensorBoard. **Raises** `MissingDependency` where nothing can write them."""

    def __init__(self, folder: Path) -> None:
        writer: Any = None
        try:
            from tensorboardX import SummaryWriter as writer
        except ImportError as error:
            raise MissingDependency(
                "tensorboardX", extra="tune", purpose="TensorBoard's event files"
            ) from error
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer: Any = writer(str(folder))

    def add(self, epoch: Epoch) -> None:
        for name, value in asdict(epoch).items():
            if name != "number" and value is not None:
                self._writer.add_scalar(name, value, epoch.number)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
