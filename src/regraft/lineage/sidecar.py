"""A lineage beside its file, where the file itself can hold none: `model.h5.lineage.json`.

Files that other programs write (a trainer's own checkpoints) get theirs this way. It is the second
best place: what is beside a file is lost first, and stays behind when the file is written anew. So
it names the content that it speaks of, and is not believed of any other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from regraft.atomic import replacing
from regraft.errors import FormatError, StalePlan
from regraft.lineage.records import KEY, Lineage, decode

SUFFIX = ".lineage.json"
_MOST = 256 << 20
_OF = "of"


class _Beside(msgspec.Struct):
    of: str = ""


def path_of(path: Path) -> Path:
    """Where the lineage of the file at `path` lies."""
    return path.with_name(path.name + SUFFIX)


def write(path: Path, lineage: Lineage, content: str) -> Path:
    """Puts a lineage beside the file at `path`, in place of one that is there. `content` is the
    file's content hash."""
    where = path_of(path)
    told = {_OF: content, **msgspec.to_builtins(lineage)}
    with replacing(where) as file:
        file.write(msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n")
    return where


def read(path: Path, content: Callable[[], str]) -> Lineage | None:
    """The lineage beside the file at `path`, `None` where there is none.

    `content` gives the file's content hash, and is asked only where there is a lineage.

    **Raises** `FormatError` where it cannot be read, `StalePlan` where it is of another content.
    """
    where = path_of(path)
    if not where.is_file():
        return None
    if where.stat().st_size > _MOST:
        raise FormatError(where.name, found=f"{where.stat().st_size} bytes", expected="a lineage")
    text = where.read_bytes().decode(errors="replace")
    found = decode({KEY: text}, where.name)
    of, now = msgspec.json.decode(text, type=_Beside).of, content()
    if of != now:
        raise StalePlan(
            where.name,
            found=f"the lineage of a file of sha256 {of[:12] or 'unknown'}",
            expected=f"that of {path.name} as it is now, {now[:12] or 'unknown'}",
            hint=f"the file was written since: remove {where.name}, or keep the lineage anew",
        )
    return found
