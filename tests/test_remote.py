"""Checkpoints behind URLs: what is moved, what is read, and servers that fail or lie."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest
import safetensors.numpy
import torch

import regraft as rg
import servers
from formats.samples import all_makers
from regraft import checkpoints, formats, locations
from regraft.checkpoints import Checkpoint
from regraft.errors import CorruptFile, FormatError, MissingDependency, MissingShard, UnsafeFile
from regraft.tensors import TensorInfo

Values = dict[str, np.ndarray[Any, Any]]
KIB, MIB = 1 << 10, 1 << 20


def values(layers: int = 24, seed: int = 0) -> Values:
    """About 10 MiB in large kernels and small biases, all of them different."""
    generator = np.random.default_rng(seed)
    kernels = {f"layers.{i}.weight": generator.normal(size=(256, 400)) for i in range(layers)}
    biases = {f"layers.{i}.bias": generator.normal(size=256) for i in range(layers)}
    return {name: array.astype(np.float32) for name, array in {**kernels, **biases}.items()}


def _h5(path: Path, held: Values) -> None:
    """Laid out as Keras 2 does."""
    with h5py.File(path, "w") as file:
        layers = sorted({name.rpartition(".")[0] for name in held})
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer in layers:
            group = file.create_group(layer)
            named = [name for name in held if name.startswith(f"{layer}.")]
            group.attrs["weight_names"] = [name.encode() for name in named]
            for name in named:
                group[name] = held[name]


def _onnx(path: Path, held: Values) -> None:
    """The kernels as initializers of layers in a row."""
    from onnx import helper, numpy_helper, save_model

    kernels = {name: array for name, array in held.items() if array.ndim == 2}
    nodes = [
        helper.make_node("MatMul", [f"x{i}", name], [f"x{i + 1}"], name=name)
        for i, name in enumerate(kernels)
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x0", 1, [1, 256])],
        [helper.make_tensor_value_info(f"x{len(kernels)}", 1, None)],
        [numpy_helper.from_array(array, name) for name, array in kernels.items()],
    )  # fmt: skip
    save_model(helper.make_model(graph), str(path))


def _sharded(folder: Path, held: Values) -> None:
    halves = list(held)[::2], list(held)[1::2]
    where: dict[str, str] = {}
    for number, names in enumerate(halves, 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        safetensors.numpy.save_file({name: held[name] for name in names}, folder / file)
        where |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@contextmanager
def opened(
    folder: Path, name: str, answer: servers.Answer = servers.ranged
) -> Iterator[tuple[servers.Served, Checkpoint]]:
    """A file of a folder, opened through a server."""
    with servers.files(folder, answer) as served, checkpoints.open(f"{served.url}/{name}") as found:
        yield served, found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("served")
    held = values()
    state = {name: torch.from_numpy(array) for name, array in held.items()}
    torch.save(state, made / "new.pth")
    torch.save(state, made / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.numpy.save_file(held, made / "one.safetensors")
    np.savez(made / "stored.npz", **held)
    np.savez_compressed(made / "packed.npz", **held)
    np.save(made / "one array.npy", np.concatenate([held[f"layers.{i}.weight"] for i in range(9)]))
    _h5(made / "model.h5", held)
    _onnx(made / "model.onnx", held)
    items = [(TensorInfo(n, v.shape, v.dtype.name), lambda v=v: v) for n, v in held.items()]
    checkpoints.write(made / "model.gguf", items)
    _sharded(made, held)
    return made


# What may be moved to list each file, in KiB, and in how many round trips at most: requests that
# are sent at the same time count as one.
LISTED = {
    "new.pth": (200, 4),
    "old.pth": (600, 5),
    "one.safetensors": (80, 2),
    "stored.npz": (600, 5),
    "packed.npz": (600, 5),
    "one array.npy": (80, 1),
    "model.h5": (900, 60),  # HDF5 follows pointers one by one
    "model.onnx": (1000, 60),  # and so does protobuf
    "model.gguf": (400, 2),
    "model.safetensors.index.json": (200, 6),
}


@pytest.mark.parametrize("name", LISTED)
def test_listing_moves_kilobytes(name: str, folder: Path) -> None:
    size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    with opened(folder, name) as (served, found), checkpoints.open(folder / name) as local:
        kib, _ = LISTED[name]
        assert served.sent < kib * KIB < size / 10
        assert dict(found) == dict(local)
        assert (found.format, found.label) == (local.format, local.label)
        for key in list(found)[:2] + list(found)[-2:]:
            served.reset()
            read = found.read(key)
            np.testing.assert_array_equal(read, local.read(key))
            assert served.sent < read.nbytes + 150 * KIB
            part = (slice(1, 3),)
            np.testing.assert_array_equal(found.read(key, part), local.read(key, part))


@pytest.mark.parametrize("name", LISTED)
def test_listing_takes_few_round_trips(name: str, folder: Path) -> None:
    with servers.files(folder, delay=0.05) as served:
        checkpoints.open(f"{served.url}/{name}").close()
        assert len(served.requests) < 120
        assert served.trips <= 2 * LISTED[name][1]  # a busy machine sends fewer at once


def test_a_slice_of_a_large_tensor_moves_no_more_than_it_needs(folder: Path) -> None:
    for name in ("one array.npy", "one.safetensors", "new.pth", "model.h5"):
        with opened(folder, name) as (served, found):
            key = "one array" if name.endswith("npy") else "layers.11.weight"
            key = next(n for n in found if n.endswith(key))
            served.reset()
            rows = found.read(key, (slice(100, 101),))
            assert rows.shape == (1, 400)
            assert served.sent < 100 * KIB
            with checkpoints.open(folder / name) as local:
                np.testing.assert_array_equal(rows, local.read(key)[100:101])
                part = (slice(7, 90), slice(3, 5))
                np.testing.assert_array_equal(found.read(key, part), local.read(key)[part])
                assert found.read(key, (slice(5, 5),)).shape == (0, 400)


def test_views_and_strides_of_a_remote_file(tmp_path: Path) -> None:
    whole = torch.randn(40, 60)
    state = {"t": whole.T, "row": whole[3], "column": whole[:, 5], "corner": whole[2:9, 4:50]}
    torch.save(state, tmp_path / "views.pth")
    with opened(tmp_path, "views.pth") as (_, found):
        for name, view in state.items():
            np.testing.assert_array_equal(found.read(name), view.numpy())
            np.testing.assert_array_equal(found.read(name, (slice(1, 4),)), view[1:4].numpy())


def test_the_verbs_take_urls(folder: Path, tmp_path: Path) -> None:
    with servers.files(folder) as served:
        url = f"{served.url}/new.pth"
        rg.convert(url, tmp_path / "copy.safetensors")
        assert rg.diff(url, tmp_path / "copy.safetensors").same
        assert checkpoints.open(url).sha256 == sha256((folder / "new.pth").read_bytes()).hexdigest()
        sharded = f"{served.url}/model.safetensors.index.json"
        assert checkpoints.content_hash(sharded) == checkpoints.content_hash(
            folder / "model.safetensors.index.json"
        )
        done = subprocess.run(
            [sys.executable, "-m", "regraft", "inspect", url, "--json"],
            capture_output=True, check=True,
        )  # fmt: skip
        assert len(json.loads(done.stdout)["tensors"]) == len(values())
        with pytest.raises(FormatError, match="write it here"):
            rg.convert(folder / "new.pth", f"{served.url}/out.safetensors")


def test_signed_urls_work_and_their_signatures_are_not_told(folder: Path) -> None:
    secret = "X-Amz-Signature=53cr3t"
    with servers.files(folder) as served:
        with checkpoints.open(f"{served.url}/one%20array.npy?{secret}") as found:
            assert found.label == "one array.npy"
            assert secret not in str(found.path)
        assert all(secret in line for line in served.requests)
        for name in ("absent.pth", "one array.npy.index.json"):
            with pytest.raises(FormatError) as caught:
                checkpoints.open(f"{served.url}/{name}?{secret}")
            assert secret not in str(caught.value)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/new.pth?{secret}"
    with pytest.raises(FormatError, match="network") as caught:
        checkpoints.open(nobody)
    assert secret not in str(caught.value)


def test_files_of_this_machine_have_urls(folder: Path) -> None:
    with checkpoints.open((folder / "one array.npy").as_uri()) as found:
        assert isinstance(found.path, Path)
        assert locations.is_local(found.path)
    with pytest.raises(FormatError, match="file:///"):
        checkpoints.open("file://elsewhere/one.npy")
    assert locations.where("C:\\weights.pth") == Path("C:\\weights.pth")


def test_a_file_system_in_memory(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/served/{path.name}", path.read_bytes())
    for name in LISTED:
        url = f"memory://served/{name}"
        with checkpoints.open(folder / name) as local, checkpoints.open(url) as found:
            assert dict(found) == dict(local)
            for key in found:
                np.testing.assert_array_equal(found.read(key), local.read(key))
    like_upath = SimpleNamespace(fs=memory, path="/served/new.pth")
    assert len(checkpoints.open(like_upath)) == len(values())  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="no such file"):
        checkpoints.open("memory://served/absent.pth")
    memory.rm("/served", recursive=True)


@pytest.mark.parametrize("name", formats.names())
def test_every_format_reads_remote_files_or_says_that_it_cannot(name: str, tmp_path: Path) -> None:
    suffix, make = all_makers()[name]
    path = tmp_path / f"{name}{suffix}"
    expected = make(path)
    memory = fsspec.filesystem("memory")
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        memory.pipe_file(f"/every/{file.relative_to(tmp_path)}", file.read_bytes())
    try:
        with checkpoints.open(f"memory://every/{path.name}") as found:
            assert found.format == name
            assert set(found) == set(expected)
            for key, array in expected.items():
                np.testing.assert_array_equal(found.read(key), array)
                part = tuple(slice(0, max(1, n // 2)) for n in array.shape)
                np.testing.assert_array_equal(found.read(key, part), array[part])
    except FormatError as error:
        assert error.found == "a file that is not on this machine"
    finally:
        memory.rm("/every", recursive=True)


# Folders, where the protocol has them


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    made = tmp_path / "repository"
    made.mkdir()
    _sharded(made, values())
    (made / "config.json").write_text(json.dumps({"architectures": ["Net"], "model_type": "net"}))
    (made / "README.md").write_text("a model")
    return made


@pytest.fixture
def bucket(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[servers.Served]:
    pytest.importorskip("s3fs")
    with servers.store(repository.parent) as served:
        told = {"endpoint_url": served.url, "anon": True, "skip_instance_cache": True}
        monkeypatch.setitem(fsspec.config.conf, "s3", told)
        yield served


def test_a_store_that_speaks_s3(repository: Path, bucket: servers.Served) -> None:
    with checkpoints.open(repository) as local:
        for name in ("", "/model.safetensors.index.json"):
            bucket.reset()
            with checkpoints.open(f"s3://repository{name}") as found:
                assert bucket.sent < 400 * KIB
                assert dict(found) == dict(local)
                key = "layers.7.weight"
                np.testing.assert_array_equal(found.read(key), local.read(key))
                if not name:
                    assert found.metadata["architectures"] == "Net"
    with pytest.raises(FormatError, match="no such file"):
        checkpoints.open("s3://repository/absent.safetensors")


def test_a_model_hub(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    with servers.hub(repository) as served:
        told = {"endpoint": served.url, "token": False, "skip_instance_cache": True}
        monkeypatch.setitem(fsspec.config.conf, "hf", told)
        with checkpoints.open(repository) as local, checkpoints.open("hf://org/repo") as found:
            assert served.sent < 400 * KIB
            assert dict(found) == dict(local)
            assert found.metadata["model_type"] == "net"
            np.testing.assert_array_equal(
                found.read("layers.7.weight"), local.read("layers.7.weight")
            )
        # The hub names large files by their hash: they need not be fetched to be named.
        shard = "model-00001-of-00002.safetensors"
        served.reset()
        expected = sha256((repository / shard).read_bytes()).hexdigest()
        assert checkpoints.content_hash(f"hf://org/repo/{shard}") == expected
        assert served.sent < 100 * KIB
        with pytest.raises(FormatError):
            checkpoints.open("hf://org/absent")


def test_http_has_no_folders(folder: Path) -> None:
    with servers.files(folder) as served:
        with pytest.raises(FormatError, match="no such file"):
            checkpoints.open(f"{served.url}/")
        with pytest.raises(FormatError):
            next(locations.where(f"{served.url}/").iterdir())


def test_missing_and_escaping_shards_of_a_remote_index(folder: Path, tmp_path: Path) -> None:
    with servers.files(tmp_path) as served:
        index = tmp_path / "a.safetensors.index.json"
        url = f"{served.url}/{index.name}"
        for name, error in (
            ("gone.safetensors", MissingShard),
            ("../new.pth", UnsafeFile),
            ("/etc/passwd", UnsafeFile),
            ("http://127.0.0.1:1/x", MissingShard),
        ):
            index.write_text(json.dumps({"weight_map": {"x": name}}))
            with pytest.raises(error):
                checkpoints.open(url)
        assert not any("passwd" in line or "new.pth" in line for line in served.requests)


# Failures


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for url, library in (
        ("s3://bucket/a.pth", "s3fs"),
        ("gs://bucket/a.pth", "gcsfs"),
        ("hf://org/repo/a.pth", "huggingface_hub"),
        ("https://example.com/a.pth", "aiohttp"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, library, None)
            patch.delitem(sys.modules, "regraft.http_ranges", raising=False)
            patch.delitem(sys.modules["fsspec.registry"]._registry, url.partition(":")[0], False)
            with pytest.raises(MissingDependency) as caught:
                checkpoints.open(url)
            assert caught.value.where == library
            assert "pip install" in caught.value.hint
    with pytest.raises(FormatError, match="protocol"):
        checkpoints.open("nonsense://a/b.pth")


def whole(handler: BaseHTTPRequestHandler, path: Path, start: int, stop: int) -> None:
    """Knows no ranges."""
    servers.respond(handler, 200, path.read_bytes())


def endless(handler: BaseHTTPRequestHandler, path: Path, start: int, stop: int) -> None:
    """Says that it sends the range, and never stops."""
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{path.stat().st_size}")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for _ in range(100_000):  # 6 GiB
        handler.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")


def endless_without_ranges(
    handler: BaseHTTPRequestHandler, path: Path, start: int, stop: int
) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for _ in range(100_000):
        handler.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")


def elsewhere(handler: BaseHTTPRequestHandler, path: Path, start: int, stop: int) -> None:
    told = f"bytes {start + 1}-{stop}/{path.stat().st_size}"
    servers.respond(handler, 206, servers.part(path, start + 1, stop + 1), Content_Range=told)


def no_size(handler: BaseHTTPRequestHandler, path: Path, start: int, stop: int) -> None:
    told = f"bytes {start}-{stop - 1}/*"
    servers.respond(handler, 206, servers.part(path, start, stop), Content_Range=told)


def vast(handler: BaseHTTPRequestHandler, path: Path, start: int, stop: int) -> None:
    """A size that is not there."""
    told = f"bytes {start}-{stop - 1}/{10**17}"
    servers.respond(handler, 206, servers.part(path, start, stop), Content_Range=told)


def too_short(handler: BaseHTTPRequestHandler, path: Path, start: int, stop: int) -> None:
    told = f"bytes {start}-{stop - 1}/{path.stat().st_size}"
    data = servers.part(path, start, stop - 1)
    servers.respond(handler, 206, data, Content_Range=told)


def broken_off(handler: BaseHTTPRequestHandler, path: Path, start: int, stop: int) -> None:
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{path.stat().st_size}")
    handler.send_header("Content-Length", str(stop - start))
    handler.end_headers()
    handler.wfile.write(servers.part(path, start, stop)[: (stop - start) // 2])
    handler.close_connection = True


def _zeros() -> bytes:
    """64 MiB of zeros, packed without being held."""
    pack = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(pack.compress(bytes(MIB)) for _ in range(64)) + pack.flush()


ZEROS = _zeros()


def bomb(handler: BaseHTTPRequestHandler, path: Path, start: int, stop: int) -> None:
    """A small body that unpacks to a large one."""
    told = f"bytes {start}-{stop - 1}/{path.stat().st_size}"
    servers.respond(handler, 206, ZEROS, Content_Range=told, Content_Encoding="gzip")


def denied(handler: BaseHTTPRequestHandler, path: Path, start: int, stop: int) -> None:
    servers.respond(handler, 403)


def failing(handler: BaseHTTPRequestHandler, path: Path, start: int, stop: int) -> None:
    servers.respond(handler, 503)


def going_round(handler: BaseHTTPRequestHandler, path: Path, start: int, stop: int) -> None:
    servers.respond(handler, 302, Location=handler.path)


LIARS = [whole, endless, endless_without_ranges, elsewhere, no_size, vast, too_short, broken_off,
         bomb, denied, failing, going_round]  # fmt: skip


@pytest.mark.parametrize("answer", LIARS, ids=lambda a: a.__name__)
@pytest.mark.parametrize("name", ["new.pth", "one.safetensors", "old.pth", "model.h5"])
def test_servers_that_fail_or_lie(name: str, answer: servers.Answer, folder: Path) -> None:
    if answer is vast and name in ("old.pth", "model.h5"):
        pytest.skip("what lies behind its end is of no concern to this format")
    with servers.files(folder, answer) as served:
        started = time.monotonic()
        tracemalloc.start()
        with pytest.raises(FormatError) as caught:
            checkpoints.open(f"{served.url}/{name}")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert caught.value.found
        assert time.monotonic() - started < 10
        assert peak < 64 * MIB
        assert served.sent < 64 * MIB
        # No storm of retries: what failed is not asked for again and again.
        assert len(served.requests) < 20


@pytest.mark.parametrize("answer", [endless, elsewhere, too_short, broken_off, bomb, failing])
def test_servers_that_begin_to_lie_while_values_are_read(
    answer: servers.Answer, folder: Path
) -> None:
    honest = threading.Event()
    honest.set()

    def changing(handler: BaseHTTPRequestHandler, path: Path, start: int, stop: int) -> None:
        (servers.ranged if honest.is_set() else answer)(handler, path, start, stop)

    for name in ("new.pth", "one.safetensors", "model.h5", "packed.npz"):
        honest.set()
        with opened(folder, name, changing) as (_, found):
            honest.clear()
            key = next(n for n in found if n.endswith("layers.13.weight"))
            with pytest.raises(FormatError):
                found.read(key)


def test_a_file_that_is_replaced_while_it_is_read(folder: Path, tmp_path: Path) -> None:
    """Same size, other values: bytes of the two must never be mixed."""
    path = tmp_path / "model.safetensors"

    def tagged(handler: BaseHTTPRequestHandler, path: Path, start: int, stop: int) -> None:
        told = f"bytes {start}-{stop - 1}/{path.stat().st_size}"
        tag = f'"{sha256(path.read_bytes()).hexdigest()}"'
        servers.respond(handler, 206, servers.part(path, start, stop), Content_Range=told, ETag=tag)

    safetensors.numpy.save_file(values(seed=1), path)
    with opened(tmp_path, path.name, tagged) as (_, found):
        found.read("layers.3.weight")
        safetensors.numpy.save_file(values(seed=2), path)
        with pytest.raises(FormatError, match="replaced"):
            found.read("layers.4.weight")


def test_a_server_without_ranges_will_do_for_a_small_file(tmp_path: Path) -> None:
    small = {"w": np.arange(6, dtype=np.float32)}
    safetensors.numpy.save_file(small, tmp_path / "small.safetensors")
    with opened(tmp_path, "small.safetensors", whole) as (_, found):
        np.testing.assert_array_equal(found.read("w"), small["w"])


def test_damage_in_a_remote_zip_is_found_when_it_is_read(folder: Path, tmp_path: Path) -> None:
    """Local headers of a remote archive are looked at when their member is."""
    content = bytearray((folder / "new.pth").read_bytes())
    header = content.index(b"new/data/3")
    content[header : header + 10] = b"new/data/4"
    (tmp_path / "bad.pth").write_bytes(bytes(content))
    with pytest.raises(CorruptFile):
        checkpoints.open(tmp_path / "bad.pth")
    with servers.files(tmp_path) as served, checkpoints.open(f"{served.url}/bad.pth") as found:
        bad = 0
        for name in found:
            try:
                found.read(name)
            except CorruptFile:
                bad += 1
        assert bad == 1


def test_damage_in_a_remote_heap_does_not_loop_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "strings.h5"
    with h5py.File(path, "w") as file:
        file.attrs.create("layer_names", ["a"], dtype=h5py.string_dtype())
        group = file.create_group("a")
        group.attrs.create("weight_names", ["w"], dtype=h5py.string_dtype())
        group["w"] = np.arange(4.0)
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")
    content[heap + 8] += 192
    path.write_bytes(bytes(content))
    with servers.files(tmp_path) as served, pytest.raises(CorruptFile, match="heap"):
        checkpoints.open(f"{served.url}/strings.h5")


def test_formats_that_need_a_local_file_say_so() -> None:
    with pytest.raises(FormatError, match="not on this machine"):
        np.memmap(locations.where("memory://a.bin"))
