"""Weights that are stored as something else: factors, adapters, folded norms, scaled integers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pairs import files
from benchmarks.pairs.collection import Built, Sets, pair
from benchmarks.pairs.families.numbering import vectors
from benchmarks.pairs.randomness import generator, images, random_torch
from benchmarks.pairs.truths import arrays_of, by_names, load_torch


def stored(
    folder: Path,
    model: Any,
    target: Any,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    x: Any,
    *,
    saved: Callable[[Path, Any], Path] = files.safetensors,
    **options: Any,
) -> Built:
    """`model` with its tensors stored as `change` makes them; the target has them plain.

    `change` takes and gives torch tensors; it may alter the values that it is given, as coarser
    numbers do, and the model then answers with those.
    """
    import torch

    random_torch(model, 0)
    random_torch(target, 9)
    # Copies: loading writes into the model's own tensors, which the file is not to follow.
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    content = change(state)
    model.load_state_dict(state)
    with torch.no_grad():
        outputs = model(torch.from_numpy(x)).numpy()
    truth = options.pop("truth", None) or by_names(model)
    return Built(saved(folder, content), target, outputs, x, truth=truth, **options)


def _conv_net() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
        nn.Conv2d(12, 12, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


def _perceptron() -> Any:
    from benchmarks.pairs.models.nets import Perceptron

    return Perceptron(12, 20, 16, 5)


X = (2, 3, 12, 12)


def _normed(state: dict[str, Any], names: tuple[str, str]) -> dict[str, Any]:
    """Each kernel as length and direction, the direction not of length one."""
    made: dict[str, Any] = {}
    for index, (name, tensor) in enumerate(state.items()):
        if not name.endswith("weight"):
            made[name] = tensor
            continue
        stem = name.removesuffix("weight")
        length = tensor.flatten(1).norm(dim=1).reshape(-1, *[1] * (tensor.ndim - 1))
        made[stem + names[0]] = length
        made[stem + names[1]] = tensor * (0.5 + 0.3 * index)
    return made


@pair("weight norm, old form, to plain", "reparametrised")
def _(folder: Path) -> Built:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        return _normed(state, ("weight_g", "weight_v"))

    return stored(folder, _conv_net(), _conv_net(), change, images(*X), saved=files.pth)


@pair("weight norm, new form, to plain", "reparametrised")
def _(folder: Path) -> Built:
    names = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    return stored(folder, _conv_net(), _conv_net(), lambda state: _normed(state, names), images(*X))


@pair("weight norm, old form, to new form", "reparametrised")
def _(folder: Path) -> Built:
    import torch
    from torch.nn.utils import parametrizations

    source, target = _conv_net(), _conv_net()
    for model in (source, target):
        for layer in model:
            if hasattr(layer, "weight"):
                parametrizations.weight_norm(layer)
    random_torch(source)
    random_torch(target, 9)
    x = images(*X)
    with torch.no_grad():
        outputs = source(torch.from_numpy(x)).numpy()
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in source.state_dict().items()
    }
    return Built(files.pth(folder, old), target, outputs, x, truth=by_names(source))


def _adapted(alpha: float, rank: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Layers 0 and 1 with adapters under PEFT's names; the state gets the merged weights."""
    import torch

    def change(state: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        random = torch.Generator().manual_seed(3)
        for name, tensor in list(state.items()):
            stem = f"base_model.model.{name}"
            if not name.startswith(("layers.0", "layers.1")):
                made[stem] = tensor
                continue
            layer, _, leaf = stem.rpartition(".")
            made[f"{layer}.base_layer.{leaf}"] = tensor
            if leaf == "weight":
                out, into = tensor.shape
                a = torch.randn(rank, into, generator=random) * 0.3
                b = torch.randn(out, rank, generator=random) * 0.3
                made[f"{layer}.lora_A.default.weight"] = a
                made[f"{layer}.lora_B.default.weight"] = b
                state[name] = tensor + alpha / rank * b @ a
        return made

    return change


def _with_config(alpha: float, rank: int) -> Callable[[Path, Any], Path]:
    """Beside the weights, PEFT writes what the factor of the adapters is."""

    def saved(folder: Path, content: Any) -> Path:
        config = {
            "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": ["0", "1"],
            "bias": "none", "use_rslora": False, "use_dora": False, "fan_in_fan_out": False,
        }  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
        return files.safetensors(folder, content)

    return saved


@pair("LoRA adapters beside their base, factor one", "reparametrised")
def _(folder: Path) -> Built:
    saved = _with_config(4, 4)
    return stored(
        folder, _perceptron(), _perceptron(), _adapted(4, 4), vectors(), saved=saved
    )  # fmt: skip


@pair("LoRA adapters beside their base, factor in the configuration", "reparametrised")
def _(folder: Path) -> Built:
    saved = _with_config(16, 4)
    return stored(
        folder, _perceptron(), _perceptron(), _adapted(16, 4), vectors(), saved=saved
    )  # fmt: skip


def _with_norms(eps: float = 1e-5, biases: bool = False) -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=biases), nn.BatchNorm2d(8, eps), nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, bias=biases), nn.BatchNorm2d(12, eps), nn.ReLU(),
        nn.Conv2d(12, 12, 1, bias=biases), nn.BatchNorm2d(12, eps), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


def _folded() -> Any:
    from torch import nn

    from benchmarks.pairs.models.nets import Chain

    steps: list[tuple[str, Any]] = []
    for i, (before, after, size) in enumerate(((3, 8, 3), (8, 12, 3), (12, 12, 1))):
        steps += [(f"conv{i + 1}", nn.Conv2d(before, after, size, padding=size // 2))]
        steps += [("", nn.ReLU())]
    return Chain(
        [*steps, ("", nn.AdaptiveAvgPool2d(1)), ("", nn.Flatten()), ("fc", nn.Linear(12, 5))]
    )


def fold(arrays: dict[str, Any], places: tuple[int, ...], eps: float) -> dict[str, Any]:
    """Convolutions with the norms after them as one, `conv1`, `conv2` …"""
    made: dict[str, Any] = {}
    for number, place in enumerate(places, 1):
        norm = f"{place + 1}"
        scale = arrays[f"{norm}.weight"] / np.sqrt(arrays[f"{norm}.running_var"] + eps)
        bias = arrays.get(f"{place}.bias", 0.0)
        made[f"conv{number}.weight"] = arrays[f"{place}.weight"] * scale[:, None, None, None]
        shift = bias - arrays[f"{norm}.running_mean"]
        made[f"conv{number}.bias"] = shift * scale + arrays[f"{norm}.bias"]
    return made


def _fold_pair(folder: Path, *, biases: bool, saved: Callable[[Path, Any], Path]) -> Built:
    import torch

    source, target = random_torch(_with_norms(biases=biases)), random_torch(_folded(), 9)
    x = images(*X)
    with torch.no_grad():
        outputs = source(torch.from_numpy(x)).numpy()
    arrays = arrays_of(source)
    made = fold(arrays, (0, 3, 6), 1e-5)
    made |= {"fc.weight": arrays["11.weight"], "fc.bias": arrays["11.bias"]}
    return Built(
        saved(folder, source), target, outputs, x, truth=lambda model: load_torch(model, made)
    )


@pair("norms folded into convolutions without bias", "reparametrised")
def _(folder: Path) -> Built:
    return _fold_pair(folder, biases=False, saved=files.pth)


@pair("norms folded into convolutions with bias", "reparametrised")
def _(folder: Path) -> Built:
    return _fold_pair(folder, biases=True, saved=files.safetensors)


def _int8(names: Callable[[str], str], column: bool) -> Callable[[Any], dict[str, Any]]:
    """Symmetric eight-bit rows with a scale each, whose name follows from the weight's."""
    import torch

    def change(state: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, tensor in list(state.items()):
            if tensor.ndim < 2:
                made[name] = tensor
                continue
            scale = tensor.abs().amax(1, keepdim=True) / 127
            codes = (tensor / scale).round().to(torch.int8)
            state[name] = codes.float() * scale
            made[name] = codes
            made[names(name)] = scale if column else scale.reshape(-1)
        return made

    return change


@pair("int8 rows with weight_scale", "reparametrised")
def _(folder: Path) -> Built:
    change = _int8(lambda name: f"{name}_scale", True)
    return stored(folder, _perceptron(), _perceptron(), change, vectors())


@pair("int8 rows with scales as vectors", "reparametrised")
def _(folder: Path) -> Built:
    change = _int8(lambda name: name.replace("weight", "scales"), False)
    return stored(folder, _perceptron(), _perceptron(), change, vectors(), saved=files.pth)


@pair("float8 with one scale for each tensor", "reparametrised")
def _(folder: Path) -> Built:
    import torch

    def change(state: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, tensor in list(state.items()):
            if tensor.ndim < 2:
                made[name] = tensor
                continue
            scale = tensor.abs().max() / 448
            codes = (tensor / scale).to(torch.float8_e4m3fn)
            state[name] = codes.float() * scale
            made |= {name: codes, f"{name}_scale": scale}
        return made

    return stored(folder, _perceptron(), _perceptron(), change, vectors())


@pair("float8 with inverse scales for blocks", "reparametrised")
def _(folder: Path) -> Built:
    """DeepSeek's way: `weight_scale_inv`, one number for a block of rows and columns."""
    import torch
    from torch import nn

    def net() -> Any:
        return nn.Sequential(
            nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 5)
        )

    def change(state: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, tensor in list(state.items()):
            if tensor.ndim < 2 or tensor.shape[0] < 128:
                made[name] = tensor
                continue
            rows, columns = (size // 128 for size in tensor.shape)
            blocks = tensor.reshape(rows, 128, columns, 128)
            scale = blocks.abs().amax((1, 3)) / 448
            codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            state[name] = (codes.float() * scale[:, None, :, None]).reshape(tensor.shape)
            made |= {name: codes.reshape(tensor.shape), f"{name}_scale_inv": scale}
        return made

    return stored(folder, net(), net(), change, vectors(256))


@pair("bfloat16 to float32", "reparametrised")
def _(folder: Path) -> Built:
    import torch

    def change(state: dict[str, Any]) -> dict[str, Any]:
        coarse = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
        state.update({name: tensor.float() for name, tensor in coarse.items()})
        return coarse

    return stored(folder, _perceptron(), _perceptron(), change, vectors())


@pair("float64 to float32", "reparametrised")
def _(folder: Path) -> Built:
    source, target = _perceptron(), _perceptron()
    return stored(
        folder, source, target, lambda state: {n: t.double() for n, t in state.items()}, vectors(),
        saved=files.pth, accept=("lossy-cast",),
    )  # fmt: skip


@pair("pruned: the original and a mask", "reparametrised")
def _(folder: Path) -> Built:
    import torch

    def change(state: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        random = generator(5, "mask")
        for name, tensor in list(state.items()):
            if tensor.ndim < 2:
                made[name] = tensor
                continue
            mask = torch.from_numpy((random.random(tensor.shape) > 0.4).astype(np.float32))
            state[name] = tensor * mask
            made |= {f"{name}_orig": tensor, f"{name}_mask": mask}
        return made

    return stored(folder, _conv_net(), _conv_net(), change, images(*X), saved=files.pth)


@pair("a tied head left out of the file, untied in the model", "reparametrised")
def _(folder: Path) -> Built:
    """The hub's files leave tied tensors out; the target has a head of its own."""
    from benchmarks.pairs.families.language_models import _to_book, built, gpt2, mapped
    from benchmarks.pairs.models.decoders import BookGPT

    target = BookGPT()
    for block in target.trf_blocks:
        del block.att.mask
        time = 16
        mask = np.triu(np.ones((time, time), np.float32), 1)
        import torch

        block.att.register_buffer("mask", torch.from_numpy(mask), persistent=False)
    return built(folder, gpt2(), target, mapped(_to_book), sets=Sets())


@pair("norms after convolutions folded: Keras to PyTorch", "reparametrised")
def _(folder: Path) -> Built:
    import keras

    from benchmarks.pairs.families.keras_applications import to_torch
    from benchmarks.pairs.truths import slots

    layers = keras.layers
    x = image = keras.Input((12, 12, 3))
    for width, size in ((8, 3), (12, 3), (12, 1)):
        x = layers.Conv2D(width, size, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(5)(layers.GlobalAveragePooling2D()(x))
    source = keras.Model(image, x)

    def truth(model: Any) -> Callable[[Any], Any]:
        given = [array for _, array in slots(model)]
        leaves = ("weight", "bias", "running_mean", "running_var")
        arrays: dict[str, Any] = {}
        for i in range(3):
            kernel, *norm = given[5 * i : 5 * i + 5]
            arrays[f"{2 * i}.weight"] = kernel
            arrays |= {f"{2 * i + 1}.{n}": a for n, a in zip(leaves, norm, strict=True)}
        made = fold(arrays, (0, 2, 4), 1e-3)
        made |= {"fc.weight": given[-2], "fc.bias": given[-1]}
        return lambda target: load_torch(target, made)

    return to_torch(folder, source, _folded(), 12, ending="h5", truth=truth)
