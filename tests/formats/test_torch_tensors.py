"""Every kind of tensor that PyTorch saves, in zip and legacy files, against what PyTorch loads."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from formats.torch_truth import array, assert_same, loaded, named
from regraft import checkpoints
from regraft.errors import CorruptFile, FormatError, UnsafeFile
from regraft.formats import _pickle_runs
from regraft.formats._pickle import Machine
from regraft.formats._pickle_records import Reference
from regraft.tensors import CODED, DTYPE_BITS, numpy_dtype

# torch warns of what is in beta or going; nothing of ours warns.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
Layout = pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
_UNTYPED = {"float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
            "float8_e8m0fnu", "uint16", "uint32", "uint64"}  # fmt: skip
# torch.load cannot read what torch.save writes of these in the legacy layout.
UNTYPED = {name for name in _UNTYPED if hasattr(torch, name)}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def saved(path: Path, value: Any, new: bool) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=new)
    return path


def truth(value: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {name: array(tensor) for name, tensor in named(value)}


@Layout
def test_views_strides_and_ties(new: bool, tmp_path: Path) -> None:
    base = normal(6, 8)
    tensors = {
        "whole": base, "rows": base[2:], "transposed": base.t(), "steps": base[:, ::2],
        "row": base[3], "scalar": base[2, 5], "same": base, "same_rows": base[2:],
        "reshaped": base.view(8, 6), "windows": torch.arange(10.0).unfold(0, 3, 1),
        "expanded": torch.tensor(2.5).expand(40, 50), "axis_of_one": normal(5, 1)[:, :, None],
    }  # fmt: skip
    path = saved(tmp_path / "x.pth", tensors, new)
    with checkpoints.open(path) as found:
        assert_same(found, loaded(path))
        assert sorted(map(sorted, found.ties)) == [["rows", "same_rows"], ["same", "whole"]]


@Layout
def test_dtypes(new: bool, tmp_path: Path) -> None:
    values = {}
    for name in DTYPE_BITS:
        dtype = getattr(torch, name, None)
        if dtype is None or DTYPE_BITS[name] < 8:
            continue
        width = DTYPE_BITS[name] // 8
        count = 15 * width
        content = torch.randint(0, 2 if name == "bool" else 256, (count,), dtype=torch.uint8)
        values[name] = content.view(dtype).reshape(3, 5)
        values[f"{name}.column"] = values[name][1:, 2]
        values[f"{name}.scalar"] = values[name][1, 1]
        values[f"{name}.empty"] = torch.zeros(0, 3, dtype=dtype)
    assert {name for name in values if "." not in name} >= UNTYPED
    path = saved(tmp_path / "x.pth", values, new)
    expected = loaded(path) if new else truth(values)
    with checkpoints.open(path) as found:
        assert_same(found, expected)
        for name, info in found.items():
            assert info.dtype == name.partition(".")[0]
            assert info.nbytes == expected[name].nbytes


@Layout
def test_dtypes_without_arrays_are_bytes_or_left_out_by_name(new: bool, tmp_path: Path) -> None:
    content = torch.arange(6, dtype=torch.uint8)
    values = {
        "four": content.view(torch.float4_e2m1fn_x2), "bits": content.view(torch.bits2x4),
        "wide": content.view(torch.bits16), "half": torch.tensor([1 + 2j]).to(torch.complex32),
        "plain": normal(2),
    }  # fmt: skip
    path = saved(tmp_path / "x.pth", values, new)
    with checkpoints.open(path) as found:
        assert list(found) == ["four", "bits", "wide", "plain"]
        assert found["four"].dtype == found["bits"].dtype == "uint8"
        assert found.read("bits").tobytes() == found.read("wide").tobytes() == bytes(range(6))
        notes = "\n".join(found.notes)
        assert "complex32" in notes
        assert "half" in notes
        for name, dtype in (("four", "float4_e2m1fn_x2"), ("bits", "bits2x4"), ("wide", "bits16")):
            assert f"dtype {dtype}, listed as the bytes that it is stored in: {name}" in notes


def test_integers_of_less_than_a_byte_are_bytes(tmp_path: Path) -> None:
    """PyTorch has these dtypes, but does not save them itself."""
    path = tmp_path / "x.pth"
    saved(path, {"w": torch.arange(4, dtype=torch.uint8).view(torch.bits1x8)}, True)
    for name in ("uint4", "int4", "uint1", "int7"):
        edited = _rewritten(path, lambda data, name=name: data.replace(b"bits1x8", name.encode()))
        with checkpoints.open(edited) as found:
            assert found["w"].dtype == "uint8"
            assert found.read("w").tolist() == [0, 1, 2, 3]
            assert any(f"dtype {name}, listed as the bytes" in note for note in found.notes)


@Layout
def test_complex_views_that_are_lazy(new: bool, tmp_path: Path) -> None:
    values = torch.complex(normal(3, 4), normal(3, 4, seed=1))
    other = torch.complex(normal(3, 4, seed=2), normal(3, 4, seed=3))
    tensors = {"plain": values, "conj": values.conj(), "negative": other.conj().imag,
               "adjoint": values.mH, "again": values.conj()}  # fmt: skip
    path = saved(tmp_path / "x.pth", tensors, new)
    with checkpoints.open(path) as found:
        assert_same(found, loaded(path))
        assert found.ties == (("conj", "again"),)


@Layout
def test_quantized(new: bool, tmp_path: Path) -> None:
    scales = torch.rand(4, generator=torch.Generator().manual_seed(1)) + 0.01
    points = torch.tensor([1, -2, 3, 0])
    packed = normal(4, 7).abs()
    tensors = {
        "quint8": torch.quantize_per_tensor(normal(3, 40), 0.037, 3, torch.quint8),
        "qint8": torch.quantize_per_tensor(normal(3, 40), 0.037, -3, torch.qint8),
        "qint32": torch.quantize_per_tensor(normal(3, 40) * 1e4, 0.0037, 12345, torch.qint32),
        "rows": torch.quantize_per_channel(normal(4, 40), scales, points, 0, torch.qint8),
        "columns": torch.quantize_per_channel(normal(3, 4, 2), scales, points, 1, torch.qint8),
        "quint4x2": torch.quantize_per_channel(
            packed, scales, points.float(), 0, torch.quint4x2
        ),
        "quint2x4": torch.quantize_per_channel(
            packed, scales, points.float(), 0, torch.quint2x4
        ),
        "view": torch.quantize_per_tensor(normal(3, 40), 0.037, 3, torch.quint8)[1:, ::2],
    }  # fmt: skip
    path = saved(tmp_path / "x.pth", tensors, new)
    with checkpoints.open(path) as found:
        assert_same(found, loaded(path))
        assert found["rows"].dtype == "qint8"
        assert found["view"].dtype == "quint8"
        assert found["quint4x2"].nbytes == 14
        assert found["quint2x4"].nbytes == 7
        assert {found[name].dtype for name in found} <= CODED.keys()
        assert numpy_dtype(found["qint32"].dtype) == np.float32


@Layout
def test_sparse(new: bool, tmp_path: Path) -> None:
    thin, blocks = normal(5, 4).relu(), normal(4, 6).relu()
    twice = [[0, 0, 1], [2, 2, 0]]
    two = torch.stack([torch.eye(3), 2 * torch.eye(3).flip(0)])
    tensors = {
        "coo": thin.to_sparse(), "csr": thin.to_sparse_csr(), "csc": thin.to_sparse_csc(),
        "bsr": blocks.to_sparse_bsr((2, 3)), "bsc": blocks.to_sparse_bsc((2, 3)),
        "hybrid": normal(3, 4, 2).to_sparse(1), "dense_axis": normal(3, 4, 2).to_sparse_csr(
            dense_dim=1),
        "sums": torch.sparse_coo_tensor(twice, [1.0, 2.0, 3.0], (2, 3)),
        "half": torch.sparse_coo_tensor(
            twice, torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16), (2, 3)),
        "flags": torch.sparse_coo_tensor(twice, torch.tensor([True, False, True]), (2, 3)),
        "batch": two.to_sparse_csr(), "batch_of_blocks": two.to_sparse_bsr((3, 1)),
        "nothing": torch.sparse_coo_tensor(size=(2, 3)),
        "scalar": torch.sparse_coo_tensor(torch.zeros(0, 2), torch.tensor([1.0, 2.0]), ()),
        "integers": torch.tensor([[0, 7], [9, 0]]).to_sparse(),
    }  # fmt: skip
    path = saved(tmp_path / "x.pth", tensors, new)
    with checkpoints.open(path) as found:
        assert_same(found, loaded(path))


def test_a_sparse_tensor_too_large_to_be_dense_is_read_in_slices(tmp_path: Path) -> None:
    large = torch.sparse_coo_tensor([[3, 999_999], [5, 7]], [1.5, 2.5], (1_000_000, 100_000))
    path = saved(tmp_path / "x.pth", {"large": large, "fine": normal(2)}, True)
    with checkpoints.open(path) as found:
        assert found["large"].shape == (1_000_000, 100_000)
        with pytest.raises(FormatError, match="large"):
            found.read("large")
        part = found.read("large", (slice(2, 5), slice(0, 10)))
        assert part.shape == (3, 10)
        assert part[1, 5] == 1.5
        assert part.sum() == 1.5
        assert found.read("fine").shape == (2,)


@pytest.mark.parametrize("damage", ["indices", "starts", "shape"])
def test_sparse_parts_that_do_not_fit(damage: str, tmp_path: Path) -> None:
    compressed = normal(3, 4).relu().to_sparse_csr()
    if damage == "indices":
        value = torch.sparse_coo_tensor([[0, 1], [0, 5]], [1.0, 2.0], (2, 6))
        value = value._indices()[1].fill_(9) is None or value
    elif damage == "starts":
        compressed.crow_indices()[1] = 99
        value = compressed
    else:
        value = torch.sparse_coo_tensor([[0, 1], [0, 1]], [1.0, 2.0], (2, 2))
    path = saved(tmp_path / "x.pth", {"w": value}, True)
    if damage == "shape":  # three sizes where the indices have two axes
        path = _rewritten(
            path, lambda data: data.replace(b"K\x02K\x02\x86q", b"K\x02K\x02K\x02\x87q")
        )
    with pytest.raises(CorruptFile, match="'w'"), checkpoints.open(path) as found:
        found.read("w")


class Scaled(torch.Tensor):
    """A subclass that keeps its values in two other tensors, as quantized weights are kept."""

    @staticmethod
    def __new__(cls, values: torch.Tensor, scale: torch.Tensor) -> Scaled:
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=scale.dtype)

    def __init__(self, values: torch.Tensor, scale: torch.Tensor) -> None:
        self.values, self.scale, self.bits = values, scale, 8

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(func)


class Marked(torch.Tensor):
    """A subclass with values of its own."""


@Layout
def test_subclasses_parameters_and_tensors_with_attributes(new: bool, tmp_path: Path) -> None:
    inner = Scaled(torch.arange(6, dtype=torch.int8).reshape(2, 3), normal(2))
    parameter = torch.nn.Parameter(normal(3))
    parameter.tag = "kept"
    attributed = normal(4)
    attributed.cache = normal(1)
    state = OrderedDict(
        [("a.weight", inner), ("a.outer", Scaled(inner, normal(1))), ("b.marked",
         normal(2).as_subclass(Marked)), ("b.parameter", parameter), ("b.attributed", attributed),
         ("b.buffer", torch.nn.Buffer(normal(3)))]
    )  # fmt: skip
    path = saved(tmp_path / "x.pth", {"state_dict": state}, new)
    expected = {
        "a.weight.values": inner.values, "a.weight.scale": inner.scale,
        "a.outer.values.values": inner.values, "a.outer.values.scale": inner.scale,
        "a.outer.scale": state["a.outer"].scale, "b.marked": torch.Tensor(state["b.marked"]),
        "b.parameter": parameter, "b.attributed": attributed, "b.buffer": state["b.buffer"],
    }  # fmt: skip
    with checkpoints.open(path) as found:
        assert found.container == "state_dict"
        assert_same(found, {name: array(tensor) for name, tensor in expected.items()})
        assert ("a.weight.values", "a.outer.values.values") in found.ties


@Layout
def test_tensors_without_values_are_left_out_by_name(new: bool, tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([normal(2, 3), normal(4, 3)])
    values = {"here": normal(2), "meta.weight": torch.empty(3, device="meta"), "jagged": nested,
              "lazy": torch.nn.parameter.UninitializedParameter(),
              "storage": normal(3).untyped_storage()}  # fmt: skip
    path = saved(tmp_path / "x.pth", values, new)
    with checkpoints.open(path) as found:
        assert list(found) == ["here"]
        notes = dict(reversed(note.split(": ")) for note in found.notes)
        assert "meta" in notes["meta.weight"]
        assert "nested" in notes["jagged"]
        assert "lazy" in notes["lazy"]
        assert "storage" in notes["storage"]


@Layout
def test_numpy_arrays_and_other_things_beside(new: bool, tmp_path: Path) -> None:
    values = {
        "w": normal(2), "array": np.arange(6.0).reshape(2, 3), "scalar": np.float32(2.5),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)), "flags": np.array([True, False]),
        "big": np.arange(3, dtype=">i4"), "empty": np.zeros((0, 2)), "text": np.array(["a"]),
        "objects": np.array([np.arange(2), None], dtype=object), "list": [normal(1), (normal(2),)],
        "device": torch.device("cuda", 1), "dtype": torch.float16, "size": torch.Size([1, 2]),
        "layout": torch.strided, 7: normal(1), "epoch": 3, "name": "run", "lr": 0.1,
    }  # fmt: skip
    path = saved(tmp_path / "x.pth", values, new)
    expected = loaded(path)
    del expected["text"], expected["objects"]
    expected["objects.0"] = np.arange(2)
    with checkpoints.open(path) as found:
        assert_same(found, expected)
        assert found.metadata.items() >= {"epoch": "3", "name": "run", "lr": "0.1"}.items()
        assert any(note.endswith(": text") for note in found.notes)


@Layout
def test_a_tensor_alone_and_lists(new: bool, tmp_path: Path) -> None:
    path = saved(tmp_path / "prompt.pt", normal(3, 2), new)
    with checkpoints.open(path) as found:
        assert_same(found, {"prompt": array(normal(3, 2))})
    path = saved(tmp_path / "list.pt", [normal(2), {"k": normal(3)}, (normal(1),)], new)
    with checkpoints.open(path) as found:
        assert_same(found, loaded(path))


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol(protocol: int, tmp_path: Path) -> None:
    """Protocols 0 and 1 cannot hold storages as PyTorch names them; the pickle alone can be read."""
    values = {"a": 1, "b": [1.5, None, True, "ü", b"\x00\xff", 2**70, -3], "c": (), "d": {1: (2,)}}
    machine = Machine(pickle.dumps(values, protocol), "pickle")
    assert machine.load() == values
    if protocol >= 2:
        path, tensors = tmp_path / "x.pth", {"w": normal(2), "v": normal(300, 1)}
        torch.save(tensors, path, pickle_protocol=protocol)
        with checkpoints.open(path) as found:
            assert_same(found, loaded(path))


def _rewritten(path: Path, edit: Callable[[bytes], bytes], **members: bytes) -> Path:
    """The same archive with `data.pkl` edited, and other members replaced or, if empty, dropped."""
    out = path.with_name(f"edited-{path.name}")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(out, "w") as copy:
        for name in archive.namelist():
            top, _, leaf = name.partition("/")
            data = archive.read(name)
            data = edit(data) if leaf == "data.pkl" else members.get(leaf, data)
            if data or leaf not in members:
                copy.writestr(f"{top}/{leaf}", data)
    return out


def test_big_endian_archives(tmp_path: Path) -> None:
    values = {
        "f": normal(2, 3),
        "b": normal(5).bfloat16(),
        "i": torch.arange(3),
        "c": normal(4).to(torch.complex64),
        "u": torch.arange(3, dtype=torch.uint8),
        "t": normal(3, 2).t(),
    }
    path = saved(tmp_path / "x.pth", values, True)
    with zipfile.ZipFile(path) as archive:
        stored = {n.partition("/")[2]: archive.read(n) for n in archive.namelist()}
    swapped = {}
    for index, tensor in enumerate(values.values()):
        width = tensor.element_size() // (2 if tensor.is_complex() else 1)
        data = np.frombuffer(stored[f"data/{index}"], np.uint8).reshape(-1, width)[:, ::-1]
        swapped[f"data/{index}"] = data.tobytes()
    edited = _rewritten(path, lambda data: data, byteorder=b"big", **swapped)
    with checkpoints.open(edited) as found:
        assert_same(found, loaded(edited))
        assert_same(found, truth(values))
    with pytest.raises(CorruptFile, match="byte order"):
        checkpoints.open(_rewritten(path, lambda data: data, byteorder=b"middle"))
    # Files from before 2.1 do not say, and are little-endian.
    with checkpoints.open(_rewritten(path, lambda data: data, byteorder=b"")) as found:
        assert_same(found, truth(values))


def test_uint16_in_a_big_endian_archive_is_right_where_torch_is_wrong(tmp_path: Path) -> None:
    """torch.load swaps by the storage's dtype, and that of untyped storages is uint8."""
    path = saved(tmp_path / "x.pth", {"u": torch.tensor([1, 2], dtype=torch.uint16)}, True)
    edited = _rewritten(path, lambda data: data, byteorder=b"big", **{"data/0": b"\0\1\0\2"})
    with checkpoints.open(edited) as found:
        assert found.read("u").tolist() == [1, 2]


def test_legacy_files_are_little_endian_whatever_they_say(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", {"f": normal(2, 3)}, False)
    data = path.read_bytes()
    at = data.index(b"little_endian") + len(b"little_endian") + 2
    assert data[at : at + 1] == b"\x88"  # True
    path.write_bytes(data[:at] + b"\x89" + data[at + 1 :])
    with checkpoints.open(path) as found:
        assert_same(found, loaded(path))
        assert_same(found, truth({"f": normal(2, 3)}))


class _Call:
    """Pickles as a call of a function of PyTorch's."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


def _legacy(path: Path, value: Any, views: dict[int, Any], last: int = 10) -> None:
    """A legacy file whose storages are views of one, as PyTorch 0.1 to 0.3 could write them. The
    last of them says that the whole has so many elements."""
    values = normal(10)
    pids = {
        index: ("storage", torch.FloatStorage, "root", "cpu", last if index == 2 else 10, view)
        for index, view in views.items()
    }

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return pids.get(obj.index) if isinstance(obj, _Storage) else None

    with path.open("wb") as file:
        for part in (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION,
                     {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}):  # fmt: skip
            pickle.dump(part, file, protocol=2)
        Pickler(file, protocol=2).dump(value)
        pickle.dump(["root"], file, protocol=2)
        file.write((10).to_bytes(8, "little") + values.numpy().tobytes())


class _Storage:
    def __init__(self, index: int) -> None:
        self.index = index


def test_views_of_storages_and_the_first_form_of_tensors(tmp_path: Path) -> None:
    rebuild = torch._utils._rebuild_tensor
    first, second, whole = _Storage(0), _Storage(1), _Storage(2)
    value = {
        "first": _Call(rebuild, first, 1, (2, 2), (2, 1)),
        "second": _Call(rebuild, second, 0, (3,), (1,)),
        "again": _Call(rebuild, second, 0, (3,), (1,)),
        "same_bytes": _Call(rebuild, whole, 6, (3,), (1,)),
        "whole": _Call(rebuild, whole, 0, (10,), (1,)),
    }
    views = {0: ("v0", 1, 6), 1: ("v1", 6, 3), 2: None}
    _legacy(tmp_path / "x.pth", value, views)
    with checkpoints.open(tmp_path / "x.pth") as found:
        assert_same(found, loaded(tmp_path / "x.pth"))
        assert found.ties == (("second", "again", "same_bytes"),)
    for wrong in (("v0", 5, 6), ("v0", -1, 6), ("v0", 0, "6"), ("v0", 1 << 70, 1)):
        _legacy(tmp_path / "bad.pth", value, {**views, 0: wrong})
        with pytest.raises(CorruptFile):
            checkpoints.open(tmp_path / "bad.pth")


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((3,), (1,), -1), ((3,), (1,), 8), ((3,), (-1,), 5), ((11,), (1,), 0), ((2, 2), (1,), 0),
     ((2,), (9,), 1), ((1 << 40,), (0,), 0), ((1 << 62,) * 9, (0,) * 9, 0), ((0, 1 << 62), (1, 1), 0),
     ((2.0,), (1,), 0), ((True,), (1,), 0), (((3,),), (1,), 0), ((1,) * 99, (1,) * 99, 0)],
)  # fmt: skip
def test_tensors_that_leave_their_storage(
    shape: Any, strides: Any, offset: int, tmp_path: Path
) -> None:
    value = {"w": _Call(torch._utils._rebuild_tensor, _Storage(0), offset, shape, strides)}
    _legacy(tmp_path / "x.pth", value, {0: None})
    with pytest.raises(CorruptFile):
        checkpoints.open(tmp_path / "x.pth")


def test_one_storage_is_named_in_one_way(tmp_path: Path) -> None:
    rebuild = torch._utils._rebuild_tensor
    value = [_Call(rebuild, _Storage(index), 0, (3,), (1,)) for index in (0, 2)]
    _legacy(tmp_path / "x.pth", value, {0: None, 2: None}, last=9)
    with pytest.raises(CorruptFile, match="storage"):
        checkpoints.open(tmp_path / "x.pth")


def test_archives_without_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "x.pth", {"w": normal(3)}, True)
    finally:
        torch.serialization.set_crc32_options(True)
    with checkpoints.open(path) as found:
        assert_same(found, loaded(path))


def test_a_file_of_no_tensors_says_so(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", {"meta": torch.empty(3, device="meta"), "epoch": 1}, True)
    for container in (None, ""):
        with checkpoints.open(path, container=container) as found:
            assert len(found) == 0
            assert "meta" in found.notes[0]


def test_runs_of_opcodes_give_what_single_opcodes_give(tmp_path: Path) -> None:
    """The short way through a large pickle changes nothing that can be seen."""
    generator = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    shared = normal(70_000)
    for index in range(400):
        shape = tuple(generator.integers(1, 4, size=index % 6))
        kind = index % 7
        tensor = normal(*shape, seed=index) if shape else torch.tensor(float(index))
        tensors[f"layer{index}.w"] = (
            tensor, torch.nn.Parameter(tensor), tensor.double(), tensor.long(),
            shared[index:], tensor.to(torch.uint16), tensor.bfloat16(),
        )[kind]  # fmt: skip
    tensors |= {f"again{index}": tensors[f"layer{index}.w"] for index in range(0, 400, 7)}
    for new in (True, False):
        path = saved(tmp_path / "x.pth", tensors, new)
        with checkpoints.open(path) as found:
            quick = {n: (i, found.read(n).tobytes()) for n, i in found.items()}, found.ties
        with pytest.MonkeyPatch.context() as patch, checkpoints.open(path) as before:
            patch.setattr(_pickle_runs, "TENSOR", _Never())
            with checkpoints.open(path) as found:
                slow = {n: (i, found.read(n).tobytes()) for n, i in found.items()}, found.ties
            assert list(before) == list(found)
        assert quick == slow
        assert sum(len(group) for group in quick[1]) > 50


class _Never:
    def match(self, *_: Any) -> None:
        return None


def test_runs_of_opcodes_are_taken(tmp_path: Path) -> None:
    """Else the test above would compare one way with itself."""
    path = saved(tmp_path / "x.pth", {f"l{i}.w": normal(2, 2) for i in range(300)}, True)
    with zipfile.ZipFile(path) as archive:
        data = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    taken = [0]

    class Counting(_Never):
        def match(self, *args: Any) -> Any:
            found = pattern.match(*args)
            taken[0] += found is not None
            return found

    pattern = _pickle_runs.TENSOR
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_pickle_runs, "TENSOR", Counting())
        Machine(data, "x", Reference).load()
    assert taken[0] > 250


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    steps=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    starts=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    order=st.permutations(range(4)),
    dtype=st.sampled_from(["float32", "int16", "bool", "bfloat16", "complex64", "float64"]),
    new=st.booleans(),
)
def test_any_view_is_read_as_torch_reads_it(
    tmp_path_factory: pytest.TempPathFactory,
    shape: list[int],
    steps: list[int],
    starts: list[int],
    order: list[int],
    dtype: str,
    new: bool,
) -> None:
    whole = (normal(*shape) * 5 if shape else torch.tensor(1.5)).to(getattr(torch, dtype))
    view = whole[tuple(slice(a, None, b) for a, b in zip(starts, steps, strict=True))[: len(shape)]]
    view = view.permute([axis for axis in order if axis < len(shape)])
    path = tmp_path_factory.mktemp("view") / "x.pth"
    saved(path, {"whole": whole, "view": view}, new)
    with checkpoints.open(path) as found:
        assert_same(found, loaded(path))


def test_listing_imports_neither_numpy_nor_torch(tmp_path: Path) -> None:
    values = {"w": normal(3), "s": normal(2, 2).to_sparse(), "n": np.arange(3),
              "q": torch.quantize_per_tensor(normal(3), 0.1, 0, torch.qint8)}  # fmt: skip
    paths = [saved(tmp_path / f"{new}.pth", values, new) for new in (True, False)]
    program = (
        "import sys, regraft.checkpoints as c\n"
        "for path in sys.argv[1:]: assert len(c.open(path)) == 4\n"
        "print([m for m in ('numpy', 'torch', 'ml_dtypes') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", program, *map(str, paths)], capture_output=True,
                         check=True, text=True)  # fmt: skip
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["eval", "exec", "open", "__import__", "getattr"])
def test_calls_of_builtins_are_refused(name: str, tmp_path: Path) -> None:
    data = f"cbuiltins\n{name}\n(X\x01\x00\x00\x001tR.".encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + data)
        archive.writestr("x/version", "3")
    (tmp_path / "x.pth").write_bytes(stream.getvalue())
    with pytest.raises(UnsafeFile):
        checkpoints.open(tmp_path / "x.pth")


def test_a_hundred_thousand_tensors(tmp_path: Path) -> None:
    """What their objects take is within what opening a file may take."""
    one = torch.ones(1)
    state = {f"model.layers.{i // 12}.block.{i % 12}.weight": one[:1] for i in range(100_000)}
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    with checkpoints.open(tmp_path / "x.pt") as found:
        assert list(found) == list(state)
