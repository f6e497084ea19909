"""MTCNN's P-Net, whose published files hold kernels with height and width exchanged: the real case
of a spatial transpose. Skipped where the files are absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg
from models.pnet import ProposalNet

X = np.random.default_rng(0).standard_normal((2, 3, 24, 24), np.float32)
KERNELS = ("trunk.0", "trunk.3", "trunk.5")


class Turned(nn.Module):
    """As the TensorFlow code uses the network: images are turned first, and results back."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part.transpose(2, 3) for part in self.net(x.transpose(2, 3)))


@pytest.fixture(scope="module")
def files(real: Path) -> tuple[Path, Path]:
    folder = real / "mtcnn-pnet"
    return folder / "torch/pnet.pt", folder / "npy/det1.npy"


@pytest.fixture
def right(files: tuple[Path, Path]) -> ProposalNet:
    """The network of the PyTorch file, which is right for images as they are."""
    model = ProposalNet().eval()
    rg.load(files[0], model)
    return model


@pytest.fixture
def turned(files: tuple[Path, Path], right: ProposalNet) -> ProposalNet:
    """The other file's values as [height, width, in, out] kernels of TensorFlow are mostly meant."""
    model = ProposalNet().eval()
    model.load_state_dict(right.state_dict())
    held = rg.open(files[1])
    names = {f"trunk.{i}.weight": f"conv{n}/weights" for n, i in enumerate((0, 3, 5), 1)}
    with torch.no_grad():
        for name, source in names.items():
            kernel = np.ascontiguousarray(held.read(source).transpose(3, 2, 0, 1))
            model.get_parameter(name).copy_(torch.from_numpy(kernel))
    return model


def test_turned_kernels_are_proven(
    files: tuple[Path, Path], right: ProposalNet, turned: ProposalNet, tmp_path: Path
) -> None:
    recorded = rg.record(right, X, tmp_path / "probe.npz")
    for report in (
        rg.verify(turned, X, source=right),
        rg.verify(turned, recorded, source=files[0]),
    ):
        assert report.first_divergence == "trunk.0"
        (cause,) = report.causes
        assert (cause.kind, cause.proven, cause.modules) == ("spatial-transpose", True, KERNELS)


def test_turned_images_are_proven(right: ProposalNet, turned: ProposalNet) -> None:
    source = Turned(turned).eval()
    assert rg.verify(right, X, source=source).equal
    report = rg.verify(turned, X, source=source)
    assert not report.equal
    assert report.first_divergence == ""
    assert {cause.kind for cause in report.causes if cause.proven} == {"spatial-transpose"}


def test_the_file_as_it_is_loaded_by_a_probe_is_equal(
    files: tuple[Path, Path], right: ProposalNet
) -> None:
    with torch.no_grad():
        outputs = tuple(part.numpy() for part in right(torch.tensor(X)))
    model = ProposalNet()
    receipt = rg.load(files[1], model, probe=rg.Probe(X, outputs))
    report = rg.verify(model, X, source=right)
    assert report.equal
    assert not report.causes
    recorded = rg.record(right, X)
    assert rg.verify(model, recorded, source=files[1], plan=receipt.plan).equal
