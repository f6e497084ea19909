"""Keras 3, KerasHub and Flax modules beside PyTorch: pairs that no rule was made for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pairs import files
from benchmarks.pairs.collection import Built, Sets, pair
from benchmarks.pairs.families.keras_applications import to_keras, to_torch
from benchmarks.pairs.families.keras_hub_models import (
    HEADS,
    HIDDEN,
    LAYERS,
    VOCABULARY,
    WIDTH,
    _config,
    hub,
    to_hub,
    to_transformers,
)
from benchmarks.pairs.randomness import generator, images, random_keras, random_torch, tokens
from benchmarks.pairs.truths import arrays_of, fill, keras_array, load_torch, slots

Arrays = dict[str, Any]
Slots = list[tuple[str, Any]]


def _sequence(*shape: int) -> Any:
    return generator(1, "sequence").standard_normal(shape).astype(np.float32)


def _outputs(model: Any, x: Any) -> Any:
    import keras

    return keras.ops.convert_to_numpy(model(x, training=False))


def _ordered(key: Callable[[str], Any], change: Callable[[Slots], Slots] = list) -> Any:
    """A truth: layers of one side sorted by a key of their names, weights within them in order."""

    def truth(source: Any) -> Callable[[Any], Any]:
        values = change(sorted(slots(source), key=lambda slot: key(slot[0].rpartition("/")[0])))
        return lambda target: fill(target, values)

    return truth


def _apps() -> Any:
    import keras

    return keras.applications


def _plain(size: int = 64, **options: Any) -> Any:
    return {
        "weights": None, "classes": 10, "classifier_activation": None,
        "input_shape": (size, size, 3),
    } | options  # fmt: skip


def _v2(classes: int = 10, top: bool = True) -> Any:
    from keras.src.applications import resnet

    def stack(x: Any) -> Any:
        x = resnet.stack_residual_blocks_v2(x, 8, 2, name="conv2")
        return resnet.stack_residual_blocks_v2(x, 16, 3, stride1=1, name="conv3")

    options = {"classes": classes, "classifier_activation": None} if top else {"pooling": "avg"}
    return resnet.ResNet(
        stack, True, True, weights=None, include_top=top, input_shape=(64, 64, 3),
        weights_name=None, name="resnet50v2", **options,
    )  # fmt: skip


def _v2_key(name: str) -> Any:
    """The port's order: by stage and block, and within a block norm, shortcut and so on."""
    if name.startswith("conv1"):
        return (0,)
    if name in ("post_bn", "predictions"):
        return (9, name)
    stage, block, rest = name.split("_", 2)
    places = ["preact_bn", "0_conv", "1_conv", "1_bn", "2_conv", "2_bn", "3_conv"]
    return (int(stage[4:]), int(block[5:]), places.index(rest))


@pair("unseen: ResNet50V2 of Keras to a port", "layouts")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.unseen_twins import PreactResNet

    return to_torch(folder, _v2(), PreactResNet(), 64, truth=_ordered(_v2_key))


@pair("unseen: ResNet50V2 of Keras without its head to a port with one", "transfer")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.unseen_twins import PreactResNet

    source = random_keras(_v2(top=False))
    values = sorted(slots(source), key=lambda slot: _v2_key(slot[0].rpartition("/")[0]))
    target = random_torch(PreactResNet(7), 9)
    names = list(arrays_of(target))[: len(values)]
    given = dict(zip(names, (a for _, a in values), strict=True))
    return Built(
        files.keras_model(folder, source, "weights.h5"), target, None, images(2, 3, 64, 64),
        truth=lambda m: load_torch(m, given, stays=r"^classifier\."),
        sets=Sets(fresh=("classifier.*",)),
    )  # fmt: skip


@pair("unseen: MobileNet of Keras, head as a convolution, to timm", "layouts")
def _(folder: Path) -> Built:
    import timm

    target = timm.create_model("mobilenetv1_100", num_classes=10, pad_type="same", bn_eps=1e-3)
    return to_torch(folder, _apps().MobileNet(**_plain()), target, 64, ending="weights.h5")


@pair("unseen: MobileNetV3 of Keras to timm", "layouts")
def _(folder: Path) -> Built:
    import timm

    source = _apps().MobileNetV3Small(**_plain(), include_preprocessing=False)
    target = timm.create_model("tf_mobilenetv3_small_100", num_classes=10)
    return to_torch(folder, source, target, 64)


@pair("unseen: MobileNetV3 of timm to Keras", "layouts")
def _(folder: Path) -> Built:
    import timm

    target = _apps().MobileNetV3Small(**_plain(), include_preprocessing=False)
    source = timm.create_model("tf_mobilenetv3_small_100", num_classes=10)

    def truth(source: Any) -> Callable[[Any], Any]:
        values = slots(source)
        name, head = values[-2]
        values[-2] = (name, head[..., None, None])
        return lambda model: fill(model, values)

    return to_keras(folder, source, target, 64, saved=files.safetensors, truth=truth)


@pair("unseen: EfficientNetV2 of Keras to timm", "layouts")
def _(folder: Path) -> Built:
    import timm

    source = _apps().EfficientNetV2B0(**_plain(), include_preprocessing=False)
    target = timm.create_model("tf_efficientnetv2_b0", num_classes=10)
    return to_torch(folder, source, target, 64, ending="h5")


def _inception_key(name: str) -> Any:
    """Layers in the order of their numbers, a convolution and its norm together."""
    import re

    if name == "predictions":
        return (1000000,)
    found = re.fullmatch(r"(conv2d|batch_normalization)(?:_(\d+))?", name)
    assert found is not None
    return (int(found[2] or 0), found[1] != "conv2d")


def _with_scales(values: Slots) -> Slots:
    made: Slots = []
    for name, array in values:
        if name.endswith("beta"):
            made.append((name, np.ones_like(array)))
        made.append((name, array))
    return made


@pair(
    "unseen: InceptionV3 of Keras, numbered names and norms without scale, to torchvision",
    "layouts",
)
def _(folder: Path) -> Built:
    from unittest import mock

    import keras
    import torch
    import torchvision
    from torch.nn import functional as F

    keras.utils.clear_session()
    source = _apps().InceptionV3(**_plain(75))
    target = torchvision.models.inception_v3(
        num_classes=10, aux_logits=False, transform_input=False, init_weights=False
    )
    pool = F.avg_pool2d

    def run(model: Any) -> Any:
        """Keras' means do not count padding."""
        x = torch.from_numpy(images(2, 75, 75, 3).transpose(0, 3, 1, 2).copy())
        with mock.patch.object(
            F, "avg_pool2d", lambda *a, **k: pool(*a, **k, count_include_pad=False)
        ), torch.no_grad():  # fmt: skip
            return model(x).numpy()

    made = to_torch(
        folder, source, target, 75, truth=_ordered(_inception_key, _with_scales),
        sets=Sets(fresh=("*.bn.weight",)),
    )  # fmt: skip
    made.run = run
    return made


@pair("unseen: DenseNet of Keras into torchvision with other classes", "transfer")
def _(folder: Path) -> Built:
    import torchvision
    from keras.src.applications.densenet import DenseNet

    source = random_keras(DenseNet([2, 2, 2, 2], **_plain()))
    target = torchvision.models.DenseNet(32, (2, 2, 2, 2), 64, num_classes=7)
    random_torch(target, 9)
    values = slots(source)[:-2]
    given = dict(zip(list(arrays_of(target))[:-2], (a for _, a in values), strict=True))
    return Built(
        files.keras_model(folder, source, "h5"), target, None, images(2, 3, 64, 64),
        truth=lambda m: load_torch(m, given, stays=r"^classifier\."),
        sets=Sets(fresh=("classifier.*",), unused=("predictions*",)),
    )  # fmt: skip


@pair("unseen: VGG19 of torchvision into Keras without a head", "transfer")
def _(folder: Path) -> Built:
    import torch
    import torchvision

    source = torchvision.models.vgg19()
    source.classifier = torch.nn.Linear(8, 3)
    random_torch(source)
    target = random_keras(
        _apps().VGG19(include_top=False, weights=None, input_shape=(32, 32, 3)), 9
    )
    values = slots(source)[:-2]
    return Built(
        files.pth(folder, source), target, None, images(2, 32, 32, 3),
        truth=lambda m: fill(m, values), sets=Sets(unused=("classifier.*",)),
    )  # fmt: skip


@pair("unseen: a Keras backbone nested in a Sequential to a port", "layouts")
def _(folder: Path) -> Built:
    import keras
    from torch import nn

    from benchmarks.pairs.models.unseen_twins import PreactResNet

    body = _v2(top=False)
    source = keras.Sequential([body, keras.layers.Dense(10)])
    source.build((None, 64, 64, 3))
    target = PreactResNet()
    assert isinstance(target.classifier, nn.Linear)

    def key(name: str) -> Any:
        return (99,) if name.startswith("dense") else _v2_key(name.rpartition("/")[2])

    return to_torch(folder, source, target, 64, ending="h5", truth=_ordered(key))


def _signal() -> Any:
    import keras

    layers = keras.layers
    return keras.Sequential([
        layers.Input((16, 4)), layers.Conv1D(8, 5, padding="same"), layers.PReLU(shared_axes=[1]),
        layers.SeparableConv1D(12, 3, padding="same"), layers.BatchNormalization(),
        layers.ReLU(), layers.Conv1DTranspose(6, 4, 2, padding="same", activation="relu"),
        layers.Dense(3),
    ])  # fmt: skip


def _signal_values(values: Slots) -> Slots:
    return [
        (n, a.reshape(-1)) if n.endswith("alpha") else (n, a) for n, a in values
    ]  # fmt: skip


@pair("unseen: convolutions over time: Keras to PyTorch", "layouts")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.unseen_twins import Signal

    source, target = random_keras(_signal()), random_torch(Signal(), 9)
    x = _sequence(2, 16, 4)
    values = _signal_values(slots(source))
    # Keras' transposed kernel is [k, out, in], as the layout of plain ones reads it.
    return Built(
        files.keras_model(folder, source), target, _outputs(source, x), x,
        truth=lambda m: fill(m, values),
    )  # fmt: skip


@pair("unseen: convolutions over time: PyTorch to Keras", "layouts")
def _(folder: Path) -> Built:
    import torch

    from benchmarks.pairs.models.unseen_twins import Signal

    source, target = random_torch(Signal()), random_keras(_signal(), 9)
    x = _sequence(2, 16, 4)
    with torch.no_grad():
        outputs = source(torch.from_numpy(x)).numpy()
    values = [(n, a.reshape(1, -1) if n == "act.weight" else a) for n, a in slots(source)]
    return Built(files.pth(folder, source), target, outputs, x, truth=lambda m: fill(m, values))


def _volume() -> Any:
    import keras

    layers = keras.layers
    return keras.Sequential([
        layers.Input((4, 4, 4, 2)), layers.Conv3D(8, 3, padding="same"),
        layers.GroupNormalization(4), layers.ReLU(), layers.MaxPooling3D(2),
        layers.Conv3DTranspose(4, 2, 2), layers.Conv3D(6, 1, groups=2, activation="relu"),
        layers.Flatten(), layers.Dense(7),
    ])  # fmt: skip


def _rows(matrix: Any, channels: int, *sizes: int) -> Any:
    """A torch matrix on a map flattened channels last, on one flattened channels first."""
    apart = matrix.reshape(-1, *sizes, channels)
    return np.moveaxis(apart, -1, 1).reshape(matrix.shape)


@pair("unseen: volumes, transposed and grouped, flattened: Keras to PyTorch", "layouts")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.unseen_twins import Volume

    source, target = random_keras(_volume()), random_torch(Volume(), 9)
    x = _sequence(2, 4, 4, 4, 2)
    values = slots(source)
    values[-2] = ("dense", _rows(values[-2][1], 6, 4, 4, 4))
    return Built(
        files.keras_model(folder, source, "weights.h5"), target, _outputs(source, x),
        x.transpose(0, 4, 1, 2, 3).copy(), truth=lambda m: fill(m, values),
    )  # fmt: skip


def _towers() -> Any:
    import keras

    layers = keras.layers
    # Other models before in one process: the numbers go on.
    for _ in range(7):
        layers.Conv2D(2, 1)
    start = keras.Input((12, 12, 3))
    ends = []
    for _ in range(2):
        x = start
        for _ in range(2):
            x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x)))
        ends.append(layers.GlobalAveragePooling2D()(x))
    joined = layers.Concatenate()([ends[0], layers.Rescaling(2.0)(ends[1])])
    return keras.Model(start, layers.Dense(4)(joined))


def _towers_key(source: Any) -> Any:
    """By the number at the end of a layer's name; a convolution before its norm."""
    import re

    numbers: dict[str, list[int]] = {}
    for name, _ in slots(source):
        layer = name.rpartition("/")[0]
        found = re.fullmatch(r"(\w+?)(?:_(\d+))?", layer)
        assert found is not None
        numbers.setdefault(found[1], []).append(int(found[2] or 0))

    def key(layer: str) -> Any:
        found = re.fullmatch(r"(\w+?)(?:_(\d+))?", layer)
        assert found is not None
        kind = found[1]
        if kind == "dense":
            return (99, 0)
        place = sorted(set(numbers[kind])).index(int(found[2] or 0))
        return (place, kind != "conv2d")

    return key


@pair("unseen: two equal branches under running numbers: Keras to PyTorch", "numbering")
def _(folder: Path) -> Built:
    import keras

    from benchmarks.pairs.models.unseen_twins import TwoTowers

    keras.utils.clear_session()
    return to_torch(folder, _towers(), TwoTowers(), 12, truth=lambda s: _ordered(_towers_key(s))(s))


@pair("unseen: stacked bidirectional LSTM over embedded ids: Keras to PyTorch", "layouts")
def _(folder: Path) -> Built:
    import keras

    from benchmarks.pairs.families.keras_layers import _cell
    from benchmarks.pairs.models.unseen_twins import Tagger

    layers = keras.layers
    source = keras.Sequential([
        layers.Input((7,), dtype="int32"), layers.Embedding(40, 12),
        layers.Bidirectional(layers.LSTM(8, return_sequences=True)),
        layers.Bidirectional(layers.LSTM(8, return_sequences=True)), layers.Dense(5),
    ])  # fmt: skip
    random_keras(source)
    ids = tokens(2, 7, vocabulary=40)
    weights = [keras_array(v) for v in source.weights]
    made = [weights[0]]
    for start in range(1, 13, 3):
        made += _cell("LSTM", weights[start : start + 3])
    values = [("", a) for a in [*made, weights[-2].T, weights[-1]]]
    return Built(
        files.keras_model(folder, source, "h5"), random_torch(Tagger(), 9), _outputs(source, ids),
        ids, truth=lambda m: fill(m, values),
        sets=Sets(fresh=("lstm.bias_hh_*",), adapted=("lstm.bias_*",)),
    )  # fmt: skip


def _tokens_keras(depth: int = 2, vocabulary: int = 40, classes: int = 5) -> Any:
    import keras

    layers = keras.layers
    ids = keras.Input((9,), dtype="int32")
    x = layers.Embedding(vocabulary, 16, name="words")(ids)

    @keras.saving.register_keras_serializable("unseen")
    class Places(layers.Layer):
        def build(self, shape: Any) -> None:
            self.table = self.add_weight(shape=(shape[1], shape[2]), name="table")

        def call(self, x: Any) -> Any:
            return x + self.table

    x = Places(name="places")(x)
    for i in range(depth):
        y = layers.LayerNormalization(name=f"block{i}_norm1")(x)
        y = layers.MultiHeadAttention(4, 4, name=f"block{i}_attention")(y, y)
        x = layers.Add()([x, y])
        y = layers.LayerNormalization(name=f"block{i}_norm2")(x)
        y = layers.Dense(32, "relu", name=f"block{i}_up")(y)
        x = layers.Add()([x, layers.Dense(16, name=f"block{i}_down")(y)])
    x = layers.LayerNormalization(name="final")(x)
    return keras.Model(ids, layers.Dense(classes, name="out")(layers.GlobalAveragePooling1D()(x)))


def _tokens_arrays(model: Any, depth: int = 2) -> Arrays:
    given = {v.path: keras_array(v) for v in model.weights}
    made = {
        "words.weight": given["words/embeddings"], "places.weight": given["places/table"],
        "final.weight": given["final/gamma"], "final.bias": given["final/beta"],
        "head.weight": given["out/kernel"].T, "head.bias": given["out/bias"],
    }  # fmt: skip
    for i in range(depth):
        stem, block = f"encoder.layers.{i}", f"block{i}"
        attention = f"{block}_attention"
        words = ("query", "key", "value")
        made |= {
            f"{stem}.self_attn.in_proj_weight": np.concatenate(
                [given[f"{attention}/{w}/kernel"].reshape(16, 16).T for w in words]
            ),
            f"{stem}.self_attn.in_proj_bias": np.concatenate(
                [given[f"{attention}/{w}/bias"].reshape(-1) for w in words]
            ),
            f"{stem}.self_attn.out_proj.weight": given[
                f"{attention}/attention_output/kernel"
            ].reshape(16, 16).T,
            f"{stem}.self_attn.out_proj.bias": given[f"{attention}/attention_output/bias"],
            f"{stem}.linear1.weight": given[f"{block}_up/kernel"].T,
            f"{stem}.linear1.bias": given[f"{block}_up/bias"],
            f"{stem}.linear2.weight": given[f"{block}_down/kernel"].T,
            f"{stem}.linear2.bias": given[f"{block}_down/bias"],
        }  # fmt: skip
        for n in (1, 2):
            made[f"{stem}.norm{n}.weight"] = given[f"{block}_norm{n}/gamma"]
            made[f"{stem}.norm{n}.bias"] = given[f"{block}_norm{n}/beta"]
    return made


def _tokens(folder: Path, ending: str, source: Any, target: Any, **options: Any) -> Built:
    random_keras(source)
    ids = tokens(2, 9, vocabulary=40)
    return Built(
        files.keras_model(folder, source, ending), random_torch(target, 9), inputs=ids, **options
    )  # fmt: skip


@pair("unseen: encoder of Keras' MultiHeadAttention to PyTorch's layers", "attention")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.unseen_twins import Tokens

    source = random_keras(_tokens_keras())
    arrays = _tokens_arrays(source)
    return _tokens(
        folder, "weights.h5", source, Tokens(), truth=lambda m: load_torch(m, arrays),
        outputs=_outputs(source, tokens(2, 9, vocabulary=40)),
    )  # fmt: skip


@pair("unseen: encoder of Keras to a larger vocabulary and other classes", "transfer")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.unseen_twins import Tokens

    source, target = random_keras(_tokens_keras()), random_torch(Tokens(2, 44, 3), 9)
    arrays = {n: a for n, a in _tokens_arrays(source).items() if not n.startswith("head.")}
    kept = arrays_of(target)["words.weight"].copy()
    arrays["words.weight"] = np.concatenate([arrays["words.weight"], kept[40:]])
    return _tokens(
        folder, "keras", source, target,
        truth=lambda m: load_torch(m, arrays, stays=r"^head\."),
        sets=Sets(fresh=("head.*",), adapted=("words.weight",), unused=("out*",)),
    )  # fmt: skip


@pair("unseen: encoder of Keras of three blocks to one of two", "transfer")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.unseen_twins import Tokens

    source = random_keras(_tokens_keras(3))
    arrays = _tokens_arrays(source, 2)
    return _tokens(
        folder, "keras", source, Tokens(), truth=lambda m: load_torch(m, arrays),
        sets=Sets(unused=("block2*",)),
    )  # fmt: skip


@pair("unseen: grouped queries of Keras to separate projections", "attention")
def _(folder: Path) -> Built:
    import keras

    from benchmarks.pairs.models.unseen_twins import Grouped

    layers = keras.layers
    start = keras.Input((7, 16))
    y = layers.GroupQueryAttention(6, 4, 2)(start, start)
    source = random_keras(keras.Model(start, layers.LayerNormalization()(layers.Add()([start, y]))))
    x = _sequence(2, 7, 16)
    w = [keras_array(v) for v in source.weights]
    made: Arrays = {}
    for i, name in enumerate(("wq", "wk", "wv")):
        made[f"{name}.weight"] = w[2 * i].reshape(16, -1).T
        made[f"{name}.bias"] = w[2 * i + 1].reshape(-1)
    made |= {"wo.weight": w[6].reshape(24, 16).T, "wo.bias": w[7]}
    made |= {"ln.weight": w[8], "ln.bias": w[9]}
    return Built(
        files.keras_model(folder, source), random_torch(Grouped(), 9), _outputs(source, x), x,
        truth=lambda m: load_torch(m, made),
    )  # fmt: skip


def _small(channels: int = 3, classes: int = 10, **norm: Any) -> Any:
    import keras

    layers = keras.layers
    model = keras.Sequential([layers.Input((16, 16, channels))])
    for _ in range(2):
        model.add(layers.Conv2D(8, 3, padding="same"))
        model.add(layers.BatchNormalization(**norm))
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(24, "relu"))
    model.add(layers.Dense(classes))
    return model


def _small_values(source: Any) -> Slots:
    values = slots(source)
    values[-4] = ("fc1", _rows(values[-4][1], 8, 4, 4))
    return values


@pair("unseen: two models of Keras flattened: Keras to PyTorch", "layouts")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.unseen_twins import Small

    def truth(source: Any) -> Any:
        values = _small_values(source)
        return lambda target: fill(target, values)

    _small()
    return to_torch(folder, _small(), Small(), 16, ending="h5", truth=truth)


@pair("unseen: a flattened model of Keras: one input channel, other classes", "transfer")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.unseen_twins import Small

    source, target = random_keras(_small()), random_torch(Small(1, 4), 9)
    values = _small_values(source)
    given = dict(zip(list(arrays_of(target))[:-2], (a for _, a in values[:-2]), strict=True))
    given["conv1.weight"] = given["conv1.weight"].sum(1, keepdims=True)
    last = slots(source)[-1][0].rpartition("/")[0]
    return Built(
        files.keras_model(folder, source), target, None, images(2, 1, 16, 16),
        truth=lambda m: load_torch(m, given, stays=r"^fc2\."),
        sets=Sets(fresh=("fc2.*",), adapted=("conv1.weight",), unused=(f"{last}*",)),
    )  # fmt: skip


@pair("unseen: Keras' epsilon, PyTorch's epsilon", "traps")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.unseen_twins import Small

    return to_torch(
        folder, _small(), Small(eps=0.1), 16, truth=lambda s: None
    )  # fmt: skip


@pair("unseen: mean and variance exchanged in a Keras file", "traps")
def _(folder: Path) -> Built:
    import h5py

    from benchmarks.pairs.models.unseen_twins import Small

    made = to_torch(folder, _small(), Small(), 16, ending="weights.h5", truth=lambda s: None)
    with h5py.File(made.source, "r+") as file:
        groups: list[Any] = []
        file.visititems(
            lambda name, part: (
                groups.append(part) if name.endswith("vars") and "3" in part else None
            )
        )
        for group in groups:
            mean, variance = group["2"][()], group["3"][()]
            group["2"][...], group["3"][...] = variance, mean
    return made


@pair("unseen: a Keras kernel of other height and width than PyTorch's", "traps")
def _(folder: Path) -> Built:
    import keras
    from torch import nn

    layers = keras.layers
    source = keras.Sequential([
        layers.Input((12, 12, 3)), layers.Conv2D(8, (5, 3), padding="same", activation="relu"),
        layers.Conv2D(8, (3, 5), padding="same"), layers.GlobalAveragePooling2D(), layers.Dense(4),
    ])  # fmt: skip
    target = nn.Sequential(
        nn.Conv2d(3, 8, (3, 5), padding=(1, 2)), nn.ReLU(), nn.Conv2d(8, 8, (5, 3), padding=(2, 1)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    return to_torch(folder, source, target, 12, truth=lambda s: None)


# KerasHub beside transformers: only what differs from the models of `keras_hub_models`.
_MISTRAL = (
    (r"^token_embedding/embeddings", "embed_tokens.weight"),
    (r"^token_embedding/reverse_embeddings", "lm_head.weight"),
    (r"^sequence_output_layernorm/", "norm."),
    (r"^transformer_layer_(\d)/", r"layers.\1."),
    (r"(?:self_)?attention/(query|key|value)/", lambda m: f"self_attn.{m[1][0]}_proj."),
    (r"(?:self_)?attention/attention_output/", "self_attn.o_proj."),
    (r"(self|pre)_attention_layernorm/", "input_layernorm."),
    (r"(feedforward|post_attention)_layernorm/", "post_attention_layernorm."),
    (r"feedforward_intermediate_dense/", "mlp.up_proj."),
    (r"feedforward_gate_dense/", "mlp.gate_proj."),
    (r"feedforward_output_dense/", "mlp.down_proj."),
    (r"(kernel|scale)$", "weight"),
)


def _mistral() -> tuple[Any, Any]:
    ours = hub(
        "QwenBackbone", num_query_heads=HEADS, num_key_value_heads=2, layer_norm_epsilon=1e-6,
        tie_word_embeddings=True,
    )  # fmt: skip
    theirs = _config(
        "Qwen2Model", "Qwen2Config", num_key_value_heads=2, rms_norm_eps=1e-6, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, use_sliding_window=False,
    )  # fmt: skip
    return ours, theirs


@pair("unseen: Qwen: KerasHub to transformers", "attention")
def _(folder: Path) -> Built:
    return to_transformers(folder, *_mistral(), _MISTRAL)


@pair("unseen: Qwen: transformers to KerasHub", "attention")
def _(folder: Path) -> Built:
    ours, theirs = _mistral()
    return to_hub(folder, theirs, ours, _MISTRAL)


def _fused(arrays: Arrays) -> Arrays:
    made: Arrays = {}
    for name, array in arrays.items():
        if "q_proj" in name:
            parts = [arrays[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            made[name.replace("q_proj", "qkv_proj")] = np.concatenate(parts)
        elif "gate_proj" in name:
            parts = [array, arrays[name.replace("gate_proj", "up_proj")]]
            made[name.replace("gate_proj", "gate_up_proj")] = np.concatenate(parts)
        elif not any(word in name for word in ("k_proj", "v_proj", "up_proj", "lm_head")):
            made[name] = array
    return made


def _phi3() -> tuple[Any, Any]:
    ours = hub(
        "Phi3Backbone", num_query_heads=HEADS, num_key_value_heads=2, layer_norm_epsilon=1e-6,
    )  # fmt: skip
    theirs = _config(
        "Phi3Model", "Phi3Config", num_key_value_heads=2, rms_norm_eps=1e-6, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, original_max_position_embeddings=16,
    )  # fmt: skip
    return ours, theirs


@pair("unseen: Phi-3: KerasHub to transformers' fused matrices", "attention")
def _(folder: Path) -> Built:
    return to_transformers(
        folder, *_phi3(), _MISTRAL, change=_fused,
        sets=Sets(unused=("token_embedding/1",)),
    )  # fmt: skip


_ALBERT = (
    (r"^token_embedding/embeddings", "embeddings.word_embeddings.weight"),
    (r"^position_embedding/embeddings", "embeddings.position_embeddings.weight"),
    (r"^segment_embedding/embeddings", "embeddings.token_type_embeddings.weight"),
    (r"^embeddings_layer_norm/", "embeddings.LayerNorm."),
    (r"^embedding_projection/", "encoder.embedding_hidden_mapping_in."),
    (r"^group_0_inner_layer_0/", "encoder.albert_layer_groups.0.albert_layers.0."),
    (r"self_attention_layer/(query|key|value)/", r"attention.\1."),
    (r"self_attention_layer/attention_output/", "attention.dense."),
    (r"self_attention_layer_norm/", "attention.LayerNorm."),
    (r"feedforward_layer_norm/", "full_layer_layer_norm."),
    (r"feedforward_intermediate_dense/", "ffn."),
    (r"feedforward_output_dense/", "ffn_output."),
    (r"^pooled_dense/", "pooler."),
    (r"(kernel|gamma)$", "weight"),
    (r"beta$", "bias"),
)


def _albert() -> tuple[Any, Any]:
    import keras_hub
    import transformers

    ours = keras_hub.models.AlbertBackbone(
        vocabulary_size=VOCABULARY, num_layers=LAYERS, num_heads=HEADS, embedding_dim=16,
        hidden_dim=WIDTH, intermediate_dim=HIDDEN, max_sequence_length=16,
    )  # fmt: skip
    config = transformers.AlbertConfig(
        vocab_size=VOCABULARY, embedding_size=16, hidden_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=HIDDEN, max_position_embeddings=16,
    )  # fmt: skip
    return ours, transformers.AlbertModel(config)


@pair("unseen: ALBERT: KerasHub to transformers", "attention")
def _(folder: Path) -> Built:
    return to_transformers(folder, *_albert(), _ALBERT, segments=True)


@pair("unseen: ALBERT: transformers to KerasHub", "attention")
def _(folder: Path) -> Built:
    ours, theirs = _albert()
    return to_hub(folder, theirs, ours, _ALBERT, segments=True)


_BLOOM = (
    (r"^token_embedding/embeddings", "word_embeddings.weight"),
    (r"^embedding_layernorm/", "word_embeddings_layernorm."),
    (r"^final_layernorm/", "ln_f."),
    (r"^transformer_layer_(\d)/", r"h.\1."),
    (r"pre_attention_layernorm/", "input_layernorm."),
    (r"self_attention/(query|key|value)_dense/", lambda m: f"self_attention.{m[1][0]}_proj."),
    (r"self_attention/output_dense/", "self_attention.dense."),
    (r"post_attention_layernorm/", "post_attention_layernorm."),
    (r"mlp_intermediate_dense/", "mlp.dense_h_to_4h."),
    (r"mlp_output_dense/", "mlp.dense_4h_to_h."),
    (r"(kernel|gamma)$", "weight"),
    (r"beta$", "bias"),
)


@pair("unseen: BLOOM: KerasHub to transformers, queries, keys, values by head", "attention")
def _(folder: Path) -> Built:
    import transformers

    ours = hub("BloomBackbone", num_heads=HEADS, intermediate_dim=4 * WIDTH)
    config = transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS, use_cache=False
    )

    def change(arrays: Arrays) -> Arrays:
        made: Arrays = {}
        for name, array in arrays.items():
            if "q_proj" in name:
                parts = [
                    arrays[name.replace("q_proj", f"{x}_proj")].reshape(HEADS, 8, *array.shape[1:])
                    for x in "qkv"
                ]
                joined = np.stack(parts, 1).reshape(-1, *array.shape[1:])
                made[name.replace("q_proj", "query_key_value")] = joined
            elif "k_proj" not in name and "v_proj" not in name:
                made[name] = array
        return made

    return to_transformers(
        folder, ours, transformers.BloomModel(config), _BLOOM, change=change, ending="weights.h5"
    )


_GEMMA = (
    (r"^token_embedding/embeddings", "embed_tokens.weight"),
    (r"^final_normalization/scale", "norm.weight"),
    (r"^decoder_block_(\d)/", r"layers.\1."),
    (r"attention/(query|key|value)/kernel", lambda m: f"self_attn.{m[1][0]}_proj.weight"),
    (r"attention/attention_output/kernel", "self_attn.o_proj.weight"),
    (r"pre_attention_norm/scale", "input_layernorm.weight"),
    (r"pre_ffw_norm/scale", "post_attention_layernorm.weight"),
    (r"ffw_gating/kernel", "mlp.gate_proj.weight"),
    (r"ffw_gating_2/kernel", "mlp.up_proj.weight"),
    (r"ffw_linear/kernel", "mlp.down_proj.weight"),
)


@pair("unseen: Gemma: KerasHub to transformers, heads before the width", "attention")
def _(folder: Path) -> Built:
    from benchmarks.pairs.families.keras_hub_models import _sequence as sequence
    from benchmarks.pairs.truths import keras_weights, renamed

    ours = hub(
        "GemmaBackbone", num_query_heads=HEADS, num_key_value_heads=1, head_dim=8,
        intermediate_dim=128,
    )  # fmt: skip
    theirs = _config(
        "GemmaModel", "GemmaConfig", num_key_value_heads=1, head_dim=8, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    random_keras(ours)
    ids = tokens(2, 9, vocabulary=VOCABULARY)
    mask = np.ones_like(ids)
    outputs = sequence(ours({"token_ids": ids, "padding_mask": mask}, training=False))
    made: Arrays = {}
    for _, name, _, array in keras_weights(ours):
        if array.ndim == 3:
            output = "attention_output" in name
            array = (
                array.reshape(-1, WIDTH).T if output
                else array.transpose(0, 2, 1).reshape(-1, WIDTH)
            )  # fmt: skip
        elif name.endswith("kernel"):
            array = array.T
        made[name] = array
    arrays = renamed(made, _GEMMA)
    path = files.keras_model(folder, ours)
    return Built(
        path, random_torch(theirs, 9), {"last_hidden_state": outputs},
        {"input_ids": ids, "attention_mask": mask}, truth=lambda m: load_torch(m, arrays),
    )  # fmt: skip


_WHISPER = (
    (r"^encoder_token_embedding_conv_layer_(\d)/", r"encoder.conv\1."),
    (r"^encoder_position_embedding/embeddings", "encoder.embed_positions.weight"),
    (r"^decoder_token_and_position_embedding/token_embedding/embeddings",
     "decoder.embed_tokens.weight"),
    (r"^decoder_token_and_position_embedding/position_embedding/embeddings",
     "decoder.embed_positions.weight"),
    (r"^transformer_(en|de)coder_layer_(\d)/", r"\1coder.layers.\2."),
    (r"cross_attention/attention_output/", "encoder_attn.out_proj."),
    (r"self_attention(_layer)?/attention_output/", "self_attn.out_proj."),
    (r"cross_attention/(query|key|value)/", lambda m: f"encoder_attn.{m[1][0]}_proj."),
    (r"self_attention(?:_layer)?/(query|key|value)/", lambda m: f"self_attn.{m[1][0]}_proj."),
    (r"self_attention_layer_norm/", "self_attn_layer_norm."),
    (r"cross_attention_layer_norm/", "encoder_attn_layer_norm."),
    (r"feedforward_layer_norm/", "final_layer_norm."),
    (r"feedforward_intermediate_dense/", "fc1."),
    (r"feedforward_output_dense/", "fc2."),
    (r"^(en|de)coder_layer_norm/", r"\1coder.layer_norm."),
    (r"(kernel|gamma)$", "weight"),
    (r"beta$", "bias"),
)  # fmt: skip


@pair("unseen: Whisper: KerasHub to transformers", "attention")
def _(folder: Path) -> Built:
    import keras
    import keras_hub
    import transformers

    from benchmarks.pairs.families.keras_hub_models import arrays_by_path
    from benchmarks.pairs.truths import renamed

    ours = keras_hub.models.WhisperBackbone(
        vocabulary_size=VOCABULARY, num_layers=LAYERS, num_heads=HEADS, hidden_dim=WIDTH,
        intermediate_dim=HIDDEN, max_encoder_sequence_length=20, max_decoder_sequence_length=16,
    )  # fmt: skip
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=HIDDEN,
        decoder_ffn_dim=HIDDEN, max_source_positions=10, max_target_positions=16,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, use_cache=False,
        activation_function="gelu_new",
    )  # fmt: skip
    random_keras(ours)
    ids = tokens(2, 9, vocabulary=VOCABULARY)
    sound = _sequence(2, 20, 80)
    answer = ours({
        "encoder_features": sound, "decoder_token_ids": ids,
        "decoder_padding_mask": np.ones_like(ids),
    }, training=False)  # fmt: skip
    given = arrays_by_path(ours)
    given = {n: a for n, a in given.items() if n != "token_embedding/embeddings"}
    arrays = renamed(given, _WHISPER)
    made = keras.ops.convert_to_numpy(answer["decoder_sequence_output"])
    return Built(
        files.keras_model(folder, ours), random_torch(transformers.WhisperModel(config), 9),
        {"last_hidden_state": made},
        {"input_features": sound.transpose(0, 2, 1).copy(), "decoder_input_ids": ids},
        truth=lambda m: load_torch(m, arrays), tolerance=1e-3,
    )  # fmt: skip


_OPT = (
    (r"^embeddings/token_embedding/embeddings", "decoder.embed_tokens.weight"),
    (r"^embeddings/position_embedding/embeddings", "decoder.embed_positions.weight"),
    (r"^layer_norm/", "decoder.final_layer_norm."),
    (r"^transformer_layer_(\d)/", r"decoder.layers.\1."),
    (r"self_attention/(query|key|value)/", lambda m: f"self_attn.{m[1][0]}_proj."),
    (r"self_attention/attention_output/", "self_attn.out_proj."),
    (r"self_attention_layer_norm/", "self_attn_layer_norm."),
    (r"feedforward_layer_norm/", "final_layer_norm."),
    (r"feedforward_intermediate_dense/", "fc1."),
    (r"feedforward_output_dense/", "fc2."),
    (r"(kernel|gamma)$", "weight"),
    (r"beta$", "bias"),
)


@pair("unseen: OPT: KerasHub to transformers, positions shifted by two rows", "transfer")
def _(folder: Path) -> Built:
    """The two rows before all positions are of no position that is ever asked for."""
    import transformers

    from benchmarks.pairs.families.keras_hub_models import arrays_by_path
    from benchmarks.pairs.truths import renamed

    ours = random_keras(hub("OPTBackbone", num_heads=HEADS, max_sequence_length=16))
    config = transformers.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, ffn_dim=HIDDEN, max_position_embeddings=16,
        word_embed_proj_dim=WIDTH, use_cache=False, pad_token_id=1,
    )  # fmt: skip
    given = arrays_by_path(ours)
    arrays = renamed({n: a for n, a in given.items() if not n.startswith("token_emb")}, _OPT)
    target = random_torch(transformers.OPTModel(config), 9)
    name = "decoder.embed_positions.weight"
    arrays[name] = np.concatenate([arrays_of(target)[name][:2], arrays[name]])
    ids = tokens(2, 9, vocabulary=VOCABULARY)
    return Built(
        files.keras_model(folder, ours), target, None, {"input_ids": ids},
        truth=lambda m: load_torch(m, arrays), sets=Sets(adapted=(name,)),
    )  # fmt: skip


# Flax modules that run.


def _linen_up() -> Any:
    from flax import linen as nn

    class Up(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.relu(nn.GroupNorm(4, epsilon=1e-5)(nn.Conv(8, (3, 3), padding="SAME")(x)))
            x = nn.ConvTranspose(6, (2, 2), (2, 2), padding="VALID")(x)
            x = nn.relu(nn.LayerNorm(epsilon=1e-5)(x))
            return nn.Dense(5)(x.mean((1, 2)))

    return Up()


@pair("unseen: transposed convolutions: linen to PyTorch, filters mirrored", "layouts")
def _(folder: Path) -> Built:
    import torch
    from torch import nn

    from benchmarks.pairs.families.flax_models import _dense, _under, to_torch

    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8)
            self.up, self.ln = nn.ConvTranspose2d(8, 6, 2, 2), nn.LayerNorm(6)
            self.fc = nn.Linear(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.up(torch.relu(self.norm(self.conv(x)))).permute(0, 2, 3, 1)
            return self.fc(torch.relu(self.ln(x)).mean((1, 2)))

    def change(arrays: Arrays) -> Arrays:
        made = _under("conv", _dense(arrays, "params/Conv_0"))
        made |= _under("fc", _dense(arrays, "params/Dense_0"))
        for name, norm in (("norm", "GroupNorm_0"), ("ln", "LayerNorm_0")):
            made[f"{name}.weight"] = arrays[f"params/{norm}/scale"]
            made[f"{name}.bias"] = arrays[f"params/{norm}/bias"]
        up = arrays["params/ConvTranspose_0/kernel"]  # [h, w, in, out], correlated
        made["up.weight"] = up[::-1, ::-1].transpose(2, 3, 0, 1)
        made["up.bias"] = arrays["params/ConvTranspose_0/bias"]
        return made

    return to_torch(folder, _linen_up(), Up(), images(2, 8, 8, 3), change)


@pair("unseen: bidirectional simple cells: linen to PyTorch", "layouts")
def _(folder: Path) -> Built:
    import jax
    from flax import linen as nn

    from benchmarks.pairs.families.flax_models import to_torch
    from benchmarks.pairs.models.layers import Recurrent

    class Both(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            both = nn.Bidirectional(nn.RNN(nn.SimpleCell(8)), nn.RNN(nn.SimpleCell(8)))
            y = both(x)
            return nn.Dense(5)(jax.numpy.concatenate([y[:, -1, :8], y[:, 0, 8:]], -1))

    def change(arrays: Arrays) -> Arrays:
        cells = sorted({n.split("/")[1] for n in arrays if "Cell" in n})
        made: Arrays = {
            "fc.weight": arrays["params/Dense_0/kernel"].T, "fc.bias": arrays["params/Dense_0/bias"]
        }  # fmt: skip
        for cell, end in zip(cells, ("l0", "l0_reverse"), strict=True):
            made[f"rnn.weight_ih_{end}"] = arrays[f"params/{cell}/i/kernel"].T
            made[f"rnn.weight_hh_{end}"] = arrays[f"params/{cell}/h/kernel"].T
            made[f"rnn.bias_ih_{end}"] = arrays[f"params/{cell}/i/bias"]
            made[f"rnn.bias_hh_{end}"] = 0 * arrays[f"params/{cell}/i/bias"]
        return made

    return to_torch(
        folder, Both(), Recurrent("RNN", True, 1), _sequence(2, 7, 6), change,
        sets=Sets(fresh=("rnn.bias_hh*",), adapted=("rnn.bias*",)),
    )  # fmt: skip


@pair("unseen: a GRU of NNX, gates joined, to PyTorch", "layouts")
def _(folder: Path) -> Built:
    from flax import nnx

    from benchmarks.pairs.families.flax_models import _nnx_tree
    from benchmarks.pairs.models.layers import Recurrent
    from benchmarks.pairs.truths import leaves

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.rnn = nnx.RNN(nnx.GRUCell(6, 8, rngs=rngs))
            self.fc = nnx.Linear(8, 5, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.fc(self.rnn(x)[:, -1])

    x = _sequence(2, 7, 6)
    tree, run = _nnx_tree(Net, x)
    outputs = run(tree)
    given = leaves(tree)
    cell = "rnn/cell/"
    made = {
        "rnn.weight_ih_l0": given[f"{cell}dense_i/kernel"].T,
        "rnn.weight_hh_l0": given[f"{cell}dense_h/kernel"].T,
        "rnn.bias_ih_l0": given[f"{cell}dense_i/bias"],
        "rnn.bias_hh_l0": 0 * given[f"{cell}dense_i/bias"],
        "fc.weight": given["fc/kernel"].T, "fc.bias": given["fc/bias"],
    }  # fmt: skip
    return Built(
        files.pickled_tree(folder, {n: t for n, t in tree.items() if n in ("rnn", "fc")}),
        random_torch(Recurrent("GRU", layers=1), 9), outputs, x,
        truth=lambda m: load_torch(m, made),
        sets=Sets(fresh=("rnn.bias_hh*",), adapted=("rnn.bias*",), unused=("*rngs*", "*count*")),
    )  # fmt: skip


@pair("unseen: Keras' layers to a tree of linen", "layouts")
def _(folder: Path) -> Built:
    """Flattened channels last on both sides, numbers of linen in the order of making."""
    import jax
    from flax import linen as nn

    from benchmarks.pairs.models.flax_models import initial
    from benchmarks.pairs.randomness import random_tree
    from benchmarks.pairs.truths import tree_with

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for _ in range(2):
                x = nn.Conv(8, (3, 3))(x)
                x = nn.relu(nn.BatchNorm(True, epsilon=1e-3)(x))
                x = nn.max_pool(x, (2, 2), (2, 2))
            x = nn.relu(nn.Dense(24)(x.reshape(x.shape[0], -1)))
            return nn.Dense(10)(x)

    source, net, x = random_keras(_small()), Net(), images(2, 16, 16, 3)
    tree = random_tree(initial(net, x), 9)
    w = [keras_array(v) for v in source.weights]
    made: Arrays = {}
    for i in range(2):
        kernel, bias, gamma, beta, mean, var = w[6 * i : 6 * i + 6]
        made |= {
            f"params/Conv_{i}/kernel": kernel, f"params/Conv_{i}/bias": bias,
            f"params/BatchNorm_{i}/scale": gamma, f"params/BatchNorm_{i}/bias": beta,
            f"batch_stats/BatchNorm_{i}/mean": mean, f"batch_stats/BatchNorm_{i}/var": var,
            f"params/Dense_{i}/kernel": w[12 + 2 * i], f"params/Dense_{i}/bias": w[13 + 2 * i],
        }  # fmt: skip
    apply = jax.jit(net.apply)
    return Built(
        files.keras_model(folder, source), tree, _outputs(source, x),
        run=lambda t: np.asarray(apply(t, x)), truth=lambda t: tree_with(t, made),
    )  # fmt: skip
