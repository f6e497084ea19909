"""`regraft finetune` as a command of its own: killed and started again, and in two processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import regraft as rg

sys.path.insert(0, str(Path(__file__).parent))
from networks import SHIM, changed, samples, torch_net

MODEL = """
import os, signal
import torch
from torch import nn

class Net(nn.Sequential):
    calls = 0
    def forward(self, x):
        Net.calls += self.training and type(x) is torch.Tensor  # traced: no step
        if Net.calls == int(os.environ.get("DIE_AT", "0")) > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)

def net(drop=0.1):
    return Net(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2), nn.Dropout(drop))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(MODEL)
    (tmp_path / "run.py").write_text(f"{SHIM}\nfrom regraft.cli import main\nmain()\n")
    torch.save(torch_net(1)[:3].state_dict(), tmp_path / "base.pth")
    x, y = samples()
    rows = [f"{a},{b},{c},{'yes' if d else 'no'}" for (a, b, c), d in zip(x, y, strict=True)]
    (tmp_path / "data.csv").write_text("\n".join(["a,b,c,label", *rows]))
    return tmp_path


WORDS = ("finetune", "base.pth", "--model", "nets.py:net", "--fresh", "3.*", "--data", "data.csv",
         "--epochs", "4", "--lr", "0.02", "--freeze", "0.*", "--ema", "0.9", "--probe-epochs", "1",
         "--schedule", "cosine", "--l2-sp", "0.01")  # fmt: skip


def run(folder: Path, *words: str, before: tuple[str, ...] = (), **more: str) -> Any:
    return subprocess.run(
        [sys.executable, *before, "run.py", *words], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **more},
    )  # fmt: skip


def arrays(path: Path) -> dict[str, Any]:
    with rg.open(path) as found:
        return {name: found.read(name) for name in found}


def test_killed_and_started_again(folder: Path) -> None:
    done = run(folder, *WORDS, "-o", "whole.safetensors", "--log", "log", "--tensorboard")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 frozen tensors are the same bits" in done.stdout
    kept = ("-o", "again.safetensors", "--checkpoints", "kept")
    killed = run(folder, *WORDS, *kept, DIE_AT="3")  # one step an epoch: in the third
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (folder / "again.safetensors").exists()
    assert (folder / "kept" / "last.ckpt").exists()
    done = run(folder, *WORDS, *kept)
    assert done.returncode == 0, done.stderr
    assert (
        changed(arrays(folder / "whole.safetensors"), arrays(folder / "again.safetensors")) == set()
    )
    assert (folder / "log" / "curve.csv").read_text().startswith("number,loss,val_loss,accuracy,f1")
    assert len(list((folder / "log" / "tensorboard").glob("events.out.tfevents.*"))) == 1
    told = rg.trace(folder / "again.safetensors")
    assert told.tensors["0.weight"].state == "frozen"
    assert told.training["policy.probe_epochs"] == "1"


def test_two_processes(folder: Path) -> None:
    """As many samples a step as in one process, so that the weights come out alike."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [w for w in WORDS if w not in ("--probe-epochs", "1", "--freeze", "0.*")]
    words += [
        "--set",
        "drop=0.0",
        "--freeze",
        "0.*",
        "--freeze",
        "1.*",
    ]  # a BatchNorm measures each process' own batch
    launch = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port))
    done = run(folder, *words, "--batch-size", "8", "-o", "two.safetensors", before=launch)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = run(folder, *words, "--batch-size", "16", "-o", "one.safetensors")
    assert alone.returncode == 0, alone.stderr
    one, two = arrays(folder / "one.safetensors"), arrays(folder / "two.safetensors")
    assert changed({n: one[n] for n in ("0.weight", "1.running_mean")}, two) == set()
    assert rg.diff(folder / "base.pth", folder / "two.safetensors")["3.weight"].status == "fresh"
    np.testing.assert_allclose(one["3.bias"], two["3.bias"], atol=1e-5)
