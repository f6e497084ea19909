"""torch.distributed.checkpoint folders whose metadata, pieces or files are not what they say."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attacks.building import (
    FLOATS,
    archive,
    called,
    entry,
    get,
    group,
    mapping,
    named,
    number,
    put,
    safetensors,
    sizes,
    tensor,
    text,
    torch_file,
    torch_parts,
    whole,
)
from attacks.harness import REFUSED, Attack, Make, check
from regraft.errors import FormatError, MissingShard, UnsafeFile

DCP = "torch.distributed.checkpoint.metadata"
FILE = "__0_0.distcp"
PIECE = torch_file(whole(tensor(), protocol=2))


def record(cls: str, *fields: tuple[str, bytes], module: str = DCP) -> bytes:
    """A pickled dataclass."""
    state = mapping(*((text(name), value) for name, value in fields))
    return named(module, cls) + b")\x81" + state + b"b"


def size_of(values: Sequence[int]) -> bytes:
    return called(named("torch", "Size"), sizes(values))


def listed(
    shape: Sequence[int] = (4,),
    chunks: Sequence[tuple[Sequence[int], Sequence[int]]] = (((0,), (4,)),),
    dtype: bytes = named("torch", "float32"),
) -> bytes:
    properties = named(DCP, "TensorProperties") + b")\x81" + group(dtype, b"N") + b"b"
    pieces = b"](" + b"".join(
        record("ChunkStorageMetadata", ("offsets", size_of(first)), ("sizes", size_of(extent)))
        for first, extent in chunks
    ) + b"e"  # fmt: skip
    return record(
        "TensorStorageMetadata", ("properties", properties), ("size", size_of(shape)),
        ("chunks", pieces),
    )  # fmt: skip


def stored(
    name: str = "w", first: Sequence[int] = (0,), file: str | bytes = FILE, offset: int = 0,
    length: int = len(PIECE),
) -> tuple[bytes, bytes]:  # fmt: skip
    index = record("MetadataIndex", ("fqn", text(name)), ("offset", size_of(first)))
    path = text(file) if isinstance(file, str) else file
    where = record(
        "_StorageInfo", ("relative_path", path), ("offset", number(offset)),
        ("length", number(length)), module="torch.distributed.checkpoint.filesystem",
    )  # fmt: skip
    return index, where


def metadata(
    tensors: Sequence[tuple[str, bytes]] = (("w", listed()),),
    places: Sequence[tuple[bytes, bytes]] = (stored(),),
    *more: tuple[str, bytes],
) -> bytes:
    return whole(record(
        "Metadata",
        ("state_dict_metadata", mapping(*((text(name), told) for name, told in tensors))),
        ("storage_data", mapping(*places)), *more,
    ), protocol=2)  # fmt: skip


def folder_of(
    content: bytes | Callable[[Path], bytes] | None = None,
    piece: bytes | None = PIECE,
    prepare: Callable[[Path], Any] | None = None,
    name: str = ".metadata",
) -> Make:
    """A folder of `.metadata` and one file of pieces, beside a file that is none of its."""

    def make(folder: Path, marker: Path) -> Path:
        inner = folder / "inner"
        inner.mkdir()
        (folder / "outside").write_bytes(PIECE)
        if content is not None:
            (inner / name).write_bytes(content(marker) if callable(content) else content)
        if piece is not None:
            (inner / FILE).write_bytes(piece)
        if prepare is not None:
            prepare(inner)
        return inner

    return make


def at(file: str) -> Make:
    return folder_of(metadata(places=[stored(file=file)]))


def replaced(how: Callable[[Path], Any], file: str = FILE) -> Make:
    return folder_of(metadata(places=[stored(file=file)]), None, lambda p: how(p / file))


def placed(**place: int) -> Make:
    return folder_of(metadata(places=[stored(**place)]))  # pyright: ignore[reportArgumentType]


def shaped(shape: Sequence[int], *chunks: tuple[Sequence[int], Sequence[int]]) -> Make:
    places = [stored(first=first) for first, _ in chunks]
    return folder_of(metadata([("w", listed(shape, chunks))], places))


def shards(*files: tuple[str, bytes], prepare: Callable[[Path], Any] | None = None) -> Make:
    """Hugging Face's layout: safetensors files that say of themselves where they belong."""

    def make(folder: Path, marker: Path) -> Path:
        inner = folder / "inner"
        inner.mkdir()
        for name, content in files:
            (inner / name).write_bytes(content)
        if prepare is not None:
            prepare(inner)
        return inner

    return make


def sharded(offsets: str, shape: Sequence[int] = (4,)) -> bytes:
    return safetensors(
        {"__metadata__": {"DCP_SHARDING_INFO": offsets}, "w": entry(list(shape), 0, 16)}, FLOATS
    )


def runs(marker: Path) -> bytes:
    return whole(called(named("os", "system"), text(f"touch {marker}")), protocol=2)


def _many(count: int) -> bytes:
    """As many pieces of one place, by reference."""
    piece = record("ChunkStorageMetadata", ("offsets", size_of((0,))), ("sizes", size_of((4,))))
    chunks = b"](" + piece + put(900) + get(900) * count + b"e"
    properties = named(DCP, "TensorProperties") + b")\x81" + group(named("torch", "float32")) + b"b"
    told = record("TensorStorageMetadata", ("properties", properties), ("size", size_of((4,))),
                  ("chunks", chunks))  # fmt: skip
    return metadata([("w", told)])


def _names(count: int) -> bytes:
    """One record under many names, which all have one place."""
    first = text("w") + listed() + put(900)
    rest = b"".join(text(f"v{i}") + get(900) for i in range(count))
    return whole(record(
        "Metadata", ("state_dict_metadata", b"}(" + first + rest + b"u"),
        ("storage_data", mapping(stored())),
    ), protocol=2)  # fmt: skip


SHARD = "shard-00001-model-00001-of-00001.safetensors"
OTHER = "shard-00002-model-00001-of-00001.safetensors"
ATTACKS = {
    "an honest folder": Attack(folder_of(metadata()), {"w": (4,)}),
    "an honest folder of safetensors": Attack(shards((SHARD, sharded("{}"))), {"w": (4,)}),
    "metadata that runs a command": Attack(folder_of(runs), UnsafeFile, "metadata"),
    "metadata of a rank that runs a command": Attack(
        folder_of(runs, name="__0.metadata"), UnsafeFile, "metadata"),
    "pieces that run a command": Attack(
        lambda f, m: folder_of(metadata(places=[stored(length=len(torch_file(runs(m))))]),
                               torch_file(runs(m)))(f, m), UnsafeFile, FILE, "read"),
    "metadata that is cut off": Attack(folder_of(metadata()[:-20]), REFUSED, "metadata"),
    "metadata that is no object": Attack(folder_of(whole(b"N")), REFUSED, "metadata"),
    "metadata nested deep": Attack(
        folder_of(whole(b"]" * 200_000 + b"N" + b"a" * 200_000)), REFUSED, "metadata"),
    "metadata of twelve million dicts": Attack(
        folder_of(whole(b"](" + b"}" * (12 << 20) + b"e")), REFUSED, "metadata"),
    "a file above the folder": Attack(at("../outside"), UnsafeFile, ""),
    "a file by an absolute path": Attack(
        lambda f, m: at(str(f / "outside"))(f, m), UnsafeFile, ""),
    "a file of the system's": Attack(at("/etc/passwd"), UnsafeFile, ""),
    "a file with a zero in its name": Attack(at("a\0b"), UnsafeFile, ""),
    "a file with a name that is too long": Attack(at("n" * 5000), FormatError, ""),
    "a file of another host": Attack(at("https://example.org/x"), FormatError, ""),
    "a file whose name is a number": Attack(
        folder_of(metadata(places=[stored(file=number(3))])), REFUSED, "metadata"),
    "a file that is missing": Attack(at("__1_0.distcp"), MissingShard, ""),
    "a file that is a folder": Attack(replaced(lambda p: p.mkdir()), MissingShard, ""),
    "a file that is a pipe": Attack(replaced(lambda p: os.mkfifo(p)), FormatError, ""),
    "a file that links to a device": Attack(
        replaced(lambda p: p.symlink_to("/dev/zero")), UnsafeFile, ""),
    "a file that links outside": Attack(
        replaced(lambda p: p.symlink_to("../outside")), UnsafeFile, ""),
    "a file that links to itself": Attack(
        replaced(lambda p: p.symlink_to(p.name)), FormatError, ""),
    "a file in a folder that links outside": Attack(
        replaced(lambda p: p.parent.symlink_to(".."), "d/outside"), UnsafeFile, ""),
    "metadata of another rank that is a pipe": Attack(
        folder_of(metadata(), prepare=lambda p: os.mkfifo(p / "__1.metadata"), name="__0.metadata"),
        UnsafeFile, "__1.metadata"),
    "metadata that is a pipe": Attack(
        folder_of(None, prepare=lambda p: os.mkfifo(p / ".metadata")), FormatError, ""),
    "metadata that links outside": Attack(
        folder_of(None, prepare=lambda p: (
            (p.parent / "meta").write_bytes(metadata()), (p / ".metadata").symlink_to("../meta"))),
        None),
    "metadata of another rank that is a folder": Attack(
        folder_of(metadata(), prepare=lambda p: (p / "__1.metadata").mkdir(), name="__0.metadata"),
        MissingShard, "__1.metadata"),
    "an offset behind the file": Attack(placed(offset=1 << 40), REFUSED, FILE),
    "a length beyond the file": Attack(placed(length=1 << 40), REFUSED, FILE),
    "a negative offset": Attack(placed(offset=-1), REFUSED, "metadata"),
    "an offset that overflows": Attack(placed(offset=(1 << 64) - 8), REFUSED, "metadata"),
    "a length of too few bytes": Attack(placed(length=15), REFUSED, "'w'"),
    "an offset into the middle": Attack(placed(offset=8, length=100), REFUSED, FILE, "read"),
    "a piece of another shape than the metadata says": Attack(
        folder_of(metadata([("w", listed((2, 2), [((0, 0), (2, 2))]))], [stored(first=(0, 0))])),
        REFUSED, FILE, "read"),
    "a piece of another dtype": Attack(
        folder_of(metadata([("w", listed(dtype=named("torch", "int32")))])), REFUSED, FILE, "read"),
    "a file that is no tensor's": Attack(
        folder_of(metadata(), b"\x00" * len(PIECE)), REFUSED, FILE, "read"),
    "a file that is cut off": Attack(folder_of(metadata(), PIECE[:-5]), REFUSED, FILE),
    "an archive of two tensors": Attack(
        folder_of(metadata(places=[stored(length=100)]), torch_file(whole(
            mapping((text("w"), tensor()), (text("v"), tensor())), protocol=2))), REFUSED, FILE,
        "read"),
    "an archive whose members overlap": Attack(
        folder_of(metadata(places=[stored(length=100)]), archive(
            [*torch_parts(whole(tensor(), protocol=2)),
             torch_parts()[2]._replace(name=b"x/data/1", offset=0)])), REFUSED, FILE, "read"),
    "pieces that overlap": Attack(shaped((4,), ((0,), (3,)), ((2,), (2,))), REFUSED, "'w'"),
    "pieces that leave a gap": Attack(shaped((4,), ((0,), (1,)), ((2,), (2,))), REFUSED, "'w'"),
    "one piece twice": Attack(
        folder_of(_many(1)), None),
    "one piece a million times": Attack(folder_of(_many(1_000_000)), None),
    "one tensor under 300,000 names": Attack(folder_of(_names(300_000)), REFUSED, ""),
    "a piece outside the shape": Attack(shaped((4,), ((4,), (4,))), REFUSED, "'w'"),
    "a piece of other axes": Attack(shaped((4,), ((0, 0), (2, 2))), REFUSED, "'w'"),
    "a piece whose end overflows": Attack(
        shaped((4,), (((1 << 62) - 1,), ((1 << 62) - 1,))), REFUSED, "metadata"),
    "a shape of petabytes": Attack(shaped((1 << 50,), ((0,), (1 << 50,))), REFUSED, "'w'"),
    "a shape of petabytes without pieces": Attack(shaped((1 << 50,)), REFUSED, "'w'"),
    "a shape whose product overflows": Attack(
        shaped((1 << 40, 1 << 40), ((0, 0), (1 << 40, 1 << 40))), REFUSED, "'w'"),
    "no elements beside a huge size": Attack(
        shaped((0, 1 << 61, 1 << 61), ((0, 0, 0), (0, 1 << 61, 1 << 61))), REFUSED, "'w'"),
    "a negative size": Attack(shaped((-4,), ((0,), (-4,))), REFUSED, "'w'"),
    "sixty-five axes": Attack(shaped((1,) * 65, ((0,) * 65, (1,) * 65)), REFUSED, "metadata"),
    "twenty divided axes": Attack(
        shaped((2,) * 20, *[((i,) + (0,) * 19, (1,) * 20) for i in (0, 1)]), REFUSED, "'w'"),
    "a name of control characters": Attack(
        folder_of(metadata([("\x1b]0;owned\x07", listed((5,)))])), REFUSED, ""),
    "two tensors of one path": Attack(
        folder_of(metadata([("w", listed()), ("v", listed())], [stored(), stored("v")],
                           ("planner_data", mapping((text("v"), group(text("w"))))))), None),
    "a path of a million parts": Attack(
        folder_of(metadata([("w", listed())], [stored()],
                           ("planner_data", mapping((text("w"), group(*[text("w")] * 200_000)))))),
        {"w": (4,)}),
    "a storage transformed by a plugin": Attack(
        folder_of(metadata(places=[(stored()[0], record(
            "_StorageInfo", ("relative_path", text(FILE)), ("offset", number(0)),
            ("length", number(16)), ("transform_descriptors", group(text("os.system"))),
            module="torch.distributed.checkpoint.filesystem"))])), {}),
    "a shard that is a pipe": Attack(
        shards((SHARD, sharded("{}")), prepare=lambda p: os.mkfifo(p / OTHER)), UnsafeFile, OTHER),
    "a shard that links outside": Attack(
        shards((SHARD, sharded("{}")),
               prepare=lambda p: ((p.parent / "s").write_bytes(sharded("{}")),
                                  (p / OTHER).symlink_to("../s"))), UnsafeFile, ""),
    "a shard that is a folder": Attack(
        shards((SHARD, sharded("{}")), prepare=lambda p: (p / OTHER).mkdir()), MissingShard, OTHER),
    "a shard with a header of exabytes": Attack(
        shards((SHARD, struct.pack("<Q", 1 << 60) + b"{}")), REFUSED, SHARD),
    "a shard that is empty": Attack(shards((SHARD, b"")), REFUSED, SHARD),
    "offsets of shards that are no JSON": Attack(
        shards((SHARD, sharded("{"))), REFUSED, SHARD),
    "offsets of shards nested deep": Attack(
        shards((SHARD, sharded('{"w":' + "[" * 100_000))), REFUSED, SHARD),
    "offsets of shards of other axes": Attack(
        shards((SHARD, sharded('{"w": {"saved_offsets": [0, 0]}}'))), REFUSED, "'w'"),
    "offsets of shards that are negative": Attack(
        shards((SHARD, sharded('{"w": {"saved_offsets": [-4]}}'))), REFUSED, "'w'"),
    "offsets of shards beyond any tensor": Attack(
        shards((SHARD, sharded('{"w": {"saved_offsets": [4611686018427387000]}}'))), REFUSED,
        "'w'"),
    "shards that overlap": Attack(
        shards((SHARD, sharded("{}")), (OTHER, sharded('{"w": {"saved_offsets": [2]}}'))), REFUSED,
        "'w'"),
    "shards of other dtypes": Attack(
        shards((SHARD, sharded("{}")), (OTHER, safetensors(
            {"w": entry([4], 0, 16, "I32")}, FLOATS))), REFUSED, "'w'"),
}  # fmt: skip


def test_distributed(attack: str, outcomes: dict[str, dict[str, Any]]) -> None:
    check(ATTACKS[attack], outcomes[attack])
