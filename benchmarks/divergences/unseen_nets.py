"""Networks of PyTorch as they are commonly written: nanoGPT, LLaMA, ResNet, U-Net, ConvNeXt, ViT,
with the slips of a port as settings."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NewGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
        return 0.5 * x * (1.0 + torch.tanh(inner))


class CausalSelfAttention(nn.Module):
    def __init__(self, d: int, h: int, **o: Any) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.n_head, self.n_embd, self.o = h, d, o
        self.register_buffer("bias", torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64), False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        o = self.o
        if o.get("order") == "kqv":
            k, q, v = self.c_attn(x).split(self.n_embd, dim=2)
        else:
            q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        if o.get("flash"):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=o.get("causal", True))
        else:
            att = q @ k.transpose(-2, -1)
            if o.get("scaled", True):
                att = att * (1.0 / math.sqrt(k.size(-1)))
            if o.get("causal", True):
                att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
            y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class GptBlock(nn.Module):
    def __init__(self, d: int, h: int, **o: Any) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = CausalSelfAttention(d, h, **o)
        act = NewGELU() if o.get("act") == "new" else nn.GELU()
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), act, nn.Linear(4 * d, d))
        self.factor = o.get("factor", 1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.factor * self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGpt(nn.Module):
    def __init__(self, d: int = 32, h: int = 4, v: int = 61, tied: bool = True, **o: Any) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(v, d), nn.Embedding(64, d)
        self.h = nn.ModuleList([GptBlock(d, h, **o) for _ in range(3)])
        self.ln_f = nn.LayerNorm(d)
        self.lm_head = nn.Linear(d, v, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, idx: Tensor) -> Tensor:
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def precompute_freqs_cis(dim: int, end: int, theta: float) -> Tensor:
    freqs = 1.0 / (theta ** (torch.arange(0, dim, 2)[: (dim // 2)].float() / dim))
    freqs = torch.outer(torch.arange(end).float(), freqs)
    return torch.polar(torch.ones_like(freqs), freqs)


def complex_rope(x: Tensor, cis: Tensor) -> Tensor:
    z = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(z * cis[None, :, None]).flatten(3)


def rotate_half(x: Tensor) -> Tensor:
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def half_rope(x: Tensor, cis: Tensor) -> Tensor:
    cos, sin = (torch.cat((t, t), -1)[None, :, None] for t in (cis.real, cis.imag))
    return x * cos + rotate_half(x) * sin


def pair_rope(x: Tensor, cis: Tensor) -> Tensor:
    cos, sin = cis.real[None, :, None], cis.imag[None, :, None]
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


ROPES = {"complex": complex_rope, "half": half_rope, "pair": pair_rope}


class LlamaAttention(nn.Module):
    def __init__(self, d: int, h: int, kv: int, **o: Any) -> None:
        super().__init__()
        self.h, self.kv, self.hd, self.o = h, kv, d // h, o
        self.wq, self.wo = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.wk = nn.Linear(d, kv * self.hd, bias=False)
        self.wv = nn.Linear(d, kv * self.hd, bias=False)

    def forward(self, x: Tensor, cis: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.wq(x).view(b, t, self.h, self.hd)
        k = self.wk(x).view(b, t, self.kv, self.hd)
        v = self.wv(x).view(b, t, self.kv, self.hd)
        rope = ROPES[self.o.get("rope", "complex")]
        q, k = rope(q, cis), rope(k, cis)
        n = self.h // self.kv
        if self.o.get("tiled"):
            k, v = k.repeat(1, 1, n, 1), v.repeat(1, 1, n, 1)
        else:
            k, v = k.repeat_interleave(n, 2), v.repeat_interleave(n, 2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if self.o.get("half"):
            q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
        scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(self.hd)
        if self.o.get("causal", True):
            scores = scores + torch.full((t, t), float("-inf")).triu(1).to(scores.dtype)
        y = torch.matmul(F.softmax(scores.float(), dim=-1).type_as(q), v).float()
        return self.wo(y.transpose(1, 2).reshape(b, t, -1))


class FeedForward(nn.Module):
    def __init__(self, d: int, act: Any = F.silu) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(d, 2 * d, bias=False), nn.Linear(d, 2 * d, bias=False)
        self.w2, self.act = nn.Linear(2 * d, d, bias=False), act

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.act(self.w1(x)) * self.w3(x))


class LlamaBlock(nn.Module):
    def __init__(self, d: int, **o: Any) -> None:
        super().__init__()
        eps = o.get("eps", 1e-5)
        self.attention = LlamaAttention(d, 4, 2, **o)
        self.feed_forward = FeedForward(d, o.get("act", F.silu))
        self.attention_norm, self.ffn_norm = RMSNorm(d, eps), RMSNorm(d, eps)
        self.post = o.get("post", False)

    def forward(self, x: Tensor, cis: Tensor) -> Tensor:
        if self.post:
            h = x + self.attention_norm(self.attention(x, cis))
            return h + self.ffn_norm(self.feed_forward(h))
        h = x + self.attention(self.attention_norm(x), cis)
        return h + self.feed_forward(self.ffn_norm(h))


class LlamaMini(nn.Module):
    def __init__(self, d: int = 32, v: int = 61, theta: float = 1e4, **o: Any) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(v, d)
        self.layers = nn.ModuleList([LlamaBlock(d, **o) for _ in range(2)])
        self.norm, self.output = RMSNorm(d, o.get("eps", 1e-5)), nn.Linear(d, v, bias=False)
        self.cis, self.scale = precompute_freqs_cis(d // 4, 64, theta), o.get("times")

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tok_embeddings(tokens)
        if self.scale:
            h = h * torch.tensor(self.scale, dtype=h.dtype)
        for layer in self.layers:
            h = layer(h, self.cis[: tokens.shape[1]])
        return self.output(self.norm(h)).float()


class BasicBlock(nn.Module):
    def __init__(self, i: int, o: int, stride: int = 1, **k: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        eps = k.get("eps", 1e-5)
        self.bn1, self.bn2 = nn.BatchNorm2d(o, eps=eps), nn.BatchNorm2d(o, eps=eps)
        self.relu, self.k = nn.ReLU(inplace=True), k
        self.downsample = None
        if stride > 1 or i != o:
            conv = nn.Conv2d(i, o, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(o, eps=eps))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        if self.k.get("tf"):
            out = F.conv2d(F.pad(x, (0, 1, 0, 1)), self.conv1.weight, stride=2)
        else:
            out = self.conv1(x)
        out = self.bn1(self.relu(out)) if self.k.get("swap") else self.relu(self.bn1(out))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return out if self.k.get("bare") else self.relu(out)


class ResNetMini(nn.Module):
    def __init__(self, at: int | None = None, **k: Any) -> None:
        super().__init__()
        unit = lambda i, *a: BasicBlock(*a, **(k if at in (None, i) else {}))  # noqa: E731
        self.conv1 = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(8, eps=k.get("eps", 1e-5))
        self.layer1 = nn.Sequential(unit(0, 8, 8), unit(1, 8, 8))
        self.layer2 = nn.Sequential(unit(2, 8, 16, 2), unit(3, 16, 16))
        self.fc, self.k = nn.Linear(16, 7), k

    def forward(self, x: Tensor) -> Tensor:
        if "prep" in self.k:
            x = self.k["prep"](x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.k.get("pool", lambda t: F.max_pool2d(t, 3, stride=2, padding=1))(x)
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class DoubleConv(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(inplace=True),
            nn.Conv2d(o, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class Up(nn.Module):
    def __init__(self, i: int, o: int, **k: Any) -> None:
        super().__init__()
        self.up, self.conv = nn.Upsample(scale_factor=2, **k), DoubleConv(i, o)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return self.conv(torch.cat([x2, self.up(x1)], dim=1))


class UNet(nn.Module):
    def __init__(self, **k: Any) -> None:
        super().__init__()
        k = k or {"mode": "bilinear", "align_corners": True}
        self.inc, self.down1, self.down2 = DoubleConv(3, 6), DoubleConv(6, 12), DoubleConv(12, 12)
        self.up1, self.up2, self.outc = Up(24, 6, **k), Up(12, 6, **k), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(F.max_pool2d(x1, 2))
        x3 = self.down2(F.max_pool2d(x2, 2))
        return self.outc(self.up2(self.up1(x3, x2), x1))


class LeNet(nn.Module):
    def __init__(self, **k: Any) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 32), nn.Linear(32, 16), nn.Linear(16, 10)
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.k.get("act", F.relu)(self.conv1(x)), (2, 2))
        x = self.k.get("pool", lambda t: F.max_pool2d(t, 2))(F.relu(self.conv2(x)))
        if self.k.get("nhwc"):
            x = x.permute(0, 2, 3, 1).contiguous()
        x = x.view(-1, self.num_flat_features(x))
        x = F.relu(self.fc1(x))
        return F.log_softmax(self.fc3(F.relu(self.fc2(x))), dim=1)

    def num_flat_features(self, x: Tensor) -> int:
        return math.prod(x.size()[1:])


class ChannelsFirstNorm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class NextBlock(nn.Module):
    def __init__(self, dim: int, **k: Any) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim,
                                padding_mode=k.get("mode", "zeros"))  # fmt: skip
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.act = nn.GELU(approximate=k.get("approximate", "none"))
        self.gamma = nn.Parameter(0.5 * torch.ones(dim)) if k.get("gamma", True) else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.pwconv2(self.act(self.pwconv1(self.norm(y))))
        if self.gamma is not None:
            y = self.gamma * y
        return x + y.permute(0, 3, 1, 2)


class NextMini(nn.Module):
    def __init__(self, eps: float = 1e-6, at: int | None = None, **k: Any) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 12, 4, 4), ChannelsFirstNorm(12, eps)
        self.blocks = nn.Sequential(
            *(NextBlock(12, **(k if at in (None, i) else {})) for i in range(3))
        )
        self.norm, self.head = nn.LayerNorm(12, eps=1e-6), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem_norm(self.stem(x)))
        return self.head(self.norm(x.mean([-2, -1])))


class Encoder(nn.Module):
    """nn.TransformerEncoder with a padding mask."""

    def __init__(self, h: int = 4, inverted: bool = False, **k: Any) -> None:
        super().__init__()
        self.emb, self.pos = nn.Embedding(50, 32), nn.Parameter(0.1 * torch.randn(1, 9, 32))
        layer = nn.TransformerEncoderLayer(32, h, 64, batch_first=True, **k)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.cls, self.inverted = nn.Linear(32, 3), inverted

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        keep = mask.bool()
        x = self.emb(ids) + self.pos[:, : ids.shape[1]]
        x = self.encoder(x, src_key_padding_mask=keep if self.inverted else ~keep)
        return self.cls(x[:, 0])


class VitBlock(nn.Module):
    """nn.MultiheadAttention, or its tensors in own code."""

    def __init__(self, d: int = 32, h: int = 4, own: str = "", **k: Any) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(d, eps=1e-6), nn.LayerNorm(d, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(d, h, batch_first=True)
        self.fc1, self.fc2, self.own, self.h = nn.Linear(d, 64), nn.Linear(64, d), own, h
        self.k = k

    def attend(self, x: Tensor) -> Tensor:
        m = self.self_attention
        b, n, d = x.shape
        qkv = F.linear(x, m.in_proj_weight, m.in_proj_bias)
        if self.own == "interleaved":
            qkv = qkv.reshape(b, n, self.h, d // self.h, 3).permute(4, 0, 2, 1, 3)
        else:
            qkv = qkv.reshape(b, n, 3, self.h, d // self.h).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.own == "vkq":
            q, v = v, q
        y = F.scaled_dot_product_attention(q, k, v)
        return m.out_proj(y.transpose(1, 2).reshape(b, n, d))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + (self.attend(y) if self.own else self.self_attention(y, y, y)[0])
        y = self.fc2(F.dropout(F.gelu(self.fc1(self.ln_2(x))), 0.1, self.k.get("drop", False)))
        return x + y


class VitMini(nn.Module):
    def __init__(self, at: int | None = None, **k: Any) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(3, 32, 8, 8)
        self.class_token = nn.Parameter(torch.randn(1, 1, 32))
        self.pos_embedding = nn.Parameter(torch.randn(1, 26, 32) * 0.1)
        self.layers = nn.Sequential(*(VitBlock(**(k if at in (None, i) else {})) for i in range(3)))
        self.ln, self.head, self.k = nn.LayerNorm(32, eps=1e-6), nn.Linear(32, 5), k

    def forward(self, x: Tensor) -> Tensor:
        if "prep" in self.k:
            x = self.k["prep"](x)
        x = self.conv_proj(x)
        if self.k.get("transposed"):
            x = x.transpose(2, 3)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.head(self.ln(self.layers(x + self.pos_embedding))[:, 0])
