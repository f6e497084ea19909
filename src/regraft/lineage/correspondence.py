"""Which tensor of one file is which of another, where neither a lineage nor a plan says so.

What is found is a Plan from the older file to the newer. Tensors of one name and shape belong
together; names may differ by what wrappers put before them; what is then left on both sides is
known by its values: the same bytes, the same bytes in another layout, or values so close that no
other tensor comes near. A module's small tensors follow its large ones, those of which there are
several alike (zeros, ones) too. What matching found by structure gives way where values say
otherwise.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import permutations
from typing import NamedTuple

import numpy as np

from regraft import operations
from regraft.lineage.fingerprints import constant, digest, digest_in_any_order, sample
from regraft.operations import AnyOp, Transpose
from regraft.plans import Evidence, Graft, Plan, Side, Spec
from regraft.tensors import Catalogue, Read, TensorInfo

# Leading parts of names that wrappers add, at most so many.
_WRAPPERS = 2
PARTS = re.compile(r"[./]")
# Close values: at least so many of them, of this cosine once the mean is taken off, which no other
# tensor reaches by the margin. Samples that are compared, and pairs, at most.
VALUES, _COSINE, _MARGIN, SAMPLE, _PAIRS = 64, 0.8, 0.2, 1 << 15, 20_000
_AXES = 4


class _Pair(NamedTuple):
    source: str
    ops: tuple[AnyOp, ...]
    why: Evidence | None = None


def correspondence(
    base: Catalogue, read_base: Read, tuned: Catalogue, read_tuned: Read, known: Plan | None = None
) -> Plan:
    """The plan that makes of the base what the newer file was made from, as far as names and values
    tell; what has no counterpart is fresh.

    **Arguments:** `known`: a plan, such as matching gives, whose grafts hold where values do not
    tell of others.
    """
    pairs: dict[str, _Pair] = {}
    if known is not None:
        for graft in known.grafts.values():
            if graft.written and len(graft.sources) == 1:
                why = max(graft.evidence, key=lambda e: e.weight, default=None)
                pairs[graft.target] = _Pair(graft.sources[0], graft.ops, why)
    search = _Search(base, read_base, tuned, read_tuned, pairs)
    search.by_name()
    search.by_name_without_wrappers()
    search.by_transposition()
    doubtful = search.without_doubtful(known)
    search.by_content()
    search.by_layout()
    search.by_closeness()
    search.by_module()
    search.by_default(doubtful)
    search.by_module()
    search.by_content(unique=False)
    return search.plan(known)


def share_a_vocabulary(ours: Catalogue, theirs: Catalogue) -> bool:
    """Whether half of the smaller side's tensors are called the same on the other, but for what
    wrappers put before the names."""
    best = max(
        len(_unique(ours.values(), m).keys() & _unique(theirs.values(), n).keys())
        for m in range(_WRAPPERS + 1)
        for n in range(_WRAPPERS + 1)
    )
    return 2 * best >= min(len(ours), len(theirs))


class _Search:
    """What is paired so far, and what is left on both sides."""

    def __init__(
        self,
        base: Catalogue,
        read_base: Read,
        tuned: Catalogue,
        read_tuned: Read,
        pairs: dict[str, _Pair],
    ) -> None:
        self.base, self.tuned, self.pairs = base, tuned, pairs
        self.read_base, self.read_tuned = read_base, read_tuned

    def left(self) -> tuple[list[TensorInfo], list[TensorInfo]]:
        used = {pair.source for pair in self.pairs.values()}
        return (
            [info for info in self.base.values() if info.name not in used],
            [info for info in self.tuned.values() if info.name not in self.pairs],
        )

    def by_name(self) -> None:
        used = {pair.source for pair in self.pairs.values()}
        for name, info in self.tuned.items():
            twin = self.base.get(name)
            if name not in self.pairs and name not in used and twin and twin.shape == info.shape:
                self.pairs[name] = _Pair(name, ())

    def by_name_without_wrappers(self) -> None:
        """Where most names agree once leading parts are taken off, those agree. Where they are
        taken off both sides, most of the files' names must: of a few that are left over, `weight`
        is like `weight` in any two heads."""
        ours, theirs = self.left()
        some, all_ = min(len(ours), len(theirs)), min(len(self.base), len(self.tuned))
        best: dict[str, str] = {}
        for m in range(_WRAPPERS + 1):
            for n in range(_WRAPPERS + 1):
                inner = _unique(ours, m)
                found = {
                    info.name: inner[key].name
                    for key, info in _unique(theirs, n).items()
                    if key in inner and inner[key].shape == info.shape
                }
                if 2 * len(found) >= max(1, all_ if m and n else some):
                    best = max(best, found, key=len)
        why = Evidence("names", 1.0, "the same name, but for what stands before it")
        self.pairs |= {name: _Pair(source, (), why) for name, source in best.items()}

    def by_transposition(self) -> None:
        """Square tensors under other names may lie the other way round: their values tell."""
        for name, pair in list(self.pairs.items()):
            info = self.tuned[name]
            ways = [axes for axes in _axes_between(info.shape, info.shape) if len(axes) > 1]
            if pair.source == name or pair.ops or len(ways) < 2 or info.size < VALUES:
                continue
            before, after = self.read_base(pair.source, None), self.read_tuned(name, None)
            if before.shape != after.shape:
                continue
            close = {axes: correlation(before.transpose(axes), after) for axes in ways}
            best = max(close, key=lambda axes: close[axes])
            if close[best] >= _COSINE and close[best] > close[ways[0]] + _MARGIN:
                why = Evidence("values", close[best], f"close values, of cosine {close[best]:.4f}")
                self.pairs[name] = _Pair(pair.source, (Transpose(best),), why)

    def without_doubtful(self, known: Plan | None) -> dict[str, _Pair]:
        """Takes out, for other values to be sought first, what `known` paired by anything but
        values and values do not bear out."""
        doubtful: dict[str, _Pair] = {}
        for name, graft in known.grafts.items() if known is not None else ():
            pair = self.pairs.get(name)
            if (
                pair is None
                or graft.keeps
                or (pair.source, pair.ops) != (*graft.sources, graft.ops)
            ):
                continue
            before = operations.run(pair.ops, (self.read_base(pair.source, None),))
            if correlation(before, self.read_tuned(name, None)) < _COSINE:
                doubtful[name] = self.pairs.pop(name)
        return doubtful

    def by_default(self, doubtful: dict[str, _Pair]) -> None:
        """Pairs of which neither side was found elsewhere; where the rest of a module was found in
        another one than was thought, with the tensor of that name there."""
        homes: dict[str, set[str]] = defaultdict(set)
        for name, pair in self.pairs.items():
            homes[_module(name)].add(_module(pair.source))
        used = {pair.source for pair in self.pairs.values()}
        for name, pair in doubtful.items():
            thought, known = _module(pair.source), homes.get(_module(name), set())
            if name in self.pairs or (known and thought not in known and len(known) > 1):
                continue
            home = thought if not known or thought in known else next(iter(known))
            source = home + _last(pair.source)
            same = source in self.base and self.base[source].shape == self.base[pair.source].shape
            if same and source not in used:
                self.pairs[name] = pair._replace(source=source)
                used.add(source)

    def by_content(self, *, unique: bool = True) -> None:
        """The same bytes in the same shape: at first where no other tensor has them, in the end of
        several alike the first by the first."""
        ours, theirs = _alike(*self.left(), key=lambda info: (info.shape, info.dtype))
        known, wanted = (
            _by_digest(infos, read)
            for infos, read in ((ours, self.read_base), (theirs, self.read_tuned))
        )
        for key in known.keys() & wanted.keys():
            sources, targets = known[key], wanted[key]
            alone = len(sources) == len(targets) == 1
            if unique and not (alone and not constant(self.read_tuned(targets[0].name, None))):
                continue
            if not alone and not targets[0].size:
                continue
            text = "the same values to the bit"
            why = Evidence("values", 1.0 if unique else 0.5, text if alone else f"{text} as others")
            for source, target in zip(sources, targets, strict=False):
                self.pairs[target.name] = _Pair(source.name, (), why)

    def by_layout(self) -> None:
        """The same bytes once axes are permuted."""
        why = Evidence("values", 1.0, "the same values to the bit, in another layout")
        ours, theirs = _alike(
            *self.left(), key=lambda info: (tuple(sorted(_sizes(info))), info.dtype)
        )
        known: dict[int, list[TensorInfo]] = defaultdict(list)
        for info in ours:
            known[digest_in_any_order(self.read_base, info)].append(info)
        for info in theirs:
            twins = known.get(digest_in_any_order(self.read_tuned, info))
            if not twins or constant(after := self.read_tuned(info.name, None)):
                continue
            for twin in twins:
                ops = layout_of(self.read_base(twin.name, None), after)
                if ops:
                    self.pairs[info.name] = _Pair(twin.name, ops, why)
                    twins.remove(twin)
                    break

    def by_closeness(self) -> None:
        """Values so close that no other tensor of either side comes near."""
        ours, theirs = _alike(*self.left(), key=lambda info: tuple(sorted(_sizes(info))))
        ours, theirs = ([i for i in side if i.size >= VALUES] for side in (ours, theirs))
        if len(ours) * len(theirs) > _PAIRS:
            return
        found: list[tuple[float, str, str, tuple[AnyOp, ...]]] = []

        @cache
        def before(name: str, axes: tuple[int, ...]) -> np.ndarray:
            return _direction(self.read_base(name, None).transpose(axes))

        for info in theirs:
            after = _direction(self.read_tuned(info.name, None))
            for twin in ours:
                for axes in _axes_between(twin.shape, info.shape):
                    ops = () if axes == tuple(range(len(axes))) else (Transpose(axes),)
                    found.append(
                        (float(before(twin.name, axes) @ after), info.name, twin.name, ops)
                    )
        found.sort(key=lambda item: -item[0])
        done: set[str] = set()
        for cosine, name, twin, ops in found:
            if cosine < _COSINE:
                break
            rivals = (
                c for c, n, t, o in found
                if (n == name or t == twin) and (n, t, o) != (name, twin, ops)
                and not (n in self.pairs or t in done)
            )  # fmt: skip
            if name in self.pairs or twin in done or max(rivals, default=0.0) > cosine - _MARGIN:
                continue
            why = Evidence("values", cosine, f"close values, of cosine {cosine:.4f}")
            self.pairs[name] = _Pair(twin, ops, why)
            done.add(twin)

    def by_module(self) -> None:
        """Tensors of modules of which another tensor was paired: alone in their shape there."""
        ours, theirs = self.left()
        moves = {(_module(pair.source), _module(name)) for name, pair in self.pairs.items()}
        for one, other in sorted(moves):
            if one == other:
                continue
            sources = [info for info in ours if _module(info.name) == one]
            for info in theirs:
                if _module(info.name) != other or info.name in self.pairs:
                    continue
                same = [s for s in sources if s.shape == info.shape]
                named = [s for s in same if _last(s.name) == _last(info.name)] or same
                rivals = [t for t in theirs if _module(t.name) == other and t.shape == info.shape]
                if len(named) == 1 and (len(rivals) == 1 or named != same):
                    why = Evidence("attachment", 0.5, f"with the other tensors of {one}")
                    self.pairs[info.name] = _Pair(named[0].name, (), why)
                    sources.remove(named[0])

    def plan(self, known: Plan | None) -> Plan:
        grafts: dict[str, Graft] = {}
        for name, info in self.tuned.items():
            spec = Spec(info.shape, info.dtype)
            held = known.grafts.get(name) if known else None
            pair = self.pairs.get(name)
            if held is not None and held.written and len(held.sources) != 1:
                grafts[name] = held
            elif pair is not None:
                why = (pair.why,) if pair.why else ()
                kind = "convert" if pair.ops else "copy"
                grafts[name] = Graft(name, spec, kind, (pair.source,), pair.ops, why)
            else:
                grafts[name] = Graft(name, spec, "fresh")
        used = {source for graft in grafts.values() for source in graft.sources}
        return Plan(
            source=Side.of(self.base),
            target=Side.of(self.tuned),
            grafts=grafts,
            unused=tuple(name for name in self.base if name not in used),
        )


def layout_of(before: np.ndarray, after: np.ndarray) -> tuple[AnyOp, ...] | None:
    """The permutation of axes that makes one array of the other, to the bit; `None` for none."""
    width = f"u{before.dtype.itemsize}"
    if before.dtype != after.dtype or before.dtype.itemsize not in (1, 2, 4, 8):
        return None
    one, other = before.view(width), after.view(width)
    for axes in _axes_between(before.shape, after.shape):
        if np.array_equal(one.transpose(axes), other):
            return () if axes == tuple(range(len(axes))) else (Transpose(axes),)
    return None


def _axes_between(before: tuple[int, ...], after: tuple[int, ...]) -> Iterable[tuple[int, ...]]:
    if len(before) != len(after) or len(before) > _AXES:
        return [tuple(range(len(before)))] if before == after else []
    ways = permutations(range(len(before)))
    return [axes for axes in ways if tuple(before[a] for a in axes) == after]


def _by_digest(infos: Iterable[TensorInfo], read: Read) -> dict[str, list[TensorInfo]]:
    found: dict[str, list[TensorInfo]] = defaultdict(list)
    for info in infos:
        found[f"{info.dtype}{info.shape}{digest(read, info)}"].append(info)
    return found


def correlation(before: np.ndarray, after: np.ndarray) -> float:
    """Of the values of two tensors of one size, or of a sample of them; 0 where one is constant."""
    return float(_direction(before) @ _direction(after))


def _direction(array: np.ndarray) -> np.ndarray:
    """A sample of the values without their mean, of length 1; zeros where there is no direction:
    where all are the same, or too small or large to be squared."""
    values = sample(array, SAMPLE)
    if constant(values):
        return np.zeros_like(values)
    with np.errstate(over="ignore", under="ignore"):
        values = values - values.mean()
        length = float(np.linalg.norm(values))
    return values / length if 0 < length < float("inf") else np.zeros_like(values)


def _alike(
    ours: Sequence[TensorInfo], theirs: Sequence[TensorInfo], key: object
) -> tuple[list[TensorInfo], list[TensorInfo]]:
    """Those of both sides that have somebody of their kind on the other."""
    assert callable(key)
    common = {key(info) for info in ours} & {key(info) for info in theirs}
    return [i for i in ours if key(i) in common], [i for i in theirs if key(i) in common]


def _unique(infos: Iterable[TensorInfo], count: int) -> dict[str, TensorInfo]:
    """By name without its first `count` parts, where just one has it."""
    found: dict[str, list[TensorInfo]] = defaultdict(list)
    for info in infos:
        ends = [m.end() for m in PARTS.finditer(info.name)]
        if len(ends) >= count:
            found[info.name[ends[count - 1] :] if count else info.name].append(info)
    return {key: some[0] for key, some in found.items() if len(some) == 1}


def _sizes(info: TensorInfo) -> tuple[int, ...]:
    return info.shape


def _module(name: str) -> str:
    return name[: -len(_last(name))]


def _last(name: str) -> str:
    return PARTS.split(name)[-1]
