"""Orbax folders whose tree, arrays or database are not what they say."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks.building import FLOATS, called, named, text, whole
from attacks.harness import Attack, Make, check
from regraft.errors import CorruptFile, FormatError, UnsafeFile

LEAF = "('w',)"


def leaf(*keys: Any, kind: str = "jax.Array") -> dict[str, Any]:
    return {
        "key_metadata": [{"key": key, "key_type": 2} for key in keys or ("w",)],
        "value_metadata": {"value_type": kind, "skip_deserialize": False},
    }


def tree(**leaves: Any) -> dict[str, Any]:
    return {"tree_metadata": leaves or {LEAF: leaf()}, "use_zarr3": False}


def zarray(**other: Any) -> dict[str, Any]:
    honest = {
        "chunks": [4], "compressor": None, "dimension_separator": ".", "dtype": "<f4",
        "fill_value": None, "filters": None, "order": "C", "shape": [4], "zarr_format": 2,
    }  # fmt: skip
    return {**honest, **other}


def item(
    metadata: Any = None,
    array: Any = None,
    chunk: bytes | None = FLOATS,
    prepare: Callable[[Path], Any] | None = None,
    name: str = "w",
) -> Make:
    """One saved tree of one array in a folder of its own, beside another one outside."""

    def encoded(value: Any) -> bytes:
        return value if isinstance(value, bytes) else json.dumps(value).encode()

    def make(folder: Path, marker: Path) -> Path:
        for root in (folder / "inner", folder / "outside"):
            (root / name).mkdir(parents=True)
            (root / name / ".zarray").write_bytes(encoded(zarray()))
            (root / name / "0").write_bytes(FLOATS)
        inner = folder / "inner"
        (inner / "_METADATA").write_bytes(encoded(tree() if metadata is None else metadata))
        (inner / name / ".zarray").write_bytes(encoded(zarray() if array is None else array))
        if chunk is None:
            (inner / name / "0").unlink()
        else:
            (inner / name / "0").write_bytes(chunk)
        if prepare is not None:
            prepare(inner)
        return inner

    return make


def named_by(*keys: Any) -> Make:
    return item(tree(**{LEAF: leaf(*keys)}))


def array(**other: Any) -> Make:
    return item(array=zarray(**other))


def instead(name: str, how: Callable[[Path], Any]) -> Make:
    """A file or a folder of that name is made by `how`."""

    def prepare(inner: Path) -> None:
        path = inner / name
        if path.exists():
            path.rename(inner.parent / "moved")
        how(path)

    return item(prepare=prepare)


def database(content: bytes, prepare: Callable[[Path], Any] | None = None) -> Make:
    """A database by its manifest, in place of a folder for each array."""

    def make(folder: Path, marker: Path) -> Path:
        inner = folder / "inner"
        inner.mkdir()
        (inner / "_METADATA").write_text(json.dumps(tree()))
        (inner / "manifest.ocdbt").write_bytes(content)
        if prepare is not None:
            prepare(inner)
        return inner

    return make


def real(change: Callable[[Path], Any]) -> Make:
    """A database that tensorstore wrote, changed afterwards."""

    def make(folder: Path, marker: Path) -> Path:
        import tensorstore

        inner = folder / "inner"
        inner.mkdir()
        (inner / "_METADATA").write_text(json.dumps(tree()))
        base = {"driver": "file", "path": f"{inner}/"}
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        store.write("w/.zarray", json.dumps(zarray()).encode()).result()
        store.write("w/0", FLOATS).result()
        change(inner)
        return inner

    return make


def aggregate(content: bytes) -> Make:
    """The tree of older versions, with arrays inside."""
    return item(prepare=lambda p: ((p / "checkpoint").write_bytes(content),
                                   (p / "_METADATA").unlink()))  # fmt: skip


def _cut(folder: Path) -> None:
    for path in (folder / "d").iterdir():
        path.write_bytes(path.read_bytes()[:-3])


def _flipped(folder: Path) -> None:
    for path in (folder / "d").iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(bytes(data))


def _steps(count: int) -> Make:
    def make(folder: Path, marker: Path) -> Path:
        for number in range(count):
            (folder / "inner" / str(number)).mkdir(parents=True)
        (folder / "inner" / "_CHECKPOINT_METADATA").write_text("{}")
        return folder / "inner"

    return make


def _nested(depth: int) -> Make:
    def make(folder: Path, marker: Path) -> Path:
        path = folder / "inner"
        for _ in range(depth):
            path = path / "1"
        path.mkdir(parents=True)
        return folder / "inner"

    return make


ATTACKS = {
    "an honest folder": Attack(item(), {"w": (4,)}),
    "an honest database": Attack(real(lambda p: None), {"w": (4,)}),
    "a tree that is no JSON": Attack(item(b"{"), CorruptFile, "_METADATA"),
    "a tree that is a list": Attack(item([]), CorruptFile, "_METADATA"),
    "a tree that is a pickle": Attack(
        lambda f, m: item(whole(called(named("os", "system"), text(f"touch {m}"))))(f, m),
        CorruptFile, "_METADATA"),
    "a tree nested deep": Attack(item(b'{"tree_metadata":' + b"[" * 500_000), CorruptFile, ""),
    "a tree nested deep in what is not needed": Attack(
        item(json.dumps(tree()).encode()[:-1] + b',"x":' + b"[" * 90_000 + b"]" * 90_000 + b"}"),
        None),
    "a tree of twenty megabytes": Attack(item(b" " * (20 << 20)), CorruptFile, "_METADATA"),
    "a tree of many small lists": Attack(
        item(b'{"x":[' + b"[]," * 4_000_000 + b"[]]}"), CorruptFile, "_METADATA"),
    "a tree of 60,000 leaves that are one": Attack(
        item(tree(**{f"{i}": leaf() for i in range(60_000)})), None),
    "a tree of 60,000 leaves that are not there": Attack(
        item(tree(**{f"{i}": leaf(f"v{i}") for i in range(60_000)})), CorruptFile, "v"),
    "a tree that is a pipe": Attack(
        instead("_METADATA", lambda p: os.mkfifo(p)), FormatError, ""),
    "a tree that links outside": Attack(
        instead("_METADATA", lambda p: p.symlink_to("../moved")), UnsafeFile, "_METADATA"),
    "a tree that links to a device": Attack(
        instead("_METADATA", lambda p: p.symlink_to("/dev/zero")), FormatError, ""),
    "a key that leads above": Attack(named_by("../outside/w"), UnsafeFile, "outside"),
    "keys that lead above": Attack(named_by("", "", "/outside/w"), FormatError, "outside"),
    "a key that is an absolute path": Attack(named_by("/etc"), UnsafeFile, "etc"),
    "a key with a zero": Attack(named_by("w\0"), UnsafeFile, "w"),
    "a key with a backslash": Attack(named_by("..\\w"), UnsafeFile, "w"),
    "a key that is empty": Attack(named_by(""), FormatError, ""),
    "a key that is long": Attack(named_by("k" * 100_000), FormatError, ""),
    "a key of control characters": Attack(named_by("\x1b]0;owned\x07"), FormatError, ""),
    "a key of another host": Attack(named_by("https://example.org"), FormatError, ""),
    "ten thousand keys": Attack(named_by(*["k"] * 10_000), FormatError, ""),
    "a file of texts that is a pipe": Attack(
        item(prepare=lambda p: os.mkfifo(p / "_strings.json")), UnsafeFile, "_strings"),
    "an array that is a pipe": Attack(
        instead("w/.zarray", lambda p: os.mkfifo(p)), UnsafeFile, "zarray"),
    "an array that links outside": Attack(
        instead("w/.zarray", lambda p: p.symlink_to("../../outside/w/.zarray")), UnsafeFile, "w"),
    "an array whose folder links outside": Attack(
        instead("w", lambda p: p.symlink_to("../outside/w")), UnsafeFile, "w"),
    "an array whose folder links in a circle": Attack(
        instead("w", lambda p: p.symlink_to("w")), UnsafeFile, "w"),
    "an array that is missing": Attack(
        instead("w/.zarray", lambda p: None), CorruptFile, "w"),
    "a chunk that is a pipe": Attack(instead("w/0", lambda p: os.mkfifo(p)), UnsafeFile, "w/0"),
    "a chunk that links outside": Attack(
        instead("w/0", lambda p: p.symlink_to("/etc/hostname")), UnsafeFile, "w/0"),
    "a chunk that links to a device": Attack(
        instead("w/0", lambda p: p.symlink_to("/dev/zero")), UnsafeFile, "w/0"),
    "a chunk that is cut off": Attack(item(chunk=FLOATS[:-1]), CorruptFile, "w", "read"),
    "a chunk that is too long": Attack(item(chunk=FLOATS * 2), CorruptFile, "w", "read"),
    "a chunk that is a folder": Attack(
        instead("w/0", lambda p: p.mkdir()), None),
    "metadata of an array that is no JSON": Attack(item(array=b"{"), CorruptFile, "w"),
    "metadata of an array nested deep": Attack(
        item(array=b'{"shape":' + b"[" * 300_000), CorruptFile, "w"),
    "metadata of an array of two megabytes": Attack(
        item(array=b" " * (2 << 20)), CorruptFile, "w"),
    "a shape of petabytes": Attack(array(shape=[1 << 50], chunks=[1 << 50]), CorruptFile, "w"),
    "a shape of petabytes in small chunks": Attack(array(shape=[1 << 50]), CorruptFile, "w"),
    "a chunk of petabytes": Attack(array(chunks=[1 << 50]), CorruptFile, "w"),
    "a shape whose product overflows": Attack(
        array(shape=[1 << 40, 1 << 40], chunks=[1, 1]), CorruptFile, "w"),
    "no elements beside a huge size": Attack(
        array(shape=[0, 1 << 61, 1 << 61], chunks=[1, 1, 1]), CorruptFile, "w"),
    "a shape that is negative": Attack(array(shape=[-4]), CorruptFile, "w"),
    "a shape of a fraction": Attack(array(shape=[4.5]), CorruptFile, "w"),
    "a shape that is text": Attack(array(shape="4"), CorruptFile, "w"),
    "a shape of a thousand axes": Attack(
        array(shape=[1] * 1000, chunks=[1] * 1000), CorruptFile, "w"),
    "chunks of nothing": Attack(array(chunks=[0]), CorruptFile, "w", "read"),
    "chunks of other axes": Attack(array(chunks=[2, 2]), CorruptFile, "w"),
    "a dtype of objects": Attack(array(dtype="|O"), CorruptFile, "w"),
    "a dtype that is a list": Attack(array(dtype=[["a", "<f4"]]), CorruptFile, "w"),
    "a dtype of huge width": Attack(array(dtype="|V2147483647"), CorruptFile, "w"),
    "a filter that is unknown": Attack(
        array(filters=[{"id": "pickle"}]), CorruptFile, "w", "read"),
    "a compressor that is unknown": Attack(
        array(compressor={"id": "../../x"}), CorruptFile, "w", "read"),
    "a chunk that is a bomb": Attack(item(
        array=zarray(shape=[1 << 28], chunks=[1 << 28], compressor={"id": "zlib", "level": 1}),
        chunk=b"\x78\x01" + bytes(1000)), CorruptFile, "w"),
    "nothing stored of a terabyte": Attack(
        item(array=zarray(shape=[1 << 38], chunks=[1 << 20], fill_value=0), chunk=None),
        {"w": (1 << 38,)}),
    "nothing stored of a terabyte that is not zero": Attack(
        item(array=zarray(shape=[1 << 38], chunks=[1 << 20], fill_value=1), chunk=None),
        {"w": (1 << 38,)}),
    "zarr of version 3 with a plugin": Attack(item(
        {**tree(), "use_zarr3": True}, prepare=lambda p: (p / "w" / "zarr.json").write_text(
            json.dumps({"zarr_format": 3, "node_type": "array", "shape": [4],
                        "data_type": "float32", "fill_value": 0, "chunk_key_encoding": {
                            "name": "v2"}, "chunk_grid": {
                            "name": "regular", "configuration": {"chunk_shape": [4]}},
                        "codecs": [{"name": "os.system"}]}))), CorruptFile, "w", "read"),
    "a database that is empty": Attack(database(b""), CorruptFile, ""),
    "a database of nothing known": Attack(database(b"\xff" * 200), CorruptFile, ""),
    "a database that says it is huge": Attack(
        database(b"\x0c\xdb\x3a\x2a" + b"\xff" * 8 + bytes(100)), CorruptFile, ""),
    "a database that links outside": Attack(
        database(b"", lambda p: ((p / "manifest.ocdbt").unlink(),
                                 (p / "manifest.ocdbt").symlink_to("/etc/hostname"))), UnsafeFile,
        "manifest"),
    "a database that is a pipe": Attack(
        database(b"", lambda p: ((p / "manifest.ocdbt").unlink(),
                                 os.mkfifo(p / "manifest.ocdbt"))), FormatError, ""),
    "a database without its data": Attack(
        real(lambda p: (p / "d").rename(p.parent / "moved")), CorruptFile, ""),
    "a database whose data link outside": Attack(
        real(lambda p: ((p / "d").rename(p.parent / "moved"),
                        (p / "d").symlink_to("../moved"))), UnsafeFile, "d"),
    "a database whose data are cut off": Attack(real(_cut), CorruptFile, ""),
    "a database whose data are damaged": Attack(real(_flipped), CorruptFile, ""),
    "a database whose data are a pipe": Attack(
        real(lambda p: ((p / "d").rename(p.parent / "moved"), (p / "d").mkdir(),
                        os.mkfifo(p / "d" / "x"))), UnsafeFile, "x"),
    "a tree of older versions nested deep": Attack(
        aggregate(b"\x81\xa1w" * 100_000 + b"\xc0"), FormatError, ""),
    "a tree of older versions of 2^32 entries": Attack(
        aggregate(b"\xdf\xff\xff\xff\xff\xa1w\xc0"), FormatError, ""),
    "a tree of older versions with an array of 4 GiB": Attack(
        aggregate(b"\x81\xa1w\xc9\xff\xff\xff\xff\x01" + bytes(20)), FormatError, ""),
    "a tree of older versions that leads outside": Attack(
        aggregate(b"\x81\xa1w\xb8PLACEHOLDER://../outside"),
        FormatError, ""),
    "twenty thousand steps": Attack(_steps(20_000), FormatError, ""),
    "steps in steps": Attack(_nested(300), FormatError, ""),
}  # fmt: skip


def test_orbax(attack: str, outcomes: dict[str, dict[str, Any]]) -> None:
    check(ATTACKS[attack], outcomes[attack])
