"""How long `regraft inspect` takes and how much memory: files of 1 GiB, few and many tensors.

Whole processes, wall time, interleaved; medians, as ratios to `python -c pass`, because machines
differ. A second yardstick is the least that can be done: the standard library's zipfile and pickle,
or json, on the same file. The bars are those of a machine where `python -c pass` takes 22 ms:
150 and 600 ms for .pth, 120 and 350 for .safetensors, 60 MiB. Nothing here fails: it prints.

    python benchmarks/inspect_speed.py [runs]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GIB, MIB = 1 << 30, 1 << 20
LABELS = {"few": 291, "many": 20_000}
PASS = 22  # ms, on the machine of the bars
BARS = {"few.pth": 150, "many.pth": 600, "few.safetensors": 120, "many.safetensors": 350}
LEAST_PTH = """
import io, pickle, sys, zipfile
archive = zipfile.ZipFile(sys.argv[1])
name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
class Names(pickle.Unpickler):
    find_class = lambda self, module, name: lambda *arguments: arguments
    persistent_load = lambda self, pid: pid
print(len(Names(io.BytesIO(archive.read(name))).load()))
"""
LEAST_SAFETENSORS = """
import json, sys
with open(sys.argv[1], "rb") as file:
    print(len(json.loads(file.read(int.from_bytes(file.read(8), "little")))))
"""


def names(tensors: int) -> list[str]:
    """Names as language models have them."""
    parts = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("up", "down")]
    parts += ["input_layernorm", "post_attention_layernorm", "self_attn.rotary"]
    return [f"model.layers.{i // 9}.{parts[i % 9]}.weight" for i in range(tensors)]


def write_pth(path: Path, tensors: int) -> None:
    import torch

    count = GIB // tensors // 4
    torch.save({name: torch.zeros(count) for name in names(tensors)}, path)


def write_safetensors(path: Path, tensors: int) -> None:
    """A sparse file: only its header takes space."""
    size = GIB // tensors // 4 * 4
    entries = {
        name: {"dtype": "F32", "shape": [size // 4], "data_offsets": [i * size, (i + 1) * size]}
        for i, name in enumerate(names(tensors))
    }
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size * tensors)


def write_all(folder: Path) -> None:
    for label, tensors in LABELS.items():
        write_pth(folder / f"{label}.pth", tensors)
        write_safetensors(folder / f"{label}.safetensors", tensors)


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds, and peak memory in MiB, of a Python that writes as it does by default."""
    unusual = ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
    environment = {key: value for key, value in os.environ.items() if key not in unusual}
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(status, command)
    return time.perf_counter() - started, used.ru_maxrss * 1024 / MIB


def main() -> None:
    if sys.argv[1:2] == ["--write"]:
        write_all(Path(sys.argv[2]))
        return
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    python, regraft = sys.executable, str(Path(sys.executable).with_name("regraft"))
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own, for what this one holds is told as its children's memory.
        subprocess.run([python, __file__, "--write", folder], check=True)
        commands = {"pass": [python, "-c", "pass"], "numpy": [python, "-c", "import numpy"]}
        for label in LABELS:
            pth, safetensors = Path(folder) / f"{label}.pth", Path(folder) / f"{label}.safetensors"
            commands[f"least {pth.name}"] = [python, "-c", LEAST_PTH, str(pth)]
            commands[f"least {safetensors.name}"] = [
                python, "-c", LEAST_SAFETENSORS, str(safetensors),
            ]  # fmt: skip
            for path in (pth, safetensors):
                commands[path.name] = [regraft, "inspect", str(path)]
                commands[f"{path.name} --json"] = [regraft, "inspect", str(path), "--json"]
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(runs):
            for name, command in commands.items():
                found[name].append(measured(command))
    medians = {name: statistics.median(s for s, _ in runs) for name, runs in found.items()}
    rows: dict[str, dict[str, float]] = {}
    for name, seconds in medians.items():
        row = {"ms": seconds * 1000, "× pass": seconds / medians["pass"],
               "MiB": max(mib for _, mib in found[name])}  # fmt: skip
        if name in BARS:
            row |= {"bar × pass": BARS[name] / PASS, "× least": seconds / medians[f"least {name}"]}
        rows[name] = {key: round(value, 1) for key, value in row.items()}
    print(json.dumps(rows, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
