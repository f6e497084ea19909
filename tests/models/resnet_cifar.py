"""A CIFAR ResNet 6n+2 (He et al., 2015), with the parameter-free shortcuts of its option A."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Unit(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.stride, self.missing = stride, width - width_in

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        if self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
            x = functional.pad(x, (0, 0, 0, 0, self.missing // 2, self.missing // 2))
        return functional.relu(x + y)


class CifarResNet(nn.Module):
    """`depth` = 6n + 2."""

    def __init__(self, depth: int = 20, classes: int = 10) -> None:
        super().__init__()
        count = (depth - 2) // 6
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
        stages: list[nn.Module] = []
        width = 16
        for number in range(3):
            units: list[nn.Module] = []
            for unit in range(count):
                wider = 16 * 2**number
                units.append(Unit(width, wider, 2 if number and unit == 0 else 1))
                width = wider
            stages.append(nn.Sequential(*units))
        self.stages = nn.Sequential(*stages)
        self.classify = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stages(functional.relu(self.stem(x)))
        return self.classify(x.mean((2, 3)))
