"""The walker of protobuf's wire format, against Google's own reader and writer."""

from __future__ import annotations

import struct
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from regraft.errors import CorruptFile
from regraft.formats import _packed
from regraft.formats._protobuf import LENGTH, VARINT, Message, signed

# Timings never fail a test.
patient = settings(deadline=None, suppress_health_check=list(HealthCheck))


def written(fields: dict[int, list[Any]]) -> bytes:
    """A message of varints, byte strings and floats, by Google's rules but without its code."""
    out = b""
    for number, values in fields.items():
        for value in values:
            if isinstance(value, int):
                out += varint(number << 3 | VARINT) + varint(value)
            elif isinstance(value, float):
                out += varint(number << 3 | 5) + struct.pack("<f", value)
            else:
                out += varint(number << 3 | LENGTH) + varint(len(value)) + value
    return out


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


values = st.one_of(
    st.integers(0, 2**64 - 1), st.binary(max_size=300), st.floats(width=32, allow_nan=False)
)


@patient
@given(st.dictionaries(st.integers(1, 2**29 - 1), st.lists(values, min_size=1, max_size=4)))
def test_what_is_written_is_walked(fields: dict[int, list[Any]]) -> None:
    data = written(fields)
    message = Message(data, "here")
    found: dict[int, list[Any]] = {}
    for field in message:
        if field.wire == VARINT:
            value: Any = field.value
        elif field.wire == LENGTH:
            value = message.raw(field)
        else:
            value = struct.unpack_from("<f", data, field.start)[0]
        found.setdefault(field.number, []).append(value)
    assert found == fields
    assert sum(len(values) for values in message.gathered().values()) == sum(
        map(len, found.values())
    )


@patient
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=50),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=50),
    st.lists(st.integers(0, 2**64 - 1), max_size=50),
    st.lists(st.floats(width=32), max_size=50),
)
def test_packed_numbers_of_googles_writer(
    longs: list[int], ints: list[int], unsigned: list[int], floats: list[float]
) -> None:
    proto = TensorProto(int64_data=longs, int32_data=ints, uint64_data=unsigned, float_data=floats)
    data = proto.SerializeToString()
    fields = Message(data, "here").gathered()
    for number, expected, dtype in (
        (7, longs, "int64"),
        (5, ints, "int32"),
        (11, unsigned, "uint64"),
    ):
        there = fields.get(number, [])
        assert _packed.count_of(data, there, 0) == len(expected)
        read = _packed.reinterpreted(_packed.varints(data, there, "here"), dtype, "here")
        np.testing.assert_array_equal(read, np.array(expected, dtype))
    assert Message(data, "here").integers(fields.get(7, []), 50) == longs
    read = _packed.fixed_width(data, fields.get(4, []), "float32")
    np.testing.assert_array_equal(read, np.array(floats, np.float32))
    assert _packed.count_of(data, fields.get(4, []), 4) == len(floats)


@patient
@given(st.lists(st.one_of(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**64 - 1)))))
def test_packed_and_single_numbers_mix(parts: list[Any]) -> None:
    packed = [p if isinstance(p, int) else b"".join(map(varint, p)) for p in parts]
    data = written({7: packed}) if packed else b""
    fields = Message(data, "here").gathered().get(7, [])
    flat = [n for part in parts for n in ([part] if isinstance(part, int) else part)]
    assert _packed.count_of(data, fields, 0) == len(flat)
    assert _packed.varints(data, fields, "here").tolist() == flat
    assert Message(data, "here").integers(fields, 10_000) == [signed(n) for n in flat]


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint8", "int16", "uint16", "int32"])
def test_numbers_are_held_against_their_type(dtype: str) -> None:
    bits, signed_ = int(dtype.lstrip("uint")), not dtype.startswith("u")
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed_ else (0, (1 << bits) - 1)
    inside = [low, -1 if signed_ else 1, 0, high]
    read = _packed.reinterpreted(np.array(inside).view(np.uint64), dtype, "here")
    assert read.astype(np.int64).tolist() == inside
    for beyond in (low - 1, high + 1) if bits < 32 else ():
        with pytest.raises(CorruptFile):
            _packed.reinterpreted(np.array([beyond]).view(np.uint64), dtype, "here")


@patient
@given(st.binary(max_size=200))
def test_any_bytes_are_walked_or_refused(data: bytes) -> None:
    try:
        ends = [field.stop for field in Message(data, "here")]
    except CorruptFile as error:
        assert "here" in error.where
    else:
        assert ends == sorted(ends)
        assert not data or ends[-1] == len(data)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"\x08", "number without end"),
        (b"\x08" + b"\xff" * 11, "number without end"),
        (b"\x0a\x05abc", "5 bytes"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "18446744073709551615 bytes"),
        (b"\x09abc", "8 bytes"),
        (b"\x0b\x0c", "wire type 3"),
        (b"\x0f", "wire type 7"),
        (b"\x00\x00", "numbered 0"),
    ],
)
def test_lengths_are_held_against_what_is_left(data: bytes, found: str) -> None:
    with pytest.raises(CorruptFile) as caught:
        list(Message(data, "here"))
    assert found in caught.value.found


def test_many_fields_and_long_texts_are_refused() -> None:
    many = Message(b"\x08\x00" * 5000, "here")
    assert sum(1 for _ in many) == 5000
    with pytest.raises(CorruptFile, match="byte"):
        many.gathered()
    text = Message(written({1: [b"x" * 70_000]}), "here")
    with pytest.raises(CorruptFile):
        text.text(next(iter(text)))
    latin = Message(written({1: [b"\xff\xfe"]}), "here")
    with pytest.raises(CorruptFile):
        latin.text(next(iter(latin)))
    with pytest.raises(CorruptFile):
        Message(written({1: [3]}), "here").inner(next(iter(Message(written({1: [3]}), "here"))))


def test_a_walk_is_linear() -> None:
    started = time.monotonic()
    data = b"\x0a\x00" * (1 << 19)
    assert sum(1 for _ in Message(data, "here")) == 1 << 19
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("dtype", ["int2", "uint2", "int4", "uint4", "float4_e2m1fn"])
def test_small_elements_are_unpacked(dtype: str) -> None:
    import ml_dtypes

    bits = 2 if dtype.endswith("2") else 4
    count = 1 << bits
    codes = np.arange(count, dtype=np.uint8)
    packed = np.zeros(count * bits // 8, np.uint8)
    for index, code in enumerate(codes):
        packed[index * bits // 8] |= code << (index * bits % 8)
    read = _packed.unpacked(packed, count, dtype)
    assert read.dtype == np.dtype(getattr(ml_dtypes, dtype))
    expected = {
        "int2": [0, 1, -2, -1],
        "uint2": [0, 1, 2, 3],
        "int4": [*range(8), *range(-8, 0)],
        "uint4": list(range(16)),
        "float4_e2m1fn": [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6],
    }[dtype]
    np.testing.assert_array_equal(read.astype(np.float32), np.array(expected, np.float32))
