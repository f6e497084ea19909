"""Differences: every dtype, layouts and names, pieces of large tensors, and the two files as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import regraft as rg
from regraft import checkpoints
from regraft.lineage import correspondence, measuring
from regraft.lineage.measuring import Change, compared, effective_rank, pieces
from regraft.tensors import TensorInfo


def saved(path: Path, arrays: dict[str, Any]) -> Path:
    items = [(TensorInfo(n, a.shape, a.dtype.name), lambda a=a: a) for n, a in arrays.items()]
    checkpoints.write(path, items, force=True)
    return path


def files(folder: Path, base: dict[str, Any], tuned: dict[str, Any], end: str = "safetensors"):
    return saved(folder / f"base.{end}", base), saved(folder / f"tuned.{end}", tuned)


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def weights(count: int = 4, side: int = 12) -> dict[str, np.ndarray]:
    random = rng()
    made: dict[str, np.ndarray] = {}
    for i in range(count):
        made[f"layers.{i}.weight"] = random.standard_normal((side + i, side)).astype(np.float32)
        made[f"layers.{i}.bias"] = random.standard_normal(side + i).astype(np.float32)
    return made


@given(
    size=st.integers(0, 300),
    dtype=st.sampled_from(["float16", "float32", "float64", "bfloat16", "int8", "int64", "bool"]),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e25]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_sums_are_those_of_float64(size: int, dtype: str, scale: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    with np.errstate(all="ignore"):
        a, b = ((random.standard_normal(size) * scale).astype(kind) for _ in range(2))
    found = compared(a, b)
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    assert found.odd == size - finite.sum()
    x, y = x[finite], y[finite]
    assert found.a == pytest.approx(float(x @ x), rel=1e-5)
    assert found.both == pytest.approx(float((y - x) @ (y - x)), rel=1e-4)
    assert found.largest == pytest.approx(float(np.abs(y - x).max(initial=0)), rel=1e-5)
    assert found.same == (a.tobytes() == b.tobytes())


def test_what_is_no_number_is_counted_and_left_out() -> None:
    a = np.array([1, np.nan, np.inf, -0.0, 5], np.float32)
    assert compared(a, a.copy()) == Change(True, 26.0, 26.0, 0.0, 0.0, 2)
    b = np.array([1, np.nan, 3, 0.0, 7], np.float32)
    found = compared(a, b)
    assert (found.same, found.odd, found.largest) == (False, 2, 2.0)
    zero = compared(np.zeros(3), np.array([0.0, -0.0, 0.0]))
    assert not zero.same
    assert (zero.rel_l2, zero.cosine) == (0.0, 1.0)


def test_a_tensor_without_a_number_has_not_stayed_close(tmp_path: Path) -> None:
    base = weights()
    tuned = {n: np.full_like(a, np.nan) if "weight" in n else a for n, a in base.items()}
    found = rg.diff(*files(tmp_path, base, tuned))
    entry = found["layers.0.weight"]
    assert (entry.status, entry.odd) == ("moved", entry.shape[0] * entry.shape[1])
    assert all(np.isnan([entry.rel_l2, entry.max_abs, entry.cosine]))
    assert np.isnan(found.modules()["layers.0"].rel_l2)
    rg.report(tmp_path / "page.html", diff=found)
    assert f"{entry.odd} NaN or Inf" in (tmp_path / "page.html").read_text()
    assert rg.diff(*files(tmp_path, tuned, tuned)).same


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1, 1, 7, 2), (5,), (1, 40)])
def test_pieces_cover_a_tensor(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "PIECE", 16)
    array = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    found = [array if part is None else array[part] for part in pieces(shape, 4)]
    assert all(part.nbytes <= 16 or len(found) == 1 or part.size <= 2 for part in found)
    joined = np.concatenate([part.reshape(-1) for part in found])
    np.testing.assert_array_equal(joined, array.reshape(-1))


def test_effective_rank_of_what_is_known() -> None:
    random = rng()
    u, v = random.standard_normal((20, 1)), random.standard_normal((1, 9))
    assert effective_rank(u @ v) == pytest.approx(1)
    assert effective_rank(np.eye(6)) == pytest.approx(6)
    assert np.isnan(effective_rank(np.zeros((3, 3))))
    assert np.isnan(effective_rank(np.ones(3)))


@pytest.mark.parametrize("end", ["safetensors", "pth", "npz"])
def test_statuses(tmp_path: Path, end: str) -> None:
    base = weights()
    tuned = dict(base)
    tuned["layers.1.weight"] = base["layers.1.weight"] + np.float32(0.01)
    tuned["head.weight"] = rng().standard_normal((3, 5)).astype(np.float32)
    del tuned["layers.3.bias"]
    tuned["final.shift"] = tuned.pop("layers.2.bias")
    found = rg.diff(*files(tmp_path, base, tuned, end))
    assert found.counts() == {"identical": 5, "renamed": 1, "moved": 1, "fresh": 1, "gone": 1}
    assert found["final.shift"].base == "layers.2.bias"
    assert found["layers.1.weight"].max_abs == pytest.approx(0.01, rel=1e-3)
    assert found["layers.3.bias"].status == "gone"
    assert not found.same
    assert list(found)[-1] == "layers.3.bias"
    told = found.to_json()
    assert told["tensors"]["final.shift"]["base"] == "layers.2.bias"
    assert told["modules"]["layers.1"]["counts"] == {"identical": 1, "moved": 1}
    assert found.modules(1)["layers"].rel_l2 > 0
    assert "renamed final.shift" in str(found)


def test_order_of_values_is_seen(tmp_path: Path) -> None:
    base = {f"w{i}": rng().permuted(np.arange(90.0) + 100 * i).reshape(9, 10) for i in range(4)}
    base["square"] = rng().standard_normal((6, 6))
    tuned = dict(base)
    tuned["w1"] = base["w1"][::-1].copy()
    tuned["w2"] = base["w2"][:, rng().permutation(10)]
    tuned["square"] = base["square"].T.copy()
    tuned["other"] = tuned.pop("w3").T.copy()
    found = rg.diff(*files(tmp_path, base, tuned))
    assert found["w1"].note == "the same values, permuted along axis 0"
    assert found["w2"].note == "the same values, permuted along axis 1"
    assert found["square"].note == "the same values, transposed"
    assert found["square"].status == "moved"
    assert str(found["other"].ops[0]) == "transpose(1, 0)"
    assert (found["other"].status, found["other"].base) == ("renamed", "w3")


def test_wrappers_and_dtypes(tmp_path: Path) -> None:
    base = weights()
    base["scalar"] = np.array(3.5, np.float32)
    base["empty"] = np.zeros((0, 4), np.float32)
    tuned = {f"module.{n}": a.astype(ml_dtypes.bfloat16) for n, a in base.items()}
    tuned["module.scalar"] = base["scalar"]
    found = rg.diff(*files(tmp_path, base, tuned))
    assert found["module.scalar"].status == "renamed"
    assert found["module.layers.0.weight"].note == "the same values, cast to bfloat16"
    assert found["module.layers.0.weight"].base == "layers.0.weight"
    assert set(found.counts()) <= {"moved", "renamed"}


def test_close_values_and_their_module_under_other_names(tmp_path: Path) -> None:
    base, random = weights(), rng()
    names = {f"layers.{i}.": f"blk{(i + 1) % 4}/" for i in range(4)}
    tuned: dict[str, np.ndarray] = {}
    for old, new in names.items():
        w = base[f"{old}weight"]
        tuned[f"{new}kernel"] = (w + 0.05 * random.standard_normal(w.shape)).astype(np.float32).T
        tuned[f"{new}shift"] = base[f"{old}bias"] + np.float32(1)
    found = rg.diff(*files(tmp_path, base, tuned))
    for old, new in names.items():
        assert found[f"{new}kernel"].base == f"{old}weight"
        assert found[f"{new}kernel"].cosine > 0.99
        assert found[f"{new}shift"].base == f"{old}bias"


def test_equal_constants_and_the_order_of_modules_say_nothing_against_values(
    tmp_path: Path,
) -> None:
    base: dict[str, np.ndarray] = {}
    tuned: dict[str, np.ndarray] = {}
    random = rng()
    for i in range(2):
        base[f"layers.{i}.weight"] = random.standard_normal((16, 16)).astype(np.float32)
        base[f"layers.{i}.bias"] = np.zeros(16, np.float32)
        base[f"layers.{i}.gain"] = random.standard_normal(16).astype(np.float32)
    parts = {"kernel": "weight", "shift": "bias", "scale": "gain"}
    swapped = {"a": "layers.1", "b": "layers.0"}
    for new, old in swapped.items():
        for part, was in parts.items():
            far = {"weight": 0.01, "bias": 0, "gain": 1}[was]
            array = base[f"{old}.{was}"] + far * random.standard_normal(base[f"{old}.{was}"].shape)
            tuned[f"{new}.{part}"] = array.astype(np.float32)
    found = rg.diff(*files(tmp_path, base, tuned))
    told = {name: entry.base for name, entry in found.items()}
    assert told == {f"{n}.{p}": f"{o}.{w}" for n, o in swapped.items() for p, w in parts.items()}


def test_heads_of_one_shape_and_zeros_of_two_are_no_counterparts(tmp_path: Path) -> None:
    random = rng()
    body = {f"body.{i}.0.weight": random.standard_normal((8, 9)) for i in range(4)}
    base = body | {"fc.weight": random.standard_normal((10, 8)), "p": np.zeros((3, 5))}
    tuned = body | {"head.weight": random.standard_normal((10, 8)), "q": np.zeros((5, 3))}
    found = rg.diff(*files(tmp_path, base, tuned))
    assert found.counts() == {"identical": 4, "fresh": 2, "gone": 2}


def test_values_that_cannot_be_squared_are_close_to_nothing(tmp_path: Path) -> None:
    tiny, huge = (rng().standard_normal((12, 12)) * scale for scale in (1e-300, 1e200))
    base = {"a": tiny, "b": huge[:, :9].copy()}
    tuned = {"x": tiny[::-1] * 1.5, "y": huge[::-1, :9] * 1.5}
    one, other = (rg.open(path) for path in files(tmp_path, base, tuned, "npz"))
    plan = correspondence(one, one.read, other, other.read)
    assert plan.fresh == ["x", "y"]


def test_another_training_is_no_fine_tuning(tmp_path: Path) -> None:
    base = weights()
    other = {n: rng().permuted(a.reshape(-1)).reshape(a.shape) + 1e-3 for n, a in base.items()}
    (remark,) = rg.diff(*files(tmp_path, base, other)).remarks
    assert remark.code == "unrelated"
    drifted = {n: a + np.float32(0.3) * rng().standard_normal(a.shape) for n, a in base.items()}
    drifted = {n: a.astype(np.float32) for n, a in drifted.items()}
    (remark,) = rg.diff(*files(tmp_path, base, drifted)).remarks
    assert remark.code == "another-training"
    near = {n: a + np.float32(1e-3) for n, a in base.items()}
    assert not rg.diff(*files(tmp_path, base, near)).remarks


def test_large_tensors_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"w": rng().standard_normal((300, 50)).astype(np.float32)}
    tuned = {"w": base["w"] + np.float32(0.5) * (np.arange(300)[:, None] == 299)}
    paths = files(tmp_path, base, tuned)
    whole = rg.diff(*paths)["w"]
    monkeypatch.setattr(measuring, "PIECE", 1000)
    parts = rg.diff(*paths)["w"]
    assert parts.rel_l2 == pytest.approx(whole.rel_l2)
    assert parts.max_abs == whole.max_abs
    assert parts.cosine == pytest.approx(whole.cosine)
    ranked = rg.diff(*paths, ranks=True)["w"]
    assert ranked.rank == pytest.approx(1)


def test_real_silero_is_another_training(real: Path) -> None:
    folder = real / "silero-vad"
    found = rg.diff(folder / "silero_vad_16k_op15.onnx", folder / "silero_vad_16k.safetensors")
    assert found.counts() == {"renamed": 1, "moved": 14}
    assert [remark.code for remark in found.remarks] == ["another-training"]


def test_real_pair_of_layouts(real: Path) -> None:
    folder = real / "mtcnn-pnet"
    found = rg.diff(folder / "npy" / "det1.npy", folder / "torch" / "pnet.pt")
    assert found.counts() == {"renamed": 13}
    assert str(found["conv1.weight"].ops[0]) == "transpose(3, 2, 1, 0)"


def test_a_cast_under_another_name_is_told(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    base = {f"layer{i}.weight": random.standard_normal((12, 10)).astype("f") for i in range(4)}
    tuned = {f"m.stage_{i}.weight": base[f"layer{i}.weight"] for i in range(4)}
    tuned["m.stage_2.weight"] = tuned["m.stage_2.weight"].astype(np.float16)
    found = rg.diff(*files(tmp_path, base, tuned))
    entry = found["m.stage_2.weight"]
    assert (entry.status, entry.base) == ("moved", "layer2.weight")
    assert entry.note == "the same values, cast to float16"
    away = base["layer2.weight"] - tuned["m.stage_2.weight"].astype(np.float32)
    expected = np.linalg.norm(away) / np.linalg.norm(base["layer2.weight"])
    assert np.isclose(entry.rel_l2, expected, rtol=1e-4)
    assert found["m.stage_1.weight"].status == "renamed"
