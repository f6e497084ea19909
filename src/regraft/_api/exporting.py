"""Tuned weights in the names, the layout and the format of the file they came from."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from regraft import keras_layout, lineage, transfer
from regraft._api import keeping
from regraft._api.access import Pairing, maker, pretrained, reading
from regraft._api.keeping import lineage_of
from regraft._sides import Given, Side, source_side
from regraft.checkpoints import Checkpoint
from regraft.errors import FormatError, IncompletePlan, StalePlan
from regraft.lineage import Lineage, Origin
from regraft.lineage.returning import Return, way_back
from regraft.plans import Spec
from regraft.receipts import Receipt
from regraft.tensors import TensorInfo

if TYPE_CHECKING:
    from regraft.tensors import Array

    Item = tuple[TensorInfo, Callable[[], Array]]


@dataclass(frozen=True)
class Exported:
    """What `export` wrote: the names in the file, those of the tuned model that have no place there
    (fresh heads), and those that were taken from the base since the tuned model has none."""

    path: Path
    written: tuple[str, ...]
    left: tuple[str, ...]
    filled: tuple[str, ...]


def export(
    tuned: Given,
    path: str | os.PathLike[str],
    *,
    to: str = "source",
    base: Given | None = None,
    format: str | None = None,
    force: bool = False,
) -> Exported:
    """Writes the tuned weights under the names and in the layout of the file they came from.

    **Arguments:**

    - `path`: its ending names the format, which is the source's own where it is the same. Keras'
      `.h5` needs `base`: it is a copy of it with other values, and its lineage lies beside it.
    - `to`: `"source"`, the only one so far.
    - `base`: the source file, from which what the tuned model does not hold (the original head) is
      taken as it is there, along with what its format needs to be loaded by its library.

    The dtype is that of the tuned weights. Its lineage says that each tensor came from `tuned`.

    **Raises** `FormatError` where `tuned` holds no lineage; `StalePlan` where `base` holds other
    values than were loaded of the source; `IncompletePlan` where tensors were
    adapted to the model (resized, merged, cut), so that there is no way back for them.
    """
    if base is not None:
        keeping.apart(path, base)
    if to != "source":
        raise FormatError(f"to={to!r}", found="no such form", expected="'source'")
    side = source_side(tuned)
    told = lineage_of(side)
    back = way_back(told, side.catalogue)
    if back.lost:
        raise IncompletePlan(
            told.source,
            found=f"{len(back.lost)} tensors for which there is no way back",
            expected="tensors that were copied or converted",
            hint="fine-tune without adapt=True to keep the source's shapes",
            problems=[f"{name}: {reason}" for name, reason in back.lost.items()],
        )
    opened = None if base is None else source_side(base, told.container or None)
    items, metadata, filled = _items(side, back, told, opened)
    written = None
    if opened is not None and isinstance(opened.catalogue, Checkpoint) and format is None:
        written = opened.catalogue.refill(path, items, force=force)
    if written is not None:
        keeping.keep(written, metadata)
    else:
        framework = opened.catalogue.framework if opened else ""
        # Flax restores `{"params": …}` into `{"params": …}` alone.
        alike = Path(path).suffix == Path(told.source).suffix
        written = keeping.write(
            path, items, metadata, format=format, force=force, framework=framework,
            container=told.container if alike else "",
        )  # fmt: skip
    return Exported(written, tuple(info.name for info, _ in items), back.left, filled)


def _items(
    side: Side, back: Return, told: Lineage, opened: Side | None
) -> tuple[list[Item], dict[str, str], tuple[str, ...]]:
    """The tensors in the source's order, and the metadata of the file."""
    made = back.plan
    pairing = Pairing(side, side, made, True)
    ours = {name: maker(pairing, name) for name in made.grafts}
    hashes = {name: transfer.fingerprint(get()) for name, get in ours.items()}
    parent = keeping.text_of(side)
    receipt = Receipt(made, None, hashes, hashing=side.content, parent=parent)
    new = lineage.describe(receipt, hashes)
    specs = {name: graft.spec for name, graft in made.grafts.items()}
    metadata: dict[str, str] = {}
    filled: tuple[str, ...] = ()
    if opened is not None:
        _hold_to(told, side, opened)
        theirs = opened.catalogue
        filled = tuple(name for name in theirs if name not in ours)
        read = opened.reader()
        ours |= {name: reading(read, name) for name in filled}
        specs = {n: specs.get(n) or Spec(i.shape, i.dtype) for n, i in theirs.items()}
        metadata = {k: v for k, v in theirs.metadata.items() if k == keras_layout.KEY}
        new = _with_filled(new, opened, told, ours, filled)
    items: list[Item] = [
        (TensorInfo(name, spec.shape, spec.dtype), ours[name]) for name, spec in specs.items()
    ]
    return items, metadata | lineage.encode(new), filled


def _hold_to(told: Lineage, tuned: Side, base: Side) -> None:
    """**Raises** `StalePlan` unless the base is the source, or holds what was loaded of it."""
    if not lineage.speaks_of(told, base.catalogue):
        raise StalePlan(
            base.catalogue.label,
            found="other tensors than the lineage speaks of",
            expected=f"{told.source}, sha256 {told.source_hash or 'unknown'}",
        )
    if not told.source_hash or base.content() != told.source_hash:
        pretrained(tuned.catalogue, base.catalogue)


def _with_filled(
    new: Lineage, base: Side, told: Lineage, makers: dict[str, Callable[[], Array]],
    filled: tuple[str, ...],
) -> Lineage:  # fmt: skip
    """With origins for what came from the base itself."""
    tensors = dict(new.tensors)
    label = base.catalogue.label
    for name in filled:
        digest = transfer.fingerprint(makers[name]())
        tensors[name] = Origin("loaded", digest, (name,), (), "copy", digest, label)
    also = {**new.also, label: base.content()}
    return msgspec.structs.replace(new, tensors=tensors, also=also)
