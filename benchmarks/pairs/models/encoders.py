"""Transformers written by hand that are no copies of a known project."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

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


class TorchBert(nn.Module):
    """BERT from PyTorch's own encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.tok = nn.Embedding(VOCABULARY, WIDTH)
        self.pos = nn.Embedding(POSITIONS, WIDTH)
        self.seg = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, 1e-12)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, HIDDEN, 0.0, "gelu", 1e-12, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        x = self.tok(ids) + self.pos(torch.arange(ids.shape[1])) + self.seg(segments)
        return self.encoder(self.norm(x))


class WhisperAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH, bias=False)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(
        self, x: torch.Tensor, other: torch.Tensor | None = None, causal: bool = False
    ) -> torch.Tensor:
        source = x if other is None else other
        q, k, v = (heads(t, HEADS) for t in (self.query(x), self.key(source), self.value(source)))
        return self.out(attend(q, k, v, causal=causal))


class WhisperBlock(nn.Module):
    def __init__(self, cross: bool) -> None:
        super().__init__()
        self.attn = WhisperAttention()
        self.attn_ln = nn.LayerNorm(WIDTH)
        self.cross_attn = WhisperAttention() if cross else None
        self.cross_attn_ln = nn.LayerNorm(WIDTH) if cross else None
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )
        self.mlp_ln = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.attn(self.attn_ln(x), causal=self.cross_attn is not None)
        if self.cross_attn is not None and self.cross_attn_ln is not None:
            x = x + self.cross_attn(self.cross_attn_ln(x), other)
        return x + self.mlp(self.mlp_ln(x))


class WhisperEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(8, WIDTH, 3, padding=1)
        self.conv2 = nn.Conv1d(WIDTH, WIDTH, 3, 2, 1)
        waves = torch.outer(torch.arange(8.0), 100 ** (-torch.arange(WIDTH) / WIDTH))
        self.register_buffer("positional_embedding", waves.sin())
        self.blocks = nn.ModuleList(WhisperBlock(False) for _ in range(2))
        self.ln_post = nn.LayerNorm(WIDTH)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        x = x + self.positional_embedding
        for block in self.blocks:
            x = block(x)
        return self.ln_post(x)


class WhisperDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positional_embedding = nn.Parameter(torch.zeros(12, WIDTH))
        self.blocks = nn.ModuleList(WhisperBlock(True) for _ in range(2))
        self.ln = nn.LayerNorm(WIDTH)

    def forward(self, ids: torch.Tensor, sound: torch.Tensor) -> torch.Tensor:
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, sound)
        return self.ln(x) @ self.token_embedding.weight.T


class Whisper(nn.Module):
    """Whisper under its authors' names; keys have no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = WhisperEncoder()
        self.decoder = WhisperDecoder()

    def forward(self, mel: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.decoder(ids, self.encoder(mel))


class T5Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class T5Encoder(nn.Module):
    """T5's encoder: one table of distances for all blocks, no scaling, no biases."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pre_attention = T5Norm()
            names = ("q", "k", "v", "o")
            self.attention = nn.ModuleDict({n: nn.Linear(WIDTH, WIDTH, bias=False) for n in names})
            self.pre_feed = T5Norm()
            self.feed = nn.ModuleDict(
                {
                    "wi": nn.Linear(WIDTH, HIDDEN, bias=False),
                    "wo": nn.Linear(HIDDEN, WIDTH, bias=False),
                }
            )

        def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            y = self.pre_attention(x)
            q, k, v = (heads(self.attention[n](y), HEADS) for n in ("q", "k", "v"))
            scores = (q @ k.transpose(-1, -2) + bias).softmax(-1)
            x = x + self.attention["o"]((scores @ v).transpose(1, 2).flatten(2))
            return x + self.feed["wo"](F.relu(self.feed["wi"](self.pre_feed(x))))

    def __init__(self, buckets: int = 8) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, WIDTH)
        self.distance = nn.Embedding(buckets, HEADS)
        self.blocks = nn.ModuleList(self.Block() for _ in range(2))
        self.norm = T5Norm()
        self.buckets = buckets

    def bias(self, time: int) -> torch.Tensor:
        """[1, heads, time, time]: half of the buckets for each direction, half of those exact."""
        place = torch.arange(time)
        offset = place[None, :] - place[:, None]
        half, exact = self.buckets // 2, self.buckets // 4
        far = offset.abs().clamp(min=1).float()
        scale = (half - exact) / torch.log(torch.tensor(128 / exact))
        large = exact + (torch.log(far / exact) * scale).long()
        bucket = torch.where(offset.abs() < exact, offset.abs(), large.clamp(max=half - 1))
        bucket = bucket + half * (offset > 0)
        return self.distance(bucket).permute(2, 0, 1)[None]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x, bias = self.token(ids), self.bias(ids.shape[1])
        for block in self.blocks:
            x = block(x, bias)
        return self.norm(x)
