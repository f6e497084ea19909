"""HDF5 files that point outside themselves, load code, claim terabytes, or whose structures are bent.

The library is native code that trusts its files in places: a crash or a hang of the child is what
these attacks are after.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from attacks.building import save
from attacks.harness import Attack, Make, check
from regraft.errors import CorruptFile, FormatError, UnsafeFile

VALUES = np.array([1.5, -2.25, 3.125, 4.0625], np.float32)
W = {"l/w": (4,)}
Build = Callable[[h5py.File], Any]


def keras(file: h5py.File, weights: tuple[str, ...] = ("w",)) -> h5py.Group:
    """The legacy layout of one layer `l`; the caller adds its weights."""
    file.attrs["layer_names"] = np.array([b"l"])
    layer = file.create_group("l")
    layer.attrs["weight_names"] = np.array([name.encode() for name in weights])
    return layer


def honest(file: h5py.File) -> h5py.Group:
    layer = keras(file)
    layer["w"] = VALUES
    return layer


def built(build: Build, name: str = "x.h5", **options: Any) -> Make:
    def make(folder: Path, marker: Path) -> Path:
        with h5py.File(folder / name, "w", **options) as file:
            build(file)
        return folder / name

    return make


def also(add: Callable[[h5py.Group], Any]) -> Make:
    """An honest file, and something more in its layer."""
    return built(lambda file: add(honest(file)))


def beside(build: Callable[[h5py.File, str], Any]) -> Make:
    """A file that may point to another one beside it."""

    def make(folder: Path, marker: Path) -> Path:
        with h5py.File(folder / "other.h5", "w") as other:
            other["w"] = VALUES
        (folder / "values.bin").write_bytes(VALUES.tobytes())
        with h5py.File(folder / "x.h5", "w") as file:
            build(file, str(folder))
        return folder / "x.h5"

    return make


def patched(build: Build, patch: Callable[[bytearray], Any], **options: Any) -> Make:
    """A file of which some bytes are changed afterwards."""

    def make(folder: Path, marker: Path) -> Path:
        path = built(build, **options)(folder, marker)
        content = bytearray(path.read_bytes())
        patch(content)
        return save(path, bytes(content))

    return make


def at(signature: bytes, offset: int, value: bytes, which: int = 0) -> Callable[[bytearray], None]:
    """Writes a value at an offset from a structure's signature."""

    def patch(content: bytearray) -> None:
        position = -1
        for _ in range(which + 1):
            position = content.index(signature, position + 1)
        content[position + offset : position + offset + len(value)] = value

    return patch


def itself(signature: bytes, offset: int) -> Callable[[bytearray], None]:
    """Makes a structure point to where it lies."""

    def patch(content: bytearray) -> None:
        position = content.index(signature)
        content[position + offset : position + offset + 8] = struct.pack("<Q", position)

    return patch


def cut(end: int) -> Callable[[bytearray], None]:
    def patch(content: bytearray) -> None:
        del content[end:]

    return patch


def replaced(old: bytes, new: bytes) -> Callable[[bytearray], None]:
    def patch(content: bytearray) -> None:
        assert old in content
        content[:] = content.replace(old, new)

    return patch


def virtual(layer: h5py.Group, source: str, dataset: str = "w") -> None:
    layout = h5py.VirtualLayout((4,), np.float32)
    layout[:] = h5py.VirtualSource(source, dataset, (4,))
    layer.create_virtual_dataset("w", layout)


def low(layer: h5py.Group, kind: Any, shape: tuple[int, ...], plan: Any = None) -> None:
    """A dataset by the low-level calls."""
    h5py.h5d.create(layer.id, b"w", kind, h5py.h5s.create_simple(shape), dcpl=plan)


def filtered(code: int, values: tuple[int, ...] = ()) -> Build:
    def build(file: h5py.File) -> None:
        layer = keras(file)
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((4,))
        plan.set_filter(code, h5py.h5z.FLAG_OPTIONAL, values)
        low(layer, h5py.h5t.IEEE_F32LE, (4,), plan)
        layer["w"][...] = VALUES

    return build


def cycle(file: h5py.File) -> None:
    layer = honest(file)
    layer["again"] = layer


def around(file: h5py.File) -> None:
    layer = honest(file)
    layer["a/b/c/root"] = file["/"]


def deep(file: h5py.File) -> None:
    group = honest(file)
    for _ in range(500):
        group = group.create_group("g")


def wide(file: h5py.File) -> None:
    layer = honest(file)
    for index in range(3000):
        layer.create_group(f"g{index}")


def config(text: str) -> Build:
    def build(file: h5py.File) -> None:
        honest(file)
        file.attrs["model_config"] = text

    return build


def texts(file: h5py.File, count: int = 300, text: str = "w" * 60_000) -> None:
    """`weight_names` as strings of variable length, the last of them long."""
    layer = honest(file)
    names = [f"w{i}" for i in range(count - 1)] + [text]
    del layer.attrs["weight_names"]
    layer.attrs["weight_names"] = names


def _one_text_again_and_again(content: bytearray) -> None:
    """Every string is the long one: a few bytes each, and megabytes when read."""
    long = 60_000
    heaps = [i for i in range(len(content)) if content.startswith(struct.pack("<I", long), i)]
    reference = next(
        bytes(content[i : i + 16]) for i in heaps
        if 0 < struct.unpack_from("<Q", content, i + 4)[0] < len(content)
    )  # fmt: skip
    heap = content.rindex(reference)
    for index in range(299):
        position = heap - 16 * (index + 1)
        content[position : position + 16] = reference


def _reference(patch: Callable[[bytearray, int], Any]) -> Callable[[bytearray], None]:
    """Changes the reference to the first string: length (4), address (8), index (4)."""

    def change(content: bytearray) -> None:
        heap = content.index(b"GCOL")
        address = struct.pack("<Q", heap)
        position = content.index(address, 96) - 4
        while struct.unpack_from("<I", content, position + 12)[0] > 100:
            position = content.index(address, position + 5) - 4
        patch(content, position)

    return change


def _put(offset: int, value: bytes) -> Callable[[bytearray], None]:
    return _reference(
        lambda content, position: content.__setitem__(
            slice(position + offset, position + offset + len(value)), value
        )
    )


def attribute(value: Any, name: str = "layer_names", **options: Any) -> Make:
    """An honest file, one of whose attributes is of another kind."""

    def build(file: h5py.File) -> None:
        honest(file)
        del file.attrs["layer_names"]
        file.attrs["layer_names"] = np.array([b"l"])
        made = value(file) if callable(value) else value
        if name in file.attrs:
            del file.attrs[name]
        file.attrs.create(name, made, **options)

    return built(build)


def _odd_float(layer: h5py.Group) -> None:
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(23, 15, 8, 0, 15)
    kind.set_size(3)
    low(layer, kind, (4,))


def _odd_integer(layer: h5py.Group) -> None:
    kind = h5py.h5t.STD_I32LE.copy()
    kind.set_size(3)
    low(layer, kind, (4,))


def _chunks(content: bytearray, offset: int, value: bytes) -> None:
    """Writes into the tree of the chunks, whose type is 1."""
    position = content.index(b"TREE\1")
    content[position + offset : position + offset + len(value)] = value
    if offset == 5:
        content[position + 48 : position + 56] = struct.pack("<Q", position)


def _unpackable(content: bytearray) -> None:
    position = content.index(b"TREE\1")
    chunk = struct.unpack_from("<Q", content, position + 48)[0]
    content[chunk : chunk + 8] = b"\xff" * 8


U8 = b"\xff" * 8
LINKS = {
    "a layer in another file": (beside(lambda f, d: (
        keras(f), f.__delitem__("l"), f.__setitem__("l", h5py.ExternalLink(f"{d}/other.h5", "/")))),
        UnsafeFile),
    "a weight in another file": (beside(lambda f, d: keras(f).__setitem__(
        "w", h5py.ExternalLink(f"{d}/other.h5", "/w"))), UnsafeFile),
    "a weight in a file beside it": (beside(lambda f, d: keras(f).__setitem__(
        "w", h5py.ExternalLink("other.h5", "/w"))), UnsafeFile),
    "a weight in the file itself, as another": (built(lambda f: keras(f).__setitem__(
        "w", h5py.ExternalLink("x.h5", "/l"))), UnsafeFile),
    "a weight in a device": (built(lambda f: keras(f).__setitem__(
        "w", h5py.ExternalLink("/dev/zero", "/w"))), UnsafeFile),
    "a group of Keras 3 in another file": (beside(lambda f, d: (
        f.create_group("layers"), f.__setitem__("vars", h5py.ExternalLink(f"{d}/other.h5", "/")))),
        UnsafeFile),
    "layers of Keras 3 in another file": (beside(lambda f, d: f.__setitem__(
        "layers", h5py.ExternalLink(f"{d}/other.h5", "/"))), UnsafeFile),
    "a soft link to a weight": (built(lambda f: (
        honest(f), f.__setitem__("l/s", h5py.SoftLink("/l/w")))), UnsafeFile),
    "a soft link to itself": (built(lambda f: (
        honest(f), f.__setitem__("l/s", h5py.SoftLink("/l/s")))), UnsafeFile),
    "a soft link to nothing": (built(lambda f: (
        honest(f), f.__setitem__("l/s", h5py.SoftLink("/nothing")))), UnsafeFile),
    "a soft link as the layer": (built(lambda f: (
        keras(f), f.__delitem__("l"), f.__setitem__("l", h5py.SoftLink("/")))), UnsafeFile),
    "a group inside itself": (built(cycle), UnsafeFile),
    "the root inside itself": (built(around), UnsafeFile),
    "a group in two places": (built(lambda f: f.__setitem__("twin", honest(f))), UnsafeFile),
    "a weight in two places": (built(lambda f: f.__setitem__("l/v", honest(f)["w"])), None),
    "a virtual weight": (beside(lambda f, d: virtual(keras(f), f"{d}/other.h5")), UnsafeFile),
    "a virtual weight of the file itself": (
        built(lambda f: (f.__setitem__("v", VALUES), virtual(keras(f), ".", "v"))), UnsafeFile),
    "a virtual weight of a file that is not there": (
        built(lambda f: virtual(keras(f), "/nowhere/x.h5")), UnsafeFile),
    "values in another file": (beside(lambda f, d: keras(f).create_dataset(
        "w", (4,), "f4", external=[(f"{d}/values.bin", 0, 16)])), UnsafeFile),
    "values among the system's files": (built(lambda f: keras(f).create_dataset(
        "w", (4,), "f4", external=[("/etc/passwd", 0, 16)])), UnsafeFile),
    "values in a device": (built(lambda f: keras(f).create_dataset(
        "w", (4,), "f4", external=[("/dev/zero", 0, h5py.h5f.UNLIMITED)])), UnsafeFile),
    "groups nested deep": (built(deep), CorruptFile),
    "three thousand groups": (built(wide), W),
}  # fmt: skip
BIG = 1 << 40
SHAPES = {
    "a terabyte that was never written": (built(lambda f: keras(f).create_dataset(
        "w", (BIG,), "f4", chunks=(1 << 20,))), CorruptFile),
    "a terabyte in one piece that was never written": (built(lambda f: low(
        keras(f), h5py.h5t.IEEE_F32LE, (BIG,))), CorruptFile),
    "a terabyte of a fill value": (built(lambda f: keras(f).create_dataset(
        "w", (BIG,), "f4", chunks=(1 << 20,), fillvalue=1.5)), CorruptFile),
    "one written chunk of a terabyte": (built(lambda f: keras(f).create_dataset(
        "w", (BIG,), "f4", chunks=(1 << 10,)).__setitem__(slice(0, 4), VALUES)), CorruptFile),
    "a packed chunk of a gigabyte": (built(lambda f: keras(f).create_dataset(
        "w", (4,), "f4", chunks=(1 << 25,), maxshape=(None,), compression="gzip")
        .__setitem__(slice(0, 4), VALUES)), None),
    "a chunk of 4 GiB": (built(lambda f: keras(f).create_dataset(
        "w", (4,), "f4", chunks=((1 << 30) - 1,), maxshape=(None,))), CorruptFile),
    "zeros that unpack to much": (built(lambda f: keras(f).create_dataset(
        "w", (1 << 22,), "f4", chunks=(1 << 20,), compression="gzip", data=np.zeros(1 << 22, "f4"))),
        {"l/w": (1 << 22,)}),
    "nothing, of a huge shape": (built(lambda f: keras(f).create_dataset(
        "w", (0, BIG), "f4", chunks=(1, 1 << 20), maxshape=(None, None))), None),
    "no space": (built(lambda f: keras(f).create_dataset("w", data=h5py.Empty("f4"))), CorruptFile),
    "32 axes": (built(lambda f: keras(f).create_dataset(
        "w", (1,) * 32, "f4", data=np.ones((1,) * 32, "f4"))), {"l/w": (1,) * 32}),
    "a dataset that shrank in its header": (patched(honest, replaced(
        struct.pack("<2Q", 4, 4), struct.pack("<2Q", 1 << 40, 1 << 40))), FormatError),
    "a shape of 2^64 - 1": (patched(honest, replaced(
        struct.pack("<2Q", 4, 4), U8 + U8)), FormatError),
    "a shape that overflows": (patched(
        lambda f: keras(f).__setitem__("w", VALUES.reshape(2, 2)), replaced(
            struct.pack("<4Q", 2, 2, 2, 2), struct.pack("<4Q", *[(1 << 62) + 1] * 4))), FormatError),
}  # fmt: skip
TYPES = {
    "an unknown filter": (built(filtered(305)), UnsafeFile),
    "a filter that would be a plug-in": (built(filtered(32_001, (1, 2, 3))), UnsafeFile),
    "a filter by a changed number": (patched(lambda f: keras(f).create_dataset(
        "w", data=np.tile(VALUES, 999), chunks=(999,), compression="gzip"), replaced(
            b"deflate\0", b"evil\0\0\0\0")), None),
    "text of variable length": (built(lambda f: keras(f).create_dataset(
        "w", data=["a", "b"], dtype=h5py.string_dtype())), UnsafeFile),
    "bytes of variable length": (built(lambda f: keras(f).create_dataset(
        "w", (2,), h5py.vlen_dtype(np.uint8))), UnsafeFile),
    "references to objects": (built(lambda f: keras(f).create_dataset(
        "w", data=[f.ref, f.ref], dtype=h5py.ref_dtype)), UnsafeFile),
    "references to regions": (built(lambda f: keras(f).create_dataset(
        "w", (2,), h5py.regionref_dtype)), UnsafeFile),
    "records": (built(lambda f: keras(f).create_dataset(
        "w", (2,), [("a", "f4"), ("b", "i8")])), FormatError),
    "records of a thousand fields": (built(lambda f: keras(f).create_dataset(
        "w", (1,), [(f"f{i}", "f4") for i in range(1000)])), FormatError),
    "records that hold references": (built(lambda f: keras(f).create_dataset(
        "w", (2,), [("a", h5py.ref_dtype)])), FormatError),
    "text of fixed length": (built(lambda f: keras(f).create_dataset(
        "w", data=np.array([b"abcd"]))), FormatError),
    "arrays as elements": (built(lambda f: keras(f).create_dataset(
        "w", (2,), np.dtype(("f4", (2, 2))))), FormatError),
    "opaque bytes": (built(lambda f: keras(f).create_dataset("w", (2,), "V7")), FormatError),
    "opaque pairs of bytes that nobody names": (built(lambda f: keras(f).create_dataset(
        "w", data=np.zeros(2, "V2"))), FormatError),
    "names of numbers": (built(lambda f: keras(f).create_dataset(
        "w", data=np.ones(2, "i1"), dtype=h5py.enum_dtype({"a": 1, "b": 2}, "i1"))), None),
    "floats of three bytes": (built(lambda f: _odd_float(keras(f))), FormatError),
    "integers of three bytes": (built(lambda f: _odd_integer(keras(f))), FormatError),
    "long doubles": (built(lambda f: keras(f).create_dataset(
        "w", data=np.ones(2, np.longdouble))), FormatError),
    "bit fields": (built(lambda f: low(keras(f), h5py.h5t.STD_B32LE, (4,))), FormatError),
    "a type that is kept beside": (also(
        lambda g: g.__setitem__("kept", np.dtype([("a", "f4")]))), W),
    "a type that is kept, and used": (built(lambda f: (f.__setitem__("t", np.dtype("f4")),
        keras(f).create_dataset("w", data=VALUES, dtype=f["t"]))), W),
}  # fmt: skip
ATTRIBUTES = {
    "names that are numbers": (attribute(np.arange(4)), FormatError),
    "names that are one number": (attribute(5), FormatError),
    "names that are nothing": (attribute(h5py.Empty("S1")), FormatError),
    "names that are references": (attribute(
        lambda f: np.array([f.ref], h5py.ref_dtype), dtype=h5py.ref_dtype), FormatError),
    "names that are a region": (attribute(
        lambda f: f["l/w"].regionref[:2], dtype=h5py.regionref_dtype), FormatError),
    "names that are records": (attribute(np.zeros(2, [("a", "S4")])), FormatError),
    "names in two axes": (attribute(np.array([[b"l"], [b"l"]])), None),
    "names of layers that are not there": (attribute(np.array([b"m"])), CorruptFile),
    "names that lead up": (attribute(np.array([b"../l"])), CorruptFile),
    "names that begin at the root": (attribute(np.array([b"/l"])), CorruptFile),
    "names that are a weight": (attribute(np.array([b"l/w"])), CorruptFile),
    "names of control characters": (attribute(np.array([b"\x1b[2J\x07"])), CorruptFile),
    "one layer twice": (attribute(np.array([b"l", b"l"])), None),
    "one layer a hundred times": (attribute(np.array([b"l"] * 100)), None),
    "names in a million pieces": (built(lambda f: [
        honest(f), f.attrs.__delitem__("layer_names"),
        *(f.attrs.__setitem__(f"layer_names{i}", np.array([b"l"])) for i in range(300))]), None),
    "a config that is no JSON": (built(config("{" * 1000)), W),
    "a config that is nested deep": (built(config('{"class_name":' * 9000)), W),
    "a config of models in models": (built(config(
        '{"class_name":"Model","config":{"layers":[' * 900 + "]}}" * 900)), W),
    "a config that is a number": (built(config("9" * 5000)), W),
    "a config of odd types": (built(config(
        '{"class_name": 5, "config": {"name": [], "layers": [{"class_name": {}, "config": 1}]}}')),
        W),
    "a config of 8 megabytes": (built(config(" " * (8 << 20)), libver="latest"), CorruptFile),
    "a config that is a number, not text": (attribute(5, "model_config"), None),
    "a config that is a list": (attribute(np.arange(4), "model_config"), None),
    "one text again and again": (patched(texts, _one_text_again_and_again), FormatError),
    "a text that is longer than its heap has": (patched(texts, _put(0, b"\xff\xff\xff\x7f")), None),
    "a text that is shorter than its heap has": (
        patched(texts, _put(0, struct.pack("<I", 1))), None),
    "a text in a heap behind the file": (
        patched(texts, _put(4, struct.pack("<Q", 1 << 40))), FormatError),
    "a text in a heap that is none": (patched(texts, _put(4, struct.pack("<Q", 96))), FormatError),
    "a text of an index that is not there": (
        patched(texts, _put(12, struct.pack("<I", 60_000))), FormatError),
    "a text of index zero": (patched(texts, _put(12, bytes(4))), None),
}  # fmt: skip
NEW = {"libver": "latest"}


def many(file: h5py.File) -> None:
    """In the newest layout: so many links and attributes that they go into heaps and trees."""
    layer = honest(file)
    for index in range(40):
        layer.create_group(f"group{index}")
        layer.attrs[f"attribute{index}"] = "text" * index


def few(file: h5py.File) -> None:
    """In the newest layout, but nothing that needs a heap; a header that goes on elsewhere."""
    layer = honest(file)
    layer["v"] = VALUES + 1
    for index in range(6):
        layer.attrs[f"attribute{index}"] = "text" * 20


def goes_on_in_itself(content: bytearray) -> None:
    position = content.index(b"OCHK")
    address = content.index(struct.pack("<Q", position))
    header = content.rindex(b"OHDR", 0, address)
    content[address : address + 16] = struct.pack("<2Q", header, address + 16 - header)


def chunked(file: h5py.File) -> None:
    keras(file).create_dataset("w", data=np.tile(VALUES, 4000), chunks=(500,), compression="gzip")


BENT = {
    "a superblock that is cut off": (patched(honest, cut(20)), CorruptFile),
    "a superblock of an unknown version": (patched(honest, at(b"\x89HDF", 8, b"\x63")), CorruptFile),
    "offsets of 255 bytes": (patched(honest, at(b"\x89HDF", 13, b"\xff")), CorruptFile),
    "lengths of no bytes": (patched(honest, at(b"\x89HDF", 14, b"\0")), CorruptFile),
    "an end before its beginning": (
        patched(honest, at(b"\x89HDF", 40, struct.pack("<Q", 100))), None),
    "an end of 2^63": (patched(honest, at(b"\x89HDF", 40, struct.pack("<Q", 1 << 62))), None),
    "a base address": (patched(honest, at(b"\x89HDF", 24, struct.pack("<Q", 512))), CorruptFile),
    "a root header behind the file": (
        patched(honest, at(b"\x89HDF", 64, struct.pack("<Q", 1 << 40))), CorruptFile),
    "a root header that is the superblock": (
        patched(honest, at(b"\x89HDF", 64, bytes(8))), CorruptFile),
    "a block of the user before it": (built(honest, userblock_size=512), FormatError),
    "a tree of the wrong type": (patched(honest, at(b"TREE", 4, b"\1")), CorruptFile),
    "a tree of level 255": (patched(honest, at(b"TREE", 5, b"\xff")), CorruptFile),
    "a tree of 65535 entries": (patched(honest, at(b"TREE", 6, b"\xff\xff")), CorruptFile),
    "a tree of no entries": (patched(honest, at(b"TREE", 6, b"\0\0")), FormatError),
    "a tree that is its own child": (patched(honest, lambda c: (
        itself(b"TREE", 32)(c), at(b"TREE", 5, b"\1")(c))), CorruptFile),
    "a tree that is its own sibling": (patched(wide, itself(b"TREE", 16)), None),
    "a tree whose children lie behind the file": (
        patched(honest, at(b"TREE", 32, struct.pack("<Q", 1 << 50))), CorruptFile),
    "a heap of names that is too large": (
        patched(honest, at(b"HEAP", 8, struct.pack("<Q", 1 << 40))), CorruptFile),
    "a heap of names that is elsewhere": (
        patched(honest, at(b"HEAP", 24, struct.pack("<Q", 1 << 40))), CorruptFile),
    "a heap of names whose free space is itself": (
        patched(honest, at(b"HEAP", 16, struct.pack("<Q", 8))), None),
    "a node of 65535 symbols": (patched(honest, at(b"SNOD", 6, b"\xff\xff")), CorruptFile),
    "a symbol whose name lies behind the heap": (
        patched(honest, at(b"SNOD", 8, struct.pack("<Q", 1 << 40))), CorruptFile),
    "a symbol whose header lies behind the file": (
        patched(honest, at(b"SNOD", 16, struct.pack("<Q", 1 << 40))), CorruptFile),
    "a symbol that is the root": (
        patched(honest, at(b"SNOD", 16, struct.pack("<Q", 96))), FormatError),
    "a symbol that is a soft link": (
        patched(honest, at(b"SNOD", 24, struct.pack("<I", 2))), None),
    "a chunk tree that is its own child": (patched(chunked, lambda c: _chunks(c, 5, b"\1")), None),
    "a chunk tree of 65535 chunks": (patched(chunked, lambda c: _chunks(c, 6, b"\xff\xff")), None),
    "a chunk of 4 GiB, packed": (patched(chunked, lambda c: _chunks(c, 24, b"\xff" * 4)), None),
    "a chunk that lies behind the file": (
        patched(chunked, lambda c: _chunks(c, 48, struct.pack("<Q", 1 << 40))), None),
    "a chunk at another place": (
        patched(chunked, lambda c: _chunks(c, 32, struct.pack("<Q", 1 << 62))), None),
    "packed bytes that are none": (patched(chunked, _unpackable), CorruptFile),
    "a heap of text of size zero": (
        patched(texts, at(b"GCOL", 8, bytes(8))), CorruptFile),
    "a heap of text of 2^64 - 1 bytes": (patched(texts, at(b"GCOL", 8, U8)), CorruptFile),
    "a text of 2^64 - 1 bytes in a heap": (patched(texts, at(b"GCOL", 24, U8)), CorruptFile),
    "a text of no bytes in a heap": (patched(texts, at(b"GCOL", 24, bytes(8))), None),
    "new: little": (built(honest, **NEW), W),
    "new: a few links in their order": (built(few, track_order=True), {**W, "l/v": (4,)}),
    "new: many links": (built(many, **NEW), FormatError),
    "new: chunks": (built(chunked, **NEW), FormatError),
    "new: a header of a huge size": (patched(few, at(b"OHDR", 24, U8), **NEW), FormatError),
    "new: a header that goes on": (patched(few, at(b"OCHK", 4, U8), **NEW), FormatError),
    "new: a header that goes on in itself": (patched(few, goes_on_in_itself, **NEW), FormatError),
    "new: a root behind the file": (patched(few, at(b"\x89HDF", 36, U8), **NEW), CorruptFile),
    "new: an extension behind the file": (
        patched(few, at(b"\x89HDF", 20, b"\xfe" * 8), **NEW), CorruptFile),
    "new: a link outside": (built(lambda f: keras(f).__setitem__(
        "w", h5py.ExternalLink("/etc/passwd", "/w")), **NEW), UnsafeFile),
    "new: a soft link": (built(lambda f: keras(f).__setitem__(
        "w", h5py.SoftLink("/l")), **NEW), UnsafeFile),
    "new: a virtual weight": (
        built(lambda f: virtual(keras(f), "/nowhere/x.h5"), **NEW), UnsafeFile),
    "new: a cycle": (built(cycle, **NEW), UnsafeFile),
}  # fmt: skip


AT_READING = {"packed bytes that are none"}


def _attacks() -> dict[str, Attack]:
    found: dict[str, Attack] = {}
    for listed in (LINKS, SHAPES, TYPES, ATTRIBUTES, BENT):
        for name, (make, expects) in listed.items():
            where = r"x\.h5, " if expects is UnsafeFile else r"x\.h5"
            stage = "read" if name in AT_READING else "open"
            found[name] = Attack(make, expects, where, stage)
    return found


ATTACKS = _attacks()


def test_hdf5(attack: str, outcomes: dict[str, dict[str, Any]]) -> None:
    check(ATTACKS[attack], outcomes[attack])
