"""Access afterwards: where weights came from, what became of them, and what they were."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from regraft import checkpoints, lineage, transfer
from regraft._api.keeping import lineage_of
from regraft._api.planning import plan_sides
from regraft._sides import Given, Side, source_side
from regraft.errors import FormatError, RegraftError, StalePlan
from regraft.lineage import Diff, Lineage
from regraft.plans import Plan, Remark
from regraft.transfer import Progress

if TYPE_CHECKING:
    from regraft.tensors import Array, Read


def trace(path: Given) -> Lineage:
    """Where each tensor of a saved model came from.

    Values are read and compared with the hashes in the lineage: what was changed by other means
    since is told as `changed`. A lineage in a file beside it (`model.h5.lineage.json`) is as good.
    **Raises** `FormatError` where the file has no lineage.
    """
    side = source_side(path)
    return lineage.checked(lineage_of(side), side.catalogue, side.reader())


class Source(NamedTuple):
    """A file that another was made from, `depth` steps back.

    `state`: `verified` (it is at hand and its sha256 is as told), `changed` (it is another file
    now), `absent` (it is not at hand, or its hash is not known).
    """

    name: str
    sha256: str
    depth: int
    state: Literal["verified", "changed", "absent"]

    def to_json(self) -> dict[str, object]:
        return self._asdict()


def sources_of(path: Given, bases: Iterable[str | os.PathLike[str]] = ()) -> list[Source]:
    """The files that a saved model came from, and these from: its lineage, parents included.

    **Arguments:** `bases`: files to look at; those in the folder of `path` are found by name (a
    lineage is not believed to name files anywhere else).

    **Raises** `FormatError` where the file has no lineage.
    """
    side = source_side(path)
    here = side.path.parent if side.path else Path()
    at_hand = {Path(base).name: Path(base) for base in bases}
    found: list[Source] = []
    told: Lineage | None = lineage_of(side)
    depth = 0
    while told is not None:
        for name, digest in {told.source: told.source_hash, **told.also}.items():
            beside = here / name if Path(name).name == name != ".." and name else None
            found.append(Source(name, digest, depth, _state(at_hand.get(name, beside), digest)))
        told, depth = lineage.parent_of(told), depth + 1
    return found


def _state(file: Path | None, digest: str) -> Literal["verified", "changed", "absent"]:
    if not digest or file is None or not file.exists():
        return "absent"
    try:
        return "verified" if checkpoints.content_hash(file) == digest else "changed"
    except FormatError:  # a file of that name that is no checkpoint any more
        return "changed"


class Pairing(NamedTuple):
    """An older file, a newer one, and the plan from one to the other. `given`: whether a person or
    a lineage gave the plan; else names and values did. `remarks`: what is to be known of it."""

    before: Side
    after: Side
    plan: Plan
    given: bool
    remarks: tuple[Remark, ...] = ()


def paired(
    base: Given,
    tuned: Given,
    plan: Plan | str | os.PathLike[str] | None = None,
    container: str | None = None,
) -> Pairing:
    """Which tensor of one file is which of the other: by the plan, by the newer file's lineage
    where it speaks of this base, or by what names and values tell. **Raises** `StalePlan` where the
    plan is of other files."""
    before, after = source_side(base, container), source_side(tuned, container)
    made = plan if isinstance(plan, Plan) or plan is None else Plan.load(plan)
    remarks: tuple[Remark, ...] = ()
    if made is None:
        try:
            made = _from_lineage(before, after)
        except StalePlan as error:  # of another content: told, and not believed
            text = f"{error.where} is not believed: {error.found}, and this is another"
            remarks = (Remark("stale-lineage", after.catalogue.label, text),)
    if made is not None:
        made.check(before.catalogue)
        if made.grafts and not made.grafts.keys() & after.catalogue.keys():
            raise StalePlan(
                after.catalogue.label,
                found="none of the tensors that the plan makes",
                expected=f"tensors of {made.target.label or 'its model'} such as "
                f"{next(iter(made.grafts))!r}",
                hint="give the plan that the newer file's model was loaded by",
            )
        return Pairing(before, after, made, True)
    sides = (before.catalogue, before.reader(), after.catalogue, after.reader())
    found = lineage.correspondence(*sides, known=_matched(before, after))
    return Pairing(before, after, found, False, remarks)


def _from_lineage(before: Side, after: Side) -> Plan | None:
    """The plan that the newer file tells of, from its source or from its source's source …"""
    try:
        told = lineage_of(after)
    except FormatError:
        return None
    return lineage.plan_from(told, before.catalogue, after.catalogue)


def _matched(before: Side, after: Side) -> Plan | None:
    """What matching makes of two files that name few tensors alike."""
    ours, theirs = before.catalogue, after.catalogue
    if not ours or not theirs or lineage.share_a_vocabulary(ours, theirs):
        return None
    try:
        return plan_sides(before, after, (), None)
    except RegraftError:  # nothing that could be matched: values may still tell
        return None


def diff(
    base: Given,
    tuned: Given,
    *,
    plan: Plan | str | os.PathLike[str] | None = None,
    container: str | None = None,
    ranks: bool = False,
    progress: Progress | None = None,
) -> Diff:
    """What became of each tensor: identical, renamed, moved (L2, max, cosine), fresh or gone.

    Where `tuned` holds lineage of this base, or `plan` says how one was made from the other, values
    are compared through its operations. Otherwise tensors are paired by name, and what is left by
    its values: the same under another name, in another layout, or close. Files of any size are
    compared in a few hundred megabytes of memory.

    **Arguments:**

    - `ranks`: take the effective rank of each change, too; a decomposition of each matrix.
    - `progress`: called with each tensor's name and bytes.
    """
    found = paired(base, tuned, plan, container)
    return lineage.diff(
        found.plan, found.before.catalogue, found.before.reader(),
        found.after.catalogue, found.after.reader(),
        given=found.given, ranks=ranks, remarks=found.remarks, progress=progress,
    )  # fmt: skip


class Weights(Mapping[str, "Array"]):
    """Arrays by name, each made when it is asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], Array]]) -> None:
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> Array:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def pretrained(tuned: Given, base: Given) -> Weights:
    """The weights as they were before training, by the tuned model's names and in its layout.

    A Mapping whose arrays are read from the base when they are asked for. Tensors that were fresh,
    or came from another file, have no pretrained values there and are left out; entries that a
    model added to a pretrained tensor (rows of a vocabulary) are as they are now. **Raises**
    `FormatError` where `tuned` holds no lineage, `StalePlan` where `base` is not the file it speaks
    of.
    """
    after = source_side(tuned)
    told = lineage_of(after)
    before = source_side(base, told.container or None)
    made = lineage.plan_of(told, before.catalogue, after.catalogue)
    wrong: list[str] = []
    makers: dict[str, Callable[[], Array]] = {}
    for name, origin in told.tensors.items():
        elsewhere = origin.file not in ("", told.source, before.catalogue.label)
        if origin.kind == "fresh" or elsewhere or name not in made.grafts:
            continue
        if not made.grafts[name].written:
            wrong.append(f"{name}: {', '.join(origin.sources)} is missing")
            continue
        makers[name] = maker(Pairing(before, after, made, True), name)
        # Entries that were the model's own from the start are not in the base.
        if (
            not made.grafts[name].keeps
            and transfer.fingerprint(makers[name]()) != origin.loaded_hash
        ):
            wrong.append(f"{name}: other values than were loaded")
    if wrong:
        raise StalePlan(
            before.catalogue.label,
            found="another file than the lineage speaks of",
            expected=f"{told.source}, sha256 {told.source_hash or 'unknown'}",
            problems=wrong,
        )
    return Weights(makers)


def maker(found: Pairing, name: str) -> Callable[[], Array]:
    """What makes the base's values for one tensor of the newer file."""
    graft, read = found.plan.grafts[name], found.before.reader()
    own = found.after.reader()
    return lambda: transfer.make(found.plan, graft, read, lambda name: own(name, None))


def reading(read: Read, name: str) -> Callable[[], Array]:
    """What reads a tensor as it is."""
    return lambda: read(name, None)


def delta(
    tuned: Given,
    base: Given,
    *,
    plan: Plan | str | os.PathLike[str] | None = None,
    container: str | None = None,
) -> Weights:
    """What training added to each tensor: tuned − pretrained, by the tuned model's names.

    A Mapping whose arrays are made when they are asked for: floats no narrower than float32,
    integers as int64. Tensors without counterpart in the base are left out; pairs are found as by
    `diff`. Adding it to the base gives the tuned weights up to rounding; what gives them to the
    bit is `make_delta`.
    """
    found = paired(base, tuned, plan, container)
    names = (n for n, graft in found.plan.grafts.items() if graft.written and not graft.counter)
    return Weights({name: _difference(found, name) for name in names})


def _difference(found: Pairing, name: str) -> Callable[[], Array]:
    before, after = maker(found, name), found.after.reader()

    def get() -> Array:
        return lineage.difference(before(), after(name, None))

    return get
