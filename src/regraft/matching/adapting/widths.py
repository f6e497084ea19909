"""Wider layers, where a rule asks for them: units are repeated, what they feed is shared out.

Net2WiderNet (Chen, Goodfellow and Shlens 2016, arXiv:1511.05641): a wider layer begins with the
source's units and goes on with copies of them, in turn, and the layers behind it divide each unit's
weights by the number of its copies, so that the network computes what it did. That holds where what
lies between works on each unit by itself (activations, norms with statistics, pooling). A norm over
all units keeps it where the width is a multiple; attentions keep it where whole heads are added.
Nothing is made up, so that copies are alike until training, or noise, parts them.
"""

from __future__ import annotations

from collections.abc import Iterable

from regraft.matching.adapting.changes import Change, Situation, Way
from regraft.matching.layouts import resized
from regraft.matching.modules import Leaf, Module
from regraft.operations import AnyOp, Widen


def find(situation: Situation) -> Iterable[Change]:
    def asked(module: Module) -> bool:
        names = [leaf.info.name for leaf in module.leaves.values()]
        return any(map(situation.may_widen, names)) or not any(name in targets for name in names)

    targets = {leaf.info.name for m in situation.left.targets for leaf in m.leaves.values()}
    for source, target in situation.left.pairs(_fits, asked):
        for role, leaf in target.leaves.items():
            ways = _ways(source.leaves[role], leaf)
            if ways:
                yield Change(source.leaves[role], leaf, ways)


def _fits(source: Module, target: Module) -> bool:
    """Whether the layers have the same tensors, all of them as wide or wider, and one is wider."""
    if source.leaves.keys() != target.leaves.keys():
        return False
    pairs = [(source.leaves[role], leaf) for role, leaf in target.leaves.items()]
    if not all(_grown(ours, theirs) is not None for ours, theirs in pairs):
        return False
    return any(_grown(ours, theirs) for ours, theirs in pairs)


def _ways(source: Leaf, target: Leaf) -> tuple[Way, ...]:
    ops = _grown(source, target)
    if not ops:
        return ()
    sizes = ", ".join(f"{source.info.shape[op.axis]} to {op.size}" for op in ops)
    steps: tuple[AnyOp, ...] = tuple(ops)
    return (Way(f"widened from {sizes}, units repeated in turn", steps),)


def _grown(source: Leaf, target: Leaf) -> list[Widen] | None:
    """What makes the source as wide as the target; nothing where it is; `None` if it is wider or
    something else differs."""
    ours, theirs = _axes(source), _axes(target)
    if len(source.info.shape) != len(target.info.shape) or len(ours) != len(theirs):
        return None
    ops: list[Widen] = []
    sizes = list(source.info.shape)
    for (axis, feeds), (there, _) in zip(ours, theirs, strict=True):
        before, after = source.info.shape[axis], target.info.shape[there]
        if after < before:
            return None
        if after > before:
            ops.append(Widen(axis, after, feeds))
            sizes[axis] = after
    return ops if resized(source, tuple(sizes), target) else None


def _axes(leaf: Leaf) -> list[tuple[int, bool]]:
    """Axes of units, and whether they are those that feed the layer: outputs first."""
    rank = len(leaf.info.shape)
    if rank < 2 or leaf.role not in ("kernel", "embedding", "recurrent"):
        return [(0, False)] if rank == 1 else []
    if leaf.kind == "embedding" or leaf.role == "embedding":
        return [(rank - 1, False)]
    ends = (rank - 1, rank - 2) if leaf.inputs_first else (0, 1)
    if leaf.kind == "depthwise":
        return [(rank - 2, False)]
    if leaf.kind == "transposed" and leaf.framework != "jax":
        ends = ends[::-1]
    if not leaf.inputs_first and leaf.info.shape[1] == 1 and rank > 2:
        return [(0, False)]  # torch's depthwise kernels [c, 1, ...]
    return [(ends[0], False), (ends[1], True)]
