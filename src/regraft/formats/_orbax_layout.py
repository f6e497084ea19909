"""Which folder of an Orbax checkpoint holds arrays: an item, a step of items, a root of steps.

An *item* is one saved tree (`_METADATA`, arrays). A *step* holds one or several items by name,
`default` where the user gave none. A *root*, which a CheckpointManager keeps, holds steps by
number. Any of the three may be opened.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import NamedTuple

from regraft.errors import CorruptFile
from regraft.formats import _zarr
from regraft.formats._msgpack import is_map_by_text
from regraft.formats._orbax_store import MANIFEST

METADATA = "_METADATA"
# The tree of older versions, with small arrays inside.
AGGREGATE = "checkpoint"

_STEP_FILE = "_CHECKPOINT_METADATA"
# What else lies in a step's folder.
_STEP_FILES = frozenset({_STEP_FILE, "commit_success.txt", "orbax.checkpoint"})
# One process' part of a database; it is whole where all parts were merged.
_PART = "ocdbt.process_"
_STEP = re.compile(r"(?:.*_)?(\d{1,18})")
# Folders that are looked into, per level; a root keeps few steps, a step few items.
_MAX_LOOKED = 1000
_SHOWN = 10


class Located(NamedTuple):
    """`items` are folders by name, `""` where there is only one, all of them in the folder `at`;
    `step` is its number where it was chosen among others."""

    at: Path
    items: tuple[tuple[str, Path], ...]
    step: int | None = None
    notes: tuple[str, ...] = ()


def located(path: Path) -> Located | None:
    """The items that a folder stands for; `None` where it is nothing of Orbax'.

    **Raises** `CorruptFile` for a step without an item.
    """
    if _is_item(path):
        return Located(path, (("", path),))
    if _is_step(path):
        return Located(path, _items(path))
    steps = _steps(path)
    if not steps:
        return None
    number, newest = steps[-1]
    notes: tuple[str, ...] = ()
    if len(steps) > 1:
        others = [step.name for _, step in steps[-2::-1]]
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        notes = (
            f"opened step {number}, the newest; also there: {', '.join(others[:_SHOWN])}{more} "
            "(open the folder of one)",
        )
    items = (("", newest),) if _is_item(newest) else _items(newest)
    return Located(newest, items, number, notes)


def _folders(path: Path) -> list[Path]:
    """Folders right inside, sorted; not those that are reached by links."""
    listed = itertools.islice(path.iterdir(), _MAX_LOOKED)
    return sorted(entry for entry in listed if entry.is_dir() and not entry.is_symlink())


def _is_item(path: Path) -> bool:
    if (path / METADATA).is_file() or (path / MANIFEST).is_file():
        return True
    if (path / AGGREGATE).is_file():
        with (path / AGGREGATE).open("rb") as file:
            return is_map_by_text(file.read(8))
    # Before there was a tree in a file: arrays alone. A zarr group of other people's has `.zgroup`.
    if (path / ".zgroup").exists() or (path / "zarr.json").exists():
        return False
    return any(
        (folder / file).is_file() for folder in _folders(path)[:4] for file in _zarr.FILES.values()
    )


def _inner_items(path: Path) -> list[Path]:
    folders = (folder for folder in _folders(path) if not folder.name.startswith(_PART))
    return [folder for folder in folders if _is_item(folder)]


def _is_step(path: Path) -> bool:
    """A step says so itself; one of an older version holds nothing but items."""
    if (path / _STEP_FILE).is_file():
        return True
    listed = itertools.islice(path.iterdir(), _MAX_LOOKED)
    files = {entry.name for entry in listed if not entry.is_dir()}
    steps = any(_STEP.fullmatch(folder.name) for folder in _folders(path))
    return files <= _STEP_FILES and not steps and bool(_inner_items(path))


def _items(path: Path) -> tuple[tuple[str, Path], ...]:
    found = _inner_items(path)
    if not found:
        raise CorruptFile(
            path.name,
            found="a step without arrays",
            expected="a folder with _METADATA in it",
            hint="writing it may not have ended; open another step",
        )
    return tuple((folder.name if len(found) > 1 else "", folder) for folder in found)


def _steps(path: Path) -> list[tuple[int, Path]]:
    """Folders that are called as steps are and that are steps, by number."""
    named = [(_STEP.fullmatch(folder.name), folder) for folder in _folders(path)]
    return sorted(
        (int(match[1]), folder)
        for match, folder in named
        if match and (_is_item(folder) or _is_step(folder))
    )
