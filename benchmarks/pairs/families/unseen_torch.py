"""Pairs written after the engine, without a look at it: how it does on what nobody tuned for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pairs import files
from benchmarks.pairs.collection import Built, Sets, pair
from benchmarks.pairs.families import language_models as language
from benchmarks.pairs.families import vision_transformers as vits
from benchmarks.pairs.families.transfer import changed
from benchmarks.pairs.families.vision_torch import both_ways, tm, tv
from benchmarks.pairs.randomness import generator, images, random_torch, tokens
from benchmarks.pairs.truths import Renames, arrays_of, by_names, in_order, renamed

WIDTH, HEADS, HIDDEN, VOCABULARY = language.WIDTH, language.HEADS, language.HIDDEN, 60
Saved = Callable[[Path, Any], Path]


def told(
    folder: Path,
    source: Any,
    target: Any,
    x: Any,
    *,
    content: Callable[[Any], Any] | None = None,
    saved: Saved = files.pth,
    rules: Renames | None = None,
    keyword: str = "",
    output: str = "",
    ask: Callable[[Any], Any] | None = None,
    **options: Any,
) -> Built:
    """The source answers, and the target must. `content` makes what is saved of the source."""
    import torch

    random_torch(source, 0)
    random_torch(target, 9)
    given = x if isinstance(x, tuple) else (x,)
    with torch.no_grad():
        answer = (ask or source)(*(torch.from_numpy(a) for a in given))
    if not isinstance(answer, torch.Tensor):
        answer = getattr(answer, output or "logits")
    path = saved(folder, content(source) if content else source)
    if "truth" not in options and rules is not None:
        options["truth"] = by_names(source, rules)
    if keyword:
        outputs: Any = {output or "logits": answer.numpy()}
        return Built(path, target, outputs, {keyword: x}, **options)
    return Built(path, target, answer.numpy(), x, **options)


def words() -> Any:
    return tokens(2, 9, vocabulary=VOCABULARY)


# Image classifiers.
both_ways(
    "unseen inception_v3", "numbering", tv("inception_v3", aux_logits=False, init_weights=False),
    tm("inception_v3"), 96, ways="forth",
)  # fmt: skip
both_ways("unseen mnasnet", "numbering", tv("mnasnet1_0"), tm("mnasnet_100"))
both_ways(
    "unseen mobilenet_v3_large", "layouts", tv("mobilenet_v3_large"),
    tm("mobilenetv3_large_100", bn_eps=1e-3),
)  # fmt: skip
both_ways("unseen regnet_x", "numbering", tv("regnet_x_400mf"), tm("regnetx_004_tv"))
both_ways(
    "unseen efficientnet_v2_s", "numbering", tv("efficientnet_v2_s"),
    tm("tf_efficientnetv2_s", pad_type=""), ways="back",
)  # fmt: skip


def _resnext_tv() -> Any:
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [1, 2, 1, 1], 10, groups=4, width_per_group=8)


def _resnext_timm() -> Any:
    from timm.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, (1, 2, 1, 1), 10, cardinality=4, base_width=8)


both_ways("unseen resnext", "numbering", _resnext_tv, _resnext_timm, ways="forth")


@pair("unseen convnext: timm to torchvision", "numbering")
def _(folder: Path) -> Built:
    from benchmarks.pairs.families.vision_torch import _convnext_timm, _convnext_tv

    source, target = _convnext_timm(), _convnext_tv()
    return told(folder, source, target, images(2, 3, 64, 64), saved=files.safetensors)


@pair("unseen swin v2: torchvision to timm, key bias that counts for nothing", "attention")
def _(folder: Path) -> Built:
    from timm.models.swin_transformer_v2 import SwinTransformerV2
    from torchvision.models.swin_transformer import (
        PatchMergingV2,
        SwinTransformer,
        SwinTransformerBlockV2,
    )

    source = SwinTransformer(
        [4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=10, block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )  # fmt: skip
    target = SwinTransformerV2(
        32, 4, num_classes=10, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4
    )
    sets = Sets(unused=("*.relative_*",), fresh=("*.relative_*", "*attn_mask"))
    return told(folder, source, target, images(2, 3, 32, 32), sets=sets)


@pair("unseen squeezenet: torchvision to stages of units", "numbering")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.unseen import OtherSqueezeNet

    source, target = tv("squeezenet1_1")(), OtherSqueezeNet()
    return told(folder, source, target, images(2, 3, 64, 64), truth=in_order(random_torch(source)))


SHUFFLE = ([2, 3, 2], [8, 16, 24, 32, 48])


@pair("unseen shufflenet: torchvision's stages to the authors' flat list", "numbering")
def _(folder: Path) -> Built:
    from torchvision.models.shufflenetv2 import ShuffleNetV2

    from benchmarks.pairs.models.unseen import AuthorsShuffle

    source, target = ShuffleNetV2(*SHUFFLE, num_classes=10), AuthorsShuffle(*SHUFFLE)

    def flat(found: re.Match[str]) -> str:
        return f"features.{(0, 2, 5)[int(found[1]) - 2] + int(found[2])}."

    rules: Renames = (
        (r"^conv1\.", "first_conv."),
        (r"^conv5\.", "conv_last."),
        (r"^stage(\d)\.(\d)\.", flat),
        (r"branch1", "branch_proj"),
        (r"branch2", "branch_main"),
        (r"^fc\.", "classifier.0."),
    )
    return told(folder, source, target, images(2, 3, 64, 64), rules=rules, saved=files.safetensors)


@pair("unseen shufflenet: the authors' flat list to torchvision's stages", "numbering")
def _(folder: Path) -> Built:
    from torchvision.models.shufflenetv2 import ShuffleNetV2

    from benchmarks.pairs.models.unseen import AuthorsShuffle

    source, target = AuthorsShuffle(*SHUFFLE), ShuffleNetV2(*SHUFFLE, num_classes=10)
    return told(
        folder, source, target, images(2, 3, 64, 64),
        content=lambda m: {"state_dict": {f"module.{n}": t for n, t in m.state_dict().items()}},
    )  # fmt: skip


@pair("unseen regnet: transformers to torchvision", "numbering")
def _(folder: Path) -> Built:
    import transformers
    from torchvision.models.regnet import BlockParams, RegNet

    config = transformers.RegNetConfig(
        embedding_size=32, hidden_sizes=[16, 24, 32, 40], depths=[1, 2, 2, 1], groups_width=8,
        num_labels=10,
    )  # fmt: skip
    target = RegNet(
        BlockParams([1, 2, 2, 1], [16, 24, 32, 40], [8] * 4, [1.0] * 4, [2] * 4, 0.25), 10
    )
    source = transformers.RegNetForImageClassification(config)
    return told(folder, source, target, images(2, 3, 64, 64), saved=files.safetensors)


@pair("unseen mobilenet_v2: transformers to torchvision", "numbering")
def _(folder: Path) -> Built:
    from functools import partial

    import transformers
    from torch import nn

    config = transformers.MobileNetV2Config(tf_padding=False, num_labels=10)
    source = transformers.MobileNetV2ForImageClassification(config)
    target = tv("mobilenet_v2", norm_layer=partial(nn.BatchNorm2d, eps=1e-3))()
    return told(folder, source, target, images(2, 3, 64, 64), saved=files.safetensors)


# Vision transformers.
@pair("unseen siglip: transformers to timm, pooling by attention", "attention")
def _(folder: Path) -> Built:
    import transformers
    from timm.models import VisionTransformer

    config = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        image_size=32, patch_size=8,
    )  # fmt: skip
    source = transformers.SiglipVisionModel(config)
    target = VisionTransformer(
        32, 8, num_classes=0, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2, class_token=False,
        global_pool="map", act_layer="gelu_tanh",
    )  # fmt: skip
    return told(
        folder, source, target, images(2, 3, 32, 32), saved=files.safetensors,
        output="pooler_output",
    )  # fmt: skip


@pair("unseen siglip: timm to transformers, pooling by attention", "attention")
def _(folder: Path) -> Built:
    import transformers
    from timm.models import VisionTransformer

    config = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        image_size=32, patch_size=8,
    )  # fmt: skip
    target = transformers.SiglipVisionModel(config)
    source = VisionTransformer(
        32, 8, num_classes=0, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2, class_token=False,
        global_pool="map", act_layer="gelu_tanh",
    )  # fmt: skip
    return told(
        folder, source, target, images(2, 3, 32, 32), keyword="pixel_values",
        output="pooler_output",
    )  # fmt: skip


@pair("unseen clip: transformers' vision tower in the whole file to timm", "wrappers")
def _(folder: Path) -> Built:
    import transformers
    from timm.models import VisionTransformer

    small: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "hidden_act": "gelu",
    }  # fmt: skip
    vision = small | {"image_size": 32, "patch_size": 8}
    text = small | {"vocab_size": VOCABULARY, "max_position_embeddings": 16}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
    source = transformers.CLIPModel(config)
    target = VisionTransformer(
        32, 8, num_classes=0, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2, pre_norm=True,
        norm_layer="layernorm",
    )  # fmt: skip
    sets = Sets(unused=("text_*", "visual_projection.*", "logit_scale"))
    for module in target.modules():
        if type(module).__name__ == "LayerNorm":
            module.eps = 1e-5
    return told(
        folder, source, target, images(2, 3, 32, 32), saved=files.safetensors, sets=sets,
        ask=lambda x: source.vision_model(x), output="pooler_output",
    )  # fmt: skip


@pair("unseen dinov2: transformers to timm", "attention")
def _(folder: Path) -> Built:
    source = vits.hf("Dinov2Model", "Dinov2Config", mlp_ratio=2)
    target = vits.timm_vit(classes=0, init_values=1e-5)
    sets = Sets(unused=("embeddings.mask_token",))
    return told(
        folder, source, target, images(2, 3, 32, 32), saved=files.safetensors, sets=sets,
        output="pooler_output",
    )  # fmt: skip


# Language.
@pair("unseen RoBERTa: transformers to the authors' names", "numbering")
def _(folder: Path) -> Built:
    import transformers

    from benchmarks.pairs.models.unseen import FairseqRoberta

    source = transformers.RobertaForMaskedLM(_roberta())
    return told(
        folder, source, FairseqRoberta(), words(), saved=files.safetensors,
        sets=Sets(unused=("*token_type_embeddings*", "*lm_head.decoder.*")),
        ask=lambda ids: _no_segments(source, ids),
    )  # fmt: skip


def _roberta() -> Any:
    import transformers

    return transformers.RobertaConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS,
        intermediate_size=HIDDEN, vocab_size=VOCABULARY, max_position_embeddings=16,
        type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5,
    )  # fmt: skip


def _no_segments(model: Any, ids: Any) -> Any:
    """fairseq has no segments; transformers' only row of them is zero in files made of its own."""
    import torch

    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "token_type" in name:
                tensor.zero_()
    return model(ids)


@pair("unseen RoBERTa: the authors' names to transformers", "transfer")
def _(folder: Path) -> Built:
    import transformers

    from benchmarks.pairs.models.unseen import FairseqRoberta

    source, target = FairseqRoberta(), transformers.RobertaForMaskedLM(_roberta())
    random_torch(source)
    rules: Renames = (
        (r"^encoder\.sentence_encoder\.embed_tokens", "roberta.embeddings.word_embeddings"),
        (r"^encoder\.sentence_encoder\.embed_positions", "roberta.embeddings.position_embeddings"),
        (r"^encoder\.sentence_encoder\.layernorm_embedding", "roberta.embeddings.LayerNorm"),
        (r"^encoder\.sentence_encoder\.layers", "roberta.encoder.layer"),
        (r"self_attn\.k_proj", "attention.self.key"),
        (r"self_attn\.v_proj", "attention.self.value"),
        (r"self_attn\.q_proj", "attention.self.query"),
        (r"self_attn\.out_proj", "attention.output.dense"),
        (r"self_attn_layer_norm", "attention.output.LayerNorm"),
        (r"fc1", "intermediate.dense"),
        (r"fc2", "output.dense"),
        (r"final_layer_norm", "output.LayerNorm"),
        (r"^encoder\.lm_head\.weight", "lm_head.decoder.weight"),
        (r"^encoder\.lm_head", "lm_head"),
    )

    def change(arrays: Any) -> Any:
        made = renamed(arrays, rules)
        return made | {"lm_head.decoder.bias": made["lm_head.bias"]}

    return changed(
        folder, source, target, {"input_ids": words()},
        Sets(fresh=("roberta.embeddings.token_type_embeddings.weight",)), change=change,
        stays="token_type",
    )  # fmt: skip


@pair("unseen DistilBERT: transformers to PyTorch's encoder layers", "attention")
def _(folder: Path) -> Built:
    import transformers

    from benchmarks.pairs.models.unseen import TorchDistil

    config = transformers.DistilBertConfig(
        dim=WIDTH, n_layers=3, n_heads=HEADS, hidden_dim=HIDDEN, vocab_size=VOCABULARY,
        max_position_embeddings=16,
    )  # fmt: skip
    source = transformers.DistilBertModel(config)
    return told(
        folder, source, TorchDistil(), words(), saved=files.safetensors, output="last_hidden_state"
    )


@pair("unseen DistilBERT: PyTorch's encoder layers to transformers", "attention")
def _(folder: Path) -> Built:
    import transformers

    from benchmarks.pairs.models.unseen import TorchDistil

    config = transformers.DistilBertConfig(
        dim=WIDTH, n_layers=3, n_heads=HEADS, hidden_dim=HIDDEN, vocab_size=VOCABULARY,
        max_position_embeddings=16,
    )  # fmt: skip
    target = transformers.DistilBertModel(config)
    return told(
        folder, TorchDistil(), target, words(), keyword="input_ids", output="last_hidden_state"
    )


@pair("unseen ELECTRA: a discriminator's file to a BERT encoder", "wrappers")
def _(folder: Path) -> Built:
    import transformers

    sizes: dict[str, Any] = {
        "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS,
        "intermediate_size": HIDDEN, "vocab_size": VOCABULARY, "max_position_embeddings": 16,
    }  # fmt: skip
    source = transformers.ElectraForPreTraining(
        transformers.ElectraConfig(embedding_size=WIDTH, **sizes)
    )
    target = transformers.BertModel(transformers.BertConfig(**sizes), add_pooling_layer=False)
    return told(
        folder, source, target, words(), saved=files.safetensors, keyword="input_ids",
        output="last_hidden_state", sets=Sets(unused=("discriminator_predictions.*",)),
        ask=lambda ids: source.electra(ids),
    )  # fmt: skip


@pair("unseen ALBERT: transformers to one shared layer by hand", "numbering")
def _(folder: Path) -> Built:
    import transformers

    from benchmarks.pairs.models.unseen import SharedEncoder

    config = transformers.AlbertConfig(
        embedding_size=16, hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=HEADS,
        intermediate_size=HIDDEN, vocab_size=VOCABULARY, max_position_embeddings=16,
        hidden_act="gelu", type_vocab_size=2,
    )  # fmt: skip
    source = transformers.AlbertModel(config)
    return told(
        folder, source, SharedEncoder(), words(), saved=files.safetensors,
        output="last_hidden_state", sets=Sets(unused=("pooler.*",)),
    )  # fmt: skip


def _bart() -> Any:
    import transformers

    config = transformers.BartConfig(
        d_model=WIDTH, encoder_layers=2, decoder_layers=2, encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS, encoder_ffn_dim=HIDDEN, decoder_ffn_dim=HIDDEN,
        vocab_size=VOCABULARY, max_position_embeddings=16, use_cache=False,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config)


@pair("unseen BART: transformers to torch.nn.Transformer", "attention")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.unseen import TorchBart

    source = _bart()
    x = words(), tokens(2, 6, vocabulary=VOCABULARY, seed=2)
    sets = Sets(unused=("final_logits_bias", "lm_head.weight", "model.*coder.embed_tokens.weight"))
    return told(
        folder, source, TorchBart(), x, saved=files.safetensors, sets=sets,
        ask=lambda ids, other: source(ids, decoder_input_ids=other),
    )  # fmt: skip


@pair("unseen OPT: transformers to Wqkv in the manner of MPT", "attention")
def _(folder: Path) -> Built:
    import transformers

    from benchmarks.pairs.models.unseen import MosaicOPT

    config = transformers.OPTConfig(
        hidden_size=WIDTH, word_embed_proj_dim=WIDTH, num_hidden_layers=3,
        num_attention_heads=HEADS, ffn_dim=HIDDEN, vocab_size=VOCABULARY,
        max_position_embeddings=16, use_cache=False,
    )  # fmt: skip
    source = transformers.OPTForCausalLM(config)
    sets = Sets(unused=("lm_head.weight",))
    return told(folder, source, MosaicOPT(), words(), saved=files.safetensors, sets=sets)


@pair("unseen GPT-J: transformers to plain words", "numbering")
def _(folder: Path) -> Built:
    import transformers

    from benchmarks.pairs.models.unseen import HandGPTJ

    config = transformers.GPTJConfig(
        n_embd=WIDTH, n_layer=3, n_head=HEADS, vocab_size=VOCABULARY, n_positions=16, rotary_dim=4,
        use_cache=False,
    )  # fmt: skip
    source = transformers.GPTJForCausalLM(config)
    return told(folder, source, HandGPTJ(), words(), saved=files.safetensors)


@pair("unseen GPT-J: plain words to transformers", "numbering")
def _(folder: Path) -> Built:
    import transformers

    from benchmarks.pairs.models.unseen import HandGPTJ

    config = transformers.GPTJConfig(
        n_embd=WIDTH, n_layer=3, n_head=HEADS, vocab_size=VOCABULARY, n_positions=16, rotary_dim=4,
        use_cache=False,
    )  # fmt: skip
    target = transformers.GPTJForCausalLM(config)
    return told(folder, HandGPTJ(), target, words(), keyword="input_ids")


def _phi() -> Any:
    import transformers

    config = transformers.PhiConfig(
        hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=HEADS,
        intermediate_size=HIDDEN, vocab_size=VOCABULARY, max_position_embeddings=16,
        use_cache=False, rope_parameters={
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
        },
    )  # fmt: skip
    return transformers.PhiForCausalLM(config)


@pair("unseen Phi: transformers to the first names, split to Wqkv", "attention")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.unseen import MixerPhi

    return told(folder, _phi(), MixerPhi(), words(), saved=files.safetensors)


@pair("unseen Phi: the first names to transformers, Wqkv to split", "attention")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.unseen import MixerPhi

    return told(folder, MixerPhi(), _phi(), words(), keyword="input_ids")


@pair("unseen Gemma: transformers to the authors', grouped q, k, v in one", "attention")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.unseen import AuthorsGemma

    source = language.llama("Gemma", head_dim=8)
    source.lm_head.weight = source.model.embed_tokens.weight
    sets = Sets(unused=("lm_head.weight",))
    return told(folder, source, AuthorsGemma(), words(), saved=files.safetensors, sets=sets)


@pair("unseen Qwen2: transformers to the first Qwen's names, gate called w2", "attention")
def _(folder: Path) -> Built:
    import transformers

    from benchmarks.pairs.models.unseen import FirstQwen

    config = transformers.Qwen2Config(
        hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, intermediate_size=HIDDEN, vocab_size=VOCABULARY,
        max_position_embeddings=16, rms_norm_eps=1e-6, use_cache=False, tie_word_embeddings=False,
    )  # fmt: skip
    source = transformers.Qwen2ForCausalLM(config)
    return told(folder, source, FirstQwen(), words(), saved=files.safetensors)


@pair("unseen Mistral: the authors' names in one sharded wrapper to transformers", "wrappers")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.decoders import MetaLlama

    def content(model: Any) -> Any:
        state = model.state_dict()
        return {f"_fsdp_wrapped_module._orig_mod.{n}": t for n, t in state.items()}

    target = language.llama("Mistral", sliding_window=None)
    return told(folder, MetaLlama(), target, words(), content=content, keyword="input_ids")


@pair("unseen T5 v1.1 encoder: transformers to T5X' words", "attention")
def _(folder: Path) -> Built:
    import transformers

    from benchmarks.pairs.models.unseen import GatedT5

    config = transformers.T5Config(
        d_model=WIDTH, d_kv=8, d_ff=HIDDEN, num_layers=2, num_heads=HEADS, vocab_size=VOCABULARY,
        relative_attention_num_buckets=8, dropout_rate=0.0, use_cache=False,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    source = transformers.T5EncoderModel(config)
    sets = Sets(unused=("encoder.embed_tokens.weight",))
    return told(
        folder, source, GatedT5(), words(), saved=files.safetensors, sets=sets,
        output="last_hidden_state",
    )  # fmt: skip


# Wrappers.
@pair("unseen averaged model with its counter, inside a trainer's state", "wrappers")
def _(folder: Path) -> Built:
    import torch

    source, target = _resnext_timm(), _resnext_tv()

    def content(model: Any) -> Any:
        averaged = torch.optim.swa_utils.AveragedModel(model)
        return {"swa_state": averaged.state_dict(), "epoch": 4, "args": {"lr": 0.1}}

    sets = Sets(unused=("*n_averaged",))
    return told(folder, source, target, images(2, 3, 64, 64), content=content, sets=sets)


def _detector() -> Any:
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    return FasterRCNN(backbone, num_classes=4, box_detections_per_img=10)


def _features() -> Any:
    import timm

    return timm.create_model("resnet18", features_only=True)


@pair("unseen the backbone of a detector, whose norms are frozen, to timm's features", "wrappers")
def _(folder: Path) -> Built:
    source = _detector()
    sets = Sets(unused=("backbone.fpn.*", "rpn.*", "roi_heads.*"))
    return told(
        folder, source, _last(_features()), images(1, 3, 64, 64), sets=sets,
        ask=lambda x: source.backbone.body(x)["3"],
    )  # fmt: skip


def _last(model: Any) -> Any:
    """A feature extractor that answers with its last map only."""
    forward = model.forward
    model.forward = lambda x: forward(x)[-1]
    return model


@pair("unseen a classifier into the backbone of a detector", "transfer")
def _(folder: Path) -> Built:
    target = _detector()
    target.forward = lambda x: target.backbone.body(x)["3"]
    heads = ("backbone.fpn.*", "rpn.*", "roi_heads.*")
    sets = Sets(fresh=heads, unused=("fc.*",))
    return changed(
        folder, tm("resnet18")(), target, images(1, 3, 64, 64), sets, stays=r"^(backbone\.fpn|r)",
        change=lambda arrays: {f"backbone.body.{n}": a for n, a in arrays.items()},
        unused=r"fc\.",
    )  # fmt: skip


@pair("unseen three networks of one training, one asked for", "wrappers")
def _(folder: Path) -> Built:
    """A style transfer: two generators and a discriminator, of which one is wanted by name."""
    from benchmarks.pairs.models.nets import SmallResNet

    others = [random_torch(SmallResNet(), seed) for seed in (3, 4)]

    def content(model: Any) -> Any:
        return {
            "netG_A": others[0].state_dict(), "netG_B": model.state_dict(),
            "netD": others[1].state_dict(), "iteration": 7,
        }  # fmt: skip

    return told(
        folder, SmallResNet(), SmallResNet(), images(2, 3, 16, 16), content=content,
        container="netG_B",
    )  # fmt: skip


@pair("unseen masked autoencoder to a classifier", "transfer")
def _(folder: Path) -> Built:
    from torch import nn

    source = vits.timm_vit(classes=0)
    blocks = vits.timm_vit(classes=0).blocks
    source.mask_token = nn.Parameter(source.cls_token.detach().clone())
    source.decoder_pos_embed = nn.Parameter(source.pos_embed.detach().clone())
    source.decoder_embed = nn.Linear(32, 32)
    source.decoder_blocks = blocks
    source.decoder_norm = nn.LayerNorm(32)
    source.decoder_pred = nn.Linear(32, 192)
    sets = Sets(fresh=("head.*",), unused=("decoder_*", "mask_token"))
    return changed(
        folder, source, vits.timm_vit(), images(2, 3, 32, 32), sets, stays=r"^head\.",
        unused=r"^(decoder_|mask_token)",
        saved=lambda folder, model: files.pth(folder, {"model": model.state_dict(), "epoch": 800}),
    )  # fmt: skip


# Numbering.
def _mixer(name: Callable[[int], str], depth: int = 12, width: int = 12) -> Any:
    from torch import nn

    from benchmarks.pairs.models.nets import Chain

    steps: list[tuple[str, Any]] = [("stem", nn.Linear(12, width))]
    for i in range(depth):
        steps += [(name(i) + ".fc", nn.Linear(width, width)), ("", nn.GELU())]
        steps += [(name(i) + ".ln", nn.LayerNorm(width))]
    return Chain([*steps, ("head", nn.Linear(width, 5))])


def _rows(width: int = 12) -> Any:
    return generator(1, "rows").standard_normal((4, width)).astype(np.float32)


@pair("unseen letters in order to numbers", "numbering")
def _(folder: Path) -> Built:
    source = _mixer(lambda i: f"block_{'abcdefghijkl'[i]}")
    return told(folder, source, _mixer(lambda i: f"blocks.{i}"), _rows(), saved=files.safetensors,
                truth=in_order(random_torch(source)))  # fmt: skip


@pair("unseen numbers from 100 in tens to stages of three, sorted as text", "numbering")
def _(folder: Path) -> Built:
    source = _mixer(lambda i: f"body.{10 * i}")
    target = _mixer(lambda i: f"stage{i // 3 + 1}.unit{i % 3 + 1}")
    return told(folder, source, target, _rows(), saved=files.safetensors,
                truth=in_order(random_torch(source)))  # fmt: skip


@pair("unseen stages with letters to one list", "numbering")
def _(folder: Path) -> Built:
    """Caffe's way: `res2a`, `res2b`, `res3a` …"""
    source = _mixer(lambda i: f"res{i // 4 + 2}{'abcd'[i % 4]}")
    return told(folder, source, _mixer(lambda i: f"layers.{i + 1}"), _rows(),
                saved=files.safetensors, truth=in_order(random_torch(source)))  # fmt: skip


# Reparametrised.
@pair("unseen vocoder: weight norm, old form, on transposed convolutions too", "reparametrised")
def _(folder: Path) -> Built:
    import warnings

    import torch

    from benchmarks.pairs.models.unseen import Vocoder

    source = Vocoder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in source.modules():
            if isinstance(module, (torch.nn.Conv1d, torch.nn.ConvTranspose1d)):
                torch.nn.utils.weight_norm(module)
    x = generator(1, "mel").standard_normal((2, 6, 20)).astype(np.float32)
    return told(folder, source, Vocoder(), x, content=lambda m: {"generator": m.state_dict()})


def _spectral(old: bool) -> tuple[Any, Any]:
    import torch

    from benchmarks.pairs.families.reparametrised import _conv_net

    source, target = _conv_net(), _conv_net()
    utils = torch.nn.utils
    for layer in source:
        if hasattr(layer, "weight"):
            (utils.spectral_norm if old else utils.parametrizations.spectral_norm)(layer)
    return source, target


@pair("unseen spectral norm, old form, to plain", "reparametrised")
def _(folder: Path) -> Built:
    source, target = _spectral(old=True)
    return told(folder, source, target, images(2, 3, 12, 12))


@pair("unseen spectral norm, new form, to plain", "reparametrised")
def _(folder: Path) -> Built:
    source, target = _spectral(old=False)
    return told(folder, source, target, images(2, 3, 12, 12), saved=files.safetensors)


@pair("unseen adapters on convolutions and a head that was trained beside", "reparametrised")
def _(folder: Path) -> Built:
    import torch

    from benchmarks.pairs.families.reparametrised import _conv_net

    source, target = random_torch(_conv_net()), _conv_net()
    content: dict[str, Any] = {}
    random = torch.Generator().manual_seed(3)
    for name, tensor in list(source.state_dict().items()):
        layer, _, leaf = name.rpartition(".")
        stem = f"base_model.model.{layer}"
        if layer == "7":
            content[f"{stem}.original_module.{leaf}"] = torch.randn(tensor.shape)
            content[f"{stem}.modules_to_save.default.{leaf}"] = tensor.clone()
            continue
        content[f"{stem}.base_layer.{leaf}"] = tensor.clone()
        if leaf == "weight":
            out, into, *size = tensor.shape
            a = torch.randn(2, into, *size, generator=random) * 0.2
            b = torch.randn(out, 2, 1, 1, generator=random) * 0.2
            content[f"{stem}.lora_A.default.weight"] = a
            content[f"{stem}.lora_B.default.weight"] = b
            tensor += 2.0 * torch.einsum("orxy,rihw->oihw", b, a)

    def saved(folder: Path, _: Any) -> Path:
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False}
        (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
        return files.safetensors(folder, content)

    x = images(2, 3, 12, 12)
    with torch.no_grad():
        outputs = source(torch.from_numpy(x)).numpy()
    sets = Sets(unused=("*original_module*",))
    return Built(saved(folder, None), random_torch(target, 9), outputs, x, sets=sets,
                 truth=by_names(source))  # fmt: skip


@pair("unseen mobilenet's norms folded by a tracer", "reparametrised")
def _(folder: Path) -> Built:
    from torch.fx.experimental.optimization import fuse

    source = tv("mobilenet_v2", width_mult=0.25)()
    return told(folder, source, fuse(tv("mobilenet_v2", width_mult=0.25)().eval()),
                images(2, 3, 64, 64))  # fmt: skip


@pair("unseen int8 rows with SCB, as bitsandbytes has it", "reparametrised")
def _(folder: Path) -> Built:
    import torch

    from benchmarks.pairs.families.reparametrised import _perceptron, stored

    def change(state: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, tensor in list(state.items()):
            if tensor.ndim < 2:
                made[name] = tensor
                continue
            largest = tensor.abs().amax(1)
            codes = (tensor * 127 / largest[:, None]).round().to(torch.int8)
            state[name] = codes.float() * largest[:, None] / 127
            made[name] = codes
            made[name.replace("weight", "SCB")] = largest
            made[name.replace("weight", "weight_format")] = torch.tensor(0, dtype=torch.uint8)
        return made

    sets = Sets(unused=("*weight_format",))
    return stored(folder, _perceptron(), _perceptron(), change, _rows(), sets=sets)


@pair("unseen pruned under a wrapper and other names", "reparametrised")
def _(folder: Path) -> Built:
    import torch
    from torch.nn.utils import prune

    source, target = _resnext_tv(), _resnext_timm()
    for module in source.modules():
        if isinstance(module, torch.nn.Conv2d):
            prune.random_unstructured(module, "weight", 0.4)

    def content(model: Any) -> Any:
        return {f"module.{n}": t for n, t in model.state_dict().items()}

    return told(folder, source, target, images(2, 3, 64, 64), content=content)


# Transfer.
@pair("unseen vit: torchvision to timm, larger images and another head", "transfer")
def _(folder: Path) -> Built:
    from functools import partial

    import torch
    from timm.layers import resample_abs_pos_embed
    from torch import nn

    from benchmarks.pairs.families.vision_torch import VIT_RULES, _vit_tv

    target = vits.timm_vit(48, 4, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    target.blocks.append(vits.timm_vit(norm_layer=partial(nn.LayerNorm, eps=1e-6)).blocks[0])

    def change(arrays: Any) -> Any:
        made = renamed(arrays, VIT_RULES)
        table = torch.from_numpy(made["pos_embed"])
        made["pos_embed"] = resample_abs_pos_embed(table, [6, 6]).numpy()
        return made

    sets = Sets(fresh=("head.*",), adapted=("pos_embed",), unused=("heads.head.*",))
    return changed(
        folder, _vit_tv(), target, images(2, 3, 48, 48), sets, change=change, stays=r"^head\.",
        unused=r"^head\.",
    )  # fmt: skip


@pair("unseen densenet: torchvision to timm, one channel, another head", "transfer")
def _(folder: Path) -> Built:
    from timm.models.densenet import DenseNet

    from benchmarks.pairs.families.vision_torch import _densenet_tv

    source = _densenet_tv()
    target = DenseNet(growth_rate=8, block_config=(2, 3, 2), num_classes=4, in_chans=1)

    def change(arrays: Any) -> Any:
        name = "features.conv0.weight"
        return arrays | {name: arrays[name].sum(1, keepdims=True)}

    sets = Sets(
        fresh=("classifier.*",), adapted=("features.conv0.weight",), unused=("classifier.*",)
    )
    return changed(
        folder, source, target, images(2, 1, 64, 64), sets, change=change, stays="classifier",
        unused="classifier",
    )  # fmt: skip


@pair("unseen BERT with grown vocabulary and tied head", "transfer")
def _(folder: Path) -> Built:
    import transformers

    def model(vocabulary: int) -> Any:
        return transformers.BertForMaskedLM(
            transformers.BertConfig(
                hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS,
                intermediate_size=HIDDEN, vocab_size=vocabulary, max_position_embeddings=16,
            )
        )  # fmt: skip

    target = random_torch(model(70), 9)
    kept = {n: np.array(a) for n, a in arrays_of(target).items()}

    def change(arrays: Any) -> Any:
        return {
            n: a if a.shape == kept[n].shape else np.concatenate([a, kept[n][len(a) :]])
            for n, a in arrays.items()
        }

    grown = (
        "bert.embeddings.word_embeddings.weight", "cls.predictions.bias",
        "cls.predictions.decoder.weight", "cls.predictions.decoder.bias",
    )  # fmt: skip
    return changed(
        folder, model(60), target, {"input_ids": words()}, Sets(adapted=grown), change=change
    )


@pair("unseen LLaMA: the authors' names to a deeper one of transformers", "transfer")
def _(folder: Path) -> Built:
    import transformers

    from benchmarks.pairs.models.decoders import MetaLlama

    config = transformers.MistralConfig(
        hidden_size=WIDTH, num_hidden_layers=5, num_attention_heads=HEADS, num_key_value_heads=2,
        intermediate_size=HIDDEN, vocab_size=VOCABULARY, max_position_embeddings=16,
        rms_norm_eps=1e-6, use_cache=False, tie_word_embeddings=False, sliding_window=None,
    )  # fmt: skip
    rules: Renames = (
        (r"^tok_embeddings\.", "model.embed_tokens."),
        (r"^(layers|norm)\.", r"model.\1."),
        (r"attention\.w(\w)", r"self_attn.\1_proj"),
        (r"feed_forward\.w1", "mlp.gate_proj"),
        (r"feed_forward\.w2", "mlp.down_proj"),
        (r"feed_forward\.w3", "mlp.up_proj"),
        (r"attention_norm", "input_layernorm"),
        (r"ffn_norm", "post_attention_layernorm"),
        (r"^output\.", "lm_head."),
    )
    sets = Sets(fresh=("model.layers.3.*", "model.layers.4.*"))
    return changed(
        folder, MetaLlama(), transformers.MistralForCausalLM(config), {"input_ids": words()}, sets,
        change=lambda arrays: language._roped(renamed(arrays, rules), language.to_halves),
        stays=r"layers\.[34]\.",
    )  # fmt: skip


@pair("unseen convnext with four channels, wrapped, other head", "transfer")
def _(folder: Path) -> Built:
    from timm.models.convnext import ConvNeXt

    from benchmarks.pairs.families.vision_torch import _convnext_timm

    target = ConvNeXt(4, 3, depths=(2, 2, 1, 1), dims=(16, 32, 48, 64))

    def change(arrays: Any) -> Any:
        kernel = arrays["stem.0.weight"]
        made = np.concatenate([kernel, kernel[:, :1]], 1) * (3 / 4)
        return arrays | {"stem.0.weight": made}

    def saved(folder: Path, model: Any) -> Path:
        state = {f"module.{n}": t for n, t in model.state_dict().items()}
        return files.pth(folder, {"state_dict": state, "epoch": 3})

    sets = Sets(
        fresh=("head.fc.*",), adapted=("stem.0.weight",), unused=("module.head.fc.*",)
    )  # fmt: skip
    return changed(
        folder, _convnext_timm(), target, images(2, 4, 64, 64), sets, change=change,
        stays=r"^head\.fc", unused=r"^head\.fc", saved=saved,
    )  # fmt: skip


@pair("unseen resnet with a deeper third stage", "transfer")
def _(folder: Path) -> Built:
    from torchvision.models.resnet import BasicBlock, ResNet

    sets = Sets(fresh=("layer3.2.*",))
    return changed(
        folder, ResNet(BasicBlock, [1, 1, 2, 1], 10), ResNet(BasicBlock, [1, 1, 3, 1], 10),
        images(2, 3, 64, 64), sets, stays=r"^layer3\.2\.",
    )  # fmt: skip


@pair("unseen speech model's pre-training to recognition", "transfer")
def _(folder: Path) -> Built:
    import transformers

    config = transformers.Wav2Vec2Config(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS,
        intermediate_size=HIDDEN, conv_dim=(16, 16), conv_stride=(4, 4), conv_kernel=(8, 4),
        num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        vocab_size=20, codevector_dim=16, proj_codevector_dim=16, num_codevectors_per_group=8,
    )  # fmt: skip
    sound = generator(1, "sound").standard_normal((2, 400)).astype(np.float32)
    unused = ("quantizer.*", "project_*")
    return changed(
        folder, transformers.Wav2Vec2ForPreTraining(config), transformers.Wav2Vec2ForCTC(config),
        {"input_values": sound}, Sets(fresh=("lm_head.*",), unused=unused), stays=r"^lm_head",
        unused=r"^(quantizer|project_)", saved=files.safetensors,
    )  # fmt: skip


# Traps.
@pair("unseen momentum contrast: two encoders of one shape", "traps")
def _(folder: Path) -> Built:
    """The one with gradients is meant, and nothing in the model says so."""
    import torch

    other = random_torch(_resnext_tv(), 5).state_dict()

    def content(model: Any) -> Any:
        state = {f"module.first.{n}": t for n, t in other.items()}
        state |= {f"module.second.{n}": t for n, t in model.state_dict().items()}
        return {"state_dict": state | {"module.queue": torch.rand(8, 64)}}

    return told(folder, _resnext_tv(), _resnext_timm(), images(2, 3, 64, 64), content=content)


@pair("unseen epsilon forgotten: mobilenet_v3 to timm's default", "traps", reveals="probe")
def _(folder: Path) -> Built:
    source, target = tv("mobilenet_v3_small")(), tm("mobilenetv3_small_100")()
    return told(folder, source, target, images(2, 3, 64, 64))


@pair("unseen GPT-2 with an exact GELU to nanoGPT's by tanh", "traps", reveals="probe")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.decoders import NanoGPT

    source, target = language.gpt2(activation_function="gelu"), NanoGPT()
    for name, tensor in random_torch(source).named_parameters():
        if "c_fc.weight" in name:
            tensor.data *= 4
    return told(folder, source, target, words(), saved=files.safetensors)


@pair("unseen one variance negative in half precision", "traps")
def _(folder: Path) -> Built:
    def content(model: Any) -> Any:
        state = {
            n: t.half() if t.dtype.is_floating_point else t for n, t in model.state_dict().items()
        }
        state["layer3.0.bn2.running_var"][2] *= -1
        return state

    return told(folder, _resnext_tv(), _resnext_timm(), images(2, 3, 64, 64), content=content)


@pair("unseen strides in the first or the second convolution", "traps", reveals="probe")
def _(folder: Path) -> Built:
    source, target = _resnext_tv(), _resnext_timm()
    for stage in (source.layer2, source.layer3, source.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return told(folder, source, target, images(2, 3, 64, 64))


@pair("unseen two towers of one shape under other names", "traps")
def _(folder: Path) -> Built:
    import torch
    from torch import nn

    class Towers(nn.Module):
        def __init__(self, first: str, second: str) -> None:
            super().__init__()
            for name in sorted((first, second)):
                self.add_module(name, nn.Sequential(nn.Linear(12, 12), nn.Tanh()))
            self.names = first, second
            self.out = nn.Linear(12, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second = (self.get_submodule(name) for name in self.names)
            return self.out(first(x) * second(x * x))

    return told(folder, Towers("user", "item"), Towers("ada", "zoe"), _rows(),
                saved=files.safetensors)  # fmt: skip


@pair("unseen NaN in a table of half precision", "traps")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.unseen import MosaicOPT

    def content(model: Any) -> Any:
        state = {n: t.half() for n, t in model.state_dict().items()}
        state["transformer.wte.weight"][59, 3] = float("nan")
        return state

    return told(folder, MosaicOPT(), MosaicOPT(), words(), content=content)


@pair("unseen norms first or last in PyTorch's own layers", "traps", reveals="probe")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.unseen import TorchDistil

    source = TorchDistil()
    for layer in source.trunk.layers:
        layer.norm_first = True
    return told(folder, source, TorchDistil(), words())


@pair("unseen rows of an archive without axes: square attention", "traps")
def _(folder: Path) -> Built:
    """Every matrix is square, the file has no framework, and its names say no layout."""
    from benchmarks.pairs.families.traps import _square

    def saved(folder: Path, state: Any) -> Path:
        flat = {n.replace("weight", "m").replace("bias", "b"): t.numpy() for n, t in state.items()}
        np.savez(folder / "net.npz", **{n: a.T if a.ndim == 2 else a for n, a in flat.items()})
        return folder / "net.npz"

    return told(folder, _square(), _square(), _rows(), content=lambda m: m.state_dict(),
                saved=saved)  # fmt: skip


@pair("unseen heads of another count in timm's attention", "traps", reveals="probe")
def _(folder: Path) -> Built:
    source, target = vits.timm_vit(), vits.timm_vit()
    for block in source.blocks:
        block.attn.num_heads, block.attn.head_dim, block.attn.scale = 2, 16, 0.25
    return told(folder, source, target, images(2, 3, 32, 32))
