"""Torch twins of Keras models, written as somebody does who knows only the Keras model."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class PreactBlock(nn.Module):
    """Version 2 of Keras' bottleneck: norms before, convolutions with biases at two places."""

    def __init__(self, before: int, width: int, stride: int, project: bool) -> None:
        super().__init__()
        self.preact = nn.BatchNorm2d(before, eps=1.001e-5)
        self.shortcut = nn.Conv2d(before, 4 * width, 1, stride) if project else None
        self.reduce = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps=1.001e-5)
        self.spatial = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps=1.001e-5)
        self.expand = nn.Conv2d(width, 4 * width, 1)
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.preact(x))
        if self.shortcut is not None:
            skip = self.shortcut(y)
        else:
            skip = F.max_pool2d(x, 1, self.stride) if self.stride > 1 else x
        y = F.relu(self.bn1(self.reduce(y)))
        return skip + self.expand(F.relu(self.bn2(self.spatial(y))))


class PreactResNet(nn.Module):
    """Keras puts the stride of a stage into its last block."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 2, 3)
        before, stages = 64, []
        for width, depth, stride in ((8, 2, 2), (16, 3, 1)):
            blocks = []
            for place in range(depth):
                last = stride if place == depth - 1 else 1
                blocks.append(PreactBlock(before, width, last, not place))
                before = 4 * width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.post = nn.BatchNorm2d(before, eps=1.001e-5)
        self.classifier = nn.Linear(before, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.pad(self.stem(x), (1, 1, 1, 1)), 3, 2)
        for stage in self.stages:
            x = stage(x)
        return self.classifier(F.relu(self.post(x)).mean((2, 3)))


class Signal(nn.Module):
    """Convolutions over time: plain, depthwise and pointwise, transposed, PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(4, 8, 5, padding=2)
        self.act = nn.PReLU(8)
        self.depthwise = nn.Conv1d(8, 8, 3, padding=1, groups=8, bias=False)
        self.pointwise = nn.Conv1d(8, 12, 1)
        self.norm = nn.BatchNorm1d(12, eps=1e-3)
        self.up = nn.ConvTranspose1d(12, 6, 4, 2, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.enter(x.transpose(1, 2)))
        x = F.relu(self.norm(self.pointwise(self.depthwise(x))))
        return self.head(F.relu(self.up(x)).transpose(1, 2))


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv3d(2, 8, 3, padding=1)
        self.groups = nn.GroupNorm(4, 8, eps=1e-3)
        self.up = nn.ConvTranspose3d(8, 4, 2, 2)
        self.grouped = nn.Conv3d(4, 6, 1, groups=2)
        self.dense = nn.Linear(6 * 4 * 4 * 4, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.groups(self.down(x)))
        x = F.relu(self.grouped(self.up(F.max_pool3d(x, 2))))
        return self.dense(x.flatten(1))


class TwoTowers(nn.Module):
    """Two branches of equal layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(*self._branch())
        self.right = nn.Sequential(*self._branch())
        self.merge = nn.Linear(16, 4)

    def _branch(self) -> list[nn.Module]:
        return [
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, eps=1e-3), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, eps=1e-3), nn.ReLU(),
        ]  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.left(x).mean((2, 3)), self.right(x).mean((2, 3))
        return self.merge(torch.cat([left, 2 * right], 1))


class Tagger(nn.Module):
    """An embedding, a stacked bidirectional LSTM, a dense layer at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 12)
        self.lstm = nn.LSTM(12, 8, 2, batch_first=True, bidirectional=True)
        self.tags = nn.Linear(16, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.tags(self.lstm(self.embed(ids))[0])


class Tokens(nn.Module):
    """PyTorch's own encoder layers over embedded ids with learnt positions."""

    def __init__(self, layers: int = 2, vocabulary: int = 40, classes: int = 5) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, 16)
        self.places = nn.Embedding(9, 16)
        layer = nn.TransformerEncoderLayer(
            16, 4, 32, 0.0, batch_first=True, norm_first=True, layer_norm_eps=1e-3
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.final = nn.LayerNorm(16, eps=1e-3)
        self.head = nn.Linear(16, classes)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.places.weight[: ids.shape[1]]
        return self.head(self.final(self.encoder(x)).mean(1))


class Grouped(nn.Module):
    """Grouped queries: four heads of six, two of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk = nn.Linear(16, 24), nn.Linear(16, 12)
        self.wv, self.wo = nn.Linear(16, 12), nn.Linear(24, 16)
        self.ln = nn.LayerNorm(16, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (w(x).unflatten(-1, (-1, 6)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.ln(x + self.wo(y))


class Small(nn.Module):
    """Two convolutions with norms, flattened, two dense layers."""

    def __init__(self, channels: int = 3, classes: int = 10, eps: float = 1e-3) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8, eps=eps)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, eps=eps)
        self.fc1, self.fc2 = nn.Linear(8 * 4 * 4, 24), nn.Linear(24, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))
