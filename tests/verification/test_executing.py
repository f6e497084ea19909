"""Files that hold code are run where that is asked for, and never otherwise."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import regraft as rg
from regraft.cli import cli

X = np.random.default_rng(9).standard_normal((5, 8), np.float32)


def model(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(11)
    return nn.Sequential(nn.Linear(8, 6), activation(), nn.Linear(6, 4)).eval()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model(), torch.tensor(X)), str(path))
    return path


def test_torchscript_is_run_where_asked_for(script: Path, tmp_path: Path) -> None:
    with pytest.raises(rg.TargetError, match="--execute"):
        rg.record(script, X)
    np.savez(tmp_path / "x.npz", input=X)
    words = ["probe", "record", str(script), "--input", str(tmp_path / "x.npz")]
    out = str(tmp_path / "probe.npz")
    done = CliRunner().invoke(cli, [*words, "-o", out, "--execute"], catch_exceptions=False)
    assert done.exit_code == 0
    kept = rg.open(out)
    probe = rg.Probe.from_arrays({name: kept.read(name) for name in kept})
    assert probe.trace is None
    assert rg.verify(model(), probe, source=script).equal
    report = rg.verify(model(nn.SiLU), probe, source=script)
    assert [(c.kind, c.modules) for c in report.causes if c.proven] == [("activation", ("1",))]


def test_what_is_no_such_file(tmp_path: Path) -> None:
    torch.save(model().state_dict(), tmp_path / "weights.pth")
    np.savez(tmp_path / "weights.npz", a=X)
    for given in (tmp_path / "weights.pth", tmp_path / "weights.npz", model()):
        with pytest.raises(rg.TargetError, match="TorchScript"):
            rg.record(given, X, execute=True)


def test_a_saved_model(tmp_path: Path) -> None:
    tensorflow = pytest.importorskip("tensorflow")
    weights = np.random.default_rng(2).standard_normal((8, 3), np.float32)

    class Net(tensorflow.Module):  # pyright: ignore[reportUntypedBaseClass]
        def __init__(self) -> None:
            super().__init__()
            self.w = tensorflow.Variable(weights)

        @tensorflow.function(input_signature=[tensorflow.TensorSpec((None, 8), name="x")])
        def __call__(self, x: object) -> object:
            return {"scores": tensorflow.nn.relu(x @ self.w)}

    net = Net()
    folder = tmp_path / "saved"
    tensorflow.saved_model.save(net, str(folder), signatures=net.__call__)
    for inputs in (X, {"x": X}):
        probe = rg.record(folder, inputs, execute=True)
        np.testing.assert_allclose(probe.expected["scores"], np.maximum(X @ weights, 0), atol=1e-5)
    with pytest.raises(rg.TargetError, match="by name"):
        rg.record(folder, (X, X), execute=True)
    with pytest.raises(rg.TargetError):
        rg.record(folder, X[:, :3], execute=True)
