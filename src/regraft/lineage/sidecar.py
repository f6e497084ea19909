"""A lineage beside its file, where the file itself can hold none: `model.h5.lineage.json`.

Files that other programs write (a trainer's own checkpoints) get theirs this way. It is the second
best place: what is beside a file is lost first.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from regraft.atomic import replacing
from regraft.errors import FormatError
from regraft.lineage.records import KEY, Lineage, decode

SUFFIX = ".lineage.json"
_MOST = 256 << 20


def path_of(path: Path) -> Path:
    """Where the lineage of the file at `path` lies."""
    return path.with_name(path.name + SUFFIX)


def write(path: Path, lineage: Lineage) -> Path:
    """Puts a lineage beside the file at `path`, in place of one that is there."""
    where = path_of(path)
    with replacing(where) as file:
        file.write(msgspec.json.format(msgspec.json.encode(lineage), indent=1) + b"\n")
    return where


def read(path: Path) -> Lineage | None:
    """The lineage beside the file at `path`, `None` where there is none. **Raises** `FormatError`
    where it cannot be read."""
    where = path_of(path)
    if not where.is_file():
        return None
    if where.stat().st_size > _MOST:
        raise FormatError(where.name, found=f"{where.stat().st_size} bytes", expected="a lineage")
    return decode({KEY: where.read_bytes().decode(errors="replace")}, where.name)
