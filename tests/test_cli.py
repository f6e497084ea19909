"""The command line as a user meets it: output, exit codes, no tracebacks, nothing overwritten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

MODEL = """
import torch
from torch import nn

def net(classes=4):
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes))

def other():
    return nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Conv2d(4, 6, 1))

def broken():
    raise ValueError("no luck today")
"""


class Done(NamedTuple):
    status: int
    out: str
    err: str


class Shell:
    """A folder with a model file, a checkpoint and a way to run commands there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "models.py").write_text(MODEL)
        names: dict[str, object] = {}
        exec(MODEL, names)
        torch.manual_seed(0)
        self.model = names["net"]()  # type: ignore[operator]
        state = {f"module.{n}": t for n, t in self.model.state_dict().items()}
        torch.save({"state_dict": state, "epoch": 1}, folder / "base.pth")

    def __call__(self, *arguments: str, stdin: str | None = None) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "regraft", *arguments],
            cwd=self.folder, capture_output=True, text=True, input=stdin, timeout=120,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_help_has_examples(shell: Shell) -> None:
    done = shell("--help")
    assert done.status == 0
    commands = [
        "inspect",
        "plan",
        "why",
        "apply",
        "load",
        "convert",
        "verify",
        "finetune",
        "diff",
        "trace",
        "report",
        "demo",
    ]
    for command in commands:
        assert f"  {command}" in done.out
    for command in commands:
        told = shell(command, "--help")
        assert told.status == 0
        assert f"regraft {command}" in told.out.split("Example:")[1], command


def test_inspect(shell: Shell) -> None:
    done = shell("inspect", "base.pth")
    assert done.status == 0
    assert "module.0.*" in done.out
    assert "weight 6×3×3×3" in done.out
    found = json.loads(shell("inspect", "base.pth", "--json", "*.bias").out)
    assert found["schema_version"] == 1
    assert found["tensors"][0] == {
        "name": "module.0.bias", "shape": [6], "dtype": "float32", "nbytes": 24,
        "module": "", "kind": "weight",
    }  # fmt: skip
    assert "module.0.weight" in shell("inspect", "base.pth", "--names", "*.weight").out
    assert "mean" in shell("inspect", "base.pth", "--stats").out
    assert shell("inspect", "base.pth", "nothing*").status == 3


def test_the_main_job(shell: Shell) -> None:
    planned = shell("plan", "base.pth", "models:net", "-o", "net.plan.json", "--python", "go.py")
    assert (planned.status, planned.err) == (0, "")
    assert planned.out.rstrip().endswith("complete")
    why = shell("why", "net.plan.json", "0.*")
    assert "from  module.0.weight" in why.out
    assert json.loads(shell("why", "net.plan.json", "5.bias", "--json").out)["tensors"]["5.bias"]

    applied = shell("apply", "net.plan.json", "base.pth", "models:net", "-o", "mine.safetensors")
    assert applied.status == 0, applied.err
    relaid = shell("apply", "net.plan.json", "base.pth", "-o", "mine.npz")
    assert relaid.status == 0, relaid.err
    loaded = shell("load", "base.pth", "models.py:net", "-o", "again.safetensors")
    assert loaded.status == 0, loaded.err
    for other in ("mine.npz", "again.safetensors"):
        assert shell("diff", "mine.safetensors", other).status == 0
    assert "module.0.weight" in shell("trace", "mine.safetensors").out
    assert json.loads(shell("trace", "mine.npz", "--json").out)["source"] == "base.pth"
    page = shell("report", "mine.safetensors", "--base", "base.pth", "-o", "page.html")
    assert page.status == 0, page.err
    assert "<html" in (shell.folder / "page.html").read_text()
    assert shell("report", "net.plan.json", "-o", "plan.html").status == 0

    piped = shell("plan", "base.pth", "models:net", "-o", "-")
    assert json.loads(piped.out)["schema_version"] == 1
    assert "0.weight" in shell("why", "-", "0.weight", stdin=piped.out).out


def test_verify_and_probe(shell: Shell) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        y = shell.model.eval()(torch.from_numpy(x)).numpy()
    np.savez(shell.folder / "right.npz", input=x, output=y)
    np.savez(shell.folder / "wrong.npz", input=x, output=y + 1)
    assert shell("verify", "base.pth", "models:net", "right.npz").status == 0
    wrong = shell("verify", "base.pth", "models:net", "wrong.npz", "--json")
    assert wrong.status == 1
    assert json.loads(wrong.out)["equal"] is False
    proven = shell("load", "base.pth", "models:net", "--probe", "right.npz", "-o", "a.pth")
    assert "outputs verified" in proven.out
    refused = shell("load", "base.pth", "models:net", "--probe", "wrong.npz", "-o", "b.pth")
    assert refused.status == 1
    assert "VerificationFailed" in refused.err
    assert not (shell.folder / "b.pth").exists()


def test_exit_codes(shell: Shell) -> None:
    (shell.folder / "mystery.bin").write_bytes(b"\x00" * 100)
    whole = (shell.folder / "base.pth").read_bytes()
    (shell.folder / "short.pth").write_bytes(whole[: len(whole) // 2])
    (shell.folder / "bad.toml").write_text("[[rule]]\nrule = 'unknown'")
    cases: dict[tuple[str, ...], tuple[int, str]] = {
        ("inspect", "absent.pth"): (3, "FormatError"),
        ("inspect", "mystery.bin"): (3, "UnknownFormat"),
        ("inspect", "short.pth"): (3, "CorruptFile"),
        ("inspect",): (2, "Missing argument"),
        ("nonsense",): (2, "No such command"),
        ("plan", "base.pth", "models:absent"): (4, "TargetError"),
        ("plan", "base.pth", "models:broken"): (4, "no luck today"),
        ("plan", "base.pth", "absent:net"): (4, "TargetError"),
        ("plan", "base.pth", "models:net", "--set", "classes"): (4, "--set key=value"),
        ("plan", "base.pth", "models:net", "--set", "classes=9"): (0, ""),
        ("plan", "base.pth", "models:other"): (1, ""),
        ("plan", "base.pth", "models:net", "--fresh", "hed.*"): (5, "RuleMatchedNothing"),
        ("plan", "base.pth", "models:net", "--rules", "bad.toml"): (5, "PlanError"),
        ("load", "base.pth", "models:net", "--set", "classes=9", "-o", "x.pth"):
            (1, "IncompletePlan"),
        ("why", "base.pth", "x"): (5, "PlanError"),
        ("trace", "base.pth"): (3, "no lineage"),
        ("convert", "base.pth", "base.pth"): (3, "exists"),
        ("convert", "base.pth", "x.onnx"): (3, "UnknownFormat"),
    }  # fmt: skip
    for arguments, (status, told) in cases.items():
        done = shell(*arguments)
        assert done.status == status, (arguments, done)
        assert told in done.err, (arguments, done.err)
    assert not (shell.folder / "x.pth").exists()


def test_a_shape_mismatch_and_a_stale_plan(shell: Shell) -> None:
    (shell.folder / "rules.toml").write_text(
        '[[rule]]\nrule = "pin"\ntarget = "5.weight"\nsources = ["module.0.bias"]\n'
    )
    done = shell("plan", "base.pth", "models:net", "--rules", "rules.toml")
    assert done.status == 5
    assert "ShapeMismatch" in done.err
    assert "rules.toml rule 1" in done.err
    shell("plan", "base.pth", "models:net", "-o", "net.plan.json")
    stale = shell("apply", "net.plan.json", "base.pth", "models:net", "--set", "classes=9",
                  "-o", "x.pth")  # fmt: skip
    assert (stale.status, "StalePlan" in stale.err) == (5, True)


def test_a_missing_extra_is_named(shell: Shell) -> None:
    assert shell("convert", "base.pth", "base.npz").status == 0
    (shell.folder / "h5py.py").write_text("raise ImportError('not here')")
    done = subprocess.run(
        [sys.executable, "-m", "regraft", "convert", "base.npz", "x.weights.h5"],
        cwd=shell.folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{shell.folder}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    assert done.returncode == 8, done.stderr
    assert "pip install 'regraft[keras]'" in done.stderr


def test_dry_run_and_force(shell: Shell) -> None:
    done = shell("load", "base.pth", "models:net", "-o", "x.pth", "--dry-run")
    assert (done.status, "would write  x.pth" in done.out) == (0, True)
    assert not (shell.folder / "x.pth").exists()
    assert shell("convert", "base.pth", "x.pth").status == 0
    before = (shell.folder / "x.pth").read_bytes()
    assert shell("load", "base.pth", "models:net", "-o", "x.pth").status == 3
    assert (shell.folder / "x.pth").read_bytes() == before
    assert shell("load", "base.pth", "models:net", "-o", "x.pth", "--force").status == 0


def test_diff_says_different(shell: Shell) -> None:
    state = torch.load(shell.folder / "base.pth")["state_dict"]
    state["module.0.bias"] += 1
    torch.save({"state_dict": state}, shell.folder / "other.pth")
    done = shell("diff", "base.pth", "other.pth", "--json")
    assert done.status == 1
    found = json.loads(done.out)
    assert found["counts"] == {"identical": 8, "moved": 1}
    assert found["tensors"]["module.0.bias"]["max_abs"] == pytest.approx(1, rel=1e-5)


def in_process(
    shell: Shell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> Done:
    """Runs a command here, where torchvision is mended for what Lightning imports."""
    from regraft.cli import main

    monkeypatch.chdir(shell.folder)
    monkeypatch.setattr(sys, "argv", ["regraft", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return Done(int(ended.value.code or 0), *capsys.readouterr())


def test_finetune(
    shell: Shell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 20)
    x = generator.normal(size=(60, 3, 8, 8)).astype(np.float32) + y[:, None, None, None]
    np.savez(shell.folder / "data.npz", x=x.astype(np.float32), y=y)
    common = ("finetune", "base.pth", "models.py:net", "--data", "data.npz",
              "--fresh", "5.*", "--unused", "module.5.*")  # fmt: skip
    done = in_process(
        shell, capsys, monkeypatch, *common, "--set", "classes=3", "--freeze", "0.*",
        "--epochs", "3", "--lr", "0.01", "-o", "mine.safetensors", "--report", "page.html",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert done.out.count("epoch") == 3
    told = json.loads(shell("trace", "mine.safetensors", "--json").out)
    states = {name: origin["state"] for name, origin in told["tensors"].items()}
    assert states["0.weight"] == "frozen"
    assert states["1.weight"] == "tuned"
    assert states["5.weight"] == "fresh"
    assert told["training"]["epochs"] == "3"
    assert "plotly" in (shell.folder / "page.html").read_text().lower()
    few = in_process(shell, capsys, monkeypatch, *common, "--set", "classes=2", "-o", "few.pth")
    assert (few.status, "3 classes" in few.err) == (4, True)


def test_completion_of_tensor_names(shell: Shell) -> None:
    import os

    typed = {"COMP_WORDS": "regraft inspect base.pth module.5", "COMP_CWORD": "3"}
    environment = {**os.environ, "_REGRAFT_COMPLETE": "bash_complete", **typed}
    done = subprocess.run(
        [Path(sys.executable).with_name("regraft")], cwd=shell.folder, capture_output=True,
        text=True, env=environment,
    )  # fmt: skip
    assert "module.5.weight" in done.stdout


def test_wider_layers_are_asked_for(shell: Shell) -> None:
    (shell.folder / "wide.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Linear(3, 6))\n"
    )
    torch.save({"0.weight": torch.rand(4, 3), "0.bias": torch.rand(4)}, shell.folder / "x.pth")
    asked = shell("plan", "x.pth", "wide:net", "--widen", "*")
    assert (asked.status, "widen" in asked.out) == (0, True)
    assert "widen" not in shell("plan", "x.pth", "wide:net").out
