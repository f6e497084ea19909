"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing_path(path: Path) -> Generator[Path]:
    """The path of an empty temporary file that takes the place of `path` when the block ends well.

    When it does not, the temporary file goes and what was at `path` stays as it was. For libraries
    that open files themselves; see `replacing`.
    """
    import tempfile  # only where something is written

    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing(path: Path) -> Generator[BinaryIO]:
    """As `replacing_path`, with the temporary file open for writing and reading."""
    with replacing_path(path) as temporary, temporary.open("w+b") as file:
        yield file
