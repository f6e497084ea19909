"""Networks with equal tensors and other meanings."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

ACTIVATIONS = {
    "relu": F.relu, "gelu": F.gelu, "tanh gelu": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}  # fmt: skip


class Block(nn.Module):
    """A transformer block; `prenorm`, `heads` and `activation` leave no trace in its tensors."""

    def __init__(self, prenorm: bool, heads: int, activation: str, eps: float) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.proj = nn.Linear(16, 16)
        self.norm1 = nn.LayerNorm(16, eps)
        self.norm2 = nn.LayerNorm(16, eps)
        self.fc1 = nn.Linear(16, 32)
        self.fc2 = nn.Linear(32, 16)
        self.prenorm, self.heads, self.activation = prenorm, heads, activation

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        return self.proj(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.prenorm:
            x = x + self.attend(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attend(x))
        return self.norm2(x + self.mlp(x))


class Encoder(nn.Module):
    def __init__(
        self, prenorm: bool = True, heads: int = 4, activation: str = "gelu", eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.blocks = nn.Sequential(*(Block(prenorm, heads, activation, eps) for _ in range(3)))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embed(x)).mean(1))


class ConvStack(nn.Module):
    """Convolutions and norms; `skips`, `eps`, `stride_padding` leave no trace in its tensors."""

    def __init__(
        self, skips: bool = False, eps: float = 1e-5, padding: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, bias=False)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8, eps) for _ in range(4))
        self.fc = nn.Linear(8, 5)
        self.skips, self.padding = skips, padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before, after = self.padding
        x = self.stem(F.pad(x, (before, after, before, after)))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = F.relu(norm(conv(x)))
            x = x + y if self.skips else y
        return self.fc(x.mean((2, 3)))
