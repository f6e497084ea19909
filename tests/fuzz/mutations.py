"""Changes to real files that stay near what a reader expects, so that they get past the first check.

Every mutation takes its choices from one `Random`, so that a seed is a whole test case; hypothesis
hands in one of its own, which it can shrink.
"""

from __future__ import annotations

import io
import json
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

Mutate = Callable[[bytes, Random], bytes]

NUMBERS = (0, 1, 2, 4, 7, 8, 16, 24, 63, 64, 127, 128, 255, 256, 4095, 65535, 65536, (1 << 31) - 1,
           1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
VALUES: tuple[Any, ...] = (
    *NUMBERS, -1, -(1 << 63), 1 << 64, 10**30, 0.5, 1e400, True, None, "", "w", "../../x", "/x",
    "\0", "\x1b[2J", "é" * 100, [], {}, [0], [[]], {"": 0}, [1 << 40, 1 << 40], "F32", "I64",
)  # fmt: skip
_MAX = 1 << 20


# Bytes of any kind


def bits(data: bytes, random: Random) -> bytes:
    content = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        if content:
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return bytes(content)


def number(data: bytes, random: Random) -> bytes:
    """One of the numbers that bounds are forgotten for, in one of the usual widths."""
    width = random.choice((1, 2, 4, 8))
    if len(data) < width:
        return data
    # Most of what can be wrong is at the beginning, or at the end.
    where = random.random() ** 2 * (len(data) - width + 1)
    at = int(where) if random.random() < 0.7 else len(data) - width - int(where)
    value = random.choice(NUMBERS) & ((1 << 8 * width) - 1)
    encoded = value.to_bytes(width, random.choice(("little", "little", "big")))
    return data[:at] + encoded + data[at + width :]


def block(data: bytes, random: Random) -> bytes:
    """A piece left out, doubled, moved or written over another one."""
    if len(data) < 2:
        return data
    length = min(len(data), random.choice((1, 4, 8, 16, 40, 64, 256, 1024)))
    start = random.randrange(len(data) - length + 1)
    target = random.randrange(len(data) - length + 1)
    piece = data[start : start + length]
    how = random.randrange(4)
    if how == 0:
        return data[:start] + data[start + length :]
    if how == 1:
        return data[:start] + piece * random.choice((2, 3, 50)) + data[start + length :]
    if how == 2:
        return data[:target] + piece + data[target + length :]
    return data[:target] + piece + data[target:]


def cut(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data) + 1)]


ANY: tuple[Mutate, ...] = (bits, number, number, block, cut)


# Pickles


def pickled(data: bytes, random: Random) -> bytes:
    """Opcodes left out, doubled, exchanged, or given another argument."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = [position for _, _, position in pickletools.genops(data)]
    except Exception:  # it was changed before
        return random.choice(ANY)(data, random)
    if len(found) < 3:
        return random.choice(ANY)(data, random)
    ends = [*found[1:], found[-1] + 1]
    ops = [data[a:b] for a, b in zip(found, ends, strict=True)]
    rest = data[ends[-1] :]
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(ops))
        how = random.randrange(6)
        if how == 0 and len(ops) > 2:
            del ops[at]
        elif how == 1:
            ops.insert(at, ops[random.randrange(len(ops))])
        elif how == 2:
            ops[at] = ops[random.randrange(len(ops))]
        elif how == 3:
            ops[at] = bytes([random.choice(_OPCODES)]) + ops[at][1:]
        elif how == 4:
            ops[at] = _another_number(ops[at], random)
        else:
            ops.insert(at, random.choice(_PIECES))
    return b"".join(ops) + rest


_OPCODES = [ord(op.code) for op in pickletools.opcodes]
_PIECES = (
    b"(", b")", b"]", b"}", b"N", b"0", b"1", b"2", b"K\x00", b"a", b"s", b"e", b"u", b"t", b"\x85",
    b"\x86", b"\x87", b"R", b"b", b"Q", b"\x81", b"\x8f", b"\x90", b"\x91", b"\x94", b"h\x00",
    b"h\x01", b"q\x01", b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 8 + b"\x00", b"X\0\0\0\0",
    b"ccollections\nOrderedDict\n", b"ctorch\nSize\n", b"cbuiltins\nlist\n", b"G" + b"\x7f" * 8,
)  # fmt: skip


def _another_number(op: bytes, random: Random) -> bytes:
    value = random.choice(NUMBERS)
    if len(op) == 2:
        return op[:1] + bytes([value & 0xFF])
    if len(op) == 5:
        return op[:1] + struct.pack("<I", value & 0xFFFFFFFF)
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little")


# JSON


def json_of(data: bytes, random: Random) -> bytes:
    """One value replaced, left out, doubled under another name, or put elsewhere."""
    try:
        root = json.loads(data)
    except (ValueError, RecursionError):
        return random.choice(ANY)(data, random)
    for _ in range(random.choice((1, 1, 2, 3))):
        places = list(_places(root))
        if not places:
            root = random.choice(VALUES)
            break
        holder, key = random.choice(places)
        how = random.randrange(5)
        if how == 0:
            del holder[key]
        elif how == 1:
            other, name = random.choice(places)
            holder[key] = other[name] if _holds(other, name) else None
        elif how == 2 and isinstance(holder, dict):
            holder[random.choice(("", "w", "__metadata__", "\x1b", key + "x"))] = holder[key]
        else:
            holder[key] = random.choice(VALUES)
    try:
        return json.dumps(root).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):  # it holds itself now
        return data


def _places(root: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    todo = [root]
    while todo and len(found) < 2000:
        node = todo.pop()
        pairs = (
            node.items()
            if isinstance(node, dict)
            else enumerate(node)
            if isinstance(node, list)
            else ()
        )
        for key, value in pairs:
            found.append((node, key))
            todo.append(value)
    return found


def _holds(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


# Containers


def safetensors(data: bytes, random: Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    if random.random() < 0.3 or length > len(data):
        return random.choice(ANY)(data, random)
    header = json_of(data[8 : 8 + length], random)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def npy(data: bytes, random: Random) -> bytes:
    """The header, which is a Python literal, with its length set right."""
    if random.random() < 0.3 or len(data) < 12:
        return random.choice(ANY)(data, random)
    length = int.from_bytes(data[8:10], "little")
    header, rest = data[10 : 10 + length], data[10 + length :]
    if b"|O" in header and random.random() < 0.7:
        return data[: 10 + length] + pickled(rest, random)
    old, new = random.choice(_LITERALS)
    header = header.replace(old, new) if old in header else random.choice(ANY)(header, random)
    return data[:8] + struct.pack("<H", len(header) & 0xFFFF) + header + rest


_LITERALS = (
    (b"<f4", b">f8"), (b"<f4", b"|O"), (b"<f8", b"<c16"), (b"False", b"True"), (b"(", b"(-"),
    (b"(", b"(0, "), (b"(", b"(9" + b"9" * 30 + b", "), (b")", b", 0x" + b"f" * 99 + b")"),
    (b"'<f4'", b"[('a', '<f4')]"), (b"'<f4'", b"('<f4', (2,))"), (b"|O", b"<f4"), (b"()", b"(1,)"),
)  # fmt: skip


def zipped(inner: Callable[[str], Mutate]) -> Mutate:
    """An archive: its own structures, or one of its members, put back with a right checksum."""

    def mutate(data: bytes, random: Random) -> bytes:
        how = random.random()
        if how < 0.2:
            return random.choice(ANY)(data, random)
        if how < 0.45:
            return _directory(data, random)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    infos = archive.infolist()
                    members = [(i.filename, archive.read(i)) for i in infos if i.file_size < _MAX]
        except Exception:  # it was changed before
            return random.choice(ANY)(data, random)
        if not members:
            return data
        # The first members are those that are parsed.
        chosen = min(random.randrange(len(members)), random.randrange(len(members)))
        name, content = members[chosen]
        members[chosen] = name, inner(name)(content, random)
        if random.random() < 0.05:
            members.append((random.choice(("../x", name, name + "/x", "x\0", "é")), content))
        stream = io.BytesIO()
        method = zipfile.ZIP_DEFLATED if random.random() < 0.1 else zipfile.ZIP_STORED
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of two members of one name
            with zipfile.ZipFile(stream, "w", method) as archive:
                for name, content in members:
                    archive.writestr(zipfile.ZipInfo(name or "x"), content, method)
        return stream.getvalue()

    return mutate


def _directory(data: bytes, random: Random) -> bytes:
    """A field of the directory, of a local header or of the end gets another number."""
    signature = random.choice((b"PK\1\2", b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7"))
    places = [i for i in range(len(data) - 4) if data.startswith(signature, i)]
    if not places:
        return random.choice(ANY)(data, random)
    at = random.choice(places) + random.randrange(4, 46)
    width = random.choice((1, 2, 4, 8))
    value = random.choice((*NUMBERS, *places, len(data))) & ((1 << 8 * width) - 1)
    return data[:at] + value.to_bytes(width, "little") + data[at + width :]


def _of_torch(name: str) -> Mutate:
    if name.endswith(".pkl"):
        return pickled
    return json_of if name.endswith(".json") else random_any


def _of_keras(name: str) -> Mutate:
    return json_of if name.endswith(".json") else hdf5


def random_any(data: bytes, random: Random) -> bytes:
    return random.choice(ANY)(data, random)


_MARKS = (b"TREE", b"SNOD", b"HEAP", b"GCOL", b"OHDR", b"OCHK", b"\x89HDF", b"FRHP", b"BTHD")


def hdf5(data: bytes, random: Random) -> bytes:
    """A field near one of its structures, or an address that is another one's."""
    if random.random() < 0.2:
        return random.choice(ANY)(data, random)
    places = [i for mark in _MARKS for i in _all(data, mark)]
    places += [i for i in range(0, min(len(data), 1 << 16), 8) if data[i : i + 2] == b"\1\0"]
    if not places:
        return random.choice(ANY)(data, random)
    content = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2))):
        start = random.choice(places)
        at = start + random.choice((random.randrange(64), random.randrange(0, 256, 8)))
        width = random.choice((1, 2, 4, 8))
        value = random.choice((*NUMBERS, *places, start)) & ((1 << 8 * width) - 1)
        content[at : at + width] = value.to_bytes(width, "little")
    return bytes(content)


def _all(data: bytes, mark: bytes) -> list[int]:
    found: list[int] = []
    at = data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


# By format; any other is changed as bytes.
MUTATIONS: dict[str, Mutate] = {
    "torch_zip": zipped(_of_torch),
    "torch_legacy": pickled,
    "pickle_file": pickled,
    "npy": npy,
    "npz": zipped(lambda _: npy),
    "safetensors": safetensors,
    "keras_h5": hdf5,
    "keras_weights_h5": hdf5,
    "keras_zip": zipped(_of_keras),
}


def mutated(format: str, data: bytes, random: Random) -> bytes:
    """A sample of the format, changed once or a few times."""
    mutate = MUTATIONS.get(format, random_any)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        data = mutate(data, random)
    return data
