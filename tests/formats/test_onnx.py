"""ONNX files made and read by the onnx package, compared with what is read without it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import regraft as rg
from regraft import checkpoints
from regraft.errors import CorruptFile, FormatError, MissingShard, UnknownFormat, UnsafeFile
from regraft.formats import Sample
from regraft.formats.onnx import sniff


def model_of(
    nodes: Iterable[Any] = (),
    initializers: Iterable[Any] = (),
    *,
    sparse: Iterable[Any] = (),
    functions: Iterable[Any] = (),
) -> Any:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        list(initializers),
        sparse_initializer=list(sparse),
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.own", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions))


def saved(path: Path, model: Any) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def same(read: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    assert read.shape == expected.shape
    assert read.dtype == expected.dtype
    assert read.tobytes() == expected.tobytes()


# Values

DTYPES = {
    "float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int8": TensorProto.INT8,
    "uint16": TensorProto.UINT16, "int16": TensorProto.INT16, "int32": TensorProto.INT32,
    "int64": TensorProto.INT64, "bool": TensorProto.BOOL, "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE, "uint32": TensorProto.UINT32, "uint64": TensorProto.UINT64,
    "complex64": TensorProto.COMPLEX64, "complex128": TensorProto.COMPLEX128,
    "bfloat16": TensorProto.BFLOAT16, "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
    "float8_e4m3fnuz": TensorProto.FLOAT8E4M3FNUZ, "float8_e5m2": TensorProto.FLOAT8E5M2,
    "float8_e5m2fnuz": TensorProto.FLOAT8E5M2FNUZ, "uint4": TensorProto.UINT4,
    "int4": TensorProto.INT4, "float4_e2m1fn": TensorProto.FLOAT4E2M1,
    "float8_e8m0fnu": TensorProto.FLOAT8E8M0, "uint2": TensorProto.UINT2,
    "int2": TensorProto.INT2,
}  # fmt: skip


def random_values(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, Any]:
    """Random bits, so that every value of the dtype may come, signed zeros and NaN as well."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    generator = np.random.default_rng(seed)
    if dtype == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    if dtype in ("int2", "uint2", "int4", "uint4", "float4_e2m1fn"):
        top = 4 if dtype.endswith("2") else 16
        return generator.integers(0, top, shape).astype(np.uint8).view(kind)
    count = int(np.prod(shape, dtype=int))
    return np.frombuffer(generator.bytes(count * kind.itemsize), kind).reshape(shape)


def typed(name: str, value: np.ndarray[Any, Any], dtype: str) -> Any:
    """A TensorProto in the typed field; bit patterns are kept, which `make_tensor` does not."""
    tensor = TensorProto(name=name, data_type=DTYPES[dtype], dims=value.shape)
    flat = np.ascontiguousarray(value).reshape(-1)
    if dtype in ("float32", "complex64"):
        tensor.float_data.extend(flat.view(np.float32).tolist())
    elif dtype in ("float64", "complex128"):
        tensor.double_data.extend(flat.view(np.float64).tolist())
    elif dtype == "int64":
        tensor.int64_data.extend(flat.tolist())
    elif dtype in ("uint32", "uint64"):
        tensor.uint64_data.extend(flat.tolist())
    elif dtype in ("int8", "int16", "int32", "uint8", "uint16", "bool"):
        tensor.int32_data.extend(flat.astype(np.int32).tolist())
    elif flat.dtype.itemsize == 2:
        tensor.int32_data.extend(flat.view(np.uint16).astype(np.int32).tolist())
    else:
        tensor.int32_data.extend(list(numpy_helper.from_array(value, name).raw_data))
    return tensor


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_raw_and_typed(dtype: str, tmp_path: Path) -> None:
    tensors, expected = [], {}
    for index, shape in enumerate([(3, 5), (7,), (), (0, 2), (1, 1), (2, 2, 3)]):
        value = random_values(dtype, shape, index)
        tensors += [numpy_helper.from_array(value, f"raw{index}")]
        tensors += [typed(f"typed{index}", value, dtype)]
        assert tensors[-2].data_type == DTYPES[dtype]
        expected |= {f"raw{index}": value, f"typed{index}": value}
    path = saved(tmp_path / "a.onnx", model_of([], tensors))
    with checkpoints.open(path) as found:
        assert list(found) == list(expected)
        for tensor in tensors:
            value = expected[tensor.name]
            info = found[tensor.name]
            assert (info.shape, info.dtype) == (value.shape, dtype)
            read = found.read(tensor.name)
            same(read, value)
            same(read, numpy_helper.to_array(tensor))
            if value.ndim == 2 and value.size:
                same(found.read(tensor.name, (slice(0, 1), slice(0, 1))), value[:1, :1])


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(dtype=st.sampled_from(list(DTYPES)), wrong=st.sampled_from([-1, 1, 5]))
def test_a_count_that_does_not_fit_the_shape(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, wrong: int
) -> None:
    folder = tmp_path_factory.mktemp("counts")
    value = random_values(dtype, (4, 5))
    for tensor in (numpy_helper.from_array(value, "w"), typed("w", value, dtype)):
        tensor.dims[0] = 4 + (wrong if len(tensor.raw_data) or dtype[-1] != "2" else wrong * 4)
        with pytest.raises(CorruptFile):
            checkpoints.open(saved(folder / "a.onnx", model_of([], [tensor])))


def test_numbers_beyond_their_type_are_refused(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT16, dims=[1], int32_data=[70_000])
    found = checkpoints.open(saved(tmp_path / "a.onnx", model_of([], [tensor])))
    with found, pytest.raises(CorruptFile, match="w"):
        found.read("w")


@pytest.mark.parametrize(
    "change",
    [{"data_type": 0}, {"data_type": 99}, {"dims": [-1]}, {"dims": [1] * 65}, {"name": ""},
     {"dims": [2**62, 2**62]}, {"dims": [0, 2**62], "raw_data": b""}],
)  # fmt: skip
def test_tensors_that_make_no_sense(change: dict[str, Any], tmp_path: Path) -> None:
    fields: dict[str, Any] = {"name": "w", "data_type": TensorProto.FLOAT, "dims": [1]}
    tensor = TensorProto(**({"raw_data": b"\0\0\0\0"} | fields | change))
    with pytest.raises(CorruptFile):
        checkpoints.open(saved(tmp_path / "a.onnx", model_of([], [tensor])))


def test_text_is_noted_and_metadata_told(tmp_path: Path) -> None:
    words = helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"bc"])
    weight = numpy_helper.from_array(random_values("float32", (2, 3)), "weight")
    model = model_of([], [words, weight])
    model.producer_name, model.producer_version, model.doc_string = "maker", "1.2", "told"
    helper.set_model_props(model, {"task": "digits"})
    with checkpoints.open(saved(tmp_path / "a.onnx", model)) as found:
        assert list(found) == ["weight"]
        assert "words" in found.notes[0]
        assert found.framework == "onnx"
        assert dict(found.metadata) == {
            "ir_version": str(model.ir_version), "producer_name": "maker",
            "producer_version": "1.2", "doc_string": "told", "task": "digits",
            "opset_import": "ai.onnx 21, com.own 1",
        }  # fmt: skip


@pytest.mark.parametrize("flat", [True, False])
def test_sparse_tensors_are_read_dense(flat: bool, tmp_path: Path) -> None:
    dense = np.zeros((4, 5), np.float32)
    places = np.array([3, 7, 18])
    dense.reshape(-1)[places] = random_values("float32", (3,))
    values = numpy_helper.from_array(dense.reshape(-1)[places], "w")
    where = places if flat else np.stack(np.unravel_index(places, (4, 5)), axis=1)
    indices = numpy_helper.from_array(where.astype(np.int64), "w_indices")
    sparse = helper.make_sparse_tensor(values, indices, [4, 5])
    with checkpoints.open(saved(tmp_path / "a.onnx", model_of([], [], sparse=[sparse]))) as found:
        assert found["w"].shape == (4, 5)
        same(found.read("w"), dense)
        same(found.read("w", (slice(1, 4), slice(0, 5))), dense[1:])


def test_sparse_tensors_that_lie(tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.ones(2, np.float32), "w")

    def opened(indices: Any, shape: list[int]) -> Any:
        sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(indices), shape)
        return checkpoints.open(saved(tmp_path / "a.onnx", model_of([], [], sparse=[sparse])))

    for indices in (np.array([1, 20]), np.array([-1, 2]), np.array([[0, 0], [4, 0]])):
        with opened(indices, [4, 5]) as found, pytest.raises(CorruptFile):
            found.read("w")
    for indices in (np.array([1]), np.array([1, 2], np.int32), np.array([[1], [2]])):
        with pytest.raises(CorruptFile):
            opened(indices, [4, 5])
    with opened(np.array([1, 2]), [2**40]) as found, pytest.raises(FormatError, match="w"):
        found.read("w")


# External data


def external(folder: Path, **changes: str) -> Path:
    value = random_values("float32", (300, 4))
    model = model_of([], [numpy_helper.from_array(value, "w"), numpy_helper.from_array(value, "v")])
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = changes.get(entry.key, entry.value)
    return saved(path, model)


def test_external_data_stays_where_it_lies(tmp_path: Path) -> None:
    path = external(tmp_path)
    with checkpoints.open(path) as found:
        for tensor in onnx.load(path).graph.initializer:
            expected = numpy_helper.to_array(tensor)
            same(found.read(tensor.name), expected)
            same(found.read(tensor.name, (slice(7, 9), slice(0, 4))), expected[7:9])
        assert found.ties == ()
    with checkpoints.open(external(tmp_path, offset="0")) as found:
        assert found.ties == (("w", "v"),)
    (tmp_path / "model.data").unlink()
    with pytest.raises(MissingShard) as caught:
        checkpoints.open(path)
    assert caught.value.problems == ("model.data",)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"location": "../model.data"}, UnsafeFile),
        ({"location": "/etc/hostname"}, UnsafeFile),
        ({"location": "sub\\model.data"}, UnsafeFile),
        ({"location": "link.data"}, UnsafeFile),
        ({"location": "a\0b"}, UnsafeFile),
        ({"location": ""}, MissingShard),
        ({"location": "x" * 4000}, MissingShard),
        ({"offset": "1000000"}, CorruptFile),
        ({"offset": "-4"}, CorruptFile),
        ({"offset": "9" * 30}, CorruptFile),
        ({"offset": "x"}, CorruptFile),
        ({"length": "8"}, CorruptFile),
    ],
)
def test_external_data_that_leads_astray(
    change: dict[str, str], error: type[Exception], tmp_path: Path
) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    (tmp_path / "model.data").write_bytes(b"\0" * 20_000)
    (folder / "link.data").symlink_to(tmp_path / "model.data")
    with pytest.raises(error):
        checkpoints.open(external(folder, **change))


# Which tensors are listed, and under which names


def constant(name: str, value: np.ndarray[Any, Any]) -> Any:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def test_constants_are_listed_where_they_are_weights(tmp_path: Path) -> None:
    kernel, bias = random_values("float32", (4, 3)), np.arange(4, dtype=np.float32)
    nodes = [
        constant("kernel", kernel),
        constant("bias", bias),
        constant("shape", np.array([1, -1])),
        constant("half", np.array(0.5, np.float32)),
        constant("scales", np.array([1, 1, 2, 2], np.float32)),
        helper.make_node("Gemm", ["x", "kernel", "bias"], ["a"], transB=1),
        helper.make_node("Mul", ["a", "half"], ["b"]),
        helper.make_node("Resize", ["b", "", "scales"], ["c"]),
        helper.make_node("Reshape", ["c", "shape"], ["y"]),
    ]
    stored = [
        numpy_helper.from_array(np.array([2, 3]), "axes"),
        numpy_helper.from_array(np.array(3), "norm.num_batches_tracked"),
        numpy_helper.from_array(np.array(1.5, np.float32), "logit_scale"),
        numpy_helper.from_array(np.array(1.5, np.float32), "/Constant_3_output_0"),
    ]
    with checkpoints.open(saved(tmp_path / "a.onnx", model_of(nodes, stored))) as found:
        assert {name: info.kind for name, info in found.items()} == {
            "kernel": "weight", "bias": "weight", "axes": "constant",
            "norm.num_batches_tracked": "counter", "logit_scale": "weight",
            "/Constant_3_output_0": "constant",
        }  # fmt: skip
        same(found.read("kernel"), kernel)
        same(found.read("bias"), bias)


def test_bodies_of_control_flow(tmp_path: Path) -> None:
    """A name of one body alone stays; names of several carry their operation and branch."""
    values = {key: random_values("float32", (3, 3), i) for i, key in enumerate("wxyz")}

    def branch(key: str, own: list[Any]) -> Any:
        nodes = [
            helper.make_node("MatMul", ["x", "shared" if key != "z" else "outer"], ["out"]),
        ]
        output = [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
        return helper.make_graph(nodes, key, [], output, own)

    def tensor(name: str, key: str) -> Any:
        return numpy_helper.from_array(values[key], name)

    nodes = [
        constant("yes", np.array(True)),
        helper.make_node(
            "If", ["yes"], ["a"], "choice",
            then_branch=branch("x", [tensor("shared", "x")]),
            else_branch=branch("y", [tensor("shared", "y"), tensor("alone", "w")]),
        ),
        helper.make_node(
            "If", ["yes"], ["b"], then_branch=branch("z", []),
            else_branch=branch("y", [tensor("shared", "w")]),
        ),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]  # fmt: skip
    model = model_of(nodes, [tensor("outer", "z")])
    with checkpoints.open(saved(tmp_path / "a.onnx", model)) as found:
        expected = {
            "outer": "z", "alone": "w", "choice/then_branch/shared": "x",
            "choice/else_branch/shared": "y", "If/else_branch/shared": "w",
        }  # fmt: skip
        assert set(found) == set(expected)
        for name, key in expected.items():
            same(found.read(name), values[key])
        assert found["outer"].module == "MatMul"
        assert [node.label for node in found.flow] == ["", "", "", "", "add"]
        assert found.flow[-1].inputs == (0, 1, 2, 3)


def test_a_loop_carries_its_state(tmp_path: Path) -> None:
    kernel = numpy_helper.from_array(random_values("float32", (3, 3)), "w")
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["next"]),
            helper.make_node("Identity", ["cond"], ["going_on"]),
        ],
        "body",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("i", "cond", "state")],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("going_on", "next")],
        [kernel],
    )
    nodes = [
        constant("count", np.array(3)),
        constant("yes", np.array(True)),
        helper.make_node("Conv", ["x", "first.weight"], ["a"]),
        helper.make_node("Loop", ["count", "yes", "a"], ["b"], body=body),
        helper.make_node("Conv", ["b", "last.weight"], ["y"]),
    ]
    convolutions = [
        numpy_helper.from_array(random_values("float32", (3, 3, 1)), f"{n}.weight")
        for n in ("first", "last")
    ]
    with checkpoints.open(saved(tmp_path / "a.onnx", model_of(nodes, convolutions))) as found:
        assert list(found) == ["first.weight", "w", "last.weight"]
        assert [(n.owner, n.inputs) for n in found.flow] == [
            ("first", ()),
            ("w", (0,)),
            ("last", (1,)),
        ]


def test_a_scan_carries_its_state(tmp_path: Path) -> None:
    def info(*names: str) -> list[Any]:
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names]

    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["mixed"]),
            helper.make_node("Add", ["mixed", "part"], ["next"]),
            helper.make_node("Relu", ["next"], ["out"]),
        ],
        "body", info("state", "part"), info("next", "out"),
        [numpy_helper.from_array(random_values("float32", (3, 3)), "w")],
    )  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "a.weight"], ["a"]),
        helper.make_node("Conv", ["x", "b.weight"], ["b"]),
        helper.make_node("Scan", ["a", "b"], ["last", "all"], body=body, num_scan_inputs=1),
        helper.make_node("Gemm", ["all", "c.weight"], ["y"], transB=1),
    ]
    stored = [
        numpy_helper.from_array(random_values("float32", (3, 3)), f"{n}.weight") for n in "abc"
    ]
    with checkpoints.open(saved(tmp_path / "a.onnx", model_of(nodes, stored))) as found:
        told = [(node.owner, node.label, node.inputs) for node in found.flow]
        assert told == [
            ("a", "", ()), ("b", "", ()), ("w", "", (0,)), ("", "add", (2, 1)), ("c", "", (3,)),
        ]  # fmt: skip


def test_functions_are_looked_into(tmp_path: Path) -> None:
    value = random_values("float32", (3, 3))
    function = helper.make_function(
        "com.own", "dense", ["a"], ["b"],
        [constant("inner", value), helper.make_node("MatMul", ["a", "inner"], ["b"])],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    nodes = [helper.make_node("dense", ["x"], ["y"], domain="com.own")]
    path = saved(tmp_path / "a.onnx", model_of(nodes, functions=[function]))
    with checkpoints.open(path) as found:
        same(found.read("inner"), value)
        assert found.flow == ()  # what the call does in the model's dataflow is not known


def test_names_twice_in_one_graph_are_refused(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "w")
    with pytest.raises(CorruptFile, match="two tensors"):
        checkpoints.open(saved(tmp_path / "a.onnx", model_of([], [tensor, tensor])))


# What operations say of their tensors

DENSE = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("nodes", "module"),
    [
        ([helper.make_node("MatMul", ["x", "w"], ["y"])], "MatMul"),
        ([helper.make_node("MatMul", ["w", "x"], ["y"])], "Gemm"),
        ([helper.make_node("Gemm", ["x", "w"], ["y"])], "MatMul"),
        ([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], "Gemm"),
        ([helper.make_node("Gemm", ["w", "x"], ["y"], transA=1)], "MatMul"),
        (
            [helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
             helper.make_node("MatMul", ["x", "t"], ["y"])],
            "Gemm",
        ),
        (
            [helper.make_node("Cast", ["w"], ["c"], to=1),
             helper.make_node("Transpose", ["c"], ["t"]),
             helper.make_node("Gemm", ["x", "t"], ["y"], transB=1)],
            "MatMul",
        ),
    ],
)  # fmt: skip
def test_the_module_says_how_a_dense_kernel_lies(
    nodes: list[Any], module: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "a.onnx", model_of(nodes, [numpy_helper.from_array(DENSE, "w")]))
    with checkpoints.open(path) as found:
        assert (found["w"].module, found["w"].role, found["w"].owner) == (module, "kernel", "w")
    target = nn.Linear(*((3, 4) if module == "MatMul" else (4, 3)), bias=False)
    rg.load(path, target)
    expected = DENSE.T if module == "MatMul" else DENSE
    np.testing.assert_array_equal(target.weight.detach().numpy(), expected)


def test_roles_by_operation(tmp_path: Path) -> None:
    shapes = {
        "k": (4, 3, 1, 1), "b": (4,), "s": (4,), "o": (4,), "m": (4,), "v": (4,), "a": (4, 1, 1),
        "up": (4, 2, 2, 2), "g": (1, 2, 1, 1), "h": (1, 2, 1, 1), "W": (1, 12, 6), "R": (1, 12, 3),
        "B": (1, 24), "table": (9, 6),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["1"]),
        helper.make_node("Add", ["b4", "1"], ["2"]),
        helper.make_node("Unsqueeze", ["b", "axes"], ["b4"]),
        helper.make_node("BatchNormalization", ["2", "s", "o", "m", "v"], ["3"]),
        helper.make_node("PRelu", ["3", "a"], ["4"]),
        helper.make_node("ConvTranspose", ["4", "up"], ["5"]),
        helper.make_node("Mul", ["g", "5"], ["6"]),
        helper.make_node("Add", ["6", "h"], ["7"]),
        helper.make_node("Cast", ["7"], ["8"], to=7),
        helper.make_node("Gather", ["table", "8"], ["9"]),
        helper.make_node("GRU", ["9", "W", "R", "B"], ["y"], hidden_size=3),
    ]
    nodes[1], nodes[2] = nodes[2], nodes[1]
    stored = [
        numpy_helper.from_array(random_values("float32", shape, i), name)
        for i, (name, shape) in enumerate(shapes.items())
    ]
    stored.append(numpy_helper.from_array(np.array([0, 2, 3]), "axes"))
    with checkpoints.open(saved(tmp_path / "a.onnx", model_of(nodes, stored))) as found:
        told = {n: (i.owner, i.module, i.role) for n, i in found.items() if n != "axes"}
        assert told == {
            "k": ("k", "Conv", "kernel"),
            "b": ("k", "Conv", "bias"),
            "s": ("s", "BatchNormalization", "gamma"),
            "o": ("s", "BatchNormalization", "bias"),
            "m": ("s", "BatchNormalization", "running_mean"),
            "v": ("s", "BatchNormalization", "running_var"),
            "a": ("a", "PRelu", "alpha"),
            "up": ("up", "ConvTranspose", "kernel"),
            "g": ("g", "Mul", "gamma"),
            "h": ("g", "Mul", "bias"),
            "table": ("table", "Gather", "embedding"),
            "W": ("W", "GRU", "kernel"),
            "R": ("W", "GRU", "recurrent_kernel"),
            "B": ("W", "GRU", "bias"),
        }
        assert [n.owner for n in found.flow] == ["k", "s", "a", "up", "g", "table", "W"]


def test_a_quantized_kernel_is_no_kernel(tmp_path: Path) -> None:
    """Its codes would fit a float kernel's shape; taken as numbers they would be wrong."""
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["k"]),
        helper.make_node("Gemm", ["x", "k"], ["y"], transB=1),
    ]
    stored = [
        numpy_helper.from_array(random_values("int8", (3, 4)), "w"),
        numpy_helper.from_array(np.array(0.1, np.float32), "scale"),
    ]
    path = saved(tmp_path / "a.onnx", model_of(nodes, stored))
    with checkpoints.open(path) as found:
        assert found["w"].role == "quantized_kernel"
    plan = rg.plan(path, nn.Linear(4, 3, bias=False))
    assert not plan.complete
    assert plan.grafts == {}


def test_a_kernel_that_the_graph_rearranges_is_left_open(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["k"], perm=[3, 2, 0, 1]),
        helper.make_node("Conv", ["x", "k"], ["y"]),
    ]
    stored = [numpy_helper.from_array(random_values("float32", (3, 3, 3, 3)), "w")]
    plan = rg.plan(
        saved(tmp_path / "a.onnx", model_of(nodes, stored)), nn.Conv2d(3, 3, 3, bias=False)
    )
    assert not plan.complete
    assert plan.grafts == {}


# Onto models


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.act = nn.PReLU(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x + self.second(torch.relu(self.norm(self.first(x)))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.blocks = nn.Sequential(Block(8), Block(8), Block(8))
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.fc = nn.Linear(6 * 14 * 14, 16)
        self.norm = nn.LayerNorm(16)
        self.gate = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.blocks(self.stem(x))).flatten(1)
        x = self.norm(nn.functional.gelu(self.fc(x)))
        return self.head(x * torch.sigmoid(self.gate(x)))


def filled(model: nn.Module) -> nn.Module:
    """Random distinct values everywhere, statistics and biases too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.dtype.is_floating_point:
                tensor.copy_(0.2 + torch.rand(tensor.shape, generator=generator) / 2)
    return model.eval()


def exported(model: nn.Module, example: torch.Tensor, path: Path, opset: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (example,), str(path), opset_version=opset, dynamo=False,
            do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE,
        )  # fmt: skip
    return onnx.load(path)


def scrambled(model: Any, seed: int = 1) -> Any:
    """Without any telling name, and stored in another order."""
    names = [tensor.name for tensor in model.graph.initializer]
    others = [f"t.{index}" for index in range(len(names))]
    random.Random(seed).shuffle(others)
    new = dict(zip(names, others, strict=True))
    for tensor in model.graph.initializer:
        tensor.name = new[tensor.name]
    for node in model.graph.node:
        node.name = ""
        node.input[:] = [new.get(value, value) for value in node.input]
    stored = sorted(model.graph.initializer, key=lambda tensor: tensor.name)
    del model.graph.initializer[:]
    model.graph.initializer.extend(stored)
    return model


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("scramble", [False, True])
def test_an_export_arrives_in_its_model(opset: int, scramble: bool, tmp_path: Path) -> None:
    source = filled(Net())
    x = torch.randn(2, 3, 15, 15, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "a.onnx"
    model = exported(source, x, path, opset)
    if scramble:
        saved(path, scrambled(model))
        assert not set(source.state_dict()) & set(rg.open(path))
    target = Net().eval()
    receipt = rg.load(path, target)
    assert (receipt.fresh, receipt.unused, receipt.adapted) == ([], [], [])
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name]), name
    with torch.no_grad():
        torch.testing.assert_close(target(x), source(x), atol=1e-5, rtol=1e-5)


class Flat(nn.Module):
    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last = last
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4 * 5 * 6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.head((x.permute(0, 2, 3, 1) if self.last else x).flatten(1))


@pytest.mark.parametrize("source_last", [False, True])
@pytest.mark.parametrize("target_last", [False, True])
def test_the_flatten_order_is_what_the_graphs_show(
    source_last: bool, target_last: bool, tmp_path: Path
) -> None:
    source, target = filled(Flat(source_last)), Flat(target_last).eval()
    x = torch.randn(2, 3, 7, 8, generator=torch.Generator().manual_seed(1))
    exported(source, x, tmp_path / "a.onnx", 17)
    rg.load(tmp_path / "a.onnx", target)
    with torch.no_grad():
        torch.testing.assert_close(target(x), source(x), atol=1e-4, rtol=1e-5)


def test_a_file_without_a_graph_flattens_as_its_framework_does(tmp_path: Path) -> None:
    source = filled(Flat(False))
    exported(source, torch.zeros(2, 3, 7, 8), tmp_path / "a.onnx", 17)
    state = {name: t.clone() for name, t in Flat(False).state_dict().items()}
    torch.save(state, tmp_path / "target.pth")
    plan = rg.plan(tmp_path / "a.onnx", tmp_path / "target.pth")
    assert plan.complete
    assert not any(isinstance(op, rg.ops.Reshape) for op in plan.grafts["head.weight"].ops)


# Files by other people

REAL = (
    "ultraface-slim/version-slim-320_simplified.onnx",
    "ultraface-slim/version-slim-320_without_postprocessing.onnx",
    "silero-vad/silero_vad_16k_op15.onnx",
    "magika-v1/model.onnx",
)


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_as_onnx_reads_them(name: str, real: Path) -> None:
    graph = onnx.load(real / name).graph
    with checkpoints.open(real / name) as found:
        assert set(found) == {tensor.name for tensor in graph.initializer}
        for tensor in graph.initializer:
            same(found.read(tensor.name), numpy_helper.to_array(tensor))
        # All that a layer owns is owned by one, and the dataflow speaks of those very layers.
        owners = {info.owner for info in found.values() if info.owner}
        assert owners == {node.owner for node in found.flow if node.owner}


def pairs_of(plan: rg.Plan) -> dict[str, str]:
    return {name: graft.sources[0] for name, graft in plan.grafts.items() if graft.sources}


def holds(plan: rg.Plan, source: Path, target: Path) -> None:
    """Every graft makes exactly what the target file holds."""
    ours, theirs = rg.open(source), rg.open(target)
    for name, graft in plan.grafts.items():
        if graft.sources:
            arrays = [ours.read(source) for source in graft.sources]
            np.testing.assert_array_equal(rg.ops.run(graft.ops, arrays), theirs.read(name))


def test_magika_between_keras_and_onnx(real: Path) -> None:
    keras_file, onnx_file = real / "magika-v1/model.h5", real / "magika-v1/model.onnx"
    truth = json.loads((real / "magika-v1/TRUTH.json").read_text())["mapping"]
    expected = {
        name: entry["source"].removeprefix("model_weights/") for name, entry in truth.items()
    }
    there, back = rg.plan(keras_file, onnx_file), rg.plan(onnx_file, keras_file)
    assert there.complete
    assert back.complete
    assert (there.unused, back.unused) == ((), ())
    assert pairs_of(there) == expected
    assert {source: name for name, source in pairs_of(back).items()} == expected
    holds(there, keras_file, onnx_file)
    holds(back, onnx_file, keras_file)


def test_ultraface_between_onnx_and_torch(real: Path) -> None:
    folder = real / "ultraface-slim"
    files = (
        folder / "version-slim-320_without_postprocessing.onnx",
        folder / "version-slim-320.pth",
    )
    for source, target in (files, files[::-1]):
        plan = rg.plan(source, target)
        assert plan.complete
        assert not plan.unused
        assert pairs_of(plan) == {name: name for name in plan.grafts}
        holds(plan, source, target)


def test_folded_normalisations_do_not_pass_for_the_plain_network(real: Path) -> None:
    folder = real / "ultraface-slim"
    plan = rg.plan(folder / "version-slim-320_simplified.onnx", folder / "version-slim-320.pth")
    assert not plan.complete


# Hostile files


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    """Deeper than Google's own reader goes, too."""
    graph = b""
    for _ in range(2000):
        attribute = nested(0x2A, b"\x0a\x01b" + nested(0x32, graph))
        graph = nested(0x0A, b"\x22\x02If" + attribute)
    path = tmp_path / "a.onnx"
    path.write_bytes(b"\x08\x08" + nested(0x3A, graph))
    with pytest.raises(CorruptFile, match="deep"):
        checkpoints.open(path)


def _many(count: int) -> bytes:
    return b"\x08\x08" + bytes([0x3A]) + _varint(count * 2) + b"\x0a\x00" * count


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


HOSTILE: dict[str, Callable[[], bytes]] = {
    "half a million empty nodes": lambda: _many(1 << 19),
    "two graphs": lambda: b"\x08\x08" + b"\x3a\x00" * 2,
    "a node without an operation": lambda: b"\x08\x08\x3a\x02\x0a\x00",
    "a graph that is text": lambda: b"\x08\x08\x3a\x05hello",
    "initializers without anything": lambda: b"\x08\x08\x3a\x02\x2a\x00",
    "unpacked values without end": lambda: saved_bytes(b"\x38\x00" * 400_000),
    "a giant node": lambda: b"\x08\x08"
    + nested(0x3A, nested(0x0A, b"\x0a\x00" * 200_000 + b"\x22\x01A")),
}  # fmt: skip


def nested(tag: int, content: bytes) -> bytes:
    return bytes([tag]) + _varint(len(content)) + content


def saved_bytes(values: bytes) -> bytes:
    tensor = b"\x08\x04\x10\x07" + values + b"\x42\x01w"
    return b"\x08\x08" + nested(0x3A, nested(0x2A, tensor))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(HOSTILE[name]())
    with pytest.raises(FormatError):
        checkpoints.open(path)


def test_what_is_no_model_is_not_claimed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    generator = np.random.default_rng(0)
    for content in (
        b"\x08\x01\x12\x05hello",  # what a SavedModel begins with
        b"\x08\x07\x12\x07pytorch",  # no graph
        b"\x08\x00\x3a\x00",
        b"\n\x05hello\n\x05there",
        b"\x08\x07\x3a\x02\x0a\x00tail",
        *(b"\x08\x07" + generator.bytes(200) for _ in range(200)),
    ):
        path.write_bytes(content)
        assert not sniff(Sample(path))
    with pytest.raises(UnknownFormat):
        checkpoints.open(path)


def test_a_file_cut_off_says_so(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(random_values("float32", (300, 40)), "w")
    content = model_of([], [tensor]).SerializeToString()
    for cut in (30, 5000, len(content) - 200):
        path = tmp_path / "a.onnx"
        path.write_bytes(content[:cut])
        with pytest.raises(CorruptFile):
            checkpoints.open(path)


def test_listing_needs_neither_numpy_nor_onnx(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(random_values("float32", (30, 40)), "w")
    path = saved(tmp_path / "a.onnx", model_of([], [tensor]))
    code = (
        "import sys, regraft; print(len(regraft.open(sys.argv[1])), "
        "[m for m in ('numpy', 'onnx', 'google.protobuf', 'torch') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert found.stdout == "1 []\n", found.stderr
