"""Small networks and data that the tests of fine-tuning share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
# torchvision built for CUDA beside a CPU torch lacks operators at import; see tests/conftest.py.
SHIM = """
import torch
kept = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    kept.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
# What the trunk of `torch_net` is called, its BatchNorm's statistics among it.
TRUNK = ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var",
         "1.num_batches_tracked")  # fmt: skip


def samples(count: int = 40) -> Arrays:
    generator = np.random.default_rng(0)
    y = np.arange(count) % 2
    x = generator.normal(size=(count, 3)).astype(np.float32)
    x[:, 0] += 3 * y
    return x, y


def torch_net(seed: int = 0) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, Linear; every tensor has values of its own."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        for tensor in (*net.parameters(), net[1].running_mean):
            tensor.add_(torch.randn_like(tensor) * 0.1)
        net[1].running_var.add_(torch.rand(8))
    return net


def values(model: Any) -> dict[str, Any]:
    if isinstance(model, nn.Module):
        return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}
    return {"/".join(v.path.split("/")[-2:]): np.array(v.numpy()) for v in model.weights}


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Names of what is not the same bits."""
    return {name for name in before if before[name].tobytes() != after[name].tobytes()}
