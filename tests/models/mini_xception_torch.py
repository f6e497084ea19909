"""mini-XCEPTION (Arriaga et al., 2017) in PyTorch, with TensorFlow's "same" padding."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

_EPS = 1e-3  # Keras' BatchNormalization


class Separable(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width_in, width_in, 3, padding=1, groups=width_in, bias=False)
        self.mix = nn.Conv2d(width_in, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width, eps=_EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.mix(self.spatial(x)))


class Stage(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.skip = nn.Conv2d(width_in, width, 1, 2, bias=False)
        self.skip_norm = nn.BatchNorm2d(width, eps=_EPS)
        self.one = Separable(width_in, width)
        self.two = Separable(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.two(functional.relu(self.one(x)))
        return _pool_same(y) + self.skip_norm(self.skip(x))


def _pool_same(x: torch.Tensor) -> torch.Tensor:
    """3 × 3 with stride 2; what is missing is added below and to the right first."""
    pads: list[int] = []
    for size in (x.shape[3], x.shape[2]):
        missing = max((-(-size // 2) - 1) * 2 + 3 - size, 0)
        pads += [missing // 2, missing - missing // 2]
    return functional.max_pool2d(functional.pad(x, pads, value=float("-inf")), 3, 2)


class MiniXception(nn.Module):
    """64 × 64 grey faces; `classes` scores."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.entry = nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False),
            nn.BatchNorm2d(8, eps=_EPS),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, bias=False),
            nn.BatchNorm2d(8, eps=_EPS),
            nn.ReLU(),
        )
        widths = (8, 16, 32, 64, 128)
        self.body = nn.Sequential(*(Stage(a, b) for a, b in pairwise(widths)))
        self.score = nn.Conv2d(128, classes, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.score(self.body(self.entry(x))).mean((2, 3)).softmax(1)
