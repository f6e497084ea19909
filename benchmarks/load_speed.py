"""How long loading into live models takes, and how much memory beside the model and the file.

A file of 1 GiB, warm, of 16 MiB a tensor (256 MiB where memory is short; it says so). Every row is
a process of its own, which loaded a small file of the same kind before: imports and the making of
the model are not counted; medians, and each as a ratio to a peer in the same run. Memory is the
growth of what no file backs (RssAnon), without the model itself where it is made by loading.
Nothing here fails: it prints.

The bars: where tensors can be assigned, 1.3 times `torch.load(mmap=True)` with
`load_state_dict(assign=True)`; where not, 1.3 times a copy of the same bytes in memory; into Keras
1.5 times `set_weights` with arrays at hand; the largest tensor and 64 MiB of memory.

    python benchmarks/load_speed.py [--runs N] [--mib MIB]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MIB = 1 << 20
SIDE = 2048  # a matrix of 16 MiB
TENSOR = SIDE * SIDE * 4
# Row, its peer and the bar.
ROWS: dict[str, tuple[str, float]] = {
    "torch, mmap and assign": ("", 0),
    "regraft into a meta model": ("torch, mmap and assign", 1.3),
    "copy in memory": ("", 0),
    "torch, mmap and copy": ("", 0),
    "regraft in place": ("copy in memory", 1.3),
    "regraft from a live model": ("copy in memory", 1.3),
}
for backend in ("tensorflow", "torch", "jax"):
    ROWS[f"keras set_weights, {backend}"] = ("", 0)
    ROWS[f"regraft into Keras, {backend}"] = (f"keras set_weights, {backend}", 1.5)


def torch_model(count: int, device: str) -> Any:
    import torch

    with torch.device(device):
        layers = [torch.nn.Linear(SIDE, SIDE, bias=False) for _ in range(count)]
        return torch.nn.Sequential(*layers)


def keras_model(count: int) -> Any:
    import keras

    dense = keras.layers.Dense
    layers = [dense(SIDE, use_bias=False, kernel_initializer="ones") for _ in range(count)]
    return keras.Sequential([keras.layers.Input((SIDE,)), *layers])


def prepared(row: str, folder: Path, count: int) -> tuple[Callable[[], object], int]:
    """What is timed, ready to go, and the bytes that it makes for good."""
    made = count * TENSOR
    if "eras" in row:
        return _keras(row, folder, count), 0
    import torch

    import regraft as rg

    path, small = folder / "model.pth", folder / "small.pth"
    if row in ("torch, mmap and assign", "torch, mmap and copy"):
        assign = row.endswith("assign")
        model = torch_model(count, "meta" if assign else "cpu")
        torch_model(1, "cpu").load_state_dict(torch.load(small, mmap=True), assign=assign)
        load = lambda: model.load_state_dict(torch.load(path, mmap=True), assign=assign)  # noqa: E731
        return load, 0
    rg.load(small, torch_model(1, "meta"))  # imports
    rg.load(torch_model(1, "cpu"), torch_model(1, "cpu"))
    if row == "regraft into a meta model":
        model = torch_model(count, "meta")
        return lambda: rg.load(path, model), made
    model = torch_model(count, "cpu")
    if row == "regraft in place":
        return lambda: rg.load(path, model), 0
    source = torch_model(count, "cpu")
    if row == "regraft from a live model":
        return lambda: rg.load(source, model), 0
    pairs = list(zip(model.parameters(), source.parameters(), strict=True))
    return lambda: [old.data.copy_(new.data) for old, new in pairs], 0


def _keras(row: str, folder: Path, count: int) -> Callable[[], object]:
    os.environ["KERAS_BACKEND"] = row.rpartition(" ")[2]
    import numpy as np

    import regraft as rg

    model = keras_model(count)
    if row.startswith("regraft"):
        rg.load(folder / "small.weights.h5", keras_model(1))  # imports
        return lambda: rg.load(folder / "model.weights.h5", model)
    arrays = [np.full((SIDE, SIDE), i, np.float32) for i in range(count)]

    def set_weights() -> None:
        model.set_weights(arrays)
        if row.endswith("jax"):  # which returns before anything is copied
            import jax

            jax.block_until_ready([variable.value for variable in model.weights])

    return set_weights


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def measure(row: str, folder: Path, count: int) -> None:
    """Runs one row in this process and prints its seconds and MiB."""
    run, made = prepared(row, folder, count)
    before, peak, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    kept = run()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    extra = max(peak[0], anonymous()) - before - made
    del kept
    print(json.dumps([seconds, max(extra, 0) / MIB]))


def write(folder: Path, count: int) -> None:
    """The files, of distinct values."""
    import torch

    generator = torch.Generator().manual_seed(0)
    model = torch_model(count, "cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight.uniform_(-1, 1, generator=generator)
    torch.save(model.state_dict(), folder / "model.pth")
    torch.save(torch_model(1, "cpu").state_dict(), folder / "small.pth")
    del model
    os.environ["KERAS_BACKEND"] = "jax"
    keras_model(count).save_weights(folder / "model.weights.h5")
    keras_model(1).save_weights(folder / "small.weights.h5")


def child(*arguments: str) -> str:
    command = [sys.executable, __file__, *arguments]
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=quiet)
    return done.stdout.strip().rpartition("\n")[2]


def available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) // 1024
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--mib", type=int, default=1024 if available() > 8192 else 256)
    parser.add_argument(
        "--only", default="", help="rows whose names hold this text, and their peers"
    )
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    count = given.mib * MIB // TENSOR
    if given.child:
        row, folder, number = given.child
        measure(row, Path(folder), int(number)) if row else write(Path(folder), int(number))
        return
    chosen = [row for row in ROWS if given.only in row]
    chosen += [ROWS[row][0] for row in chosen if ROWS[row][0] and ROWS[row][0] not in chosen]
    with tempfile.TemporaryDirectory() as folder:
        child("--child", "", folder, str(count))
        for path in Path(folder).iterdir():
            path.read_bytes()  # warm
        found: dict[str, list[list[float]]] = {row: [] for row in chosen}
        for _ in range(given.runs):
            for row in chosen:
                found[row].append(json.loads(child("--child", row, folder, str(count))))
    seconds = {row: statistics.median(s for s, _ in runs) for row, runs in found.items()}
    print(f"{given.mib} MiB, {count} tensors, medians of {given.runs}")
    for row in chosen:
        peer, bar = ROWS[row]
        ratio = f"{seconds[row] / seconds[peer]:6.2f} × {peer} (bar {bar})" if peer else ""
        memory = max(mib for _, mib in found[row])
        allowed = f"(bar {TENSOR / MIB + 64:.0f})" if peer else ""
        print(f"{row:<30} {seconds[row] * 1000:7.0f} ms {memory:6.0f} MiB {allowed:<9} {ratio}")


if __name__ == "__main__":
    main()
