"""Averages of saved models: between pretrained and tuned, and of several trainings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from regraft import keras_layout, lineage, transfer
from regraft._api import keeping
from regraft._api.access import pretrained
from regraft._api.keeping import has_lineage, lineage_of
from regraft._sides import Given, Side, source_side
from regraft.errors import StalePlan, TargetError
from regraft.lineage import Lineage, Origin
from regraft.plans import Spec
from regraft.tensors import TensorInfo
from regraft.tuning import blending

if TYPE_CHECKING:
    from regraft.tensors import Array


def interpolate(
    base: Given,
    tuned: Given,
    path: str | os.PathLike[str],
    *,
    share: float = 0.5,
    force: bool = False,
) -> Path:
    """Writes the model between the pretrained weights (`share` 0) and the tuned ones (1); streams.

    WiSE-FT (Wortsman et al. 2022, Robust fine-tuning of zero-shot models): on the way from one to
    the other, accuracy under distribution shift often is higher than at either end. Where `tuned`
    was saved with its lineage, `base` may have other names and another layout. What was fresh, or
    came from a file other than `base`, has no pretrained values there and stays as it was tuned.

    **Raises** `StalePlan` where `base` holds other values than those that the lineage says were
    loaded, `ShapeMismatch` where there is no lineage and the files have other tensors,
    `TargetError` for a share outside [0, 1], `FormatError`.
    """
    if not 0 <= share <= 1:
        raise TargetError("interpolate", found=f"a share of {share}", expected="0 to 1")
    keeping.apart(path, base)
    after = source_side(tuned)
    told = _lineage_of(after)
    before = source_side(base, (told.container or None) if told else None)

    def as_it_is(name: str) -> Array | None:
        return before.reader()(name, None)

    known = as_it_is
    if told is not None and lineage.speaks_of(told, before.catalogue):
        weights = pretrained(tuned, base)

        def through(name: str) -> Array | None:
            if name not in told.tensors:
                raise StalePlan(
                    after.catalogue.label,
                    found=f"{name!r}, of which the lineage does not speak",
                    expected="the tensors that were saved with it",
                    hint="the file was changed by other means since: see rg.trace",
                )
            return weights.get(name)

        known = through
    else:
        blending.alike([before.catalogue, after.catalogue])

    def value(name: str) -> Array:
        ours, theirs = after.reader()(name, None), known(name)
        return ours if theirs is None else blending.mixed([theirs, ours], [1 - share, share], name)

    what = f"interpolated, {share:g} of the tuned weights"
    return _written(path, [before, after], value, known, what, force)


def soup(files: Iterable[Given], path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Writes the mean of several fine-tuned versions of one model; streams.

    A uniform soup (Wortsman et al. 2022, Model soups). It makes sense only for trainings that began
    at the same weights. **Raises** `ShapeMismatch`, with all findings, where their tensors are not
    the same, `TargetError` for fewer than two, `FormatError`.
    """
    sides = [source_side(given) for given in files]
    if len(sides) < 2:
        raise TargetError("soup", found=f"{len(sides)} files", expected="two or more")
    blending.alike([side.catalogue for side in sides])
    shares = [1 / len(sides)] * len(sides)

    def value(name: str) -> Array:
        return blending.mixed((side.reader()(name, None) for side in sides), shares, name)

    first = sides[0].reader()
    what = f"uniform soup of {len(sides)}"
    return _written(path, sides, value, lambda name: first(name, None), what, force)


def _written(
    path: str | os.PathLike[str],
    parents: Sequence[Side],
    value: Callable[[str], Array],
    before: Callable[[str], Array | None],
    what: str,
    force: bool,
) -> Path:
    """Writes the blend with a lineage that names every parent."""
    last = parents[-1].catalogue
    kept = {k: v for k, v in last.metadata.items() if k == keras_layout.KEY}
    hashes = {name: transfer.fingerprint(value(name)) for name in last}
    metadata = kept | _told(parents, hashes, before, what)
    items = (
        (TensorInfo(info.name, info.shape, info.dtype), partial(value, info.name))
        for info in last.values()
    )
    return keeping.write(path, items, metadata, force=force, framework=last.framework)


def _told(
    parents: Sequence[Side],
    hashes: dict[str, str],
    before: Callable[[str], Array | None],
    what: str,
) -> dict[str, str]:
    """Lineage of a blend: from the first parent, as the last one's own lineage says of each tensor;
    `also` names the other parents with their sha256."""
    first, last = parents[0], parents[-1]
    names = _names(parents)
    shas = {name: side.content() for name, side in zip(names, parents, strict=True)}
    known = _lineage_of(last)
    known = known if known and lineage.speaks_of(known, first.catalogue) else None
    tensors: dict[str, Origin] = {}
    for name, digest in hashes.items():
        origin = known.tensors.get(name) if known else None
        if origin is None:
            pretrained = before(name)
            assert pretrained is not None  # files that are alike have all of each other's
            origin = Origin("tuned", digest, (name,), (), "copy", transfer.fingerprint(pretrained))
        elif origin.state in ("loaded", "frozen") and digest != origin.loaded_hash:
            origin = msgspec.structs.replace(origin, state="tuned")
        tensors[name] = msgspec.structs.replace(origin, hash=digest)
    made = Lineage(
        source=names[0],
        source_hash=shas[names[0]],
        container=first.catalogue.container,
        tensors=tensors,
        source_tensors={t.name: Spec(t.shape, t.dtype) for t in first.catalogue.values()},
        training={"blend": what, "parents": ", ".join(shas)},
        parent=keeping.text_of(first),
        also={name: shas[name] for name in names if name != names[0]},
    )
    return lineage.encode(made)


def _names(parents: Sequence[Side]) -> list[str]:
    """The parents' names; those of trainings that each wrote `model.safetensors` into a folder of
    its own begin with as many folders as tell them apart."""
    paths = [p.path.absolute() if p.path else Path(p.catalogue.label) for p in parents]
    count = 1
    while len({path.parts[-count:] for path in paths}) < len(set(paths)):
        count += 1
    return ["/".join(path.parts[-count:]) for path in paths]


def _lineage_of(side: Side) -> Lineage | None:
    return lineage_of(side) if has_lineage(side.catalogue) else None
