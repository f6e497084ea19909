"""GGUF: files of its own library, files built byte by byte, and files that lie."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from places import REAL
from regraft import checkpoints
from regraft.errors import CorruptFile, FormatError, MissingDependency, MissingShard, UnsafeFile
from regraft.formats import _ggml
from regraft.tensors import CODED, TensorInfo, stored_bytes

Type = gguf.GGMLQuantizationType
UNDONE = sorted(t.name.lower() for t in Type if t in gguf.quants._type_traits
                and t.name.lower() in CODED)  # fmt: skip
GGML_CODES = [name for name in CODED if name in _ggml.NUMBERS]


def test_our_tables_are_those_of_the_package() -> None:
    plain = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64",
             **{f"int{n}": f"I{n}" for n in (8, 16, 32, 64)}}  # fmt: skip
    ours = {number: plain.get(name, name.upper()) for number, name in _ggml.TYPES.items()}
    assert ours == {kind.value: kind.name for kind in Type}
    assert not set(_ggml.REMOVED) & set(ours)
    for kind, size in gguf.GGML_QUANT_SIZES.items():
        if kind.name.lower() in CODED:
            assert CODED[kind.name.lower()] == size
        else:
            assert (1, stored_bytes(1, _ggml.TYPES[kind.value])) == size


def written(path: Path, values: dict[str, np.ndarray], **options: Any) -> Path:
    """By the package. bfloat16 and coded values come as bytes with their type in the name."""
    writer = gguf.GGUFWriter(path, "llama", **options)
    for name, value in values.items():
        code = name.partition(".")[0].upper()
        coded = value.dtype == np.uint8 and code in Type.__members__
        writer.add_tensor(name, value, raw_dtype=Type[code] if coded else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks(code: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random bytes of the right number."""
    values, width = CODED[code]
    return np.random.default_rng(seed).integers(
        0, 256, (*shape[:-1], shape[-1] // values * width), np.uint8
    )


@pytest.mark.parametrize("code", UNDONE)
def test_coded_tensors_are_listed_as_stored_and_read_as_float32(code: str, tmp_path: Path) -> None:
    shape = (3, 5, 2 * CODED[code][0])
    raw = blocks(code, shape)
    path = written(tmp_path / "x.gguf", {f"{code}.w": raw, "f": np.ones(3, np.float32)})
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, Type[code.upper()])
    with checkpoints.open(path) as found:
        info = found[f"{code}.w"]
        assert (info.shape, info.dtype, info.nbytes) == (shape, code, raw.nbytes)
        values = found.read(f"{code}.w")
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, expected)
        block = CODED[code][0]
        for part in (
            (slice(1, 2), slice(0, 5), slice(0, 2 * block)),
            (slice(0, 3), slice(2, 4), slice(block - 3, block + 5)),
            (slice(2, 2), slice(0, 5), slice(0, 1)),
            (slice(0, 3), slice(0, 5), slice(7, 7)),
            (slice(0, 3), slice(0, 5), slice(block, 2 * block)),
        ):
            np.testing.assert_array_equal(found.read(f"{code}.w", part), expected[part])


def test_values_survive_quantization_as_well_as_the_type_allows(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(8, 256)).astype(np.float32)
    for code, worst in (("q8_0", 0.02), ("q4_0", 0.5), ("q5_1", 0.2)):
        raw = gguf.quants.quantize(values, Type[code.upper()])
        with checkpoints.open(written(tmp_path / f"{code}.gguf", {f"{code}.w": raw})) as found:
            assert np.abs(found.read(f"{code}.w") - values).max() < worst


@pytest.mark.parametrize("code", sorted(set(GGML_CODES) - set(UNDONE)))
def test_what_the_package_cannot_undo_is_listed_and_named(code: str, tmp_path: Path) -> None:
    shape = (2, CODED[code][0])
    path = written(tmp_path / "x.gguf", {f"{code}.w": blocks(code, shape)})
    with checkpoints.open(path) as found:
        assert (found[f"{code}.w"].shape, found[f"{code}.w"].dtype) == (shape, code)
        with pytest.raises(FormatError, match=code.upper()):
            found.read(f"{code}.w")


def test_without_the_package_it_lists_and_says_what_reading_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "x.gguf", {"q8_0.w": blocks("q8_0", (2, 32)), "f": np.ones(3)})
    monkeypatch.setitem(sys.modules, "gguf", None)
    with checkpoints.open(path) as found:
        assert found["q8_0.w"].dtype == "q8_0"
        np.testing.assert_array_equal(found.read("f"), np.ones(3))
        with pytest.raises(MissingDependency, match=r"regraft\[gguf\]"):
            found.read("q8_0.w")


def test_listing_imports_neither_numpy_nor_the_package(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf", {"q8_0.w": blocks("q8_0", (2, 32))})
    code = (
        f"import sys; sys.argv = ['regraft', 'inspect', {str(path)!r}]\n"
        "from regraft.cli import cli\ncli(standalone_mode=False)\n"
        "assert not {'numpy', 'gguf'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# Built by hand: other versions, the other byte order, and lies.

NUMBERS = {
    "B": 0,
    "b": 1,
    "H": 2,
    "h": 3,
    "I": 4,
    "i": 5,
    "f": 6,
    "?": 7,
    "Q": 10,
    "q": 11,
    "d": 12,
}


class Raw:
    """A GGUF file byte by byte."""

    def __init__(self, version: int = 3, order: str = "<") -> None:
        self.order, self.version = order, version
        self.length = "I" if version == 1 else "Q"
        self.keys: list[bytes] = []
        self.tensors: list[bytes] = []
        self.counts: tuple[int, int] | None = None
        self.data = b""

    def pack(self, code: str, *values: Any) -> bytes:
        return struct.pack(self.order + code, *values)

    def text(self, text: str | bytes, length: int | None = None) -> bytes:
        raw = text.encode() if isinstance(text, str) else text
        return self.pack(self.length, len(raw) if length is None else length) + raw

    def key(self, name: str | bytes, kind: int, value: bytes) -> Raw:
        self.keys.append(self.text(name) + self.pack("I", kind) + value)
        return self

    def number(self, name: str, code: str, value: Any) -> Raw:
        return self.key(name, NUMBERS[code], self.pack(code, value))

    def tensor(self, name: str | bytes, dims: tuple[int, ...], offset: int, kind: int = 0) -> Raw:
        sizes = b"".join(self.pack(self.length, n) for n in dims)
        self.tensors.append(
            self.text(name) + self.pack("I", len(dims)) + sizes + self.pack("IQ", kind, offset)
        )
        return self

    def bytes(self, alignment: int = 32) -> bytes:
        tensors, keys = self.counts or (len(self.tensors), len(self.keys))
        head = b"GGUF" + self.pack("I", self.version)
        head += self.pack(self.length, tensors) + self.pack(self.length, keys)
        head += b"".join(self.keys) + b"".join(self.tensors)
        return head + bytes(-len(head) % alignment) + self.data

    def at(self, folder: Path, alignment: int = 32, name: str = "x.gguf") -> Path:
        path = folder / name
        path.write_bytes(self.bytes(alignment))
        return path


@pytest.mark.parametrize(("version", "order"), [(1, "<"), (2, "<"), (3, "<"), (3, ">")])
def test_versions_and_byte_orders(version: int, order: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(3, 5)).astype(f"{order}f4")
    half = generator.normal(size=16).astype(ml_dtypes.bfloat16)
    codes = generator.integers(-9, 9, 4).astype(f"{order}i8")
    halves = half.view(np.uint16).astype(f"{order}u2").tobytes()
    raw = Raw(version, order).number("a.b", "H", 513).number("ok", "?", True)
    raw.key("list", 9, raw.pack("I", 8) + raw.pack(raw.length, 2) + raw.text("x") + raw.text("y"))
    raw.key("deep", 9, raw.pack("I", 9) + raw.pack(raw.length, 1)
            + raw.pack("I", 0) + raw.pack(raw.length, 3) + b"abc")  # fmt: skip
    raw.number("eps", "f", 1e-5).number("pi", "d", 0.1).key("name", 8, raw.text("näme"))
    raw.tensor("w", (5, 3), 0).tensor("h", (4, 4), 64, 30).tensor("c", (4,), 96, 27)
    raw.data = weight.tobytes() + bytes(4) + halves + codes.tobytes()
    with checkpoints.open(raw.at(tmp_path)) as found:
        assert list(found) == ["w", "h", "c"]
        np.testing.assert_array_equal(found.read("w"), weight.astype("f4"))
        np.testing.assert_array_equal(found.read("w", (slice(1, 2), slice(0, 5))), weight[1:2])
        assert found.read("h").tobytes() == half.tobytes()
        np.testing.assert_array_equal(found.read("c"), codes)
        assert found.read("c").dtype == np.dtype("int64")
        assert dict(found.metadata) == {
            "a.b": "513", "ok": "true", "list": "2 × string", "deep": "1 × array", "eps": "1e-05",
            "pi": "0.1", "name": "näme",
        }  # fmt: skip


@pytest.mark.parametrize("code", ["q4_0", "q8_0", "q4_k", "q6_k", "mxfp4", "nvfp4", "q5_0"])
def test_big_endian_blocks_as_the_packages_own_converter_leaves_them(
    code: str, tmp_path: Path
) -> None:
    from gguf.scripts.gguf_convert_endian import byteswap_tensors

    shape = (2, CODED[code][0] * 2)
    little = blocks(code, shape)
    big = little.copy()
    flat = type("Tensor", (), {"data": big.reshape(-1)})
    swap = byteswap_tensors.get(Type[code.upper()])
    for block in range(0, big.size, CODED[code][1]):
        if swap:
            swap(flat, block)
    raw = Raw(order=">").tensor("w", shape[::-1], 0, Type[code.upper()].value)
    raw.data = big.tobytes()
    with checkpoints.open(raw.at(tmp_path)) as found:
        assert found["w"].dtype == code
        if swap is None:
            with pytest.raises(FormatError, match="big-endian"):
                found.read("w")
            return
        with np.errstate(all="ignore"):
            expected = gguf.quants.dequantize(little, Type[code.upper()])
        np.testing.assert_array_equal(found.read("w"), expected)


def test_an_alignment_of_its_own(tmp_path: Path) -> None:
    raw = Raw().number("general.alignment", "I", 64).tensor("a", (1,), 0).tensor("b", (1,), 64)
    raw.data = struct.pack("<f", 1.5) + bytes(60) + struct.pack("<f", 2.5)
    with checkpoints.open(raw.at(tmp_path, 64)) as found:
        assert (found.read("a")[0], found.read("b")[0]) == (1.5, 2.5)


def test_gaps_scalars_and_empty_tensors(tmp_path: Path) -> None:
    raw = Raw().tensor("none", (0, 3), 0).tensor("late", (2,), 96).tensor("one", (), 0)
    raw.data = struct.pack("<f", 4.0) + bytes(92) + struct.pack("<2f", 1, 2)
    with checkpoints.open(raw.at(tmp_path)) as found:
        assert [info.shape for info in found.values()] == [(3, 0), (2,), ()]
        assert found.read("none").shape == (3, 0)
        assert found.read("one") == 4
        np.testing.assert_array_equal(found.read("late"), [1, 2])


@given(st.floats(width=32, allow_nan=False))
@settings(deadline=None, max_examples=200)
def test_numbers_are_told_so_that_they_can_be_read_back(value: float) -> None:
    from regraft.formats._gguf_header import parse

    data = Raw().number("x", "f", value).bytes()
    assert np.float32(parse(data, len(data), "x").metadata["x"]) == np.float32(value)


def _array(kind: int, count: int, rest: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + rest


HUGE = (1 << 64) - 1
LIES: dict[str, Callable[[], bytes]] = {
    "only the magic": lambda: b"GGUF",
    "no counts": lambda: b"GGUF" + struct.pack("<I", 3),
    "version 0": lambda: Raw(0).bytes(),
    "version 4": lambda: Raw(4).bytes(),
    "big-endian version 2": lambda: Raw(2, ">").bytes(),
    "2^64-1 tensors": lambda: _counted(HUGE, 0),
    "2^64-1 keys": lambda: _counted(0, HUGE),
    "more tensors than bytes": lambda: _counted(1000, 0) + bytes(9000),
    "more keys than bytes": lambda: _counted(0, 1000) + bytes(9000),
    "a million tensors": lambda: _counted(1 << 20, 0) + bytes(25 << 20),
    "key longer than the file": lambda: _key(Raw().text(b"abc", 1 << 40)),
    "key of 2^64-1 bytes": lambda: _key(Raw().text(b"abc", HUGE)),
    "key that is no UTF-8": lambda: Raw().key(b"\xff\xfe", 0, b"\0").bytes(),
    "a key twice": lambda: Raw().number("a", "B", 1).number("a", "B", 2).bytes(),
    "value of type 13": lambda: Raw().key("a", 13, bytes(8)).bytes(),
    "value of type 2^32-1": lambda: Raw().key("a", 0xFFFFFFFF, bytes(8)).bytes(),
    "truth value 2": lambda: Raw().key("a", 7, b"\2").bytes(),
    "text longer than the file": lambda: Raw().key("a", 8, struct.pack("<Q", 1 << 50)).bytes(),
    "array longer than the file": lambda: Raw().key("a", 9, _array(4, 1 << 60)).bytes(),
    "array of 2^64-1 bytes": lambda: Raw().key("a", 9, _array(0, HUGE)).bytes(),
    "array of 2^61 longs": lambda: Raw().key("a", 9, _array(10, 1 << 61)).bytes(),
    "array of type 99": lambda: Raw().key("a", 9, _array(99, 1)).bytes(),
    "strings beyond the end": lambda: Raw().key(
        "a", 9, _array(8, 2, Raw().text("x") + struct.pack("<Q", 1 << 40))).bytes(),
    "a string that wraps around": lambda: Raw().key(
        "a", 9, _array(8, 1, struct.pack("<Q", HUGE - 7))).bytes(),
    "a string behind one that ends nowhere": lambda: Raw().key(
        "a", 9, _array(8, 2, struct.pack("<QQ", 1 << 63, 0))).bytes(),
    "2^40 strings": lambda: Raw().key("a", 9, _array(8, 1 << 40)).bytes(),
    "arrays nested too deep": lambda: Raw().key(
        "a", 9, b"".join(_array(9, 1) for _ in range(100_000))).bytes(),
    "2^60 arrays in an array": lambda: Raw().key("a", 9, _array(9, 1 << 60)).bytes(),
    "alignment 0": lambda: Raw().number("general.alignment", "I", 0).bytes(),
    "alignment 3": lambda: Raw().number("general.alignment", "I", 3).bytes(),
    "alignment 2^31": lambda: Raw().number("general.alignment", "I", 1 << 31).bytes(),
    "alignment of text": lambda: Raw().key("general.alignment", 8, Raw().text("32")).bytes(),
    "name that is no UTF-8": lambda: _one(Raw().tensor(b"\xff", (1,), 0)),
    "a name twice": lambda: _one(Raw().tensor("a", (1,), 0).tensor("a", (1,), 32)),
    "five axes": lambda: _one(Raw().tensor("a", (1,) * 5, 0)),
    "2^32-1 axes": lambda: _tensor(Raw().text("a") + struct.pack("<I", 0xFFFFFFFF)),
    "a shape that overflows": lambda: _one(Raw().tensor("a", (1 << 32, 1 << 32), 0)),
    "a shape that wraps to nothing": lambda: _one(Raw().tensor("a", (1 << 32, 1 << 32, 16), 0)),
    "an empty shape that overflows": lambda: _one(Raw().tensor("a", (0, 1 << 40, 1 << 40), 0)),
    "a removed type": lambda: _one(Raw().tensor("a", (32,), 0, 4)),
    "type 2^32-1": lambda: _one(Raw().tensor("a", (32,), 0, 0xFFFFFFFF)),
    "rows of half a block": lambda: _one(Raw().tensor("a", (16, 2), 0, 2)),
    "a scalar of blocks": lambda: _one(Raw().tensor("a", (), 0, 2)),
    "not aligned": lambda: _one(Raw().tensor("a", (1,), 4)),
    "beyond the end": lambda: _one(Raw().tensor("a", (17,), 0)),
    "offset beyond the end": lambda: _one(Raw().tensor("a", (1,), 1 << 63)),
    "the same place": lambda: _one(Raw().tensor("a", (4,), 0).tensor("b", (4,), 0)),
    "overlap": lambda: _one(Raw().tensor("b", (1,), 32).tensor("a", (12,), 0)),
    "shard 3 of 2": lambda: Raw().number("split.count", "H", 2).number("split.no", "H", 3).bytes(),
    "no shards": lambda: Raw().number("split.count", "H", 0).bytes(),
    "a shard under another name": lambda: Raw().number("split.count", "H", 2).bytes(),
}  # fmt: skip


def _counted(tensors: int, keys: int) -> bytes:
    raw = Raw()
    raw.counts = tensors, keys
    return raw.bytes()


def _key(begin: bytes) -> bytes:
    raw = Raw()
    raw.keys.append(begin)
    return raw.bytes()


def _tensor(begin: bytes) -> bytes:
    raw = Raw()
    raw.tensors.append(begin)
    return raw.bytes()


def _one(raw: Raw) -> bytes:
    raw.data = bytes(64)
    return raw.bytes()


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(LIES[name]())
    with pytest.raises(FormatError) as caught:
        checkpoints.open(path)
    assert caught.value.where
    assert caught.value.found


def test_much_text_is_told_by_its_length(tmp_path: Path) -> None:
    raw = Raw()
    for index in range(3):
        raw.key(f"k{index}", 8, raw.text(b"a" * (15 << 20)))
    with checkpoints.open(raw.at(tmp_path)) as found:
        assert [len(text) for text in found.metadata.values()] == [15 << 20, 15 << 20, 22]
        assert found.metadata["k2"] == f"{15 << 20} bytes of text"


# Shards


def split(folder: Path, count: int = 3) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    values = {f"blk.{i}.w": generator.normal(size=(4, 8)).astype(np.float32) for i in range(count)}
    written(folder / "model.gguf", values, split_max_tensors=1)
    return values


def test_a_split_file_opens_from_any_shard_and_from_its_folder(tmp_path: Path) -> None:
    values = split(tmp_path)
    paths = sorted(tmp_path.iterdir())
    assert [p.name for p in paths] == [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    hashes = set()
    for path in (*paths, tmp_path):
        with checkpoints.open(path) as found:
            assert list(found) == list(values)
            for name, value in values.items():
                np.testing.assert_array_equal(found.read(name), value)
            assert found.metadata["general.architecture"] == "llama"
            assert found.metadata["split.count"] == "3"
            hashes.add(found.sha256)
    assert len(hashes) == 1
    (tmp_path / "other.gguf").write_bytes(Raw().bytes())
    with pytest.raises(FormatError, match="2 checkpoints"):
        checkpoints.open(tmp_path)


def test_shards_that_are_missing_alien_or_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    split(folder)
    first, second, third = sorted(folder.iterdir())
    whole = second.read_bytes()
    second.unlink()
    with pytest.raises(MissingShard) as caught:
        checkpoints.open(third)
    assert caught.value.problems == (second.name,)
    second.write_bytes(third.read_bytes())
    with pytest.raises(FormatError, match="under another name"):
        checkpoints.open(first)
    alien = tmp_path / "alien"
    alien.mkdir()
    written(alien / "model.gguf", {"x": np.ones(8), "y": np.ones(8)}, split_max_tensors=1)
    second.write_bytes((alien / "model-00002-of-00002.gguf").read_bytes())
    with pytest.raises(FormatError):
        checkpoints.open(first)
    second.unlink()
    (tmp_path / "kept").write_bytes(whole)
    second.symlink_to(tmp_path / "kept")
    with pytest.raises(UnsafeFile):
        checkpoints.open(first)


def test_shards_whose_tensors_do_not_add_up(tmp_path: Path) -> None:
    for number in (0, 1):
        raw = Raw().number("split.no", "H", number).number("split.count", "H", 2)
        raw.number("split.tensors.count", "i", 5).tensor(f"t{number}", (8,), 0)
        raw.data = bytes(32)
        raw.at(tmp_path, name=f"m-0000{number + 1}-of-00002.gguf")
    with pytest.raises(CorruptFile, match="2 tensors in all"):
        checkpoints.open(tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="no real checkpoints here")
def test_a_vocabulary_without_tensors() -> None:
    path = REAL / "gguf-vocab" / "ggml-vocab-gpt-2.gguf"
    with checkpoints.open(path) as found:
        assert len(found) == 0
        assert len(found.metadata) == 16
        assert found.metadata["general.architecture"] == "gpt2"
        assert found.metadata["tokenizer.ggml.tokens"] == "50257 × string"
        assert found.metadata["gpt2.attention.layer_norm_epsilon"] == "1e-05"


def test_writing_says_what_gguf_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for info in (
        *(TensorInfo("a", (2,), d) for d in ("bool", "complex64", "float8_e4m3fn", "uint8")),
        TensorInfo("a", (1, 1, 1, 1, 1), "float32"),
        TensorInfo("n" * 64, (1,), "float32"),
        TensorInfo("ü" * 32, (1,), "float32"),
    ):
        values = np.zeros(info.shape, np.float32)
        with pytest.raises(FormatError) as caught:
            checkpoints.write(path, [(info, lambda v=values: v)])
        assert caught.value.hint
        assert not path.exists()
    with pytest.raises(FormatError, match="power of two"):
        checkpoints.write(path, [], {"general.alignment": "many"})


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    values = {
        "a.weight": generator.normal(size=(2, 3, 4)).astype(np.float32),
        "half": generator.normal(size=5).astype(np.float16),
        "brain": generator.normal(size=(3, 3)).astype(ml_dtypes.bfloat16),
        "big": generator.normal(size=4).astype(">f8"),
        "n" * 63: generator.integers(-9, 9, 7).astype(np.int32),
    }
    items = [
        (TensorInfo(n, v.shape, v.dtype.newbyteorder("=").name), lambda v=v: v)
        for n, v in values.items()
    ]
    metadata = {"general.architecture": "bert", "general.alignment": "64", "note": "ünï", "e": "",
                "split.count": "7"}  # fmt: skip
    path = tmp_path / "x.gguf"
    checkpoints.write(path, items, metadata)
    reader = gguf.GGUFReader(path)
    assert reader.alignment == 64
    assert reader.fields["general.architecture"].contents() == "bert"
    assert reader.fields["note"].contents() == "ünï"
    assert reader.fields["e"].contents() == ""
    assert [t.name for t in reader.tensors] == list(values)
    for tensor in reader.tensors:
        value = values[tensor.name]
        native = value.astype(value.dtype.newbyteorder("="))
        assert tuple(reversed(tensor.shape.tolist())) == value.shape
        assert tensor.data.tobytes() == native.tobytes()
    with checkpoints.open(path) as found:
        assert dict(found.metadata) == {k: v for k, v in metadata.items() if k != "split.count"}
