"""How to put a model back as it was: what is overwritten is kept, in memory up to a budget and in
a temporary file beyond it, so that loading needs no second copy of the model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import numpy as np

from regraft.errors import TransferError
from regraft.sinks import Sink
from regraft.values import bits

if TYPE_CHECKING:
    from regraft.tensors import Array

# Bytes of former values that are held in memory.
BUDGET = 64 << 20


class Journal:
    """How to put tensors back as they were before they were written.

    What a sink can undo without a copy (`Sink.undo`) is left to it. A temporary file is written by
    a thread of its own while other tensors are loaded; where there is no room for one, memory is
    used after all.
    """

    def __init__(self, sink: Sink, budget: int = BUDGET) -> None:
        self._sink = sink
        self._left = budget
        self._undo: dict[str, Callable[[], None]] = {}
        self._kept: dict[str, Future[Callable[[], Array]]] = {}
        self._file: IO[bytes] | None = None
        self._end = 0
        self._writer: ThreadPoolExecutor | None = None

    def remember(self, name: str) -> None:
        """To be called before a tensor is written; what it was at the first call counts. The tensor
        may be written once `ready` has returned."""
        if name in self._undo or name in self._kept:
            return
        undo = self._sink.undo(name)
        if undo is not None:
            self._undo[name] = undo
            return
        held = self._sink.look(name)
        if held.nbytes <= self._left:
            self._left -= held.nbytes
            copied = held.copy()
            self._undo[name] = lambda: self._put_back(name, copied)
            return
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "regraft-journal")
        self._kept[name] = self._writer.submit(self._spill, held)

    def ready(self, name: str) -> None:
        """Waits until a tensor that was remembered may be written."""
        kept = self._kept.pop(name, None)
        if kept is not None:
            former = kept.result()
            self._undo[name] = lambda: self._put_back(name, former())

    def _put_back(self, name: str, former: Array) -> None:
        """What cannot be written was mostly not changed either."""
        held = self._sink.look(name)
        if not np.array_equal(bits(held), bits(former)):
            self._sink.write(name, former)

    def _spill(self, held: Array) -> Callable[[], Array]:
        place, size = self._end, held.nbytes
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the journal)
            file = self._file
            file.seek(place)
            file.write(bits(held).data)
            file.flush()
        except OSError:  # no room there
            copied = held.copy()
            return lambda: copied
        self._end += size
        shape, dtype = held.shape, held.dtype

        def former() -> Array:
            file.seek(place)
            return np.frombuffer(file.read(size), np.uint8).view(dtype).reshape(shape)

        return former

    def undo(self) -> None:
        """Puts everything back, last things first, and closes. An interrupt waits until that is
        done.

        **Raises** `TransferError`, once the rest is as it was, for what cannot be put back.
        """
        problems: list[str] = []
        interrupt: BaseException | None = None
        while self._kept or self._undo:
            try:
                wait(self._kept.values())  # of tensors that were never written
                self._kept.clear()
                while self._undo:
                    name = next(reversed(self._undo))
                    try:
                        self._undo[name]()
                    except Exception as error:  # the framework's own: out of memory, a lost device
                        problems.append(f"{name}: {type(error).__name__}: {error}"[:300])
                    del self._undo[name]
            except BaseException as error:  # that step is done once more
                interrupt = error
        self._sink.finish()
        try:
            self._sink.settle()
        except Exception as error:  # the model's own code
            problems.append(f"the model's own hooks: {type(error).__name__}: {error}"[:300])
        self.close()
        if problems:
            raise TransferError(
                "the model",
                found=f"{len(problems)} tensors that could not be put back as they were",
                expected="the values from before",
                hint="build the model again",
                problems=problems,
            )
        if interrupt is not None:
            raise interrupt

    def close(self) -> None:
        """Lets go of the former values: what was written stays."""
        self._undo.clear()
        if self._writer is not None:
            self._writer.shutdown()
        self._kept.clear()
        if self._file is not None:
            self._file.close()
        self._file = None


@contextmanager
def kept(sink: Sink) -> Generator[Journal]:
    """Puts what is written under the journal back at the end: for trying a plan out."""
    journal = Journal(sink)
    try:
        yield journal
    finally:
        journal.undo()
