"""GGUF headers that count, point and nest beyond the file."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from attacks.building import FLOATS
from attacks.harness import REFUSED, Attack, check, written
from regraft.errors import FormatError, MissingShard

U32, BOOL, TEXT, LIST, U64 = 4, 7, 8, 9, 10
F32, Q8_0 = 0, 8


def text(value: str | bytes, length: int | None = None) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def items(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def info(
    name: str | bytes = "w", shape: Sequence[int] = (4,), kind: int = F32, offset: int = 0,
    axes: int | None = None,
) -> bytes:  # fmt: skip
    return text(name) + struct.pack(
        f"<I{len(shape)}QIQ", len(shape) if axes is None else axes, *shape, kind, offset
    )


NAMED = pair("general.architecture", TEXT, text("llama"))


def gguf(
    infos: Sequence[bytes] = (info(),), pairs: Sequence[bytes] = (NAMED,), data: bytes = FLOATS,
    tensors: int | None = None, keys: int | None = None, version: int = 3,
) -> bytes:  # fmt: skip
    head = b"GGUF" + struct.pack(
        "<IQQ", version, len(infos) if tensors is None else tensors,
        len(pairs) if keys is None else keys,
    ) + b"".join(pairs) + b"".join(infos)  # fmt: skip
    return head + bytes(-len(head) % 32) + data


def nested(depth: int) -> bytes:
    return struct.pack("<IQ", LIST, 1) * depth + struct.pack("<IQI", U32, 1, 7)


W = "offset|tensor 'w'"
FILES: dict[str, tuple[bytes, Any, str]] = {
    "more tensors than there are": (gguf(tensors=2), REFUSED, "x.gguf"),
    "2^64 - 1 tensors": (gguf(tensors=(1 << 64) - 1), REFUSED, "x.gguf"),
    "2^40 tensors": (gguf(tensors=1 << 40), REFUSED, "x.gguf"),
    "more keys than there are": (gguf(keys=2), None, ""),
    "2^64 - 1 keys": (gguf(keys=(1 << 64) - 1), REFUSED, "x.gguf"),
    "fewer tensors than there are": (gguf(tensors=0), None, ""),
    "a header that is cut off": (gguf()[:20], REFUSED, "x.gguf"),
    "nothing but the magic": (b"GGUF", FormatError, "x.gguf"),
    "version 0": (gguf(version=0), FormatError, "x.gguf"),
    "version 99": (gguf(version=99), FormatError, "x.gguf"),
    "version 1, whose counts are narrower": (gguf(version=1), REFUSED, "x.gguf"),
    "a key of 2^64 - 1 bytes": (gguf(pairs=[text("k", (1 << 64) - 1)]), REFUSED, "offset"),
    "a key of 2^62 bytes": (gguf(pairs=[text("k", 1 << 62)]), REFUSED, "offset"),
    "a key of no bytes": (gguf(pairs=[pair("", U32, bytes(4))]), None, ""),
    "a key twice": (gguf(pairs=[NAMED, NAMED]), REFUSED, "offset"),
    "a key that is no text": (
        gguf(pairs=[text(b"\xff\xfe") + struct.pack("<II", U32, 1)]), None, ""),
    "a key of control characters": (
        gguf(pairs=[pair("\x1b[2J", 99, b"")]), REFUSED, "offset"),
    "a text of 2^63 bytes": (
        gguf(pairs=[pair("k", TEXT, text("v", 1 << 63))]), REFUSED, "offset"),
    "a value of an unknown type": (gguf(pairs=[pair("k", 13, b"")]), REFUSED, "offset"),
    "a list of 2^64 - 1 numbers": (
        gguf(pairs=[pair("k", LIST, items(U32, (1 << 64) - 1))]), REFUSED, "offset"),
    "a list of 2^61 numbers of eight bytes": (
        gguf(pairs=[pair("k", LIST, items(U64, 1 << 61))]), REFUSED, "offset"),
    "a list of 2^40 texts": (
        gguf(pairs=[pair("k", LIST, items(TEXT, 1 << 40, text("v")))]), REFUSED, "offset"),
    "a list of an unknown type": (
        gguf(pairs=[pair("k", LIST, items(99, 1, bytes(8)))]), REFUSED, "offset"),
    "a list of 2^40 empty lists": (
        gguf(pairs=[pair("k", LIST, items(LIST, 1 << 40, items(U32, 0)))]), REFUSED, "offset"),
    "lists nested deep": (gguf(pairs=[pair("k", LIST, nested(80_000))]), REFUSED, "offset"),
    "lists of lists without end": (
        gguf(pairs=[pair("k", LIST, items(LIST, 40_000, items(U32, 0) * 40_000))]), None, ""),
    "a million texts of no bytes": (
        gguf(pairs=[pair("k", LIST, items(TEXT, 120_000, bytes(8) * 120_000))]), None, ""),
    "a truth of 7": (gguf(pairs=[pair("k", BOOL, b"\7")]), None, ""),
    "an alignment of zero": (
        gguf(pairs=[pair("general.alignment", U32, bytes(4))]), REFUSED, "x.gguf"),
    "an alignment of three": (
        gguf(pairs=[pair("general.alignment", U32, b"\3\0\0\0")]), REFUSED, "x.gguf"),
    "an alignment of 2^31": (
        gguf(pairs=[pair("general.alignment", U32, b"\0\0\0\x80")]), REFUSED, "x.gguf"),
    "an alignment that is text": (
        gguf(pairs=[pair("general.alignment", TEXT, text("32"))]), REFUSED, "x.gguf"),
    "an alignment that is a list": (
        gguf(pairs=[pair("general.alignment", LIST, items(U32, 0))]), REFUSED, "x.gguf"),
    "one name twice": (gguf([info(), info(offset=0)]), REFUSED, "x.gguf"),
    "a name of a megabyte": (gguf([info("w" * 900_000, (5,))]), REFUSED, "x.gguf"),
    "a name of control characters": (gguf([info("\x1b]0;owned\x07", (5,))]), REFUSED, "owned"),
    "a name that is no text": (gguf([info(b"\xff\xfe", (5,))]), REFUSED, "x.gguf"),
    "five axes": (gguf([info(shape=(1, 1, 1, 2, 2))]), REFUSED, W),
    "2^32 - 1 axes": (gguf([info(axes=(1 << 32) - 1)]), REFUSED, W),
    "sizes whose product overflows": (gguf([info(shape=(1 << 62, 1 << 62))]), REFUSED, W),
    "sizes whose product overflows to little": (
        gguf([info(shape=(1 << 63, 2, 4))]), REFUSED, W),
    "a size of 2^64 - 1": (gguf([info(shape=((1 << 64) - 1,))]), REFUSED, W),
    "no elements beside a huge size": (gguf([info(shape=(1 << 62, 0, 8))]), None, ""),
    "an unknown type": (gguf([info(kind=99)]), FormatError, W),
    "a type that is gone": (gguf([info(kind=4)]), FormatError, W),
    "a type of 2^32 - 1": (gguf([info(kind=(1 << 32) - 1)]), FormatError, W),
    "rows that are no whole blocks": (gguf([info(kind=Q8_0)]), REFUSED, W),
    "blocks beyond the file": (gguf([info(shape=(32,), kind=Q8_0)]), REFUSED, W),
    "an offset beyond the file": (gguf([info(offset=32)]), REFUSED, W),
    "an offset of 2^64 - 32": (gguf([info(offset=(1 << 64) - 32)]), REFUSED, W),
    "an offset that is not aligned": (gguf([info(offset=4, shape=(1,))]), REFUSED, W),
    "tensors that overlap": (
        gguf([info("v", (9,)), info("w", (4,), offset=32)], data=bytes(48)), REFUSED, W),
    "two tensors on the same bytes": (gguf([info("v"), info("w")]), REFUSED, "tensor"),
    "data that is cut off": (gguf(data=FLOATS[:-1]), REFUSED, W),
    "a tensor of no axes": (gguf([info(shape=())]), {"w": ()}, ""),
    "shards without end": (
        gguf(pairs=[pair("split.count", U32, b"\xff\xff\xff\xff")]), REFUSED, "x.gguf"),
    "shards of another name": (
        gguf(pairs=[pair("split.count", U32, b"\2\0\0\0")]), MissingShard, "x.gguf"),
    "a shard beyond the last": (
        gguf(pairs=[pair("split.count", U32, b"\2\0\0\0"), pair("split.no", U32, b"\7\0\0\0")]),
        REFUSED, "x.gguf"),
    "an honest file": (gguf(), {"w": (4,)}, ""),
}  # fmt: skip
ATTACKS = {n: Attack(written("x.gguf", c), e, where) for n, (c, e, where) in FILES.items()}
# A split's files are named by rule; the rule must not lead elsewhere.
_TWO = [pair("split.count", U32, b"\2\0\0\0"), pair("split.no", U32, bytes(4))]
ATTACKS["shards that are missing"] = Attack(
    written("m-00001-of-00002.gguf", gguf(pairs=_TWO)), MissingShard, "m-00001"
)


def test_gguf(attack: str, outcomes: dict[str, dict[str, Any]]) -> None:
    check(ATTACKS[attack], outcomes[attack])
