"""Evidence of values, and reasons to doubt them. Reads as little as will do.

Statistics are small and always looked at: a running variance is never negative. Tensors are
searched for NaN and Inf as long as the whole checkpoint is small; `apply` looks at the rest on
its way. Where the target is a checkpoint too, alternatives are compared with what it holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from regraft import operations
from regraft.matching.modules import Module
from regraft.plans import Alternative, Remark
from regraft.tensors import Array, Catalogue, Read
from regraft.values import not_finite

# Checkpoints up to this many bytes are read in whole while planning.
_READ_ALL = 32 * 2**20


def doubts(
    catalogue: Catalogue, modules: Iterable[Module], read: Read, used: Collection[str]
) -> Iterable[Remark]:
    """Warnings about the source's values, as far as they are used."""
    for module in modules:
        var, mean = module.leaves.get("var"), module.leaves.get("mean")
        if var is None or var.info.name not in used:
            continue
        if bool((_float(read(var.info.name, None)) < 0).any()):
            swapped = mean is not None and bool((_float(read(mean.info.name, None)) >= 0).all())
            yield Remark(
                "negative-variance",
                var.info.name,
                "a running variance holds negative values"
                + (f"; it looks exchanged with {mean.info.name}" if swapped and mean else ""),
            )
    small = catalogue.nbytes <= _READ_ALL
    for info in (catalogue[name] for name in catalogue if name in used):
        if (small or len(info.shape) == 1) and not_finite(array := read(info.name, None)):
            count = not_finite(array)
            yield Remark("not-finite", info.name, f"{count} of {array.size} values are NaN or Inf")


def _float(array: Array) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return array.astype(np.float32)


def equal_alternatives(
    alternatives: Sequence[Alternative], target: str, read_source: Read, read_target: Read
) -> list[int]:
    """Indices of the alternatives that give exactly what the target holds already.

    A target whose values are all alike (fresh zeros or ones) is no evidence: nothing is equal.
    """
    held = read_target(target, None)
    if held.size < 2 or bool((held == held.reshape(-1)[0]).all()):
        return []
    equal: list[int] = []
    for index, alternative in enumerate(alternatives):
        arrays = [read_source(name, None) for name in alternative.sources]
        if np.array_equal(operations.run(alternative.ops, arrays), held):
            equal.append(index)
    return equal
