"""Small torch models around one kind of layer each, as counterparts of Keras and Flax models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F


class Recurrent(nn.Module):
    """Two recurrent layers and a head on the last step (both ends' last, where bidirectional)."""

    def __init__(self, kind: str, both: bool = False, layers: int = 2) -> None:
        super().__init__()
        cell = getattr(nn, kind)
        self.rnn = cell(6, 8, layers, batch_first=True, bidirectional=both)
        self.fc = nn.Linear(16 if both else 8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, state = self.rnn(x)
        last = state[0] if isinstance(state, tuple) else state
        return self.fc(torch.cat((last[-2], last[-1]), -1) if self.rnn.bidirectional else y[:, -1])


class Separable(nn.Module):
    """Depthwise and pointwise convolutions, a multiplier of two, a transposed one, PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False)
        self.act1 = nn.PReLU(6)
        self.sep_dw = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.sep_pw = nn.Conv2d(6, 10, 1)
        self.norm = nn.BatchNorm2d(10, eps=1e-3)
        self.act2 = nn.PReLU(10)
        self.up = nn.ConvTranspose2d(10, 4, 2, 2)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.depthwise(x))
        x = self.act2(self.norm(self.sep_pw(self.sep_dw(x))))
        return self.out(F.relu(self.up(x)))


class Audio(nn.Module):
    """Convolutions over time."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            [nn.Conv1d(4, 8, 5, 2), nn.Conv1d(8, 12, 3), nn.Conv1d(12, 12, 3, groups=3)]
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width, eps=1e-3) for width in (8, 12, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in zip(self.encoder, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return self.head(x.mean(-1))


class Volume(nn.Module):
    """Convolutions over volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv3d(1, 4, 3, padding=1)
        self.c2 = nn.Conv3d(4, 8, (1, 3, 3), padding=(0, 1, 1))
        self.c3 = nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.relu(self.c3(F.relu(self.c2(F.relu(self.c1(x)))))).mean((2, 3, 4)))


class Flattened(nn.Module):
    """A convolutional map flattened channels first; `width` is what one channel leaves."""

    def __init__(self, norm: Callable[[int], nn.Module] | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 4 * 4, 40)
        self.fc2 = nn.Linear(40, 24)
        self.fc3 = nn.Linear(24, 10)
        self.norm = norm(24) if norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc3(self.norm(F.relu(self.fc2(x))))


class Encoder(nn.Module):
    """PyTorch's own transformer layers, with `in_proj_weight`."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


class SplitEncoder(nn.Module):
    """The same with separate projections, after-norm and ReLU."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q = nn.Linear(16, 16)
            self.to_k = nn.Linear(16, 16)
            self.to_v = nn.Linear(16, 16)
            self.to_out = nn.Linear(16, 16)
            self.norm_a = nn.LayerNorm(16)
            self.wide = nn.Linear(16, 32)
            self.narrow = nn.Linear(32, 16)
            self.norm_b = nn.LayerNorm(16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (
                f(x).unflatten(-1, (4, 4)).transpose(1, 2)
                for f in (self.to_q, self.to_k, self.to_v)
            )
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = self.norm_a(x + self.to_out(y))
            return self.norm_b(x + self.narrow(F.relu(self.wide(x))))

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.proj_in = nn.Linear(6, 16)
        self.blocks = nn.Sequential(*(self.Block() for _ in range(layers)))
        self.classify = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.blocks(self.proj_in(x)).mean(1))


class UNet(nn.Module):
    """Concatenations and transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = self._double(3, 8)
        self.down2 = self._double(8, 16)
        self.up1 = nn.ConvTranspose2d(16, 8, 2, 2)
        self.conv_up1 = self._double(16, 8)
        self.out = nn.Conv2d(8, 2, 1)

    @staticmethod
    def _double(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after, eps=1e-3), nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after, eps=1e-3), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        joined = torch.cat((first, self.up1(second)), 1)
        return self.out(self.conv_up1(joined))
