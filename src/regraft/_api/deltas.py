"""Lossless deltas: a tuned file stored as what it adds to its base."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from regraft import checkpoints, folders, lineage, locations, shards
from regraft._api import keeping
from regraft._api.access import paired
from regraft.atomic import replacing, told_of
from regraft.checkpoints import Checkpoint
from regraft.errors import FormatError
from regraft.lineage import delta_applying, delta_making, deltas, sidecar
from regraft.plans import Plan
from regraft.tensors import TensorInfo
from regraft.transfer import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from regraft.tensors import Array


def make_delta(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    plan: Plan | str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Writes what `tuned` adds to `base`: `apply_delta` makes the tuned file of it, to the bit.

    The whole file comes back, whatever its format. Tensors whose bytes lie plain in the file
    (safetensors, PyTorch's, GGUF's and numpy's arrays, uncompressed HDF5) are stored as their
    difference; where a format compresses its tensors or quantises them, the file is one zstd frame.
    Tensors are paired as by `diff`. The delta is never larger than the file and 1 % (in files of
    some tens of kilobytes or more).

    **Raises** `FormatError` where `tuned` is no single file (make a delta for each shard), where
    one of the files is written to meanwhile, where the path exists and `force` is False, or where
    it is one of the two, without which the delta is of no use.
    """
    where = Path(path)
    _free(where, force)
    keeping.apart(where, base, tuned)
    found = paired(base, tuned, plan)
    ours, theirs = found.before.catalogue, found.after.catalogue
    if not isinstance(ours, Checkpoint) or not isinstance(theirs, Checkpoint):
        raise FormatError(
            f"{base}, {tuned}", found="a model", expected="two files", hint="rg.save it first"
        )
    file = folders.found(locations.where(tuned)).path
    if not (locations.is_local(file) and file.is_file()) or shards.files_of(file):
        raise FormatError(
            str(tuned), found="a checkpoint of several files", expected="one local file",
            hint="make a delta for each of its files, with the whole base as BASE",
        )  # fmt: skip
    hashes = ours.sha256, theirs.sha256
    with told_of(where):
        scratch = tempfile.TemporaryFile(dir=where.parent)  # noqa: SIM115
    with scratch:
        kept = delta_making.make(
            found.plan, ours, found.before.reader(), theirs, found.after.reader(), file, hashes,
            scratch, progress,
        )  # fmt: skip
        for side in (ours, theirs):
            if side.changed:  # its hash is of other bytes than were read
                raise FormatError(
                    str(side.path), found="a file that changed while it was read",
                    expected="a file that nobody writes to", hint="make the delta again",
                )  # fmt: skip
        items = [
            (TensorInfo(name, (size,), "uint8"), _frame(scratch, start, size))
            for name, (start, size) in kept.frames.items()
        ]
        metadata = deltas.encode(kept.delta)
        if lineage.KEY not in theirs.metadata and (told := keeping.text_of(found.after)):
            metadata[deltas.BESIDE] = told  # what lay beside the file comes back with it
        return checkpoints.write(where, items, metadata, format="safetensors", force=force)


def _frame(scratch: IO[bytes], start: int, size: int) -> Callable[[], Array]:
    def get() -> Array:
        scratch.seek(start)
        return np.frombuffer(scratch.read(size), np.uint8)

    return get


def apply_delta(
    base: str | os.PathLike[str],
    delta: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Writes the tuned file that a delta was made of, byte for byte; whole or not at all.

    `base` is the file that the delta was made from, or one that holds the same tensors. A lineage
    that lay beside the tuned file comes back beside this one.

    **Raises** `StalePlan` for another base; `CorruptFile` for a delta that is damaged, or was made
    to be; `FormatError` where `delta` is none, the path exists and `force` is False, or it is one
    of the two.
    """
    where = Path(path)
    _free(where, force)
    keeping.apart(where, base, delta)
    with checkpoints.open(delta) as frames:
        listing = deltas.decode(frames)
        with _part(base, listing.container) as ours:
            _room_for(listing, where)
            with replacing(where) as out:
                delta_applying.rebuild(
                    listing,
                    frames,
                    frames.read,
                    ours,
                    ours.read,
                    lambda: ours.sha256,
                    out,
                    progress,
                )
        told = frames.metadata.get(deltas.BESIDE)
        sidecar.path_of(where).unlink(missing_ok=True)
        if told is not None:
            known = lineage.decode({lineage.KEY: told}, frames.label)
            sidecar.write(where, known, listing.tuned_hash)
    return where


def _part(base: str | os.PathLike[str], container: str) -> Checkpoint:
    """The part of the base that the delta was made from, where the file has parts."""
    found = checkpoints.open(base)
    if container in ("", found.container) or container not in found.containers:
        return found
    found.close()
    return checkpoints.open(base, container=container)


def _room_for(listing: deltas.Delta, where: Path) -> None:
    """Before a byte is written: a listing may say any size."""
    import shutil

    free = shutil.disk_usage(where.parent).free
    if listing.size > free:
        raise FormatError(
            str(where), found=f"{free:,} bytes free", expected=f"{listing.size:,} for the file"
        )


def _free(where: Path, force: bool) -> None:
    if where.exists() and not force:
        raise FormatError(
            str(where), found="a file that exists",
            hint="choose another name, or overwrite it with force=True (--force)",
        )  # fmt: skip
    if not where.parent.is_dir():
        raise FormatError(str(where), found="no such folder", hint="make the folder first")
