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
from regraft.plans import Alternative, Graft, Remark
from regraft.tensors import Array, Catalogue, Read
from regraft.values import not_finite

# Checkpoints up to this many bytes are read in whole while planning.
_READ_ALL = 32 * 2**20

# Relative errors of values that are computed on both sides, and of values that are copied; and how
# much closer the right alternative must be than the next.
_ROUNDED, _EXACT, _CLOSER = 1e-5, 1e-9, 3.0


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


def partly_used(
    catalogue: Catalogue, grafts: Iterable[Graft], asked: Collection[str], read: Read | None
) -> Iterable[Remark]:
    """Vectors of which some values go nowhere, and are not 0: the keys' part of a fused bias, where
    the target has none for keys. Left out are those that are resized, which is told anyway, and
    those that something undecided may yet take (`asked`)."""
    reached: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.bool_]]] = {}
    resized: set[str] = set(asked)
    for graft in grafts:
        if graft.kind == "adapt":
            resized.update(graft.sources)
        infos = [catalogue[name] for name in graft.sources]
        if not any(len(info.shape) == 1 for info in infos):
            continue
        _, needed = operations.push_down(graft.ops, tuple(info.shape for info in infos))
        for info, part in zip(infos, needed, strict=True):
            if len(info.shape) == 1:
                seen = reached.setdefault(info.name, np.zeros(info.shape, np.bool_))
                seen[part if part is not None else slice(None)] = True
    for name, seen in reached.items():
        if name not in resized and not seen.all():
            lost = _float(read(name, None))[~seen] if read else None
            if lost is not None and not lost.any():
                continue
            count = seen.size - np.count_nonzero(seen)
            told = "may be any" if lost is None else f"are not 0 (up to {np.abs(lost).max():.3g})"
            text = f"{count} of {seen.size} values go nowhere and {told}"
            yield Remark("partly-used", name, text)


def _float(array: Array) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return array.astype(np.float32)


def right_alternative(
    questions: Sequence[tuple[str, Sequence[Alternative]]], read_source: Read, read_target: Read
) -> int | None:
    """Which alternative gives what the targets of a group hold already, exactly or up to rounding.

    `questions`: names of targets and as many alternatives for each. A target whose values are all
    alike (fresh zeros or ones) is no evidence.
    """
    worst: list[float] = []
    for target, alternatives in questions:
        held = read_target(target, None)
        if held.size < 2 or bool((held == held.reshape(-1)[0]).all()):
            continue
        errors = [_error(held, a, read_source) for a in alternatives]
        worst = [max(pair) for pair in zip(worst or errors, errors, strict=True)]
    if not worst:
        return None
    best, *others = sorted(worst)
    if best > _ROUNDED or (others and others[0] < _CLOSER * max(best, _EXACT)):
        return None
    return worst.index(best)


def _error(held: Array, alternative: Alternative, read_source: Read) -> float:
    """The largest difference of the made from the held values, of the largest of these; infinite
    where nothing is made."""
    if not alternative.sources:
        return np.inf
    arrays = [read_source(name, None) for name in alternative.sources]
    made = np.asarray(operations.run(alternative.ops, arrays, held))
    if np.array_equal(made, held):
        return 0.0
    wide = np.complex128 if np.iscomplexobj(held) else np.float64
    scale = float(np.abs(held.astype(wide)).max()) or 1.0
    error = float(np.abs(made.astype(wide) - held.astype(wide)).max()) / scale
    return np.inf if np.isnan(error) else error
