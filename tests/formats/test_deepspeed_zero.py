"""Folders of DeepSpeed's checkpoints: the weights that ZeRO cut up."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from formats.makers.deepspeed_zero import make
from formats.torch_truth import array, assert_same
from regraft import checkpoints
from regraft.errors import CorruptFile, FormatError, MissingShard, UnsafeFile

MODEL = "mp_rank_00_model_states.pt"
OPTIMIZER = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"


@pytest.mark.parametrize(
    ("stage", "processes"), [(1, 1), (1, 3), (2, 2), (2, 4), (3, 1), (3, 2), (3, 3), (3, 7)]
)
def test_weights_are_put_together(stage: int, processes: int, tmp_path: Path) -> None:
    expected = make(tmp_path / "global_step5", stage, processes)
    (tmp_path / "latest").write_text("global_step5")
    (tmp_path / "zero_to_fp32.py").write_text("raise SystemExit('never run')")
    for folder in (tmp_path, tmp_path / "global_step5"):
        with checkpoints.open(folder) as found:
            assert found.format == "deepspeed_zero"
            assert found.framework == "torch"
            assert_same(found, expected)
            assert found.ties == (("stem.weight", "tied.weight"),)
            assert found["half"].dtype == "float32"
            assert found["count"].dtype == "int64"


def test_files_of_before_the_zip_layout(tmp_path: Path) -> None:
    expected = make(tmp_path, 2, 2)
    for path in tmp_path.iterdir():
        value = torch.load(path, weights_only=False)
        torch.save(value, path, _use_new_zipfile_serialization=False)
    with checkpoints.open(tmp_path) as found:
        assert_same(found, expected)


def test_stage_as_a_member_of_an_enumeration(tmp_path: Path) -> None:
    expected = make(tmp_path, 3, 2)
    for path in tmp_path.glob("*_optim_states.pt"):
        value = torch.load(path, weights_only=False)
        value["optimizer_state_dict"]["zero_stage"] = _Stage(3)
        torch.save(value, path)
    with checkpoints.open(tmp_path) as found:
        assert_same(found, expected)


class _Stage:
    """Pickles as a call of its class with its value, as DeepSpeed's `ZeroStageEnum` does."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return _Stage, (self.value,)


def test_slices_read_only_the_files_that_they_touch(tmp_path: Path) -> None:
    expected = make(tmp_path, 3, 2)
    with checkpoints.open(tmp_path) as found:
        (tmp_path / OPTIMIZER.format(1)).unlink()
        part = (slice(0, 2), slice(0, 3), slice(1, 3), slice(0, 2))
        np.testing.assert_array_equal(
            found.read("stem.weight", part), expected["stem.weight"][part]
        )
        with pytest.raises(OSError, match="rank_1"):
            found.read("stem.weight")


def test_without_optimizer_files_weights_are_the_models(tmp_path: Path) -> None:
    make(tmp_path / "two", 2, 2)
    make(tmp_path / "three", 3, 2)
    for path in tmp_path.rglob("*_optim_states.pt"):
        path.unlink()
    state = torch.load(tmp_path / "two" / MODEL, weights_only=False)["module"]
    with checkpoints.open(tmp_path / "two") as found:
        assert_same(found, {name: array(tensor) for name, tensor in state.items()})
        assert found["stem.weight"].dtype == "bfloat16"
    with pytest.raises(MissingShard, match="optim"):
        checkpoints.open(tmp_path / "three")


def test_missing_files(tmp_path: Path) -> None:
    for stage, name in ((2, OPTIMIZER.format(1)), (2, MODEL), (3, OPTIMIZER.format(0)),
                        (3, "zero_pp_rank_1_mp_rank_00_model_states.pt")):  # fmt: skip
        folder = tmp_path / f"{stage}-{name}-missing"
        make(folder, stage, 2)
        (folder / name).unlink()
        with pytest.raises(FormatError) as caught:
            checkpoints.open(folder)
        assert isinstance(caught.value, MissingShard) or name == MODEL
    (tmp_path / "latest").write_text("global_step9")
    (tmp_path / "zero_to_fp32.py").write_text("")
    with pytest.raises(MissingShard, match="global_step9"):
        checkpoints.open(tmp_path)


def test_files_of_another_save_among_them(tmp_path: Path) -> None:
    make(tmp_path, 2, 2)
    shutil.copyfile(tmp_path / OPTIMIZER.format(0), tmp_path / OPTIMIZER.format(2))
    with pytest.raises(CorruptFile, match="3 files"):
        checkpoints.open(tmp_path)


@pytest.mark.parametrize("tag", ["../outside", "/etc", "a/../../b"])
def test_latest_that_leads_outside(tag: str, tmp_path: Path) -> None:
    make(tmp_path / "outside", 2, 2)
    folder = tmp_path / "inside"
    folder.mkdir()
    (folder / "latest").write_text(tag)
    (folder / "zero_to_fp32.py").write_text("")
    with pytest.raises(UnsafeFile):
        checkpoints.open(folder)


def test_links_that_lead_outside(tmp_path: Path) -> None:
    make(tmp_path / "outside", 2, 2)
    make(tmp_path / "inside", 2, 2)
    (tmp_path / "inside" / OPTIMIZER.format(0)).unlink()
    (tmp_path / "inside" / OPTIMIZER.format(0)).symlink_to(
        tmp_path / "outside" / OPTIMIZER.format(0)
    )
    with pytest.raises(UnsafeFile):
        checkpoints.open(tmp_path / "inside")


@pytest.mark.parametrize("name", ["mp_rank_01_model_states.pt", "layer_03-model_00-model_states.pt",
                                  "layer_0_expert_1_mp_rank_00_model_states.pt"])  # fmt: skip
def test_weights_that_are_also_divided_otherwise(name: str, tmp_path: Path) -> None:
    make(tmp_path, 2, 2)
    shutil.copyfile(tmp_path / MODEL, tmp_path / name)
    with pytest.raises(FormatError, match="model-parallel"):
        checkpoints.open(tmp_path)


def test_consolidated_weights_beside_are_preferred(tmp_path: Path) -> None:
    """As trainers of other libraries leave them."""
    import safetensors.torch

    make(tmp_path / "global_step5", 2, 2)
    (tmp_path / "latest").write_text("global_step5")
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    with checkpoints.open(tmp_path) as found:
        assert found.format == "safetensors"
        assert list(found) == ["w"]


def _model(path: Path, edit: Callable[[Any], None]) -> None:
    value = torch.load(path, weights_only=False)
    edit(value)
    torch.save(value, path)


def _larger(value: Any) -> None:
    value["param_shapes"][0]["stem.weight"] = torch.Size([40, 3, 3, 3])


def _smaller(value: Any) -> None:
    value["param_shapes"][0]["stem.weight"] = torch.Size([1, 3, 3, 3])


def _endless(value: Any) -> None:
    value["param_shapes"][0]["stem.weight"] = (1 << 61, 1 << 61)


def _negative(value: Any) -> None:
    value["param_shapes"][0]["stem.weight"] = (-4, 3)


def _nameless(value: Any) -> None:
    value["param_shapes"][0][3] = (4,)


def _fewer_groups(value: Any) -> None:
    value["param_shapes"].pop()


def _shapeless(value: Any) -> None:
    value["param_shapes"] = 3


def _twice(value: Any) -> None:
    value["buffer_names"].append("stem.weight")


def _other_frozen(value: Any) -> None:
    value["frozen_param_shapes"]["head.weight"] = torch.Size([9, 9])


def _no_frozen(value: Any) -> None:
    value["frozen_param_fragments"].clear()


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize(
    "edit", [_larger, _smaller, _endless, _negative, _nameless, _fewer_groups, _shapeless, _twice,
             _other_frozen, _no_frozen], ids=lambda edit: edit.__name__
)  # fmt: skip
def test_models_that_do_not_fit(edit: Callable[[Any], None], stage: int, tmp_path: Path) -> None:
    make(tmp_path, stage, 2)
    name = MODEL if stage == 2 else f"zero_pp_rank_0_{MODEL}"
    _model(tmp_path / name, edit)
    with pytest.raises(CorruptFile):
        checkpoints.open(tmp_path)


@pytest.mark.parametrize("stage", [2, 3])
def test_optimizers_that_do_not_fit(stage: int, tmp_path: Path) -> None:
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    edits: list[Callable[[dict[str, Any]], Any]] = [
        lambda state: state.pop("zero_stage"), lambda state: state.update(zero_stage=7),
        lambda state: state.pop("partition_count"), lambda state: state.update(partition_count="2"),
        lambda state: state.pop(key), lambda state: state[key].pop(),
        lambda state: state[key].insert(0, 3), lambda state: state.update({key: [torch.ones(2, 2)] * 2}),
        lambda state: state[key].__setitem__(0, state[key][0].half()),
        lambda state: state[key].__setitem__(0, state[key][0][:-9]),
    ]  # fmt: skip
    for index, edit in enumerate(edits):
        folder = tmp_path / str(index)
        make(folder, stage, 2)
        _model(folder / OPTIMIZER.format(0), lambda v, edit=edit: edit(v["optimizer_state_dict"]))
        with pytest.raises(CorruptFile):
            checkpoints.open(folder)


def test_groups_of_experts_are_refused(tmp_path: Path) -> None:
    make(tmp_path, 2, 2)
    for rank in (0, 1):
        _model(
            tmp_path / OPTIMIZER.format(rank),
            lambda value: value["optimizer_state_dict"].update(partition_count=[2, 1]),
        )
    with pytest.raises(FormatError, match="experts"):
        checkpoints.open(tmp_path)
