"""MessagePack files of Flax that count beyond the file, nest, or describe arrays that are not there."""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from attacks.building import FLOATS
from attacks.harness import REFUSED, Attack, check, written
from regraft.errors import FormatError

ARRAY, COMPLEX, SCALAR = 1, 2, 3
pack = msgspec.msgpack.encode


def extension(code: int, data: bytes, length: int | None = None) -> bytes:
    return b"\xc9" + struct.pack(">Ib", len(data) if length is None else length, code) + data


def binary(data: bytes, length: int | None = None) -> bytes:
    return b"\xc6" + struct.pack(">I", len(data) if length is None else length) + data


def array(
    shape: Any = (4,), dtype: Any = "float32", data: bytes = FLOATS, code: int = ARRAY
) -> bytes:
    """Flax' record of an array; shape and dtype may be bytes that are packed already."""
    parts = [part if isinstance(part, bytes) else pack(part) for part in (shape, dtype)]
    return extension(code, b"\x93" + b"".join(parts) + binary(data))


def mapping(**values: bytes) -> bytes:
    out = b"\xdf" + struct.pack(">I", len(values))
    return out + b"".join(pack(key) + value for key, value in values.items())


def around(value: bytes, depth: int) -> bytes:
    return (b"\x81" + pack("a")) * depth + value


def chunks(shape: Any, *parts: bytes, **more: bytes) -> bytes:
    sizes = {str(i): n for i, n in enumerate(shape)} if isinstance(shape, tuple) else shape
    held = mapping(**{str(i): part for i, part in enumerate(parts)})
    return mapping(__msgpack_chunked_array__=pack(True), shape=pack(sizes), chunks=held, **more)


W = "x.msgpack"
FILES: dict[str, tuple[bytes, Any, str]] = {
    "an honest file": (mapping(w=array()), {"w": (4,)}, ""),
    "a map of 2^32 - 1 keys": (b"\xdf\xff\xff\xff\xff" + pack("w") + array(), REFUSED, W),
    "a list of 2^32 - 1 values": (mapping(w=array(), l=b"\xdd\xff\xff\xff\xff\0"), REFUSED, W),
    "a text of 2^32 - 1 bytes": (mapping(w=array(), t=b"\xdb\xff\xff\xff\xffab"), REFUSED, W),
    "bytes of 2^32 - 1": (mapping(w=array(), b=b"\xc6\xff\xff\xff\xffab"), REFUSED, W),
    "an extension of 2^32 - 1 bytes": (mapping(w=extension(ARRAY, b"ab", 0xFFFFFFFF)), REFUSED, W),
    "an array that is cut off": (mapping(w=array())[:-4], REFUSED, W),
    "a byte that begins nothing": (mapping(w=array(), x=b"\xc1"), REFUSED, W),
    "text that is no UTF-8": (mapping(w=array(), x=b"\xa2\xff\xfe"), REFUSED, W),
    "one key twice": (
        b"\x82" + pack("w") + array() + pack("w") + array(), REFUSED, W),
    "one key twice, as text and as number": (
        b"\x83" + pack("w") + array() + pack("1") + array() + pack(1) + array(), REFUSED, W),
    "a key that is a list": (b"\x82" + pack("w") + array() + b"\x90" + array(), REFUSED, W),
    "a key that is nothing": (b"\x82" + pack("w") + array() + b"\xc0" + array(), REFUSED, W),
    "maps nested deep": (mapping(w=array(), n=around(array(), 100_000)), REFUSED, W),
    "lists nested deep": (mapping(w=array(), n=b"\x91" * 500_000 + b"\xc0"), REFUSED, W),
    "arrays nested in arrays": (
        mapping(w=extension(ARRAY, b"\x93" + pack([4]) + pack("float32") + array())), REFUSED, W),
    "a million small values": (
        mapping(w=array(), l=b"\xdd" + struct.pack(">I", 900_000) + b"\xc0" * 900_000), None, ""),
    "a million empty maps": (
        mapping(w=array(), l=b"\xdd" + struct.pack(">I", 900_000) + b"\x80" * 900_000), None, ""),
    "eight million small values": (
        mapping(w=array(), l=b"\xdd" + struct.pack(">I", 8_000_000) + b"\x90" * 8_000_000),
        REFUSED, W),
    "one long name around many arrays": (
        mapping(w=array(), **{"k" * 500_000: mapping(
            **{f"a{i}": array((0,), data=b"") for i in range(12_000)})}), None, ""),
    "values behind the end": (mapping(w=array()) + b"junk", None, ""),
    "a shape that is negative": (mapping(w=array((-4,))), REFUSED, W),
    "a shape that is too large": (mapping(w=array((5,))), REFUSED, W),
    "a shape that is too small": (mapping(w=array((3,))), REFUSED, W),
    "a shape that overflows": (mapping(w=array((1 << 62, 1 << 62))), REFUSED, W),
    "a shape that overflows to little": (mapping(w=array((1 << 63, 2, 4))), REFUSED, W),
    "a shape of fractions": (mapping(w=array((4.0,))), REFUSED, W),
    "a shape of truths": (mapping(w=array((True, 4))), None, ""),
    "a shape of text": (mapping(w=array("4")), REFUSED, W),
    "a shape of a thousand axes": (mapping(w=array((1,) * 999 + (4,))), REFUSED, W),
    "a shape of a hundred thousand axes": (mapping(w=array((9,) * 100_000)), REFUSED, W),
    "no elements of a huge shape": (mapping(w=array((0, 1 << 40), data=b"")), None, ""),
    "no elements of an impossible shape": (mapping(w=array((0, 1 << 62, 8), data=b"")), None, ""),
    "a dtype that is unknown": (mapping(w=array(dtype="float33")), {}, ""),
    "a dtype of objects": (mapping(w=array(dtype="object")), {}, ""),
    "a dtype of records": (mapping(w=array(dtype="f4,f4")), {}, ""),
    "a dtype of text": (mapping(w=array(dtype="<U4")), {}, ""),
    "a dtype of void": (mapping(w=array(dtype="V16")), None, ""),
    "a dtype that is a number": (mapping(w=array(dtype=5)), REFUSED, W),
    "a dtype of control characters": (mapping(w=array(dtype="\x1b[2J")), {}, ""),
    "an array of two parts": (
        mapping(w=extension(ARRAY, b"\x92" + pack([4]) + pack("float32"))), REFUSED, W),
    "an array of four parts": (
        mapping(w=extension(ARRAY, b"\x94" + pack([4]) + pack("float32") + binary(FLOATS)
                            + b"\xc0")), REFUSED, W),
    "an array whose bytes are text": (
        mapping(w=extension(ARRAY, b"\x93" + pack([4]) + pack("float32") + pack("abcd" * 4))),
        REFUSED, W),
    "an array whose bytes end behind it": (
        mapping(w=extension(ARRAY, b"\x93" + pack([4]) + pack("float32") + binary(b"", 16)),
                z=binary(FLOATS)), REFUSED, W),
    "an array that is empty": (mapping(w=extension(ARRAY, b"")), REFUSED, W),
    "a number that is an array": (mapping(w=array((4,), code=SCALAR)), None, ""),
    "a complex number of one part": (
        mapping(w=array(), c=extension(COMPLEX, b"\x91" + pack(1.0))), None, ""),
    "an unknown extension": (mapping(w=array(), x=extension(99, b"\0" * 9)), None, ""),
    "a time": (mapping(w=array(), x=extension(-1, b"\0" * 8)), None, ""),
    "chunks that are too few": (mapping(w=array(), c=chunks((8,), array())), REFUSED, W),
    "chunks that are too many": (mapping(w=array(), c=chunks((4,), array(), array())), REFUSED, W),
    "chunks of two dtypes": (
        mapping(w=array(), c=chunks((8,), array(), array(dtype="int32"))), REFUSED, W),
    "chunks of a huge shape": (
        mapping(w=array(), c=chunks((1 << 62, 1 << 62), array())), REFUSED, W),
    "chunks that are no map": (
        mapping(w=array(), c=mapping(__msgpack_chunked_array__=pack(True), shape=pack({"0": 4}),
                                     chunks=pack([]))), REFUSED, W),
    "chunks without a shape": (
        mapping(w=array(), c=mapping(__msgpack_chunked_array__=pack(True),
                                     chunks=mapping(**{"0": array()}))), REFUSED, W),
    "chunks inside chunks": (
        mapping(w=array(), c=chunks((4,), chunks((4,), array()))), REFUSED, W),
    "chunks of axes without end": (
        mapping(w=array(), c=chunks({str(i): 1 for i in range(5000)}, array())), REFUSED, W),
    "a name of control characters": (
        mapping(w=array(), **{"\x1b]0;owned\x07": array((5,))}), REFUSED, ""),
    "an array in a folder beside the file": (
        mapping(w=array(), g=pack("//GDAPlaceholder:../../etc/passwd")), {"w": (4,)}, ""),
    "our own metadata, of numbers": (mapping(w=array(), __metadata__=pack({"a": 1})), None, ""),
    "our own metadata, nested": (
        mapping(w=array(), __metadata__=pack({"a": {"b": {}}})), None, ""),
}  # fmt: skip
UNKNOWN: dict[str, bytes] = {
    "a map of nothing": b"\x80",
    "a map by numbers": b"\x81\x01" + array(),
    "a list": b"\x91" + array(),
    "a number": b"\x01",
    "text": pack("w" * 100),
}
ATTACKS = {
    **{n: Attack(written("x.msgpack", c), e, where) for n, (c, e, where) in FILES.items()},
    **{n: Attack(written("x.msgpack", c), FormatError, W) for n, c in UNKNOWN.items()},
}


def test_msgpack(attack: str, outcomes: dict[str, dict[str, Any]]) -> None:
    check(ATTACKS[attack], outcomes[attack])
