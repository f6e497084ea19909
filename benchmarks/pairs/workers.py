"""Child processes that run pairs one after another, each within its time, frameworks loaded once."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any


@dataclass(frozen=True)
class Task:
    """What to do with one pair."""

    name: str
    probe: bool = True
    rivals: bool = False
    check: bool = False
    sensitivity: bool = False


Row = dict[str, Any]


def run(
    tasks: Iterable[Task], *, processes: int, seconds: float, done: Callable[[Row], None]
) -> None:
    """Runs tasks on `processes` children; `done` gets each row in the order of finishing.

    A pair that takes longer than `seconds` gets the verdict `timeout` and its process is ended;
    a process that dies gives `crashed`.
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
            child = child or _Child()
            row = child.ask(task, seconds)
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

    def ask(self, task: Task, seconds: float) -> Row:
        """All parts of the row; each has `seconds` to come."""
        row: Row = {"name": task.name}
        try:
            self._here.send(task)
            while self._here.poll(seconds):
                part: Row = self._here.recv()
                if part.pop("last", False):
                    return row
                row |= part
            failure = {"verdict": "timeout", "reason": f"more than {seconds:.0f} s"}
        except (EOFError, OSError):
            failure = {"verdict": "crashed", "reason": "the process died"}
        self.end()
        failure |= {"seconds": seconds, "details": ()}
        return row | {"probe" if "plain" in row else "plain": failure}

    def end(self) -> None:
        self.alive = False
        self._process.terminate()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()


def _serve(connection: Connection) -> None:
    prepare()
    # Libraries print; only the rows of the parent are output.
    quiet = open(os.devnull, "w")  # noqa: SIM115, PTH123
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        while True:
            try:
                task: Task = connection.recv()
            except EOFError:
                return
            for part in run_one(task):
                connection.send(part)
            connection.send({"last": True})
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
    """All that is asked of one pair, in this process; part by part, so that a slow part loses
    no other."""
    from benchmarks.pairs import judging
    from benchmarks.pairs.collection import collect
    from benchmarks.pairs.rivals import RIVALS

    pair = collect()[task.name]
    started = time.perf_counter()
    try:
        import torch

        torch.manual_seed(0)  # for what pairs do not fill themselves
        bench = judging.Bench(pair)
    except Exception as error:
        told = tuple(traceback.format_exc().splitlines()[-8:])
        reason = f"{type(error).__name__}: {error}"[:200]
        yield {"plain": judging.Verdict("broken", reason, details=told).to_json()}
        return
    yield {"build_seconds": round(time.perf_counter() - started, 2)}
    if task.check:
        try:
            yield {"check": judging.check(bench, sensitivity=task.sensitivity)}
        except Exception as error:  # of the pair's own code
            yield {"check": [f"{type(error).__name__}: {error}"]}
        return
    yield {"plain": judging.judge(bench).to_json()}
    if task.rivals:
        yield {"rivals": {name: _rival(bench, rival) for name, rival in RIVALS.items()}}
    if task.probe and pair.expects != "transfer":
        yield {"probe": judging.judge(bench, probe=True).to_json()}


def _rival(bench: Any, rival: Any) -> Row:
    from benchmarks.pairs import judging

    try:
        return judging.judge_rival(bench, rival).to_json()
    except Exception as error:
        return judging.Verdict("crashed", f"{type(error).__name__}: {error}"[:200]).to_json()
