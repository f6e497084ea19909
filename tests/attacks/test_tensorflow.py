"""TensorFlow checkpoints whose tables, entries or data files do not add up; graphs that nest."""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attacks.building import FLOATS, save
from attacks.harness import REFUSED, Attack, Make, check
from attacks.protobuf import fixed32, num, sub, varint
from regraft.errors import FormatError, MissingShard, UnsafeFile

FLOAT, STRING, VARIANT = 1, 7, 21
MAGIC = bytes.fromhex("57fb808b247547db")


@functools.cache
def _table() -> list[int]:
    found: list[int] = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        found.append(value)
    return found


def crc32c(data: bytes) -> int:
    """Castagnoli's, masked as LevelDB keeps it."""
    value, table = 0xFFFFFFFF, _table()
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def pairs(entries: Mapping[bytes, bytes] | Sequence[tuple[bytes, bytes]]) -> bytes:
    listed = entries.items() if isinstance(entries, Mapping) else entries
    return b"".join(
        varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in listed
    )


def block(content: bytes, kind: int = 0, crc: int | None = None, restarts: int = 0) -> bytes:
    whole = content + struct.pack("<I", restarts) if restarts != 1 else content + struct.pack(
        "<2I", 0, 1)  # fmt: skip
    body = whole + bytes([kind])
    return body + struct.pack("<I", crc32c(body) if crc is None else crc)


def table(
    content: bytes, *, kind: int = 0, crc: int | None = None, restarts: int = 1,
    handles: Sequence[tuple[bytes, int, int]] | None = None, footer: bytes | None = None,
) -> bytes:  # fmt: skip
    """A sorted table of one block; `handles` replace the index' (key, place, size)."""
    data = block(content, kind, crc, restarts)
    meta = block(b"", restarts=1)
    listed = handles or [(b"\xff", 0, len(data) - 5)]
    index = block(pairs([(k, varint(at) + varint(size)) for k, at, size in listed]), restarts=1)
    end = varint(len(data)) + varint(len(meta) - 5)
    end += varint(len(data) + len(meta)) + varint(len(index) - 5)
    return data + meta + index + (end.ljust(40, b"\0") if footer is None else footer) + MAGIC


def shape(*sizes: int, unknown: bool = False) -> bytes:
    return b"".join(sub(2, num(1, n)) for n in sizes) + (num(3, 1) if unknown else b"")


def entry(
    sizes: Sequence[int] = (4,), dtype: int = FLOAT, shard: int = 0, offset: int = 0,
    size: int = 16, crc: int | None = None, more: bytes = b"",
) -> bytes:  # fmt: skip
    told = num(1, dtype) + sub(2, shape(*sizes)) + num(3, shard) + num(4, offset) + num(5, size)
    return told + (b"" if crc is None else fixed32(6, crc)) + more


HEADER = num(1, 1) + sub(3, num(1, 1))


def index_of(**entries: bytes) -> bytes:
    return table(pairs({b"": HEADER, **{k.encode(): v for k, v in sorted(entries.items())}}))


def bundle(
    index: bytes | Callable[[], bytes], data: bytes | None = FLOATS,
    prepare: Callable[[Path], Any] | None = None,
) -> Make:  # fmt: skip
    """`m.index` with its data file, in a folder of its own."""

    def make(folder: Path, marker: Path) -> Path:
        inner = folder / "inner"
        inner.mkdir()
        (folder / "outside").write_bytes(FLOATS)
        if data is not None:
            (inner / "m.data-00000-of-00001").write_bytes(data)
        if prepare is not None:
            prepare(inner)
        return save(inner / "m.index", index if isinstance(index, bytes) else index())

    return make


def extent(start: int, length: int | None) -> bytes:
    return sub(1, num(1, start) + (b"" if length is None else num(2, length)))


def _own_index() -> bytes:
    content = index_of(w=entry())
    at = content.rindex(MAGIC) - 40
    return content[:at] + (varint(0) * 2 + varint(0) + varint(40)).ljust(40, b"\0") + MAGIC


def _objects() -> bytes:
    """A TrackableObjectGraph whose two nodes are each other's children, after the values."""
    nodes = sub(1, sub(1, num(1, 1) + sub(2, "a"))) + sub(1, sub(1, num(1, 0) + sub(2, "b")) + sub(
        2, sub(1, "VARIABLE_VALUE") + sub(2, "w") + sub(3, "w")))  # fmt: skip
    return FLOATS + varint(len(nodes)) + struct.pack("<I", crc32c(varint(len(nodes)))) + nodes


def _ring() -> bytes:
    size = len(_objects()) - 16
    graph = entry((), STRING, offset=16, size=size)
    return index_of(_CHECKPOINTABLE_OBJECT_GRAPH=graph, w=entry())


TABLES: dict[str, tuple[Make, Any]] = {
    "an honest checkpoint": (bundle(index_of(w=entry())), {"w": (4,)}),
    "a table that is cut off": (bundle(index_of(w=entry())[:-60]), FormatError),
    "an index block behind the file": (
        bundle(table(pairs({b"": HEADER}), footer=varint(0) * 2 + varint(1 << 40) * 2 + bytes(28))),
        REFUSED),
    "a block behind the file": (
        bundle(table(pairs({b"": HEADER}), handles=[(b"\xff", 1 << 40, 8)])), REFUSED),
    "a block of 2^63 bytes": (
        bundle(table(pairs({b"": HEADER}), handles=[(b"\xff", 0, 1 << 63)])), REFUSED),
    "one block again and again": (
        bundle(table(pairs({b"": HEADER, b"w": entry()}), handles=[
            (b"%05d" % i, 0, 40) for i in range(3000)])), REFUSED),
    "an index block that is its own": (
        bundle(_own_index), FormatError),
    "a wrong checksum": (bundle(table(pairs({b"": HEADER}), crc=1234)), REFUSED),
    "an unknown compression": (bundle(table(pairs({b"": HEADER}), kind=9)), REFUSED),
    "packed bytes that are none": (
        bundle(table(b"\xff\xff\xff\xff\x0f" + b"\xfe" * 40, kind=1)), REFUSED),
    "a packed block that says it is 4 GiB": (
        bundle(table(b"\xff\xff\xff\xff\x0f\0x", kind=1)), REFUSED),
    "a packed block of copies": (
        bundle(table(varint(300 << 20) + b"\0x" + b"\xfe\1\0" * 300_000, kind=1)), REFUSED),
    "more restarts than bytes": (
        bundle(table(pairs({b"": HEADER}), restarts=1 << 30)), REFUSED),
    "keys that are not sorted": (
        bundle(table(pairs([(b"", HEADER), (b"w", entry()), (b"a", entry())]))), REFUSED),
    "one key twice": (
        bundle(table(pairs([(b"", HEADER), (b"w", entry()), (b"w", entry())]))), REFUSED),
    "a key that shares more than there is": (
        bundle(table(pairs([(b"", HEADER)]) + varint(9) + varint(1) + varint(0) + b"w")), REFUSED),
    "a key that is longer than its block": (
        bundle(table(pairs([(b"", HEADER)]) + varint(0) + varint(1 << 40) + varint(0))), REFUSED),
    "keys that grow by sharing": (
        bundle(lambda: table(pairs([(b"", HEADER)]) + varint(0) + varint(200_000) + varint(0)
               + b"k" * 200_000 + b"".join(
                   varint(200_000 + i) + varint(1) + varint(0) + b"l" for i in range(5000)))),
        REFUSED),
    "a key that is no text": (
        bundle(table(pairs([(b"", HEADER), (b"\xff\xfe", entry())]))), REFUSED),
    "no header": (bundle(table(pairs({b"w": entry()}))), REFUSED),
    "no entries": (bundle(table(b"")), REFUSED),
    "a header of 2^31 data files": (
        bundle(table(pairs({b"": num(1, 1 << 31), b"w": entry()}))), REFUSED),
    "a header of another byte order": (
        bundle(table(pairs({b"": HEADER + num(2, 1), b"w": entry()}))), FormatError),
    "a header of a version to come": (
        bundle(table(pairs({b"": num(1, 1) + sub(3, num(2, 99)), b"w": entry()}))), FormatError),
    "a header of version 1": (bundle(table(pairs({b"": sub(1, b"x")}))), FormatError),
    "a header that is no message": (bundle(table(pairs({b"": b"\xff" * 9}))), REFUSED),
}  # fmt: skip
ENTRIES: dict[str, tuple[Make, Any]] = {
    "an entry that is no message": (bundle(index_of(w=b"\xff" * 9)), REFUSED),
    "a negative size": (bundle(index_of(w=entry((-4,)))), REFUSED),
    "a shape that is too large": (bundle(index_of(w=entry((5,)))), REFUSED),
    "sizes whose product overflows": (bundle(index_of(w=entry((1 << 62, 1 << 62)))), REFUSED),
    "sizes whose product overflows to little": (
        bundle(index_of(w=entry((1 << 62, 4, 1, 1 << 40)))), REFUSED),
    "no elements beside a huge size": (
        bundle(index_of(w=entry((0, 1 << 40), size=0), v=entry())), None),
    "a thousand axes": (bundle(index_of(w=entry((1,) * 999 + (4,)))), REFUSED),
    "a shape of unknown rank": (
        bundle(index_of(w=num(1, FLOAT) + sub(2, shape(4, unknown=True)) + num(5, 16))), None),
    "an unknown type": (bundle(index_of(w=entry(dtype=99))), FormatError),
    "a type of variants": (bundle(index_of(w=entry(dtype=VARIANT), v=entry())), None),
    "text of a huge shape": (
        bundle(index_of(w=entry((1 << 40,), STRING), v=entry(offset=16)), FLOATS * 2), None),
    "a negative offset": (bundle(index_of(w=entry(offset=-16))), REFUSED),
    "an offset behind the file": (bundle(index_of(w=entry(offset=8))), REFUSED),
    "an offset of 2^62": (bundle(index_of(w=entry(offset=1 << 62))), REFUSED),
    "a data file that does not exist": (bundle(index_of(w=entry(shard=7))), REFUSED),
    "a data file of number -1": (bundle(index_of(w=entry(shard=-1))), REFUSED),
    "two tensors on the same bytes": (bundle(index_of(v=entry(), w=entry())), REFUSED),
    "no data file": (bundle(index_of(w=entry()), None), MissingShard),
    "a data file that is too short": (bundle(index_of(w=entry()), FLOATS[:-1]), REFUSED),
    "a data file that links outside": (
        bundle(index_of(w=entry()), None,
               lambda p: (p / "m.data-00000-of-00001").symlink_to("../outside")), UnsafeFile),
    "a data file that links to itself": (
        bundle(index_of(w=entry()), None, lambda p: (p / "m.data-00000-of-00001").symlink_to(
            "m.data-00000-of-00001")), FormatError),
    "a data file that is a pipe": (
        bundle(index_of(w=entry()), None, lambda p: os.mkfifo(p / "m.data-00000-of-00001")),
        FormatError),
    "a data file that is a folder": (
        bundle(index_of(w=entry()), None, lambda p: (p / "m.data-00000-of-00001").mkdir()),
        FormatError),
    "slices that are missing": (
        bundle(index_of(w=entry(more=sub(7, extent(0, 2))))), REFUSED),
    "slices without end": (
        bundle(index_of(w=entry(more=sub(7, extent(0, 1)) * 70_000))), REFUSED),
    "slices of a thousand axes": (
        bundle(index_of(w=entry(more=sub(7, extent(0, 1) * 999)))), REFUSED),
    "a slice that is negative": (bundle(index_of(w=entry(more=sub(7, extent(-1, 2))))), REFUSED),
    "a graph of objects that is no message": (
        bundle(index_of(_CHECKPOINTABLE_OBJECT_GRAPH=entry((), STRING, offset=16, size=14),
                        w=entry()), FLOATS + varint(9) + bytes(4) + b"\xff" * 9), FormatError),
    "a graph of objects in a ring": (
        bundle(_ring, _objects()), None),
    "a name of control characters": (
        bundle(table(pairs([(b"", HEADER), (b"\x1b]0;owned\x07", entry((5,)))]))), REFUSED),
    "a name of many megabytes, shared": (
        bundle(lambda: table(pairs([(b"", HEADER), (b"k" * 500_000, entry())]))), None),
}  # fmt: skip


def saved_model(content: bytes, variables: bool = True) -> Make:
    def make(folder: Path, marker: Path) -> Path:
        model = folder / "model"
        (model / "variables").mkdir(parents=True)
        (model / "saved_model.pb").write_bytes(content)
        if variables:
            (model / "variables" / "variables.index").write_bytes(index_of(w=entry()))
            (model / "variables" / "variables.data-00000-of-00001").write_bytes(FLOATS)
        return model

    return make


def changed(make: Make, how: Callable[[Path], Any]) -> Make:
    """The same folder, of which `how` changes something."""

    def changing(folder: Path, marker: Path) -> Path:
        path = make(folder, marker)
        how(path if path.is_dir() else path.parent)
        return path if path.is_dir() else path.parent

    return changing


def instead(how: Callable[[Path], Any], name: str) -> Callable[[Path], Any]:
    """A file or a folder of that name is made by `how`, in place of what is there."""

    def change(folder: Path) -> None:
        path = folder / name
        if path.is_dir():
            path.rename(folder.parent / "moved")
        elif path.exists():
            path.rename(folder.parent / path.name)
        how(path)

    return change


def frozen(content: bytes) -> Make:
    return lambda folder, marker: save(folder / "x.pb", content)


def constant(name: str, tensor: bytes) -> bytes:
    value = sub(5, sub(1, "value") + sub(2, sub(8, tensor)))
    kind = sub(5, sub(1, "dtype") + sub(2, num(6, FLOAT)))
    return sub(1, sub(1, name) + sub(2, "Const") + kind + value)


def proto(sizes: Sequence[int] = (4,), raw: bytes | None = FLOATS, more: bytes = b"") -> bytes:
    return num(1, FLOAT) + sub(2, shape(*sizes)) + (sub(4, raw) if raw is not None else b"") + more


def step(name: str, kind: str, *inputs: str) -> bytes:
    return sub(1, sub(1, name) + sub(2, kind) + b"".join(sub(3, i) for i in inputs))


HONEST = saved_model(num(1, 1) + sub(2, sub(1, sub(4, "serve"))))
FOLDERS: dict[str, tuple[Make, Any]] = {
    "an honest folder": (changed(bundle(index_of(w=entry())), lambda p: None), {"w": (4,)}),
    "an index that is a pipe": (
        changed(bundle(index_of(w=entry())), instead(lambda p: os.mkfifo(p), "m.index")),
        UnsafeFile),
    "an index that links outside": (
        changed(bundle(index_of(w=entry())), instead(
            lambda p: p.symlink_to("../m.index"), "m.index")), None),
    "an index that links to a device": (
        changed(bundle(index_of(w=entry())), instead(
            lambda p: p.symlink_to("/dev/zero"), "m.index")), FormatError),
    "a note of the latest that is a pipe": (
        changed(bundle(index_of(w=entry())), lambda p: os.mkfifo(p / "checkpoint")), {"w": (4,)}),
    "a SavedModel that is a pipe": (
        changed(HONEST, instead(lambda p: os.mkfifo(p), "saved_model.pb")), UnsafeFile),
    "a SavedModel that is a folder": (
        changed(HONEST, instead(lambda p: p.mkdir(), "saved_model.pb")), FormatError),
    "a SavedModel whose metadata is a pipe": (
        changed(HONEST, lambda p: os.mkfifo(p / "keras_metadata.pb")), UnsafeFile),
    "a SavedModel whose metadata links outside": (
        changed(HONEST, lambda p: (p / "keras_metadata.pb").symlink_to("/etc/hostname")),
        UnsafeFile),
    "a SavedModel whose variables are a pipe": (
        changed(HONEST, instead(lambda p: os.mkfifo(p), "variables/variables.index")), UnsafeFile),
    "a SavedModel whose variables link outside": (
        changed(HONEST, instead(lambda p: p.symlink_to("../moved"), "variables")), UnsafeFile),
}  # fmt: skip
META = sub(2, sub(1, sub(4, "serve")))
GRAPHS: dict[str, tuple[Make, Any]] = {
    "an honest SavedModel": (saved_model(num(1, 1) + META), {"w": (4,)}),
    "a SavedModel that is no message": (saved_model(b"\xff" * 50), FormatError),
    "a SavedModel without a graph": (saved_model(num(1, 1)), FormatError),
    "a SavedModel that is cut off": (saved_model((num(1, 1) + META)[:-3]), FormatError),
    "a SavedModel without variables": (saved_model(num(1, 1) + META, False), MissingShard),
    "a SavedModel whose metadata is nested deep": (
        saved_model(num(1, 1) + sub(2, sub(1, sub(4, "serve")) + sub(7, sub(1, sub(4, sub(
            1, "_tf_keras_model") + sub(3, "[" * 200_000)))))), None),
    "a SavedModel with a long number": (
        saved_model(num(1, 1) + sub(2, sub(1, sub(4, "serve")) + sub(7, sub(1, sub(4, sub(
            1, "_tf_keras_model") + sub(3, "9" * 6000)))))), None),
    "a SavedModel of operations that write files": (
        saved_model(num(1, 1) + sub(2, sub(1, sub(4, "serve")) + sub(2, step(
            "w", "WriteFile", "name", "data")))), {"w": (4,)}),
    "an honest graph": (frozen(constant("w", proto())), {"w": (4,)}),
    "a graph that is cut off": (frozen(constant("w", proto())[:-4]), FormatError),
    "a constant of too few bytes": (frozen(constant("w", proto((5,)))), REFUSED),
    "a constant of a huge shape": (frozen(constant("w", proto((1 << 40,)))), REFUSED),
    "a constant whose product overflows": (
        frozen(constant("w", proto((1 << 62, 1 << 62)))), REFUSED),
    "a constant of one value, spread over much": (
        frozen(constant("w", proto((1 << 40,), None, sub(5, FLOATS[:4])))), None),
    "a constant of no value, spread over much": (
        frozen(constant("w", proto((1 << 40,), None))), None),
    "a constant of a negative size": (frozen(constant("w", proto((-4,)))), REFUSED),
    "two constants of one name": (
        frozen(constant("w", proto()) + constant("w", proto())), None),
    "operations in a ring": (
        frozen(constant("w", proto()) + step("a", "Identity", "b") + step("b", "Identity", "a")),
        None),
    "operations that double": (
        frozen(constant("v0", proto()) + b"".join(
            step(f"v{i + 1}", "AddV2", f"v{i}", f"v{i}") for i in range(3000))), None),
    "thirty thousand operations in a row": (
        frozen(constant("v0", proto()) + b"".join(
            step(f"v{i + 1}", "Identity", f"v{i}") for i in range(30_000))), None),
    "an operation of many inputs": (
        frozen(constant("w", proto()) + step("c", "ConcatV2", *["w"] * 100_000)), None),
    "an operation that writes a file": (
        frozen(constant("w", proto()) + step("x", "WriteFile", "w", "w")), {"w": (4,)}),
}  # fmt: skip
ATTACKS = {
    name: Attack(make, expects)
    for listed in (TABLES, ENTRIES, FOLDERS, GRAPHS)
    for name, (make, expects) in listed.items()
}


def test_tensorflow(attack: str, outcomes: dict[str, dict[str, Any]]) -> None:
    check(ATTACKS[attack], outcomes[attack])
