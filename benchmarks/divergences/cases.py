"""Planted differences: a source, a target with the same weights, and what was changed where.

Each case makes (source, target, inputs); `where` are the names that count as the first divergence,
`kinds` what was planted (nothing: an equal pair).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.divergences.nets import Cnn, Former


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], tuple[Any, Any, Any]]
    where: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    known: str = "live"
    """What is known of the source: "live", "recorded" calls alone, or those and its "file"."""


def distinct(model: Any) -> Any:
    """Random distinct values everywhere, statistics too."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in model.state_dict().items():
        if tensor.dtype.is_floating_point:
            noise = torch.rand(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise)
            elif tensor.ndim < 2:
                tensor.copy_(tensor + 0.4 * noise)
            elif "embed" in name:
                tensor.copy_(2 * noise - 1)
    return model.eval()


def images(size: tuple[int, int] = (32, 48)) -> Any:
    return np.random.default_rng(0).normal(size=(2, 3, *size)).astype("f4")


def tokens() -> Any:
    return np.random.default_rng(0).integers(0, 40, (2, 9))


def of(make: Any, given: Any, theirs: Any, ours: Any, after: Any = None) -> Callable[[], Any]:
    def build() -> tuple[Any, Any, Any]:
        torch.manual_seed(1)
        source = distinct(make(**theirs))
        target = make(**ours)
        target.load_state_dict(source.state_dict(), strict=False)
        target.eval()
        if after:
            after(source, target)
        return source, target, given()

    return build


def former(name: str, where: Any, kinds: Any, ours: Any, theirs: Any = None, after: Any = None):
    where, kinds = ((v,) if isinstance(v, str) else v for v in (where, kinds))
    return Case(f"former {name}", of(Former, tokens, theirs or {}, ours, after), where, kinds)


def cnn(name: str, where: Any, kinds: Any, ours: Any, theirs: Any = None, after: Any = None):
    where, kinds = ((v,) if isinstance(v, str) else v for v in (where, kinds))
    return Case(f"cnn {name}", of(Cnn, images, theirs or {}, ours, after), where, kinds)


def _set(path: str, **values: Any) -> Callable[[Any, Any], None]:
    def change(_: Any, target: Any) -> None:
        for key, value in values.items():
            setattr(target.get_submodule(path), key, value)

    return change


def _tensor(name: str, change: Callable[[Any], Any]) -> Callable[[Any, Any], None]:
    def apply(_: Any, target: Any) -> None:
        tensor = target.state_dict()[name]
        tensor.copy_(change(tensor.clone()))

    return apply


def _untie(source: Any, target: Any) -> None:
    target.head.weight = nn.Parameter(torch.randn_like(target.head.weight) * 0.1)


def _root_train(_: Any, target: Any) -> None:
    target.train()


MODULE_ACTS = {"act": nn.GELU()}
CASES = [
    former("equal", (), (), {}),
    former("equal, other code", (), (), {"sdpa": True}),
    former("equal, separate", (), (), {"separate": True}, {"separate": True}),
    cnn("equal", (), (), {}),
    cnn("equal, norm in code", (), (), {"functional_bn": True}),
    former("eps 1e-6", "blocks.0.norm1", "norm-epsilon", {"eps": 1e-6}),
    former("eps 1e-12 in the last", "blocks.2.norm1", "norm-epsilon", {"eps": 1e-12, "at": 2}),
    cnn("eps 1e-3", "stem.bn", "norm-epsilon", {"eps": 1e-3}),
    cnn("eps in code", ("mid",), "norm-epsilon", {"eps": 1e-3, "functional_bn": True, "at": 2}),
    former("post norm", "blocks.0", "norm-placement", {"place": "post"}),
    former("post norm in one", "blocks.1", "norm-placement", {"place": "post", "at": 1}),
    former("norm on the result", "blocks.1", "norm-placement", {"place": "res", "at": 1}),
    former("pre for post", "blocks.0", "norm-placement", {}, {"place": "post"}),
    cnn("norm after activation", "down", "norm-placement", {"after": True, "at": 1}),
    cnn("train mode of one", "mid.bn", "train-mode", {}, after=lambda s, t: t.mid.bn.train()),
    cnn("train mode", "stem.bn", "train-mode", {}, after=_root_train),
    cnn("train mode in code", "down", "train-mode",
        {"functional_bn": True, "train": True, "at": 1}),
    cnn("dropout on", "", "train-mode", {"drop": True}),
    former("gelu tanh", "blocks.0.mlp", "activation", {"act": "gelu_tanh"}),
    former("gelu quick in one", "blocks.1.mlp", "activation", {"act": "quick", "at": 1}),
    former("gelu module", ("blocks.1.mlp.module", "blocks.1.mlp.act"), "activation",
           {"act": nn.GELU("tanh"), "at": 1}),
    former("silu for gelu", "blocks.0.mlp", "activation", {"act": "silu"}),
    former("no activation", "blocks.1.mlp", "activation", {"act": "none", "at": 1}),
    former("an activation", "blocks.1.mlp", "activation", {}, {"act": "none", "at": 1}),
    cnn("leaky", "down", "activation", {"act": lambda x: nn.functional.leaky_relu(x, 0.2),
                                        "at": 1}),
    cnn("relu6", "mid", "activation", {"act": nn.ReLU6(), "at": 2},
        {"act": nn.Hardswish(), "at": 2}),
    cnn("same padding in code", "down", "padding", {"same": True, "at": 1}),
    cnn("symmetric for same", ("down.conv", "down"), "padding", {}, {"same": True, "at": 1}),
    cnn("reflected", ("mid.conv",), "padding", {"mode": "reflect", "at": 2}),
    cnn("zeros for circular", ("mid.conv",), "padding", {}, {"mode": "circular", "at": 2}),
    cnn("average pool", "pool", "pooling", {"pool": nn.AvgPool2d(3, 2, 1)}),
    cnn("padding counted", "pool", "pooling", {"pool": nn.AvgPool2d(3, 2, 1)},
        {"pool": nn.AvgPool2d(3, 2, 1, count_include_pad=False)}),
    cnn("pool from the end", "pool", "pooling", {},
        {"pool": nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2))}),
    cnn("ceil mode", "pool", "pooling", {"pool": nn.MaxPool2d(2, 2)},
        {"pool": nn.MaxPool2d(3, 2, 0, ceil_mode=True)}),
    cnn("global max", "", "pooling", {"gap": lambda x: x.amax((2, 3))},
        {"gap": lambda x: x.mean((2, 3))}),
    cnn("corners", "", "resize", {"resize": {"mode": "bilinear", "align_corners": True}},
        {"resize": {"mode": "bilinear"}}),
    cnn("nearest", "", "resize", {"resize": {"mode": "nearest"}}, {"resize": {"mode": "bilinear"}}),
    cnn("bicubic", "", "resize", {"resize": {"mode": "bilinear"}}, {"resize": {"mode": "bicubic"}}),
    cnn("bgr", "", "channel-order", {}, {"prepare": lambda x: x[:, [2, 1, 0]]}),
    cnn("bgr kernel", "stem.conv", "channel-order", {},
        after=_tensor("stem.conv.weight", lambda w: w.flip(1))),
    cnn("255", "", "input-scale", {}, {"prepare": lambda x: x / 255}),
    cnn("imagenet", "", "input-scale", {}, {"prepare": lambda x: (
        x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    ) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)}),
    cnn("-1 to 1", "", "input-scale", {"prepare": lambda x: x * 2 - 1}),
    former("embedding's factor", "", "input-scale", {}, {"times": 24**0.5}),
    cnn("transposed kernel", "mid.conv", "spatial-transpose", {},
        after=_tensor("mid.conv.weight", lambda w: w.transpose(2, 3))),
    cnn("flatten last", "", "flatten-order", {"flatten": (0, 2, 3, 1)}),
    cnn("flatten first", "", "flatten-order", {}, {"flatten": (0, 2, 3, 1)}),
    cnn("flatten kernel", "fc1", "flatten-order", {}, after=_tensor(
        "fc1.weight", lambda w: w.view(16, 12, 4, 6).permute(0, 2, 3, 1).reshape(16, -1))),
    former("scale 1", "blocks.0.attn", "attention-scale", {"scale": 1.0}),
    former("scale of the whole", "blocks.1.attn", "attention-scale",
           {"scale": 24**-0.5, "sdpa": True, "at": 1}),
    former("scale attribute", "blocks.0.attn", "attention-scale",
           {"scale": 24**-0.5, "separate": True}, {"separate": True}),
    former("causal missing", "blocks.0.attn", "attention-mask", {}, {"causal": True}),
    former("causal extra", "blocks.0.attn", "attention-mask", {"causal": True}),
    former("causal sdpa", "blocks.2.attn", "attention-mask",
           {"sdpa": True, "at": 2}, {"sdpa": True, "causal": True, "at": 2}),
    former("diagonal", "blocks.0.attn", "attention-mask", {"causal": True, "diagonal": 2},
           {"causal": True}),
    former("causal added", "blocks.0.attn", "attention-mask", {"separate": True, "causal": True},
           {"separate": True}),
    former("two heads", "blocks.0.attn", "head-count", {"heads": 2}),
    former("eight heads", "blocks.1.attn", "head-count",
           {"heads": 8, "separate": True, "at": 1, "plain": {"separate": True}},
           {"separate": True}),
    former("k before q", "blocks.0.attn", "qkv-order", {"order": (1, 0, 2)}),
    former("v first in one", "blocks.1.attn", "qkv-order", {"order": (2, 0, 1), "at": 1}),
    former("by head", "blocks.0.attn", "qkv-order", {"by_head": True}),
    former("swapped", "blocks.0.attn", "qkv-order",
           {"separate": True, "swapped": True, "rope": 1e4}, {"separate": True, "rope": 1e4}),
    former("qkv rows", "blocks.1.attn.qkv", "qkv-order", {}, after=_tensor(
        "blocks.1.attn.qkv.weight", lambda w: torch.cat([w[24:48], w[:24], w[48:]]))),
    former("rope base", "blocks.0.attn", "rope", {"rope": 1e4}, {"rope": 5e5}),
    former("rope pairs", "blocks.0.attn", "rope", {"rope": 1e4, "pairs": True}, {"rope": 1e4}),
    former("rope halves, separate", "blocks.0.attn", "rope", {"separate": True, "rope": 1e4},
           {"separate": True, "rope": 1e4, "pairs": True}),
    former("half precision", "blocks.0.attn", "dtype", {"half": True}),
    former("rounded", "blocks.1.mlp.fc1", "dtype", {}, after=_tensor(
        "blocks.1.mlp.fc1.weight", lambda w: w.bfloat16().float())),
    former("not tied", "head", "tied-head", {}, {"tied": True}, after=_untie),
    former("tied", ("head", "embed"), "tied-head", {"tied": True}),
    former("no layer scale", "blocks.0", "layer-scale", {}, {"gamma": True}),
    former("layer scale", "blocks.1", "layer-scale", {"gamma": True, "at": 1}),
    former("a weight", "blocks.1.mlp.fc2", "weights", {}, after=_tensor(
        "blocks.1.mlp.fc2.weight", lambda w: w + 0.01 * torch.randn_like(w))),
    cnn("a statistic", "down.bn", "weights", {}, after=_tensor(
        "down.bn.running_mean", lambda w: w * 0)),
    former("eps and gelu", "blocks.0.norm1", ("norm-epsilon", "activation"),
           {"eps": 1e-3, "act": "gelu_tanh"}),
    former("order and causal", "blocks.0.attn", ("qkv-order", "attention-mask"),
           {"order": (1, 0, 2), "plain": {"causal": True}, "causal": False, "at": 0},
           {"causal": True}),
    former("scale, then weight", "blocks.0.attn", ("attention-scale", "weights"), {"scale": 1.0},
           after=_tensor("head.weight", lambda w: w * 1.1)),
    cnn("bgr and pool", "", ("channel-order", "pooling"), {"pool": nn.AvgPool2d(3, 2, 1)},
        {"prepare": lambda x: x[:, [2, 1, 0]]}),
    cnn("eps and flatten", "stem.bn", ("norm-epsilon", "flatten-order"),
        {"eps": 1e-3, "flatten": (0, 2, 3, 1)}),
    cnn("padding and activation", ("down",), ("padding", "activation"),
        {"same": True, "act": nn.functional.silu, "at": 1}),
]  # fmt: skip
