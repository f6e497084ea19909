"""Vision transformers of timm, transformers, open_clip, JAX and published files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pairs import files
from benchmarks.pairs.collection import Built, Sets, pair
from benchmarks.pairs.randomness import images, random_torch, tokens
from benchmarks.pairs.truths import arrays_of, load_torch, renamed

Arrays = dict[str, Any]
Change = Callable[[Arrays], Arrays]


def timm_vit(size: int = 32, classes: int = 10, **options: Any) -> Any:
    from timm.models import VisionTransformer

    return VisionTransformer(
        size, 8, num_classes=classes, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2, **options
    )


def hf(kind: str, config: str, **options: Any) -> Any:
    import transformers

    settings: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "image_size": 32, "patch_size": 8, "num_labels": 10,
        "layer_norm_eps": 1e-6,
    }  # fmt: skip
    made = getattr(transformers, config)(**settings | options)
    return getattr(transformers, kind)(made)


def built(
    folder: Path,
    source: Any,
    target: Any,
    change: Change,
    *,
    inputs: Any = None,
    saved: Callable[[Path, Any], Path] = files.safetensors,
    output: str = "logits",
    stays: str = "",
    unused: str = "",
    **options: Any,
) -> Built:
    """Image models; those of transformers are called in their own way."""
    import torch

    random_torch(source, 0)
    random_torch(target, 9)
    x = images(2, 3, 32, 32) if inputs is None else inputs
    with torch.no_grad():
        answer = source(torch.from_numpy(x))
    answer = getattr(answer, output, answer).numpy()
    arrays = change({name: np.array(array) for name, array in arrays_of(source).items()})

    def truth(model: Any) -> Any:
        return load_torch(model, arrays, stays=stays, unused=unused)

    path = saved(folder, source)
    if type(target).__module__.startswith("transformers."):
        return Built(path, target, {output: answer}, {"pixel_values": x}, truth=truth, **options)
    return Built(path, target, answer, x, truth=truth, **options)


def fuse(arrays: Arrays, find: str, into: str) -> Arrays:
    """Joins q, k and v. `find`: a template with `{}` for the letter; names that hold it."""
    made: Arrays = {}
    for name, array in arrays.items():
        if find.format("q") in name:
            parts = [arrays[name.replace(find.format("q"), find.format(w))] for w in "qkv"]
            made[name.replace(find.format("q"), into)] = np.concatenate(parts)
        elif not any(find.format(w) in name for w in "kv"):
            made[name] = array
    return made


def split(arrays: Arrays, find: str, into: str) -> Arrays:
    """The way back."""
    made: Arrays = {}
    for name, array in arrays.items():
        if find not in name:
            made[name] = array
            continue
        for part, letter in zip(np.split(array, 3), "qkv", strict=True):
            made[name.replace(find, into.format(letter))] = part
    return made


_FROM_HF = (
    (r"^(vit|deit)\.", ""),
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.distillation_token", "dist_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^layers\.", "blocks."),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.o_proj", "attn.proj"),
    (r"attention\.qkv", "attn.qkv"),
    (r"^layernorm\.", "norm."),
    (r"^(cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)
_TO_HF = (
    (r"^norm\.", "vit.layernorm."),
    (r"^cls_token", "vit.embeddings.cls_token"),
    (r"^pos_embed", "vit.embeddings.position_embeddings"),
    (r"^patch_embed\.proj", "vit.embeddings.patch_embeddings.projection"),
    (r"^blocks\.", "vit.layers."),
    (r"norm1", "layernorm_before"),
    (r"norm2", "layernorm_after"),
    (r"attn\.proj", "attention.o_proj"),
    (r"attn\.qkv", "attention.qkv"),
    (r"^head\.", "classifier."),
)


def hf_to_timm(arrays: Arrays) -> Arrays:
    return renamed(fuse(arrays, "attention.{}_proj", "attention.qkv"), _FROM_HF)


def timm_to_hf(arrays: Arrays) -> Arrays:
    return split(renamed(arrays, _TO_HF), "attention.qkv", "attention.{}_proj")


@pair("vit: transformers to timm, split to fused", "attention")
def _(folder: Path) -> Built:
    source = hf("ViTForImageClassification", "ViTConfig")
    return built(folder, source, timm_vit(), hf_to_timm)


@pair("vit: timm to transformers, fused to split", "attention")
def _(folder: Path) -> Built:
    target = hf("ViTForImageClassification", "ViTConfig")
    return built(folder, timm_vit(), target, timm_to_hf)


# What transformers called things before its version 5, in the files that people have.
_PUBLISHED = (
    (r"vit\.layers\.", "vit.encoder.layer."),
    (r"attention\.q_proj", "attention.attention.query"),
    (r"attention\.k_proj", "attention.attention.key"),
    (r"attention\.v_proj", "attention.attention.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
)


def published(rules: Any) -> Callable[[Path, Any], Path]:
    """Saves under the names that the published files have."""

    def saved(folder: Path, model: Any) -> Path:
        return files.safetensors(folder, renamed(model.state_dict(), rules))

    return saved


@pair("vit: published names to transformers 5", "numbering")
def _(folder: Path) -> Built:
    source, target = (hf("ViTForImageClassification", "ViTConfig") for _ in range(2))
    return built(folder, source, target, dict, saved=published(_PUBLISHED))


@pair("vit: published names to timm", "attention")
def _(folder: Path) -> Built:
    source = hf("ViTForImageClassification", "ViTConfig")
    return built(folder, source, timm_vit(), hf_to_timm, saved=published(_PUBLISHED))


@pair("deit with two tokens and two heads: transformers to timm", "attention")
def _(folder: Path) -> Built:
    from timm.models.deit import VisionTransformerDistilled

    source = hf("DeiTForImageClassificationWithTeacher", "DeiTConfig")
    target = VisionTransformerDistilled(
        img_size=32, patch_size=8, num_classes=10, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2
    )
    return built(folder, source, target, hf_to_timm)


@pair("swin: transformers to timm, split to fused", "attention")
def _(folder: Path) -> Built:
    return _swin(folder, files.safetensors)


_SWIN_PUBLISHED = (
    (r"attention\.([qkv])_proj", lambda found: f"attention.self.{_WORDS[found[1]]}"),
    (r"attention\.relative_position_bias\.", "attention.self."),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
)
_WORDS = {"q": "query", "k": "key", "v": "value"}


@pair("swin: published names to timm", "attention")
def _(folder: Path) -> Built:
    return _swin(folder, published(_SWIN_PUBLISHED))


def _hf_swin() -> Any:
    import transformers

    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4,
        num_labels=10,
    )  # fmt: skip
    return transformers.SwinForImageClassification(config)


def _swin(folder: Path, saved: Callable[[Path, Any], Path]) -> Built:
    from timm.models.swin_transformer import SwinTransformer

    target = SwinTransformer(
        32, 4, num_classes=10, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4
    )
    rules = (
        (r"^swin\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"^swin\.embeddings\.norm", "patch_embed.norm"),
        (r"^swin\.encoder\.layers\.(\d)\.blocks", r"layers.\1.blocks"),
        # timm has the step down at the start of a stage, transformers at the end.
        (
            r"^swin\.encoder\.layers\.(\d)\.downsample",
            lambda found: f"layers.{int(found[1]) + 1}.downsample",
        ),
        (r"attention\.relative_position_bias\.", "attn."),
        (r"attention\.qkv", "attn.qkv"),
        (r"attention\.o_proj", "attn.proj"),
        (r"layernorm_before", "norm1"),
        (r"layernorm_after", "norm2"),
        (r"^swin\.layernorm", "norm"),
        (r"^classifier", "head.fc"),
    )

    def change(arrays: Arrays) -> Arrays:
        return renamed(fuse(arrays, "attention.{}_proj", "attention.qkv"), rules)

    return built(folder, _hf_swin(), target, change, saved=saved)


@pair("swin: published names to transformers 5", "numbering")
def _(folder: Path) -> Built:
    return built(folder, _hf_swin(), _hf_swin(), dict, saved=published(_SWIN_PUBLISHED))


@pair("beit without key biases: transformers to timm", "attention")
def _(folder: Path) -> Built:
    from timm.models.beit import Beit

    source = hf(
        "BeitForImageClassification", "BeitConfig", use_relative_position_bias=True,
        use_shared_relative_position_bias=False, use_mean_pooling=True, layer_norm_eps=1e-6,
        layer_scale_init_value=0.1,
    )  # fmt: skip
    target = Beit(
        32, 8, num_classes=10, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2, init_values=0.1,
        use_abs_pos_emb=False, use_rel_pos_bias=True,
    )  # fmt: skip
    rules = (
        (r"^beit\.pooler\.layernorm", "fc_norm"),
        (r"^beit\.", ""),
        (r"^embeddings\.cls_token", "cls_token"),
        (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"^layers\.", "blocks."),
        (r"lambda_(\d)", r"gamma_\1"),
        (r"layernorm_before", "norm1"),
        (r"layernorm_after", "norm2"),
        (r"attention\.o_proj", "attn.proj"),
        (r"relative_position_bias\.relative", "attn.relative"),
        (r"attention\.q_proj\.bias", "attn.q_bias"),
        (r"attention\.v_proj\.bias", "attn.v_bias"),
        (r"attention\.qkv\.weight", "attn.qkv.weight"),
        (r"^classifier", "head"),
    )

    def change(arrays: Arrays) -> Arrays:
        weights = {n: a for n, a in arrays.items() if re.search(r"[qkv]_proj\.weight", n)}
        rest = {n: a for n, a in arrays.items() if n not in weights}
        fused = fuse(weights, "attention.{}_proj", "attention.qkv")
        return renamed(rest | fused, rules)

    return built(folder, source, target, change)


@pair("dinov2: its own names, fused, to transformers", "attention")
def _(folder: Path) -> Built:
    source = timm_vit(classes=0, init_values=0.1, global_pool="token")
    target = hf("Dinov2Model", "Dinov2Config", mlp_ratio=2, intermediate_size=None)
    rules = (
        (r"^norm\.", "layernorm."),
        (r"^(cls_token)", r"embeddings.\1"),
        (r"^pos_embed", "embeddings.position_embeddings"),
        (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
        (r"^blocks\.", "encoder.layer."),
        (r"ls(\d)\.gamma", r"layer_scale\1.lambda1"),
        (r"attn\.proj", "attention.o_proj"),
        (r"attn\.qkv", "attention.qkv"),
    )

    def change(arrays: Arrays) -> Arrays:
        return split(renamed(arrays, rules), "attention.qkv", "attention.{}_proj")

    sets = Sets(fresh=("embeddings.mask_token",))
    made = built(folder, source, target, change, stays="mask_token", sets=sets)
    made.outputs = {"pooler_output": made.outputs["logits"]}
    return made


def _clip() -> Any:
    import transformers

    width = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128, "hidden_act": "gelu",
    }  # fmt: skip
    config = transformers.CLIPConfig(
        text_config=width | {"vocab_size": 50, "max_position_embeddings": 12, "eos_token_id": 49},
        vision_config=width | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    return transformers.CLIPModel(config)


def _open_clip() -> Any:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=2, width=32, head_width=8, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=12, vocab_size=50, width=32, heads=4, layers=2)
    return CLIP(16, vision, text)


_CLIP_RULES = (
    (r"^vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding", "visual.conv1"),
    (r"^vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm", "visual.ln_pre"),
    (r"^vision_model\.post_layernorm", "visual.ln_post"),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^text_model\.embeddings\.token_embedding", "token_embedding"),
    (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^text_model\.final_layer_norm", "ln_final"),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"layer_norm(\d)", r"ln_\1"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    (r"self_attn\.out_proj", "attn.out_proj"),
    (r"self_attn\.qkv\.", "attn.in_proj_"),
)


def _clip_to_open(arrays: Arrays) -> Arrays:
    made = renamed(fuse(arrays, "self_attn.{}_proj", "self_attn.qkv"), _CLIP_RULES)
    made["visual.proj"] = made.pop("visual_projection.weight").T
    made["text_projection"] = made.pop("text_projection.weight").T
    return made


def _open_to_clip(arrays: Arrays) -> Arrays:
    back = (
        (r"^visual\.class_embedding", "vision_model.embeddings.class_embedding"),
        (r"^visual\.conv1", "vision_model.embeddings.patch_embedding"),
        (r"^visual\.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        (r"^visual\.ln_pre", "vision_model.pre_layrnorm"),
        (r"^visual\.ln_post", "vision_model.post_layernorm"),
        (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
        (r"^token_embedding", "text_model.embeddings.token_embedding"),
        (r"^positional_embedding", "text_model.embeddings.position_embedding.weight"),
        (r"^ln_final", "text_model.final_layer_norm"),
        (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
        (r"ln_(\d)", r"layer_norm\1"),
        (r"mlp\.c_fc", "mlp.fc1"),
        (r"mlp\.c_proj", "mlp.fc2"),
        (r"attn\.out_proj", "self_attn.out_proj"),
        (r"attn\.in_proj_", "self_attn.qkv."),
    )
    made = split(renamed(arrays, back), "self_attn.qkv", "self_attn.{}_proj")
    made["visual_projection.weight"] = made.pop("visual.proj").T
    made["text_projection.weight"] = made.pop("text_projection").T
    return made


def _clip_inputs() -> tuple[Any, Any]:
    ids = tokens(2, 12, vocabulary=48)
    ids[:, -1] = 49  # the last token is where both libraries look for the sentence
    return images(2, 3, 32, 32), ids


@pair("clip: transformers to open_clip, split to in_proj", "attention")
def _(folder: Path) -> Built:
    import torch

    source, target = random_torch(_clip()), random_torch(_open_clip(), 9)
    x, ids = _clip_inputs()
    with torch.no_grad():
        made = source(pixel_values=torch.from_numpy(x), input_ids=torch.from_numpy(ids))
    outputs = {
        "output.0": made.image_embeds.numpy(), "output.1": made.text_embeds.numpy(),
        "output.2": source.logit_scale.exp().detach().numpy(),
    }  # fmt: skip
    arrays = _clip_to_open(arrays_of(source))
    return Built(
        files.safetensors(folder, source), target, outputs, (x, ids),
        truth=lambda model: load_torch(model, arrays),
    )  # fmt: skip


@pair("clip: open_clip to transformers, in_proj to split", "attention")
def _(folder: Path) -> Built:
    import torch

    source, target = random_torch(_open_clip()), random_torch(_clip(), 9)
    x, ids = _clip_inputs()
    with torch.no_grad():
        image, text, scale = source(torch.from_numpy(x), torch.from_numpy(ids))
    outputs = {
        "image_embeds": image.numpy(), "text_embeds": text.numpy(),
        "logits_per_image": (scale * image @ text.T).numpy(),
    }  # fmt: skip
    arrays = _open_to_clip(arrays_of(source))
    return Built(
        files.pth(folder, source), target, outputs, {"pixel_values": x, "input_ids": ids},
        truth=lambda model: load_torch(model, arrays), sets=Sets(unused=("attn_mask",)),
    )  # fmt: skip


def jax_vit(arrays: Arrays) -> Arrays:
    """timm's tensors under the names and in the layouts of the JAX vision transformer."""
    made: Arrays = {
        "embedding/kernel": arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": arrays["patch_embed.proj.bias"],
        "cls": arrays["cls_token"],
        "Transformer/posembed_input/pos_embedding": arrays["pos_embed"],
        "Transformer/encoder_norm/scale": arrays["norm.weight"],
        "Transformer/encoder_norm/bias": arrays["norm.bias"],
        "head/kernel": arrays["head.weight"].T,
        "head/bias": arrays["head.bias"],
    }
    heads, width = 4, 32
    for i in range(2):
        here, there = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        for norm, layer in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            made[f"{there}{layer}/scale"] = arrays[f"{here}{norm}.weight"]
            made[f"{there}{layer}/bias"] = arrays[f"{here}{norm}.bias"]
        attention = f"{there}MultiHeadDotProductAttention_1/"
        weights = np.split(arrays[f"{here}attn.qkv.weight"], 3)
        biases = np.split(arrays[f"{here}attn.qkv.bias"], 3)
        for word, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            made[f"{attention}{word}/kernel"] = weight.T.reshape(width, heads, -1)
            made[f"{attention}{word}/bias"] = bias.reshape(heads, -1)
        made[f"{attention}out/kernel"] = arrays[f"{here}attn.proj.weight"].T.reshape(
            heads, -1, width
        )
        made[f"{attention}out/bias"] = arrays[f"{here}attn.proj.bias"]
        for layer, dense in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            made[f"{there}MlpBlock_3/{dense}/kernel"] = arrays[f"{here}mlp.{layer}.weight"].T
            made[f"{there}MlpBlock_3/{dense}/bias"] = arrays[f"{here}mlp.{layer}.bias"]
    return made


def _saved_jax(folder: Path, model: Any) -> Path:
    np.savez(folder / "ViT.npz", **jax_vit(arrays_of(model)))
    return folder / "ViT.npz"


@pair("vit: the JAX authors' .npz to timm, heads to fused", "attention")
def _(folder: Path) -> Built:
    return built(folder, timm_vit(), timm_vit(), dict, saved=_saved_jax)


@pair("vit: the JAX authors' .npz to transformers, heads to split", "attention")
def _(folder: Path) -> Built:
    target = hf("ViTForImageClassification", "ViTConfig")
    return built(folder, timm_vit(), target, timm_to_hf, saved=_saved_jax)


@pair("resnet: transformers to timm", "numbering")
def _(folder: Path) -> Built:
    import timm
    import transformers

    config = transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2],
        layer_type="basic", num_labels=10,
    )  # fmt: skip
    rules = (
        (r"^resnet\.embedder\.embedder\.convolution", "conv1"),
        (r"^resnet\.embedder\.embedder\.normalization", "bn1"),
        (
            r"^resnet\.encoder\.stages\.(\d)\.layers\.",
            lambda found: f"layer{int(found[1]) + 1}.",
        ),
        (r"shortcut\.convolution", "downsample.0"),
        (r"shortcut\.normalization", "downsample.1"),
        (r"\.layer\.(\d)\.convolution", lambda found: f".conv{int(found[1]) + 1}"),
        (r"\.layer\.(\d)\.normalization", lambda found: f".bn{int(found[1]) + 1}"),
        (r"^classifier\.1\.", "fc."),
    )
    source = transformers.ResNetForImageClassification(config)
    target = timm.create_model("resnet18", num_classes=10)
    return built(folder, source, target, lambda a: renamed(a, rules), inputs=images(2, 3, 64, 64))


@pair("convnext: transformers to timm", "numbering")
def _(folder: Path) -> Built:
    import transformers
    from timm.models.convnext import ConvNeXt

    config = transformers.ConvNextConfig(
        hidden_sizes=[16, 32, 48, 64], depths=[2, 2, 1, 1], num_labels=10
    )
    rules = (
        (r"^convnext\.embeddings\.patch_embeddings", "stem.0"),
        (r"^convnext\.embeddings\.layernorm", "stem.1"),
        (r"^convnext\.encoder\.stages\.(\d)\.layers\.", r"stages.\1.blocks."),
        (r"^convnext\.encoder\.stages\.(\d)\.downsampling_layer\.", r"stages.\1.downsample."),
        (r"layer_scale_parameter", "gamma"),
        (r"dwconv", "conv_dw"),
        (r"(blocks\.\d)\.layernorm", r"\1.norm"),
        (r"pwconv(\d)", r"mlp.fc\1"),
        (r"^convnext\.layernorm", "head.norm"),
        (r"^classifier", "head.fc"),
    )
    target = ConvNeXt(depths=(2, 2, 1, 1), dims=(16, 32, 48, 64), num_classes=10)
    source = transformers.ConvNextForImageClassification(config)
    return built(folder, source, target, lambda a: renamed(a, rules), inputs=images(2, 3, 64, 64))
