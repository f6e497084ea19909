"""ONNX models whose fields, shapes and external files do not add up, or lead out of the folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attacks.building import FLOATS, save
from attacks.harness import REFUSED, Attack, Make, check, written
from attacks.protobuf import num, sub, varint
from regraft.errors import CorruptFile, FormatError, MissingShard, UnsafeFile

FLOAT, STRING, INT64, INT4 = 1, 8, 7, 22


def tensor(
    name: str | bytes = "w", dims: Sequence[int] = (4,), kind: int = FLOAT,
    raw: bytes | None = FLOATS, *more: bytes,
) -> bytes:  # fmt: skip
    """A TensorProto."""
    fields = b"".join(num(1, n) for n in dims) + num(2, kind) + sub(8, name)
    return fields + (b"" if raw is None else sub(9, raw)) + b"".join(more)


def external(location: str | bytes | None, **more: str) -> bytes:
    """A TensorProto whose values lie in another file."""
    told = {} if location is None else {"location": location}
    entries = [sub(13, sub(1, key) + sub(2, value)) for key, value in {**told, **more}.items()]
    return tensor("w", (4,), FLOAT, None, *entries, num(14, 1))


def graph(*initializers: bytes, nodes: Sequence[bytes] = (), more: bytes = b"") -> bytes:
    return b"".join(sub(1, n) for n in nodes) + sub(2, "g") + b"".join(
        sub(5, t) for t in initializers) + more  # fmt: skip


def model(inner: bytes | None = None, *more: bytes) -> bytes:
    held = graph(tensor()) if inner is None else inner
    return num(1, 8) + sub(2, "maker") + sub(7, held) + sub(8, num(2, 17)) + b"".join(more)


def of(*initializers: bytes) -> bytes:
    return model(graph(*initializers))


def node(kind: str, inputs: Sequence[str] = (), outputs: Sequence[str] = (), *attributes: bytes,
         name: str = "n") -> bytes:  # fmt: skip
    return (b"".join(sub(1, i) for i in inputs) + b"".join(sub(2, o) for o in outputs)
            + sub(3, name) + sub(4, kind) + b"".join(sub(5, a) for a in attributes))  # fmt: skip


def body(depth: int) -> bytes:
    """If in If in If …"""
    inner = graph(tensor())
    for level in range(depth):
        branch = sub(1, "then_branch") + sub(6, inner) + num(20, 5)
        inner = graph(nodes=[node("If", ["c"], [f"o{level}"], branch)])
    return inner


def sparse(values: bytes, indices: bytes, dims: Sequence[int]) -> bytes:
    return sub(15, sub(1, values) + sub(2, indices) + b"".join(num(3, n) for n in dims))


def beside(location: str | Callable[[Path], str], prepare: Callable[[Path], Any] | None = None,
           **more: str) -> Make:  # fmt: skip
    """A model in a folder of its own; another file lies above it, values lie beside it."""

    def make(folder: Path, marker: Path) -> Path:
        inner = folder / "inner"
        inner.mkdir()
        (folder / "outside.bin").write_bytes(FLOATS)
        (inner / "w.bin").write_bytes(FLOATS)
        if prepare is not None:
            prepare(inner)
        where = location if isinstance(location, str) else location(folder)
        return save(inner / "x.onnx", of(external(where, **more)))

    return make


W = "x.onnx"
FILES: dict[str, tuple[bytes, Any, str]] = {
    "an honest model": (model(), {"w": (4,)}, ""),
    "a graph that is longer than the file": (
        num(1, 8) + sub(7, graph(tensor()), 1 << 30), REFUSED, W),
    "a graph of 2^64 - 1 bytes": (
        num(1, 8) + sub(7, graph(tensor()), (1 << 64) - 1), FormatError, W),
    "a model that is cut off": (model()[:-20], FormatError, W),
    "no graph": (num(1, 8) + sub(2, "maker"), FormatError, W),
    "two graphs": (model(None, sub(7, graph(tensor("v")))), REFUSED, W),
    "a field of an unknown number": (model(None, sub(99, b"x")), FormatError, W),
    "a field of number 0": (model(graph(tensor()) + sub(0, b"")), REFUSED, W),
    "a group": (model(graph(tensor()) + varint(5 << 3 | 3)), REFUSED, W),
    "a wire type that does not exist": (model(graph(tensor()) + varint(5 << 3 | 7)), REFUSED, W),
    "a number without end": (model(graph(tensor()) + b"\x08" + b"\xff" * 20), REFUSED, W),
    "a tensor that is a number": (model(graph(tensor()) + num(5, 7)), REFUSED, W),
    "a tensor that ends behind its graph": (
        model(graph(tensor(), more=sub(5, tensor("v")[:-4], 60))), REFUSED, W),
    "an empty tensor": (of(b""), FormatError, W),
    "a million empty fields": (model(graph(tensor()) + sub(13, b"") * 500_000), None, ""),
    "two hundred thousand tensors": (
        of(*(tensor(f"{i}", (0,), FLOAT, None) for i in range(60_000))), None, ""),
    "two tensors of one name": (of(tensor(), tensor("w", (2,), FLOAT, FLOATS[:8])), None, ""),
    "a negative size": (of(tensor("w", (-4,))), REFUSED, W),
    "a size too large": (of(tensor("w", (5,))), REFUSED, "w"),
    "a size too small": (of(tensor("w", (3,))), REFUSED, "w"),
    "sizes whose product overflows": (of(tensor("w", (1 << 62, 1 << 62))), REFUSED, "w"),
    "sizes whose product overflows to little": (
        of(tensor("w", (1 << 62, 4, 1, 1 << 40))), REFUSED, "w"),
    "a thousand axes": (of(tensor("w", (1,) * 999 + (4,))), FormatError, W),
    "a hundred thousand axes, packed": (
        of(sub(1, varint(9) * 100_000) + num(2, FLOAT) + sub(8, "w") + sub(9, FLOATS)),
        FormatError, W),
    "no elements beside a huge size": (of(tensor("w", (0, 1 << 40), FLOAT, b"")), None, ""),
    "a type of 99": (of(tensor("w", (4,), 99)), FormatError, "w"),
    "a type of 0": (of(tensor("w", (4,), 0)), FormatError, "w"),
    "half bytes that say they hold much": (of(tensor("w", (1 << 40,), INT4)), REFUSED, "w"),
    "text": (of(tensor("w", (1,), STRING, None, sub(6, b"text"))), {}, ""),
    "text of a huge shape": (of(tensor("w", (1 << 60,), STRING, None)), None, ""),
    "numbers that are too few": (
        of(tensor("w", (4,), FLOAT, None, sub(4, FLOATS[:12]))), REFUSED, "w"),
    "numbers that are cut off": (
        of(tensor("w", (4,), FLOAT, None, sub(4, FLOATS[:15]))), REFUSED, "w"),
    "numbers one by one without end": (
        of(tensor("w", (300_000,), INT64, None, num(7, 5) * 300_000)), FormatError, W),
    "numbers that overflow": (
        of(tensor("w", (1,), INT64, None, sub(7, b"\xff" * 11))), REFUSED, W),
    "packed numbers without end": (
        of(tensor("w", (9,), INT64, None, sub(7, b"\x80" * 900_000))), REFUSED, W),
    "a tensor in segments": (
        of(tensor("w", (4,), FLOAT, FLOATS, sub(3, num(1, 0) + num(2, 2)))), FormatError, "w"),
    "a name of a megabyte": (of(tensor("w" * 900_000)), FormatError, W),
    "a name that is no text": (of(tensor(b"\xff\xfe")), REFUSED, W),
    "a name of control characters": (of(tensor("\x1b]0;owned\x07", (5,))), REFUSED, "owned"),
    "graphs in graphs, a hundred deep": (model(body(100)), REFUSED, W),
    "graphs in graphs, ten thousand deep": (model(body(3000)), REFUSED, W),
    "operations in a ring": (
        model(graph(tensor(), nodes=[node("Add", ["b", "w"], ["a"]), node("Add", ["a"], ["b"])])),
        None, ""),
    "an operation that takes itself": (
        model(graph(tensor(), nodes=[node("Identity", ["a"], ["a"])])), {"w": (4,)}, ""),
    "forty thousand operations in a row": (
        model(graph(tensor(), nodes=[
            node("Identity", [f"v{i}"], [f"v{i + 1}"]) for i in range(25_000)])), None, ""),
    "operations that double": (
        model(graph(tensor(), nodes=[
            node("Add", [f"v{i}", f"v{i}"], [f"v{i + 1}"]) for i in range(3000)])), None, ""),
    "one operation of many inputs": (
        model(graph(tensor(), nodes=[node("Concat", ["w"] * 60_000, ["o"])])), None, ""),
    "an operation of another domain": (
        model(graph(tensor(), nodes=[node("System", ["w"], ["o"]) + sub(7, "evil.domain")])),
        {"w": (4,)}, ""),
    "a function that calls itself": (
        model(graph(tensor(), nodes=[node("F", ["w"], ["o"]) + sub(7, "own")]), sub(25, sub(
            1, "F") + sub(4, "x") + sub(5, "y") + sub(7, node("F", ["x"], ["y"]) + sub(7, "own"))
            + sub(10, "own"))), None, ""),
    "sparse values of a huge shape": (
        model(graph(more=sparse(tensor("w", (2,), FLOAT, FLOATS[:8]), tensor(
            "i", (2,), INT64, bytes(16)), (1 << 40,)))), None, ""),
    "sparse values of an impossible shape": (
        model(graph(more=sparse(tensor("w", (2,), FLOAT, FLOATS[:8]), tensor(
            "i", (2,), INT64, bytes(16)), (1 << 62, 1 << 62)))), REFUSED, "w"),
    "sparse values without places": (
        model(graph(more=sub(15, sub(1, tensor())))), REFUSED, W),
    "metadata of many megabytes": (
        model(None, *(sub(14, sub(1, f"k{i}") + sub(2, "v" * 60_000)) for i in range(16))), None,
        ""),
    "external values without a place": (of(external(None)), REFUSED, "w"),
    "external values at a negative place": (
        of(external("w.bin", offset="-4", length="16")), REFUSED, "w"),
    "external values at a place that is no number": (
        of(external("w.bin", offset="1e3", length="16")), REFUSED, "w"),
    "external values at a place of many digits": (
        of(external("w.bin", offset="9" * 5000, length="16")), FormatError, W),
    "external values of another length": (
        of(external("w.bin", offset="0", length="12")), REFUSED, "w"),
    "external values that are missing": (of(external("w.bin")), MissingShard, W),
    "external values in a file without a name": (of(external("")), FormatError, W),
    "external values in a file of an impossible name": (of(external("a\0b")), FormatError, W),
    "external values in a file of a long name": (of(external("n" * 5000)), FormatError, W),
    "external values in a file of control characters": (
        of(external("\x1b[2J")), MissingShard, W),
}  # fmt: skip
BESIDE: dict[str, tuple[Make, Any]] = {
    "honest external values": (beside("w.bin"), {"w": (4,)}),
    "external values above": (beside("../outside.bin"), UnsafeFile),
    "external values above, by detours": (beside("x/../../outside.bin"), UnsafeFile),
    "external values by an absolute path": (
        beside(lambda folder: str(folder / "outside.bin")), UnsafeFile),
    "external values among the system's files": (beside("/etc/passwd"), UnsafeFile),
    "external values behind a backslash": (beside("..\\outside.bin"), UnsafeFile),
    "external values behind a link": (
        beside("l.bin", lambda p: (p / "l.bin").symlink_to("../outside.bin")), UnsafeFile),
    "external values behind a link of a folder": (
        beside("d/outside.bin", lambda p: (p / "d").symlink_to("..")), UnsafeFile),
    "external values behind a link to itself": (
        beside("l.bin", lambda p: (p / "l.bin").symlink_to("l.bin")), FormatError),
    "external values in a pipe": (
        beside("p.bin", lambda p: os.mkfifo(p / "p.bin")), FormatError),
    "external values in a folder": (beside("d", lambda p: (p / "d").mkdir()), FormatError),
    "external values in a device": (
        beside("z.bin", lambda p: (p / "z.bin").symlink_to("/dev/zero")), UnsafeFile),
    "external values in the model itself": (beside("x.onnx"), None),
    "external values behind the file's end": (
        beside("w.bin", offset="8", length="16"), REFUSED),
    "external values at 2^63": (
        beside("w.bin", offset=str(1 << 63), length="16"), REFUSED),
}  # fmt: skip
ATTACKS = {
    **{n: Attack(written("x.onnx", c), e, where) for n, (c, e, where) in FILES.items()},
    "sparse values at places that are not there": Attack(
        written(
            "x.onnx",
            model(
                graph(
                    more=sparse(
                        tensor("w", (2,), FLOAT, FLOATS[:8]),
                        tensor("i", (2,), INT64, (99).to_bytes(8, "little") * 2),
                        (4,),
                    )
                )
            ),
        ),
        CorruptFile,
        "w",
        "read",
    ),
    **{n: Attack(make, expects, W) for n, (make, expects) in BESIDE.items()},
}


def test_onnx(attack: str, outcomes: dict[str, dict[str, Any]]) -> None:
    check(ATTACKS[attack], outcomes[attack])
