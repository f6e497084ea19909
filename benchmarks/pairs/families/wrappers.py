"""Files with more around the weights than the weights: wrappers, states, several models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.pairs import files
from benchmarks.pairs.collection import Built, Sets, pair
from benchmarks.pairs.randomness import images, random_torch
from benchmarks.pairs.truths import by_names

Wrap = Callable[[Any], Any]


def wrapped(
    folder: Path, source: Any, target: Any, wrap: Wrap, x: Any, *, truth: Any = None, **options: Any
) -> Built:
    """A torch pair whose file holds `wrap(source)`; names are equal but for what is around."""
    import torch

    random_torch(source, 0)
    random_torch(target, 9)
    with torch.no_grad():
        outputs = source(torch.from_numpy(x)).numpy()
    saved = options.pop("saved", files.pth)
    path = saved(folder, wrap(source))
    return Built(path, target, outputs, x, truth=truth or by_names(source), **options)


def resnets() -> tuple[Any, Any]:
    from benchmarks.pairs.models.nets import SmallResNet

    return SmallResNet(), SmallResNet()


def prefixed(state: Any, prefix: str) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in state.items()}


def _optimizer(model: Any) -> Any:
    """The state of an optimizer that has made one step."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), 0.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter in model.parameters():
        parameter.grad = None
    return optimizer.state_dict()


X = (2, 3, 16, 16)


@pair("data parallel, epoch and optimizer beside", "wrappers")
def _(folder: Path) -> Built:
    def wrap(model: Any) -> Any:
        state = prefixed(model.state_dict(), "module.")
        return {
            "epoch": 90, "arch": "resnet", "state_dict": state, "best_acc1": 71.5,
            "optimizer": _optimizer(model),
        }  # fmt: skip

    return wrapped(folder, *resnets(), wrap, images(*X))


@pair("Lightning checkpoint with loops, optimizer and a loss weight", "wrappers")
def _(folder: Path) -> Built:
    import torch

    def wrap(model: Any) -> Any:
        state = prefixed(model.state_dict(), "model.")
        state["criterion.weight"] = torch.rand(10)
        return {
            "epoch": 3, "global_step": 1200, "pytorch-lightning_version": "2.4.0",
            "state_dict": state, "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": {},
            "optimizer_states": [_optimizer(model)], "lr_schedulers": [{"last_epoch": 3}],
            "hyper_parameters": {"lr": 1e-3},
        }  # fmt: skip

    sets = Sets(unused=("criterion.weight",))
    return wrapped(folder, *resnets(), wrap, images(*X), sets=sets)


@pair("compiled inside data parallel", "wrappers")
def _(folder: Path) -> Built:
    return wrapped(
        folder, *resnets(), lambda m: prefixed(m.state_dict(), "module._orig_mod."), images(*X)
    )


@pair("fully sharded wrappers and activation checkpoints inside names", "wrappers")
def _(folder: Path) -> Built:
    def wrap(model: Any) -> Any:
        state: dict[str, Any] = {}
        for name, tensor in model.state_dict().items():
            parts = name.split(".")
            if parts[0].startswith("layer"):
                middle = ["_fsdp_wrapped_module", "_checkpoint_wrapped_module"]
                parts[2:2] = middle
            state[".".join(["_fsdp_wrapped_module", *parts])] = tensor
        return state

    return wrapped(folder, *resnets(), wrap, images(*X))


@pair("an average beside the weights, in parts", "wrappers")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.nets import SmallResNet

    average = random_torch(SmallResNet(), 5)

    def wrap(model: Any) -> Any:
        return {"state_dict": model.state_dict(), "state_dict_ema": average.state_dict()}

    return wrapped(folder, *resnets(), wrap, images(*X))


@pair("an average beside the weights, asked for", "wrappers")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.nets import SmallResNet

    raw = random_torch(SmallResNet(), 5)

    def wrap(model: Any) -> Any:
        return {"model": raw.state_dict(), "model_ema": prefixed(model.state_dict(), "module.")}

    return wrapped(folder, *resnets(), wrap, images(*X), container="model_ema")


@pair("an average beside the weights, flat in one file", "wrappers")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.nets import SmallResNet

    average = random_torch(SmallResNet(), 5)

    def wrap(model: Any) -> Any:
        ema = prefixed(average.state_dict(), "ema_model.")
        return prefixed(model.state_dict(), "model.") | ema

    sets = Sets(unused=("ema_model.*",))
    return wrapped(
        folder, *resnets(), wrap, images(*X), saved=files.safetensors, sets=sets
    )  # fmt: skip


@pair("generator and discriminator in one file", "wrappers")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.nets import Discriminator, Generator

    other = random_torch(Discriminator(), 5)

    def wrap(model: Any) -> Any:
        return {
            "generator": model.state_dict(), "discriminator": other.state_dict(),
            "g_optimizer": _optimizer(model), "iteration": 1000,
        }  # fmt: skip

    sets = Sets(unused=("discriminator*",))
    return wrapped(folder, Generator(), Generator(), wrap, images(2, 12, 1, 1), sets=sets)


@pair("discriminator of two models, asked for", "wrappers")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.nets import Discriminator, Generator

    other = random_torch(Generator(), 5)

    def wrap(model: Any) -> Any:
        return {"netG": other.state_dict(), "netD": prefixed(model.state_dict(), "module.")}

    return wrapped(
        folder, Discriminator(), Discriminator(), wrap, images(2, 3, 8, 8), container="netD"
    )


@pair("a backbone out of a segmentation model", "wrappers")
def _(folder: Path) -> Built:
    import torch

    from benchmarks.pairs.models.nets import Segmentor, SmallResNet

    source, target = random_torch(Segmentor()), random_torch(SmallResNet(0), 9)
    x = images(*X)
    with torch.no_grad():
        outputs = source.backbone(torch.from_numpy(x)).numpy()
    path = files.pth(folder, {"meta": {"epoch": 12}, "state_dict": source.state_dict()})
    sets = Sets(unused=("neck.*", "decode_head.*", "auxiliary_head.*"))
    truth = by_names(source.backbone)
    return Built(path, target, outputs, x, truth=truth, sets=sets)


@pair("sharded training state with the weights under module", "wrappers")
def _(folder: Path) -> Built:
    def wrap(model: Any) -> Any:
        return {
            "module": model.state_dict(), "buffer_names": ["bn1.running_mean"],
            "optimizer": _optimizer(model), "global_steps": 20, "ds_version": "0.14",
        }  # fmt: skip

    return wrapped(folder, *resnets(), wrap, images(*X))


@pair("a model inside a model inside a trainer", "wrappers")
def _(folder: Path) -> Built:
    def wrap(model: Any) -> Any:
        return {"model": {"state_dict": prefixed(model.state_dict(), "student.net.")}, "step": 9}

    return wrapped(folder, *resnets(), wrap, images(*X))


@pair("a Keras model with optimizer state, nested, to PyTorch", "wrappers")
def _(folder: Path) -> Built:
    import keras
    import numpy as np

    from benchmarks.pairs.families.keras_layers import _flat_rows
    from benchmarks.pairs.models.layers import Flattened
    from benchmarks.pairs.randomness import random_keras
    from benchmarks.pairs.truths import fill, slots

    layers = keras.layers
    extractor = keras.Sequential(
        [
            layers.Input((28, 28, 1)), layers.Conv2D(6, 5, activation="relu"),
            layers.MaxPooling2D(), layers.Conv2D(16, 5, activation="relu"),
            layers.MaxPooling2D(), layers.Flatten(),
        ],
        name="extractor",
    )  # fmt: skip
    classifier = keras.Sequential(
        [
            layers.Input((256,)), layers.Dense(40, activation="relu"),
            layers.Dense(24, activation="relu"), layers.Dense(10),
        ],
        name="classifier",
    )  # fmt: skip
    image = keras.Input((28, 28, 1))
    source = keras.Model(image, classifier(extractor(image)))
    random_keras(source)
    source.compile("adam", "mse")
    x = images(2, 28, 28, 1)
    source.train_on_batch(x, np.zeros((2, 10), np.float32))
    outputs = keras.ops.convert_to_numpy(source(x, training=False))
    path = files.keras_model(folder, source, "h5")
    values = [(n, _flat_rows(a, True) if a.shape == (40, 256) else a) for n, a in slots(source)]
    target = random_torch(Flattened(), 9)
    moved = x.transpose(0, 3, 1, 2).copy()
    return Built(path, target, outputs, moved, truth=lambda model: fill(model, values))
