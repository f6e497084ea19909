"""Access afterwards: where weights came from, what became of them, and what they were."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from regraft import lineage, transfer
from regraft._sides import Given, source_side
from regraft.errors import StalePlan
from regraft.lineage import Diff, Lineage
from regraft.plans import Plan

if TYPE_CHECKING:
    from regraft.tensors import Array


def trace(path: Given) -> Lineage:
    """Where each tensor of a saved model came from.

    Values are read and compared with the hashes in the lineage: what was changed by other means
    since is told as `changed`. **Raises** `FormatError` where the file holds no lineage.
    """
    side = source_side(path)
    told = lineage.decode(side.catalogue.metadata, side.catalogue.label)
    return lineage.checked(told, side.catalogue, side.reader())


def diff(
    base: Given,
    tuned: Given,
    *,
    plan: Plan | str | os.PathLike[str] | None = None,
    container: str | None = None,
) -> Diff:
    """What became of each tensor: identical, moved (relative L2, max, cosine), fresh or gone.

    Tensors are paired by name; where `tuned` holds lineage of this base, or `plan` says how one
    was made from the other, through its operations.
    """
    before, after = source_side(base, container), source_side(tuned, container)
    made = plan if isinstance(plan, Plan) or plan is None else Plan.load(plan)
    if made is None and lineage.KEY in after.catalogue.metadata:
        told = lineage.decode(after.catalogue.metadata, after.catalogue.label)
        if lineage.speaks_of(told, before.catalogue):
            made = lineage.plan_of(told, before.catalogue, after.catalogue)
    if made is None:
        read = before.reader()
        return lineage.diff(
            before.catalogue, lambda name: read(name, None), after.catalogue, after.reader()
        )
    made.check(before.catalogue)
    return lineage.diff_through(
        made, before.catalogue, before.reader(), after.catalogue, after.reader()
    )


def pretrained(tuned: Given, base: Given) -> dict[str, Array]:
    """The weights as they were before training, by the tuned model's names and in its layout.

    Tensors that were fresh have no pretrained values and are left out; entries that a model added
    to a pretrained tensor (rows of a vocabulary) are as they are now. **Raises** `FormatError`
    where `tuned` holds no lineage, `StalePlan` where `base` is not the file it speaks of.
    """
    after = source_side(tuned)
    told = lineage.decode(after.catalogue.metadata, after.catalogue.label)
    before = source_side(base, told.container or None)
    made = lineage.plan_of(told, before.catalogue, after.catalogue)
    found: dict[str, Array] = {}
    wrong: list[str] = []
    for name, origin in told.tensors.items():
        if origin.kind == "fresh":
            continue
        graft = made.grafts[name]
        if not graft.written:
            wrong.append(f"{name}: {', '.join(origin.sources)} is missing")
            continue
        found[name] = transfer.make(
            made, graft, before.reader(), lambda name: after.reader()(name, None)
        )
        # Entries that were the model's own from the start are not in the base.
        if not graft.keeps and transfer.fingerprint(found[name]) != origin.loaded_hash:
            wrong.append(f"{name}: other values than were loaded")
    if wrong:
        raise StalePlan(
            before.catalogue.label,
            found="another file than the lineage speaks of",
            expected=f"{told.source}, sha256 {told.source_hash or 'unknown'}",
            problems=wrong,
        )
    return found
