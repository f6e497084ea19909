"""What graph files brought into matching: owners, kernels that lie as no framework's, vectors that
are ready to broadcast, and flatten orders that graphs show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg
from regraft.matching import conventions_of, modules_of
from regraft.matching.dataflow import fingerprints
from regraft.tensors import Catalogue, FlowNode, TensorInfo


def planned(source: list[TensorInfo], target: nn.Module, framework: str) -> rg.Plan:
    return rg.plan(Catalogue(source, framework=framework, label="source"), target)


def made(plan: rg.Plan, name: str, value: np.ndarray) -> np.ndarray:
    return rg.ops.run(plan.grafts[name].ops, [value])


def test_an_owner_goes_before_the_name() -> None:
    tensors = [
        TensorInfo("t.1", (4, 3), "float32", "Gemm", "kernel", owner="stem.fc"),
        TensorInfo("t.2", (4,), "float32", "Gemm", "bias", owner="stem.fc"),
        TensorInfo("stem.norm.weight", (4,), "float32"),
    ]
    modules = modules_of(Catalogue(tensors, framework="onnx"), "onnx")
    assert [(m.path, sorted(m.leaves)) for m in modules] == [
        (("stem", "fc"), ["bias", "kernel"]),
        (("stem", "norm"), ["scale"]),
    ]


@pytest.mark.parametrize(("framework", "module"), [("onnx", "MatMul"), ("torch", "Conv1D")])
def test_dense_kernels_that_lie_the_other_way(framework: str, module: str) -> None:
    source = [TensorInfo("h.fc.weight", (3, 3), "float32", module)]
    plan = planned(source, nn.Sequential(nn.Linear(3, 3, bias=False)), framework)
    value = np.arange(9, dtype=np.float32).reshape(3, 3)
    np.testing.assert_array_equal(made(plan, "0.weight", value), value.T)


@pytest.mark.parametrize(
    ("shape", "target"),
    [
        ((3, 2, 4, 1), nn.Conv2d(4, 4, (3, 2), groups=4, bias=False)),
        ((3, 2, 4, 2), nn.Conv2d(4, 8, (3, 2), groups=4, bias=False)),
        ((3, 2, 4, 1), nn.Conv2d(4, 1, (3, 2), bias=False)),
        ((3, 2, 1, 4), nn.Conv2d(1, 4, (3, 2), bias=False)),
    ],
)
def test_kernels_of_layers_of_unknown_class(shape: tuple[int, ...], target: nn.Module) -> None:
    """Depthwise or plain: the shape that it must come to tells."""
    plan = planned([TensorInfo("x/kernel", shape, "float32")], nn.Sequential(target), "keras")
    value = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = value.transpose(3, 2, 0, 1)
    if target.groups > 1:  # pyright: ignore[reportAttributeAccessIssue]
        expected = value.transpose(2, 3, 0, 1).reshape(-1, 1, 3, 2)
    np.testing.assert_array_equal(made(plan, "0.weight", value), expected)


def test_vectors_that_are_ready_to_broadcast() -> None:
    source = [
        TensorInfo("n.gamma", (1, 4, 1), "float32", "Mul", "gamma", owner="n"),
        TensorInfo("n.beta", (1, 4, 1), "float32", "Mul", "bias", owner="n"),
    ]
    plan = planned(source, nn.Sequential(nn.LayerNorm(4)), "onnx")
    assert plan.complete
    value = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(made(plan, "0.weight", value.reshape(1, 4, 1)), value)


def test_what_meets_itself_is_no_merge() -> None:
    """One graph writes x · sigmoid(x), the other has it in one step."""
    infos = [TensorInfo(f"{n}.weight", (2, 2), "float32") for n in ("a", "b")]
    catalogue = Catalogue(infos, framework="torch")
    modules = modules_of(catalogue, conventions_of(catalogue))
    classes = {id(module): 0 for module in modules}
    plain = (FlowNode("a", "", ()), FlowNode("b", "", (0,)))
    apart = (FlowNode("a", "", ()), FlowNode("", "mul", (0,)), FlowNode("b", "", (1,)))
    assert fingerprints(plain, modules, classes) == fingerprints(apart, modules, classes)


class Flat(nn.Module):
    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last = last
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4 * 5 * 6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.head((x.permute(0, 2, 3, 1) if self.last else x).flatten(1))


def test_one_framework_may_flatten_in_two_orders() -> None:
    torch.manual_seed(0)
    source, target = Flat(False).eval(), Flat(True).eval()
    rg.load(source, target)
    x = torch.randn(2, 3, 7, 8)
    with torch.no_grad():
        torch.testing.assert_close(target(x), source(x))
    again = Flat(True)
    rg.load(target, again)
    assert torch.equal(again.head.weight, target.head.weight)
