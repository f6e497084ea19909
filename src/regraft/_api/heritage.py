"""The files of a folder as a family tree: opened, put into common terms, compared by values."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from regraft import checkpoints, lineage, shards, transfer
from regraft._api.planning import plan_sides
from regraft._sides import Side
from regraft.checkpoints import Checkpoint
from regraft.errors import FormatError, RegraftError
from regraft.lineage import Lineage, portraits, sidecar, written
from regraft.lineage.heritage import family_tree as tree_of
from regraft.lineage.pedigree import FamilyTree
from regraft.lineage.portraits import Portrait
from regraft.plans import Graft, Plan
from regraft.tensors import Catalogue, Read, TensorInfo

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices


class _File(NamedTuple):
    """A file of the folder. `plan` puts it into the terms of its family's first, `None` where its
    own names are these."""

    name: str
    path: Path
    held: Checkpoint
    plan: Plan | None


def family_tree(
    folder: str | os.PathLike[str],
    *,
    by_values: bool = False,
    progress: Callable[[str, int], None] | None = None,
) -> FamilyTree:
    """Which of a folder's checkpoints came from which: by their values, and where these leave it
    open by counters in the files, names, and last the times of the files.

    Files of any format are compared, under other names and in other layouts, too. Every file is
    read once; a sample of each tensor is kept. What each edge of the tree rests on is said with it,
    how sure its direction is, and what that rests on; where nothing tells which of two files came
    first, the direction is `open`.

    **Arguments:** `by_values`: whether values alone are looked at, as if files had no lineage,
    counters, names and times. `progress`: called with each file's name and bytes.

    **Raises** `FormatError` where there is no such folder. Files that are no checkpoints are named
    in the remarks.
    """
    where = Path(folder)
    if not where.is_dir():
        raise FormatError(str(folder), found="no such folder", hint="check the path")
    remarks: list[str] = []
    opened: list[tuple[str, Path, Checkpoint]] = []
    for path in _candidates(where):
        name = path.relative_to(where).as_posix()
        try:
            held = checkpoints.open(path)
        except RegraftError as error:
            remarks.append(f"{name}: not read: {error.found or type(error).__name__}")
            continue
        if held:
            opened.append((name, path, held))
        else:
            remarks.append(f"{name}: no tensors")
    files = list(_in_common_terms(opened))
    named = {h for f in files for h in _sources(f)}
    size = portraits.sample_size(len(files), max((len(f.held) for f in files), default=1))
    drawn: list[Portrait] = []
    for file in files:
        drawn.append(_portrait(file, size, bool(named)))
        if progress:
            progress(file.name, file.held.nbytes)
        file.held.close()
    return tree_of(drawn, remarks, by_values=by_values)


def _candidates(folder: Path) -> Iterator[Path]:
    """Files and folders that may be checkpoints; shards are part of their index."""
    paths = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    taken: set[str] = set()
    for path in paths:
        if path.is_file() and shards.is_index(path):
            try:
                taken |= set(shards.weight_map(path).values())
            except RegraftError:
                continue
    for path in paths:
        if path.name not in taken and not path.name.endswith(sidecar.SUFFIX):
            yield path


def _in_common_terms(opened: list[tuple[str, Path, Checkpoint]]) -> Iterator[_File]:
    """Each file with the plan that brings it into the terms of one before, where there is one that
    it fits; files of most kin first, so that theirs are the terms."""
    terms: list[Checkpoint] = []
    count = {n: len(held) for n, _, held in opened}
    for name, path, held in sorted(opened, key=lambda o: (-_company(o[2], opened), -count[o[0]])):
        if any(_same_terms(held, other) for other in terms):
            yield _File(name, path, held, None)
            continue
        plan = next((p for other in terms if (p := _into(held, other)) is not None), None)
        if plan is None:
            terms.append(held)
        yield _File(name, path, held, plan)


def _company(held: Checkpoint, opened: list[tuple[str, Path, Checkpoint]]) -> int:
    return sum(_same_terms(held, other) for _, _, other in opened)


def _same_terms(a: Catalogue, b: Catalogue) -> bool:
    """Whether half of the smaller one's tensors have the same names, and most of these the same
    shapes."""
    common = a.keys() & b.keys()
    alike = sum(a[name].shape == b[name].shape for name in common)
    return 2 * len(common) >= min(len(a), len(b)) and 2 * alike >= len(common) and alike > 0


def _into(held: Checkpoint, terms: Checkpoint) -> Plan | None:
    """The plan into the other file's names and layout, where most of its tensors can be made."""
    known = None
    if not lineage.share_a_vocabulary(held, terms):
        if held.framework == terms.framework and not _alike_in_shapes(held, terms):
            return None
        try:
            known = plan_sides(Side(held, held.read), Side(terms, terms.read), (), None)
        except RegraftError:
            return None
    plan = lineage.correspondence(held, held.read, terms, terms.read, known)
    made = sum(graft.written for graft in plan.grafts.values())
    return plan if 2 * made >= min(len(held), len(terms)) else None


def _alike_in_shapes(a: Catalogue, b: Catalogue) -> bool:
    ours = [tuple(sorted(info.shape)) for info in a.values()]
    theirs = {tuple(sorted(info.shape)) for info in b.values()}
    return 2 * sum(shape in theirs for shape in ours) >= len(ours)


def _portrait(file: _File, size: int, hashed: bool) -> Portrait:
    held = file.held
    counters = [
        i for i in held.values()
        if i.size == 1 and (i.kind == "counter" or i.name.endswith("num_batches_tracked"))
    ]  # fmt: skip
    return Portrait(
        file.name,
        portraits.parts_of(_tensors(file), size),
        frozenset(held),
        portraits.largest(held.read, counters),
        _counted(file),
        written.date(held.metadata),
        file.path.stat().st_mtime_ns,
        tuple(_sources(file)),
        held.sha256 if hashed else "",
    )


def _tensors(file: _File) -> Iterator[tuple[str, TensorInfo, Read]]:
    held, plan = file.held, file.plan
    if plan is None:
        for name, info in held.items():
            yield name, info, held.read
        return
    for name, graft in plan.grafts.items():
        if not graft.written:
            continue
        dtype = held[graft.sources[0]].dtype if graft.sources else graft.spec.dtype
        kind = held[graft.sources[0]].kind if graft.sources else "weight"
        info = TensorInfo(name, graft.spec.shape, dtype, kind=kind)

        yield name, info, partial(_made, plan, graft, held.read)
    used = {source for graft in plan.grafts.values() for source in graft.sources}
    into = _renaming(plan)
    for name, info in held.items():
        if name not in used:  # a head of another shape
            yield into(name), info, held.read


def _made(plan: Plan, graft: Graft, read: Read, _: str, slices: Slices | None) -> Array:
    return transfer.make(plan, graft, read, slices=slices)


def _renaming(plan: Plan) -> Callable[[str], str]:
    """Names as most of the plan's grafts change them: something put before them, or taken away."""
    ways = Counter[tuple[str, str]]()
    for graft in plan.grafts.values():
        for source in graft.sources[:1]:
            if source.endswith(graft.target):
                ways[source.removesuffix(graft.target), ""] += 1
            elif graft.target.endswith(source):
                ways["", graft.target.removesuffix(source)] += 1
    (gone, new), _ = (ways.most_common(1) or [(("", ""), 0)])[0]
    return lambda name: new + name.removeprefix(gone)


def _sources(file: _File) -> list[str]:
    """Hashes of the files that its lineage names, parents of parents included."""
    try:
        told: Lineage | None = (
            sidecar.read(file.path, lambda: file.held.sha256)
            if lineage.KEY not in file.held.metadata
            else lineage.decode(file.held.metadata, file.name)
        )
    except RegraftError:
        return []
    hashes: list[str] = []
    while told is not None:
        hashes += [told.source_hash, *told.also.values()]
        try:
            told = lineage.parent_of(told)
        except FormatError:
            break
    return [h for h in hashes if h]


def _counted(file: _File) -> dict[str, float]:
    """What else in the file only grows: steps, iterations, epochs, of tensors and of texts beside
    the weights; the largest of each."""
    held = file.held
    found: dict[str, float] = dict(written.counters(held.metadata))
    try:
        with checkpoints.open(file.path, container="") as whole:
            ours: dict[str, list[TensorInfo]] = {}
            for name, info in whole.items():
                word = written.counter(name)
                if word and info.size == 1:
                    ours.setdefault(word, []).append(info)
            for word, infos in ours.items():
                largest = portraits.largest(whole.read, infos)
                if largest is not None:
                    found[word] = max(largest, found.get(word, largest))
    except RegraftError:
        pass
    return found
