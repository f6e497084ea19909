"""keras.applications beside timm, torchvision and ports to PyTorch."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.pairs import files
from benchmarks.pairs.collection import Built, Sets, pair
from benchmarks.pairs.randomness import images, random_keras, random_torch
from benchmarks.pairs.truths import by_layers, fill, in_order, slots


def to_torch(
    folder: Path,
    source: Any,
    target: Any,
    size: int,
    *,
    ending: str = "keras",
    truth: Callable[[Any], Callable[[Any], Any]] = in_order,
    **options: Any,
) -> Built:
    """A Keras image model saved, and a torch model that takes the same images channels first."""
    import keras

    random_keras(source, 0)
    random_torch(target, 9)
    channels = source.input_shape[-1]
    x = images(2, size, size, channels)
    outputs = keras.ops.convert_to_numpy(source(x, training=False))
    path = files.keras_model(folder, source, ending)
    moved = x.transpose(0, 3, 1, 2).copy()
    return Built(path, target, outputs, moved, truth=truth(source), **options)


def to_keras(
    folder: Path,
    source: Any,
    target: Any,
    size: int,
    *,
    saved: Callable[[Path, Any], Path] = files.pth,
    truth: Callable[[Any], Callable[[Any], Any]] = in_order,
    **options: Any,
) -> Built:
    """The way back."""
    import torch

    random_torch(source, 0)
    random_keras(target, 9)
    channels = target.input_shape[-1]
    x = images(2, channels, size, size)
    with torch.no_grad():
        outputs = source(torch.from_numpy(x)).numpy()
    path = saved(folder, source)
    moved = x.transpose(0, 2, 3, 1).copy()
    return Built(path, target, outputs, moved, truth=truth(source), **options)


def _timm(name: str, **options: Any) -> Any:
    import timm

    return timm.create_model(name, num_classes=10, **options)


def _mobilenet_v2() -> Any:
    import keras

    return keras.applications.MobileNetV2(
        (64, 64, 3), weights=None, classes=10, classifier_activation=None
    )


def _mobilenet_v2_timm() -> Any:
    return _timm("mobilenetv2_100", pad_type="same", bn_eps=1e-3)


@pair("MobileNetV2: keras.applications to timm", "layouts")
def _(folder: Path) -> Built:
    return to_torch(folder, _mobilenet_v2(), _mobilenet_v2_timm(), 64)


@pair("MobileNetV2: timm to keras.applications", "layouts")
def _(folder: Path) -> Built:
    return to_keras(
        folder, _mobilenet_v2_timm(), _mobilenet_v2(), 64, saved=files.safetensors
    )  # fmt: skip


@pair("EfficientNetB0: keras.applications to timm", "layouts")
def _(folder: Path) -> Built:
    import keras

    source = keras.applications.EfficientNetB0(
        input_shape=(64, 64, 3), weights=None, classes=10, classifier_activation=None
    )
    target = _timm("tf_efficientnet_b0")
    made = to_torch(folder, source, target, 64, sets=Sets(unused=("normalization*",)))
    random_keras(source, 0)
    # The normalisation that the Keras model brings is that of no data: the identity.
    layer = next(one for one in source.layers if "normalization" in one.name.split("_")[:1])
    layer.mean, layer.variance = 0.0 * layer.mean, 0.0 * layer.variance + 1.0
    x = 255 * images(2, 64, 64, 3)
    made.outputs = keras.ops.convert_to_numpy(source(x, training=False))
    made.inputs = (x / 255).transpose(0, 3, 1, 2).copy()
    made.source = files.keras_model(folder, source)
    values = [slot for slot in slots(source) if not slot[0].startswith("normalization")]
    made.truth = lambda model: fill(model, values)
    return made


@pair("DenseNet: keras.applications to torchvision", "layouts")
def _(folder: Path) -> Built:
    import torchvision
    from keras.src.applications.densenet import DenseNet

    source = DenseNet(
        [2, 3, 2, 2], input_shape=(64, 64, 3), weights=None, classes=10, classifier_activation=None
    )
    target = torchvision.models.DenseNet(32, (2, 3, 2, 2), 64, num_classes=10)
    return to_torch(folder, source, target, 64, ending="h5")


@pair("DenseNet: torchvision to keras.applications", "layouts")
def _(folder: Path) -> Built:
    import torchvision
    from keras.src.applications.densenet import DenseNet

    target = DenseNet(
        [2, 2, 2, 2], input_shape=(64, 64, 3), weights=None, classes=10, classifier_activation=None
    )
    source = torchvision.models.DenseNet(32, (2, 2, 2, 2), 64, num_classes=10)
    return to_keras(folder, source, target, 64)


@pair("VGG16 without its head: keras.applications to torchvision", "layouts")
def _(folder: Path) -> Built:
    import keras
    import torch
    import torchvision

    source = keras.applications.VGG16(False, None, input_shape=(32, 32, 3), pooling="avg")
    features = torchvision.models.vgg16().features
    target = torch.nn.Sequential(features, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    return to_torch(folder, source, target, 32, ending="weights.h5")


def _convnext() -> Any:
    from keras.src.applications.convnext import ConvNeXt

    return ConvNeXt(
        depths=(2, 2, 1, 1), projection_dims=(16, 32, 48, 64), include_preprocessing=False,
        weights=None, classes=10, classifier_activation=None, input_shape=(64, 64, 3),
        name="convnext",
    )  # fmt: skip


@pair("ConvNeXt: keras.applications to timm", "layouts")
def _(folder: Path) -> Built:
    from timm.models.convnext import ConvNeXt

    target = ConvNeXt(depths=(2, 2, 1, 1), dims=(16, 32, 48, 64), num_classes=10)
    return to_torch(folder, _convnext(), target, 64, truth=_convnext_truth)


def _convnext_truth(source: Any) -> Callable[[Any], Any]:
    from benchmarks.pairs.truths import load_torch

    rules = (
        (r"^convnext_stem/convnext_stem_conv", "stem.0"),
        (r"^convnext_stem/convnext_stem_layernorm", "stem.1"),
        (r"^convnext_stage_(\d)_block_(\d)_", r"stages.\1.blocks.\2."),
        (r"depthwise_conv", "conv_dw"),
        (r"pointwise_conv_1", "mlp.fc1"),
        (r"pointwise_conv_2", "mlp.fc2"),
        (r"blocks\.(\d)\.layernorm", r"blocks.\1.norm"),
        (r"^convnext_downsampling_block_(\d)/\w+norm\w*", _plus_one("downsample.0")),
        (r"^convnext_downsampling_block_(\d)/\w+conv\w*", _plus_one("downsample.1")),
        (r"layer_scale/variable\w*", "gamma"),
        (r"convnext_head_layernorm", "head.norm"),
        (r"convnext_head_dense", "head.fc"),
        (r"/(kernel|depthwise_kernel)$", ".weight"),
        (r"(norm|stem\.1|downsample\.0)/gamma$", r"\1.weight"),
        (r"/beta$|/bias$", ".bias"),
    )
    arrays: dict[str, Any] = {}
    for name, array in slots(source):
        for pattern, into in rules:
            name = re.sub(pattern, into, name)
        arrays[name] = array
    return lambda target: load_torch(target, arrays)


def _plus_one(rest: str) -> Callable[[re.Match[str]], str]:
    return lambda found: f"stages.{int(found[1]) + 1}.{rest}"


def _resnet() -> Any:
    from keras.src.applications import resnet

    def stack(x: Any) -> Any:
        x = resnet.stack_residual_blocks_v1(x, 8, 2, stride1=1, name="conv2")
        return resnet.stack_residual_blocks_v1(x, 16, 3, name="conv3")

    return resnet.ResNet(
        stack, False, True, weights=None, classes=10, classifier_activation=None,
        input_shape=(64, 64, 3), weights_name=None,
    )  # fmt: skip


def _resnet_layers(name: str) -> str:
    """`conv2_block1_0_conv` of Keras in the port's names."""
    name = re.sub(r"^conv1_(conv|bn)$", r"stem_\1", name)
    found = re.match(r"conv(\d)_block(\d)_(\d)_(conv|bn)", name)
    if found is None:
        return {"predictions": "fc"}.get(name, name)
    stage, block, place, kind = found.groups()
    stem = f"layers.{int(stage) - 2}.{int(block) - 1}"
    return f"{stem}.shortcut.{kind}" if place == "0" else f"{stem}.{kind}{place}"


@pair("ResNet with convolution biases: keras.applications to a port", "layouts")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.keras_ports import KerasResNet

    return to_torch(folder, _resnet(), KerasResNet(), 64, ending="h5", truth=_resnet_truth)


def _resnet_truth(source: Any) -> Callable[[Any], Any]:
    names = [layer.name for layer in source.layers if layer.weights]
    return by_layers(source, {name: _resnet_layers(name) for name in names})


@pair("ResNet with convolution biases: a port to keras.applications", "layouts")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.keras_ports import KerasResNet

    target = _resnet()
    names = [layer.name for layer in target.layers if layer.weights]
    layers = {_resnet_layers(name): name for name in names}
    return to_keras(
        folder, KerasResNet(), target, 64, truth=lambda source: by_layers(source, layers)
    )


@pair("Xception: keras.applications to timm", "layouts")
def _(folder: Path) -> Built:
    import keras
    import timm
    import torch

    source = keras.applications.Xception(
        weights=None, classes=10, classifier_activation=None, input_shape=(71, 71, 3)
    )
    target = timm.create_model("legacy_xception", num_classes=10)
    for module in target.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3
    return to_torch(folder, source, target, 71, ending="weights.h5", truth=_xception_truth)


def _xception_truth(source: Any) -> Callable[[Any], Any]:
    """Keras' order is that of timm, but for the shortcuts, which Keras does not name."""
    held: dict[str, list[tuple[str, Any]]] = {}
    for name, array in slots(source):
        held.setdefault(name.rpartition("/")[0], []).append((name, array))
    shortcuts = [name for name in held if name.startswith(("conv2d", "batch_normalization"))]
    convs = [name for name in shortcuts if name.startswith("conv")]
    norms = [name for name in shortcuts if name.startswith("batch")]

    def load(target: Any) -> Any:
        by_layer: dict[str, list[tuple[str, Any]]] = {}
        for name, _ in slots(target):
            by_layer.setdefault(name.rpartition(".")[0], [])
        skips = [n for n in by_layer if ".skip" in n]
        main = [n for n in held if n not in shortcuts]
        values: list[tuple[str, Any]] = []
        queue = [slot for layer in main for slot in held[layer]]
        extra = dict(
            zip(skips, [s for p in zip(convs, norms, strict=True) for s in p], strict=True)
        )
        for name, _ in slots(target):
            layer = name.rpartition(".")[0]
            values.append(held[extra[layer]].pop(0) if layer in extra else queue.pop(0))
        return fill(target, values)

    return load
