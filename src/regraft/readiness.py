"""What a model says of its tensors before they are written: which have no values of their own
to keep, and which lie in one memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from regraft.copying import sharing
from regraft.errors import TargetError
from regraft.journal import Journal
from regraft.plans import Graft, Plan
from regraft.sinks import Sink
from regraft.tensors import Catalogue, numpy_dtype

if TYPE_CHECKING:
    from regraft.tensors import Array


def fill_counts(plan: Plan, target: Catalogue, sink: Sink, journal: Journal) -> None:
    """Counts that begin anew begin with 0. **Raises** `TargetError` where a tensor is to keep the
    model's own values, and has none."""
    written = {name for name, graft in plan.grafts.items() if graft.written}
    tied = {name for names in target.ties if written & {*names} for name in names}
    left = [g for g in plan.grafts.values() if not g.written and g.target not in tied]
    hollow = [graft for graft in left if sink.hollow(graft.target)]
    names = [graft.target for graft in hollow if not graft.counter]
    if names:
        raise TargetError(
            f"{plan.target.label}, {names[0]}",
            found=f"{len(names)} fresh tensors without values (a meta device, or shapes alone)",
            expected="the model's own values, which fresh tensors keep",
            hint="make these parts with values (in PyTorch: module.to_empty(device='cpu') and "
            "module.reset_parameters()), or build the model with its values",
            problems=names,
        )
    for graft in hollow:
        journal.remember(graft.target)
        sink.write(graft.target, np.zeros(graft.spec.shape, numpy_dtype(graft.spec.dtype)))


def torn_apart(
    grafts: Sequence[Graft],
    source: Catalogue,
    target: Catalogue,
    memories: Mapping[str, Array | None],
) -> list[str]:
    """Targets that share memory and are made of different things: only when all are written is it
    seen whether each has its values."""
    first = {name: names[0] for names in source.ties for name in names}
    origin = {g.target: (tuple(first.get(name, name) for name in g.sources), g.ops) for g in grafts}
    groups = (*target.ties, *sharing({n: m for n, m in memories.items() if m is not None}))
    found = [[name for name in names if name in origin] for names in groups]
    return list(dict.fromkeys(n for g in found if len({origin[n] for n in g}) > 1 for n in g))
