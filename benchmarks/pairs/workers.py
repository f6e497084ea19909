"""Child processes that run pairs in turn, each within its time, frameworks loaded once."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

# Building also loads frameworks, which takes long on a busy machine.
BUILD_SECONDS = 180.0
Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What to do with one pair: `parts` are `check`, `sensitivity`, `plain`, `probe`, `told` or the
    names of rivals, done in turn."""

    name: str
    parts: tuple[str, ...]
    seconds: float = 20.0


class OutOfTime(BaseException):
    """Raised inside a part that takes too long; no `except Exception` on its way catches it."""


def run(
    tasks: Iterable[Task], *, processes: int, seconds: float, done: Callable[[Row], None]
) -> None:
    """Runs tasks on `processes` children; `done` gets each row in the order of finishing.

    A row holds a verdict by part. A part that takes longer than `seconds` is interrupted and gets
    `timeout`. Where that does not help, its process is ended, and the other parts go on in a new
    one; so they do where a process dies, which is `crashed`.
    """
    queue = list(tasks)
    lock = threading.Lock()

    def loop() -> None:
        child: _Child | None = None
        while True:
            with lock:
                task = queue.pop(0) if queue else None
            if task is None:
                break
            row: Row = {"name": task.name}
            while left := tuple(part for part in task.parts if part not in row):
                child = child or _Child()
                row |= child.ask(Task(task.name, left, seconds))
                if not child.alive:
                    child = None
            with lock:
                done(row)
        if child:
            child.end()

    threads = [threading.Thread(target=loop) for _ in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class _Child:
    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there,), daemon=True)
        self._process.start()
        there.close()
        self.alive = True

    def ask(self, task: Task) -> Row:
        """What came of the parts, up to and with the first that failed to come."""
        row: Row = {}
        limit = BUILD_SECONDS
        try:
            self._here.send(task)
            while self._here.poll(limit):
                row |= self._here.recv()
                limit = 2 * task.seconds + 10
                if all(part in row for part in task.parts):
                    return row
            verdict, reason = "timeout", f"more than {limit:.0f} s"
        except (EOFError, OSError):
            verdict, reason = "crashed", "the process died"
        self.end()
        failure = {"verdict": verdict, "reason": reason, "seconds": limit, "details": ()}
        return row | {next(part for part in task.parts if part not in row): failure}

    def end(self) -> None:
        self.alive = False
        self._process.terminate()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()


def _serve(connection: Connection) -> None:
    # Libraries print; only the rows of the parent are output.
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    prepare()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            try:
                task: Task = connection.recv()
            except EOFError:
                return
            for row in run_one(task):
                connection.send(row)
            gc.collect()


def prepare() -> None:
    """Settings of the frameworks, before any of them is imported."""
    import warnings

    warnings.simplefilter("ignore")
    # Keras on torch needs no compilation, which takes most of the time on its other backends.
    os.environ.setdefault("KERAS_BACKEND", "torch")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    import torch

    torch.set_num_threads(1)
    # torchvision built for CUDA lacks two operators beside a CPU torch; their schemas suffice.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # a matching build brings them itself
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    sys.modules[__name__].__dict__["_kept_alive"] = library


def run_one(task: Task) -> Iterator[Row]:
    """All that is asked of one pair, in this process; part by part."""
    from benchmarks.pairs import judging
    from benchmarks.pairs.collection import collect

    started = time.perf_counter()
    try:
        import torch

        torch.manual_seed(0)  # for what pairs do not fill themselves
        bench = judging.Bench(collect()[task.name])
    except Exception as error:
        told = tuple(traceback.format_exc().splitlines()[-8:])
        reason = f"{type(error).__name__}: {error}"[:200]
        broken = judging.Verdict("broken", reason, details=told).to_json()
        yield dict.fromkeys(task.parts, broken)
        return
    yield {"build_seconds": round(time.perf_counter() - started, 2)}
    with bench:
        for part in task.parts:
            try:
                with _interrupted(task.seconds):
                    verdict = _part(bench, part)
            except OutOfTime:
                reason = f"more than {task.seconds:.0f} s"
                verdict = judging.Verdict("timeout", reason, seconds=task.seconds)
            yield {part: verdict.to_json()}


@contextlib.contextmanager
def _interrupted(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` in this process once the time is over."""

    def ring(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _part(bench: Any, part: str) -> Any:
    from benchmarks.pairs import judging
    from benchmarks.pairs.rivals import RIVALS

    try:
        if part in ("check", "sensitivity"):
            rows = judging.check(bench, sensitivity=part == "sensitivity")
            unnoticed = all(row.startswith("unnoticed") for row in rows)
            word = "sound" if unnoticed else "broken"
            return judging.Verdict(word, "; ".join(rows[:20]))
        if part in RIVALS:
            return judging.judge_rival(bench, RIVALS[part])
        return judging.judge(bench, probe=part == "probe", told=part == "told")
    except Exception as error:  # of the pair's or the rival's own code
        told = tuple(traceback.format_exc().splitlines()[-8:])
        return judging.Verdict("crashed", f"{type(error).__name__}: {error}"[:200], details=told)
