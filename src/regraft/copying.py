"""Values on their way: copied, hashed and searched for NaN in one pass over blocks that fit a
processor's cache, two tensors at a time.

Reading a block again while it is in the cache costs next to nothing; three passes over a gigabyte
cost three times its memory's bandwidth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xxhash

from regraft.values import bits, not_finite

if TYPE_CHECKING:
    from regraft.tensors import Array

_BLOCK = 1 << 20
_AT_ONCE = 2


class Survey(NamedTuple):
    """What one pass over a tensor shows: xxh3-128 of its bytes in row-major order, and how many of
    its values are NaN or Inf."""

    digest: str
    odd: int


class Copied(NamedTuple):
    """`meant` of what was to be written, `held` of what is there afterwards."""

    meant: Survey
    held: str


def survey(array: Array) -> Survey:
    """Hashes an array and counts what is not a number."""
    digest = xxhash.xxh3_128()
    odd = 0
    for block in _blocks(array):
        digest.update(bits(block).data)
        odd += not_finite(block)
    return Survey(digest.hexdigest(), odd)


def copy(array: Array, memory: Array) -> Copied:
    """Copies an array into memory of the same shape and dtype; both row-major."""
    meant, held = xxhash.xxh3_128(), xxhash.xxh3_128()
    odd = 0
    for block, place in zip(_blocks(array), _blocks(memory), strict=True):
        np.copyto(place, block)
        meant.update(bits(block).data)
        held.update(bits(place).data)
        odd += not_finite(place)
    return Copied(Survey(meant.hexdigest(), odd), held.hexdigest())


def copy_all(
    pairs: Sequence[tuple[Array, Array]],
) -> tuple[list[Copied], KeyboardInterrupt | None]:
    """`copy` for several pairs, in their order. An interrupt waits until all is copied, and is
    returned."""
    if not pairs:
        return [], None
    interrupt: KeyboardInterrupt | None = None
    copied: dict[int, Copied] = {}
    left = deque(enumerate(pairs))

    def lane() -> None:
        while left:
            try:
                index, pair = left.popleft()
            except IndexError:  # the other lane took the last one
                return
            copied[index] = copy(*pair)

    with ThreadPoolExecutor(_AT_ONCE, "regraft-copy") as pool:
        lanes: list[Future[None]] = []
        while len(lanes) < _AT_ONCE or not all(one.done() for one in lanes):
            try:
                while len(lanes) < _AT_ONCE:
                    lanes.append(pool.submit(lane))
                wait(lanes)
            except KeyboardInterrupt as error:
                interrupt = error
    for one in lanes:
        one.result()
    return [copied[index] for index in range(len(pairs))], interrupt


class Surveys:
    """Surveys beside the writing: of each tensor before and after, a few tensors at once."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_AT_ONCE, "regraft-survey")
        self._pending: deque[tuple[str, Future[Survey], Future[Survey]]] = deque()
        self._found: dict[str, Copied] = {}

    def __enter__(self) -> Surveys:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def begin(self, array: Array) -> Future[Survey]:
        """Begins with what is to be written."""
        while len(self._pending) >= _AT_ONCE:
            self._finish()
        return self._pool.submit(survey, array)

    def end(self, name: str, meant: Future[Survey], held: Array) -> None:
        """Goes on with what is there afterwards."""
        self._pending.append((name, meant, self._pool.submit(survey, held)))

    def found(self) -> dict[str, Copied]:
        while self._pending:
            self._finish()
        return self._found

    def _finish(self) -> None:
        name, meant, held = self._pending.popleft()
        self._found[name] = Copied(meant.result(), held.result().digest)


def _blocks(array: Array) -> Iterable[Array]:
    flat = np.ascontiguousarray(array).reshape(-1)
    step = max(1, _BLOCK // max(1, flat.itemsize))
    return (flat[start : start + step] for start in range(0, max(1, flat.size), step))


def sharing(memories: Mapping[str, Array]) -> list[list[str]]:
    """Names whose memories overlap, in groups of two and more."""
    spans = sorted((*_span(memory), name) for name, memory in memories.items() if memory.nbytes)
    groups: list[list[str]] = []
    end = -1
    for start, stop, name in spans:
        if start < end:
            groups[-1].append(name)
        else:
            groups.append([name])
        end = max(end, stop)
    return [names for names in groups if len(names) > 1]


class Overlaps:
    """Whether arrays lie in memory that is to be written."""

    def __init__(self, memories: Iterable[Array]) -> None:
        spans = sorted(span for memory in memories if (span := _span(memory))[0] < span[1])
        self._starts = np.array([start for start, _ in spans], np.int64)
        # Memories may be tied and so overlap: what counts is the furthest end of all that begin
        # before a place.
        self._ends = np.maximum.accumulate(np.array([end for _, end in spans], np.int64))

    def __call__(self, array: Array) -> bool:
        start, stop = _span(array)
        before = int(np.searchsorted(self._starts, stop))
        return start < stop and before > 0 and int(self._ends[before - 1]) > start


def _span(array: Array) -> tuple[int, int]:
    start = array.__array_interface__["data"][0]
    return start, start + array.nbytes
