"""How long a diff of two large files takes, and how much memory, beside reading both once.

Two files of 988 MiB with 291 tensors: a third equal, the rest moved. Each row in a process of its
own, in turn, three times; medians. The bar: 2.5 × reading both, 400 MiB. Nothing here fails.

    python -m benchmarks.diff_speed [--rounds 3] [--folder /tmp]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from regraft import checkpoints
from regraft.tensors import TensorInfo

_MIB = 1 << 20
# The peak of a process of its own: what getrusage tells is that of its parent, too.
_PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
"""
# Both print seconds of the work itself, without imports, and the peak of resident memory in MiB.
_READ = """
import sys, time
start, buffer = time.perf_counter(), bytearray(1 << 24)
for path in sys.argv[1:]:
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
print(time.perf_counter() - start, peak())
"""
_DIFF = """
import sys, time
import regraft as rg, regraft._api, regraft.lineage.diffing, numpy
start = time.perf_counter()
found = rg.diff(*sys.argv[1:])
print(time.perf_counter() - start, peak())
assert found.counts() == {"identical": 97, "moved": 194}, found.counts()
"""


def write(folder: Path, size: int) -> list[Path]:
    """Base and tuned: a vocabulary of an eighth of the bytes, layers of matrices and vectors."""
    rng = np.random.default_rng(0)
    total = size // 4
    shapes = {"embed": (total // 8 // 1024, 1024)}
    width = int((total * 7 / 8 / 145) ** 0.5)
    for i in range(145):
        shapes[f"layers.{i}.weight"], shapes[f"layers.{i}.bias"] = (width, width), (width,)
    noise = rng.standard_normal(1 << 22).astype(np.float32)

    def values(name: str, tuned: bool) -> np.ndarray:
        shape = shapes[name]
        made = np.resize(noise, shape) + np.float32(len(name))
        moved = list(shapes).index(name) % 3 != 0
        return made + np.float32(1e-3) * np.resize(noise[::-1], shape) if tuned and moved else made

    paths = [folder / "base.safetensors", folder / "tuned.safetensors"]
    for path in paths:
        tuned = path.stem == "tuned"
        items = [
            (TensorInfo(n, s, "float32"), lambda n=n, tuned=tuned: values(n, tuned))
            for n, s in shapes.items()
        ]
        checkpoints.write(path, items)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=988)
    parser.add_argument("--folder", default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        paths = write(Path(folder), given.mib * _MIB)
        rows: dict[str, list[tuple[float, float]]] = {"reading both": [], "diff": []}
        for _ in range(given.rounds):
            for name, code in (("reading both", _READ), ("diff", _DIFF)):
                command = [sys.executable, "-c", _PEAK + code, *map(str, paths)]
                told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                seconds, peak = map(float, told.split())
                rows[name].append((seconds, peak))
    read = statistics.median(seconds for seconds, _ in rows["reading both"])
    for name, taken in rows.items():
        seconds = statistics.median(s for s, _ in taken)
        peak = max(p for _, p in taken)
        print(f"{name:<14}{seconds:7.2f} s  {seconds / read:5.2f} ×  {peak:6.0f} MiB peak")


if __name__ == "__main__":
    main()
