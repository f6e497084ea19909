"""Image classifiers that torchvision and timm both define."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.pairs import files
from benchmarks.pairs.collection import Built, Kind, Sets, pair
from benchmarks.pairs.randomness import images, random_torch
from benchmarks.pairs.truths import Renames, by_names, in_order

Maker = Callable[[], Any]


def built(
    folder: Path,
    source: Any,
    target: Any,
    size: int,
    *,
    rules: Renames | None = None,
    saved: Callable[[Path, Any], Path] = files.pth,
    **options: Any,
) -> Built:
    """A pair of torch classifiers; without `rules` both define their layers in one order."""
    import torch

    random_torch(source, 0)
    random_torch(target, 9)
    x = images(2, 3, size, size)
    with torch.no_grad():
        outputs = source(torch.from_numpy(x)).numpy()
    truth = in_order(source) if rules is None else by_names(source, rules)
    path = saved(folder, source)
    return Built(path, target, outputs, x, truth=truth, **options)


def both_ways(
    name: str,
    kind: Kind,
    torchvision_model: Maker,
    timm_model: Maker,
    size: int = 64,
    *,
    ways: str = "both",
) -> None:
    """Registers torchvision → timm from a `.pth` and back from a `.safetensors`."""

    def forth(folder: Path) -> Built:
        return built(folder, torchvision_model(), timm_model(), size)

    def back(folder: Path) -> Built:
        source, target = timm_model(), torchvision_model()
        return built(folder, source, target, size, saved=files.safetensors)

    if ways in ("both", "forth"):
        pair(f"{name}: torchvision to timm", kind)(forth)
    if ways in ("both", "back"):
        pair(f"{name}: timm to torchvision", kind)(back)


def tv(name: str, **options: Any) -> Maker:
    """A torchvision classifier with ten classes, imported when it is made."""

    def make() -> Any:
        import torchvision

        return getattr(torchvision.models, name)(num_classes=10, **options)

    return make


def tm(name: str, **options: Any) -> Maker:
    """A timm classifier with ten classes, imported when it is made."""

    def make() -> Any:
        import timm

        return timm.create_model(name, num_classes=10, **options)

    return make


both_ways("resnet18", "numbering", tv("resnet18"), tm("resnet18"), ways="forth")
both_ways("mobilenet_v2", "numbering", tv("mobilenet_v2"), tm("mobilenetv2_100"))
both_ways(
    "mobilenet_v3_small",
    "layouts",
    tv("mobilenet_v3_small"),
    tm("mobilenetv3_small_100", bn_eps=1e-3),
)
both_ways("efficientnet_b0", "numbering", tv("efficientnet_b0"), tm("efficientnet_b0"))

REGNET_RULES = (
    (r"^stem\.0\.", "stem.conv."),
    (r"^stem\.1\.", "stem.bn."),
    (
        r"^trunk_output\.block(\d)\.block\d-(\d+)\.",
        lambda found: f"s{found[1]}.b{int(found[2]) + 1}.",
    ),
    (r"proj\.", "downsample."),
    (r"f\.se\.", "se."),
    (r"f\.([abc])\.", lambda found: f"conv{' abc'.index(found[1])}."),
    (r"((?:conv\d|downsample)\.)0\.", r"\1conv."),
    (r"((?:conv\d|downsample)\.)1\.", r"\1bn."),
    (r"^fc\.", "head.fc."),
)


@pair("regnet_y_400mf: torchvision to timm", "numbering")
def _(folder: Path) -> Built:
    source, target = tv("regnet_y_400mf")(), tm("regnety_004")()
    return built(folder, source, target, 64, rules=REGNET_RULES)


def _densenet_tv() -> Any:
    from torchvision.models import DenseNet

    return DenseNet(8, (2, 3, 2), 16, num_classes=10)


def _densenet_timm() -> Any:
    from timm.models.densenet import DenseNet

    return DenseNet(growth_rate=8, block_config=(2, 3, 2), num_classes=10)


both_ways("densenet", "numbering", _densenet_tv, _densenet_timm, ways="back")
_VGG = [8, "M", 16, 16, "M"]


def _vgg_tv() -> Any:
    from torch import nn
    from torchvision.models.vgg import VGG, make_layers

    model = VGG(make_layers(_VGG, batch_norm=True), num_classes=1, init_weights=False)
    model.classifier = nn.Sequential(
        nn.Linear(16 * 49, 64), nn.ReLU(), nn.Dropout(),
        nn.Linear(64, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10),
    )  # fmt: skip
    return model


def _vgg_timm() -> Any:
    from timm.layers import ClassifierHead
    from timm.models.vgg import VGG, ConvMlp
    from torch import nn

    model = VGG(_VGG, num_classes=10, norm_layer=nn.BatchNorm2d, mlp_ratio=1 / 64)
    model.pre_logits = ConvMlp(16, 64, 7)
    model.head = ClassifierHead(64, 10)
    return model


both_ways("vgg_bn, dense and 7×7 convolution", "layouts", _vgg_tv, _vgg_timm, 28)


def _vit_tv() -> Any:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 3, 4, 32, 64, num_classes=10)


def _vit_timm() -> Any:
    from functools import partial

    from timm.models import VisionTransformer
    from torch import nn

    return VisionTransformer(
        32, 8, num_classes=10, embed_dim=32, depth=3, num_heads=4, mlp_ratio=2,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip


VIT_RULES = (
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"ln_(\d)\.", r"norm\1."),
    (r"self_attention\.in_proj_", "attn.qkv."),
    (r"self_attention\.out_proj\.", "attn.proj."),
    (r"mlp\.0\.", "mlp.fc1."),
    (r"mlp\.3\.", "mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
)
VIT_BACK = (
    (r"^norm\.", "encoder.ln."),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
    (r"norm(\d)\.", r"ln_\1."),
    (r"attn\.qkv\.", "self_attention.in_proj_"),
    (r"attn\.proj\.", "self_attention.out_proj."),
    (r"mlp\.fc1\.", "mlp.0."),
    (r"mlp\.fc2\.", "mlp.3."),
    (r"^head\.", "heads.head."),
)


@pair("vit: torchvision to timm", "attention")
def _(folder: Path) -> Built:
    return built(folder, _vit_tv(), _vit_timm(), 32, rules=VIT_RULES)


@pair("vit: timm to torchvision", "attention")
def _(folder: Path) -> Built:
    return built(
        folder, _vit_timm(), _vit_tv(), 32, rules=VIT_BACK, saved=files.safetensors
    )  # fmt: skip


def _swin_tv() -> Any:
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=10)


def _swin_timm() -> Any:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        32, 4, num_classes=10, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4
    )


SWIN_RULES = (
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"^features\.1\.(\d)\.", r"layers.0.blocks.\1."),
    (r"^features\.2\.", "layers.1.downsample."),
    (r"^features\.3\.(\d)\.", r"layers.1.blocks.\1."),
    (r"mlp\.0\.", "mlp.fc1."),
    (r"mlp\.3\.", "mlp.fc2."),
    (r"^head\.", "head.fc."),
)


@pair("swin: torchvision to timm", "attention")
def _(folder: Path) -> Built:
    source, target = _swin_tv(), _swin_timm()
    made = built(folder, source, target, 32, rules=SWIN_RULES)
    made.truth = by_names(source, SWIN_RULES, unused="relative_position_index", stays="index")
    made.sets = Sets(unused=("*.relative_position_index",))
    return made


def _convnext_tv() -> Any:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    settings = [CNBlockConfig(16, 32, 2), CNBlockConfig(32, 48, 2), CNBlockConfig(48, 64, 1)]
    settings.append(CNBlockConfig(64, None, 1))
    return ConvNeXt(settings, num_classes=10)


def _convnext_timm() -> Any:
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(depths=(2, 2, 1, 1), dims=(16, 32, 48, 64), num_classes=10)


CONVNEXT_RULES = (
    (r"^features\.0\.", "stem."),
    (r"^features\.1\.", "stages.0.blocks."),
    (r"^features\.2\.", "stages.1.downsample."),
    (r"^features\.3\.", "stages.1.blocks."),
    (r"^features\.4\.", "stages.2.downsample."),
    (r"^features\.5\.", "stages.2.blocks."),
    (r"^features\.6\.", "stages.3.downsample."),
    (r"^features\.7\.", "stages.3.blocks."),
    (r"block\.0\.", "conv_dw."),
    (r"block\.2\.", "norm."),
    (r"block\.3\.", "mlp.fc1."),
    (r"block\.5\.", "mlp.fc2."),
    (r"layer_scale$", "gamma"),
    (r"^classifier\.0\.", "head.norm."),
    (r"^classifier\.2\.", "head.fc."),
)


@pair("convnext: torchvision to timm", "numbering")
def _(folder: Path) -> Built:
    source, target = _convnext_tv(), _convnext_timm()
    return built(folder, source, target, 64, rules=CONVNEXT_RULES)


@pair("convnext: timm to the authors' own names", "numbering")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.convnext import ConvNeXt

    source, target = _convnext_timm(), ConvNeXt()
    rules = (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"conv_dw\.", "dwconv."),
        (r"mlp\.fc(\d)", r"pwconv\1"),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    )
    return built(folder, source, target, 64, rules=rules, saved=files.safetensors)


@pair("resnet50: timm to torchvision, half precision", "reparametrised")
def _(folder: Path) -> Built:
    import torch

    source, target = tm("resnet50")(), tv("resnet50")()
    random_torch(source, 0).half().float()  # values that half precision holds
    with torch.no_grad():
        for tensor in source.state_dict().values():
            if tensor.dtype.is_floating_point:
                tensor.copy_(tensor.half().float())
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        outputs = source(torch.from_numpy(x)).numpy()
    halves = {
        name: tensor.half() if tensor.dtype.is_floating_point else tensor
        for name, tensor in source.state_dict().items()
    }
    path = files.safetensors(folder, halves)
    return Built(path, random_torch(target, 9), outputs, x, truth=in_order(source))
