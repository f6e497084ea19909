"""Planted differences, written by one who had not looked at the causes: see `unseen_nets`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.divergences.cases import Case, distinct
from benchmarks.divergences.real import _at, _changed, _every, _hf, _timm, _vision
from benchmarks.divergences.unseen_nets import (
    Encoder,
    LeNet,
    LlamaMini,
    NanoGpt,
    NextMini,
    ResNetMini,
    UNet,
    VitMini,
)

_RANDOM = np.random.default_rng(5)
IDS = _RANDOM.integers(0, 50, (2, 9))
MASK = (np.arange(9)[None] < np.array([[9], [6]])).astype("i8")
IMAGES = _RANDOM.random((2, 3, 40, 40), dtype="f4")
DIGITS = _RANDOM.normal(size=(2, 1, 32, 32)).astype("f4")
_INPUTS: dict[Any, Any] = {
    NanoGpt: IDS, LlamaMini: IDS, LeNet: DIGITS, Encoder: {"ids": IDS, "mask": MASK},
}  # fmt: skip
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def pair(
    name: str, make: Any, theirs: Any, ours: Any, where: Any = (), kinds: Any = (),
    after: Callable[[Any], Any] | None = None, known: str = "live",
) -> Case:  # fmt: skip
    """The same definition twice, with the settings of the source and with those of the target."""

    def build() -> tuple[Any, Any, Any]:
        torch.manual_seed(2)
        source = distinct(make(**theirs))
        target = make(**ours)
        target.load_state_dict(source.state_dict(), strict=False)
        target.eval()
        if after:
            after(target)
        return source, target, _INPUTS.get(make, IMAGES)

    where, kinds = ((v,) if isinstance(v, str) else v for v in (where, kinds))
    return Case(f"unseen {name}", build, where, kinds, known)


def _tensor(name: str, change: Callable[[Any], Any]) -> Callable[[Any], None]:
    def apply(target: Any) -> None:
        tensor = target.state_dict()[name]
        tensor.copy_(change(tensor.clone()))

    return apply


def _all_half(target: Any) -> None:
    for tensor in target.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half().float())


def _fresh_head(target: Any) -> None:
    target.lm_head.weight = nn.Parameter(0.2 * torch.randn_like(target.lm_head.weight))


def _avg(**k: Any) -> Callable[[Any], Any]:
    return lambda t: F.avg_pool2d(t, 3, 2, 1, **k)


G, L, R, V = NanoGpt, LlamaMini, ResNetMini, VitMini
FIRST = "layers.0.attention"
CASES = [
    pair("gpt equal, flash", G, {}, {"flash": True}),
    pair("gpt tanh in one's own class", G, {"act": "new"}, {}, "h.0.mlp.1", "activation"),
    pair("gpt erf for tanh", G, {}, {"act": "new"}, "h.0.mlp.1", "activation", known="recorded"),
    pair("gpt causal flash", G, {"flash": True}, {"flash": True, "causal": False}, "h.0.attn",
         "attention-mask"),
    pair("gpt not causal, by hand", G, {}, {"causal": False}, "h.0.attn", "attention-mask",
         known="recorded"),
    pair("gpt unscaled", G, {}, {"scaled": False}, "h.0.attn", "attention-scale"),
    pair("gpt kqv", G, {}, {"order": "kqv"}, "h.0.attn", "qkv-order", known="file"),
    pair("gpt heads", G, {}, {"h": 8}, "h.0.attn", "head-count"),
    pair("gpt untied", G, {}, {"tied": False}, "lm_head", "tied-head", _fresh_head),
    pair("gpt branch factor", G, {"factor": 0.5}, {}, "h.0", "layer-scale"),
    pair("gpt heads and gelu", G, {}, {"h": 2, "act": "new"}, "h.0.attn",
         ("head-count", "activation")),
    pair("llama equal, pairs", L, {}, {"rope": "pair"}),
    pair("llama halves", L, {}, {"rope": "half"}, FIRST, "rope"),
    pair("llama complex for halves", L, {"rope": "half"}, {"rope": "complex"}, FIRST, "rope"),
    pair("llama theta", L, {"theta": 5e5}, {}, ("", FIRST), "rope"),
    pair("llama eps", L, {"eps": 1e-5}, {"eps": 1e-6}, "layers.0.attention_norm", "norm-epsilon"),
    pair("llama gelu", L, {"act": F.gelu}, {}, "layers.0.feed_forward", "activation"),
    pair("llama embedding", L, {"times": 32**0.5}, {}, "", "input-scale"),
    pair("llama norm on results", L, {}, {"post": True}, "layers.0", "norm-placement"),
    pair("llama tiled kv", L, {}, {"tiled": True}, FIRST, ("head-count", "qkv-order")),
    pair("llama bfloat16", L, {}, {"half": True}, FIRST, "dtype"),
    pair("llama theta and eps", L, {"theta": 1e6}, {"eps": 1e-6}, ("", "layers.0.attention_norm"),
         ("rope", "norm-epsilon")),
    pair("resnet equal, bgr twice", R, {}, {"prep": lambda x: x.flip(1)},
         after=_tensor("conv1.weight", lambda w: w.flip(1))),
    pair("resnet average", R, {}, {"pool": _avg()}, "", "pooling"),
    pair("resnet counted", R, {"pool": _avg(count_include_pad=False)}, {"pool": _avg()}, "",
         "pooling", known="recorded"),
    pair("resnet bgr", R, {"prep": lambda x: x.flip(1)}, {}, "", "channel-order"),
    pair("resnet imagenet", R, {"prep": lambda x: (x - MEAN) / STD}, {}, "", "input-scale",
         known="recorded"),
    pair("resnet one bn trains", R, {}, {}, "layer1.1.bn2", "train-mode",
         lambda m: m.layer1[1].bn2.train()),
    pair("resnet relu, then bn", R, {}, {"swap": True, "at": 1}, "layer1.1", "norm-placement"),
    pair("resnet same", R, {"tf": True, "at": 2}, {"at": 2}, ("layer2.0", "layer2.0.conv1"),
         "padding"),
    pair("resnet no last relu", R, {}, {"bare": True, "at": 3}, "layer2.1", "activation"),
    pair("resnet imagenet and same", R, {"prep": lambda x: (x - MEAN) / STD, "at": 2},
         {"tf": True, "at": 2}, "", ("input-scale", "padding")),
    pair("unet equal", UNet, {}, {}),
    pair("unet corners", UNet, {}, {"mode": "bilinear"}, "up1.up", "resize"),
    pair("unet nearest", UNet, {}, {"mode": "nearest"}, "up1.up", "resize", known="recorded"),
    pair("lenet rows", LeNet, {}, {"nhwc": True}, "", "flatten-order"),
    pair("lenet kernel", LeNet, {}, {}, "conv2", "spatial-transpose",
         _tensor("conv2.weight", lambda w: w.transpose(2, 3))),
    pair("lenet tanh", LeNet, {}, {"act": torch.tanh}, "", "activation"),
    pair("lenet ceil and flatten", LeNet, {"pool": lambda t: F.avg_pool2d(t, 2)}, {"nhwc": True},
         "", ("pooling", "flatten-order")),
    pair("lenet bias", LeNet, {}, {}, "fc2", "weights", _tensor("fc2.bias", torch.zeros_like)),
    pair("next equal", NextMini, {}, {}),
    pair("next stem eps", NextMini, {}, {"eps": 1e-3}, "stem_norm", "norm-epsilon"),
    pair("next no gamma", NextMini, {}, {"gamma": False}, "blocks.0", "layer-scale"),
    pair("next circular", NextMini, {"mode": "circular", "at": 1}, {}, "blocks.1.dwconv",
         "padding"),
    pair("encoder heads", Encoder, {}, {"h": 2}, "encoder.layers.0.self_attn", "head-count"),
    pair("encoder norm first", Encoder, {}, {"norm_first": True}, "encoder.layers.0",
         "norm-placement"),
    pair("encoder gelu", Encoder, {"activation": "gelu"}, {}, "encoder.layers.0", "activation"),
    pair("encoder mask inverted", Encoder, {}, {"inverted": True},
         ("", "encoder", "encoder.layers.0.self_attn"), "attention-mask"),
    pair("encoder eps", Encoder, {"layer_norm_eps": 1e-12}, {}, "encoder.layers.0.norm1",
         "norm-epsilon"),
    pair("vit own equal", V, {}, {"own": "plain"}),
    pair("vit interleaved", V, {}, {"own": "interleaved", "at": 1}, "layers.1", "qkv-order"),
    pair("vit vkq", V, {}, {"own": "vkq"}, "layers.0", "qkv-order"),
    pair("vit transposed patches", V, {}, {"transposed": True}, "", "spatial-transpose"),
    pair("vit dropout", V, {}, {"drop": True, "at": 2}, "layers.2", "train-mode"),
    pair("vit rounded", V, {}, {}, ("conv_proj", ""), "dtype", _all_half),
    pair("vit -1 to 1", V, {"prep": lambda x: (x - 0.5) / 0.5}, {}, "", "input-scale"),
    pair("vit bgr and order", V, {"prep": lambda x: x[:, [2, 1, 0]]}, {"own": "vkq", "at": 2}, "",
         ("channel-order", "qkv-order")),
]  # fmt: skip

_NEOX = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50,
         "intermediate_size": 64}  # fmt: skip
_GEMMA = _NEOX | {"num_key_value_heads": 2, "head_dim": 8}
_T5 = {"d_model": 32, "d_kv": 8, "num_heads": 4, "num_layers": 2, "d_ff": 64, "vocab_size": 50}
_DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 50}
_SWIN = _timm("swin_tiny_patch4_window7_224", img_size=64, embed_dim=24, depths=(1, 2, 1, 1),
              num_heads=(2, 2, 4, 4), window_size=4)  # fmt: skip

REAL = [
    Case(f"unseen real {name}", make, (where,) if kinds else (), (kinds,) if kinds else ())
    for name, make, where, kinds in (
        ("neox equal", _hf("GPTNeoX", _NEOX, {"attn_implementation": "eager"}), "", ""),
        ("neox parallel", _hf("GPTNeoX", _NEOX, {"use_parallel_residual": False}),
         "layers.0", "norm-placement"),
        ("qwen eps", _hf("Qwen2", _GEMMA, {"rms_norm_eps": 1e-5}, "ForCausalLM"),
         "model.layers.0.input_layernorm", "norm-epsilon"),
        ("gemma act", _hf("Gemma", _GEMMA, {"hidden_act": "silu",
                                            "hidden_activation": "silu"}, "ForCausalLM"),
         "model.layers.0.mlp.act_fn", "activation"),
        ("mistral window", _hf("Mistral", _GEMMA | {"sliding_window": 3}, {
            "sliding_window": None}, "ForCausalLM"),
         "model.layers.0.self_attn", "attention-mask"),
        ("distilbert heads", _hf("DistilBert", _DISTIL, {"n_heads": 2}),
         "transformer.layer.0.attention", "head-count"),
        ("t5 eps", _hf("T5", _T5, {"layer_norm_epsilon": 1e-4}, "EncoderModel"),
         "encoder.block.0.layer.0.layer_norm", "norm-epsilon"),
        ("efficientnet eps", _changed(_timm("efficientnet_lite0"), _every(
            nn.BatchNorm2d, eps=1e-3)), "bn1", "norm-epsilon"),
        ("swin equal", _changed(_SWIN, lambda _: None), "", ""),
        ("swin scale", _changed(_SWIN, _at("layers.1.blocks.0.attn", scale=1.0,
                                           fused_attn=False)),
         "layers.1.blocks.0.attn", "attention-scale"),
        ("shufflenet pool", _changed(_vision("shufflenet_v2_x0_5"), _at(
            "", maxpool=nn.AvgPool2d(3, 2, 1))), "maxpool", "pooling"),
        ("regnet equal, momentum", _changed(_vision("regnet_y_400mf"), _at(
            "trunk_output.block2.block2-1.f.a.1", momentum=0.9)), "", ""),
    )
]  # fmt: skip
CASES += REAL
