"""Small networks of PyTorch whose conventions are settings, in modules or in functional code."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, dim: int = 24, **o: Any) -> None:
        super().__init__()
        self.o = o
        self.heads = o.get("heads", 4)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        o = self.o
        b, n, c = x.shape
        h = self.heads
        if o.get("by_head"):
            q, k, v = self.qkv(x).view(b, n, h, 3, c // h).permute(3, 0, 2, 1, 4)
        else:
            q, k, v = self.qkv(x).view(b, n, 3, h, c // h).permute(2, 0, 3, 1, 4)
        if "order" in o:
            q, k, v = ((q, k, v)[i] for i in o["order"])
        if "rope" in o:
            q, k = (rotate(t, o["rope"], o.get("pairs", False), o.get("start", 0)) for t in (q, k))
        if o.get("sdpa"):
            y = F.scaled_dot_product_attention(
                q, k, v, is_causal=o.get("causal", False), scale=o.get("scale")
            )
        else:
            s = q @ k.transpose(-2, -1) * o.get("scale", (c // h) ** -0.5)
            if o.get("causal"):
                mask = torch.ones(n, n, dtype=torch.bool).triu(o.get("diagonal", 1))
                s = s.masked_fill(mask, float("-inf"))
            if o.get("half"):
                s = s.half().float()
            y = s.softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


def rotate(x: Tensor, base: float, pairs: bool, start: int) -> Tensor:
    n, d = x.shape[-2:]
    f = 1.0 / (base ** (torch.arange(0, d, 2).float() / d))
    a = torch.outer(torch.arange(start, n + start).float(), f)
    cos, sin = a.cos(), a.sin()
    if pairs:
        x1, x2 = x[..., 0::2], x[..., 1::2]
        return torch.stack((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1).flatten(-2)
    x1, x2 = x.chunk(2, -1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1)


class Separate(nn.Module):
    """Attention of three projections."""

    def __init__(self, dim: int = 24, **o: Any) -> None:
        super().__init__()
        self.o, self.num_heads, self.head_dim = o, o.get("heads", 4), dim // o.get("heads", 4)
        self.q_proj, self.k_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.v_proj, self.o_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.scale = o.get("scale", 1 / math.sqrt(self.head_dim))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            p(x).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.o.get("swapped"):
            q, k = k, q
        if "rope" in self.o:
            q, k = (rotate(t, self.o["rope"], self.o.get("pairs", False), 0) for t in (q, k))
        s = (q @ k.transpose(-2, -1)) * self.scale
        if self.o.get("causal"):
            s = s + torch.full((n, n), float("-inf")).triu(1)
        y = torch.softmax(s, -1) @ v
        return self.o_proj(y.transpose(1, 2).flatten(2))


ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
    "none": lambda x: x,
}


class Mlp(nn.Module):
    def __init__(self, dim: int = 24, **o: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.act = o.get("act", "gelu")
        if isinstance(self.act, nn.Module):
            self.module = self.act

    def forward(self, x: Tensor) -> Tensor:
        act = ACTIVATIONS[self.act] if isinstance(self.act, str) else self.module
        return self.fc2(act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int = 24, **o: Any) -> None:
        super().__init__()
        self.place, self.gammas = o.get("place", "pre"), o.get("gamma", False)
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=o.get("eps", 1e-5)) for _ in range(2))
        self.attn = (Separate if o.get("separate") else Attention)(dim, **o)
        self.mlp = Mlp(dim, **o)
        if self.gammas:
            self.gamma = nn.Parameter(torch.rand(dim) + 0.2)

    def forward(self, x: Tensor) -> Tensor:
        for norm, branch in ((self.norm1, self.attn), (self.norm2, self.mlp)):
            if self.place == "pre":
                y = branch(norm(x))
                x = x + (y * self.gamma if self.gammas and branch is self.mlp else y)
            elif self.place == "post":
                x = norm(x + branch(x))
            else:
                x = x + norm(branch(x))
        return x


class Former(nn.Module):
    """Tokens in, logits out."""

    def __init__(self, depth: int = 3, dim: int = 24, at: int | None = None, **o: Any) -> None:
        super().__init__()
        plain = o.pop("plain", {})
        self.embed = nn.Embedding(40, dim)
        self.times = o.get("times", 1.0)
        self.blocks = nn.ModuleList(
            Block(dim, **(plain | o if at in (None, i) else plain)) for i in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 40, bias=False)
        if o.get("tied"):
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) * self.times
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Unit(nn.Module):
    def __init__(self, i: int, o: int, stride: int = 1, **k: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(i, o, 3, stride, k.get("padding", 1), bias=False,
                              padding_mode=k.get("mode", "zeros"))  # fmt: skip
        self.bn = nn.BatchNorm2d(o, eps=k.get("eps", 1e-5))
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        k = self.k
        if k.get("same"):
            y = F.conv2d(F.pad(x, (0, 1, 0, 1)), self.conv.weight, stride=self.conv.stride)
        else:
            y = self.conv(x)
        if k.get("functional_bn"):
            b = self.bn
            y = F.batch_norm(y, b.running_mean.clone(), b.running_var.clone(), b.weight, b.bias,
                             training=k.get("train", False), eps=b.eps)  # fmt: skip
            return F.relu(y)
        if k.get("after"):
            return self.bn(F.relu(y))
        return k.get("act", F.relu)(self.bn(y))


class Cnn(nn.Module):
    """Images in, logits out."""

    def __init__(self, at: int | None = None, **o: Any) -> None:
        super().__init__()
        self.o = o
        unit = lambda i, *a: Unit(*a, **(o if at in (None, i) else {}))  # noqa: E731
        self.stem = unit(0, 3, 8, 2)
        self.pool = o.get("pool") or nn.MaxPool2d(3, 2, 1)
        self.down = unit(1, 8, 12, 2)
        self.mid = unit(2, 12, 12, 1)
        self.fc1 = nn.Linear(12 * 4 * 6, 16)
        self.fc2 = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        o = self.o
        x = o["prepare"](x) if "prepare" in o else x
        x = self.pool(self.stem(x))
        x = self.down(x)
        if "resize" in o:
            x = F.interpolate(x, size=(7, 9), **o["resize"])
            x = F.adaptive_avg_pool2d(x, (4, 6))
        x = self.mid(x)
        if "gap" in o:
            x = o["gap"](x).repeat_interleave(24, 1)
        elif "flatten" in o:
            x = x.permute(o["flatten"]).flatten(1)
        else:
            x = x.flatten(1)
        x = F.dropout(F.relu(self.fc1(x)), 0.2, o.get("drop", False))
        return self.fc2(x)
