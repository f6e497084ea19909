"""Folders of torch.distributed.checkpoint, made by two processes (`tests/fixtures`) and by one."""

from __future__ import annotations

import copy
import itertools
import math
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import FileSystemWriter, SerializationFormat

from formats.torch_truth import array, assert_same
from regraft import checkpoints
from regraft.errors import CorruptFile, FormatError, MissingShard, UnsafeFile
from regraft.formats import _assembly
from regraft.formats._assembly import Piece

FIXTURES = Path(__file__).parents[1] / "fixtures" / "torch_distcp"
Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def full() -> Arrays:
    tensors = safetensors.torch.load_file(FIXTURES / "full.safetensors")
    return {name: array(tensor) for name, tensor in tensors.items()}


def save(value: dict[str, Any], **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of saving without other processes
        dcp.save(value, **options)


@pytest.mark.parametrize("layout", ["pickled", "safetensors", "each_alone", "hugging_face"])
def test_pieces_of_two_processes(layout: str, full: Arrays) -> None:
    expected = {name: value for name, value in full.items() if name != "sharded"}
    with checkpoints.open(FIXTURES / layout) as found:
        assert found.format == "torch_distcp"
        assert found.framework == "torch"
        assert found.container == ("" if layout == "hugging_face" else "model")
        assert_same(found, expected)
        if layout in ("pickled", "safetensors"):
            assert any("epoch" in note and "left out" in note for note in found.notes)


def test_sharded_tensors(full: Arrays) -> None:
    with checkpoints.open(FIXTURES / "sharded_tensor") as found:
        assert_same(found, {"sharded": full["sharded"]})


def test_slices_read_only_the_files_that_they_touch(full: Arrays, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    shutil.copytree(FIXTURES / "pickled", folder)
    with checkpoints.open(folder) as found:
        (folder / "__1_0.distcp").unlink()
        rows, columns = full["rows.weight"], full["columns.weight"]
        part = found.read("rows.weight", (slice(0, 3), slice(1, 4)))
        np.testing.assert_array_equal(part, rows[:3, 1:4])
        part = found.read("columns.weight", (slice(0, 4), slice(0, 2)))
        np.testing.assert_array_equal(part, columns[:, :2])
        with pytest.raises(OSError, match="__1_0"):
            found.read("rows.weight")


def test_state_dicts_of_one_rank_are_read_or_left_out_by_name(full: Arrays) -> None:
    with checkpoints.open(FIXTURES / "dtensors_of_rank_0.pt") as found:
        whole = {"both.bias", "plain", "one.weight", "steps"}
        assert_same(found, {name: full[name] for name in whole})
        (note,) = found.notes
        assert "DTensor (Shard)" in note
        assert note.endswith("rows.weight, columns.weight, cube")
    with checkpoints.open(FIXTURES / "dtensors_of_rank_1.pt") as found:
        assert "one.weight" not in found  # it is all in the first
    for rank in (0, 1):
        with checkpoints.open(FIXTURES / f"shards_of_rank_{rank}.pt") as found:
            assert list(found) == ["plain"]
            assert "ShardedTensor" in found.notes[0]
            assert found.notes[0].endswith(": sharded")


@pytest.mark.parametrize("format", list(SerializationFormat))
def test_nested_state_dicts_of_one_process(format: SerializationFormat, tmp_path: Path) -> None:
    tensors = {"a.weight": torch.randn(3, 4), "b": torch.tensor(5), "low": torch.randn(4).half(),
               "many": torch.arange(6, dtype=torch.uint8).reshape(2, 3)}  # fmt: skip
    if format == SerializationFormat.TORCH_SAVE:
        tensors |= {"empty": torch.zeros(0, 3), "view": torch.randn(4, 3).t(),
                    "wide": torch.tensor([1, 2, 65535], dtype=torch.uint16)}  # fmt: skip
    value = {"model": tensors, "optimizer": {"state": {0: {"exp_avg": torch.randn(3)}}},
             "list": [torch.randn(2), {"x": torch.randn(1)}], "epoch": 3,
             "array": np.arange(3), "none": None}  # fmt: skip
    writer = FileSystemWriter(tmp_path / "x", serialization_format=format)
    save(copy.deepcopy(value), storage_writer=writer)
    with checkpoints.open(tmp_path / "x") as found:
        assert found.container == "model"
        assert_same(found, {name: array(tensor) for name, tensor in tensors.items()})
        note = next(note for note in found.notes if "pickled object" in note)
        assert all(name in note for name in ("epoch", "array", "none"))
    with checkpoints.open(tmp_path / "x", container="") as found:
        assert {"optimizer.state.0.exp_avg", "list.0", "list.1.x"} < set(found)


def test_files_that_are_missing(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    shutil.copytree(FIXTURES / "pickled", folder)
    (folder / "__1_0.distcp").unlink()
    with pytest.raises(MissingShard) as caught:
        checkpoints.open(folder)
    assert caught.value.problems == ("__1_0.distcp",)
    shutil.copytree(FIXTURES / "hugging_face", tmp_path / "y")
    next((tmp_path / "y").glob("shard-00001*")).unlink()
    with pytest.raises(CorruptFile, match="gaps"):
        checkpoints.open(tmp_path / "y")


def _edited(folder: Path, edit: Callable[[Any], None]) -> Path:
    """A copy of a folder with its metadata changed, by the library that knows its classes."""
    shutil.copytree(FIXTURES / "pickled", folder)
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    edit(metadata)
    path.write_bytes(pickle.dumps(metadata))
    return folder


def _chunks(metadata: Any) -> Any:
    return metadata.state_dict_metadata["model.rows.weight"].chunks


def _overlap(metadata: Any) -> None:
    _chunks(metadata)[0].sizes = torch.Size([4, 4])


def _gap(metadata: Any) -> None:
    _chunks(metadata)[0].sizes = torch.Size([2, 4])


def _outside(metadata: Any) -> None:
    metadata.state_dict_metadata["model.rows.weight"].size = torch.Size([4, 4])


def _huge(metadata: Any) -> None:
    metadata.state_dict_metadata["model.rows.weight"].size = torch.Size([1 << 60, 4])


def _without_pieces(metadata: Any) -> None:
    _chunks(metadata).clear()


def _without_place(metadata: Any) -> None:
    metadata.storage_data = {
        key: value for key, value in metadata.storage_data.items() if "rows" not in key.fqn
    }


def _elsewhere(metadata: Any) -> None:
    for key, value in metadata.storage_data.items():
        if key.fqn == "model.rows.weight":
            value.offset = 1 << 40


def _short(metadata: Any) -> None:
    for key, value in metadata.storage_data.items():
        if key.fqn == "model.rows.weight":
            value.length = 10


def _negative(metadata: Any) -> None:
    for value in metadata.storage_data.values():
        value.offset = -1


def _nameless(metadata: Any) -> None:
    for value in metadata.storage_data.values():
        value.relative_path = 3


def _empty(metadata: Any) -> None:
    metadata.storage_data = None


@pytest.mark.parametrize(
    "edit", [_overlap, _gap, _outside, _huge, _without_pieces, _without_place, _elsewhere, _short,
             _negative, _nameless, _empty], ids=lambda edit: edit.__name__
)  # fmt: skip
def test_metadata_that_does_not_add_up(edit: Callable[[Any], None], tmp_path: Path) -> None:
    with pytest.raises(CorruptFile):
        checkpoints.open(_edited(tmp_path / "x", edit))


@pytest.mark.parametrize("name", ["../outside.distcp", "/etc/passwd", "a\\b", "link.distcp", "a\0"])
def test_files_outside_the_folder(name: str, tmp_path: Path) -> None:
    def edit(metadata: Any) -> None:
        for value in metadata.storage_data.values():
            value.relative_path = name

    folder = _edited(tmp_path / "x", edit)
    shutil.copyfile(FIXTURES / "pickled" / "__0_0.distcp", tmp_path / "outside.distcp")
    (folder / "link.distcp").symlink_to(tmp_path / "outside.distcp")
    with pytest.raises(UnsafeFile):
        checkpoints.open(folder)


def test_a_piece_of_another_shape_or_dtype(tmp_path: Path) -> None:
    """The metadata is fulfilled at the time of reading, or it is an error."""

    def shape(metadata: Any) -> None:
        entry = metadata.state_dict_metadata["model.both.bias"]
        entry.size = entry.chunks[0].sizes = torch.Size([1, 3])
        entry.chunks[0].offsets = torch.Size([0, 0])
        index = next(k for k in metadata.storage_data if k.fqn == "model.both.bias")
        place = metadata.storage_data.pop(index)
        metadata.storage_data[type(index)("model.both.bias", [0, 0])] = place

    def dtype(metadata: Any) -> None:
        metadata.state_dict_metadata["model.both.bias"].properties.dtype = torch.int32

    for index, edit in enumerate((shape, dtype)):
        with checkpoints.open(_edited(tmp_path / str(index), edit)) as found:
            with pytest.raises(CorruptFile, match=r"both\.bias"):
                found.read("both.bias")
            assert found.read("plain").shape == (2, 2)


def test_entries_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    def edit(metadata: Any) -> None:
        metadata.state_dict_metadata["model.plain"].properties.dtype = torch.complex32
        for key, value in metadata.storage_data.items():
            if key.fqn == "model.both.bias":
                value.transform_descriptors = ["zstd"]

    with checkpoints.open(_edited(tmp_path / "x", edit)) as found:
        notes = "\n".join(found.notes)
        assert "extensions: model.both.bias" in notes
        assert "complex32" in notes
        assert "model.plain" in notes
        assert {"plain", "both.bias"}.isdisjoint(found)


def test_metadata_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "marker"),)

    shutil.copytree(FIXTURES / "pickled", tmp_path / "x")
    (tmp_path / "x" / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UnsafeFile):
        checkpoints.open(tmp_path / "x")
    assert not (tmp_path / "marker").exists()


def test_other_folders_are_not_claimed(tmp_path: Path) -> None:
    (tmp_path / ".metadata").mkdir()  # an editor's
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FormatError, match=r"without weights"):
        checkpoints.open(tmp_path)


# How pieces are put together


def _cut(draw: st.DrawFn, begin: int, end: int) -> list[tuple[int, int]]:
    cuts = sorted(draw(st.sets(st.integers(begin, end), max_size=3)) | {begin, end})
    return list(itertools.pairwise(cuts)) or [(begin, end)]


@st.composite
def _tilings(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Piece]]:
    """A shape, and boxes that fill it, each cut again along another axis."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=0, max_size=3)))
    boxes = [tuple((0, n) for n in shape)]
    for axis in draw(st.permutations(range(len(shape)))):
        boxes = [
            (*box[:axis], part, *box[axis + 1 :])
            for box in boxes
            for part in _cut(draw, *box[axis])
        ]
    pieces = [Piece(tuple(a for a, _ in box), tuple(b - a for a, b in box), None) for box in boxes]
    return shape, draw(st.permutations(pieces))


@settings(max_examples=150, deadline=None)
@given(tiling=_tilings(), data=st.data())
def test_pieces_that_fill_a_tensor_give_it(
    tiling: tuple[tuple[int, ...], list[Piece]], data: st.DataObject
) -> None:
    shape, pieces = tiling
    whole = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    held = [
        piece._replace(
            source=whole[tuple(slice(a, a + n) for a, n in zip(*piece[:2], strict=True))]
        )
        for piece in pieces
    ]
    _assembly.check(shape, held, "x")
    slices = tuple(
        slice(*sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))) for n in shape
    )
    for part in (None, slices):
        read = _assembly.assembled(shape, "int64", held, lambda p, s: p.source[s], part)
        np.testing.assert_array_equal(read, whole if part is None else whole[part])
    if len([piece for piece in pieces if math.prod(piece.sizes)]) > 1:
        lost = max(range(len(pieces)), key=lambda i: math.prod(pieces[i].sizes))
        for wrong in ([*pieces[:lost], *pieces[lost + 1 :]], [*pieces, pieces[lost]]):
            with pytest.raises(CorruptFile):
                _assembly.check(shape, wrong, "x")


def test_pieces_of_equal_volume_that_overlap_are_found() -> None:
    pieces = [Piece((0, 0), (2, 2), None), Piece((0, 1), (2, 2), None), Piece((2, 0), (2, 4), None)]
    with pytest.raises(CorruptFile, match="overlap"):
        _assembly.check((4, 4), pieces, "x")
    many = [Piece((i,) * 40, (1,) * 40, None) for i in range(2)]
    with pytest.raises(CorruptFile, match="axes"):
        _assembly.check((2,) * 40, many, "x")
