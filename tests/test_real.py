"""The main job on checkpoints by other people. Skipped where they are absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import regraft as rg
from models.mini_xception_keras import mini_xception
from models.mini_xception_torch import MiniXception
from models.pnet import ProposalNet
from models.resnet_cifar import CifarResNet
from regraft import operations

EMOTION = "mini-xception/fer2013_mini_XCEPTION.102-0.66.hdf5"
GENDER = "mini-xception/gender_mini_XCEPTION.21-0.95.hdf5"


def outputs(model: Any, *inputs: np.ndarray[Any, Any]) -> Any:
    with torch.no_grad():
        return model.eval()(*(torch.from_numpy(x) for x in inputs))


@pytest.mark.parametrize("depth", [20, 32])
def test_resnet_arrives_as_a_plain_load_state_dict_would(real: Path, depth: int) -> None:
    (path,) = (real / "cifar-resnet").glob(f"resnet{depth}-*.th")
    model = CifarResNet(depth)
    receipt = rg.load(path, model)
    assert (receipt.fresh, receipt.unused, receipt.adapted) == ([], [], [])

    # The same weights by hand: both definitions list their layers in the order of use.
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    plain = CifarResNet(depth)
    names = [name for name in plain.state_dict() if not name.endswith("num_batches_tracked")]
    plain.load_state_dict(dict(zip(names, state.values(), strict=True)), strict=False)
    x = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    assert torch.equal(outputs(model, x), outputs(plain, x))


def test_depth_20_is_no_depth_32(real: Path) -> None:
    (path,) = (real / "cifar-resnet").glob("resnet20-*.th")
    plan = rg.plan(path, CifarResNet(32))
    assert len(plan.fresh) == 60  # the blocks that only the deeper one has: said, and not allowed
    with pytest.raises(rg.IncompletePlan):
        rg.load(path, CifarResNet(32))


def test_mini_xception_gives_equal_outputs_in_keras_and_pytorch(real: Path) -> None:
    ours, theirs = mini_xception(), MiniXception()
    for model in (ours, theirs):
        receipt = rg.load(real / EMOTION, model)
        assert (receipt.fresh, receipt.unused, receipt.adapted) == ([], [], [])
        assert len(receipt.loaded) == 80
    x = np.random.default_rng(0).uniform(-1, 1, size=(8, 64, 64, 1)).astype(np.float32)
    expected = np.asarray(ours(x, training=False))
    actual = outputs(theirs, x.transpose(0, 3, 1, 2).copy()).numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=0)
    assert np.ptp(expected, axis=0).max() > 1e-2  # else any two models would agree


def test_gender_model_as_source_for_emotions(real: Path) -> None:
    model = MiniXception(7)
    head = {"score.weight", "score.bias"}
    before = {name: model.state_dict()[name].clone() for name in head}
    with pytest.raises(rg.IncompletePlan) as caught:
        rg.load(real / GENDER, model)
    assert any("score.weight" in problem for problem in caught.value.problems)
    receipt = rg.load(real / GENDER, model, fresh=["score.*"], unused=["conv2d_7/*"])
    assert set(receipt.fresh) == head
    for name in head:
        assert torch.equal(model.state_dict()[name], before[name])
    # The trunk is the gender model's: with its own head it gives the gender model's outputs.
    whole, source = MiniXception(2), mini_xception(2)
    rg.load(real / GENDER, whole)
    rg.load(real / GENDER, source)
    for name in head:
        whole.state_dict()[name]  # the heads differ in shape, the trunks must not
    trunk = {n: t for n, t in whole.state_dict().items() if n not in head}
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in trunk.items())
    x = np.random.default_rng(0).uniform(-1, 1, size=(2, 64, 64, 1)).astype(np.float32)
    expected = np.asarray(source(x, training=False))
    actual = outputs(whole, x.transpose(0, 3, 1, 2).copy()).numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=0)


def test_diffs_of_one_training(real: Path) -> None:
    epochs = {
        int(path.name.split(".")[1].split("-")[0]): path
        for path in sorted((real / "mini-xception").glob("fer2013*"))
    }
    assert sorted(epochs) == [0, 10, 102, 107]
    assert rg.diff(epochs[0], epochs[0]).same
    found = rg.diff(epochs[0], epochs[10])
    far = rg.diff(epochs[0], epochs[107])
    near = rg.diff(epochs[102], epochs[107])
    for diff in (found, far, near):
        assert diff.counts().keys() <= {"identical", "moved"}
        assert not diff.same

    def median(diff: rg.Diff) -> float:
        return float(np.median([entry.rel_l2 for entry in diff.values()]))

    assert median(near) < median(found) < median(far)


def test_pnet_between_files(real: Path) -> None:
    truth = json.loads((real / "mtcnn-pnet/TRUTH.json").read_text())["mapping"]
    plan = rg.plan(real / "mtcnn-pnet/npy/det1.npy", real / "mtcnn-pnet/torch/pnet.pt")
    assert plan.complete
    assert {name: graft.sources[0] for name, graft in plan.grafts.items()} == {
        name: entry["source"] for name, entry in truth.items()
    }
    receiver = rg.open(real / "mtcnn-pnet/torch/pnet.pt")
    source = rg.open(real / "mtcnn-pnet/npy/det1.npy")
    for name, entry in truth.items():
        expected = source.read(entry["source"])
        for _, axes in entry["ops"]:
            expected = expected.transpose(axes)
        np.testing.assert_array_equal(expected, receiver.read(name))
        (read,) = [source.read(n) for n in plan.grafts[name].sources]
        np.testing.assert_array_equal(rg.ops.run(plan.grafts[name].ops, [read]), expected)


def test_pnet_into_a_model_needs_a_probe_for_width_and_height(real: Path) -> None:
    model, reference = ProposalNet(), ProposalNet()
    rg.load(real / "mtcnn-pnet/torch/pnet.pt", reference)
    plan = rg.plan(real / "mtcnn-pnet/npy/det1.npy", model)
    assert not plan.complete
    assert set(plan.undecided) == {f"trunk.{i}.weight" for i in (0, 3, 5)}
    x = np.random.default_rng(0).normal(size=(2, 3, 24, 20)).astype(np.float32)
    probe = rg.Probe(x, tuple(part.numpy() for part in outputs(reference, x)))
    receipt = rg.load(real / "mtcnn-pnet/npy/det1.npy", model, probe=probe)
    assert receipt.verified
    for name, tensor in reference.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_same_names_and_shapes_do_not_make_equal_weights(real: Path) -> None:
    """Two P-Nets would look alike; a probe tells them apart, and the model is put back."""
    model = ProposalNet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = np.random.default_rng(0).normal(size=(2, 3, 24, 20)).astype(np.float32)
    wrong = tuple(part.numpy() for part in outputs(ProposalNet(), x))
    with pytest.raises(rg.VerificationFailed) as caught:
        rg.load(real / "mtcnn-pnet/torch/pnet.pt", model, probe=rg.Probe(x, wrong))
    assert not caught.value.report.equal
    for name, tensor in before.items():
        assert torch.equal(tensor, model.state_dict()[name])


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("ultraface-slim/version-slim-320.pth", "ultraface-slim/tf/variables/variables.index"),
        ("ultraface-slim/tf/variables/variables.index", "ultraface-slim/version-slim-320.pth"),
        ("ultraface-slim/version-slim-320.pth", "ultraface-slim/version-slim-320_simplified.onnx"),
        ("magika-v1/model.h5", "magika-v1/model.onnx"),
    ],
)
def test_files_of_one_model_by_other_people(real: Path, source: str, target: str) -> None:
    """Every value that a plan makes is what the other file holds; none is left open."""
    ours, theirs = rg.open(real / source), rg.open(real / target)
    plan = rg.plan(ours, theirs)
    assert plan.complete
    assert not plan.unused
    for graft in plan.grafts.values():
        if graft.written:
            made = operations.run(graft.ops, [ours.read(name) for name in graft.sources])
            np.testing.assert_allclose(made, theirs.read(graft.target), rtol=1e-4, atol=1e-5)
