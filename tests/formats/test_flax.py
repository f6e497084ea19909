"""Flax' MessagePack: trees that Flax wrote, trees that we wrote, and files that lie."""

from __future__ import annotations

import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft import checkpoints
from regraft.errors import CorruptFile, FormatError, UnknownFormat
from regraft.formats import _msgpack, flax_msgpack
from regraft.tensors import DTYPE_BITS, TensorInfo, numpy_dtype


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.Conv(4, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = x.reshape((x.shape[0], -1))
        return nn.Dense(2)(nn.relu(nn.Dense(3)(x)))


def variables(seed: int = 0) -> Any:
    """A model's variables, all with values of their own."""
    made = Net().init(jax.random.key(seed), jnp.zeros((1, 4, 4, 3)))
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(generator.normal(size=x.shape), x.dtype), made)


def flat(tree: Any) -> dict[str, np.ndarray]:
    listed = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(k.key for k in path): np.asarray(leaf) for path, leaf in listed}


def saved(folder: Path, tree: Any, name: str = "x.msgpack") -> Path:
    path = folder / name
    path.write_bytes(flax.serialization.to_bytes(tree))
    return path


def test_a_models_variables(tmp_path: Path) -> None:
    tree = variables()
    with checkpoints.open(saved(tmp_path, tree)) as found:
        expected = flat(tree)
        assert (found.format, found.framework) == ("flax_msgpack", "jax")
        assert set(found) == set(expected)
        assert "params/Dense_0/kernel" in found
        assert "batch_stats/BatchNorm_0/mean" in found
        for name, values in expected.items():
            np.testing.assert_array_equal(found.read(name), values)
    with checkpoints.open(saved(tmp_path, {"params": tree["params"]})) as found:
        assert found.container == "params"
        assert next(iter(found)) == "BatchNorm_0/bias"


def test_a_training_state_opens_its_parameters(tmp_path: Path) -> None:
    tree = variables()
    state = TrainState.create(apply_fn=None, params=tree["params"], tx=optax.adam(1e-3))
    state = state.apply_gradients(grads=tree["params"])
    with checkpoints.open(saved(tmp_path, state)) as found:
        assert found.container == "params"
        assert set(found) == set(flat(tree["params"]))
        np.testing.assert_array_equal(
            found.read("Dense_1/kernel"), state.params["Dense_1"]["kernel"]
        )
        assert found.metadata["step"] == "1"
    with checkpoints.open(tmp_path / "x.msgpack", container="") as found:
        assert "opt_state/0/mu/Dense_0/kernel" in found
        np.testing.assert_array_equal(
            found.read("opt_state/0/mu/Dense_0/kernel"), state.opt_state[0].mu["Dense_0"]["kernel"]
        )


def test_what_else_flax_writes(tmp_path: Path) -> None:
    tree = {
        "brain": jnp.arange(5, dtype=jnp.bfloat16),
        "scalar": np.float32(2.5),
        "short": np.int16(-3),
        "list": [np.arange(2), {"deep": np.arange(3.0)}],
        "number": 7, "rate": 0.125, "name": "resnet", "flag": True, "none": None, "empty": {},
        "complex": 1 + 2j,
        "words": np.array(["a", "bc"]),
        "slash/key": np.arange(4, dtype=np.uint8),
        "here": {"there": "//GDAPlaceholder:x"},
        "raw": b"bytes",
    }  # fmt: skip
    path = tmp_path / "x.msgpack"
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
    with checkpoints.open(path) as found:
        shapes = {name: (info.shape, info.dtype) for name, info in found.items()}
        assert shapes == {
            "brain": ((5,), "bfloat16"), "scalar": ((), "float32"), "short": ((), "int16"),
            "list/0": ((2,), "int64"), "list/1/deep": ((3,), "float64"),
            "slash/key": ((4,), "uint8"),
        }  # fmt: skip
        assert found.read("brain").dtype == ml_dtypes.bfloat16
        assert (found.read("scalar"), found.read("short")) == (2.5, -3)
        np.testing.assert_array_equal(found.read("list/1/deep"), [0, 1, 2])
        assert dict(found.metadata) == {
            "number": "7", "rate": "0.125", "name": "resnet", "flag": "true", "complex": "(1+2j)"
        }  # fmt: skip
        assert [note.partition(" ")[0] for note in found.notes] == ["raw", "words", "here/there"]


@pytest.mark.parametrize("chunk", [1, 7, 16, 40, 200])
def test_arrays_in_chunks(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", chunk)
    values = np.random.default_rng(0).normal(size=(5, 3, 2)).astype(np.float32)
    half = np.random.default_rng(1).normal(size=9).astype(ml_dtypes.bfloat16)
    path = tmp_path / "x.msgpack"
    path.write_bytes(flax.serialization.msgpack_serialize({"p": {"w": values, "h": half}}))
    with checkpoints.open(path) as found:
        assert {n: (i.shape, i.dtype) for n, i in found.items()} == {
            "p/h": ((9,), "bfloat16"), "p/w": ((5, 3, 2), "float32")
        }  # fmt: skip
        np.testing.assert_array_equal(found.read("p/w"), values)
        assert found.read("p/h").tobytes() == half.tobytes()
        for part in (np.s_[1:3, 0:3, 0:2], np.s_[4:5, 1:2, 1:2], np.s_[2:2, 0:3, 0:2],
                     np.s_[3:1, 0:3, 0:2]):  # fmt: skip
            np.testing.assert_array_equal(found.read("p/w", part), values[part])


@pytest.mark.parametrize("chunk", [1, 5, 64, 1 << 30])
def test_flax_reads_what_we_write(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flax_msgpack, "_CHUNK_BYTES", chunk)
    generator = np.random.default_rng(2)
    values = {
        f"params/{dtype}": generator.integers(0, 2, (3, 2)).astype(numpy_dtype(dtype))
        for dtype in DTYPE_BITS
    }
    values |= {
        "params/Dense_0/kernel": generator.normal(size=(3, 4)).astype(np.float32),
        "batch_stats/mean": generator.normal(size=4),
        "params/Dense_0/bias": generator.normal(size=4).astype(">f4"),
        "scalar": np.array(3.5, np.float32),
        "empty": np.zeros((0, 3), np.int8),
        "odd//name": np.arange(3),
    }
    items = [
        (TensorInfo(n, v.shape, v.dtype.newbyteorder("=").name), lambda v=v: v)
        for n, v in values.items()
    ]
    path = tmp_path / "x.msgpack"
    checkpoints.write(path, items, {"regraft.lineage": "{}", "": "//GDAPlaceholder:ünï"})
    restored = flax.serialization.msgpack_restore(path.read_bytes())
    assert restored.pop("__metadata__") == {
        "regraft.lineage": "{}",
        "": "//GDAPlaceholder:ünï",
    }
    assert restored["odd"][""]["name"].tolist() == [0, 1, 2]
    for name, value in values.items():
        node = restored
        for part in name.split("/"):
            node = node[part]
        native = value.astype(value.dtype.newbyteorder("="))
        assert (node.shape, node.dtype) == (native.shape, native.dtype)
        assert node.tobytes() == native.tobytes()
    with checkpoints.open(path, container="") as found:
        assert found.metadata[""] == "//GDAPlaceholder:ünï"
        assert set(found) == set(values)
        for name, value in values.items():
            native = value.astype(value.dtype.newbyteorder("="))
            assert found.read(name).tobytes() == native.tobytes()


def test_a_model_goes_out_and_comes_back_through_flax(tmp_path: Path) -> None:
    tree = variables(3)
    expected = flat(tree)
    items = [(TensorInfo(n, v.shape, v.dtype.name), lambda v=v: v) for n, v in expected.items()]
    checkpoints.write(tmp_path / "x.msgpack", items)
    back = flax.serialization.from_bytes(variables(9), (tmp_path / "x.msgpack").read_bytes())
    jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_names_that_no_tree_can_hold_are_refused(tmp_path: Path) -> None:
    value = np.zeros(2, np.float32)
    for names in (
        ("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b"), ("a/__msgpack_chunked_array__",),
        ("__metadata__/x",), ("/".join("abcdefghijklmnopqrstuvwxyzABCDEFGH"),), (),
    ):  # fmt: skip
        items = [(TensorInfo(name, (2,), "float32"), lambda: value) for name in names]
        with pytest.raises(FormatError):
            checkpoints.write(tmp_path / "x.msgpack", items)
        assert not list(tmp_path.iterdir())


def test_listing_imports_no_numpy_and_copies_no_array(tmp_path: Path) -> None:
    path = saved(tmp_path, {"params": {"w": np.zeros((64 << 20,), np.uint8)}})
    code = (
        f"import sys; sys.argv = ['regraft', 'inspect', {str(path)!r}]\n"
        "from regraft.cli import cli\ncli(standalone_mode=False)\n"
        "assert not {'numpy', 'msgpack', 'flax', 'jax'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    tracemalloc.start()
    with checkpoints.open(path) as found:
        assert found["w"].nbytes == 64 << 20
        part = found.read("w", (slice(5, 10),))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert part.shape == (5,)
    assert peak < 1 << 20


def test_arrays_lie_where_processors_like_them(tmp_path: Path) -> None:
    with checkpoints.open(saved(tmp_path, variables())) as found:
        assert all(found.read(name).flags.aligned for name in found)


def test_shards_as_transformers_writes_them(tmp_path: Path) -> None:
    parts = {"a.msgpack": {"enc": {"w": np.arange(3.0)}}, "b.msgpack": {"dec": {"w": np.ones(2)}}}
    for name, tree in parts.items():
        saved(tmp_path, tree, name)
    index = '{"weight_map": {"enc/w": "a.msgpack", "dec/w": "b.msgpack"}}'
    (tmp_path / "flax_model.msgpack.index.json").write_text(index)
    with checkpoints.open(tmp_path) as found:
        assert set(found) == {"enc/w", "dec/w"}
    (tmp_path / "flax_model.msgpack.index.json").unlink()
    (tmp_path / "b.msgpack").unlink()
    with checkpoints.open(tmp_path) as found:
        assert list(found) == ["enc/w"]


# The walk


_TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, width=32) | st.text(max_size=40) | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner,
                                                                 max_size=20),
    max_leaves=30,
)  # fmt: skip


def _plain(value: Any, data: bytes) -> Any:
    match value:
        case _msgpack.Bytes(start, stop):
            return data[start:stop]
        case list():
            return [_plain(item, data) for item in value]
        case dict():
            return {key: _plain(item, data) for key, item in value.items()}
    return value


@given(tree=_TREES, single=st.booleans())
@settings(deadline=None, max_examples=300)
def test_the_walk_agrees_with_the_library(tree: Any, single: bool) -> None:
    data = msgpack.packb(tree, use_single_float=single)
    walk = _msgpack.Walk(data, 0, len(data), "x")
    assert _plain(walk.value(), data) == msgpack.unpackb(data)
    assert walk.at == len(data)


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=500)
def test_any_bytes_give_a_value_or_a_typed_error(data: bytes) -> None:
    walk = _msgpack.Walk(data, 0, len(data), "x")
    try:
        walk.value()
    except CorruptFile:
        return
    assert walk.at <= len(data)


def _ext(payload: bytes, code: int = 1) -> bytes:
    return b"\xc9" + struct.pack(">Ib", len(payload), code) + payload


def _array(shape: Any, dtype: Any, data: bytes) -> bytes:
    return _ext(msgpack.packb((shape, dtype, data)))


def _tree(**parts: bytes) -> bytes:
    """A sound array first, so that it is taken for Flax'; then the parts."""
    parts = {"ok": _array([1], "float32", bytes(4)), **parts}
    inside = b"".join(msgpack.packb(key) + value for key, value in parts.items())
    return b"\xdf" + struct.pack(">I", len(parts)) + inside


def _chunked(shape: Any, chunks: Any) -> bytes:
    return (b"\x83" + msgpack.packb("__msgpack_chunked_array__") + b"\xc3"
            + msgpack.packb("shape") + shape + msgpack.packb("chunks") + chunks)  # fmt: skip


_FLOATS = _array([2], "float32", bytes(8))
LIES: dict[str, Callable[[], bytes]] = {
    "a map of 2^32-1": lambda: _tree(x=b"\xdf\xff\xff\xff\xff"),
    "a list of 2^32-1": lambda: _tree(x=b"\xdd\xff\xff\xff\xff"),
    "text of 2^32-1": lambda: _tree(x=b"\xdb\xff\xff\xff\xff"),
    "bytes of 2^32-1": lambda: _tree(x=b"\xc6\xff\xff\xff\xff"),
    "an extension of 2^32-1": lambda: _tree(x=b"\xc9\xff\xff\xff\xff\x01"),
    "deep lists": lambda: _tree(x=b"\x91" * 100_000 + b"\xc0"),
    "deep maps": lambda: _tree(x=b"\x81\xa0" * 100_000 + b"\xc0"),
    "two million nothings": lambda: _tree(x=b"\xdd\x00\x1e\x84\x80" + b"\xc0" * 2_000_000),
    "two million maps": lambda: _tree(x=b"\xdd\x00\x1e\x84\x80" + b"\x80" * 2_000_000),
    "a byte that begins nothing": lambda: _tree(x=b"\xc1"),
    "text that is no UTF-8": lambda: _tree(x=b"\xa2\xff\xfe"),
    "a key twice": lambda: _tree(x=b"\x82\xa1a\x01\xa1a\x02"),
    "a number and its text as keys": lambda: _tree(x=b"\x82\x01\x01\xa11\x02"),
    "a key of bytes": lambda: _tree(x=b"\x81\xc4\x01a\x01"),
    "a key of a list": lambda: _tree(x=b"\x81\x90\x01"),
    "a key of nothing": lambda: _tree(x=b"\x81\xc0\x01"),
    "bytes after the end": lambda: _tree() + b"\xc0",
    "a negative size": lambda: _tree(x=_array([-1], "float32", bytes(4))),
    "sizes that are true": lambda: _tree(x=_array([True], "int8", bytes(1))),
    "a size of text": lambda: _tree(x=_array(["1"], "float32", bytes(4))),
    "a shape that is no list": lambda: _tree(x=_array(1, "float32", bytes(4))),
    "too few bytes": lambda: _tree(x=_array([2], "float32", bytes(4))),
    "too many bytes": lambda: _tree(x=_array([2], "float32", bytes(12))),
    "a shape that overflows": lambda: _tree(x=_array([1 << 40, 1 << 40], "float32", bytes(4))),
    "an empty shape that overflows": lambda: _tree(x=_array([0, 1 << 62, 4], "float32", b"")),
    "forty axes": lambda: _tree(x=_array([1] * 40, "int8", bytes(1))),
    "a dtype of bytes": lambda: _tree(x=_array([1], b"float32", bytes(4))),
    "values of text": lambda: _tree(x=_ext(msgpack.packb(([1], "int8", "a")))),
    "an array of two parts": lambda: _tree(x=_ext(msgpack.packb(([1], "int8")))),
    "an array of nothing": lambda: _tree(x=_ext(b"")),
    "an array that is a map": lambda: _tree(x=_ext(b"\x80")),
    "an array with a tail": lambda: _tree(x=_ext(msgpack.packb(([1], "int8", b"a")) + b"\xc0")),
    "an array beyond its extension": lambda: _tree(x=_ext(b"\x93\x91\x01\xa4int8\xc6\0\0\xff\xff")),
    "a complex number of text": lambda: _tree(x=_ext(b"\x92\xa1a\xa1b", 2)),
    "a complex number of three": lambda: _tree(x=_ext(b"\x93\x01\x02\x03", 2)),
    "chunks without a shape": lambda: _tree(x=b"\x81" + msgpack.packb("__msgpack_chunked_array__")
                                            + b"\xc3"),
    "chunks that do not add up": lambda: _tree(
        x=_chunked(b"\x81\xa10\x05", b"\x81\xa10" + _FLOATS)),
    "chunks that are numbers": lambda: _tree(x=_chunked(b"\x81\xa10\x02", b"\x81\xa10\x02")),
    "chunks out of order": lambda: _tree(x=_chunked(b"\x81\xa10\x02", b"\x81\xa11" + _FLOATS)),
    "no chunks": lambda: _tree(x=_chunked(b"\x81\xa10\x00", b"\x80")),
    "chunks of two dtypes": lambda: _tree(x=_chunked(
        b"\x81\xa10\x04", b"\x82\xa10" + _FLOATS + b"\xa11" + _array([2], "int32", bytes(8)))),
    "chunks that are not flat": lambda: _tree(x=_chunked(
        b"\x81\xa10\x02", b"\x81\xa10" + _array([1, 2], "float32", bytes(8)))),
    "a chunked shape of -1": lambda: _tree(x=_chunked(b"\x81\xa10\xff", b"\x81\xa10" + _FLOATS)),
    "a long key above many arrays": lambda: _tree(x=b"\x81" + msgpack.packb("k" * 60_000)
        + b"\xdc" + struct.pack(">H", 60_000)
        + _ext(msgpack.packb(((), "int8", b"a"))) * 60_000),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.msgpack"
    path.write_bytes(LIES[name]())
    tracemalloc.start()
    with pytest.raises(CorruptFile) as caught:
        checkpoints.open(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.found
    assert peak < path.stat().st_size + (256 << 20)


def test_other_message_packs_and_pickles_are_not_claimed(tmp_path: Path) -> None:
    path = tmp_path / "x.msgpack"
    for content in (
        msgpack.packb({"a": 1}), msgpack.packb({}), msgpack.packb([1, 2]), b"\x81",
        b"\x89PNG\r\n\x1a\n", b"\x81\xff\xff\xff", b"\x82\xa1a\xc1",
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(UnknownFormat):
            checkpoints.open(path)


def test_a_copied_name_is_told(tmp_path: Path) -> None:
    tree = {"a": {"b": np.ones(1)}, "a/b": np.zeros(1)}
    with pytest.raises(CorruptFile, match="a/b"):
        checkpoints.open(saved(tmp_path, tree))
