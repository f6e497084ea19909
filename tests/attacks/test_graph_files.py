"""ONNX and TensorFlow files that would make much out of little: time and memory stay bounded.

Each is at most a MiB; opened and read in a process of its own, whose memory and time count.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from formats import tables
from formats.tables import field

MIB = 1 << 20
_CHILD = """
import sys, time, regraft
try:
    found = regraft.open(sys.argv[1], container="")
    for name in found:
        found.read(name)
    outcome = f"{len(found)} tensors"
except regraft.FormatError as error:
    outcome = type(error).__name__
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(outcome, int(peak) // 1024, time.process_time(), sep=";")
"""


def tensor(name: bytes) -> bytes:
    """A float of no axes."""
    return field(5, field(2, 1) + field(8, name) + field(9, b"abcd"))


def op(kind: bytes, inputs: list[bytes], outputs: list[bytes], rest: bytes = b"") -> bytes:
    names = b"".join(field(1, n) for n in inputs) + b"".join(field(2, n) for n in outputs)
    return field(1, names + field(4, kind) + rest)


def body(name: bytes, graph: bytes) -> bytes:
    return field(5, field(1, name) + field(6, graph))


def onnx(graph: bytes, rest: bytes = b"") -> bytes:
    return field(1, 8) + rest + field(7, graph)


def choices() -> bytes:
    """Each If gives what one branch makes anew, or all that came before."""
    graph = op(b"Conv", [b"x", b"w"], [b"0"])
    for i in range(MIB // 130):
        given, out = b"%x" % i, field(12, field(1, b"t"))
        new = op(b"Conv", [given, b"w%x" % i], [b"t"]) + out + tensor(b"w%x" % i)
        branches = body(b"a", new) + body(b"b", op(b"Relu", [given], [b"t"]) + out)
        graph += op(b"If", [b"c"], [b"%x" % (i + 1)], branches)
    return onnx(graph + tensor(b"w"))


def scopes() -> bytes:
    """The same names in many bodies, under operations with long names."""
    inner = b"".join(tensor(b"%02x" % i) for i in range(250))
    node = op(b"If", [], [], field(3, b"n" * 256) + body(b"a", inner))
    return onnx(node * (MIB // len(node)))


def turns() -> bytes:
    """Axes moved again and again: what is told of the way must not grow with it."""
    graph = op(b"Conv", [b"x", b"w"], [b"0"])
    graph += b"".join(op(b"Transpose", [b"%x" % i], [b"%x" % (i + 1)]) for i in range(MIB // 32))
    return onnx(graph + tensor(b"w"))


def constants() -> bytes:
    """Thousands of constants of 10,000 zeros each that are not there."""
    value = field(8, field(1, 1) + field(2, field(2, field(1, 10_000))))
    attribute = field(5, field(1, b"value") + field(2, value))
    nodes = (field(1, b"c%x" % i) + field(2, b"Const") + attribute for i in range(MIB // 45))
    return b"".join(field(1, node) for node in nodes)


def index(count: int, packed: bool) -> bytes:
    entries = {b"": tables.header(), **{b"%06x" % i: b"\x08\x07" for i in range(count)}}
    if packed:
        return tables.table(entries, 5000, pack=tables.snappy)
    return tables.table(entries, 1000)


FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "small nodes": ("x.onnx", lambda: onnx(op(b"A", [], []) * (MIB // 6))),
    "small initializers": (
        "x.onnx", lambda: onnx(b"".join(tensor(b"%x" % i) for i in range(MIB // 19)))
    ),
    "choices": ("x.onnx", choices),
    "scopes": ("x.onnx", scopes),
    "turns": ("x.onnx", turns),
    "operator sets": ("x.onnx", lambda: onnx(b"", field(8, b"") * (MIB // 2))),
    "properties": (
        "x.onnx",
        lambda: onnx(b"", b"".join(field(14, field(1, b"%x" % i)) for i in range(MIB // 10))),
    ),
    "constants": ("x.pb", constants),
    "entries": ("x.index", lambda: index(MIB // 14, packed=False)),
    "packed entries": ("x.index", lambda: index(MIB // 8, packed=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_much_out_of_little(name: str, tmp_path: Path) -> None:
    file, make = FILES[name]
    path = tmp_path / file
    path.write_bytes(make())
    size = path.stat().st_size
    assert size <= MIB * 1.1
    (tmp_path / "x.data-00000-of-00001").write_bytes(b"")
    run = subprocess.run([sys.executable, "-c", _CHILD, path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    outcome, peak, seconds = run.stdout.split(";")
    assert outcome.endswith(" tensors") or (name, outcome) == ("packed entries", "CorruptFile")
    assert int(peak) < size / MIB + 256
    assert float(seconds) < 10
