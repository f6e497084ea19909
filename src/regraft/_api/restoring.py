"""The way back in time: tensors rewound to what they were."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from regraft import keras_layout, lineage, operations, transfer
from regraft._api import keeping
from regraft._api.access import Pairing, maker, paired, pretrained, reading
from regraft._api.keeping import lineage_of
from regraft._sides import Given, Side
from regraft.errors import (
    AmbiguousMatch,
    FormatError,
    IncompletePlan,
    RuleMatchedNothing,
    ShapeMismatch,
)
from regraft.lineage import Lineage, Origin, confirming
from regraft.operations import Cast
from regraft.plans import Graft, Plan
from regraft.tensors import CODED

if TYPE_CHECKING:
    from regraft.tensors import Array

_KEPT = (lineage.KEY, keras_layout.KEY)


@dataclass(frozen=True)
class Restored:
    """What `restore` wrote: names that were rewound, and those that were wanted but have no
    pretrained values (fresh ones), which stay as they are."""

    path: Path
    rewound: tuple[str, ...]
    kept: tuple[str, ...]


def restore(
    tuned: Given,
    base: Given,
    path: str | os.PathLike[str],
    *,
    tensors: Iterable[str],
    plan: Plan | str | os.PathLike[str] | None = None,
    accept: Iterable[str] = (),
    format: str | None = None,
    force: bool = False,
) -> Restored:
    """Writes the tuned file with some tensors rewound to their pretrained values.

    **Arguments:**

    - `tensors`: glob patterns for names of the tuned model (`layer4.*`).
    - `plan`: how `tuned` was made from `base`, where it holds no lineage and names do not tell.

    - `accept`: patterns for tensors whose counterpart in the base is no more than a guess, and is
      taken all the same.

    The lineage, where there is one, says afterwards that these are as they were loaded. Without it,
    and without a plan, tensors are paired as by `diff`, and a pair is a guess unless values bear it
    out: its own, or those of most pairs whose names agree in the same way.

    **Raises** `RuleMatchedNothing` for a pattern that matches no name, `StalePlan` where `base` is
    not the file that the lineage speaks of, `IncompletePlan` where none of the tensors has
    pretrained values, `AmbiguousMatch`, with the alternatives, for guesses that were not accepted;
    `IncompletePlan` for one of several names of one tensor; `FormatError`. Nothing is written then.
    """
    keeping.apart(path, base)
    found = paired(base, tuned, plan)
    patterns = tuple(tensors)
    wanted = _wanted(found.after, patterns)
    _ties_kept(found.after, wanted)
    told = _lineage(found.after)
    if told is not None and plan is None:
        held = pretrained(found.after.catalogue, found.before.catalogue)
        before = {name: _getter(held, name) for name in wanted if name in held}
    else:
        taken = _wanted(found.after, accepted) if (accepted := tuple(accept)) else ()
        _no_guesses(found, [name for name in wanted if name not in taken])
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
        (info, before.get(name) or reading(read, name))
        for name, info in found.after.catalogue.items()
    )
    framework = found.after.catalogue.framework
    written = keeping.write(path, items, metadata, format=format, force=force, framework=framework)
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


def _ties_kept(side: Side, wanted: list[str]) -> None:
    """One tensor under two names is rewound under both, or the file would say two things of it."""
    for group in side.catalogue.ties:
        left = [name for name in group if name not in wanted]
        if left and len(left) < len(group):
            whole = next(name for name in group if name in wanted)
            raise IncompletePlan(
                side.catalogue.label,
                found=f"{whole!r}, which is one tensor with {', '.join(map(repr, left))}",
                expected="all names of a tensor to be rewound, or none",
                hint=f"give its other names, too: tensors=[…, {left[0]!r}]",
            )


def _no_guesses(found: Pairing, names: list[str]) -> None:
    if found.given:
        return
    base = found.before
    doubts = confirming.unconfirmed(
        found.plan, base.catalogue, base.reader(), found.after.reader(), names
    )
    if doubts:
        raise AmbiguousMatch(
            found.after.catalogue.label,
            found=f"no more than a guess at what {len(doubts)} of {len(names)} tensors were in "
            f"{base.catalogue.label}",
            expected="a lineage, a plan, or values that still are like the base's",
            hint="give the plan that the model was loaded by, or take the guesses: "
            f"accept=[{next(iter(doubts))!r}, …] (--accept)",
            problems=[f"{name} ← {doubt}" for name, doubt in doubts.items()],
        )


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
