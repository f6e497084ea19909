"""Orbax: folders that Orbax wrote in each of its layouts, and folders that lie."""

from __future__ import annotations

import json
import logging
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regraft import checkpoints
from regraft.errors import (
    CorruptFile,
    FormatError,
    MissingDependency,
    RegraftError,
    UnknownFormat,
    UnsafeFile,
)
from regraft.formats import _folders

Values = dict[str, np.ndarray[Any, Any]]
LAYOUTS = [(database, three) for database in (False, True) for three in (False, True)]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("absl").setLevel(logging.ERROR)


def tree() -> tuple[dict[str, Any], Values]:
    """A tree of most kinds of leaves, and its arrays by the names that they must have."""
    generator = np.random.default_rng(0)
    kernel = generator.normal(size=(8, 4)).astype(np.float32)
    bias = generator.normal(size=4).astype(ml_dtypes.bfloat16)
    values: Values = {
        "params/Dense_0/kernel": kernel,
        "params/Dense_0/bias": bias,
        "params/list/0": np.arange(3, dtype=np.int32),
        "params/list/1/0": np.array(2.5, np.float32),
        "params/list/1/1": generator.normal(size=5),
        "zeros": np.zeros(16, np.float32),
        "flags": np.array([True, False, True]),
        "small": np.array(-3, np.int16),
        "slash/ed.key": np.arange(2, dtype=np.uint8),
        "step": np.array(7),
        "rate": np.array(0.125),
    }
    made = {
        "params": {
            "Dense_0": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)},
            "list": [
                jnp.arange(3, dtype=jnp.int32),
                (jnp.asarray(values["params/list/1/0"]), values["params/list/1/1"]),
            ],
        },
        "zeros": jnp.zeros(16), "flags": values["flags"], "small": np.int16(-3),
        "slash/ed.key": values["slash/ed.key"],
        "step": 7, "rate": 0.125, "none": None, "empty": {},
    }  # fmt: skip
    return made, values


def saved(path: Path, what: Any, database: bool = True, three: bool = False) -> Path:
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=database, use_zarr3=three)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, what)
    return path


def check(path: Path, values: Values, **options: Any) -> checkpoints.Checkpoint:
    with checkpoints.open(path, container="", **options) as found:
        assert (found.format, found.framework) == ("orbax", "jax")
        assert {n: (i.shape, i.dtype) for n, i in found.items()} == {
            n: (v.shape, v.dtype.name) for n, v in values.items()
        }
        for name, value in values.items():
            found.read(name)
            read = found.read(name)  # what was opened once is taken again
            assert read.dtype == value.dtype
            np.testing.assert_array_equal(read, value)
            if value.ndim:
                rest = tuple(slice(0, n) for n in value.shape[1:])
                for part in (slice(1, 2), slice(2, 2), slice(2, 1), slice(0, 99)):
                    np.testing.assert_array_equal(
                        found.read(name, (part, *rest)), value[(part, *rest)]
                    )
        return found


@pytest.mark.parametrize(("database", "three"), LAYOUTS)
def test_every_layout_has_the_trees_names_and_values(
    database: bool, three: bool, tmp_path: Path
) -> None:
    made, values = tree()
    found = check(saved(tmp_path / "x", {**made, "name": "resnet"}, database, three), values)
    assert dict(found.metadata) == {"name": "resnet"}
    assert found.order == "sorted"
    with checkpoints.open(tmp_path / "x") as chosen:
        assert chosen.container == "params"
        assert "Dense_0/kernel" in chosen


@pytest.mark.parametrize(("database", "three"), LAYOUTS)
def test_without_a_tree_names_come_from_the_arrays(
    database: bool, three: bool, tmp_path: Path
) -> None:
    made, values = tree()
    path = saved(tmp_path / "x", {"params": made["params"]}, database, three)
    (path / "_METADATA").unlink()
    check(path, {n: v for n, v in values.items() if n.startswith("params/")})


def test_standard_checkpointer_and_optimizer_state(tmp_path: Path) -> None:
    made, values = tree()
    moment = jnp.asarray(np.random.default_rng(9).normal(size=(8, 4)), jnp.float32)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "x", {"params": made["params"], "opt_state": [{"mu": moment}]})
    check(
        tmp_path / "x",
        {n: v for n, v in values.items() if n.startswith("params/")}
        | {"opt_state/0/mu": np.asarray(moment)},
    )
    with checkpoints.open(tmp_path / "x") as found:
        assert found.container == "params"


def test_the_newest_step_of_a_manager_and_each_by_itself(tmp_path: Path) -> None:
    values = {step: np.full((2, 3), step, np.float32) for step in (1, 2, 10)}
    options = ocp.CheckpointManagerOptions(step_prefix="run")
    for root, settings_ in ((tmp_path / "plain", None), (tmp_path / "named", options)):
        with ocp.CheckpointManager(root, options=settings_) as manager:
            for step, value in values.items():
                manager.save(step, args=ocp.args.StandardSave({"w": jnp.asarray(value)}))
            manager.wait_until_finished()
        found = check(root, {"w": values[10]})
        assert found.path == root / ("run_10" if settings_ else "10")
        assert found.label == root.name
        assert found.metadata["step"] == "10"
        others = ", ".join(f"run_{n}" if settings_ else f"{n}" for n in (2, 1))
        assert f"opened step 10, the newest; also there: {others}" in found.notes[0]
        for step, value in values.items():
            folder = root / (f"run_{step}" if settings_ else f"{step}")
            assert not check(folder, {"w": value}).notes
            check(folder / "default", {"w": value})


def test_a_step_of_several_items(tmp_path: Path) -> None:
    made, values = tree()
    params = {n.removeprefix("params/"): v for n, v in values.items() if n.startswith("params/")}
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(made["params"]),
        state=ocp.args.StandardSave({"w": jnp.ones(2)}),
        told=ocp.args.JsonSave({"a": 1}),
    )
    with ocp.CheckpointManager(tmp_path / "x") as manager:
        manager.save(0, args=items)
        manager.wait_until_finished()
    expected = {f"params/{n}": v for n, v in params.items()} | {"state/w": np.ones(2, np.float32)}
    check(tmp_path / "x", expected)
    check(tmp_path / "x" / "0", expected)
    check(tmp_path / "x" / "0" / "params", params)
    shutil.rmtree(tmp_path / "x" / "0" / "state")
    check(tmp_path / "x", params)  # the only one needs no name


def test_the_newer_interface(tmp_path: Path) -> None:
    v1 = pytest.importorskip("orbax.checkpoint.experimental.v1")
    values = {"params/w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    save = getattr(v1, "save", None) or v1.save_pytree
    save(tmp_path / "x", {"params": {"w": jnp.asarray(values["params/w"])}})
    check(tmp_path / "x", values)


def test_flax_nnx_state(tmp_path: Path) -> None:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.linear = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)

    state = nnx.state(Net(nnx.Rngs(0)))
    generator = np.random.default_rng(1)
    state = jax.tree.map(lambda x: jnp.asarray(generator.normal(size=x.shape), x.dtype), state)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "x", state)
    pure = nnx.to_pure_dict(state)
    check(
        tmp_path / "x",
        {f"{layer}/{name}/value": np.asarray(value)
         for layer, part in pure.items() for name, value in part.items()},
    )  # fmt: skip


SHARDED = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, numpy as np, orbax.checkpoint as ocp
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
values = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
spec = jax.sharding.PartitionSpec("a", "b")
array = jax.device_put(values, jax.sharding.NamedSharding(mesh, spec))
for database in (0, 1):
    for three in (0, 1):
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=bool(database), use_zarr3=bool(three))
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(f"{sys.argv[1]}/{database}{three}", {"w": array})
"""


def test_arrays_that_were_sharded_over_devices(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", SHARDED, str(tmp_path)], check=True, capture_output=True)
    values = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    assert len(list((tmp_path / "00" / "w").glob("?.?"))) == 4
    for name in ("00", "01", "10", "11"):
        check(tmp_path / name, {"w": values})
        with checkpoints.open(tmp_path / name) as found:
            part = (slice(3, 7), slice(2, 5))
            np.testing.assert_array_equal(found.read("w", part), values[part])


def _aggregated(path: Path, inside: dict[str, Any]) -> None:
    """The file of older versions, by the class that wrote it."""
    import asyncio

    from etils import epath

    handler = ocp.aggregate_handlers.MsgpackHandler()

    async def write() -> None:
        future = await handler.serialize(epath.Path(path / "checkpoint"), inside)
        future.result()

    asyncio.run(write())


def test_trees_of_older_versions(tmp_path: Path) -> None:
    made, values = tree()
    path = saved(tmp_path / "x", {"params": made["params"]}, database=False)
    (path / "_METADATA").unlink()
    scale = np.arange(4, dtype=np.float32)
    beside = {
        "Dense_0": {"kernel": ocp.utils.leaf_placeholder("params.Dense_0.kernel"), "scale": scale},
        "list": [ocp.utils.leaf_placeholder("params.list.0")],
    }
    _aggregated(path, {"params": beside, "name": "old", "step": 3})
    found = check(
        path,
        {
            "params/Dense_0/kernel": values["params/Dense_0/kernel"],
            "params/Dense_0/scale": scale,
            "params/list/0": values["params/list/0"],
        },
    )
    assert dict(found.metadata) == {"name": "old", "step": "3"}
    alone = tmp_path / "alone"
    alone.mkdir()
    _aggregated(alone, {"w": scale})
    check(alone, {"w": scale})
    shutil.rmtree(path / "params.list.0")
    with pytest.raises(CorruptFile, match=r"params\.list\.0"):
        checkpoints.open(path)


def test_both_trees_agree(tmp_path: Path) -> None:
    """For some versions each array was named in both files."""
    made, values = tree()
    path = saved(tmp_path / "x", {"params": made["params"]})
    names = {key: f"params.Dense_0.{key}" for key in ("kernel", "bias")}
    marks = {key: ocp.utils.leaf_placeholder(name) for key, name in names.items()}
    _aggregated(path, {"params": {"Dense_0": marks}})
    check(path, {n: v for n, v in values.items() if n.startswith("params/")})


def test_zeros_that_were_never_stored(tmp_path: Path) -> None:
    """Older versions left out chunks of zeros; such an array may be of any size."""
    path = saved(tmp_path / "x", {"w": np.ones((4, 4), np.float32)}, database=False)
    metadata = json.loads((path / "_METADATA").read_text())
    del metadata["store_array_data_equal_to_fill_value"]
    (path / "_METADATA").write_text(json.dumps(metadata))
    (path / "w" / "0.0").unlink()
    check(path, {"w": np.zeros((4, 4), np.float32)})
    array = json.loads((path / "w" / ".zarray").read_text())
    array |= {"shape": [1 << 20, 1 << 20], "chunks": [1 << 10, 1 << 20]}
    (path / "w" / ".zarray").write_text(json.dumps(array))
    with checkpoints.open(path) as found:
        part = found.read("w", (slice(5, 7), slice(0, 1 << 20)))
        assert (part.shape, part.any()) == ((2, 1 << 20), False)
        assert found.read("w").shape == (1 << 20, 1 << 20)
    (path / "w" / ".zarray").write_text(json.dumps(array | {"fill_value": 2}))
    with checkpoints.open(path) as found, pytest.raises(CorruptFile):
        found.read("w")


def test_listing_folders_needs_no_library(tmp_path: Path) -> None:
    path = saved(tmp_path / "x", {"w": np.ones(3)}, database=False)
    code = (
        f"import sys; sys.argv = ['regraft', 'inspect', {str(path)!r}]\n"
        "from regraft.cli import cli\ncli(standalone_mode=False)\n"
        "assert not {'numpy', 'tensorstore', 'jax', 'orbax'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_without_tensorstore_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = saved(tmp_path / "x", {"w": np.ones(3)}, database=False)
    database = saved(tmp_path / "y", {"w": np.ones(3)}, database=True)
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with checkpoints.open(folders) as found:
        assert found["w"].shape == (3,)
        with pytest.raises(MissingDependency, match=r"regraft\[jax\]"):
            found.read("w")
    with pytest.raises(MissingDependency, match="tensorstore"):
        checkpoints.open(database)


# Folders that lie. Each is a sound checkpoint of one array `w` in a folder, and then a change.


def _json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _leaf(*keys: Any, kind: str = "np.ndarray") -> dict[str, Any]:
    return {
        "key_metadata": [{"key": key, "key_type": 2} for key in keys],
        "value_metadata": {"value_type": kind, "skip_deserialize": False},
    }


def _tree(path: Path, *leaves: dict[str, Any]) -> None:
    _json(path / "_METADATA", tree_metadata={str(i): leaf for i, leaf in enumerate(leaves)})


def _linked(path: Path, name: str) -> None:
    outside = path.parent / "outside"
    shutil.copytree(path / "w", outside)
    if (path / name).is_dir():
        shutil.rmtree(path / name)
    else:
        (path / name).unlink()
    (path / name).symlink_to(outside / Path(name).name if "/" in name else outside)


def _pipe(path: Path) -> None:
    (path / "w" / "0").unlink()
    os.mkfifo(path / "w" / "0")


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


LIES: dict[str, Callable[[Path], Any]] = {
    "a chunk that links outside": lambda p: _linked(p, "w/0"),
    "metadata that links outside": lambda p: _linked(p, "w/.zarray"),
    "an array that links outside": lambda p: _linked(p, "w"),
    "a link to nothing": lambda p: (p / "more").symlink_to(p / "nothing"),
    "a link to itself": lambda p: (p / "more").symlink_to(p / "more"),
    "a pipe for a chunk": _pipe,
    "a key that leads out": lambda p: _tree(p, _leaf("../outside")),
    "a key of two dots": lambda p: _tree(p, _leaf("a/../../outside")),
    "a key from the root": lambda p: _tree(p, _leaf("/etc")),
    "a key with a backslash": lambda p: _tree(p, _leaf("..\\outside")),
    "a key with a zero": lambda p: _tree(p, _leaf("a\0b")),
    "a key longer than names of files": lambda p: _tree(p, _leaf("a" * 5000)),
    "a thousand keys": lambda p: _tree(p, _leaf(*"a" * 1000)),
    "an empty key": lambda p: _tree(p, _leaf("")),
    "no key": lambda p: _tree(p, _leaf()),
    "a key twice": lambda p: _tree(p, _leaf("w"), _leaf("w")),
    "a key that is a list": lambda p: _tree(p, _leaf(["w"])),
    "an array that is missing": lambda p: _tree(p, _leaf("w"), _leaf("v")),
    "a tree that is a list": lambda p: _write(p / "_METADATA", b"[]"),
    "a tree that is cut off": lambda p: _write(p / "_METADATA", b'{"tree_metadata": {'),
    "a tree of text": lambda p: _json(p / "_METADATA", tree_metadata="w"),
    "a deep tree": lambda p: _write(
        p / "_METADATA", b'{"tree_metadata":{},"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "a tree too large": lambda p: _write(
        p / "_METADATA", b'{"tree_metadata": {}}' + b" " * (17 << 20)),
    "strings that are numbers": lambda p: (
        _tree(p, _leaf("s", kind="string")), _write(p / "_strings.json", b'{"s": 1}')),
    "a shape that is not there": lambda p: _json(p / "w" / ".zarray", shape=[1 << 40]),
    "a chunk that no memory holds": lambda p: _json(p / "w" / ".zarray", chunks=[1 << 40]),
    "a shape that overflows": lambda p: _json(
        p / "w" / ".zarray", shape=[1 << 40] * 2, chunks=[1, 1]),
    "a negative shape": lambda p: _json(p / "w" / ".zarray", shape=[-1]),
    "a shape of text": lambda p: _json(p / "w" / ".zarray", shape="3"),
    "axes that disagree": lambda p: _json(p / "w" / ".zarray", chunks=[3, 1]),
    "forty axes": lambda p: _json(p / "w" / ".zarray", shape=[1] * 40, chunks=[1] * 40),
    "chunks of nothing": lambda p: _json(p / "w" / ".zarray", chunks=[0]),
    "a dtype of objects": lambda p: _json(p / "w" / ".zarray", dtype="|O"),
    "a dtype of fields": lambda p: _json(p / "w" / ".zarray", dtype=[["a", "<f4"]]),
    "a dtype of text": lambda p: _json(p / "w" / ".zarray", dtype="<U4"),
    "another dtype": lambda p: _json(p / "w" / ".zarray", dtype="<f8"),
    "a compressor of its own": lambda p: _json(p / "w" / ".zarray", compressor={"id": "evil"}),
    "a filter": lambda p: _json(p / "w" / ".zarray", filters=[{"id": "evil"}]),
    "metadata too large": lambda p: _write(p / "w" / ".zarray", b"{" + b" " * (2 << 20) + b"}"),
    "metadata that is no JSON": lambda p: _write(p / "w" / ".zarray", b"\xff\xfe"),
    "a chunk that was lost": lambda p: (p / "w" / "0").unlink(),
    "a chunk that is cut off": lambda p: _write(p / "w" / "0", (p / "w" / "0").read_bytes()[:-3]),
    "a chunk of something else": lambda p: _write(p / "w" / "0", b"GGUF" * 20),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "x", {"w": np.arange(3, dtype=np.float32)}, database=False)
    LIES[name](path)
    with pytest.raises((CorruptFile, UnsafeFile)) as caught, checkpoints.open(path) as found:
        for key in found:
            found.read(key)
    assert caught.value.where
    assert caught.value.found


def test_links_inside_the_folder_are_let_be(tmp_path: Path) -> None:
    path = saved(tmp_path / "x", {"w": np.arange(3, dtype=np.float32)}, database=False)
    (path / "w" / "0").rename(path / "kept")
    (path / "w" / "0").symlink_to(path / "kept")
    (tmp_path / "link").symlink_to(path)
    check(tmp_path / "link", {"w": np.arange(3, dtype=np.float32)})


@pytest.mark.parametrize(("database", "three"), LAYOUTS)
def test_a_folders_name_is_only_a_name(database: bool, three: bool, tmp_path: Path) -> None:
    value = np.arange(3, dtype=np.float32)
    path = saved(tmp_path / "x", {"w": value}, database, three)
    odd = tmp_path / "a b%20#c|zarr:?d=ü"
    path.rename(odd)
    check(odd, {"w": value})


def test_leaves_of_other_kinds_are_told(tmp_path: Path) -> None:
    path = saved(tmp_path / "x", {"w": np.ones(3)}, database=False)
    _tree(path, _leaf("w"), _leaf("table", kind="grain.DatasetIterator"))
    with checkpoints.open(path) as found:
        assert list(found) == ["w"]
        assert found.notes == ("left out, being no arrays: table",)


def test_what_the_user_added_is_metadata(tmp_path: Path) -> None:
    args = ocp.args.PyTreeSave({"w": np.ones(2)}, custom_metadata={"author": "someone"})
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "x", args=args)
    with checkpoints.open(tmp_path / "x") as found:
        assert json.loads(found.metadata["custom_metadata"]) == {"author": "someone"}


def test_a_bomb_of_zeros_is_refused_unopened(tmp_path: Path) -> None:
    path = saved(tmp_path / "x", {"w": np.arange(3, dtype=np.float32)}, database=False)
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{path}/w/"},
        "metadata": {"shape": [1 << 27], "dtype": "|u1", "chunks": [1 << 27],
                     "compressor": {"id": "zstd", "level": 1}},
        "store_data_equal_to_fill_value": True,
    }  # fmt: skip
    store = tensorstore.open(spec, create=True, delete_existing=True).result()
    store.write(0).result()
    assert _folders.bytes_in(path) < 1 << 17
    with pytest.raises(CorruptFile, match="shape"):
        checkpoints.open(path)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, _ = tree()
    return saved(tmp_path_factory.mktemp("database") / "x", made)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    which=st.integers(0, 100),
    cut=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=3),
)
def test_a_damaged_database_gives_the_values_or_a_typed_error(
    database: Path,
    tmp_path_factory: pytest.TempPathFactory,
    which: int,
    cut: float,
    changes: list[tuple[float, int]],
) -> None:
    _, values = tree()
    path = tmp_path_factory.mktemp("damaged") / "x"
    shutil.copytree(database, path)
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.stat().st_size)
    file = files[which % len(files)]
    content = bytearray(file.read_bytes())
    for where, value in changes:
        content[int(where * len(content))] = value
    file.write_bytes(content[: int(cut * len(content)) + 1])
    try:
        with checkpoints.open(path, container="") as found:
            for key in found:
                found.read(key)
                assert found[key].shape == values[key].shape
    except RegraftError as error:
        assert error.where
    except KeyError:  # a key of the tree was changed
        assert file.name == "_METADATA"
    finally:
        shutil.rmtree(path.parent)


def _crc32c(data: bytes) -> bytes:
    """The checksum at the end of a manifest (Castagnoli), bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return struct.pack("<I", value ^ 0xFFFFFFFF)


@pytest.mark.parametrize("lead", ["../", "d/../../", "/", "d/../", "d//", "./"])
def test_a_manifest_cannot_lead_out_of_its_folder(lead: str, tmp_path: Path) -> None:
    """The database names its data files; these names are written over, checksum and all."""
    path = tmp_path / "x"
    spec = {
        "driver": "ocdbt",
        "base": {"driver": "file", "path": f"{path}/"},
        "config": {"compression": None},
    }
    store = tensorstore.KvStore.open(spec).result()
    array = {"shape": [2], "chunks": [2], "dtype": "<f4", "compressor": None, "fill_value": None,
             "filters": None, "order": "C", "zarr_format": 2}  # fmt: skip
    with tensorstore.Transaction() as transaction:  # one version, whose file is named whole
        at_once = store.with_transaction(transaction)
        at_once.write("w/.zarray", json.dumps(array).encode()).result()
        at_once.write("w/0", np.array([1.5, -2], np.float32).tobytes()).result()
    check(path, {"w": np.array([1.5, -2], np.float32)})
    manifest = (path / "manifest.ocdbt").read_bytes()
    (data,) = [f"d/{file.name}".encode() for file in (path / "d").iterdir()]
    other = f"{lead}{'o' * len(data)}"[: len(data)]
    outside = path / other if not lead.startswith("/") else Path(other)
    content = (path / data.decode()).read_bytes()
    if lead.startswith("/"):
        outside = path / f".{other}"  # what a careless join would make of it
    outside.write_bytes(content)
    damaged = manifest[:-4].replace(data, other.encode())
    (path / "manifest.ocdbt").write_bytes(damaged + _crc32c(damaged))
    with pytest.raises(FormatError):
        checkpoints.open(path)
    (path / "manifest.ocdbt").write_bytes(manifest[:-4] + _crc32c(manifest[:-4]))
    check(path, {"w": np.array([1.5, -2], np.float32)})  # the checksum is right


def test_a_step_that_was_not_finished(tmp_path: Path) -> None:
    root = tmp_path / "x"
    with ocp.CheckpointManager(root) as manager:
        for step in (1, 2):
            manager.save(step, args=ocp.args.StandardSave({"w": jnp.full(3, step)}))
        manager.wait_until_finished()
    (root / "2").rename(root / "2.orbax-checkpoint-tmp")
    with checkpoints.open(root) as found:
        assert found.read("w")[0] == 1
    shutil.rmtree(root / "1" / "default")
    with pytest.raises(CorruptFile, match="step without arrays"):
        checkpoints.open(root / "1")


def test_other_folders_are_not_claimed(tmp_path: Path) -> None:
    for name in ("empty", "text", "zarr", "tensorflow", "deep"):
        (tmp_path / name).mkdir()
    (tmp_path / "text" / "README.md").write_text("hello")
    (tmp_path / "tensorflow" / "checkpoint").write_text('model_checkpoint_path: "m"\n')
    (tmp_path / "zarr" / ".zgroup").write_text("{}")
    (tmp_path / "zarr" / "a").mkdir()
    (tmp_path / "zarr" / "a" / ".zarray").write_text("{}")
    saved(tmp_path / "deep" / "kept" / "x", {"w": np.ones(3)})
    (tmp_path / "deep" / "README.md").write_text("hello")
    for folder in sorted(tmp_path.iterdir()):
        with pytest.raises(FormatError) as caught:
            checkpoints.open(folder)
        assert not isinstance(caught.value, (CorruptFile, UnknownFormat)), folder


def test_a_folder_is_hashed_by_what_is_in_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "x", {"w": np.arange(3.0)}, database=False)
    shutil.copytree(path, tmp_path / "y")
    with checkpoints.open(path) as one, checkpoints.open(tmp_path / "y") as two:
        assert one.sha256 == two.sha256
