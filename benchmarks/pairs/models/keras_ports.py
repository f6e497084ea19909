"""Ports of Keras models to PyTorch, as people write them to use Keras' weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Shortcut(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 1, stride)
        self.bn = nn.BatchNorm2d(after, eps=1.001e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x))


class Bottleneck(nn.Module):
    """Version 1: the stride lies in the first convolution, and every convolution has a bias."""

    def __init__(self, before: int, width: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 1, stride)
        self.bn1 = nn.BatchNorm2d(width, eps=1.001e-5)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width, eps=1.001e-5)
        self.conv3 = nn.Conv2d(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width, eps=1.001e-5)
        self.shortcut = Shortcut(before, 4 * width, stride) if project else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (self.shortcut(x) if self.shortcut is not None else x))


class KerasResNet(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (8, 16), depths: tuple[int, ...] = (2, 3)) -> None:
        super().__init__()
        self.stem_conv = nn.Conv2d(3, 64, 7, 2, 3)
        self.stem_bn = nn.BatchNorm2d(64, eps=1.001e-5)
        before = 64
        self.layers = nn.ModuleList()
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = nn.Sequential()
            for place in range(depth):
                stride = 2 if index and not place else 1
                blocks.append(Bottleneck(before, width, stride, not place))
                before = 4 * width
            self.layers.append(blocks)
        self.fc = nn.Linear(before, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem_bn(self.stem_conv(x)))
        x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)
        for stage in self.layers:
            x = stage(x)
        return self.fc(x.mean((2, 3)))
