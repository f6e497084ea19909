"""Planted differences in models of torchvision, timm and transformers, with random weights."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.divergences.cases import Case, distinct, images


def _changed(make: Callable[[], Any], change: Callable[[Any], Any]) -> Callable[[], Any]:
    def build() -> tuple[Any, Any, Any]:
        torch.manual_seed(0)
        source = distinct(make())
        target = copy.deepcopy(source)
        change(target)
        return source, target.eval(), images((64, 64))

    return build


def _vision(name: str) -> Callable[[], Any]:
    library = torch.library.Library("torchvision", "FRAGMENT")
    try:
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:
        pass  # torchvision's own build has them
    _KEPT.append(library)
    return lambda: getattr(importlib.import_module("torchvision.models"), name)()


_KEPT: list[Any] = []


def _timm(name: str, **settings: Any) -> Callable[[], Any]:
    _vision("resnet18")
    return lambda: importlib.import_module("timm").create_model(name, **settings)


def _every(kind: Any, **values: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for module in model.modules():
            if isinstance(module, kind):
                for key, value in values.items():
                    setattr(module, key, value)

    return change


def _at(path: str, **values: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for key, value in values.items():
            setattr(model.get_submodule(path), key, value)

    return change


def _tanh(model: Any) -> None:
    for block in model.blocks:
        block.mlp.act = nn.GELU("tanh")


def _hf(name: str, theirs: Any, ours: Any, suffix: str = "Model") -> Callable[[], Any]:
    def build() -> tuple[Any, Any, Any]:
        library = importlib.import_module("transformers")
        config, model = getattr(library, f"{name}Config"), getattr(library, f"{name}{suffix}")
        torch.manual_seed(0)
        source = distinct(model(config(**theirs)))
        target = model(config(**(theirs | ours)))
        target.load_state_dict(source.state_dict(), strict=False)
        ids = np.random.default_rng(0).integers(0, 50, (2, 9))
        return source, target.eval(), {"input_ids": ids}

    return build


_VIT = _timm("vit_tiny_patch16_224", img_size=64, depth=3)
_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "vocab_size": 50}  # fmt: skip
_LLAMA = _BERT | {"num_key_value_heads": 2}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 32,
        "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
_THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
_NARROW = {"num_attention_heads": 2, "num_key_value_heads": 1}
_INNER = "encoder.layer.0.intermediate.intermediate_act_fn"

CASES = [
    Case(f"real {name}", make, (where,) if kinds else (), (kinds,) if kinds else ())
    for name, make, where, kinds in (
        ("resnet equal", _changed(_vision("resnet18"), lambda _: None), "", ""),
        ("vit equal", _changed(_VIT, lambda _: None), "", ""),
        ("vit equal, unfused", _changed(_VIT, _at("blocks.1.attn", fused_attn=False)), "", ""),
        ("bert equal", _hf("Bert", _BERT, {}), "", ""),
        ("bert eager", _hf("Bert", _BERT, {"attn_implementation": "eager"}), "", ""),
        ("resnet pool", _changed(_vision("resnet18"), _at(
            "", maxpool=nn.MaxPool2d(3, 2, 0, ceil_mode=True))), "maxpool", "pooling"),
        ("mobilenet eps", _changed(_vision("mobilenet_v3_small"), _every(
            nn.BatchNorm2d, eps=1e-5)), "features.0.1", "norm-epsilon"),
        ("mobilenet silu", _changed(_vision("mobilenet_v3_small"), lambda m: setattr(
            m.features[4].block[0], "2", nn.SiLU())), "features.4.block.0.2", "activation"),
        ("mobilenet reflect", _changed(_vision("mobilenet_v3_small"), _at(
            "features.2.block.1.0", padding_mode="reflect")), "features.2.block.1.0", "padding"),
        ("vit eps", _changed(_VIT, _every(nn.LayerNorm, eps=1e-5)),
         "blocks.0.norm1", "norm-epsilon"),
        ("vit scale", _changed(_VIT, _at("blocks.1.attn", fused_attn=False, scale=1.0)),
         "blocks.1.attn", "attention-scale"),
        ("vit heads", _changed(_VIT, _at(
            "blocks.0.attn", num_heads=6, head_dim=32, scale=32**-0.5)),
         "blocks.0.attn", "head-count"),
        ("vit gelu", _changed(_VIT, _tanh), "blocks.0.mlp.act", "activation"),
        ("convnext scale", _changed(
            _timm("convnext_atto", depths=(1, 1, 2, 1), ls_init_value=0.5),
            _at("stages.2.blocks.1", gamma=None)), "stages.2.blocks.1", "layer-scale"),
        ("bert gelu", _hf("Bert", _BERT, {"hidden_act": "gelu_new"}), _INNER, "activation"),
        ("bert eps", _hf("Bert", _BERT, {"layer_norm_eps": 1e-5}),
         "embeddings.LayerNorm", "norm-epsilon"),
        ("bert heads", _hf("Bert", _BERT, {"num_attention_heads": 2}),
         "encoder.layer.0.attention.self", "head-count"),
        ("llama theta", _hf("Llama", _LLAMA, _THETA, "ForCausalLM"), "model.rotary_emb", "rope"),
        ("llama eps", _hf("Llama", _LLAMA, {"rms_norm_eps": 1e-5}, "ForCausalLM"),
         "model.layers.0.input_layernorm", "norm-epsilon"),
        ("llama heads", _hf("Llama", _LLAMA, _NARROW, "ForCausalLM"),
         "model.layers.0.self_attn", "head-count"),
        ("gpt2 scale", _hf("GPT2", _GPT, {"scale_attn_weights": False}, "LMHeadModel"),
         "transformer.h.0.attn", "attention-scale"),
        ("gpt2 gelu", _hf("GPT2", _GPT, {"activation_function": "gelu"}, "LMHeadModel"),
         "transformer.h.0.mlp.act", "activation"),
    )
]  # fmt: skip
