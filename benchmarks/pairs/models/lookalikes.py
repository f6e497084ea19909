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


class FusedOrder(nn.Module):
    """Attention from one matrix, its parts in `order`; `per_head` interleaves them by head."""

    def __init__(self, order: str = "qkv", per_head: bool = False, name: str = "qkv") -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(16, 48), "proj": nn.Linear(16, 16)}) for _ in range(2)
        )
        self.head = nn.Linear(16, 5)
        self.order, self.per_head, self.fused = order, per_head, name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            y = layer[self.fused](x)
            if self.per_head:
                apart = y.unflatten(-1, (4, 3, 4)).transpose(1, 2).unbind(3)
            else:
                apart = y.unflatten(-1, (3, 4, 4)).transpose(1, 3).unbind(2)
            q, k, v = (apart[self.order.index(letter)] for letter in "qkv")
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + layer["proj"](y)
        return self.head(x.mean(1))


class SplitOrder(nn.Module):
    """The same with three matrices; `key_bias` says whether keys have a bias."""

    def __init__(self, key_bias: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "q_proj": nn.Linear(16, 16),
                    "k_proj": nn.Linear(16, 16, bias=key_bias),
                    "v_proj": nn.Linear(16, 16),
                    "out_proj": nn.Linear(16, 16),
                }
            )
            for _ in range(2)
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            q, k, v = (
                layer[f"{n}_proj"](x).unflatten(-1, (4, 4)).transpose(1, 2) for n in ("q", "k", "v")
            )
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + layer["out_proj"](y)
        return self.head(x.mean(1))


class Gated(nn.Module):
    """Gated feed-forward blocks; `fused` joins gate and up, in `order`."""

    def __init__(
        self, names: tuple[str, str, str] = ("gate", "up", "down"), fused: str = ""
    ) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 16)
        blocks: list[nn.Module] = []
        for _ in range(2):
            parts: dict[str, nn.Module] = {"norm": nn.LayerNorm(16)}
            if fused:
                parts["gate_up"] = nn.Linear(16, 48, bias=False)
            else:
                parts |= {name: nn.Linear(16, 24, bias=False) for name in names[:2]}
            parts[names[2]] = nn.Linear(24, 16, bias=False)
            blocks.append(nn.ModuleDict(parts))
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(16, 5)
        self.names, self.fused = names, fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            y = block["norm"](x)
            if self.fused:
                parts = block["gate_up"](y).chunk(2, -1)
                gate, up = (parts[self.fused.split("+").index(w)] for w in ("gate", "up"))
            else:
                gate, up = (block[name](y) for name in self.names[:2])
            x = x + block[self.names[2]](F.silu(gate) * up)
        return self.head(x)


class ExpertList(nn.Module):
    """A gated mixture of experts as a list of modules."""

    def __init__(self, merged: bool = False, experts: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 16)
        self.router = nn.Linear(16, experts, bias=False)
        self.merged = merged
        if merged:
            self.w_in = nn.Parameter(torch.zeros(experts, 16, 24))
            self.w_out = nn.Parameter(torch.zeros(experts, 24, 16))
        else:
            self.experts = nn.ModuleList(
                nn.ModuleDict(
                    {"fc1": nn.Linear(16, 24, bias=False), "fc2": nn.Linear(24, 16, bias=False)}
                )
                for _ in range(experts)
            )
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        weights = self.router(x).softmax(-1)
        if self.merged:
            hidden = F.gelu(torch.einsum("bi,eih->beh", x, self.w_in))
            each = torch.einsum("beh,eho->beo", hidden, self.w_out)
        else:
            each = torch.stack([e["fc2"](F.gelu(e["fc1"](x))) for e in self.experts], 1)
        return self.head(x + (weights[..., None] * each).sum(1))
