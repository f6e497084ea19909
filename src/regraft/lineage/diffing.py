"""Differences of two files, streamed through a plan from one to the other.

Tensors are read in the newer file's order, a piece at a time; two threads measure while the next
piece is read. However large the files are, no more than a few pieces are held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from regraft import operations
from regraft.lineage.correspondence import layout_of
from regraft.lineage.entries import Diff, Entry, Status
from regraft.lineage.fingerprints import digest_in_any_order, rows_in_any_order
from regraft.lineage.measuring import Change, compared, effective_rank, pieces
from regraft.operations import AnyOp, Cast
from regraft.plans import Graft, Plan, Remark
from regraft.tensors import CODED, Catalogue, Read, Slices, TensorInfo, numpy_dtype
from regraft.transfer import Progress, make
from regraft.values import bits, let_go

if TYPE_CHECKING:
    from regraft.tensors import Array

_THREADS, _WAITING = 2, 4
# A tensor whose values are those of the base in another order has the same sum of squares, but for
# what rounding does to it, and points elsewhere.
_SAME_NORM, _ELSEWHERE = 1e-4, 0.99
# The effective rank takes a singular value decomposition: the larger side of a matrix, at most.
_RANK_SIDE = 8192
# A training from another start, and one that moved everything far: what median cosines of matrices
# of two trainings tell.
_UNRELATED, _FAR, _FEW = 0.3, 0.99, 3


def diff(
    plan: Plan,
    base: Catalogue,
    read: Read,
    tuned: Catalogue,
    after: Read,
    *,
    given: bool = True,
    ranks: bool = False,
    remarks: Iterable[Remark] = (),
    progress: Progress | None = None,
) -> Diff:
    """Compares what a plan makes of the base with what the newer file holds.

    **Arguments:**

    - `given`: whether the plan is known to hold (a person's, or a lineage); a plan that was found
      from names and values is evidence itself: what it renames is told as `renamed`.
    - `ranks`: whether to take the effective rank of each change, too.
    - `remarks`: what is known of the two files besides.
    """
    plan = plan if given else _uncast(plan)
    idle = {graft.target for graft in plan.grafts.values() if graft.counter and given}
    sides = _Sides(plan, base, read, tuned, after)
    entries: dict[str, Entry] = {}
    infos = [info for name, info in tuned.items() if name not in idle]
    for info, change in sides.changes(infos):
        graft = plan.grafts.get(info.name)
        if change is None or graft is None:
            entries[info.name] = Entry("fresh", info.shape, info.dtype)
        else:
            entries[info.name] = sides.entry(graft, info, change, given, ranks)
        if progress:
            progress(info.name, info.nbytes)
    met = {source for graft in plan.grafts.values() for source in graft.sources}
    for name, info in base.items():
        if name not in met:
            gone = Entry("gone", info.shape, info.dtype)
            # A base's tensor may be called as one of the newer file that is another.
            entries[name if name not in entries else f"{name} ({base.label})"] = gone
    told = (*remarks, *_remarks(tuned.label, entries), *_untied(plan, base, entries))
    return Diff(base.label, tuned.label, entries, told)


def _uncast(plan: Plan) -> Plan:
    """A plan that was found, without its casts: that values were rounded is a difference."""
    bare = {
        name: msgspec.structs.replace(
            graft, ops=tuple(op for op in graft.ops if not isinstance(op, Cast))
        )
        for name, graft in plan.grafts.items()
    }
    return msgspec.structs.replace(plan, grafts=bare)


class _Sides:
    """Both files, seen through the plan."""

    def __init__(
        self, plan: Plan, base: Catalogue, read: Read, tuned: Catalogue, after: Read
    ) -> None:
        self.plan, self.base, self.read = plan, base, read
        self.tuned, self.after = tuned, after

    def before(self, graft: Graft, slices: Slices | None) -> Array:
        """What the plan makes of the base, or a part of it; entries that stayed as the model had
        them are no difference."""
        return make(self.plan, graft, self.read, lambda name: self.after(name, None), slices)

    def changes(self, infos: list[TensorInfo]) -> Iterator[tuple[TensorInfo, Change | None]]:
        """Each tensor with its change, `None` where the plan makes nothing for it; in order."""
        waiting: deque[tuple[TensorInfo, list[Future[Change]] | None]] = deque()
        with ThreadPoolExecutor(_THREADS) as pool:
            for info in infos:
                graft = self.plan.grafts.get(info.name)
                if graft is None or not graft.written or graft.spec.shape != info.shape:
                    waiting.append((info, None))
                    continue
                futures: list[Future[Change]] = []
                waiting.append((info, futures))
                for slices in pieces(info.shape, numpy_dtype(info.dtype).itemsize):
                    futures.append(
                        pool.submit(
                            _measured, self.before(graft, slices), self.after(info.name, slices)
                        )
                    )
                    _wait([f for _, fs in waiting for f in fs or ()])
                while waiting and all(f.done() for f in waiting[0][1] or ()):
                    yield _summed(*waiting.popleft())
            while waiting:
                yield _summed(*waiting.popleft())

    def entry(
        self, graft: Graft, info: TensorInfo, change: Change, given: bool, ranks: bool
    ) -> Entry:
        base = " + ".join(graft.sources)
        base = "" if base == info.name else base
        ops = tuple(op for op in graft.ops if not isinstance(op, Cast))
        note = ""
        status: Status = "identical" if change.same else "moved"
        if change.same and base and not given:
            status = "renamed"
        elif change.same and ops and not given:  # under its own name it is not what it was
            status, note = "moved", "the same values in another layout"
        if not change.same:
            shown, note = self._rearranged(graft, info, change)
            ops = (*ops, *shown)
        rank = self._rank(graft, info) if ranks and not change.same else float("nan")
        measured = change.rel_l2, change.largest, change.cosine
        if info.size and change.odd >= info.size and not change.same:  # nothing to measure
            measured = float("nan"), float("nan"), float("nan")
        return Entry(
            status, info.shape, info.dtype, *measured, base, ops, note, change.a**0.5, rank,
            change.odd, change.both**0.5 if measured[0] == measured[0] else float("nan"),
        )  # fmt: skip

    def _rank(self, graft: Graft, info: TensorInfo) -> float:
        shape = info.shape
        if len(shape) < 2 or max(shape[0], info.size // max(1, shape[0])) > _RANK_SIDE:
            return float("nan")
        wide = np.float64
        before = self.before(graft, None).astype(wide)
        return effective_rank(self.after(info.name, None).astype(wide) - before)

    def _rearranged(
        self, graft: Graft, info: TensorInfo, change: Change
    ) -> tuple[tuple[AnyOp, ...], str]:
        """How the base's very values were put into another order or dtype, where they were."""
        if graft.keeps:
            return (), ""
        if operations.dtype_of(graft.ops, self._dtypes(graft)) != info.dtype:
            rounded = self._rounded(graft, info)
            return (), f"the same values, cast to {info.dtype}" if rounded else ""
        if change.cosine > _ELSEWHERE or abs(change.a - change.b) > _SAME_NORM * change.a:
            return (), ""

        def made(_: str, slices: Slices | None) -> Array:
            return self.before(graft, slices)

        if digest_in_any_order(made, info) != digest_in_any_order(self.after, info):
            return (), ""
        before, after = self.before(graft, None), self.after(info.name, None)
        ops = layout_of(np.ascontiguousarray(before), np.ascontiguousarray(after))
        if ops:
            return ops, "the same values, transposed"
        for axis in range(before.ndim):
            if rows_in_any_order(before, axis) == rows_in_any_order(after, axis):
                return (), f"the same values, permuted along axis {axis}"
        return (), "the same values, permuted"

    def _dtypes(self, graft: Graft) -> list[str]:
        names = (self.base[name].dtype for name in graft.sources)
        return ["float32" if name in CODED else name for name in names] or [graft.spec.dtype]

    def _rounded(self, graft: Graft, info: TensorInfo) -> bool:
        """Whether the newer values are the base's in another dtype, and nothing else."""
        dtype = numpy_dtype(info.dtype)
        with np.errstate(all="ignore"):
            return all(
                np.array_equal(
                    bits(self.before(graft, part).astype(dtype)), bits(self.after(info.name, part))
                )
                for part in pieces(info.shape, dtype.itemsize)
            )


def _measured(before: Array, after: Array) -> Change:
    change = compared(before, after)
    let_go(before)
    let_go(after)
    return change


def _wait(futures: list[Future[Change]]) -> None:
    """Until no more than a few pieces are under way."""
    while len(open_ := [f for f in futures if not f.done()]) > _WAITING:
        open_[0].result()


def _summed(
    info: TensorInfo, futures: list[Future[Change]] | None
) -> tuple[TensorInfo, Change | None]:
    if futures is None:
        return info, None
    total = Change()
    for future in futures:
        total += future.result()
    return info, total


def _untied(plan: Plan, base: Catalogue, entries: dict[str, Entry]) -> Iterator[Remark]:
    """Names of one tensor of the base that hold different values in the newer file."""
    made = {g.sources[0]: g.target for g in plan.grafts.values() if len(g.sources) == 1}
    for group in base.ties:
        names = [made[name] for name in group if made.get(name) in entries]
        changes = {(entries[n].l2, entries[n].max_abs, entries[n].cosine) for n in names}
        if len(changes) > 1:
            text = f"{' and '.join(names)} were one tensor, and are not any more"
            yield Remark("untied", names[0], text)


def _remarks(label: str, entries: dict[str, Entry]) -> Iterator[Remark]:
    """What the matrices say together: weights that all moved far are no fine-tuning of these."""
    matrices = [e for e in entries.values() if len(e.shape) > 1 and e.cosine == e.cosine]
    moved = [e for e in matrices if e.status == "moved" and not e.note]
    if len(moved) < _FEW or 2 * len(moved) <= len(matrices):
        return
    cosine = float(np.median([e.cosine for e in moved]))
    held = len(matrices) - len(moved)
    but = f", all but {held} of them" if held else ""
    if cosine < _UNRELATED:
        text = f"the weights do not correlate (median cosine {cosine:.2f}{but}): another training"
        yield Remark("unrelated", label, f"{text} from another start, not a fine-tuning")
    elif cosine < _FAR:
        text = f"weights moved everywhere{but}, and far (median cosine {cosine:.2f})"
        yield Remark("another-training", label, f"{text}: a related but different training, "
                     "not a fine-tuning that keeps part of the base")  # fmt: skip
