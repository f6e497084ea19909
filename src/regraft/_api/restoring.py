"""Ways back: tensors rewound to what they were, tuned weights in the source's own terms."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from regraft import checkpoints, keras_layout, lineage, operations, transfer
from regraft._api.access import Pairing, lineage_of, maker, paired, pretrained
from regraft._sides import Given, Side, source_side
from regraft.checkpoints import Checkpoint
from regraft.errors import (
    FormatError,
    IncompletePlan,
    RuleMatchedNothing,
    ShapeMismatch,
    StalePlan,
)
from regraft.lineage import Lineage, Origin, sidecar
from regraft.lineage.returning import Return, way_back
from regraft.operations import Cast
from regraft.plans import Graft, Plan, Spec
from regraft.tensors import CODED, TensorInfo
from regraft.transfer import Receipt

if TYPE_CHECKING:
    from regraft.tensors import Array

    Item = tuple[TensorInfo, Callable[[], Array]]

_KEPT = (lineage.KEY, keras_layout.KEY)


@dataclass(frozen=True)
class Restored:
    """What `restore` wrote: names that were rewound, and those that were wanted but have no
    pretrained values (fresh ones), which stay as they are."""

    path: Path
    rewound: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True)
class Exported:
    """What `export` wrote: the names in the file, those of the tuned model that have no place there
    (fresh heads), and those that were taken from the base since the tuned model has none."""

    path: Path
    written: tuple[str, ...]
    left: tuple[str, ...]
    filled: tuple[str, ...]


def restore(
    tuned: Given,
    base: Given,
    path: str | os.PathLike[str],
    *,
    tensors: Iterable[str],
    plan: Plan | str | os.PathLike[str] | None = None,
    format: str | None = None,
    force: bool = False,
) -> Restored:
    """Writes the tuned file with some tensors rewound to their pretrained values.

    **Arguments:**

    - `tensors`: glob patterns for names of the tuned model (`layer4.*`).
    - `plan`: how `tuned` was made from `base`, where it holds no lineage and names do not tell.

    The lineage, where there is one, says afterwards that these are as they were loaded.

    **Raises** `RuleMatchedNothing` for a pattern that matches no name, `StalePlan` where `base` is
    not the file that the lineage speaks of, `IncompletePlan` where none of the tensors has
    pretrained values; `FormatError`.
    """
    found = paired(base, tuned, plan)
    patterns = tuple(tensors)
    wanted = _wanted(found.after, patterns)
    told = _lineage(found.after)
    if told is not None and plan is None:
        held = pretrained(found.after.catalogue, found.before.catalogue)
        before = {name: _getter(held, name) for name in wanted if name in held}
    else:
        found = _as_stored(found, wanted)
        before = {name: maker(found, name) for name in wanted if name in found.plan.grafts}
    if not before:
        raise IncompletePlan(
            found.after.catalogue.label,
            found=f"{len(wanted)} tensors without pretrained values",
            expected="tensors that came from the base",
            problems=[f"{name}: fresh" for name in wanted],
        )
    metadata = {k: v for k, v in found.after.catalogue.metadata.items() if k in _KEPT}
    if told is not None:
        metadata |= lineage.encode(_rewound(told, before, None if plan is None else found))
    read = found.after.reader()
    items = (
        (info, before.get(name) or _reader(read, name))
        for name, info in found.after.catalogue.items()
    )
    framework = found.after.catalogue.framework
    written = checkpoints.write(
        path, items, metadata, format=format, force=force, framework=framework
    )
    kept = tuple(name for name in wanted if name not in before)
    return Restored(written, tuple(before), kept)


def _wanted(side: Side, patterns: tuple[str, ...]) -> list[str]:
    names = list(side.catalogue)
    idle = [p for p in patterns if not any(n == p or fnmatchcase(n, p) for n in names)]
    if idle or not patterns:
        raise RuleMatchedNothing(
            f"tensors {idle[0]!r}" if idle else "tensors",
            found="no tensor of such a name",
            expected=f"a pattern for names such as {next(iter(names), '')!r}",
            problems=idle,
        )
    return [n for n in names if any(n == p or fnmatchcase(n, p) for p in patterns)]


def _lineage(side: Side) -> Lineage | None:
    try:
        return lineage_of(side)
    except FormatError:
        return None


def _as_stored(found: Pairing, wanted: list[str]) -> Pairing:
    """The pairing of those tensors alone for which the base has values, cast to the dtypes that the
    tuned file stores. **Raises** `ShapeMismatch` where a plan makes another shape."""
    grafts: dict[str, Graft] = {}
    problems: list[str] = []
    for name in wanted:
        graft, info = found.plan.grafts.get(name), found.after.catalogue[name]
        if graft is None or not graft.written:
            continue
        if graft.spec.shape != info.shape:
            problems.append(
                f"{name}: {list(info.shape)} here, {list(graft.spec.shape)} in the plan"
            )
        sources = [found.before.catalogue[source].dtype for source in graft.sources]
        plain = ["float32" if dtype in CODED else dtype for dtype in sources]
        made = operations.dtype_of(graft.ops, plain or [graft.spec.dtype])
        cast = () if made == info.dtype or info.dtype in CODED else (Cast(info.dtype, made),)
        grafts[name] = msgspec.structs.replace(graft, ops=(*graft.ops, *cast))
    if problems:
        raise ShapeMismatch(
            found.after.catalogue.label,
            found=f"{len(problems)} tensors in other shapes than the plan makes",
            expected="the plan that this file's model was made by",
            problems=problems,
        )
    return found._replace(plan=msgspec.structs.replace(found.plan, grafts=grafts))


def _rewound(
    told: Lineage, before: dict[str, Callable[[], Array]], by_plan: Pairing | None
) -> Lineage:
    """The lineage with what the rewound tensors hold now; with the base as their file, where a
    plan took them from another than it speaks of."""
    tensors, also = dict(told.tensors), dict(told.also)
    for name, get in before.items():
        origin, digest = tensors.get(name), transfer.fingerprint(get())
        if origin is not None and (by_plan is None or digest == origin.loaded_hash):
            state = "loaded" if digest == origin.loaded_hash else "tuned"
            tensors[name] = msgspec.structs.replace(origin, state=state, hash=digest)
        elif by_plan is not None:
            graft, label = by_plan.plan.grafts[name], by_plan.before.catalogue.label
            tensors[name] = Origin(
                "loaded", digest, graft.sources, graft.ops, "convert", digest, label
            )
            also[label] = by_plan.before.content()
    return msgspec.structs.replace(told, tensors=tensors, also=also)


def _getter(held: object, name: str) -> Callable[[], Array]:
    return lambda: held[name]  # pyright: ignore


def _reader(read: Callable[[str, None], Array], name: str) -> Callable[[], Array]:
    return lambda: read(name, None)


def export(
    tuned: Given,
    path: str | os.PathLike[str],
    *,
    to: str = "source",
    base: Given | None = None,
    format: str | None = None,
    force: bool = False,
) -> Exported:
    """Writes the tuned weights under the names and in the layout of the file they came from.

    **Arguments:**

    - `path`: its ending names the format, which is the source's own where it is the same. Keras'
      `.h5` needs `base`: it is a copy of it with other values, and its lineage lies beside it.
    - `to`: `"source"`, the only one so far.
    - `base`: the source file, from which what the tuned model does not hold (the original head) is
      taken as it is there, along with what its format needs to be loaded by its library.

    The dtype is that of the tuned weights. Its lineage says that each tensor came from `tuned`.

    **Raises** `FormatError` where `tuned` holds no lineage; `StalePlan` where `base` holds other
    values than were loaded of the source; `IncompletePlan` where tensors were
    adapted to the model (resized, merged, cut), so that there is no way back for them.
    """
    if to != "source":
        raise FormatError(f"to={to!r}", found="no such form", expected="'source'")
    side = source_side(tuned)
    told = lineage_of(side)
    back = way_back(told, side.catalogue)
    if back.lost:
        raise IncompletePlan(
            told.source,
            found=f"{len(back.lost)} tensors for which there is no way back",
            expected="tensors that were copied or converted",
            hint="fine-tune without adapt=True to keep the source's shapes",
            problems=[f"{name}: {reason}" for name, reason in back.lost.items()],
        )
    opened = None if base is None else source_side(base, told.container or None)
    items, metadata, filled = _items(side, back, told, opened)
    written = None
    if opened is not None and isinstance(opened.catalogue, Checkpoint) and format is None:
        written = opened.catalogue.refill(path, items, force=force)
    if written is not None:
        sidecar.write(written, lineage.decode(metadata, written.name))
    else:
        framework = opened.catalogue.framework if opened else ""
        # Flax restores `{"params": …}` into `{"params": …}` alone.
        alike = Path(path).suffix == Path(told.source).suffix
        written = checkpoints.write(
            path, items, metadata, format=format, force=force, framework=framework,
            container=told.container if alike else "",
        )  # fmt: skip
    return Exported(written, tuple(info.name for info, _ in items), back.left, filled)


def _items(
    side: Side, back: Return, told: Lineage, opened: Side | None
) -> tuple[list[Item], dict[str, str], tuple[str, ...]]:
    """The tensors in the source's order, and the metadata of the file."""
    made = back.plan
    pairing = Pairing(side, side, made, True)
    ours = {name: maker(pairing, name) for name in made.grafts}
    hashes = {name: transfer.fingerprint(get()) for name, get in ours.items()}
    catalogue = side.catalogue
    parent = catalogue.metadata.get(lineage.KEY, "")
    receipt = Receipt(made, None, hashes, hashing=side.content, parent=parent)
    new = lineage.describe(receipt, ((name, get()) for name, get in ours.items()))
    specs = {name: graft.spec for name, graft in made.grafts.items()}
    metadata: dict[str, str] = {}
    filled: tuple[str, ...] = ()
    if opened is not None:
        _hold_to(told, side, opened)
        theirs = opened.catalogue
        filled = tuple(name for name in theirs if name not in ours)
        read = opened.reader()
        ours |= {name: _reader(read, name) for name in filled}
        specs = {n: specs.get(n) or Spec(i.shape, i.dtype) for n, i in theirs.items()}
        metadata = {k: v for k, v in theirs.metadata.items() if k == keras_layout.KEY}
        new = _with_filled(new, opened, told, ours, filled)
    items: list[Item] = [
        (TensorInfo(name, spec.shape, spec.dtype), ours[name]) for name, spec in specs.items()
    ]
    return items, metadata | lineage.encode(new), filled


def _hold_to(told: Lineage, tuned: Side, base: Side) -> None:
    """**Raises** `StalePlan` unless the base is the source, or holds what was loaded of it."""
    if not lineage.speaks_of(told, base.catalogue):
        raise StalePlan(
            base.catalogue.label,
            found="other tensors than the lineage speaks of",
            expected=f"{told.source}, sha256 {told.source_hash or 'unknown'}",
        )
    if not told.source_hash or base.content() != told.source_hash:
        pretrained(tuned.catalogue, base.catalogue)


def _with_filled(
    new: Lineage, base: Side, told: Lineage, makers: dict[str, Callable[[], Array]],
    filled: tuple[str, ...],
) -> Lineage:  # fmt: skip
    """With origins for what came from the base itself."""
    tensors = dict(new.tensors)
    label = base.catalogue.label
    for name in filled:
        digest = transfer.fingerprint(makers[name]())
        tensors[name] = Origin("loaded", digest, (name,), (), "copy", digest, label)
    also = {**new.also, label: base.content()}
    return msgspec.structs.replace(new, tensors=tensors, also=also)
