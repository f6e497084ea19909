"""Folders that are checkpoints: nothing outside of them is reached."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from regraft.errors import CorruptFile, UnsafeFile

_MAX_FILES = 1_000_000


def bytes_in(folder: Path) -> int:
    """Bytes of all files of a folder.

    **Raises** `UnsafeFile` where a link leads out of it or a file is none (a pipe would be waited
    for), `CorruptFile` for more files than any checkpoint has.
    """
    root = folder.resolve()
    total = count = 0
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                count += 1
                if count > _MAX_FILES:
                    raise CorruptFile(folder.name, found=f"more than {_MAX_FILES} files")
                if entry.is_symlink() and not _inside(Path(entry.path), root):
                    raise UnsafeFile(
                        f"{folder.name}/{Path(entry.path).relative_to(root)}",
                        found="a link out of the folder, or to nothing",
                        expected="files of the folder itself",
                        hint="copy the folder with what its links lead to (cp -rL)",
                    )
                if entry.is_dir():
                    # A link to a folder that is walked anyway leads nowhere new.
                    pending += [] if entry.is_symlink() else [Path(entry.path)]
                    continue
                state = entry.stat()
                if not stat.S_ISREG(state.st_mode):
                    raise UnsafeFile(
                        f"{folder.name}/{Path(entry.path).relative_to(root)}",
                        found="neither a file nor a folder",
                    )
                total += state.st_size
    return total


def _inside(link: Path, root: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):
        return False
