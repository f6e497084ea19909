"""An ONNX file as the source: run by onnxruntime, observed node by node."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import regraft as rg
from regraft.cli import cli

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
X = np.random.default_rng(5).standard_normal((4, 3, 12, 12), np.float32)


class Net(nn.Module):
    def __init__(self, act: Any = nn.ReLU, eps: float = 1e-5, gelu: str = "none") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8, eps=eps)
        self.act = act()
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(8, 16, 3)
        self.act2 = act()
        self.norm = nn.LayerNorm(16, eps=eps)
        self.fc1 = nn.Linear(16, 12)
        self.gelu = nn.GELU(gelu)
        self.fc2 = nn.Linear(12, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.pool(self.act(self.bn(self.conv1(x))))
        x = self.norm(self.act2(self.conv2(x)).mean((2, 3)))
        for _ in range(2):  # layers that are called twice
            x = x + self.fc2(self.gelu(self.fc1(x)))
        return self.head(x), x


def trained(seed: int = 1) -> Net:
    """Every value another one, so that any two that are exchanged show."""
    generator = torch.Generator().manual_seed(seed)
    model = Net().eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.dtype.is_floating_point:
                low = 0.1 if tensor.ndim == 1 else -0.4
                tensor.uniform_(low, 0.6, generator=generator)
    return model


def exported(model: nn.Module, path: Path, opset: int = 20, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.tensor(X),), str(path), dynamo=False, opset_version=opset,
            training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
            input_names=["image"], output_names=["scores", "features"], **options,
        )  # fmt: skip
    return path


@pytest.fixture(scope="module", params=[20, 16], ids=["layers", "norms and GELUs spelt out"])
def file(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(trained(), tmp_path_factory.mktemp("onnx") / "net.onnx", request.param)


def loaded(**different: Any) -> Net:
    model = Net(**different).eval()
    model.load_state_dict(trained().state_dict())
    return model


def test_a_right_model_is_equal(file: Path) -> None:
    report = rg.verify(loaded(), X, source=file)
    assert report.equal
    assert not report.causes
    assert len(report.steps) > 8


@pytest.mark.parametrize(
    ("different", "kind", "first"),
    [
        ({"eps": 1e-3}, "norm-epsilon", "bn"),
        ({"act": nn.SiLU}, "activation", "act"),
        ({"gelu": "tanh"}, "activation", "gelu"),
    ],
)
def test_a_planted_difference(file: Path, different: Any, kind: str, first: str) -> None:
    for source in (file, rg.open(file)):
        report = rg.verify(loaded(**different), X, source=source)
        assert not report.equal
        assert {cause.kind for cause in report.causes if cause.proven} == {kind}, str(report)
        assert report.first_divergence == first, str(report)


def test_a_wrong_tensor(file: Path) -> None:
    model = loaded()
    with torch.no_grad():
        model.conv2.weight[3, 2] += 0.5
    report = rg.verify(model, X, source=file)
    assert report.first_divergence == "conv2"
    assert [cause.kind for cause in report.causes if cause.proven] == ["weights"]


@pytest.mark.parametrize("different", ["layer norm", "pooled"])
def test_a_difference_beside_what_is_spelt_out(file: Path, different: str) -> None:
    model = loaded()
    if different == "layer norm":
        model.norm.eps = 1e-2
    else:
        model.pool = nn.AvgPool2d(2)
    report = rg.verify(model, X, source=file)
    kind, first = {"layer norm": ("norm-epsilon", "norm"), "pooled": ("pooling", "pool")}[different]
    assert {cause.kind for cause in report.causes if cause.proven} == {kind}, str(report)
    assert report.first_divergence == first


def test_a_recorded_probe_says_as_much(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "probe.npz"
    inputs = tmp_path / "x.npz"
    np.savez(inputs, input=X)
    arguments = ["probe", "record", str(file), "--input", str(inputs), "-o", str(out)]
    assert CliRunner().invoke(cli, arguments, catch_exceptions=False).exit_code == 0
    kept = rg.open(out)
    probe = rg.Probe.from_arrays({name: kept.read(name) for name in kept}, "probe")
    for source in (file, None):
        report = rg.verify(loaded(eps=1e-3), probe, source=source)
        assert not report.equal
    report = rg.verify(loaded(eps=1e-3), probe, source=file)
    assert {cause.kind for cause in report.causes if cause.proven} == {"norm-epsilon"}
    assert report.first_divergence == "bn"


def test_external_data(tmp_path: Path) -> None:
    plain = exported(trained(), tmp_path / "plain.onnx")
    path = tmp_path / "net.onnx"
    onnx.save(
        onnx.load(str(plain)), str(path), save_as_external_data=True, location="net.data",
        size_threshold=0,
    )  # fmt: skip
    report = rg.verify(loaded(act=nn.SiLU), X, source=path)
    assert report.first_divergence == "act"


def test_inputs_that_do_not_fit(file: Path) -> None:
    for wrong in (X.astype(np.float64), X[:, :2], (X, X), {"picture": X}):
        with pytest.raises(rg.TargetError, match=r"net\.onnx"):
            rg.record(file, wrong)
    probe = rg.Probe(X.transpose(0, 2, 3, 1), np.ones((4, 5), np.float32))
    report = rg.verify(nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), probe, source=file)
    assert any("not run" in warning for warning in report.warnings)


def test_without_the_runtime(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for ask in (lambda: rg.record(file, X), lambda: rg.verify(loaded(), X, source=file)):
        with pytest.raises(rg.MissingDependency, match="onnxruntime"):
            ask()
    with torch.no_grad():
        outputs = tuple(part.numpy() for part in trained()(torch.tensor(X)))
    report = rg.verify(loaded(), rg.Probe(X, outputs), source=file)
    assert report.equal
    assert any("onnxruntime" in warning for warning in report.warnings)
