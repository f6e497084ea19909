"""Pickles that cost: small files that mean much, and nests that make whoever looks at them stop."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks.building import (
    FLOATS,
    Part,
    archive,
    called,
    get,
    group,
    legacy_file,
    mapping,
    named,
    number,
    persistent,
    put,
    raw,
    sizes,
    storage,
    tensor,
    text,
    torch_file,
    torch_parts,
    whole,
)
from attacks.harness import Attack, check, written
from regraft.errors import CorruptFile

MANY = 100_000


def laughs(make: Callable[[int], bytes], levels: int = 40) -> bytes:
    """Each level holds the one before ten times: 10^40 leaves in a kilobyte."""
    out = make(0) + put(0) + b"0"
    for level in range(levels):
        out += b"(" + get(level) * 10 + b"t" + put(level + 1) + b"0"
    return out + get(levels)


def nested(opening: bytes, closing: bytes, depth: int = MANY) -> bytes:
    return opening * depth + b"N" + closing * depth


def array(shape: bytes, data: bytes, dtype: bytes | None = None, order: str = "<") -> bytes:
    """numpy's record of an array."""
    kind = dtype or (
        called(named("numpy", "dtype"), text("f4"), b"\x89", b"\x88")
        + group(number(3), text(order), b"N", b"N", b"N", number(-1), number(-1), number(0)) + b"b"
    )  # fmt: skip
    made = called(
        named("numpy._core.multiarray", "_reconstruct"), named("numpy", "ndarray"),
        group(number(0)), raw(b"b"),
    )  # fmt: skip
    return made + group(number(1), shape, kind, b"\x89", data) + b"b"


def kept(opcodes: bytes, index: int) -> bytes:
    return opcodes + put(index) + b"0"


# A value of 2^n digits of one byte.
HUGE = b"\x8b" + struct.pack("<i", 400_000) + b"\x7f" * 400_000
PLAIN: dict[str, bytes] = {
    "lists nested deep": nested(b"]", b"a"),
    "tuples nested deep": b"N" + b"\x85" * MANY,
    "dicts nested deep": nested(b"}K\x00", b"s"),
    "records nested deep": nested(named("m", "C") + put(0) + b"0" + b"", b"")
    + (get(0) + b")\x81}" + text("a")) * 20_000 + b"N" + b"sb" * 20_000 + b"\x86",
    "persistent ids nested deep": b"N" + b"Q" * MANY,
    "sets in tuples nested deep": b"(" * 1000 + b"\x91" * 1000,
    "shared without measure": laughs(lambda _: b"]"),
    "shared without measure, as a key": b"}" + laughs(lambda _: b")") + b"Ns",
    "shared without measure, in a set": b"\x8f(" + laughs(lambda _: b")") + b"\x90",
    "a list that holds itself": b"]" + put(0) + get(0) + b"a",
    "a dict that holds itself": b"}" + put(0) + text("a") + get(0) + b"s",
    "a record that is its own state": named("m", "C") + b")\x81" + put(0) + mapping(
        (text("a"), get(0))) + b"b",
    "a record that is its own argument": b"]" + put(0) + called(named("m", "C"), get(0)) + b"a",
    "two lists that hold each other": b"]" + put(0) + b"]" + put(1) + get(0) + b"a" + b"a",
    "the memo filled sparsely": b"".join(kept(b"N", i * 7919) for i in range(120_000)) + b"N",
    "the memo filled densely": b"N" + b"\x94" * 900_000,
    "a memo index of many digits": b"Np" + b"9" * 900_000 + b"\n",
    "a negative memo index": b"Np-1\n",
    "the memo read where it is empty": get(5),
    "the memo read under text": b"gx\n",
    "a mark kept in the memo": b"(" + put(0) + b"0" + get(0) * 3 + b"N",
    "a string longer than the file": b"X\xff\xff\xff\x7fabc",
    "a string of 2^64 bytes": b"\x8d" + b"\xff" * 8,
    "bytes of 2^63": b"\x8e\0\0\0\0\0\0\0\x80",
    "a bytearray longer than the file": b"\x96\0\0\0\0\1\0\0\0",
    "an integer longer than the file": b"\x8b\xff\xff\xff\x7f",
    "an integer of negative length": b"\x8b\xff\xff\xff\xff",
    "a frame longer than the file": b"\x95\xff\xff\xff\xff\0\0\0\0N",
    "a line without an end": b"V" + b"x" * MANY,
    "an integer of many digits": b"I" + b"9" * 900_000 + b"\n",
    "a long of many digits": b"L" + b"9" * 900_000 + b"L\n",
    "a float of many digits": b"F1" + b"0" * 900_000 + b"\n",
    "a string without quotes": b"Sabc\n",
    "a string with a bad escape": b"S'\\d\\q'\n",
    "a text with a bad escape": b"V\\u12\n",
    "text that is no UTF-8": b"X\x02\0\0\0\xff\xfe",
    "a huge integer as a key": mapping((HUGE, b"N")),
    "a huge integer as a key, again and again": kept(HUGE, 0) + b"}" + (get(0) + b"Ns") * 50_000,
    "integer keys that collide": b"}(" + b"".join(
        number(k * ((1 << 61) - 1)) + b"N" for k in range(2, 60_000)) + b"u",
    "tuple keys that collide": b"}(" + b"".join(
        group(number(k * ((1 << 61) - 1)), number(0)) + b"N" for k in range(2, 40_000)) + b"u",
    "a long tuple as a key, again and again": kept(b"(" + b"N" * MANY + b"t", 0) + b"}"
    + (get(0) + b"Ns") * 50_000,
    "a list as a key": mapping((b"]", b"N")),
    "a dict as a key": mapping((b"}", b"N")),
    "a bytearray that grows with each copy": kept(raw(bytes(400_000)), 0) + b"](" + (
        called(named("builtins", "bytearray"), get(0))) * 10_000 + b"e",
    "a list copied again and again": kept(b"](" + b"N" * 200_000 + b"e", 0) + kept(
        named("builtins", "list"), 1) + b"](" + (get(1) + get(0) + b"\x85R") * 40_000 + b"e",
    "a set copied again and again": kept(b"](" + b"".join(map(number, range(MANY))) + b"e", 0)
    + kept(named("builtins", "set"), 1) + b"](" + (get(1) + get(0) + b"\x85R") * 30_000 + b"e",
    "a dict copied again and again": kept(b"}(" + b"".join(
        number(i) + b"N" for i in range(60_000)) + b"u", 0)
    + kept(named("collections", "OrderedDict"), 1) + b"](" + (get(1) + get(0) + b"\x85R") * 30_000
    + b"e",
    "text encoded again and again": kept(text("x" * 400_000), 0) + kept(
        named("_codecs", "encode"), 1) + b"](" + (get(1) + get(0) + text("latin1") + b"\x86R") * 20_000
    + b"e",
    "an encoding that unpacks": called(named("_codecs", "encode"), text("x"), text("zlib")),
    "items for what holds none": b"K\x01(K\x01K\x02u",
    "a key without a value": b"}(K\x01u",
    "appended to what is no list": b"K\x01(K\x01e",
    "added to what is no set": b"K\x01(K\x01\x90",
    "state for a number": b"K\x01}b",
    "an empty stack": b"R",
    "no mark": b"K\x01t",
    "two objects left": b"K\x01K\x02",
    "no object left": b"",
    "a mark as the result": b"(",
    "an unknown opcode": b"\xff",
    "a protocol of the future": b"\x80\x63N",
}  # fmt: skip


def _reference(*parts: bytes) -> bytes:
    return mapping((text("w"), tensor(of=persistent(*parts))))


# Inside a PyTorch file of one storage of four floats.
IN_TORCH: dict[str, bytes] = {
    "a persistent id without measure": _reference(text("storage"), laughs(lambda _: b"N")),
    "a persistent id nested deep": mapping((text("w"), tensor(of=b"N" + b"\x85" * 5000 + b"Q"))),
    "a persistent id that is a number": mapping((text("w"), tensor(of=number(1) + b"Q"))),
    "a storage of negative size": mapping((text("w"), tensor(of=storage(count=-4)))),
    "a storage of a huge size": mapping((text("w"), tensor(of=persistent(
        text("storage"), named("torch", "FloatStorage"), text("0"), text("cpu"), HUGE)))),
    "a storage key of a megabyte": mapping((text("w"), tensor(of=storage("k" * 900_000)))),
    "a storage key that leads outside": mapping((text("w"), tensor(of=storage("../../secret")))),
    "a storage of no known type": mapping((text("w"), tensor(of=storage(kind="EvilStorage")))),
    "a tensor without arguments": mapping((text("w"), called(
        named("torch._utils", "_rebuild_tensor_v2")))),
    "a tensor of text": mapping((text("w"), called(
        named("torch._utils", "_rebuild_tensor_v2"), *[text("x")] * 6))),
    "a shape without measure": mapping((text("w"), called(
        named("torch._utils", "_rebuild_tensor_v2"), storage(), number(0), laughs(lambda _: b"N"),
        sizes([1])))),
    "a shape of a million axes": mapping((text("w"), called(
        named("torch._utils", "_rebuild_tensor_v2"), storage(), number(0),
        b"(" + b"K\xff" * 100_000 + b"t" + put(0), get(0)))),
    "a shape of huge numbers": mapping((text("w"), called(
        named("torch._utils", "_rebuild_tensor_v2"), storage(), number(0), group(HUGE),
        sizes([1])))),
    "strides of huge numbers": mapping((text("w"), called(
        named("torch._utils", "_rebuild_tensor_v2"), storage(), number(0), sizes([4]),
        group(HUGE)))),
    "an offset of a huge number": mapping((text("w"), called(
        named("torch._utils", "_rebuild_tensor_v2"), storage(), HUGE, sizes([4]), sizes([1])))),
    "parameters around parameters": mapping((text("w"), kept(
        named("torch._utils", "_rebuild_parameter"), 9) + b"" + get(9) * 5000 + tensor()
        + (b"\x85R") * 5000)),
    "types around types": mapping((text("w"), kept(
        named("torch._tensor", "_rebuild_from_type_v2"), 9) + get(9) + b"(" + (
        get(9) + b"N(") * 3000 + b"N" + b"Nt" * 3000 + b"tR")),
}  # fmt: skip
# One tensor in many places under long names: a listing far larger than the file.
_SHARED = kept(tensor(), 0)
LISTINGS: dict[str, bytes] = {
    "one tensor a million times": _SHARED + kept(b"](" + get(0) * 1000 + b"e", 1)
    + b"](" + get(1) * 1000 + b"e",
    "one tensor under a long name, often": _SHARED + mapping(
        (text("k" * 400_000), b"](" + get(0) * 40_000 + b"e")),
    "one tensor under a deep name, often": _SHARED + b"".join(
        b"}" + text("level") for _ in range(190)) + b"](" + get(0) * 150_000 + b"e" + b"s" * 190,
    "numbers under a deep name, often": b"".join(
        b"}" + text("level") for _ in range(190)) + b"](" + b"K\x01" * 400_000 + b"e" + b"s" * 190,
    "long names for numbers": mapping(*(
        (text(str(i) + "k" * 4000), number(1)) for i in range(200))),
}  # fmt: skip
ARRAYS: dict[str, bytes] = {
    "an array of too few bytes": mapping((text("w"), array(sizes([4]), raw(FLOATS[:8])))),
    "an array of negative shape": mapping((text("w"), array(sizes([-4]), raw(FLOATS)))),
    "an array of a huge shape": mapping((text("w"), array(group(HUGE), raw(FLOATS)))),
    "an array of a million axes": mapping((text("w"), array(
        b"(" + b"K\xff" * 100_000 + b"t", raw(FLOATS)))),
    "an array whose shape is without measure": mapping((text("w"), array(
        laughs(lambda _: b"N"), raw(FLOATS)))),
    "an array whose shape is a list": mapping((text("w"), array(b"]K\x04a", raw(FLOATS)))),
    "an array without bytes": mapping((text("w"), array(sizes([4]), b"N"))),
    "an array of wide text": mapping((text("w"), array(sizes([4]), text("ж" * 16)))),
    "a dtype of many digits": mapping((text("w"), array(sizes([4]), raw(FLOATS), called(
        named("numpy", "dtype"), text("f" + "9" * 5000))))),
    "a dtype of odd digits": mapping((text("w"), array(sizes([4]), raw(FLOATS), called(
        named("numpy", "dtype"), text("f²"))))),
    "a dtype that is a dtype that is a dtype": mapping((text("w"), array(
        sizes([4]), raw(FLOATS), kept(named("numpy", "dtype"), 5) + get(5) * 3000
        + text("f4") + b"\x85R" * 3000))),
    "big-endian bytes again and again": kept(raw(bytes(400_000)), 0) + b"](" + array(
        sizes([100_000]), get(0), order=">") * 2000 + b"e",
    "text as bytes again and again": kept(text("x" * 400_000), 0) + b"](" + array(
        sizes([100_000]), get(0)) * 2000 + b"e",
    "one array a million times": kept(array(sizes([4]), raw(FLOATS)), 0)
    + kept(b"](" + get(0) * 1000 + b"e", 1) + b"](" + get(1) * 1000 + b"e",
}  # fmt: skip
_COSTLY_OR_REFUSED = (CorruptFile,)
# Of these the reader may also make what is there: numbers, and nothing else.
_HARMLESS = {
    "lists nested deep", "tuples nested deep", "dicts nested deep", "records nested deep",
    "the memo filled sparsely", "the memo filled densely", "a negative memo index",
    "persistent ids nested deep", "sets in tuples nested deep", "a mark kept in the memo",
    "a string with a bad escape", "a bytearray that grows with each copy",
    "long names for numbers", "numbers under a deep name, often", "integer keys that collide",
    "tuple keys that collide", "a long tuple as a key, again and again", "an array of no dtype",
    "big-endian bytes again and again", "text as bytes again and again",
    "one tensor under a deep name, often", "a dtype that is a dtype that is a dtype",
    "a dtype of many digits", "a dtype of odd digits", "a record that is its own argument",
    "a record that is its own state", "types around types",
}  # fmt: skip


# Opcodes of what takes far more memory than they have bytes, and what they refer to.
MANY_OBJECTS: dict[str, tuple[bytes, bytes]] = {
    "empty dicts": (b"}", b""),
    "empty lists": (b"]", b""),
    "empty sets": (b"\x8f", b""),
    "dicts of one item": (b"}NNs", b""),
    "lists of one item": (b"]Na", b""),
    "sets of one item": (b"\x8f(N\x90", b""),
    "tuples": (b"N\x85", b""),
    "nothing": (b"N", b""),
    "marks": (b"(", b""),
    "numbers": (b"F1\n", b""),
    "short texts": (b"\x8c\x02ab", b""),
    "wide texts": (b"\x8c\x04" + "\U0001f600".encode(), b""),
    "named objects": (b"}\x94", b""),
    "records": (b"h\x00)\x81", kept(named("m", "C"), 0)),
    "records of one item": (b"h\x00)\x81Na", kept(named("m", "C"), 0)),
    "records of one entry": (b"h\x00)\x81NNs", kept(named("m", "C"), 0)),
    "calls": (b"h\x00)R", kept(named("collections", "OrderedDict"), 0)),
    "keys of long texts": (
        b"}h\x01Ns", kept(text("k" * 400) + b"K\x01\x86", 1)),
    "members of enumerations": (
        b"h\x00h\x01\x86R", b"".join((
            kept(named("m", "C"), 2), kept(text("N" * 900), 3), kept(named("builtins", "getattr"), 0),
            kept(get(2) + get(3) + b"\x86", 1)))),
    "one tensor": (b"h\x00", kept(tensor(), 0)),
    "one sparse tensor, which is left out": (
        b"h\x00", kept(called(named("torch._utils", "_rebuild_xla_tensor"), b"N"), 0)),
}  # fmt: skip


def _repeated(before: bytes, unit: bytes, count: int) -> Callable[[Path], bytes]:
    """A file of a list of so many; made when it is asked for."""
    return lambda _: torch_file(whole(before, b"](", unit * count, b"e"))


def _package(_: Path) -> bytes:
    """A package of PyTorch's whose many pickles take little while they are packed."""
    packed = whole(b"](" + b"]" * (4 << 20) + b"e")
    parts = [Part(f"x/{i}.pkl".encode(), packed, 8) for i in range(40)]
    return archive([Part(b"x/.data/extern_modules", b""), *parts, Part(b"x/version", b"3\n")])


def _attacks() -> dict[str, Attack]:
    found = {n: Attack(written("x.pkl", whole(o)), CorruptFile, r"x\.pkl, ") for n, o in
             {**PLAIN, **ARRAYS}.items()}  # fmt: skip
    for name, opcodes in {**IN_TORCH, **LISTINGS}.items():
        found[name] = Attack(written("x.pth", torch_file(whole(opcodes))), CorruptFile, "")
    for name, opcodes in LISTINGS.items():
        found[f"{name}, in the old format"] = Attack(
            written("x.pt", legacy_file(whole(opcodes))), CorruptFile, ""
        )
    del found["numbers under a deep name, often, in the old format"]
    del found["long names for numbers, in the old format"]
    for name, opcodes in {
        "lists without end": b"]" * (64 << 20),
        "sets without end": b"\x8f" * (64 << 20),
        "memo without end": b"]\x94" * (32 << 20),
        "tuples without end": b")\x85" * (32 << 20),
        "records without end": kept(named("m", "C"), 0) + b"h\x00)\x81" * (16 << 20),
    }.items():
        parts = torch_parts(whole(opcodes))
        found[f"{name}, deflated"] = Attack(
            written("x.pth", archive([parts[0]._replace(method=8), *parts[1:]])), CorruptFile, ""
        )
        found[f"{name}, in eight megabytes"] = Attack(
            written("x.pkl", whole(opcodes[: 8 << 20])), CorruptFile, ""
        )
    for name, (unit, before) in MANY_OBJECTS.items():
        count = (12 << 20) // len(unit)
        found[f"twelve megabytes of {name}"] = Attack(
            written("x.pth", _repeated(before, unit, count)), None
        )
    found["packed pickles, one after another"] = Attack(written("x.pt2", _package), None)
    return {
        name: attack._replace(expects=None) if name in _HARMLESS else attack
        for name, attack in found.items()
    }


ATTACKS = _attacks()


def test_costly_pickles(attack: str, outcomes: dict[str, dict[str, Any]]) -> None:
    check(ATTACKS[attack], outcomes[attack])
