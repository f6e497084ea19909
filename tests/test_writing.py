"""Tensors written to several files: as the hub's libraries read them, and whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import regraft as rg
from regraft import atomic, checkpoints, writing
from regraft.errors import CorruptFile, FormatError
from regraft.tensors import TensorInfo

Values = dict[str, np.ndarray[Any, Any]]


def values(seed: int = 0, count: int = 9) -> Values:
    generator = np.random.default_rng(seed)
    made: Values = {
        f"layers.{i}.weight": generator.normal(size=(i + 2, 25)).astype(np.float32)
        for i in range(count)
    }
    return {**made, "count": np.array(seed, np.int64), "empty": np.zeros((0, 3), np.float32)}


def write(path: Path, held: Values, **options: Any) -> Path:
    items = [(TensorInfo(n, v.shape, v.dtype.name), lambda v=v: v) for n, v in held.items()]
    return checkpoints.write(path, items, **options)


def read(path: Path) -> Values:
    with checkpoints.open(path) as found:
        return {name: found.read(name).copy() for name in found}


def equal(one: Values, other: Values) -> bool:
    return set(one) == set(other) and all(np.array_equal(one[name], other[name]) for name in one)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_and_their_index(suffix: str, tmp_path: Path) -> None:
    held = values()
    index = write(tmp_path / f"model{suffix}", held, max_shard=2000, metadata={"k": "v"})
    assert index == tmp_path / f"model{suffix}.index.json"
    files = sorted(p.name for p in tmp_path.iterdir())
    count = len(files) - 1
    assert files[:-1] == [f"model-{n:05d}-of-{count:05d}{suffix}" for n in range(1, count + 1)]
    assert files[-1] == index.name
    assert count > 2
    told = json.loads(index.read_text())
    assert told["metadata"]["total_size"] == sum(v.nbytes for v in held.values())
    assert told["metadata"]["total_parameters"] == sum(v.size for v in held.values())
    assert set(told["weight_map"]) == set(held)
    assert equal(read(index), held)
    assert equal(read(tmp_path), held)
    with checkpoints.open(index) as found:
        assert found.metadata["k"] == "v"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    limit=st.integers(1, 60),
)
def test_shards_are_divided_as_the_hub_divides_them(
    sizes: list[int], limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards

    folder = tmp_path_factory.mktemp("set")
    held = {f"t{i}": np.arange(n, dtype=np.float32) + i for i, n in enumerate(sizes)}
    written = write(folder / "model.safetensors", held, max_shard=limit)
    assert equal(read(written), held)
    state = {name: torch.from_numpy(array.copy()) for name, array in held.items()}
    theirs = split_torch_state_dict_into_shards(state, max_shard_size=limit)
    # Theirs takes empty tensors for views of one another, and puts large ones out of their order.
    if all(0 < 4 * n <= limit for n in sizes):
        ours = {p.name for p in folder.glob("*.safetensors")}
        assert ours == set(theirs.filename_to_tensors)
        if len(ours) > 1:
            assert json.loads(written.read_text())["weight_map"] == theirs.tensor_to_filename
    for file in folder.glob("*.safetensors"):
        with safetensors.safe_open(file, "np") as shard:
            kept = [shard.get_tensor(name) for name in shard.keys()]  # noqa: SIM118
        assert len(kept) == 1 or sum(array.nbytes for array in kept) <= limit


def test_what_fits_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    assert write(path, values(), max_shard="5GB") == path
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_transformers_loads_what_is_written(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
        vocab_size=60, max_position_embeddings=20,
    )  # fmt: skip
    model = BertModel(config).eval()
    written = rg.save(model, tmp_path / "model.safetensors", max_shard="20KB")
    assert written.name == "model.safetensors.index.json"
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    for shard in tmp_path.glob("model-*.safetensors"):
        with safetensors.safe_open(shard, "pt") as file:
            assert file.metadata()["format"] == "pt"
    config.save_pretrained(tmp_path)
    loaded, about = BertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not about["missing_keys"]
    assert not about["mismatched_keys"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    with checkpoints.open(tmp_path) as found:
        assert (found.metadata["model_type"], found.path) == ("bert", written)


def test_sizes_are_those_of_the_hub() -> None:
    assert [writing.size_of(s) for s in ("5GB", "5 gib", "1.5MB", "300", 7)] == [
        5 * 10**9, 5 << 30, 1_500_000, 300, 7,
    ]  # fmt: skip
    for nonsense in ("", "GB", "-1GB", "5PB", "0", 0, -3, "1e9"):
        with pytest.raises(FormatError):
            writing.size_of(nonsense)


def test_a_failed_write_leaves_the_old_set_whole(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", values(1), max_shard=2000)
    before = contents(tmp_path)

    def fail() -> np.ndarray[Any, Any]:
        raise RuntimeError("in the middle")

    items = [(TensorInfo(n, v.shape, v.dtype.name), lambda v=v: v) for n, v in values(2).items()]
    items[-3] = (items[-3][0], fail)
    with pytest.raises(RuntimeError):
        checkpoints.write(tmp_path / "model.safetensors", items, force=True, max_shard=2000)
    assert contents(tmp_path) == before
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


@pytest.mark.parametrize("limit", [2000, 900, 10**6])
def test_a_set_that_cannot_be_put_in_place_leaves_the_old_one(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever file it fails."""
    path = tmp_path / "model.safetensors"
    write(path, values(1), max_shard=2000)
    before = contents(tmp_path)
    rename = Path.rename
    for failing in range(20):
        countdown = iter([*[False] * failing, True])

        def counted(self: Path, target: Path, countdown: Iterator[bool] = countdown) -> Path:
            if next(countdown, False):
                raise OSError(28, "no space")
            return rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", counted)
            try:
                write(path, values(2), max_shard=limit, force=True)
            except OSError:
                assert contents(tmp_path) == before
                assert not [p for p in tmp_path.iterdir() if p.is_dir()]
            else:
                break
    else:
        pytest.fail("it never succeeded")
    assert failing > 2
    assert equal(read(tmp_path), values(2))


def test_what_is_killed_between_two_files_never_leaves_a_mixed_set(tmp_path: Path) -> None:
    """Both sets have the same names; the index that speaks of them is gone while they change."""
    path = tmp_path / "model.safetensors"
    write(path, values(1), max_shard=2000)
    script = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_writing
rename, calls = Path.rename, [0]
def counted(self, target):
    calls[0] += 1
    if calls[0] > int(sys.argv[1]):
        os._exit(9)
    return rename(self, target)
Path.rename = counted
test_writing.write(Path({str(path)!r}), test_writing.values(2), max_shard=2000, force=True)
"""
    done = subprocess.run([sys.executable, "-c", script, "5"], check=False)
    assert done.returncode == 9
    try:
        found = read(tmp_path)
    except FormatError:
        return
    assert equal(found, values(1)) or equal(found, values(2))


def test_an_older_set_of_the_same_name_goes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    (tmp_path / "model-notes.safetensors").write_bytes(b"not ours")
    write(path, values(1), max_shard=500)
    many = len(list(tmp_path.iterdir()))
    for limit in (2000, 10**6, 500):
        with pytest.raises(FormatError, match="exists"):
            write(path, values(2), max_shard=limit)
        write(path, values(limit), max_shard=limit, force=True)
        assert equal(read(path if limit == 10**6 else Path(f"{path}.index.json")), values(limit))
    assert len(list(tmp_path.iterdir())) == many
    assert (tmp_path / "model-notes.safetensors").read_bytes() == b"not ours"


def test_an_old_index_that_lies_takes_nothing_along(tmp_path: Path) -> None:
    other = tmp_path / "precious.safetensors"
    other.write_bytes(b"precious")
    outside = tmp_path.parent / "model-00001-of-00001.safetensors"
    outside.write_bytes(b"outside")
    path = tmp_path / "model.safetensors"
    for named in (other.name, f"../{outside.name}", str(outside)):
        (tmp_path / f"{path.name}.index.json").write_text(json.dumps({"weight_map": {"x": named}}))
        write(path, values(), max_shard=2000, force=True)
        assert other.read_bytes() == b"precious"
        assert outside.read_bytes() == b"outside"
    outside.unlink()


def test_formats_without_an_index_are_not_divided(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="single file"):
        write(tmp_path / "model.npz", values(), max_shard=2000)
    assert not list(tmp_path.iterdir())


def test_the_command_line_divides(tmp_path: Path) -> None:
    write(tmp_path / "whole.safetensors", values())
    command = [sys.executable, "-m", "regraft", "convert", "whole.safetensors", "m.safetensors"]
    done = subprocess.run(
        [*command, "--max-shard", "2KB"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "written to m.safetensors.index.json\n"
    assert equal(read(tmp_path / "m.safetensors.index.json"), values())
    done = subprocess.run(
        [*command, "--max-shard", "two"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == FormatError.exit_code
    assert "5GB" in done.stderr


def test_a_shard_of_another_set_is_found_out(tmp_path: Path) -> None:
    index = write(tmp_path / "a.safetensors", values(), max_shard=2000)
    write(tmp_path / "b.safetensors", {f"b.{n}": v for n, v in values().items()}, max_shard=2000)
    shard = next(tmp_path.glob("a-00002-*"))
    shard.write_bytes((tmp_path / shard.name.replace("a-", "b-")).read_bytes())
    with pytest.raises(CorruptFile, match="not where the index says"):
        checkpoints.open(index)


def test_a_temporary_folder_goes_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic.replacing_all(tmp_path, []) as folder:
        (folder / "x").write_bytes(b"x")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz", ".msgpack", ".gguf"])
@pytest.mark.parametrize(
    "array", [np.zeros((2, 3), np.float64), np.zeros((3, 2), np.float32), np.zeros(6, np.float32)]
)
def test_values_must_be_as_they_are_told(tmp_path: Path, suffix: str, array: Any) -> None:
    path = tmp_path / f"x{suffix}"
    with pytest.raises(FormatError, match="as the tensor is told to be"):
        checkpoints.write(path, [(TensorInfo("w", (2, 3), "float32"), lambda: array)])
    assert not path.exists()
