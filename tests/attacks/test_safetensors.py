"""safetensors headers that do not add up."""

from __future__ import annotations

import json
from typing import Any

from attacks.building import FLOATS, entry, safetensors
from attacks.harness import Attack, check, written
from regraft.errors import CorruptFile, FormatError

ONE = entry([4], 0, 16)


def _text(value: object) -> bytes:
    return json.dumps(value).encode()


def _pairs(*pairs: tuple[str, object]) -> bytes:
    """A JSON object whose keys may be equal."""
    return b"{" + b",".join(_text(k) + b":" + _text(v) for k, v in pairs) + b"}"


W = "tensor 'w'"
FILES: dict[str, tuple[bytes, str]] = {
    "a header longer than the file": (safetensors({"w": ONE}, FLOATS, 1 << 16), "x.safetensors"),
    "a header that is cut off": (safetensors({"w": ONE})[:20], "x.safetensors"),
    "a header that ends early": (safetensors({"w": ONE}, FLOATS, 10), "x.safetensors"),
    "no JSON": (safetensors(b"{" * 10), "x.safetensors"),
    "JSON nested deep": (safetensors(b'{"a":' * 50_000 + b"1" + b"}" * 50_000), "x.safetensors"),
    "lists nested deep": (
        safetensors(b'{"a":' + b"[" * 400_000 + b"]" * 400_000 + b"}"), "x.safetensors"),
    "many empty lists": (safetensors(b'{"a":[' + b"[]," * 300_000 + b"[]]}"), "x.safetensors"),
    "JSON behind the JSON": (safetensors(_text({"w": ONE}) + b"{}", FLOATS), "x.safetensors"),
    "JSON that is no UTF-8": (safetensors(b'{"\xff\xfe":1}'), "x.safetensors"),
    "a name of half a character": (safetensors(
        _text({"w": ONE}).replace(b'"w"', b'"\\ud800"'), FLOATS), "x.safetensors|tensor"),
    "a comment": (safetensors(b'{/**/"w":1}'), "x.safetensors"),
    "not a number": (safetensors(b'{"w":NaN}'), "x.safetensors"),
    "an entry that is a number": (safetensors({"w": 1}), "x.safetensors"),
    "an entry that is nothing": (safetensors({"w": None}), "x.safetensors"),
    "an entry without a shape": (safetensors({"w": {"dtype": "F32", "data_offsets": [0, 0]}}),
        "x.safetensors"),
    "an entry of more": (safetensors({"w": {**ONE, "strides": [0]}}, FLOATS), "x.safetensors"),
    "a shape that is text": (safetensors({"w": entry("4", 0, 16)}, FLOATS), "x.safetensors"),
    "a shape of fractions": (safetensors({"w": entry([4.5], 0, 16)}, FLOATS), "x.safetensors"),
    "a shape of truths": (safetensors({"w": entry([True, 4], 0, 16)}, FLOATS), "x.safetensors"),
    "a shape of nothing": (safetensors({"w": entry(None, 0, 16)}, FLOATS), "x.safetensors"),
    "a shape of a list": (safetensors({"w": entry([[4]], 0, 16)}, FLOATS), "x.safetensors"),
    "a negative shape": (safetensors({"w": entry([-4], 0, 16)}, FLOATS), W),
    "a shape that overflows": (safetensors({"w": entry([1 << 62, 1 << 62], 0, 16)}, FLOATS), W),
    "a shape that overflows to little": (
        safetensors({"w": entry([1 << 63, 2, 4], 0, 16)}, FLOATS), W),
    "a shape of huge numbers": (
        safetensors(_text({"w": ONE}).replace(b"[4]", b"[" + b"9" * 4000 + b"]"), FLOATS),
        "safetensors"),
    "a shape of impossible numbers": (
        safetensors(_text({"w": ONE}).replace(b"[4]", b"[" + b"9" * 9000 + b"]"), FLOATS),
        "safetensors"),
    "a shape of a hundred thousand axes": (
        safetensors({"w": entry([9_999_999] * 100_000, 0, 16)}, FLOATS), W),
    "offsets of text": (safetensors({"w": {**ONE, "data_offsets": ["0", "16"]}}, FLOATS),
        "x.safetensors"),
    "one offset": (safetensors({"w": {**ONE, "data_offsets": [16]}}, FLOATS), "x.safetensors"),
    "three offsets": (safetensors({"w": {**ONE, "data_offsets": [0, 8, 16]}}, FLOATS),
        "x.safetensors"),
    "negative offsets": (safetensors({"w": entry([4], -16, 0)}, FLOATS), W),
    "offsets that go back": (safetensors({"w": entry([4], 16, 0)}, FLOATS), W),
    "offsets of 2^64": (safetensors({"w": entry([4], 1 << 64, (1 << 64) + 16)}, FLOATS), W),
    "offsets into the header": (safetensors({"w": entry([4], -20, -4)}, FLOATS), W),
    "offsets behind the file": (safetensors({"w": entry([8], 0, 32)}, FLOATS), "safetensors"),
    "offsets wider than the shape": (safetensors({"w": entry([3], 0, 16)}, FLOATS), W),
    "offsets narrower than the shape": (safetensors({"w": entry([5], 0, 16)}, FLOATS), W),
    "tensors that overlap": (safetensors(
        {"v": entry([3], 0, 12), "w": entry([3], 4, 16)}, FLOATS), W),
    "two tensors on the same bytes": (safetensors({"v": ONE, "w": ONE}, FLOATS), W),
    "a gap between tensors": (safetensors(
        {"v": entry([1], 0, 4), "w": entry([2], 8, 16)}, FLOATS), W),
    "a gap before the first": (safetensors({"w": entry([3], 4, 16)}, FLOATS), W),
    "bytes left over": (safetensors({"w": entry([3], 0, 12)}, FLOATS), "x.safetensors"),
    "bytes that are missing": (safetensors({"w": ONE}, FLOATS[:-1]), "x.safetensors"),
    "an empty tensor that is elsewhere": (safetensors(
        {"v": ONE, "w": entry([0], 1 << 40, 1 << 40)}, FLOATS), W),
    "an unknown dtype": (safetensors({"w": entry([4], 0, 16, "EVIL")}, FLOATS), W),
    "a dtype that is a number": (safetensors({"w": {**ONE, "dtype": 4}}, FLOATS), "x.safetensors"),
    "a dtype of control characters": (
        safetensors({"w": entry([4], 0, 16, "\x1b[2J\x07")}, FLOATS), W),
    "a dtype of a megabyte": (safetensors({"w": entry([4], 0, 16, "F" * 900_000)}, FLOATS), W),
    "one name twice": (safetensors(_pairs(("w", entry([2], 0, 8)), ("w", entry([2], 8, 16))),
        FLOATS), "x.safetensors"),
    "one name twice, one of no bytes": (
        safetensors(_pairs(("w", entry([0], 0, 0)), ("w", ONE)), FLOATS), "x.safetensors"),
    "one name twice, written in two ways": (safetensors(
        _pairs(("w", entry([0], 0, 0)), ("w", ONE)).replace(b'"w"', b'"\\u0077"', 1)
        .replace(b'"data_offsets"', b'"data\\u005foffsets"'), FLOATS), "x.safetensors"),
    "one key of an entry twice": (safetensors(
        _text({"w": ONE}).replace(b'"shape"', b'"shape": [2, 2], "shape"'), FLOATS),
        "x.safetensors"),
    "metadata twice": (safetensors(_pairs(
        ("__metadata__", {"a": "1"}), ("__metadata__", {"a": "2"}), ("w", ONE)), FLOATS),
        "x.safetensors"),
    "one key of the metadata twice": (safetensors(
        _text({"__metadata__": {"a": "1"}, "w": ONE}).replace(b'"a"', b'"a": "2", "a"'), FLOATS),
        "x.safetensors"),
    "metadata of numbers": (safetensors({"__metadata__": {"a": 1}, "w": ONE}, FLOATS),
        "x.safetensors"),
    "metadata that is a list": (safetensors({"__metadata__": [], "w": ONE}, FLOATS),
        "x.safetensors"),
    "metadata that is nested": (safetensors({"__metadata__": {"a": {"b": "c"}}, "w": ONE}, FLOATS),
        "x.safetensors"),
    "a name of control characters": (
        safetensors({"\x1b]0;owned\x07\n\r": entry([5], 0, 16)}, FLOATS), "tensor"),
    "a name that turns the text around": (
        safetensors({"\u202egnp.elosnoc\u200b": entry([5], 0, 16)}, FLOATS), "tensor"),
    "a name of a megabyte": (safetensors({"w" * 900_000: entry([5], 0, 16)}, FLOATS), "tensor"),
    "thirty thousand wrong tensors": (safetensors(
        {f"w{i}": entry([1], 0, 4) for i in range(15_000)}, FLOATS), "tensor"),
}  # fmt: skip
UNKNOWN: dict[str, bytes] = {
    "a header of 2^64 - 1 bytes": safetensors({"w": ONE}, FLOATS, (1 << 64) - 1),
    "a header of a gigabyte": safetensors({"w": ONE}, FLOATS, 1 << 30),
    "a header of no bytes": safetensors({"w": ONE}, FLOATS, 0),
    "a header that is a list": safetensors([ONE], FLOATS),
    "a header that begins with spaces": safetensors(b"  " + _text({"w": ONE}), FLOATS),
}
HONEST: dict[str, tuple[bytes, dict[str, tuple[int, ...]]]] = {
    "a tensor called data_offsets": (
        safetensors({"data_offsets": ONE}, FLOATS), {"data_offsets": (4,)}),
    "metadata that speaks of tensors": (
        safetensors({"__metadata__": {"data_offsets": json.dumps({"w": ONE})}, "w": ONE}, FLOATS),
        {"w": (4,)}),
    "no tensors": (safetensors({"__metadata__": {"a": "b"}}), {}),
    "empty tensors of huge shape": (
        safetensors({"v": entry([0, 1 << 40], 0, 0), "w": ONE}, FLOATS),
        {"v": (0, 1 << 40), "w": (4,)}),
    "spaces behind the header": (
        safetensors(_text({"w": ONE}) + b" " * 4096, FLOATS), {"w": (4,)}),
    "fifteen thousand empty tensors": (
        safetensors({f"w{i}": entry([0], 0, 0) for i in range(1500)}),
        {f"w{i}": (0,) for i in range(1500)}),
}  # fmt: skip
_NAME = "x.safetensors"
ATTACKS = {
    **{n: Attack(written(_NAME, c), CorruptFile, where) for n, (c, where) in FILES.items()},
    **{n: Attack(written(_NAME, c), FormatError, _NAME) for n, c in UNKNOWN.items()},
    **{n: Attack(written(_NAME, c), listing) for n, (c, listing) in HONEST.items()},
}


def test_safetensors(attack: str, outcomes: dict[str, dict[str, Any]]) -> None:
    check(ATTACKS[attack], outcomes[attack])
