"""A content hash changes with every file that tensors are read from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from formats.makers import tensorflow, tensorflow_saved_model, torch_distcp
from regraft import checkpoints
from regraft.tensors import TensorInfo

VALUES = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)


def _onnx(folder: Path) -> Path:
    """A model whose values lie in a file beside it."""
    weight = numpy_helper.from_array(VALUES, "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    told = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", told[:1], told[1:], [weight]))
    onnx.save_model(
        model, folder / "m.onnx", save_as_external_data=True, location="data/values.bin",
        size_threshold=0,
    )  # fmt: skip
    return folder / "m.onnx"


def _index(folder: Path) -> Path:
    tensorflow.make(folder / "m")
    return folder / "m" / "ckpt.index"


def _saved_model(folder: Path) -> Path:
    tensorflow_saved_model.make(folder / "m")
    return folder / "m" / "saved_model.pb"


def _shards(folder: Path) -> Path:
    info = TensorInfo("w", VALUES.shape, "float32")
    checkpoints.write(folder / "a.safetensors", [(info, lambda: VALUES)])
    (folder / "m.safetensors.index.json").write_text('{"weight_map": {"w": "a.safetensors"}}')
    return folder / "m.safetensors.index.json"


def _linked(folder: Path) -> Path:
    """A distributed checkpoint as a model hub's cache keeps it: all its files are links."""
    torch_distcp.make(folder / "blobs")
    (folder / "m").mkdir()
    for path in (folder / "blobs").iterdir():
        (folder / "m" / path.name).symlink_to(path)
    return folder / "m"


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (_onnx, "data/values.bin"),
        (_index, "m/ckpt.data-00000-of-00001"),
        (_saved_model, "m/variables/variables.data-00000-of-00001"),
        (_shards, "a.safetensors"),
        (_linked, "blobs/__0_0.distcp"),
    ],
)
def test_a_hash_covers_what_tensors_are_read_from(
    make: Callable[[Path], Path], read: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    path = make(tmp_path)
    before = checkpoints.content_hash(path)
    with checkpoints.open(path) as found:
        assert found.sha256 == before
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    shutil.copytree(tmp_path, moved, symlinks=False)
    assert checkpoints.content_hash(moved / path.relative_to(tmp_path)) == before
    changed = tmp_path / read
    data = bytearray(changed.read_bytes())
    data[len(data) // 2] ^= 1
    changed.write_bytes(bytes(data))
    assert checkpoints.content_hash(path) != before
