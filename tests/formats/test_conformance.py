"""What every format owes, for every format of the registry."""

from __future__ import annotations

import ast
import importlib
import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from formats.samples import Values, all_makers, arrays
from regraft import checkpoints, formats
from regraft.errors import (
    CorruptFile,
    FormatError,
    MissingShard,
    RegraftError,
    UnknownFormat,
    UnsafeFile,
)
from regraft.tensors import DTYPE_BITS, TensorInfo, numpy_dtype

NAMES = formats.names()
MAKERS = all_makers()
WRITERS = [name for name in NAMES if hasattr(formats.load(name), "write")]


def test_every_format_has_a_sample() -> None:
    assert tuple(sorted(MAKERS)) == NAMES


class Samples(dict[str, tuple[Path, Values]]):
    def __repr__(self) -> str:  # else a failing example prints all values
        return "samples"


def copy(path: Path, to: Path) -> None:
    if to.is_dir():
        shutil.rmtree(to)
    if path.is_dir():
        shutil.copytree(path, to)
    else:
        shutil.copyfile(path, to)


def essential(path: Path) -> list[Path]:
    """The files that a sample cannot do without."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    folder = tmp_path_factory.mktemp("samples")
    made = Samples()
    for name, (suffix, make) in MAKERS.items():
        path = folder / f"{name}{suffix}"
        made[name] = path, make(path)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_exactly_one_format_claims_a_sample(name: str, samples: Samples, tmp_path: Path) -> None:
    path, _ = samples[name]
    nameless = tmp_path / "checkpoint"  # what a file is must not hang on its ending
    copy(path, nameless)
    for file in (path, nameless):
        sample = formats.Sample(file)
        assert [n for n in NAMES if formats.load(n).sniff(sample)] == [name]
        with checkpoints.open(file) as found:
            assert found.format == name


@pytest.mark.parametrize("name", NAMES)
def test_values_and_slices(name: str, samples: Samples) -> None:
    path, expected = samples[name]
    with checkpoints.open(path) as found:
        assert set(found) == set(expected)
        for key, values in expected.items():
            info = found[key]
            assert (info.shape, info.dtype) == (values.shape, values.dtype.name)
            assert info.nbytes == values.nbytes
            read = found.read(key)
            np.testing.assert_array_equal(read, values)
            assert read.dtype == values.dtype
            if values.ndim and values.size:
                part = (slice(1, 2), *(slice(0, n) for n in values.shape[1:]))
                np.testing.assert_array_equal(found.read(key, part), values[part])
        with pytest.raises(FormatError):
            found.read("no such tensor")


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_file_gives_a_typed_error(name: str, samples: Samples, tmp_path: Path) -> None:
    path, _ = samples[name]
    for part in essential(path):
        data = part.read_bytes()
        for cut in (c for c in {0, 1, 7, 8, 100, len(data) // 2, len(data) - 1} if c < len(data)):
            short = tmp_path / path.name
            copy(path, short)
            (short / part.relative_to(path)).write_bytes(data[:cut])
            with pytest.raises(FormatError), checkpoints.open(short) as found:
                for key in found:
                    found.read(key)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4
    )
)
def test_a_damaged_file_gives_values_or_a_typed_error(
    name: str,
    samples: Samples,
    tmp_path_factory: pytest.TempPathFactory,
    changes: list[tuple[float, int]],
) -> None:
    path, _ = samples[name]
    damaged = tmp_path_factory.mktemp("damaged") / path.name
    copy(path, damaged)
    for part in essential(path):
        content = bytearray(part.read_bytes())
        for where, value in changes:  # most of what can be wrong is at the beginning
            content[int(where**2 * len(content))] = value
        (damaged / part.relative_to(path)).write_bytes(bytes(content))
    try:
        with checkpoints.open(damaged) as found:
            for key in found:
                found.read(key)
    except RegraftError as error:
        assert error.where
    finally:
        shutil.rmtree(damaged.parent)


def test_a_damaged_heap_does_not_loop_for_ever(samples: Samples, tmp_path: Path) -> None:
    """HDF5's own walk over this file never ends; found by the test above."""
    for name in ("keras_h5", "keras_weights_h5"):
        path, _ = samples[name]
        content = bytearray(path.read_bytes())
        heap = content.index(b"GCOL")
        content[heap + 8] += 192  # a little larger: what follows is zeros
        damaged = tmp_path / path.name
        damaged.write_bytes(bytes(content))
        with pytest.raises(CorruptFile, match="heap"):
            checkpoints.open(damaged)


_DTYPES = [np.dtype(t) for t in ("f2", "f4", "f8", "i1", "i4", "i8", "u1", "u2", "?", "c8")]


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    values=st.dictionaries(
        st.text("abcxyz_.0189", min_size=1, max_size=12).filter(lambda n: n.strip(".") == n),
        st.sampled_from(_DTYPES).flatmap(
            lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
        ),
        min_size=1,
        max_size=6,
    ),
    metadata=st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=3),
)
def test_what_is_written_is_read_to_the_bit(
    name: str,
    tmp_path_factory: pytest.TempPathFactory,
    values: Values,
    metadata: dict[str, str],
) -> None:
    held = getattr(formats.load(name), "WRITES", None)
    values = {n: v for n, v in values.items() if held is None or v.dtype.name in held}
    assume(values)
    path = tmp_path_factory.mktemp("written") / f"file{formats.load(name).SUFFIXES[0]}"
    items = [(TensorInfo(n, v.shape, v.dtype.name), lambda v=v: v) for n, v in values.items()]
    checkpoints.write(path, items, metadata, format=name)
    with checkpoints.open(path, container="") as found:
        assert found.format == name
        assert {n: found.read(n).tobytes() for n in found} == {
            n: v.tobytes() for n, v in values.items()
        }
        assert {n: (i.shape, i.dtype) for n, i in found.items()} == {
            n: (v.shape, v.dtype.name) for n, v in values.items()
        }
        assert {k: v for k, v in found.metadata.items() if k in metadata} == metadata


@pytest.mark.parametrize("name", [n for n in WRITERS if hasattr(formats.load(n), "WRITES")])
def test_the_dtypes_that_a_writer_names_are_held_and_others_refused(
    name: str, tmp_path: Path
) -> None:
    held = set(formats.load(name).WRITES)  # pyright: ignore[reportAttributeAccessIssue]
    path = tmp_path / f"file{formats.load(name).SUFFIXES[0]}"
    generator = np.random.default_rng(0)
    for dtype in DTYPE_BITS:
        values = generator.integers(0, 7, (3, 5)).astype(numpy_dtype(dtype))
        items = [(TensorInfo("odd", (3, 5), dtype), lambda v=values: v)]
        if dtype in held:
            checkpoints.write(path, items, force=True)
            with checkpoints.open(path) as found:
                assert found["odd"].dtype == dtype
                assert found.read("odd").tobytes() == values.tobytes()
            path.unlink()
        else:
            with pytest.raises(FormatError, match=f"(?s)odd.*{dtype}"):
                checkpoints.write(path, items)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["safetensors", "torch_zip"])
def test_extended_dtypes_are_written_and_read(name: str, tmp_path: Path) -> None:
    values = {
        "b": np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3),
        "f": np.arange(4).astype(ml_dtypes.float8_e4m3fn),
    }
    path = tmp_path / "file"
    items = [(TensorInfo(n, v.shape, v.dtype.name), lambda v=v: v) for n, v in values.items()]
    checkpoints.write(path, items, {}, format=name)
    with checkpoints.open(path) as found:
        for key, value in values.items():
            assert found[key].dtype == value.dtype.name
            assert found.read(key).tobytes() == value.tobytes()


def test_own_libraries_read_what_we_write(tmp_path: Path) -> None:
    import safetensors.numpy
    import torch

    values = {n: v for n, v in arrays().items() if n != "count"}
    items = [(TensorInfo(n, v.shape, v.dtype.name), lambda v=v: v) for n, v in values.items()]
    for suffix in (".safetensors", ".pth", ".npz"):
        checkpoints.write(tmp_path / f"a{suffix}", items, {"k": "v"})
    theirs = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    with np.load(tmp_path / "a.npz") as packed:
        for key, value in values.items():
            np.testing.assert_array_equal(theirs[key], value)
            np.testing.assert_array_equal(state[key].numpy(), value)
            np.testing.assert_array_equal(packed[key], value)


@pytest.mark.parametrize("name", WRITERS)
def test_a_failed_write_leaves_the_old_file_whole(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{formats.load(name).SUFFIXES[0]}"
    path.write_bytes(b"what was there")

    def fail() -> np.ndarray:
        raise RuntimeError("in the middle")

    good = np.zeros(3, np.float32)
    items = [(TensorInfo("a", (3,), "float32"), lambda: good),
             (TensorInfo("b", (3,), "float32"), fail)]  # fmt: skip
    with pytest.raises(RuntimeError):
        checkpoints.write(path, items, {}, force=True)
    assert path.read_bytes() == b"what was there"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(FormatError, match="exists"):
        checkpoints.write(path, items, {})


def test_formats_do_not_know_one_another() -> None:
    for name in NAMES:
        source = Path(str(importlib.import_module(f"regraft.formats.{name}").__file__))
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                named = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                others = {f"regraft.formats.{other}" for other in NAMES if other != name}
                assert not named & others, name


def test_unknown_and_absent_files(tmp_path: Path) -> None:
    for content in (b"", b"\x00" * 64, b"ggml\x01\x00\x00\x00", b"<html>"):
        path = tmp_path / "mystery.bin"
        path.write_bytes(content)
        with pytest.raises(UnknownFormat) as caught:
            checkpoints.open(path)
        assert caught.value.exit_code == 3
    for absent in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(FormatError):
            checkpoints.open(absent)
    with pytest.raises(UnknownFormat):
        checkpoints.write(tmp_path / "model.xyz", [], {})


# Shards


def _sharded(folder: Path, names: tuple[str, str] = ("a-1.safetensors", "a-2.safetensors")) -> Path:
    import safetensors.numpy

    values = [{"x": np.ones(2, np.float32)}, {"y": np.zeros(3, np.float32)}]
    for name, part in zip(names, values, strict=True):
        safetensors.numpy.save_file(part, folder / Path(name).name)
    index = folder / "a.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": names[0], "y": names[1]}}))
    return index


def test_shards_read_as_one_file(tmp_path: Path) -> None:
    for given_path in (_sharded(tmp_path), tmp_path):
        with checkpoints.open(given_path) as found:
            assert list(found) == ["x", "y"]
            np.testing.assert_array_equal(found.read("x"), np.ones(2))


def test_missing_and_escaping_shards(tmp_path: Path) -> None:
    index = _sharded(tmp_path)
    (tmp_path / "a-2.safetensors").unlink()
    with pytest.raises(MissingShard) as caught:
        checkpoints.open(index)
    assert caught.value.problems == ("a-2.safetensors",)
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(UnsafeFile):
        checkpoints.open(_sharded(inside, ("a-1.safetensors", "../a-1.safetensors")))
    (inside / "link.safetensors").symlink_to(tmp_path / "a-1.safetensors")
    with pytest.raises(UnsafeFile):
        checkpoints.open(_sharded_link(inside))


def _sharded_link(folder: Path) -> Path:
    index = folder / "b.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "link.safetensors"}}))
    return index


def test_an_index_that_lies(tmp_path: Path) -> None:
    index = _sharded(tmp_path)
    for content in ('{"weight_map": {"x": "a-2.safetensors", "y": "a-2.safetensors"}}',
                    '{"weight_map": {}}', "[]", "{", '{"weight_map": 3}'):  # fmt: skip
        index.write_text(content)
        with pytest.raises(FormatError):
            checkpoints.open(index)
