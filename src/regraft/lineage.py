"""Where weights come from and what became of them: lineage in the file, differences, traces.

Lineage is JSON text under the key `regraft.lineage` of a file's metadata, which all writers keep.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from regraft import markup
from regraft.errors import FormatError
from regraft.plans import AnyOp, Plan, Spec
from regraft.tensors import Catalogue, Read
from regraft.transfer import Receipt, fingerprint, make
from regraft.values import bits

if TYPE_CHECKING:
    from regraft.tensors import Array

KEY = "regraft.lineage"
Status = Literal["identical", "moved", "fresh", "gone"]


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where one tensor of a saved model came from, and what training did to it.

    `state`: `loaded` (as it came), `frozen` or `tuned` where it is known how training treated
    it, `fresh` (no source), `counter` (no output depends on it), `changed` (the file holds other
    values than were saved with this lineage; only `checked` says so). `loaded_hash` is what was
    written, `hash` what was saved.
    """

    state: Literal["loaded", "frozen", "tuned", "fresh", "counter", "changed"]
    hash: str
    sources: tuple[str, ...] = ()
    ops: tuple[AnyOp, ...] = ()
    kind: str = "fresh"
    loaded_hash: str = ""


class Lineage(msgspec.Struct, frozen=True):
    """Lineage of a saved model. `source` is a file's name, `source_hash` its sha256.

    `parent` is the lineage of the source itself as JSON, `""` where it had none. `training` holds
    settings, `versions` those of the libraries at work.
    """

    source: str
    source_hash: str
    container: str
    tensors: dict[str, Origin]
    source_tensors: dict[str, Spec] = {}
    verified: bool = False
    training: dict[str, str] = {}
    versions: dict[str, str] = {}
    parent: str = ""
    schema_version: int = 1

    def counts(self) -> dict[str, int]:
        """Number of tensors by state."""
        states = [origin.state for origin in self.tensors.values()]
        return {state: states.count(state) for state in dict.fromkeys(states)}

    def to_json(self) -> dict[str, Any]:
        return msgspec.to_builtins(self)

    def __str__(self) -> str:
        proven = "outputs verified" if self.verified else "outputs not compared"
        told = ", ".join(f"{count} {state}" for state, count in self.counts().items())
        rows = [
            f"from {self.source} (sha256 {self.source_hash[:12] or 'unknown'}): {told}; {proven}"
        ]
        rows += [f"  {key}: {value}" for key, value in self.training.items()]
        width = max((len(name) for name in self.tensors), default=0)
        for name, origin in self.tensors.items():
            ops = "".join(f", {op}" for op in origin.ops)
            origins = " + ".join(origin.sources)
            rows.append(f"  {origin.state:<7} {name:<{width}}  {origins}{ops}".rstrip())
        return "\n".join(rows)


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


def encode(lineage: Lineage) -> dict[str, str]:
    """Metadata entries that hold a lineage."""
    return {KEY: msgspec.json.encode(lineage).decode()}


def decode(metadata: Mapping[str, str], label: str) -> Lineage:
    """The lineage in a file's metadata. **Raises** `FormatError` where there is none."""
    text = metadata.get(KEY)
    if text is None:
        raise FormatError(
            label,
            found="no lineage in the file",
            expected="a file saved with rg.save(model, path, receipt=receipt)",
            hint="rg.diff(base, tuned) compares files without lineage",
        )
    try:
        return msgspec.json.decode(text, type=Lineage)
    except (msgspec.DecodeError, RecursionError) as error:
        raise FormatError(label, found=f"a lineage that cannot be read: {error}") from error


class Entry(msgspec.Struct, frozen=True):
    """How one tensor differs between two files.

    `rel_l2` is ‖b − a‖ / ‖a‖ (0 where both are 0, inf where only a is), `max_abs` the largest
    absolute change, `cosine` of the angle between them (1 where both are 0). NaN where a tensor
    is on one side only. `base` names the base's tensor where its name differs.
    """

    status: Status
    shape: tuple[int, ...]
    dtype: str
    rel_l2: float = float("nan")
    max_abs: float = float("nan")
    cosine: float = float("nan")
    base: str = ""


class Diff(Mapping[str, Entry]):
    """Differences by tensor name, in the order of the newer file; what is gone comes last."""

    def __init__(self, base: str, tuned: str, entries: Mapping[str, Entry]) -> None:
        self.base, self.tuned = base, tuned
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def same(self) -> bool:
        """Whether every tensor is identical and none is fresh or gone."""
        return all(entry.status == "identical" for entry in self.values())

    def counts(self) -> dict[str, int]:
        """Number of tensors by status."""
        states = [entry.status for entry in self.values()]
        return {s: states.count(s) for s in ("identical", "moved", "fresh", "gone") if s in states}

    def _repr_html_(self) -> str:
        told = ", ".join(f"{count} {status}" for status, count in self.counts().items())
        entries = sorted(self.items(), key=lambda item: item[1].status == "identical")
        rows = ((e.status, name, e.base, e.rel_l2, e.max_abs, e.cosine) for name, e in entries)
        head = ("", "tensor", "was", "relative L2", "largest change", "cosine")
        caption = f"{self.base} → {self.tuned}: {told or 'nothing'}"
        return markup.table(caption, head, rows, len(self))

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "base": self.base,
            "tuned": self.tuned,
            "counts": self.counts(),
            "tensors": {name: msgspec.to_builtins(entry) for name, entry in self.items()},
        }

    def __str__(self) -> str:
        told = ", ".join(f"{count} {status}" for status, count in self.counts().items())
        rows = [f"{self.base} → {self.tuned}: {told or 'no tensors'}"]
        width = max((len(name) for name in self), default=0)
        for name, entry in self.items():
            if entry.status == "identical":
                continue
            facts = ""
            if entry.status == "moved":
                facts = f"  L2 {entry.rel_l2:<8.3g}  max {entry.max_abs:<8.3g}"
                facts += f"  cos {entry.cosine:.6f}"
            renamed = f"  was {entry.base}" if entry.base else ""
            rows.append(f"  {entry.status:<6} {name:<{width}}{facts}{renamed}".rstrip())
        return "\n".join(rows)


def diff(
    base: Catalogue,
    read_base: Callable[[str], Array | None],
    tuned: Catalogue,
    read_tuned: Read,
    *,
    base_name: Callable[[str], str | None] | None = None,
    met: Iterable[str] = (),
    without: Collection[str] = (),
) -> Diff:
    """Compares two catalogues tensor by tensor, holding one pair at a time.

    **Arguments:**

    - `read_base`: the base's values under the *tuned* file's name and layout, `None` where the
      base has none.
    - `base_name`: the base's own name for it, `None` where there is none; equal by default.
    - `met`: names of the base that have a counterpart under another name.
    - `without`: names that are not compared.
    """
    name_of = base_name or (lambda name: name if name in base else None)
    entries: dict[str, Entry] = {}
    seen = set(met)
    for name, info in tuned.items():
        if name in without:
            continue
        origin = name_of(name)
        before = read_base(name) if origin else None
        if before is None or before.shape != info.shape:
            entries[name] = Entry("fresh", info.shape, info.dtype)
            continue
        seen.add(origin or name)
        renamed = origin if origin and origin != name else ""
        entries[name] = _compared(before, read_tuned(name, None), info.dtype, renamed)
    for name, info in base.items():
        if name not in seen:
            entries.setdefault(name, Entry("gone", info.shape, info.dtype))
    return Diff(base.label, tuned.label, entries)


def _compared(a: Array, b: Array, dtype: str, renamed: str) -> Entry:
    if a.dtype == b.dtype and np.array_equal(bits(a), bits(b)):
        return Entry("identical", b.shape, dtype, 0.0, 0.0, 1.0, renamed)
    x, y = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    change = y - x
    norm_x, norm_y, norm = (float(np.linalg.norm(v)) for v in (x, y, change))
    rel = norm / norm_x if norm_x else (0.0 if not norm else float("inf"))
    cosine = float(x @ y) / (norm_x * norm_y) if norm_x and norm_y else float(norm_x == norm_y)
    largest = float(np.abs(change).max(initial=0.0))
    return Entry("moved", b.shape, dtype, rel, largest, cosine, renamed)


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


def diff_through(plan: Plan, base: Catalogue, read: Read, tuned: Catalogue, after: Read) -> Diff:
    """As `diff`, with the base's values brought into the tuned model's names and layout."""

    def before(name: str) -> Array | None:
        graft = plan.grafts.get(name)
        # Entries that stayed as the model had them are no difference: the base has none of them.
        own = lambda name: after(name, None)  # noqa: E731
        return make(plan, graft, read, own) if graft and graft.written else None

    def origin(name: str) -> str | None:
        graft = plan.grafts.get(name)
        return " + ".join(graft.sources) if graft and graft.sources else None

    met = {source for graft in plan.grafts.values() for source in graft.sources}
    idle = {graft.target for graft in plan.grafts.values() if graft.counter}
    return diff(base, before, tuned, after, base_name=origin, met=met, without=idle)


def plan_of(lineage: Lineage, base: Catalogue, tuned: Catalogue) -> Plan:
    """The plan that made the tuned file out of its base, for reading the base in its terms."""
    from regraft.plans import Graft, Side

    grafts: dict[str, Graft] = {}
    for name, origin in lineage.tensors.items():
        spec = Spec(tuned[name].shape, tuned[name].dtype)
        if origin.kind != "fresh" and all(source in base for source in origin.sources):
            grafts[name] = Graft(name, spec, "convert", origin.sources, origin.ops)
        else:
            grafts[name] = Graft(name, spec, "fresh", counter=origin.state == "counter")
    return Plan(source=Side.of(base), target=Side.of(tuned), grafts=grafts)
