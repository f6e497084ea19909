"""Which file of a folder is opened, and what lies beside it: as the hub's repositories have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from regraft import checkpoints
from regraft.errors import CorruptFile, FormatError, UnsafeFile
from regraft.tensors import TensorInfo


def put(path: Path, seed: int = 0) -> Path:
    """A file of weights, of the kind of its ending; its values tell it from others."""
    array = np.random.default_rng(seed).normal(size=(3, 4)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file({"w": array}, path)
    elif path.suffix in (".bin", ".pt", ".pth"):
        torch.save({"w": torch.from_numpy(array)}, path)
    else:
        path.write_bytes(b"never opened")
    return path


def put_set(folder: Path, stem: str = "model", index: str = "model.safetensors.index.json") -> Path:
    where = {}
    for number in (1, 2):
        file = f"{stem}-{number:05d}-of-00002.safetensors"
        array = np.full(number, number, np.float32)
        safetensors.numpy.save_file({f"t{number}": array}, folder / file)
        where[f"t{number}"] = file
    (folder / index).write_text(json.dumps({"weight_map": where}))
    return folder / index


def opened(folder: Path) -> str:
    with checkpoints.open(folder) as found:
        return found.path.name


def put_all(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        put(folder / name, seed)


CHOSEN = {
    "safetensors before pickles": (
        ["model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"],
        "model.safetensors",
    ),
    "training state is passed over": (
        ["pytorch_model.bin", "optimizer.bin", "training_args.bin", "scheduler.bin",
         "rng_state_0.pth", "optimizer.pt", "scaler.pt"],
        "pytorch_model.bin",
    ),
    "the plain variant": (
        ["model.fp16.safetensors", "model.safetensors", "model.non_ema.safetensors"],
        "model.safetensors",
    ),
    "the only variant": (["model.fp16.safetensors", "README.md"], "model.fp16.safetensors"),
    "a known name before others": (
        ["consolidated.safetensors", "model.safetensors", "vae-ft.safetensors"],
        "model.safetensors",
    ),
    "a component of a pipeline": (
        ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors",
         "diffusion_pytorch_model.bin"],
        "diffusion_pytorch_model.safetensors",
    ),
    "the only one, whatever its name": (["my net v1.5.safetensors"], "my net v1.5.safetensors"),
    "a file before an index of its name": (
        ["model.safetensors", "pytorch_model.bin"], "model.safetensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHOSEN)
def test_the_rule(case: str, tmp_path: Path) -> None:
    names, expected = CHOSEN[case]
    put_all(tmp_path, *names)
    if "index" in case:
        put_set(tmp_path)
    with checkpoints.open(tmp_path) as found, checkpoints.open(tmp_path / expected) as alone:
        assert found.path == tmp_path / expected
        np.testing.assert_array_equal(found.read("w"), alone.read("w"))
        for name in names:
            if name not in (expected, "README.md") and not name.startswith(
                ("optim", "train", "sched", "rng", "scaler")
            ):
                assert any(name in note for note in found.notes), name
        assert alone.notes == ()


def test_sets_of_shards(tmp_path: Path) -> None:
    index = put_set(tmp_path)
    put(tmp_path / "pytorch_model.bin")
    assert opened(tmp_path) == index.name
    fp16 = put_set(tmp_path, "model.fp16", "model.safetensors.index.fp16.json")
    assert opened(tmp_path) == index.name
    index.unlink()
    with checkpoints.open(tmp_path) as found:
        assert found.path == fp16
        assert set(found) == {"t1", "t2"}


def test_shards_without_their_index_are_no_checkpoint(tmp_path: Path) -> None:
    put_set(tmp_path).unlink()
    with pytest.raises(FormatError, match="without weights"):
        checkpoints.open(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["a.safetensors", "b.safetensors"],
        ["model.fp16.safetensors", "model.bf16.safetensors"],
        ["epoch1.pth", "epoch2.pth"],
    ],
)
def test_what_is_left_open_is_named(names: list[str], tmp_path: Path) -> None:
    put_all(tmp_path, *names)
    with pytest.raises(FormatError) as caught:
        checkpoints.open(tmp_path)
    assert all(name in str(caught.value) for name in names)


def test_the_components_of_a_pipeline_are_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    for part in ("unet", "vae"):
        put(tmp_path / part / "diffusion_pytorch_model.safetensors")
        (tmp_path / part / "config.json").write_text('{"_class_name": "X"}')
    put(tmp_path / "text_encoder" / "model.safetensors", 3)
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{}")
    with pytest.raises(FormatError) as caught:
        checkpoints.open(tmp_path)
    assert "text_encoder, unet, vae" in str(caught.value)
    assert "scheduler" not in str(caught.value)
    assert opened(tmp_path / "unet") == "diffusion_pytorch_model.safetensors"


def test_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="without weights"):
        checkpoints.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FormatError, match="without weights"):
        checkpoints.open(tmp_path)


def test_a_config_is_told(tmp_path: Path) -> None:
    put(tmp_path / "model.safetensors")
    config = {"architectures": ["BertForMaskedLM"], "model_type": "bert", "hidden_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with checkpoints.open(tmp_path) as found:
        assert found.metadata["architectures"] == "BertForMaskedLM"
        assert found.metadata["model_type"] == "bert"
        assert json.loads(found.metadata["config"]) == config
    with checkpoints.open(tmp_path / "model.safetensors") as alone:
        assert json.loads(alone.metadata["config"]) == config
    for nonsense in ("{", "[]", "3", '{"architectures": 3, "model_type": []}', "[" * 100_000):
        (tmp_path / "config.json").write_text(nonsense)
        with checkpoints.open(tmp_path) as found:
            assert len(found) == 1
            assert "model_type" not in found.metadata


# Adapters, as peft writes them

ADAPTER = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/base",
    "r": 4, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"],
    "fan_in_fan_out": False, "bias": "none", "modules_to_save": None, "rank_pattern": {},
}  # fmt: skip


def put_adapter(folder: Path, suffix: str) -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(5)
    values = {
        f"base_model.model.model.layers.{i}.self_attn.{part}.lora_{half}.weight": generator.normal(
            size=(4, 32) if half == "A" else (32, 4)
        ).astype(np.float32)
        for i in range(2)
        for part in ("q_proj", "v_proj")
        for half in "AB"
    }
    items = [(TensorInfo(n, v.shape, v.dtype.name), lambda v=v: v) for n, v in values.items()]
    checkpoints.write(folder / f"adapter_model{suffix}", items)
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    return values


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_an_adapter_comes_with_its_config(suffix: str, tmp_path: Path) -> None:
    values = put_adapter(tmp_path, suffix)
    with checkpoints.open(tmp_path) as found:
        assert {name: found[name].shape for name in found} == {
            n: v.shape for n, v in values.items()
        }
        for name, value in values.items():
            np.testing.assert_array_equal(found.read(name), value)
        told = {key: value for key, value in found.metadata.items() if key.startswith("adapter.")}
        assert told["adapter.base_model_name_or_path"] == "org/base"
        assert (told["adapter.r"], told["adapter.lora_alpha"]) == ("4", "16")
        assert json.loads(told["adapter.target_modules"]) == ["q_proj", "v_proj"]
        assert told["adapter.fan_in_fan_out"] == "false"
        assert "adapter.modules_to_save" not in told
        assert any("LORA" in note and "org/base" in note for note in found.notes)


def test_a_model_beside_an_adapter_is_the_model(tmp_path: Path) -> None:
    put_adapter(tmp_path, ".safetensors")
    put(tmp_path / "model.safetensors")
    with checkpoints.open(tmp_path) as found:
        assert list(found) == ["w"]
        assert not any(key.startswith("adapter.") for key in found.metadata)
        assert any("adapter_model.safetensors" in note for note in found.notes)


def test_an_adapter_whose_config_cannot_be_read_is_refused(tmp_path: Path) -> None:
    put_adapter(tmp_path, ".safetensors")
    for nonsense in ("{", "[]", "[" * 100_000):
        (tmp_path / "adapter_config.json").write_text(nonsense)
        with pytest.raises(CorruptFile):
            checkpoints.open(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with checkpoints.open(tmp_path) as found:
        assert len(found) == 8


# The hub's cache


def test_the_hubs_cache_of_linked_snapshots(tmp_path: Path) -> None:
    """Files of a snapshot are links into one folder of blobs, named by their hashes."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    put_set(snapshot)
    (snapshot / "config.json").write_text('{"model_type": "net"}')
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / f"{number:064d}")
        path.symlink_to(Path("../../blobs") / f"{number:064d}")
    for given in (snapshot, snapshot / "model.safetensors.index.json"):
        with checkpoints.open(given) as found:
            assert set(found) == {"t1", "t2"}
            assert found.read("t2").tolist() == [2, 2]
    with checkpoints.open(snapshot) as found:
        assert found.metadata["model_type"] == "net"
    outside = put(tmp_path / "outside.safetensors")
    shard = snapshot / "model-00001-of-00002.safetensors"
    shard.unlink()
    shard.symlink_to(outside)
    with pytest.raises(UnsafeFile):
        checkpoints.open(snapshot)


def test_a_file_by_itself_is_read_with_the_configs_beside_it(tmp_path: Path) -> None:
    file = put(tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text('{"num_attention_heads": 3, "model_type": "bloom"}')
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 16}')
    with checkpoints.open(file) as found:
        assert found.metadata["model_type"] == "bloom"
        assert (found.metadata["adapter.r"], found.metadata["adapter.lora_alpha"]) == ("4", "16")


def test_configs_are_not_read_for_one_of_several_files(tmp_path: Path) -> None:
    """They may be those of another model."""
    put_all(tmp_path, "first.safetensors", "second.safetensors", "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bloom"}')
    for name, known in (("first", False), ("second", False), ("model", True)):
        with checkpoints.open(tmp_path / f"{name}.safetensors") as found:
            assert ("model_type" in found.metadata) == known


def test_a_broken_config_beside_a_file_is_passed_over(tmp_path: Path) -> None:
    file = put(tmp_path / "model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{")
    with checkpoints.open(file) as found:
        assert any("adapter_config.json passed over" in note for note in found.notes)
