"""Language models written by hand, each in the style of a project that people copy from."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, HEADS, KV_HEADS, LAYERS, HIDDEN, VOCABULARY, POSITIONS = 32, 4, 2, 3, 64, 60, 16
HEAD = WIDTH // HEADS


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: bool) -> torch.Tensor:
    """Causal attention of [batch, heads, time, head]; grouped keys and values are repeated."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=options.get("causal", True))
    return y.transpose(1, 2).flatten(2)


def heads(x: torch.Tensor, count: int) -> torch.Tensor:
    """[batch, time, width] to [batch, heads, time, head]."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


class NanoGPT(nn.Module):
    """nanoGPT: GPT-2 with Linear layers in place of Conv1D, head tied to the embedding."""

    class Block(nn.Module):
        class Attention(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
                self.c_proj = nn.Linear(WIDTH, WIDTH)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                q, k, v = (heads(part, HEADS) for part in self.c_attn(x).split(WIDTH, -1))
                return self.c_proj(attend(q, k, v))

        class MLP(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.c_fc = nn.Linear(WIDTH, 4 * WIDTH)
                self.c_proj = nn.Linear(4 * WIDTH, WIDTH)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))

        def __init__(self) -> None:
            super().__init__()
            self.ln_1 = nn.LayerNorm(WIDTH)
            self.attn = self.Attention()
            self.ln_2 = nn.LayerNorm(WIDTH)
            self.mlp = self.MLP()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.attn(self.ln_1(x))
            return x + self.mlp(self.ln_2(x))

    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCABULARY, WIDTH),
                "wpe": nn.Embedding(POSITIONS, WIDTH),
                "h": nn.ModuleList(self.Block() for _ in range(layers)),
                "ln_f": nn.LayerNorm(WIDTH),
            }
        )
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        parts = self.transformer
        x = parts["wte"](ids) + parts["wpe"](torch.arange(ids.shape[1]))
        for block in parts["h"]:
            x = block(x)
        return self.lm_head(parts["ln_f"](x))


class BookGPT(nn.Module):
    """A textbook's GPT: separate query, key and value, norms with `scale` and `shift`, no tying."""

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(WIDTH))
            self.shift = nn.Parameter(torch.zeros(WIDTH))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean = x.mean(-1, keepdim=True)
            variance = x.var(-1, keepdim=True, unbiased=False)
            return self.scale * (x - mean) / torch.sqrt(variance + 1e-5) + self.shift

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W_query = nn.Linear(WIDTH, WIDTH)
            self.W_key = nn.Linear(WIDTH, WIDTH)
            self.W_value = nn.Linear(WIDTH, WIDTH)
            self.out_proj = nn.Linear(WIDTH, WIDTH)
            self.register_buffer("mask", torch.triu(torch.ones(POSITIONS, POSITIONS), diagonal=1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (heads(f(x), HEADS) for f in (self.W_query, self.W_key, self.W_value))
            time = x.shape[1]
            scores = q @ k.transpose(-1, -2) / HEAD**0.5
            scores = scores.masked_fill(self.mask.bool()[:time, :time], -torch.inf)
            return self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    class GELU(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.gelu(x, approximate="tanh")

    class FeedForward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(WIDTH, 4 * WIDTH), BookGPT.GELU(), nn.Linear(4 * WIDTH, WIDTH)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.att = BookGPT.Attention()
            self.ff = BookGPT.FeedForward()
            self.norm1 = BookGPT.Norm()
            self.norm2 = BookGPT.Norm()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.att(self.norm1(x))
            return x + self.ff(self.norm2(x))

    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(VOCABULARY, WIDTH)
        self.pos_emb = nn.Embedding(POSITIONS, WIDTH)
        self.trf_blocks = nn.Sequential(*(self.Block() for _ in range(layers)))
        self.final_norm = self.Norm()
        self.out_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tok_emb(ids) + self.pos_emb(torch.arange(ids.shape[1]))
        return self.out_head(self.final_norm(self.trf_blocks(x)))


class RMSNorm(nn.Module):
    def __init__(self, width: int = WIDTH, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def angles(time: int, dim: int, base: float = 10000.0) -> torch.Tensor:
    """[time, dim / 2] angles of rotary embeddings."""
    rates = base ** (-torch.arange(0, dim, 2).float() / dim)
    return torch.arange(time).float()[:, None] * rates


def rope_interleaved(x: torch.Tensor) -> torch.Tensor:
    """Neighbouring elements are the pairs that rotate, as the LLaMA authors have it."""
    turn = angles(x.shape[-2], x.shape[-1])
    a, b = x[..., 0::2], x[..., 1::2]
    turned = torch.stack((a * turn.cos() - b * turn.sin(), a * turn.sin() + b * turn.cos()), -1)
    return turned.flatten(-2)


def rope_halves(x: torch.Tensor) -> torch.Tensor:
    """Elements half a head apart are the pairs, as transformers and GPT-NeoX have it."""
    turn = angles(x.shape[-2], x.shape[-1])
    a, b = x.chunk(2, -1)
    return torch.cat((a * turn.cos() - b * turn.sin(), b * turn.cos() + a * turn.sin()), -1)


class MetaLlama(nn.Module):
    """LLaMA under the authors' names. `interleaved` says which elements of a head are pairs."""

    class Attention(nn.Module):
        def __init__(self, kv_heads: int, bias: bool, interleaved: bool) -> None:
            super().__init__()
            self.kv_heads = kv_heads
            self.rope = rope_interleaved if interleaved else rope_halves
            self.wq = nn.Linear(WIDTH, HEADS * HEAD, bias=bias)
            self.wk = nn.Linear(WIDTH, kv_heads * HEAD, bias=bias)
            self.wv = nn.Linear(WIDTH, kv_heads * HEAD, bias=bias)
            self.wo = nn.Linear(WIDTH, WIDTH, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k = heads(self.wq(x), HEADS), heads(self.wk(x), self.kv_heads)
            v = heads(self.wv(x), self.kv_heads)
            return self.wo(attend(self.rope(q), self.rope(k), v))

    class FeedForward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1 = nn.Linear(WIDTH, HIDDEN, bias=False)
            self.w2 = nn.Linear(HIDDEN, WIDTH, bias=False)
            self.w3 = nn.Linear(WIDTH, HIDDEN, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.w2(F.silu(self.w1(x)) * self.w3(x))

    class Block(nn.Module):
        def __init__(self, *options: int | bool) -> None:
            super().__init__()
            self.attention = MetaLlama.Attention(*options)  # pyright: ignore[reportArgumentType]
            self.feed_forward = MetaLlama.FeedForward()
            self.attention_norm = RMSNorm()
            self.ffn_norm = RMSNorm()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.attention(self.attention_norm(x))
            return x + self.feed_forward(self.ffn_norm(x))

    def __init__(
        self, kv_heads: int = KV_HEADS, bias: bool = False, interleaved: bool = True
    ) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(self.Block(kv_heads, bias, interleaved) for _ in range(LAYERS))
        self.norm = RMSNorm()
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tok_embeddings(ids)
        for block in self.layers:
            x = block(x)
        return self.output(self.norm(x))


class LitLlama(nn.Module):
    """LLaMA with one matrix for query, key and value, group by group: the queries of a group, its
    key, its value. Rotary pairs are halves."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_1 = RMSNorm()
            self.attn = nn.ModuleDict(
                {
                    "attn": nn.Linear(WIDTH, (HEADS + 2 * KV_HEADS) * HEAD, bias=False),
                    "proj": nn.Linear(WIDTH, WIDTH, bias=False),
                }
            )
            self.norm_2 = RMSNorm()
            self.mlp = nn.ModuleDict(
                {
                    "fc_1": nn.Linear(WIDTH, HIDDEN, bias=False),
                    "fc_2": nn.Linear(WIDTH, HIDDEN, bias=False),
                    "proj": nn.Linear(HIDDEN, WIDTH, bias=False),
                }
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            group = HEADS // KV_HEADS
            qkv = self.attn["attn"](self.norm_1(x)).unflatten(-1, (KV_HEADS, group + 2, HEAD))
            q = qkv[..., :group, :].flatten(2, 3).transpose(1, 2)
            k, v = (qkv[..., group + i, :].transpose(1, 2) for i in (0, 1))
            x = x + self.attn["proj"](attend(rope_halves(q), rope_halves(k), v))
            y, mlp = self.norm_2(x), self.mlp
            return x + mlp["proj"](F.silu(mlp["fc_1"](y)) * mlp["fc_2"](y))

    def __init__(self) -> None:
        super().__init__()
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCABULARY, WIDTH),
                "h": nn.ModuleList(self.Block() for _ in range(LAYERS)),
                "ln_f": RMSNorm(),
            }
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.transformer["wte"](ids)
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


class SplitNeoX(nn.Module):
    """GPT-NeoX with query, key and value apart, half of each head rotated, residuals parallel."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln1 = nn.LayerNorm(WIDTH)
            self.ln2 = nn.LayerNorm(WIDTH)
            self.q = nn.Linear(WIDTH, WIDTH)
            self.k = nn.Linear(WIDTH, WIDTH)
            self.v = nn.Linear(WIDTH, WIDTH)
            self.o = nn.Linear(WIDTH, WIDTH)
            self.up = nn.Linear(WIDTH, HIDDEN)
            self.down = nn.Linear(HIDDEN, WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.ln1(x)
            q, k, v = (heads(f(y), HEADS) for f in (self.q, self.k, self.v))
            half = HEAD // 2
            q, k = (torch.cat((rope_halves(t[..., :half]), t[..., half:]), -1) for t in (q, k))
            return x + self.o(attend(q, k, v)) + self.down(F.gelu(self.up(self.ln2(x))))

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(self.Block() for _ in range(LAYERS))
        self.ln_out = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_out(x))


class SplitBloom(nn.Module):
    """BLOOM with query, key and value apart; positions by ALiBi."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_attention = nn.LayerNorm(WIDTH)
            self.query = nn.Linear(WIDTH, WIDTH)
            self.key = nn.Linear(WIDTH, WIDTH)
            self.value = nn.Linear(WIDTH, WIDTH)
            self.project = nn.Linear(WIDTH, WIDTH)
            self.norm_mlp = nn.LayerNorm(WIDTH)
            self.mlp = nn.Sequential(
                OrderedDict(
                    up=nn.Linear(WIDTH, 4 * WIDTH),
                    act=nn.GELU(approximate="tanh"),
                    down=nn.Linear(4 * WIDTH, WIDTH),
                )
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, time = self.norm_attention(x), x.shape[1]
            q, k, v = (heads(f(y), HEADS) for f in (self.query, self.key, self.value))
            slopes = 2.0 ** (-8.0 * torch.arange(1, HEADS + 1) / HEADS)
            bias = slopes[:, None, None] * torch.arange(time)[None, None]
            mask = torch.full((time, time), -torch.inf).triu(1)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=(bias + mask)[None])
            x = x + self.project(y.transpose(1, 2).flatten(2))
            return x + self.mlp(self.norm_mlp(x))

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.norm_in = nn.LayerNorm(WIDTH)
        self.blocks = nn.Sequential(*(self.Block() for _ in range(LAYERS)))
        self.norm_out = nn.LayerNorm(WIDTH)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm_out(self.blocks(self.norm_in(self.tokens(ids))))
        return x @ self.tokens.weight.T
