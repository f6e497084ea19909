"""How long `regraft inspect` takes and how much memory, as ratios to importing zipfile and pickle.

Whole processes, interleaved; medians of wall and processor time. Nothing here fails: it prints.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

GIB = 1 << 30
RUNS = 15


class Run(NamedTuple):
    wall: float
    processor: float
    peak: int


def write(folder: str, tensors: int, size: int) -> None:
    """Two files of so many tensors. In a process of its own: a child's peak memory is never said to
    be less than that of the process that started it."""
    import torch
    from safetensors.torch import save_file

    count = size // tensors // 4
    state = {f"layers.{i // 4}.part{i % 4}.weight": torch.zeros(count) for i in range(tensors)}
    torch.save(state, f"{folder}/{tensors}.pth")
    save_file(state, f"{folder}/{tensors}.safetensors")


def timed(command: list[str]) -> Run:
    started = time.perf_counter()
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(running.pid, 0)
    assert status == 0, command
    wall = time.perf_counter() - started
    return Run(wall, used.ru_utime + used.ru_stime, used.ru_maxrss >> 10)


def main() -> None:
    inspect = [str(Path(sys.executable).with_name("regraft")), "inspect"]
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import numpy": [sys.executable, "-c", "import numpy"],
            "import zipfile, pickle": [sys.executable, "-c", "import zipfile, pickle"],
        }
        for tensors, size in ((291, GIB), (20_000, 20_000 * 12)):
            spawn = multiprocessing.get_context("spawn")
            writing = spawn.Process(target=write, args=(folder, tensors, size))
            writing.start()
            writing.join()
            for ending in ("pth", "safetensors"):
                path = f"{folder}/{tensors}.{ending}"
                commands[f"{tensors:,} tensors, .{ending}"] = [*inspect, path]
            commands[f"{tensors:,} tensors, .safetensors, --json"] = [*inspect, path, "--json"]
        runs: dict[str, list[Run]] = {name: [] for name in commands}
        for _ in range(RUNS):
            for name, command in commands.items():
                runs[name].append(timed(command))
    medians = {
        name: Run(*map(statistics.median, zip(*found, strict=True))) for name, found in runs.items()
    }
    peer = medians["import zipfile, pickle"].processor
    rows = {
        name: {
            "wall ms": round(1000 * run.wall, 1),
            "processor ms": round(1000 * run.processor, 1),
            "ratio": round(run.processor / peer, 2),
            "peak MiB": run.peak,
        }
        for name, run in medians.items()
    }
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
