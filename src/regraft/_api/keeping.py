"""Lineages with the files they speak of: in them, or beside those that can hold none."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from regraft import checkpoints, lineage, locations, transfer
from regraft._sides import Given, Side, source_side
from regraft.checkpoints import Checkpoint
from regraft.errors import FormatError, RegraftError, StalePlan
from regraft.formats import TensorSource
from regraft.lineage import Lineage, sidecar
from regraft.receipts import Receipt
from regraft.tensors import Catalogue


def lineage_of(side: Side) -> Lineage:
    """The lineage in the file, or beside it. **Raises** `FormatError` where there is none,
    `StalePlan` where what lies beside it is of another content."""
    path = _local(side)
    if lineage.KEY not in side.catalogue.metadata and path is not None:
        beside = sidecar.read(path, side.content)
        if beside is not None:
            return beside
    return lineage.decode(side.catalogue.metadata, side.catalogue.label)


def text_of(side: Side) -> str:
    """The lineage of a source, for what is made of it to hold; `""` where there is none that can
    be believed."""
    held = side.catalogue.metadata.get(lineage.KEY)
    if held is not None:
        return held
    with suppress(RegraftError):
        return lineage.encode(lineage_of(side))[lineage.KEY]
    return ""


def has_lineage(found: Given) -> bool:
    """Whether a file holds a lineage, or one lies beside it."""
    side = source_side(found)
    path = _local(side)
    beside = path is not None and sidecar.path_of(path).is_file()
    return beside or lineage.KEY in side.catalogue.metadata


def _local(side: Side) -> Path | None:
    """Beside files elsewhere nothing is sought: it would be a request for each that is opened."""
    return side.path if side.path is not None and locations.is_local(side.path) else None


def apart(path: str | os.PathLike[str], *needed: Given) -> None:
    """**Raises** `FormatError` where a file is to be written in place of one that what is written
    is of no use without, or that would be lost: a base, a delta."""
    where = Path(path)
    for given in needed:
        file = given.path if isinstance(given, Checkpoint) else given
        if not isinstance(file, (str, os.PathLike)) or not where.exists():
            continue
        with suppress(OSError):
            if where.samefile(file):
                raise FormatError(
                    str(path), found="the file that is read as base or delta",
                    expected="another file, as that one would be lost",
                    hint="choose another name",
                )  # fmt: skip


def write(
    path: str | os.PathLike[str],
    tensors: TensorSource,
    metadata: Mapping[str, str],
    **options: Any,
) -> Path:
    """`checkpoints.write`, and a lineage in the metadata is kept whatever the format: beside the
    file where that does not give it back. One that lay beside an older file goes."""
    where = checkpoints.write(path, tensors, metadata, **options)
    keep(where, metadata)
    return where


def keep(where: Path, metadata: Mapping[str, str]) -> None:
    """A lineage in the metadata of a file that was just written is beside it, unless in it."""
    text = metadata.get(lineage.KEY)
    if text is None or _holds(where, text):
        sidecar.path_of(where).unlink(missing_ok=True)
    else:
        told = lineage.decode(metadata, where.name)
        sidecar.write(where, told, checkpoints.content_hash(where))


def _holds(path: Path, text: str) -> bool:
    try:
        with checkpoints.open(path) as made:
            return made.metadata.get(lineage.KEY) == text
    except RegraftError:  # a format that others read
        return False


class Keeper:
    """What a receipt of a load tells of files that hold the model later."""

    def metadata(
        self,
        receipt: Receipt,
        hashes: Mapping[str, str],
        trained: Mapping[str, bool] | None,
        training: Mapping[str, str] | None,
    ) -> dict[str, str]:
        """Entries that hold the lineage of a model whose values have these hashes, by its names
        or by names that end with them."""
        return lineage.encode(_described(receipt, hashes, trained, training))

    def beside(
        self,
        receipt: Receipt,
        path: str | os.PathLike[str],
        trained: Mapping[str, bool] | None,
        training: Mapping[str, str] | None,
    ) -> Path:
        """Puts the lineage beside a file that another program wrote of the model."""
        with checkpoints.open(path) as found:
            hashes = {name: transfer.fingerprint(found.read(name, None)) for name in found}
            told = _described(receipt, hashes, trained, training, found)
            return sidecar.write(found.path, told, found.sha256)


def _described(
    receipt: Receipt,
    hashes: Mapping[str, str],
    trained: Mapping[str, bool] | None,
    training: Mapping[str, str] | None,
    found: Catalogue | None = None,
) -> Lineage:
    """The lineage by the file's names."""
    ours = _names(receipt, hashes, found)
    known = {ours[name]: digest for name, digest in hashes.items() if name in ours}
    told = lineage.describe(receipt, known, trained=trained, training=training)
    tensors = {
        name: told.tensors[ours[name]] if name in ours else lineage.Origin("fresh", digest)
        for name, digest in hashes.items()
    }
    return msgspec.structs.replace(told, tensors=tensors)


def _names(receipt: Receipt, names: Iterable[str], found: Catalogue | None) -> dict[str, str]:
    """The model's name of each tensor of a file: wrappers put parts before it. **Raises**
    `StalePlan` where the file holds another model."""
    model = receipt.plan.target.tensors
    paired: dict[str, str] = {}
    for name in names:
        ends = (name[i:] for i in range(len(name)) if i == 0 or name[i - 1] in "./")
        end = next((end for end in ends if end in model), None)
        if end is None or (found is not None and found[name].shape != model[end].shape):
            continue
        paired[name] = end
    twice = len(paired) - len(set(paired.values()))
    if twice or not set(paired.values()) & receipt.hashes.keys():
        raise StalePlan(
            found.label if found else "the checkpoint",
            found=f"{twice} names twice" if twice else "none of the tensors that were loaded",
            expected=f"tensors of {receipt.plan.target.label or 'the model'} such as "
            f"{next(iter(receipt.hashes), '')!r}, of the receipt's load",
            hint="give the receipt of the model that was written to this file",
        )
    return paired
