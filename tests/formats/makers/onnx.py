from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper

from formats.samples import Values, arrays

SUFFIX = ".onnx"


def make(path: Path) -> Values:
    """A convolution and a dense layer, and tensors that nothing uses; half in typed fields."""
    values = arrays()
    stored = [numpy_helper.from_array(value, name) for name, value in values.items()]
    for index, name in enumerate(values):
        if index % 2:
            kind, value = stored[index].data_type, values[name]
            stored[index] = helper.make_tensor(name, kind, value.shape, value.ravel().tolist())
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight", "stem.bias"], ["map"], "/stem/Conv"),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"], "/Pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "/Flatten"),
        helper.make_node("Cast", ["flat"], ["wide"], "/Cast", to=TensorProto.DOUBLE),
        helper.make_node("Gemm", ["wide", "head.weight"], ["y"], "/head/Gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["n", 5])],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return values
