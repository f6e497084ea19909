"""Deltas: the file comes back to the bit, from the right base only, and no listing is believed."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import regraft as rg
from regraft import checkpoints
from regraft.errors import CorruptFile, FormatError, RegraftError, StalePlan
from regraft.lineage import delta_frames, deltas
from regraft.tensors import TensorInfo


def saved(path: Path, arrays: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    items = [(TensorInfo(n, a.shape, a.dtype.name), lambda a=a: a) for n, a in arrays.items()]
    kind = None if path.suffix else "safetensors"
    kind = "safetensors" if path.suffix == ".delta" else kind
    checkpoints.write(path, items, metadata, force=True, format=kind)
    return path


def base_arrays(seed: int = 0, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    made = {f"l{i}.w": random.standard_normal((64, 90)).astype(dtype) for i in range(8)}
    made |= {f"l{i}.b": random.standard_normal(64).astype(dtype) for i in range(8)}
    return made


def tuned_arrays(base: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tuned = dict(base)
    for name in ("l6.w", "l7.w", "l7.b"):
        noise = np.random.default_rng(3).standard_normal(base[name].shape)
        tuned[name] = (base[name].astype(np.float64) + 1e-3 * noise).astype(base[name].dtype)
    return tuned


def there_and_back(base: Path, tuned: Path, folder: Path) -> float:
    delta = rg.make_delta(base, tuned, folder / "d.delta", force=True)
    back = rg.apply_delta(base, delta, folder / "back", force=True)
    assert back.read_bytes() == tuned.read_bytes()
    return delta.stat().st_size / tuned.stat().st_size


@pytest.mark.parametrize("end", ["safetensors", "pth", "npz", "gguf", "msgpack", "weights.h5"])
@pytest.mark.parametrize("start", ["safetensors", "pth"])
def test_every_format_comes_back_whole(tmp_path: Path, start: str, end: str) -> None:
    base = base_arrays()
    before = saved(tmp_path / f"base.{start}", base)
    after = saved(tmp_path / f"tuned.{end}", tuned_arrays(base), {"note": "ünï"})
    assert there_and_back(before, after, tmp_path) <= 0.3


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, np.float64, ml_dtypes.float8_e5m2]
)
def test_every_width(tmp_path: Path, dtype: Any) -> None:
    base = base_arrays(dtype=dtype)
    before = saved(tmp_path / "a.safetensors", base)
    after = saved(tmp_path / "b.safetensors", tuned_arrays(base))
    assert there_and_back(before, after, tmp_path) <= 0.35


def test_never_larger(tmp_path: Path) -> None:
    before = saved(tmp_path / "a.safetensors", base_arrays())
    noise = np.random.default_rng(5)
    bits = {n: noise.integers(0, 2**32, a.shape, np.uint32) for n, a in base_arrays().items()}
    for name, arrays in (("same names", bits), ("others", {f"x{n}": a for n, a in bits.items()})):
        after = saved(tmp_path / f"{name}.safetensors", arrays)
        assert there_and_back(before, after, tmp_path) <= 1.01
    compressed = tmp_path / "c.npz"
    np.savez_compressed(compressed, **bits)
    assert there_and_back(before, compressed, tmp_path) <= 1.01


def test_renamed_and_transposed_tensors_find_their_base(tmp_path: Path) -> None:
    base = base_arrays()
    tuned = {f"new.{n[::-1]}": a.T.copy() if a.ndim > 1 else a for n, a in base.items()}
    before = saved(tmp_path / "a.safetensors", base)
    after = saved(tmp_path / "b.safetensors", tuned)
    assert there_and_back(before, after, tmp_path) <= 0.05


def test_empty_scalar_and_tied(tmp_path: Path) -> None:
    base = {"e": np.zeros((0, 3), np.float32), "s": np.array(2.5), "i": np.arange(5)}
    before = saved(tmp_path / "a.safetensors", base)
    after = saved(tmp_path / "b.safetensors", {**base, "s": np.array(3.5)})
    there_and_back(before, after, tmp_path)
    there_and_back(before, before, tmp_path)


@given(st.lists(st.integers(0, 255), min_size=4, max_size=400), st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=50, deadline=None)
def test_grouping_is_undone(values: list[int], width: int) -> None:
    own = np.array(values[: len(values) // width * width], np.uint8)
    grouped = b"".join(delta_frames.grouped(own, None, width))
    back = delta_frames.ungrouped(grouped, width)
    np.testing.assert_array_equal(back, own)
    assert back.flags.writeable  # the base's bytes are laid over it in place


def test_a_last_block_of_a_single_value(tmp_path: Path) -> None:
    base = {"w": np.random.default_rng(1).standard_normal((1 << 20) + 1).astype(np.float32)}
    tuned = {"w": base["w"] * np.float32(1.001)}
    before = saved(tmp_path / "a.safetensors", base)
    assert there_and_back(before, saved(tmp_path / "b.safetensors", tuned), tmp_path) < 0.9


def test_another_base_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    base = base_arrays()
    before = saved(tmp_path / "a.safetensors", base)
    after = saved(tmp_path / "b.safetensors", tuned_arrays(base))
    delta = rg.make_delta(before, after, tmp_path / "d")
    changed = {n: a + np.float32(n == "l2.b") for n, a in base.items()}
    for wrong in (changed, base_arrays(seed=1), {"x": base["l0.w"]}):
        other = saved(tmp_path / "other.safetensors", wrong)
        with pytest.raises(StalePlan, match="base that it was made from"):
            rg.apply_delta(other, delta, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    # The same tensors in another format are the same base.
    again = saved(tmp_path / "again.pth", base)
    assert rg.apply_delta(again, delta, tmp_path / "out").read_bytes() == after.read_bytes()
    with pytest.raises(FormatError, match="exists"):
        rg.apply_delta(before, delta, tmp_path / "out")
    with pytest.raises(FormatError, match="no delta"):
        rg.apply_delta(before, after, tmp_path / "out2")


def forged(path: Path, listing: dict[str, Any] | str, frames: dict[str, bytes]) -> Path:
    text = listing if isinstance(listing, str) else json.dumps(listing)
    arrays = {n: np.frombuffer(data, np.uint8) for n, data in frames.items()}
    return saved(path, arrays, {deltas.KEY: text})


def frames_of(delta: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    with rg.open(delta) as found:
        listing = json.loads(found.metadata[deltas.KEY])
        return listing, {name: found.read(name).tobytes() for name in found}


def test_attacks(tmp_path: Path) -> None:
    base = base_arrays()
    before = saved(tmp_path / "a.safetensors", base)
    after = saved(tmp_path / "b.safetensors", tuned_arrays(base))
    good, frames = frames_of(rg.make_delta(before, after, tmp_path / "good"))
    changed = next(n for n, s in good["tensors"].items() if s["coding"] == "xor")
    same = next(n for n, s in good["tensors"].items() if s["coding"] == "same")
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))

    def with_span(name: str, **facts: Any) -> dict[str, Any]:
        return {**good, "tensors": {**good["tensors"], name: {**good["tensors"][name], **facts}}}

    frame = f"tensor/{changed}"
    cases: list[tuple[Any, dict[str, bytes]]] = [
        ("{", frames),
        ("[" * 50_000, frames),
        ({**good, "schema_version": 2}, frames),
        ({**good, "size": 1 << 60}, frames),
        ({**good, "size": 10}, frames),
        ({**good, "size": -5}, frames),
        ({**good, "tuned_hash": "0" * 64}, frames),
        (with_span(same, start=-8), frames),
        (with_span(same, start=1 << 62), frames),
        (with_span(changed, size=1 << 40), frames),
        (with_span(changed, width=0), frames),
        (with_span(changed, width=1 << 40), frames),
        (with_span(changed, coding="exec"), frames),
        (with_span(same, source="no such tensor"), frames),
        (with_span(same, ops=[{"op": "transpose", "axes": [0]}]), frames),
        (with_span(same, ops=[{"op": "reshape", "shape": [1 << 40]}]), frames),
        (with_span(same, ops=[{"op": "tile", "axis": 0, "count": 1 << 30}]), frames),
        (with_span(same, base="0" * 16), frames),
        (with_span(same, base=""), frames),
        (good, {**frames, frame: bomb}),
        (good, {**frames, frame: b"no frame"}),
        (good, {**frames, frame: frames[frame][:20]}),
        (good, {**frames, "rest": bomb}),
        (good, {**frames, "more": b"x"}),
        (good, {n: d for n, d in frames.items() if n != "rest"}),
        ({k: v for k, v in good.items() if k != "tensors"}, {"file": bomb}),
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, (listing, parts) in enumerate(cases):
        delta = forged(tmp_path / f"{number}.delta", listing, parts)
        with pytest.raises((CorruptFile, StalePlan, FormatError)):
            rg.apply_delta(before, delta, tmp_path / "out")
        assert not (tmp_path / "out").exists(), number
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 256 << 10
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_cut_off_deltas(tmp_path: Path) -> None:
    base = base_arrays()
    before = saved(tmp_path / "a.safetensors", base)
    delta = rg.make_delta(
        before, saved(tmp_path / "b.safetensors", tuned_arrays(base)), tmp_path / "d"
    )
    data = delta.read_bytes()
    for size in range(0, len(data), max(1, len(data) // 40)):
        (tmp_path / "cut").write_bytes(data[:size])
        with pytest.raises(RegraftError):
            rg.apply_delta(before, tmp_path / "cut", tmp_path / "out")


def test_several_files_are_refused(tmp_path: Path) -> None:
    base = base_arrays()
    before = saved(tmp_path / "a.safetensors", base)
    index = rg.convert(before, tmp_path / "s.safetensors", max_shard="60KB")
    with pytest.raises(FormatError, match="several files"):
        rg.make_delta(before, index, tmp_path / "d")
    shard = sorted(tmp_path.glob("s-*.safetensors"))[0]
    assert there_and_back(index, shard, tmp_path) < 0.2


def test_a_file_that_is_written_to_meanwhile_is_refused(tmp_path: Path) -> None:
    base = base_arrays()
    before = saved(tmp_path / "a.safetensors", base)
    after = saved(tmp_path / "b.safetensors", tuned_arrays(base))

    def written_to(name: str, _: int) -> None:
        if name == "l7.w":
            with after.open("r+b") as file:
                file.seek(-8, 2)
                file.write(bytes(8))

    with pytest.raises(FormatError, match="changed while it was read"):
        rg.make_delta(before, after, tmp_path / "d", progress=written_to)
    assert not (tmp_path / "d").exists()
    with pytest.raises(FormatError, match="a model"):
        rg.make_delta("torch.nn:Identity", after, tmp_path / "d")


def test_real_epochs(real: Path, tmp_path: Path) -> None:
    early, late = (
        real / "mini-xception" / f"fer2013_mini_XCEPTION.{n}-0.66.hdf5" for n in (102, 107)
    )
    assert there_and_back(early, late, tmp_path) < 0.8


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_another_base_is_refused_where_the_delta_needs_none(tmp_path: Path, dtype: str) -> None:
    """Tensors that have nothing in common with the base are kept whole; so are tiny files."""
    random = np.random.default_rng(4)
    for size in (3, 3000):
        arrays = [{n: random.integers(-99, 99, size).astype(dtype) for n in "ab"} for _ in range(3)]
        base, tuned, wrong = (
            saved(tmp_path / f"{name}.safetensors", held)
            for name, held in zip(("base", "tuned", "wrong"), arrays, strict=True)
        )
        delta = rg.make_delta(base, tuned, tmp_path / "d", force=True)
        with pytest.raises(StalePlan, match="base that it was made from"):
            rg.apply_delta(wrong, delta, tmp_path / "out")
        again = saved(tmp_path / "again.npz", arrays[0])
        out = rg.apply_delta(again, delta, tmp_path / "out")
        assert out.read_bytes() == tuned.read_bytes()
        out.unlink()


def test_old_files_of_pytorch(tmp_path: Path) -> None:
    """Their storages lie in the order of addresses, between numbers that leave them unaligned."""
    torch = pytest.importorskip("torch")
    base = {f"l{i}.w": torch.randn(64, 90) for i in range(12)}
    tuned = {n: (t + 1e-3 if n > "l7" else t).clone() for n, t in reversed(base.items())}
    for name, held in (("base.pt", base), ("tuned.pt", tuned)):
        torch.save(held, tmp_path / name, _use_new_zipfile_serialization=False)
    assert there_and_back(tmp_path / "base.pt", tmp_path / "tuned.pt", tmp_path) <= 0.3
