"""How long `regraft inspect` of a large .pth takes, as a ratio to importing zipfile and pickle.

Whole processes, wall time, interleaved; medians. The bar is 3. Nothing here fails: it prints.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

GIB = 1 << 30
RUNS = 21


def write(path: Path, tensors: int, size: int) -> None:
    count = size // tensors // 4
    torch.save({f"layers.{i}.weight": torch.zeros(count) for i in range(tensors)}, path)


def timed(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    regraft = str(Path(sys.executable).with_name("regraft"))
    peer = [sys.executable, "-c", "import zipfile, pickle"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.pth"
        write(path, 291, GIB)
        commands = {
            "peer": peer,
            "inspect": [regraft, "inspect", str(path)],
            "inspect --json": [regraft, "inspect", str(path), "--json"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(RUNS):
            for name, command in commands.items():
                times[name].append(timed(command))
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = {
        name: {"ms": round(1000 * value, 1), "ratio": round(value / medians["peer"], 2)}
        for name, value in medians.items()
    }
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
