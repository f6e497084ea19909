"""Implementations by hand that `families/unseen_torch.py` sets beside the libraries' own."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.pairs.models.decoders import (
    HEAD,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    POSITIONS,
    VOCABULARY,
    WIDTH,
    attend,
    heads,
    rope_halves,
    rope_interleaved,
)


class FairseqAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.k_proj = nn.Linear(WIDTH, WIDTH)
        self.v_proj = nn.Linear(WIDTH, WIDTH)
        self.q_proj = nn.Linear(WIDTH, WIDTH)
        self.out_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (heads(layer(x), HEADS) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attend(q, k, v, causal=False))


class FairseqLayer(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.self_attn = FairseqAttention()
        self.self_attn_layer_norm = nn.LayerNorm(WIDTH, eps)
        self.fc1 = nn.Linear(WIDTH, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, WIDTH)
        self.final_layer_norm = nn.LayerNorm(WIDTH, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.self_attn_layer_norm(x + self.self_attn(x))
        return self.final_layer_norm(x + self.fc2(F.gelu(self.fc1(x))))


class FairseqRoberta(nn.Module):
    """RoBERTa under the authors' names, with the language model's head. Positions start at two."""

    class SentenceEncoder(nn.Module):
        def __init__(self, eps: float) -> None:
            super().__init__()
            self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
            self.embed_positions = nn.Embedding(POSITIONS, WIDTH)
            self.layers = nn.ModuleList(FairseqLayer(eps) for _ in range(2))
            self.layernorm_embedding = nn.LayerNorm(WIDTH, eps)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            places = torch.arange(2, ids.shape[1] + 2)
            x = self.layernorm_embedding(self.embed_tokens(ids) + self.embed_positions(places))
            for layer in self.layers:
                x = layer(x)
            return x

    class Head(nn.Module):
        def __init__(self, eps: float) -> None:
            super().__init__()
            self.dense = nn.Linear(WIDTH, WIDTH)
            self.layer_norm = nn.LayerNorm(WIDTH, eps)
            self.weight = nn.Parameter(torch.zeros(VOCABULARY, WIDTH))
            self.bias = nn.Parameter(torch.zeros(VOCABULARY))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layer_norm(F.gelu(self.dense(x)))
            return F.linear(x, self.weight, self.bias)

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.sentence_encoder = self.SentenceEncoder(eps)
        self.encoder.lm_head = self.Head(eps)
        self.encoder.lm_head.weight = self.encoder.sentence_encoder.embed_tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        encoder: Any = self.encoder
        return encoder.lm_head(encoder.sentence_encoder(ids))


class TorchDistil(nn.Module):
    """DistilBERT from PyTorch's own encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.ln = nn.LayerNorm(WIDTH, 1e-12)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, HIDDEN, 0.0, "gelu", 1e-12, batch_first=True
        )
        self.trunk = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.trunk(self.ln(self.words(ids) + self.positions(torch.arange(ids.shape[1]))))


class SharedEncoder(nn.Module):
    """ALBERT: one layer used again and again, factorised embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, 16)
        self.segment = nn.Embedding(2, 16)
        self.place = nn.Embedding(POSITIONS, 16)
        self.norm = nn.LayerNorm(16, 1e-12)
        self.widen = nn.Linear(16, WIDTH)
        self.q = nn.Linear(WIDTH, WIDTH)
        self.k = nn.Linear(WIDTH, WIDTH)
        self.v = nn.Linear(WIDTH, WIDTH)
        self.o = nn.Linear(WIDTH, WIDTH)
        self.norm1 = nn.LayerNorm(WIDTH, 1e-12)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH, 1e-12)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.token(ids) + self.place(torch.arange(ids.shape[1])) + self.segment.weight[0]
        x = self.widen(self.norm(x))
        for _ in range(3):
            q, k, v = (heads(layer(x), HEADS) for layer in (self.q, self.k, self.v))
            x = self.norm1(x + self.o(attend(q, k, v, causal=False)))
            x = self.norm2(x + self.down(F.gelu(self.up(x))))
        return x


class TorchBart(nn.Module):
    """BART from `torch.nn.Transformer`. Learned positions start at two."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Embedding(VOCABULARY, WIDTH)
        self.enc_pos = nn.Embedding(POSITIONS + 2, WIDTH)
        self.dec_pos = nn.Embedding(POSITIONS + 2, WIDTH)
        self.enc_ln = nn.LayerNorm(WIDTH)
        self.dec_ln = nn.LayerNorm(WIDTH)
        options: Any = {"dropout": 0.0, "activation": "gelu", "batch_first": True}
        encoder = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, **options)
        decoder = nn.TransformerDecoderLayer(WIDTH, HEADS, HIDDEN, **options)
        self.transformer = nn.Transformer(
            WIDTH, HEADS, batch_first=True,
            custom_encoder=nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False),
            custom_decoder=nn.TransformerDecoder(decoder, 2),
        )  # fmt: skip

    def forward(self, ids: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        places = torch.arange(2, ids.shape[1] + 2), torch.arange(2, answer.shape[1] + 2)
        x = self.enc_ln(self.shared(ids) + self.enc_pos(places[0]))
        y = self.dec_ln(self.shared(answer) + self.dec_pos(places[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(answer.shape[1])
        return F.linear(self.transformer(x, y, tgt_mask=mask), self.shared.weight)


class MosaicAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.Wqkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (heads(part, HEADS) for part in self.Wqkv(x).chunk(3, -1))
        return self.out_proj(attend(q, k, v))


class MosaicOPT(nn.Module):
    """OPT under names in the manner of MPT, query, key and value in one matrix."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_1 = nn.LayerNorm(WIDTH)
            self.attn = MosaicAttention()
            self.norm_2 = nn.LayerNorm(WIDTH)
            self.ffn = nn.ModuleDict(
                {"up_proj": nn.Linear(WIDTH, HIDDEN), "down_proj": nn.Linear(HIDDEN, WIDTH)}
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.attn(self.norm_1(x))
            return x + self.ffn["down_proj"](F.relu(self.ffn["up_proj"](self.norm_2(x))))

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCABULARY, WIDTH),
                "wpe": nn.Embedding(POSITIONS + 2, WIDTH),
                "blocks": nn.ModuleList(self.Block() for _ in range(LAYERS)),
                "norm_f": nn.LayerNorm(WIDTH),
            }
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        part: Any = self.transformer
        x = part["wte"](ids) + part["wpe"](torch.arange(2, ids.shape[1] + 2))
        for block in part["blocks"]:
            x = block(x)
        return F.linear(part["norm_f"](x), part["wte"].weight)


class HandGPTJ(nn.Module):
    """GPT-J: attention and feed-forward side by side after one norm; interleaved rotary halves."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(WIDTH)
            self.query = nn.Linear(WIDTH, WIDTH, bias=False)
            self.key = nn.Linear(WIDTH, WIDTH, bias=False)
            self.value = nn.Linear(WIDTH, WIDTH, bias=False)
            self.output = nn.Linear(WIDTH, WIDTH, bias=False)
            self.expand = nn.Linear(WIDTH, 4 * WIDTH)
            self.contract = nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(x)
            q, k, v = (heads(layer(y), HEADS) for layer in (self.query, self.key, self.value))
            q, k = (torch.cat([rope_interleaved(t[..., :4]), t[..., 4:]], -1) for t in (q, k))
            inner = self.contract(F.gelu(self.expand(y), approximate="tanh"))
            return x + self.output(attend(q, k, v)) + inner

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(self.Block() for _ in range(LAYERS))
        self.final = nn.LayerNorm(WIDTH)
        self.unembed = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.unembed(self.final(x))


class MixerPhi(nn.Module):
    """Phi under Microsoft's first names: `mixer.Wqkv`, one norm for both branches."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln = nn.LayerNorm(WIDTH)
            self.mixer = MosaicAttention()
            self.mlp = nn.ModuleDict(
                {"fc1": nn.Linear(WIDTH, HIDDEN), "fc2": nn.Linear(HIDDEN, WIDTH)}
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.ln(x)
            q, k, v = (heads(part, HEADS) for part in self.mixer.Wqkv(y).chunk(3, -1))
            q, k = (torch.cat([rope_halves(t[..., :4]), t[..., 4:]], -1) for t in (q, k))
            inner = self.mlp["fc2"](F.gelu(self.mlp["fc1"](y), approximate="tanh"))
            return x + self.mixer.out_proj(attend(q, k, v)) + inner

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "embd": nn.ModuleDict({"wte": nn.Embedding(VOCABULARY, WIDTH)}),
                "h": nn.ModuleList(self.Block() for _ in range(LAYERS)),
            }
        )
        self.lm_head = nn.ModuleDict(
            {"ln": nn.LayerNorm(WIDTH), "linear": nn.Linear(WIDTH, VOCABULARY)}
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        part: Any = self.transformer
        x = part["embd"]["wte"](ids)
        for block in part["h"]:
            x = block(x)
        return self.lm_head["linear"](self.lm_head["ln"](x))


class OffsetNorm(nn.Module):
    """RMS norm whose weight is an offset from one, as Gemma has it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class AuthorsGemma(nn.Module):
    """Gemma under its authors' names: `qkv_proj` with grouped keys and values."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.self_attn = nn.ModuleDict(
                {
                    "qkv_proj": nn.Linear(WIDTH, (HEADS + 2 * KV_HEADS) * HEAD, bias=False),
                    "o_proj": nn.Linear(WIDTH, WIDTH, bias=False),
                }
            )
            self.mlp = nn.ModuleDict(
                {
                    "gate_proj": nn.Linear(WIDTH, HIDDEN, bias=False),
                    "up_proj": nn.Linear(WIDTH, HIDDEN, bias=False),
                    "down_proj": nn.Linear(HIDDEN, WIDTH, bias=False),
                }
            )
            self.input_layernorm = OffsetNorm()
            self.post_attention_layernorm = OffsetNorm()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            fused = self.self_attn["qkv_proj"](self.input_layernorm(x))
            q, k, v = fused.split([HEADS * HEAD, KV_HEADS * HEAD, KV_HEADS * HEAD], -1)
            q, k, v = heads(q, HEADS), heads(k, KV_HEADS), heads(v, KV_HEADS)
            x = x + self.self_attn["o_proj"](attend(rope_halves(q), rope_halves(k), v))
            y, mlp = self.post_attention_layernorm(x), self.mlp
            gate = F.gelu(mlp["gate_proj"](y), approximate="tanh")
            return x + mlp["down_proj"](gate * mlp["up_proj"](y))

    def __init__(self) -> None:
        super().__init__()
        self.embedder = nn.Embedding(VOCABULARY, WIDTH)
        self.model = nn.ModuleDict(
            {"layers": nn.ModuleList(self.Layer() for _ in range(LAYERS)), "norm": OffsetNorm()}
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedder(ids) * math.sqrt(WIDTH)
        part: Any = self.model
        for layer in part["layers"]:
            x = layer(x)
        return F.linear(part["norm"](x), self.embedder.weight)


class FirstQwen(nn.Module):
    """Qwen2 under the names of the first Qwen: `c_attn`, and `w2` for the gate, `w1` beside it."""

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(WIDTH))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1 = FirstQwen.Norm()
            self.attn = nn.ModuleDict(
                {
                    "c_attn": nn.Linear(WIDTH, 3 * WIDTH),
                    "c_proj": nn.Linear(WIDTH, WIDTH, bias=False),
                }
            )
            self.ln_2 = FirstQwen.Norm()
            self.mlp = nn.ModuleDict(
                {
                    "w1": nn.Linear(WIDTH, HIDDEN, bias=False),
                    "w2": nn.Linear(WIDTH, HIDDEN, bias=False),
                    "c_proj": nn.Linear(HIDDEN, WIDTH, bias=False),
                }
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (heads(t, HEADS) for t in self.attn["c_attn"](self.ln_1(x)).chunk(3, -1))
            x = x + self.attn["c_proj"](attend(rope_halves(q), rope_halves(k), v))
            y = self.ln_2(x)
            return x + self.mlp["c_proj"](self.mlp["w1"](y) * F.silu(self.mlp["w2"](y)))

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCABULARY, WIDTH),
                "h": nn.ModuleList(self.Block() for _ in range(LAYERS)),
                "ln_f": self.Norm(),
            }
        )
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        part: Any = self.transformer
        x = part["wte"](ids)
        for block in part["h"]:
            x = block(x)
        return self.lm_head(part["ln_f"](x))


class OtherFire(nn.Module):
    def __init__(self, inputs: int, squeezed: int, out: int) -> None:
        super().__init__()
        self.squeeze = nn.ModuleDict({"conv": nn.Conv2d(inputs, squeezed, 1)})
        self.expand1x1 = nn.ModuleDict({"conv": nn.Conv2d(squeezed, out, 1)})
        self.expand3x3 = nn.ModuleDict({"conv": nn.Conv2d(squeezed, out, 3, padding=1)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.squeeze["conv"](x))
        parts = self.expand1x1["conv"](x), self.expand3x3["conv"](x)
        return F.relu(torch.cat(parts, 1))


class OtherSqueezeNet(nn.Module):
    """SqueezeNet 1.1 in stages and units that are counted from one."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential()
        first = nn.ModuleDict({"conv": nn.Conv2d(3, 64, 3, stride=2)})
        self.features.add_module("init_block", first)
        stages = (
            ((64, 16, 64), (128, 16, 64)),
            ((128, 32, 128), (256, 32, 128)),
            ((256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256)),
        )
        for number, units in enumerate(stages, 1):
            stage = nn.Sequential()
            for place, sizes in enumerate(units, 1):
                stage.add_module(f"unit{place}", OtherFire(*sizes))
            self.features.add_module(f"stage{number}", stage)
        self.output = nn.ModuleDict({"final_conv": nn.Conv2d(512, classes, 1)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts: Any = dict(self.features.named_children())
        x = F.relu(parts["init_block"]["conv"](x))
        for number in (1, 2, 3):
            x = parts[f"stage{number}"](F.max_pool2d(x, 3, 2, ceil_mode=True))
        return F.relu(self.output["final_conv"](x)).mean((2, 3))


class AuthorsShuffle(nn.Module):
    """ShuffleNet v2 under its authors' names: one flat list, main branch first."""

    class Unit(nn.Module):
        def __init__(self, inputs: int, out: int, stride: int) -> None:
            super().__init__()
            self.stride = stride
            width = out // 2
            start = inputs if stride == 2 else width

            def depthwise(size: int) -> list[nn.Module]:
                conv = nn.Conv2d(size, size, 3, stride, 1, groups=size, bias=False)
                return [conv, nn.BatchNorm2d(size)]

            def pointwise(before: int) -> list[nn.Module]:
                conv = nn.Conv2d(before, width, 1, bias=False)
                return [conv, nn.BatchNorm2d(width), nn.ReLU()]

            self.branch_main = nn.Sequential(
                *pointwise(start), *depthwise(width), *pointwise(width)
            )
            if stride == 2:
                self.branch_proj = nn.Sequential(*depthwise(inputs), *pointwise(inputs))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.stride == 2:
                parts = self.branch_proj(x), self.branch_main(x)
            else:
                kept, worked = x.chunk(2, 1)
                parts = kept, self.branch_main(worked)
            b, c, h, w = (joined := torch.cat(parts, 1)).shape
            return joined.reshape(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)

    def __init__(self, repeats: list[int], widths: list[int], classes: int = 10) -> None:
        super().__init__()
        first, *stages, last = widths
        self.first_conv = nn.Sequential(
            nn.Conv2d(3, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU()
        )
        units: list[nn.Module] = []
        before = first
        for repeat, width in zip(repeats, stages, strict=True):
            for place in range(repeat):
                units.append(self.Unit(before, width, 1 if place else 2))
                before = width
        self.features = nn.Sequential(*units)
        self.conv_last = nn.Sequential(
            nn.Conv2d(before, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU()
        )
        self.classifier = nn.Sequential(nn.Linear(last, classes, bias=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.first_conv(x), 3, 2, 1)
        return self.classifier(self.conv_last(self.features(x)).mean((2, 3)))


class GatedT5(nn.Module):
    """T5's encoder with a gated feed-forward layer (v1.1) under T5X' words."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn_norm = OtherScale()
            self.query = nn.Linear(WIDTH, WIDTH, bias=False)
            self.key = nn.Linear(WIDTH, WIDTH, bias=False)
            self.value = nn.Linear(WIDTH, WIDTH, bias=False)
            self.out = nn.Linear(WIDTH, WIDTH, bias=False)
            self.ffn_norm = OtherScale()
            self.gate = nn.Linear(WIDTH, HIDDEN, bias=False)
            self.linear = nn.Linear(WIDTH, HIDDEN, bias=False)
            self.project = nn.Linear(HIDDEN, WIDTH, bias=False)

        def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            y = self.attn_norm(x)
            q, k, v = (heads(layer(y), HEADS) for layer in (self.query, self.key, self.value))
            scores = (q @ k.transpose(-1, -2) + bias).softmax(-1)
            x = x + self.out((scores @ v).transpose(1, 2).flatten(2))
            y = self.ffn_norm(x)
            gate = F.gelu(self.gate(y), approximate="tanh")
            return x + self.project(gate * self.linear(y))

    def __init__(self) -> None:
        super().__init__()
        self.token_embedder = nn.Embedding(VOCABULARY, WIDTH)
        self.relpos_bias = nn.Embedding(8, HEADS)
        self.blocks = nn.ModuleList(self.Block() for _ in range(2))
        self.encoder_norm = OtherScale()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        import transformers.models.t5.modeling_t5 as t5

        x = self.token_embedder(ids)
        places = torch.arange(ids.shape[1])
        buckets: Any = t5.T5Attention._relative_position_bucket
        apart = buckets(places[None, :] - places[:, None], True, 8, 128)
        bias = self.relpos_bias(apart).permute(2, 0, 1)[None]
        for block in self.blocks:
            x = block(x, bias)
        return self.encoder_norm(x)


class OtherScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale


class Vocoder(nn.Module):
    """Transposed and plain one-dimensional convolutions with residual units, as vocoders have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_pre = nn.Conv1d(6, 16, 7, padding=3)
        self.ups = nn.ModuleList(
            [nn.ConvTranspose1d(16, 8, 4, 2, 1), nn.ConvTranspose1d(8, 4, 4, 2, 1)]
        )
        self.resblocks = nn.ModuleList(
            nn.ModuleList(nn.Conv1d(width, width, 3, padding=d, dilation=d) for d in (1, 3))
            for width in (8, 4)
        )
        self.conv_post = nn.Conv1d(4, 1, 7, padding=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_pre(x)
        for up, units in zip(self.ups, self.resblocks, strict=True):
            x = up(F.leaky_relu(x, 0.1))
            for unit in units:  # pyright: ignore[reportGeneralTypeIssues]
                x = x + unit(F.leaky_relu(x, 0.1))
        return torch.tanh(self.conv_post(F.leaky_relu(x, 0.1)))
