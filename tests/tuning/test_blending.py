"""Models between pretrained and tuned, and means of several trainings, with all their parents."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import regraft as rg
from regraft.lineage import sidecar

sys.path.insert(0, str(Path(__file__).parent))
from networks import samples, torch_net


def tuned_file(folder: Path, name: str, seed: int, fresh: bool = True) -> Path:
    base = folder / "base.pth"
    if not base.exists():
        state = {f"old.{n}": t for n, t in torch_net(1).state_dict().items()}
        torch.save(state, base)
    net = torch_net(2)
    receipt = rg.load(
        base, net, fresh=["3.*"] if fresh else [], unused=["old.3.*"] if fresh else []
    )
    tuned = rg.finetune(
        net, samples(), receipt=receipt, freeze=["0.bias"], epochs=2, lr=0.05, seed=seed
    )
    return rg.save(
        net, folder / name, receipt=receipt, trained=tuned.trained, training=tuned.training
    )


def arrays(path: Any) -> dict[str, Any]:
    with rg.open(path) as found:
        return {name: found.read(name) for name in found}


def test_between_pretrained_and_tuned(tmp_path: Path) -> None:
    tuned = tuned_file(tmp_path, "tuned.safetensors", 0)
    path = rg.interpolate(tmp_path / "base.pth", tuned, tmp_path / "mid.safetensors", share=0.25)
    base, end, mid = arrays(tmp_path / "base.pth"), arrays(tuned), arrays(path)
    for name in ("0.weight", "0.bias", "1.weight", "1.running_var"):
        expected = 0.75 * base[f"old.{name}"] + 0.25 * end[name]
        np.testing.assert_allclose(mid[name], expected, rtol=1e-6)
        assert mid[name].dtype == np.float32
    np.testing.assert_array_equal(mid["3.weight"], end["3.weight"])  # fresh
    np.testing.assert_array_equal(mid["1.num_batches_tracked"], end["1.num_batches_tracked"])
    told = rg.trace(path)
    assert told.source == "base.pth"
    assert told.tensors["0.weight"].state == "tuned"
    assert told.tensors["0.bias"].state == "frozen"  # the mean of a value with itself
    assert told.tensors["3.weight"].state == "fresh"
    assert told.training["blend"] == "interpolated, 0.25 of the tuned weights"
    assert list(told.also) == ["tuned.safetensors"]
    assert all(len(digest) == 64 for digest in (told.source_hash, *told.also.values()))
    for share, side in ((1.0, end), (0.0, None)):
        path = rg.interpolate(
            tmp_path / "base.pth", tuned, tmp_path / f"{share}.safetensors", share=share
        )
        wanted = side["0.weight"] if side else base["old.0.weight"]
        np.testing.assert_array_equal(arrays(path)["0.weight"], wanted)


def test_soup(tmp_path: Path) -> None:
    files = [tuned_file(tmp_path, f"{seed}.safetensors", seed) for seed in range(3)]
    path = rg.soup(files, tmp_path / "soup.safetensors")
    parts = [arrays(file) for file in files]
    for name in ("0.weight", "3.bias", "1.running_mean"):
        mean = np.mean([part[name] for part in parts], 0)
        assert not np.array_equal(parts[0][name], parts[1][name])
        np.testing.assert_allclose(arrays(path)[name], mean, rtol=1e-5)
    assert "2.safetensors" in rg.trace(path).training["parents"]


def test_parents_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Trainings that each wrote into a folder of its own: every one is named, with its sha256."""
    for seed in range(2):
        (tmp_path / f"run{seed}").mkdir()
        tuned_file(tmp_path, f"run{seed}/model.safetensors", seed)
    files = [tmp_path / f"run{seed}" / "model.safetensors" for seed in range(2)]
    told = rg.trace(rg.soup(files, tmp_path / "soup.safetensors"))
    shas = {
        "/".join(file.parts[-2:]): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }
    assert {told.source: told.source_hash, **told.also} == shas
    assert told.source_hash == shas[told.source] == shas["run0/model.safetensors"]


def test_another_base_is_refused(tmp_path: Path) -> None:
    """Names and shapes are those that were loaded; the values are not."""
    tuned = tuned_file(tmp_path, "tuned.safetensors", 0)
    state = {f"old.{n}": t for n, t in torch_net(9).state_dict().items()}
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(rg.StalePlan, match=r"base\.pth"):
        rg.interpolate(tmp_path / "other.pth", tuned, tmp_path / "mid.safetensors")
    assert not (tmp_path / "mid.safetensors").exists()


def test_a_lineage_beside_the_file(tmp_path: Path) -> None:
    told = rg.trace(tuned_file(tmp_path, "tuned.safetensors", 0))
    end = arrays(tmp_path / "tuned.safetensors")
    plain = tmp_path / "plain.pth"
    torch.save({name: torch.tensor(array) for name, array in end.items()}, plain)
    beside = sidecar.write(plain, told, rg.open(plain).sha256)
    path = rg.interpolate(tmp_path / "base.pth", plain, tmp_path / "mid.safetensors")
    assert rg.trace(path).tensors["3.weight"].state == "fresh"
    beside.write_text("no lineage")
    with pytest.raises(rg.FormatError, match="lineage"):
        rg.interpolate(tmp_path / "base.pth", plain, tmp_path / "x.safetensors")


def test_what_cannot_be_averaged(tmp_path: Path) -> None:
    tuned = tuned_file(tmp_path, "tuned.safetensors", 0)
    torch.save({"0.weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(rg.ShapeMismatch) as raised:
        rg.soup([tuned, tmp_path / "other.pth"], tmp_path / "x.safetensors")
    assert len(raised.value.problems) == len(arrays(tuned))
    with pytest.raises(rg.TargetError):
        rg.soup([tuned], tmp_path / "x.safetensors")
    with pytest.raises(rg.TargetError):
        rg.interpolate(tuned, tuned, tmp_path / "x.safetensors", share=1.5)
    assert not (tmp_path / "x.safetensors").exists()


def test_codes_and_masks_have_no_mean(tmp_path: Path) -> None:
    for seed in (1, 2):
        codes = np.full((2, 3), seed, np.int8)
        rg.convert({"codes": codes, "steps": np.array(seed)}, tmp_path / f"{seed}.npz")
        same = {"codes": np.ones((2, 3), np.int8), "steps": np.array(seed)}
        rg.convert(same, tmp_path / f"same{seed}.npz")
    with pytest.raises(rg.TargetError, match="codes"):
        rg.soup([tmp_path / "1.npz", tmp_path / "2.npz"], tmp_path / "x.safetensors")
    path = rg.soup([tmp_path / "same1.npz", tmp_path / "same2.npz"], tmp_path / "y.safetensors")
    assert rg.open(path).read("steps") == 2
