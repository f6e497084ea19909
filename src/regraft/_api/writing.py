"""Writing files: other formats, through a plan, and models with their lineage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from regraft import keras_layout, lineage, transfer
from regraft._api import keeping
from regraft._sides import Given, Side, source_side, target_side
from regraft.errors import IncompletePlan, StalePlan
from regraft.plans import Plan
from regraft.receipts import Receipt
from regraft.tensors import TensorInfo
from regraft.transfer import Progress

if TYPE_CHECKING:
    from regraft.tensors import Array


def convert(
    source: Given,
    path: str | os.PathLike[str],
    *,
    plan: Plan | str | os.PathLike[str] | None = None,
    container: str | None = None,
    format: str | None = None,
    force: bool = False,
    max_shard: int | str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes the same tensors in another format, or what a plan makes of them; streams.

    **Arguments:**

    - `path`: its ending names the format (`.safetensors`, `.pth`, `.npz`, `.gguf`, `.msgpack`,
      `.weights.h5`), unless `format` does.
    - `plan`: the tensors are written as the plan's target has them, with lineage in the file.
    - `force`: overwrite a file that exists.
    - `max_shard`: bytes, or a text such as `"5GB"`: where the tensors take more, they are written
      to several files of that size and an index, whose path is returned.

    **Raises** `UnknownFormat` where the format cannot be written; `IncompletePlan` where the plan
    leaves tensors without values; `FormatError`.
    """
    if plan is None:
        side = source_side(source, container)
        read = side.reader()
        kept = {k: v for k, v in side.catalogue.metadata.items() if k == keras_layout.KEY}
        if told := keeping.text_of(side):
            kept[lineage.KEY] = told
        items = ((info, _reading(read, info, progress)) for info in side.catalogue.values())
        framework = side.catalogue.framework
        return keeping.write(
            path, items, kept, format=format, force=force, max_shard=max_shard, framework=framework
        )
    made = plan if isinstance(plan, Plan) else Plan.load(plan)
    side = source_side(source, container or made.source.container or None)
    transfer.ready(made)
    made.check(side.catalogue)
    lacking = [*made.fresh, *(name for name, graft in made.grafts.items() if graft.keeps)]
    if lacking:
        raise IncompletePlan(
            str(path),
            found=f"{len(lacking)} tensors for which the source has no values, or not all",
            expected="values for every tensor of a file",
            hint="load into a live model, which has values of its own, and rg.save it",
            problems=lacking,
        )
    tensors, metadata = _through(made, side, progress)
    framework = made.target.framework
    return keeping.write(
        path, tensors, metadata, format=format, force=force, max_shard=max_shard,
        framework=framework,
    )  # fmt: skip


def _reading(
    read: Callable[[str, None], Array], info: TensorInfo, progress: Progress | None
) -> Callable[[], Array]:
    def get() -> Array:
        array = read(info.name, None)
        if progress:
            progress(info.name, info.nbytes)
        return array

    return get


def _through(
    made: Plan, side: Side, progress: Progress | None
) -> tuple[Iterable[tuple[TensorInfo, Callable[[], Array]]], dict[str, str]]:
    """The tensors that a plan makes, and their lineage."""
    made = transfer.carried_out(made, side.catalogue)
    read = side.reader()

    def get(name: str, _: object = None) -> Array:
        graft = made.grafts[name]
        if graft.written:
            return transfer.make(made, graft, read)
        import numpy as np

        return np.zeros(graft.spec.shape, graft.spec.dtype)  # a counter, which starts at 0

    hashes = {name: transfer.fingerprint(get(name)) for name in made.grafts}
    written = {name: digest for name, digest in hashes.items() if made.grafts[name].written}
    parent = keeping.text_of(side)
    receipt = Receipt(made, None, written, made.warnings, hashing=side.content, parent=parent)
    told = lineage.describe(receipt, hashes)
    infos = (TensorInfo(n, g.spec.shape, g.spec.dtype) for n, g in made.grafts.items())
    items = ((info, _reading(get, info, progress)) for info in infos)
    return items, lineage.encode(told)


def save(
    model: Given,
    path: str | os.PathLike[str],
    *,
    receipt: Receipt | None = None,
    trained: Mapping[str, bool] | None = None,
    training: Mapping[str, str] | None = None,
    format: str | None = None,
    force: bool = False,
    max_shard: int | str | None = None,
) -> Path:
    """Writes a live model's tensors, with lineage where its receipt is given.

    **Arguments:**

    - `receipt`: what `load` or `apply` gave: for each tensor the file then says where it came from
      and whether it has changed since.
    - `trained`: by name, whether training was allowed to change a tensor (`finetune` knows).
    - `training`: settings worth remembering, as text.
    - `force`: overwrite a file that exists.
    - `max_shard`: as in `convert`.

    **Raises** `TargetError` for anything but a model, `StalePlan` where the receipt is another
    model's, `FormatError`.
    """
    side = target_side(model)
    read = side.reader()
    infos = list(side.catalogue.values())
    metadata = {k: v for k, v in side.catalogue.metadata.items() if k == keras_layout.KEY}
    if receipt is not None:
        alien = [name for name in receipt.hashes if name not in side.catalogue]
        if alien:
            raise StalePlan(
                side.catalogue.label,
                found=f"a receipt that speaks of {alien[0]!r}",
                expected="the receipt of this very model",
                problems=alien,
            )
        hashes = {info.name: transfer.fingerprint(read(info.name, None)) for info in infos}
        told = lineage.describe(receipt, hashes, trained=trained, training=training)
        metadata |= lineage.encode(told)
    items = ((info, _reading(read, info, None)) for info in infos)
    framework = side.catalogue.framework
    return keeping.write(
        path, items, metadata, format=format, force=force, max_shard=max_shard, framework=framework
    )
