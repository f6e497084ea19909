"""From a receipt and a model's values to its lineage, and back from it to a plan."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import version

import msgspec

from regraft.lineage.records import KEY, Lineage, Origin, decode
from regraft.operations import Each
from regraft.plans import Graft, Plan, Side, Spec
from regraft.receipts import Receipt
from regraft.tensors import Catalogue, Read, TensorInfo
from regraft.transfer import fingerprint


def _versions() -> dict[str, str]:
    """Of this package and of what made the model, as far as it was imported."""
    wanted = [name for name in ("torch", "keras", "jax", "numpy") if name in sys.modules]
    return {name: version(name) for name in ("regraft", *wanted)}


def describe(
    receipt: Receipt,
    hashes: Mapping[str, str],
    *,
    trained: Mapping[str, bool] | None = None,
    training: Mapping[str, str] | None = None,
) -> Lineage:
    """The lineage of a model that was loaded with `receipt` and whose values have `hashes` now, by
    tensor (`transfer.fingerprint`).

    **Arguments:**

    - `trained`: by tensor, whether training was allowed to change it; absent: not known.
    - `training`: settings worth remembering, as text.
    """
    plan = receipt.plan
    origins: dict[str, Origin] = {}
    for name, digest in hashes.items():
        graft = plan.grafts.get(name)
        if graft is None or not graft.written or name not in receipt.hashes:
            origins[name] = Origin("counter" if graft and graft.counter else "fresh", digest)
            continue
        loaded = receipt.hashes[name]
        if trained is None or name not in trained:
            state = "loaded" if digest == loaded else "tuned"
        else:
            state = "tuned" if trained[name] or digest != loaded else "frozen"
        origins[name] = Origin(state, digest, graft.sources, graft.ops, graft.kind, loaded)
    used = {name for origin in origins.values() for name in origin.sources}
    return Lineage(
        source=plan.source.label,
        source_hash=receipt.source_hash,
        container=plan.source.container,
        tensors=origins,
        source_tensors={n: plan.source.tensors[n] for n in plan.source.tensors if n in used},
        verified=receipt.verified,
        training=dict(training or {}),
        versions=_versions(),
        parent=receipt.parent,
    )


def checked(lineage: Lineage, tuned: Catalogue, read: Read) -> Lineage:
    """The lineage held against the values of its file; what does not agree is `changed`."""
    tensors: dict[str, Origin] = {}
    for name, origin in lineage.tensors.items():
        same = name in tuned and fingerprint(read(name, None)) == origin.hash
        tensors[name] = origin if same else msgspec.structs.replace(origin, state="changed")
    for name, info in tuned.items():
        if name not in tensors:
            tensors[name] = Origin("changed", "", kind=f"{info.dtype}{list(info.shape)}")
    return msgspec.structs.replace(lineage, tensors=tensors)


def speaks_of(lineage: Lineage, base: Catalogue) -> bool:
    """Whether the base holds the tensors that a lineage names, in their shapes."""
    named = lineage.source_tensors.items()
    return bool(named) and all(
        name in base and Spec(base[name].shape, base[name].dtype) == spec for name, spec in named
    )


def plan_of(lineage: Lineage, base: Catalogue, tuned: Catalogue) -> Plan:
    """The plan that made the tuned file out of its base, for reading the base in its terms."""
    grafts: dict[str, Graft] = {}
    for name, origin in lineage.tensors.items():
        if name not in tuned:
            continue
        spec = Spec(tuned[name].shape, tuned[name].dtype)
        ours = not origin.file or origin.file == base.label
        if origin.kind != "fresh" and ours and all(source in base for source in origin.sources):
            grafts[name] = Graft(name, spec, "convert", origin.sources, origin.ops)
        else:
            grafts[name] = Graft(name, spec, "fresh", counter=origin.state == "counter")
    return Plan(source=Side.of(base), target=Side.of(tuned), grafts=grafts)


def plan_from(lineage: Lineage, base: Catalogue, tuned: Catalogue) -> Plan | None:
    """The plan from a base that a lineage speaks of, itself or through its parents; `None` where
    it speaks of another."""
    if speaks_of(lineage, base):
        return plan_of(lineage, base, tuned)
    parent = parent_of(lineage)
    if parent is None:
        return None
    middle = Catalogue(
        (TensorInfo(name, spec.shape, spec.dtype) for name, spec in lineage.source_tensors.items()),
        label=lineage.source,
    )
    first = plan_from(parent, base, middle)
    if first is None:
        return None
    made = _chained(first, plan_of(lineage, middle, tuned))
    # Tensors that were taken from that base itself, past the source.
    direct = {
        name: Graft(name, made.grafts[name].spec, "convert", origin.sources, origin.ops)
        for name, origin in lineage.tensors.items()
        if name in made.grafts and origin.file == base.label and origin.sources
    }
    return msgspec.structs.replace(made, grafts={**made.grafts, **direct})


def parent_of(lineage: Lineage) -> Lineage | None:
    """The lineage of the source itself."""
    return decode({KEY: lineage.parent}, lineage.source) if lineage.parent else None


def _chained(first: Plan, second: Plan) -> Plan:
    """Two plans as one. A tensor that any of its sources was fresh for is fresh."""
    grafts: dict[str, Graft] = {}
    for name, graft in second.grafts.items():
        parts = [first.grafts.get(source) for source in graft.sources]
        if not graft.written or any(p is None or not p.written for p in parts):
            grafts[name] = Graft(name, graft.spec, "fresh", counter=graft.counter)
            continue
        made = [part for part in parts if part is not None]
        sources = tuple(source for part in made for source in part.sources)
        ops = graft.ops
        if len(made) == 1:
            ops = (*made[0].ops, *ops)
        elif any(part.ops for part in made):
            counts = tuple(len(part.sources) for part in made)
            ops = (Each(counts, tuple(part.ops for part in made)), *ops)
        grafts[name] = Graft(name, graft.spec, "convert", sources, ops)
    return Plan(source=first.source, target=second.target, grafts=grafts)
