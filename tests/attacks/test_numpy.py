""".npy headers that lie, or that are Python literals made to be costly."""

from __future__ import annotations

from typing import Any

import pytest

from attacks.building import FLOATS, npy, npy_header, whole
from attacks.harness import Attack, check, written
from regraft.errors import CorruptFile, FormatError

NOT_LISTED = (FormatError,)
HEADERS: dict[str, bytes] = {
    "a negative size": npy(npy_header("(-4,)"), FLOATS),
    "a size beyond the bytes": npy(npy_header("(5,)"), FLOATS),
    "a size that overflows": npy(npy_header("(4611686018427387905,)"), FLOATS),
    "sizes whose product overflows": npy(npy_header("(4294967296, 4294967296)"), FLOATS),
    "sizes whose product overflows to little": npy(npy_header("(9223372036854775808, 2)"), FLOATS),
    "nothing, of a shape that overflows": npy(npy_header("(0, 4611686018427387904)"), b""),
    "a size of two thousand digits": npy(npy_header(f"({'9' * 2000},)"), FLOATS),
    "a size of ten thousand bits": npy(npy_header(f"(0x{'f' * 9000},)"), FLOATS),
    "a size that is a power": npy(npy_header("(9**9**9,)"), FLOATS),
    "a size that is a product": npy(npy_header("('a'*9999999999,)"), FLOATS),
    "a size that is a fraction": npy(npy_header("(4.0,)"), FLOATS),
    "a size that is text": npy(npy_header("('4',)"), FLOATS),
    "a size that is a truth": npy(npy_header("(True, 5)"), FLOATS),
    "a shape that is a number": npy(npy_header("4"), FLOATS),
    "a shape that is a list": npy(npy_header("[4]"), FLOATS),
    "65 axes": npy(npy_header(f"({'1,' * 65})"), FLOATS[:4]),
    "three thousand axes": npy(npy_header(f"({'9,' * 3000})"), FLOATS),
    "an order that is no truth": npy(npy_header(fortran="'yes'"), FLOATS),
    "a header that is a call": npy("__import__('os').system('true')\n", FLOATS),
    "a header that is a comprehension": npy("{x: x for x in ()}\n", FLOATS),
    "a header with a key too many": npy(npy_header().replace("}", "'evil': 1}"), FLOATS),
    "a header with a key too few": npy("{'descr': '<f4', 'shape': (4,)}\n", FLOATS),
    "a header with a key twice": npy(npy_header().replace("}", "'shape': (9,)}"), FLOATS),
    "a header nested deep": npy("(" * 5000 + ")" * 5000, FLOATS),
    "a header of lists nested deep": npy(npy_header("[" * 4000 + "]" * 4000), FLOATS),
    "a header of signs": npy(npy_header("(" + "-" * 9000 + "4,)"), FLOATS),
    "a header of sums": npy(npy_header("(" + "1+" * 4000 + "4,)"), FLOATS),
    "a header that is no text": npy(b"\xff\xfe\x00" * 20, FLOATS),
    "a header with a zero": npy(npy_header().replace("<f4", "<f4\0"), FLOATS),
    "a header longer than the file": npy(npy_header(), FLOATS, length=60_000),
    "a header of 4 GiB": npy(npy_header(), FLOATS, 2, length=0xFFFFFFFF),
    "a header of a megabyte": npy(npy_header() + " " * (1 << 20), FLOATS, 2),
    "an empty header": npy("", FLOATS),
    "a header that is cut off": npy(npy_header()[:20], FLOATS, length=118),
    "version 9": npy(npy_header(), FLOATS).replace(b"NUMPY\x01\x00", b"NUMPY\x09\x09"),
    "an unknown dtype": npy(npy_header(descr="'<q9'"), FLOATS),
    "a dtype of no width": npy(npy_header(descr="'<f0'"), FLOATS),
    "a dtype of huge width": npy(npy_header(descr="'|V2147483647'"), FLOATS),
    "a dtype of text": npy(npy_header("(1,)", descr="'<U4'"), FLOATS),
    "a dtype of bytes": npy(npy_header("(1,)", descr="'|S16'"), FLOATS),
    "a dtype of raw bytes": npy(npy_header("(1,)", descr="'|V16'"), FLOATS),
    "a dtype of times": npy(npy_header("(2,)", descr="'<M8[ns]'"), FLOATS),
    "a dtype with fields": npy(npy_header("(2,)", descr="[('a', '<f4'), ('b', '<f4')]"), FLOATS),
    "a dtype with fields that hold objects": npy(
        npy_header("(2,)", descr="[('a', '|O'), ('b', '<f4')]"), whole(b"N")),
    "a dtype of fields in fields": npy(
        npy_header("(2,)", descr="[('a', [('b', [('c', '<f8')])])]"), FLOATS),
    "a dtype of one field twice": npy(
        npy_header("(2,)", descr="[('a', '<f4'), ('a', '<f4')]"), FLOATS),
    "a dtype of a thousand fields": npy(
        npy_header("(1,)", descr=str([(f"f{i}", "<f4") for i in range(500)])), FLOATS),
    "a dtype of arrays": npy(npy_header("(2,)", descr="('<f4', (2,))"), FLOATS),
    "a dtype of huge arrays": npy(npy_header("(2,)", descr="('<f4', (2147483647,))"), FLOATS),
    "a dtype of arrays that overflow": npy(
        npy_header("(2,)", descr="('<f4', (1 << 40, 1 << 40))"), FLOATS),
    "a dtype that is a list": npy(npy_header(descr="[1, 2]"), FLOATS),
    "a dtype that is a dict": npy(npy_header(
        descr="{'names': ['a'], 'formats': ['<f4'], 'offsets': [-4]}"), FLOATS),
    "a dtype whose fields lie behind one another": npy(npy_header("(2,)",
        descr="{'names': ['a'], 'formats': ['<f4'], 'offsets': [1 << 40]}"), FLOATS),
    "a dtype that aligns": npy(npy_header(descr="'i1,f8,(2,2)i4'"), FLOATS),
    "objects without a pickle": npy(npy_header("()", descr="'|O'")),
    "objects that are no pickle": npy(npy_header("()", descr="'|O'"), FLOATS),
    "objects of a cut pickle": npy(npy_header("()", descr="'|O'"), whole(b"}")[:-1]),
    "values that are cut off": npy(npy_header(), FLOATS[:-1]),
    "nothing but the magic": b"\x93NUMPY",
}  # fmt: skip
HONEST: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "columns first": (npy(npy_header("(2, 2)", fortran="True"), FLOATS), (2, 2)),
    "big-endian": (npy(npy_header(descr="'>f4'"), FLOATS), (4,)),
    "a scalar": (npy(npy_header("()"), FLOATS[:4]), ()),
    "nothing, of a large shape": (npy(npy_header("(0, 1099511627776)"), b""), (0, 1 << 40)),
    "of version 3": (npy(npy_header(), FLOATS, 3), (4,)),
}
ATTACKS = {
    **{n: Attack(written("x.npy", c), NOT_LISTED, r"x\.npy") for n, c in HEADERS.items()},
    **{n: Attack(written("x.npy", c), {"x": shape}) for n, (c, shape) in HONEST.items()},
}


def test_npy_headers(attack: str, outcomes: dict[str, dict[str, Any]]) -> None:
    check(ATTACKS[attack], outcomes[attack])


@pytest.mark.parametrize("name", ["a dtype with fields", "a dtype of raw bytes"])
def test_what_is_no_tensor_is_said(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    assert "numeric" in outcomes[name]["text"]
    assert CorruptFile.__name__ in outcomes[name]["errors"]
