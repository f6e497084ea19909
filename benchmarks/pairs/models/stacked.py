"""Equal blocks whose weights are kept in one tensor over all blocks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Blocks(nn.Module):
    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.norm_scale = nn.Parameter(torch.ones(layers, width))
        self.norm_shift = nn.Parameter(torch.zeros(layers, width))
        self.w_in = nn.Parameter(torch.zeros(layers, hidden, width))
        self.b_in = nn.Parameter(torch.zeros(layers, hidden))
        self.w_out = nn.Parameter(torch.zeros(layers, width, hidden))
        self.b_out = nn.Parameter(torch.zeros(layers, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(len(self.w_in)):
            y = F.layer_norm(x, x.shape[-1:], self.norm_scale[i], self.norm_shift[i])
            y = F.gelu(F.linear(y, self.w_in[i], self.b_in[i]))
            x = x + F.linear(y, self.w_out[i], self.b_out[i])
        return x


class Stacked(nn.Module):
    def __init__(self, inputs: int, width: int, hidden: int, layers: int, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.blocks = Blocks(width, hidden, layers)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)))
