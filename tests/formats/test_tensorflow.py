"""TensorFlow's checkpoints, SavedModels and frozen graphs, compared with what TensorFlow reads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import regraft as rg
from formats import tables
from regraft import checkpoints
from regraft.errors import CorruptFile, FormatError, MissingShard, UnknownFormat, UnsafeFile
from regraft.formats import Sample, _crc32c, _object_graph, _snappy, _sstable, tensorflow_graph
from regraft.formats._bundle_slices import slice_key
from regraft.formats._object_graph import names_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    tf = pytest.importorskip("tensorflow")

v1 = tf.compat.v1
# Timings never fail a test.
patient = settings(deadline=None, suppress_health_check=list(HealthCheck))


def same(read: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    assert read.shape == expected.shape
    assert read.dtype == expected.dtype
    assert read.tobytes() == expected.tobytes()


def as_tensorflow_reads(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """All tensors that are numbers, by key."""
    reader = tf.train.load_checkpoint(str(path).removesuffix(".index"))
    dtypes = reader.get_variable_to_dtype_map()
    return {key: reader.get_tensor(key) for key, kind in dtypes.items() if kind != tf.string}


def values_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    with checkpoints.open(path, container="") as found:
        return {name: found.read(name) for name in found}


# Values

DTYPES = [
    "float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8",
    "uint16", "uint32", "uint64", "bool", "complex64", "complex128", "float8_e4m3fn",
    "float8_e5m2", "int4", "uint4",
]  # fmt: skip


def random_values(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, Any]:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    generator = np.random.default_rng(seed)
    if dtype in ("bool", "int4", "uint4"):
        return generator.integers(0, 2 if dtype == "bool" else 8, shape).astype(kind)
    count = int(np.prod(shape, dtype=int))
    return np.frombuffer(generator.bytes(count * kind.itemsize), kind).reshape(shape)


def test_every_dtype(tmp_path: Path) -> None:
    root, values = tf.Module(), {}
    for index, dtype in enumerate(DTYPES):
        for part, shape in enumerate([(3, 5), (), (0, 4)]):
            values[f"{dtype}_{part}"] = random_values(dtype, shape, index)
            setattr(root, f"{dtype}_{part}", tf.Variable(values[f"{dtype}_{part}"]))
    tf.train.Checkpoint(root).write(str(tmp_path / "ck"))
    for given_path in (tmp_path, tmp_path / "ck", tmp_path / "ck.index"):
        with checkpoints.open(given_path) as found:
            assert list(found) == list(values)
            assert (found.format, found.framework, found.order) == (
                "tensorflow",
                "keras",
                "definition",
            )
            for name, value in values.items():
                assert found[name].dtype == value.dtype.name
                same(found.read(name), value)
                if value.ndim == 2 and value.size:
                    same(found.read(name, (slice(1, 3), slice(0, 2))), value[1:3, :2])


def test_text_and_other_things_are_noted(tmp_path: Path) -> None:
    root = tf.Module()
    root.words, root.weight = tf.Variable(["a", "bc"]), tf.Variable([1.0, 2.0])
    tf.train.Checkpoint(root).write(str(tmp_path / "ck"))
    with checkpoints.open(tmp_path) as found:
        assert list(found) == ["weight"]
        assert any("words" in note for note in found.notes)


# TensorFlow 1


def saved_by_version_1(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    values = {
        "conv/weights": random_values("float32", (3, 3, 2, 4)),
        "conv/biases": random_values("float16", (4,)),
        "table": np.arange(20_000 * 6, dtype=np.float32).reshape(20_000, 6),
        "grid": random_values("float64", (5, 7)),
    }
    with tf.Graph().as_default(), v1.Session() as session:
        parts = {"table": (3, 0), "grid": (4, 1)}
        for name, value in values.items():
            split = parts.get(name)
            partitioner = v1.fixed_size_partitioner(*split) if split else None

            def part(shape: Any, dtype: Any, partition_info: Any, value: Any = value) -> Any:
                at = partition_info.var_offset if partition_info else [0] * value.ndim
                return value[tuple(slice(a, a + n) for a, n in zip(at, shape, strict=True))]

            v1.get_variable(name, value.shape, value.dtype, part, partitioner=partitioner)
        w = v1.get_variable("w", initializer=np.arange(5, dtype=np.float32))
        step = v1.train.get_or_create_global_step()
        v1.train.AdamOptimizer(0.1).minimize(tf.reduce_sum(w * w), global_step=step)
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(folder / "model"), global_step=7)
        values["w"] = np.arange(5, dtype=np.float32)
    return values


def test_version_1_of_tensorflow(tmp_path: Path) -> None:
    values = saved_by_version_1(tmp_path)
    with checkpoints.open(tmp_path) as found:
        assert found.order == "sorted"
        assert set(found) == set(values)
        for name, value in values.items():
            same(found.read(name), value)
        assert found.containers == {"": 10, "optimizer": 4, "bookkeeping": 1}
    with checkpoints.open(tmp_path / "model-7", container="optimizer") as found:
        assert set(found) == {"w/Adam", "w/Adam_1", "beta1_power", "beta2_power"}


@patient
@given(data=st.data())
def test_slices_of_split_variables(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "split"
    if not folder.is_dir():
        folder.mkdir()
        saved_by_version_1(folder)
    whole = np.arange(20_000 * 6, dtype=np.float32).reshape(20_000, 6)
    bounds = [
        sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in whole.shape
    ]
    part = tuple(slice(start, stop) for start, stop in bounds)
    with checkpoints.open(folder) as found:
        same(found.read("table", part), whole[part])


def test_version_1_of_checkpoints_is_refused_by_name(tmp_path: Path) -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        v1.get_variable("w", (3,))
        session.run(v1.global_variables_initializer())
        saver = v1.train.Saver(write_version=v1.train.SaverDef.V1)
        path = saver.save(session, str(tmp_path / "model.ckpt"))
    with pytest.raises(FormatError, match=r"version 1.*\n.*version 2") as caught:
        checkpoints.open(path)
    assert not isinstance(caught.value, CorruptFile)


@patient
@given(
    st.text(max_size=20),
    st.lists(st.tuples(st.integers(-1, 2**62), st.integers(-1, 2**62)), min_size=1, max_size=4),
)
def test_keys_of_slices_sort_as_their_numbers(name: str, extents: list[tuple[int, int]]) -> None:
    key = slice_key(name, extents)
    for axis, (start, length) in enumerate(extents):
        larger = list(extents)
        larger[axis] = start + 1, length
        assert slice_key(name, larger) > key


# Names


def test_containers_of_a_checkpoint(tmp_path: Path) -> None:
    net = tf.Module()
    net.encoder = [tf.Module(), tf.Module()]
    for index, layer in enumerate(net.encoder):
        layer.weight = tf.Variable(random_values("float32", (2, 3), index))
    net.table = {"a.b/c": tf.Variable(3.0)}
    tf.train.Checkpoint(net=net, step=tf.Variable(5, dtype=tf.int64)).save(str(tmp_path / "ck"))
    with checkpoints.open(tmp_path) as found:
        assert found.container == "net"
        assert list(found) == ["encoder/0/weight", "encoder/1/weight", "table/a.b/c"]
        for index, layer in enumerate(net.encoder):
            same(found.read(f"encoder/{index}/weight"), layer.weight.numpy())
    with checkpoints.open(tmp_path, container="") as found:
        assert {"step", "bookkeeping/save_counter", "net/encoder/0/weight"} < set(found)
        assert found["bookkeeping/save_counter"].kind == "counter"


@pytest.fixture(scope="session")
def keras_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a Keras model on TensorFlow wrote, in a process of its own."""
    folder = tmp_path_factory.mktemp("keras")
    script = Path(__file__).with_name("keras_tensorflow.py")
    run = subprocess.run([sys.executable, script, folder], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return folder


@pytest.mark.parametrize("kind", ["export", "saved", "checkpoint", "export/saved_model.pb"])
def test_keras_layers_have_their_own_names(kind: str, keras_files: Path) -> None:
    with np.load(keras_files / "values.npz") as values:
        expected = {name: values[name] for name in values if name not in "xy"}
    with checkpoints.open(keras_files / kind) as found:
        weights = {name: info for name, info in found.items() if info.kind == "weight"}
        assert set(weights) == set(expected)
        for name, value in expected.items():
            same(found.read(name), value)
        assert found["batch_normalization/gamma"].module == "BatchNormalization"
        assert found.order == "definition"


class KerasNet(nn.Module):
    """The network of `keras_tensorflow.py`, otherwise named."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4, eps=1e-3)
        self.dw = nn.Conv2d(4, 4, 2, groups=4)
        self.mlp = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))
        self.score = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.dw(self.bn(self.conv(x)))).mean((2, 3))
        return self.score(self.mlp(x) + x)


@pytest.mark.parametrize("kind", ["export", "saved", "checkpoint"])
def test_a_keras_model_arrives_in_torch(kind: str, keras_files: Path) -> None:
    target = KerasNet().eval()
    receipt = rg.load(keras_files / kind, target)
    assert (receipt.fresh, receipt.unused) == ([], [])
    with np.load(keras_files / "values.npz") as values, torch.no_grad():
        y = target(torch.from_numpy(values["x"].transpose(0, 3, 1, 2).copy()))
        np.testing.assert_allclose(y.numpy(), values["y"], atol=1e-5)


def test_a_saved_model_of_modules(tmp_path: Path) -> None:
    root = tf.Module()
    root.dense = tf.Module()
    root.dense.kernel = tf.Variable(random_values("float32", (3, 4)))
    tf.saved_model.save(root, str(tmp_path / "model"))
    with checkpoints.open(tmp_path / "model") as found:
        assert found.format == "tensorflow_saved_model"
        same(found.read("dense/kernel"), root.dense.kernel.numpy())
        assert found.metadata["tags"] == "serve"
        assert found.metadata["tensorflow_version"] == tf.__version__
    shutil.rmtree(tmp_path / "model/variables")
    with pytest.raises(MissingShard):
        checkpoints.open(tmp_path / "model")


# Folders


def several(folder: Path) -> Path:
    root = tf.Module()
    root.w = tf.Variable(0.0)
    keeper = tf.train.Checkpoint(root=root)
    for value in (1.0, 2.0):
        root.w.assign(value)
        keeper.save(str(folder / "ck"))
    return folder


def test_the_latest_of_several_is_opened(tmp_path: Path) -> None:
    several(tmp_path)
    with checkpoints.open(tmp_path) as found:
        assert float(found.read("w")) == 2.0
    with checkpoints.open(tmp_path / "ck-1") as found:
        assert float(found.read("w")) == 1.0
    # The folder was moved, or copied from another machine.
    note = tmp_path / "checkpoint"
    note.write_text('model_checkpoint_path: "/elsewhere/ck-1"\n')
    with checkpoints.open(tmp_path) as found:
        assert float(found.read("w")) == 1.0
    note.write_text('model_checkpoint_path: "ck-9"\n')
    with pytest.raises(MissingShard, match="ck-9"):
        checkpoints.open(tmp_path)
    note.write_text("nonsense")
    with pytest.raises(FormatError, match="2 checkpoints"):
        checkpoints.open(tmp_path)


def test_missing_and_foreign_data_files(tmp_path: Path) -> None:
    several(tmp_path)
    data = tmp_path / "ck-1.data-00000-of-00001"
    content = data.read_bytes()
    data.unlink()
    with pytest.raises(MissingShard) as caught:
        checkpoints.open(tmp_path / "ck-1.index")
    assert caught.value.problems == (data.name,)
    outside = tmp_path.parent / f"{tmp_path.name}.data"
    outside.write_bytes(content)
    data.symlink_to(outside)
    with pytest.raises(UnsafeFile):
        checkpoints.open(tmp_path / "ck-1.index")


# The index


@patient
@given(
    st.dictionaries(st.binary(max_size=12), st.binary(max_size=300), min_size=1, max_size=60),
    st.integers(1, 7),
    st.booleans(),
)
def test_tables_are_read(entries: dict[bytes, bytes], per_block: int, packed: bool) -> None:
    data = tables.table(entries, per_block, **({"pack": tables.snappy} if packed else {}))
    assert list(_sstable.entries(data, "here")) == sorted(entries.items())


_TAGS = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=200),
        st.tuples(st.integers(0, 2**12), st.integers(1, 64), st.sampled_from([1, 2, 3])),
    ),
    max_size=30,
)


@patient
@given(_TAGS, st.binary(min_size=1, max_size=70_000))
def test_snappy_blocks_are_unpacked(tags: list[Any], start: bytes) -> None:
    """Every kind of tag, copies that reach into themselves among them."""
    out, packed = start, tables.literal(start)
    for tag in tags:
        if isinstance(tag, bytes):
            out, packed = out + tag, packed + tables.literal(tag)
            continue
        far, length, kind = tag
        offset = far % min(len(out), 2**11 - 1) + 1
        length = 4 + length % 8 if kind == 1 else length
        packed += tables.copy(offset, length, kind)
        for _ in range(length):
            out += out[-offset : len(out) - offset + 1]
    packed = tables.varint(len(out)) + packed
    assert _snappy.decompressed(packed, "here") == out
    for cut in {0, 1, len(packed) // 2, len(packed) - 1}:
        with pytest.raises(CorruptFile):
            _snappy.decompressed(packed[:cut], "here")


@patient
@given(st.binary(max_size=3000), st.binary(max_size=60), st.integers(0, 200))
def test_snappy_of_others(data: bytes, piece: bytes, times: int) -> None:
    cramjam = pytest.importorskip("cramjam")
    content = data + piece * times
    packed = bytes(cramjam.snappy.compress_raw(content))
    assert _snappy.decompressed(packed, "here") == content
    assert bytes(cramjam.snappy.decompress_raw(tables.snappy(content))) == content


@patient
@given(st.binary(max_size=100))
def test_any_bytes_are_unpacked_or_refused(data: bytes) -> None:
    try:
        _snappy.decompressed(data, "here")
    except CorruptFile as error:
        assert error.where == "here"


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 2049, 4096, 40_001, (1 << 22) + 3])
def test_checksums(size: int) -> None:
    assert _crc32c.crc32c(b"123456789") == 0xE3069283
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    expected = int(crc_by_bits(data.tobytes())) if size < 50_000 else None
    if expected is not None:
        assert _crc32c.crc32c_of(data) == expected
    else:  # in two parts, joined by the plain loop
        head, tail = data[: 1 << 22], data[1 << 22 :]
        register = _crc32c.crc32c_of(head) ^ 0xFFFFFFFF
        table = _crc32c._table()
        for byte in tail.tolist():
            register = table[(register ^ byte) & 0xFF] ^ register >> 8
        assert _crc32c.crc32c_of(data) == register ^ 0xFFFFFFFF


def crc_by_bits(data: bytes) -> int:
    """CRC-32C bit by bit, as its definition has it."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


W = np.arange(6, dtype=np.float32).tobytes()


def test_several_data_files(tmp_path: Path) -> None:
    values = {f"v{i}": np.arange(i, i + 5, dtype=np.float32) for i in range(6)}
    entries, contents = {b"": tables.header(3)}, [b"", b"", b""]
    for index, (name, value) in enumerate(values.items()):
        shard = index % 3
        entries[name.encode()] = tables.bundle_entry(
            (5,), value.tobytes(), len(contents[shard]), shard=shard
        )
        contents[shard] += value.tobytes()
    for shard, content in enumerate(contents):
        (tmp_path / f"x.data-{shard:05d}-of-00003").write_bytes(content)
    (tmp_path / "x.index").write_bytes(tables.table(entries))
    found = values_of(tmp_path / "x")
    for name, value in as_tensorflow_reads(tmp_path / "x").items():
        same(found[name], value)
        same(value, values[name])
    (tmp_path / "x.data-00001-of-00003").unlink()
    with pytest.raises(MissingShard) as caught:
        checkpoints.open(tmp_path)
    assert caught.value.problems == ("x.data-00001-of-00003",)


def test_a_bundle_of_our_own_making_is_read_alike(tmp_path: Path) -> None:
    """The writer of the tests writes what TensorFlow reads: its lies are then lies."""
    entries = {b"w": tables.bundle_entry((2, 3), W, 0), b"v": tables.bundle_entry((6,), W, 24)}
    index = tables.bundle(tmp_path, entries, W + W)
    found = values_of(index)
    for key, value in as_tensorflow_reads(index).items():
        same(found[key], value)
    assert set(found) == {"v", "w"}


LIES = {
    "two tensors in the same bytes": {b"v": tables.bundle_entry((6,), W, 4)},
    "bytes beyond the data": {b"v": tables.bundle_entry((6,), W, 30)},
    "a size that the shape has not": {b"v": tables.bundle_entry((7,), W, 24)},
    "a shard that is not there": {b"v": tables.bundle_entry((6,), W, 24, shard=3)},
    "a dtype that is none": {b"v": tables.bundle_entry((6,), W, 24, dtype=77)},
    "a giant shape": {b"v": tables.bundle_entry((1 << 62, 1 << 62), W, 24)},
    "a giant shape of nothing": {b"v": tables.bundle_entry((0, 1 << 62), b"", 24)},
    "a negative size": {b"v": tables.bundle_entry((6,), W, 24, size=1 << 63)},
    "an unknown rank": {b"v": tables.field(1, 1) + tables.field(2, tables.field(3, 1))},
    "many axes": {b"v": tables.bundle_entry([1] * 65, W[:4], 24)},
    "a slice that is not there": {
        b"v": tables.bundle_entry((6,), b"", 24, slices=[tables.field(1, b"")])
    },
    "a key that is not UTF-8": {b"\xff": tables.bundle_entry((6,), W, 24)},
    "an entry that is no message": {b"v": b"\x0a\xff"},
}


@pytest.mark.parametrize("name", LIES)
def test_an_index_that_lies(name: str, tmp_path: Path) -> None:
    entries = {b"w": tables.bundle_entry((2, 3), W, 0), **LIES[name]}
    with pytest.raises(CorruptFile):
        checkpoints.open(tables.bundle(tmp_path, entries, W + W))


@pytest.mark.parametrize(
    "head", [tables.header(0), tables.header(1 << 30), b"", b"\xff", tables.header(needs=2),
             tables.header(endianness=1)],
)  # fmt: skip
def test_headers_that_are_refused(head: bytes, tmp_path: Path) -> None:
    with pytest.raises(FormatError):
        checkpoints.open(tables.bundle(tmp_path, {b"w": tables.bundle_entry((6,), W, 0)}, W, head))


def extent(start: int, length: int) -> bytes:
    return tables.field(1, tables.field(1, start) + tables.field(2, length))


@pytest.mark.parametrize(
    ("parts", "right"),
    [
        ([(0, 2), (2, 4)], True),
        ([(0, 2), (3, 3)], False),
        ([(0, 3), (2, 4)], False),
        ([(0, 2), (0, 2)], False),
        ([(0, 2)], False),
        ([(0, 6), (6, 2)], False),
    ],
)
def test_slices_must_tile_their_tensor(
    parts: list[tuple[int, int]], right: bool, tmp_path: Path
) -> None:
    whole = tables.bundle_entry((6,), b"", 0, slices=[extent(*part) for part in parts])
    entries, data = {b"w": whole}, b""
    for start, length in dict.fromkeys(parts):
        piece = np.arange(start, start + length, dtype=np.float32).tobytes()
        entries[slice_key("w", [(start, length)])] = tables.bundle_entry(
            (length,), piece, len(data)
        )
        data += piece
    index = tables.bundle(tmp_path, entries, data)
    if right:
        same(values_of(index)["w"], np.arange(6, dtype=np.float32))
        same(as_tensorflow_reads(index)["w"], np.arange(6, dtype=np.float32))
    else:
        with pytest.raises(CorruptFile):
            checkpoints.open(index)


def test_wrong_checksums_are_found(tmp_path: Path) -> None:
    entries = {b"w": tables.bundle_entry((6,), W, 0)}
    index = tables.bundle(tmp_path, entries, W)
    content = index.read_bytes()
    (tmp_path / "x.data-00000-of-00001").write_bytes(W[:-1] + b"x")
    with checkpoints.open(index) as found:
        with pytest.raises(CorruptFile, match="w"):
            found.read("w")
        assert found.read("w", (slice(0, 2),)).tolist() == [0, 1]  # no checksum of a part
    damaged = bytearray(content)
    damaged[3] ^= 1
    index.write_bytes(bytes(damaged))
    with pytest.raises(CorruptFile, match="checksum"):
        checkpoints.open(index)


def prefix_bomb() -> bytes:
    """A hundred thousand keys that each repeat a long one and add a letter."""
    long = b"k" * 500_000
    entries = [tables.entry(0, long, b"")]
    entries += [tables.entry(500_000, b"%06d" % i, b"") for i in range(40_000)]
    return tables.table_of([(b"z", tables.finished(b"".join(entries), [0]))])


def index_bomb() -> bytes:
    long = b"k" * 300_000
    entries = [tables.entry(0, long, b"\0\0")]
    entries += [tables.entry(300_000 + i, b"k", b"\x09\0") for i in range(50_000)]
    index = tables.finished(b"".join(entries), [0])
    block = index + b"\0" + tables.struct.pack("<I", tables.masked(index + b"\0"))
    handle = tables.varint(0) + tables.varint(len(index))
    magic = tables.struct.pack("<Q", tables.MAGIC)
    return block + (b"\0\0" + handle).ljust(40, b"\0") + magic


def same_block_again() -> bytes:
    block = tables.block_of([(b"a", b"x" * 100_000)])
    raw = block + b"\0" + tables.struct.pack("<I", tables.masked(block + b"\0"))
    handle = tables.varint(0) + tables.varint(len(block))
    index = tables.block_of([(b"%06d" % i, handle) for i in range(50_000)])
    at = len(raw)
    raw += index + b"\0" + tables.struct.pack("<I", tables.masked(index + b"\0"))
    last = tables.varint(at) + tables.varint(len(index))
    return raw + (b"\0\0" + last).ljust(40, b"\0") + tables.struct.pack("<Q", tables.MAGIC)


@pytest.mark.parametrize("bomb", [prefix_bomb, index_bomb, same_block_again])
def test_tables_that_multiply_are_refused(bomb: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.index"
    path.write_bytes(bomb())
    started = time.monotonic()
    with pytest.raises(CorruptFile):
        checkpoints.open(path)
    assert time.monotonic() - started < 10


def test_unsorted_keys_and_odd_blocks_are_refused() -> None:
    def read(block: bytes) -> None:
        list(_sstable.entries(tables.table_of([(b"z", block)]), "here"))

    for block in (
        tables.finished(tables.entry(0, b"b", b"") + tables.entry(0, b"a", b""), [0]),
        tables.finished(tables.entry(0, b"a", b"") + tables.entry(0, b"a", b""), [0]),
        tables.finished(tables.entry(3, b"b", b""), [0]),
        tables.finished(b"\0\xff\xff\xff\xff\x0f\0b", [0]),
        b"\xff\xff\xff\xff",
        b"ab",
        b"",
    ):
        with pytest.raises(CorruptFile):
            read(block)
    for data in (b"", b"x" * 60, b"\xff" * 40 + tables.struct.pack("<Q", tables.MAGIC)):
        with pytest.raises(CorruptFile):
            list(_sstable.entries(data, "here"))


# The object graph


def node(
    children: dict[str, int] | None = None, key: str = "", full_name: str = "", slots: Any = ()
) -> bytes:
    out = b""
    for name, child in (children or {}).items():
        out += tables.field(1, tables.field(1, child) + tables.field(2, name.encode()))
    if key:
        value = tables.field(1, b"VARIABLE_VALUE") + tables.field(2, full_name.encode())
        out += tables.field(2, value + tables.field(3, key.encode()))
    for variable, slot, state in slots:
        numbers = tables.field(1, variable) + tables.field(2, slot.encode())
        out += tables.field(3, numbers + tables.field(3, state))
    return tables.field(1, out)


def keyed(path: str) -> str:
    return f"{path}/.ATTRIBUTES/VARIABLE_VALUE"


def test_names_of_keras_2() -> None:
    """Stand-ins become layers' names; slots, metrics and counters are parts of their own."""
    kernel, slot = keyed("layer_with_weights-0/kernel"), "a/.OPTIMIZER_SLOT/optimizer/m"
    graph = b"".join(
        [
            node({"layer_with_weights-0": 1, "keras_api": 2, "optimizer": 5, "save_counter": 7}),
            node({"kernel": 3, "cell": 8}),
            node({"metrics": 4}),
            node(key=kernel, full_name="conv2d_3/kernel"),
            node(key=keyed("keras_api/metrics/0/total"), full_name="total"),
            node({"iter": 6}, slots=[(3, "m", 9), (99, "m", 9), (3, "m", 99)]),
            node(key=keyed("optimizer/iter"), full_name="Adam/iter"),
            node(key=keyed("save_counter"), full_name="save_counter"),
            node({"bias": 10}),
            node(key=keyed(slot), full_name="Adam/conv2d_3/kernel/m"),
            node(key=keyed("layer_with_weights-0/cell/bias"), full_name="lstm/lstm_cell/bias"),
        ]
    )
    keys = {
        kernel: ("conv2d_3/kernel",),
        keyed("layer_with_weights-0/cell/bias"): ("lstm/lstm_cell/bias",),
        keyed("keras_api/metrics/0/total"): ("bookkeeping", "keras_api/metrics"),
        keyed("optimizer/iter"): ("optimizer", "iter"),
        keyed("save_counter"): ("bookkeeping", "save_counter"),
        keyed(slot): ("optimizer", "conv2d_3/kernel/m"),
    }
    assert names_of(graph, keys, "here") == keys


def test_names_that_two_variables_share_give_way_to_paths() -> None:
    keys = [keyed(f"layer_with_weights-{i}/kernel") for i in range(2)]
    graph = b"".join(
        [
            node({"layer_with_weights-0": 1, "layer_with_weights-1": 2}),
            *(node({"kernel": 3 + i}) for i in range(2)),
            *(node(key=key, full_name="dense/kernel") for key in keys),
        ]
    )
    assert names_of(graph, keys, "here") == {
        key: (f"layer_with_weights-{i}/kernel",) for i, key in enumerate(keys)
    }


def test_graphs_in_circles_and_depths() -> None:
    """Cycles end, long ways are not followed, and what lies there keeps its key."""
    deep = b"".join(node({"x" * 900: i + 1}, key=f"k{i}") for i in range(500)) + node(key="end")
    keys = [*(f"k{i}" for i in range(500)), "end"]
    found = names_of(deep, keys, "here")
    assert set(found) == {"k0", "k1", "k2"}
    circle = node({"a": 1}) + node({"b": 0, "c": 1}, key="k")
    assert names_of(circle, ["k"], "here") == {"k": ("a", "VARIABLE_VALUE")}
    with pytest.raises(CorruptFile):
        names_of(node({"a": 9}), [], "here")
    assert names_of(b"", [], "here") == {}


def test_slots_of_a_variable_with_many_values_are_no_loop_in_a_loop() -> None:
    values = b"".join(tables.field(2, tables.field(3, b"%d" % i)) for i in range(20_000))
    graph = node({"a": 1, "optimizer": 2}) + tables.field(1, values)
    graph += node(slots=[(1, "m", 1)] * 20_000)
    started = time.process_time()
    assert names_of(graph, ["none"], "here") == {}
    assert time.process_time() - started < 10


@patient
@given(st.data())
def test_a_damaged_graph_gives_names_or_a_typed_error(data: st.DataObject) -> None:
    graph = bytearray(
        node({"layer_with_weights-0": 1, "optimizer": 2})
        + node({"kernel": 3})
        + node({"iter": 4}, slots=[(3, "m", 4)])
        + node(key="a", full_name="conv/kernel")
        + node(key="b", full_name="conv/kernel/m")
    )
    for _ in range(data.draw(st.integers(1, 5))):
        graph[data.draw(st.integers(0, len(graph) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = names_of(bytes(graph), ["a", "b"], "here")
    except CorruptFile as error:
        assert "here" in error.where
    else:
        assert set(found) <= {"a", "b"}


# Frozen graphs


def frozen(path: Path) -> tuple[Any, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A frozen network, an input `[n, h, w, c]` and its output."""
    generator = np.random.default_rng(0)

    def variable(name: str, *shape: int) -> Any:
        value = generator.uniform(0.1, 0.9, size=shape).astype(np.float32)
        return v1.get_variable(name, initializer=value, use_resource=False)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with tf.Graph().as_default() as graph, v1.Session() as session:
            x = v1.placeholder(tf.float32, (None, 7, 8, 3), "x")
            y = tf.nn.conv2d(x, variable("c/kernel", 3, 3, 3, 4), 1, "VALID")
            y = tf.nn.bias_add(y, variable("c/bias", 4))
            y, *_ = v1.nn.fused_batch_norm(
                y, *(variable(f"bn/{n}", 4) for n in ("gamma", "beta", "mean", "variance")),
                is_training=False,
            )  # fmt: skip
            y = tf.nn.depthwise_conv2d(
                tf.nn.relu(y), variable("dw/depthwise_weights", 2, 2, 4, 2), (1, 1, 1, 1), "VALID"
            )
            y = tf.reshape(y, (-1, 4 * 5 * 8))
            y = tf.matmul(y, variable("fc/kernel", 160, 5)) + variable("fc/bias", 5)
            tf.multiply(y, 0.5, name="y")
            tf.constant(["text"])
            tf.constant(np.full((50, 40), 7, np.int32), name="sevens")
            tf.constant(np.arange(6).astype(np.float16), name="halves")
            tf.constant(np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3), name="brains")
            tf.constant(np.array([1 + 2j, 3 - 1j]), name="pairs")
            session.run(v1.global_variables_initializer())
            example = generator.normal(size=(3, 7, 8, 3)).astype(np.float32)
            output = session.run("y:0", {"x:0": example})
            names = ["y", "Const", "sevens", "halves", "brains", "pairs"]
            definition = v1.graph_util.convert_variables_to_constants(
                session, graph.as_graph_def(), names
            )
    path.write_bytes(definition.SerializeToString())
    return definition, example, output


class FrozenNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4, eps=1e-3)
        self.dw = nn.Conv2d(4, 8, 2, groups=4, bias=False)
        self.head = nn.Linear(160, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dw(torch.relu(self.norm(self.conv(x)))).flatten(1)) * 0.5


def test_a_frozen_graph_arrives_in_torch(tmp_path: Path) -> None:
    definition, x, y = frozen(tmp_path / "a.pb")
    with checkpoints.open(tmp_path / "a.pb") as found:
        constants = [n for n in definition.node if n.op == "Const"]
        assert {n.name for n in constants} - set(found) == {"Const"}
        assert "Const" in found.notes[0]
        for constant in constants:
            if constant.name in found:
                same(found.read(constant.name), tf.make_ndarray(constant.attr["value"].tensor))
        assert (found["fc/kernel"].owner, found["fc/kernel"].role) == ("fc", "kernel")
        assert found["dw/depthwise_weights"].module == "DepthwiseConv2D"
        assert (
            found["sevens"].kind == found["mul/y" if "mul/y" in found else "y/y"].kind == "constant"
        )
    target = FrozenNet().eval()
    rg.load(tmp_path / "a.pb", target, unused=["halves", "brains", "pairs"])
    with torch.no_grad():
        read = target(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(read, y, atol=1e-4)


def test_nodes_may_stand_in_any_order(tmp_path: Path) -> None:
    definition, _, _ = frozen(tmp_path / "a.pb")
    turned = v1.GraphDef()
    turned.node.extend(reversed(list(definition.node)))
    (tmp_path / "b.pb").write_bytes(turned.SerializeToString())
    with checkpoints.open(tmp_path / "a.pb") as a, checkpoints.open(tmp_path / "b.pb") as b:
        assert dict(a) == dict(b)
        assert [n.owner for n in a.flow] == [n.owner for n in b.flow] == ["c", "bn", "dw", "fc"]


def test_loops_of_nodes_end(tmp_path: Path) -> None:
    definition = v1.GraphDef()
    for name, source in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "d")):
        definition.node.add(name=name, op="Add", input=[source, "a:1", "^b"])
    (tmp_path / "a.pb").write_bytes(definition.SerializeToString())
    with checkpoints.open(tmp_path / "a.pb") as found:
        assert len(found) == 0


def test_constants_that_lie(tmp_path: Path) -> None:
    def opened(**fields: Any) -> Any:
        definition = v1.GraphDef()
        constant = definition.node.add(name="c", op="Const")
        tensor = constant.attr["value"].tensor
        tensor.dtype = 1
        tensor.tensor_shape.dim.add(size=fields.pop("size"))
        for name, value in fields.items():
            (tensor.float_val.extend if name == "float_val" else _set(tensor, name))(value)
        (tmp_path / "a.pb").write_bytes(definition.SerializeToString())
        return checkpoints.open(tmp_path / "a.pb")

    with opened(size=5, float_val=[1.0, 2.0]) as found:
        assert found.read("c").tolist() == [1, 2, 2, 2, 2]
    with opened(size=5) as found:
        assert found.read("c").tolist() == [0] * 5
    for lie in (
        {"size": 1, "float_val": [1.0, 2.0]},
        {"size": 1 << 40, "float_val": [1.0]},
        {"size": 5, "tensor_content": b"1234"},
        {"size": -1},
        {"size": 5, "dtype": 99},
        {"size": 1 << 62},
    ):
        with pytest.raises(CorruptFile):
            opened(**lie)


def _set(tensor: Any, name: str) -> Any:
    return lambda value: setattr(tensor, name, value)


def test_what_is_no_graph_is_not_claimed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (
        b"\n",
        b"\nhello\nworld\n",
        b"\n\x05hello",
        b"\n\x06\n\x01a\x12\x01b",
        b"\n\x00",
    ):
        path.write_bytes(content)
        assert not tensorflow_graph.sniff(Sample(path))
        with pytest.raises(UnknownFormat):
            checkpoints.open(path)


# Files by other people


@pytest.mark.parametrize("name", ["ultraface-slim/tf", "mlperf-tiny/kws_ref_model"])
def test_real_checkpoints_are_read_as_tensorflow_reads_them(name: str, real: Path) -> None:
    index = real / name / "variables/variables.index"
    expected = as_tensorflow_reads(index)
    with checkpoints.open(index, container="") as found:
        keys = {
            tensor.where: "/".join(tensor.path) for part in found._stored for tensor in part.tensors
        }
        assert set(keys) == set(expected)
        for key, value in expected.items():
            same(found.read(keys[key]), value)


def test_ultraface_between_tensorflow_and_torch(real: Path) -> None:
    folder = real / "ultraface-slim"
    truth = json.loads((folder / "TRUTH-tf.json").read_text())["mapping"]
    index = folder / "tf/variables"
    with checkpoints.open(index) as found:
        keys = {"/".join(t.path): t.where for part in found._stored for t in part.tensors}
        authors = json.loads((folder / "authors_mapping.json").read_text())
        assert {name.rpartition("/")[0] for name in found} == {entry["name"] for entry in authors}
    files = (folder / "version-slim-320.pth", index)
    plan, back = rg.plan(*files), rg.plan(*files[::-1])
    for made in (plan, back):
        assert made.complete
        assert not made.unused
    mapping = {keys[name]: graft.sources[0] for name, graft in plan.grafts.items()}
    assert mapping == {key: entry["source"] for key, entry in truth.items()}
    assert {graft.sources[0]: name for name, graft in back.grafts.items() if graft.sources} == {
        name: graft.sources[0] for name, graft in plan.grafts.items()
    }
    ours, theirs = map(rg.open, files)
    for name, graft in plan.grafts.items():
        arrays = [ours.read(source) for source in graft.sources]
        same(rg.ops.run(graft.ops, arrays), theirs.read(name))


def test_keyword_spotting_of_mlperf(real: Path) -> None:
    with checkpoints.open(real / "mlperf-tiny/kws_ref_model") as found:
        assert found.format == "tensorflow_saved_model"
        assert found.order == "definition"
        assert found.containers == {"": 141, "optimizer": 81, "bookkeeping": 4}
        assert len(found) == 56
        assert next(iter(found)) == "conv2d/kernel"
        assert {info.module for info in found.values()} == {
            "Conv2D", "DepthwiseConv2D", "BatchNormalization", "Dense",
        }  # fmt: skip
        assert json.loads(found.metadata["model_config"])["class_name"] == "Functional"
    with checkpoints.open(real / "mlperf-tiny/kws_ref_model", container="optimizer") as found:
        assert {"iter", "learning_rate", "conv2d/kernel/m", "conv2d/kernel/v"} < set(found)


# What listing costs


def test_listing_needs_neither_numpy_nor_tensorflow(tmp_path: Path) -> None:
    several(tmp_path)
    frozen(tmp_path / "a.pb")
    code = (
        "import sys, regraft\n"
        "for path in sys.argv[1:]: regraft.open(path)\n"
        "print([m for m in ('numpy', 'tensorflow', 'google.protobuf') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path, tmp_path / "a.pb"], capture_output=True, text=True
    )
    assert run.stdout == "[]\n", run.stderr


def test_stand_ins_are_known() -> None:
    for step in ("layer_with_weights-12", "layer-3", "variables", "_operations", "_all_variables"):
        assert _object_graph.STAND_IN.fullmatch(step)
    for step in ("encoder", "layer", "layers", "dense_1", "0"):
        assert not _object_graph.STAND_IN.fullmatch(step)
