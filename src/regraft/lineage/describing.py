"""From a receipt and a model's values to its lineage, and from a lineage back to what is true now."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec

from regraft.lineage.records import Lineage, Origin
from regraft.plans import Graft, Plan, Side, Spec
from regraft.tensors import Catalogue, Read
from regraft.transfer import Receipt, fingerprint

if TYPE_CHECKING:
    from regraft.tensors import Array


def _versions() -> dict[str, str]:
    """Of this package and of what made the model, as far as it was imported."""
    wanted = [name for name in ("torch", "keras", "jax", "numpy") if name in sys.modules]
    return {name: version(name) for name in ("regraft", *wanted)}


def describe(
    receipt: Receipt,
    arrays: Iterable[tuple[str, Array]],
    *,
    trained: Mapping[str, bool] | None = None,
    training: Mapping[str, str] | None = None,
) -> Lineage:
    """The lineage of a model that was loaded with `receipt` and holds `arrays` now.

    **Arguments:**

    - `trained`: by tensor, whether training was allowed to change it; absent: not known.
    - `training`: settings worth remembering, as text.
    """
    plan = receipt.plan
    origins: dict[str, Origin] = {}
    for name, array in arrays:
        graft = plan.grafts.get(name)
        digest = fingerprint(array)
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
        spec = Spec(tuned[name].shape, tuned[name].dtype)
        if origin.kind != "fresh" and all(source in base for source in origin.sources):
            grafts[name] = Graft(name, spec, "convert", origin.sources, origin.ops)
        else:
            grafts[name] = Graft(name, spec, "fresh", counter=origin.state == "counter")
    return Plan(source=Side.of(base), target=Side.of(tuned), grafts=grafts)
