"""Writing a file, or a set of files, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from regraft.errors import FormatError


@contextmanager
def told_of(path: Path) -> Generator[None]:
    """Tells of a folder that nothing can be written to by the name of what was to be written."""
    try:
        yield
    except OSError as error:
        raise FormatError(
            str(path), found=f"{error.strerror}", expected="a folder that can be written to"
        ) from error


@contextmanager
def replacing_path(path: Path) -> Generator[Path]:
    """The path of an empty temporary file that takes the place of `path` when the block ends well.

    When it does not, the temporary file goes and what was at `path` stays as it was. For libraries
    that open files themselves; see `replacing`. **Raises** `FormatError` where the folder cannot be
    written to.
    """
    import tempfile  # only where something is written

    with told_of(path):
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


@contextmanager
def replacing_all(folder: Path, old: Iterable[Path]) -> Generator[Path]:
    """A temporary folder whose files, when the block ends well, go to `folder` in the order of
    their names, after the `old` ones have left it in theirs.

    When it does not, or a file cannot be put in its place, everything is as it was.
    """
    import shutil
    import tempfile

    with told_of(folder):
        temporary = Path(tempfile.mkdtemp(prefix=".writing.", dir=folder))
    new, kept = temporary / "new", temporary / "old"
    try:
        new.mkdir()
        kept.mkdir()
        yield new
        made = sorted(new.iterdir())
        leaving = dict.fromkeys([*old, *(folder / path.name for path in made)])
        _moved(
            [*((path, kept / path.name) for path in leaving if path.exists()),
             *((path, folder / path.name) for path in made)]
        )  # fmt: skip
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        with suppress(OSError):  # what could not be put back stays in there
            kept.rmdir()
            temporary.rmdir()
        raise
    shutil.rmtree(temporary, ignore_errors=True)


def _moved(moves: list[tuple[Path, Path]]) -> None:
    """Moves files one after another; all back where one cannot be moved."""
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            source.rename(target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            target.rename(source)
        raise
