"""What is fuzzed: for each format real files, small enough to be changed a thousand times a second.

A sample is one file's bytes; a format that is a folder gives one sample per file, each with the
folder around it.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from regraft import checkpoints
from regraft.errors import RegraftError

_READ_AT_MOST = 8 << 20
_MAX_SAMPLE, _MAX_SEED = 1 << 18, 1 << 16
CORPUS = Path(__file__).parent / "corpus"


class Sample(NamedTuple):
    """`name` is the file's; `folder` is that of the format, or `None`."""

    name: str
    data: bytes
    folder: Path | None = None
    inner: str = ""

    def __repr__(self) -> str:  # else a failing example prints all bytes
        return f"Sample({self.inner or self.name!r})"


def of_format(format: str, root: Path) -> list[Sample]:
    """Made by the format's own library, under `root`, which must outlive the samples."""
    from formats.samples import all_makers

    suffix, make = all_makers()[format]
    make(root / f"{format}{suffix}")
    return made_in(root)


def made_in(root: Path) -> list[Sample]:
    """The samples that lie in a folder."""
    [path] = root.iterdir()
    if path.is_dir():
        return [Sample(path.name, p.read_bytes(), path, p.relative_to(path).as_posix())
                for p in sorted(path.rglob("*")) if p.is_file()]  # fmt: skip
    return [Sample(path.name, path.read_bytes())]


def attacks(suffix: str, root: Path) -> list[bytes]:
    """Hostile files of that ending from `tests/attacks`, where they are small: good to begin with."""
    found: list[bytes] = []
    for module in sorted(p.stem for p in (Path(__file__).parents[1] / "attacks").glob("test_*.py")):
        listed = getattr(importlib.import_module(f"attacks.{module}"), "ATTACKS", {})
        for number, attack in enumerate(listed.values()):
            folder = root / f"{module}{number}"
            folder.mkdir()
            attack.make(folder, folder / "marker")
            for path in folder.rglob(f"*{suffix}"):
                if path.is_file() and not path.is_symlink() and path.stat().st_size <= _MAX_SEED:
                    found.append(path.read_bytes())
            shutil.rmtree(folder)
    return found


def place() -> Path:
    """Where files are written thousands of times: memory, where the system has such a place."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else Path(TemporaryDirectory().name).parent


@contextlib.contextmanager
def written(sample: Sample, data: bytes, folder: Path) -> Iterator[Path]:
    """The sample with other bytes, as a path to open; gone afterwards."""
    path = folder / sample.name
    if sample.folder is None:
        path.write_bytes(data)
    else:
        shutil.copytree(sample.folder, path)
        (path / sample.inner).write_bytes(data)
    try:
        yield path
    finally:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def open_and_read(path: Path) -> None:
    """All that a reader does. Raises whatever is not a typed error."""
    try:
        with checkpoints.open(path) as found:
            for name, info in list(found.items())[:200]:
                if info.nbytes <= _READ_AT_MOST:
                    assert found.read(name).shape == info.shape
    except RegraftError as error:
        assert error.where
        assert str(error)


def small(samples: list[Sample]) -> list[Sample]:
    return [sample for sample in samples if len(sample.data) <= _MAX_SAMPLE]
