"""Transformers written by hand that are no copies of a known project."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.pairs.models.decoders import (
    HEAD,
    HEADS,
    HIDDEN,
    LAYERS,
    POSITIONS,
    VOCABULARY,
    WIDTH,
    attend,
    heads,
)


class MultiQueryAttention(nn.Module):
    """Many query heads, one key and one value."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, WIDTH)
        self.k = nn.Linear(WIDTH, HEAD)
        self.v = nn.Linear(WIDTH, HEAD)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(attend(heads(self.q(x), HEADS), heads(self.k(x), 1), heads(self.v(x), 1)))


class MultiQueryGPT(nn.Module):
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1 = nn.LayerNorm(WIDTH)
            self.attention = MultiQueryAttention()
            self.norm2 = nn.LayerNorm(WIDTH)
            self.ff = nn.Sequential(
                nn.Linear(WIDTH, HIDDEN), nn.GELU(approximate="tanh"), nn.Linear(HIDDEN, WIDTH)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.attention(self.norm1(x))
            return x + self.ff(self.norm2(x))

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Embedding(POSITIONS, WIDTH)
        self.blocks = nn.Sequential(*(self.Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.token.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.token(ids) + self.position(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(x)))
