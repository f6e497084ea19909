"""Files that another file names, or that lie in a folder: they must be there, and be files."""

from __future__ import annotations

from pathlib import Path

from regraft.errors import MissingShard, UnsafeFile


def inside(index: Path, name: str) -> Path:
    """The path of a file that `index` names, which may not be there.

    Neither the name nor a symbolic link may lead out of the folder of `index`. A model hub's cache
    links index and shards alike into one other folder; that folder, where the index itself really
    lies, is let pass. **Raises** `UnsafeFile`.
    """
    outside = ".." in Path(name).parts or "\\" in name or "\0" in name or Path(name).is_absolute()
    if not outside:
        path = index.parent / name
        try:
            folders = {index.parent.resolve(), index.resolve().parent}
            if any(path.resolve().is_relative_to(folder) for folder in folders):
                _ = path.is_file()  # a name may be too long for any file system
                return path
        except RuntimeError:  # links that lead to themselves
            pass
        except OSError as error:
            raise MissingShard(
                str(index), found=f"{name[:200]!r}: {error.strerror}", expected="a file beside it"
            ) from error
    raise UnsafeFile(
        str(index), found=f"shard {name[:200]!r}", expected="a file in the folder of the index"
    )


def regular(index: Path, name: str) -> Path:
    """The path of a file as `inside` gives it, which is there and is a file: to open a pipe is to
    wait for whoever writes into it, and a device never ends.

    **Raises** `MissingShard` where it is not there, `UnsafeFile`.
    """
    path = inside(index, name)
    if path.is_file():
        return path
    where = f"{index.parent}, file {name[:200]!r}"
    if path.exists() and not path.is_dir():
        raise UnsafeFile(where, found="a pipe, a socket or a device", expected="a file")
    raise MissingShard(
        where,
        found="a folder" if path.is_dir() else "no such file",
        expected="a file",
        hint="get the missing files",
    )
