"""Runs that go on after they were killed: which run a checkpoint belongs to, and its writing."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import xxhash

from regraft.errors import CorruptFile, RegraftError, StalePlan
from regraft.transfer import fingerprint
from regraft.tuning import Job, processes

if TYPE_CHECKING:
    from regraft.tensors import Array


def identity(job: Job, names: Iterable[str], read: Callable[[str], Array]) -> dict[str, str]:
    """What must be the same for a run to go on: settings, policy, data, the model's tensors and
    the weights that it starts with, and in how many processes: each draws its own samples."""
    names = list(names)
    data = job.data
    parts = {"x": data.x, "y": data.y, "x_val": data.x_val, "y_val": data.y_val}
    return {
        "settings": msgspec.json.encode(asdict(job.settings)).decode(),
        "policy": msgspec.json.encode(asdict(job.policy)).decode(),
        "data": _digest({name: _arrays(part) for name, part in parts.items()}),
        "model": xxhash.xxh3_128_hexdigest("\n".join(names).encode()),
        "starting weights": _start(job, names, read),
        "processes": str(processes.count()),
    }


def same(found: Mapping[str, str], wanted: Mapping[str, str], where: str) -> None:
    """Raises `StalePlan` where a checkpoint is another run's."""
    apart = [name for name in wanted if found.get(name) != wanted[name]]
    if apart:
        raise StalePlan(
            where,
            found=f"a checkpoint of a run with other {' and '.join(apart)}",
            expected="the run that is to go on, given what it was given at its start",
            hint="give another folder, or remove the checkpoint to start anew",
            problems=[f"{name}: {found.get(name)} there, {wanted[name]} here" for name in apart],
        )


@contextmanager
def reading(path: Path) -> Generator[None]:
    """Tells of what a damaged checkpoint makes its library raise as `CorruptFile`."""
    try:
        yield
    except RegraftError:
        raise
    except Exception as error:  # the libraries raise whatever the bytes lead them to
        raise CorruptFile(
            str(path),
            found=f"{type(error).__name__}: {error}",
            expected="the checkpoint of a run",
            hint="remove it to start the run anew",
        ) from error


def replaced(temporary: Path, path: Path) -> None:
    """Puts a finished file in its place, on the disk before anything else is."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _start(job: Job, names: Iterable[str], read: Callable[[str], Array]) -> str:
    """The values before the first step. Where a receipt tells which of them were loaded, these:
    what is fresh, and entries that a model kept of its own, may be drawn anew each time that a
    run is started, and are in the checkpoint."""
    if job.loading is not None:
        grafts, loaded = job.loading.plan.grafts, job.loading.hashes
        names = [name for name in names if name in loaded and not grafts[name].keeps]
    hashes = [f"{name} {fingerprint(read(name))}" for name in names]
    return xxhash.xxh3_128_hexdigest("\n".join(hashes).encode())


def _arrays(part: Any) -> dict[str, Array]:
    if part is None:
        return {}
    return dict(part) if isinstance(part, Mapping) else {"": part}


def _digest(parts: Mapping[str, Mapping[str, Array]]) -> str:
    total = xxhash.xxh3_128()
    for name, arrays in parts.items():
        for key, array in arrays.items():
            told = f"{name} {key} {array.dtype} {array.shape} {fingerprint(array)}"
            total.update(told.encode())
    return total.hexdigest()
