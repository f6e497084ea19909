"""The way back of tuned weights: into the names and the layout of the file they came from."""

from __future__ import annotations

from typing import NamedTuple

from regraft.errors import FormatError
from regraft.lineage.records import Lineage
from regraft.operations import AnyOp, Cast, Each
from regraft.plans import Graft, Plan, Side, Spec
from regraft.tensors import Catalogue, TensorInfo


class Return(NamedTuple):
    """What of a tuned model goes back.

    - `plan`: from the tuned tensors to those of the source that can be made of them.
    - `left`: tuned tensors without a place in the source (fresh heads).
    - `lost`: tensors of the source that cannot be made again, each with the reason.
    """

    plan: Plan
    left: tuple[str, ...]
    lost: dict[str, str]


def way_back(lineage: Lineage, tuned: Catalogue) -> Return:
    """How the tuned tensors go back to the names and the layout of the lineage's source.

    The dtype stays that of the tuned weights: what a source stores in fewer bits would be rounded.
    """
    forth = _forth(lineage, tuned)
    back = forth.inverse()
    grafts = {name: graft for name, graft in back.grafts.items() if graft.written}
    used = {source for graft in grafts.values() for source in graft.sources}
    lost = {name: _reason(forth, name) for name in back.grafts if name not in grafts}
    made = [g.target for g in forth.grafts.values() if not (g.counter and not g.written)]
    target = Side(
        lineage.source,
        "",
        lineage.container,
        {name: forth.source.tensors[name] for name in grafts},
    )
    lost_sources = {n for n, g in forth.grafts.items() if any(s in lost for s in g.sources)}
    return Return(
        Plan(source=back.source, target=target, grafts=grafts),
        tuple(name for name in made if name not in used and name not in lost_sources),
        lost,
    )


def _forth(lineage: Lineage, tuned: Catalogue) -> Plan:
    """The plan that made the model, in the dtypes that the tuned model has."""
    grafts: dict[str, Graft] = {}
    specs = dict(lineage.source_tensors)
    for name, origin in lineage.tensors.items():
        if name not in tuned:
            continue
        info = tuned[name]
        counter = origin.state == "counter"
        elsewhere = origin.file and origin.file != lineage.source
        if origin.kind == "fresh" or elsewhere:
            grafts[name] = Graft(name, Spec(info.shape, info.dtype), "fresh", counter=counter)
            continue
        unknown = [source for source in origin.sources if source not in specs]
        if unknown:
            raise FormatError(
                tuned.label,
                found=f"a lineage that makes {name!r} of {unknown[0]!r}, of which it says no shape",
                expected="the shape of every tensor of the source that was used",
                hint="save the model again with its receipt",
            )
        spec = Spec(info.shape, info.dtype)
        ops = _without_casts(origin.ops)
        grafts[name] = Graft(name, spec, "convert", origin.sources, ops, counter=counter)
        for source in origin.sources:
            specs[source] = Spec(specs[source].shape, info.dtype)
    infos = (TensorInfo(name, spec.shape, spec.dtype) for name, spec in specs.items())
    return Plan(
        source=Side.of(Catalogue(infos, label=lineage.source, container=lineage.container)),
        target=Side.of(tuned),
        grafts=grafts,
    )


def _without_casts(ops: tuple[AnyOp, ...]) -> tuple[AnyOp, ...]:
    kept: list[AnyOp] = []
    for op in ops:
        if isinstance(op, Each):
            kept.append(Each(op.counts, tuple(_without_casts(b) for b in op.branches)))
        elif not isinstance(op, Cast):
            kept.append(op)
    return tuple(kept)


def _reason(forth: Plan, name: str) -> str:
    uses = [graft for graft in forth.grafts.values() if name in graft.sources]
    told = "; ".join(
        f"{graft.target} was made of it by {' '.join(map(str, graft.ops)) or 'a copy'}"
        for graft in uses
    )
    return f"{told}, which cannot be undone" if told else "the tuned file holds nothing of it"
