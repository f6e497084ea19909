"""Pairs of which success must not be claimed, or not without outputs."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pairs import files
from benchmarks.pairs.collection import Built, pair
from benchmarks.pairs.families.numbering import residual_stack, vectors
from benchmarks.pairs.randomness import generator, images, random_torch, tokens
from benchmarks.pairs.truths import arrays_of, load_torch

State = dict[str, Any]
Saved = Callable[[Path, Any], Path]


def trap(
    folder: Path,
    source: Any,
    target: Any,
    x: Any,
    *,
    change: Callable[[State], State] = dict,
    saved: Saved = files.pth,
    **options: Any,
) -> Built:
    """A torch pair whose file holds `change` of the source's tensors; outputs are the source's."""
    import torch

    random_torch(source, 0)
    random_torch(target, 9)
    with torch.no_grad():
        outputs = source(torch.from_numpy(x)).numpy()
    return Built(saved(folder, change(source.state_dict())), target, outputs, x, **options)


def _sequences() -> Any:
    return generator(1, "sequences").standard_normal((2, 7, 6)).astype(np.float32)


def _encoder(**options: Any) -> Any:
    from benchmarks.pairs.models.lookalikes import Encoder

    return Encoder(**options)


def _convs(**options: Any) -> Any:
    from benchmarks.pairs.models.lookalikes import ConvStack

    return ConvStack(**options)


def _square(names: tuple[str, ...] = ("fc1", "fc2", "fc3"), width: int = 12) -> Any:
    from torch import nn

    from benchmarks.pairs.models.nets import Chain

    steps: list[tuple[str, Any]] = []
    for name in names:
        steps += [(name, nn.Linear(width, width)), ("", nn.Tanh())]
    return Chain(steps[:-1])


X = (2, 3, 12, 12)


@pair("equal blocks under shuffled, meaningless names", "traps")
def _(folder: Path) -> Built:
    """The file is sorted, so that its order says nothing either."""

    def hashed(i: int) -> str:
        return f"m{zlib.crc32(str(i * 7).encode()):08x}"

    stack = residual_stack(4)
    return trap(
        folder, stack(hashed), stack(lambda i: f"blocks.{i}"), vectors(), saved=files.safetensors
    )


@pair("equal dense layers called by single letters in a sorted archive", "traps")
def _(folder: Path) -> Built:
    source = _square()

    def saved(folder: Path, state: Any) -> Path:
        letters = dict(zip(("fc1", "fc2", "fc3"), "qbx", strict=True))
        flat = {letters[n.split(".")[0]] + n.split(".")[1][0]: t.numpy() for n, t in state.items()}
        np.savez(folder / "net.npz", **dict(sorted(flat.items())))
        return folder / "net.npz"

    return trap(folder, source, _square(), vectors(), saved=saved)


@pair("two networks of one shape in one file", "traps")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.nets import SmallResNet

    other = random_torch(SmallResNet(), 5).state_dict()

    def change(state: State) -> State:
        both = {f"net_a.{n}": t for n, t in state.items()}
        return both | {f"net_b.{n}": t for n, t in other.items()}

    return trap(folder, SmallResNet(), SmallResNet(), images(2, 3, 16, 16), change=change)


@pair("token and position tables of one shape, names without meaning", "traps")
def _(folder: Path) -> Built:
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self, first: str, second: str, out: str) -> None:
            super().__init__()
            # Defined in the order of their names, as in a file that was sorted.
            for name in sorted((first, second)):
                self.add_module(name, nn.Embedding(16, 12))
            self.add_module(out, nn.Linear(12, 5))
            self.names = first, second, out

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            first, second, out = (self.get_submodule(name) for name in self.names)
            return out(torch.tanh(first(ids) * second(torch.arange(ids.shape[1]))))

    source, target = Model("u", "e", "z"), Model("tokens", "positions", "head")
    random_torch(source)
    random_torch(target, 9)
    ids = tokens(2, 9, vocabulary=16)
    with torch.no_grad():
        outputs = source(torch.from_numpy(ids)).numpy()
    return Built(files.safetensors(folder, source), target, outputs, ids)


@pair("square matrices of unknown orientation", "traps")
def _(folder: Path) -> Built:
    """An archive of no framework: `w` may be `[in, out]` or `[out, in]`; it is the first."""

    def saved(folder: Path, state: Any) -> Path:
        flat: State = {}
        for i, name in enumerate(("fc1", "fc2", "fc3")):
            flat[f"layer{i}/w"] = state[f"{name}.weight"].numpy().T
            flat[f"layer{i}/b"] = state[f"{name}.bias"].numpy()
        np.savez(folder / "net.npz", **flat)
        return folder / "net.npz"

    return trap(folder, _square(), _square(), vectors(), saved=saved)


@pair("mean and variance exchanged", "traps")
def _(folder: Path) -> Built:
    def change(state: State) -> State:
        new = dict(state)
        for name in state:
            if name.endswith("running_mean"):
                other = name.replace("mean", "var")
                new[name], new[other] = state[other], state[name]
        return new

    return trap(folder, _convs(), _convs(), images(*X), change=change)


@pair("NaN in one kernel", "traps")
def _(folder: Path) -> Built:
    def change(state: State) -> State:
        broken = state["convs.2.weight"].clone()
        broken[3, 1, 0, 2] = float("nan")
        return state | {"convs.2.weight": broken}

    return trap(folder, _convs(), _convs(), images(*X), change=change)


@pair("Inf in a half-precision norm", "traps")
def _(folder: Path) -> Built:
    def change(state: State) -> State:
        half = {n: t.half() if t.dtype.is_floating_point else t for n, t in state.items()}
        broken = half["norms.1.weight"].clone()
        broken[5] = float("inf")
        return half | {"norms.1.weight": broken}

    return trap(folder, _convs(), _convs(), images(*X), change=change, saved=files.safetensors)


@pair("weights exchanged under right names", "traps", reveals="probe")
def _(folder: Path) -> Built:
    def change(state: State) -> State:
        new = dict(state)
        for leaf in ("weight", "bias"):
            new[f"fc1.{leaf}"], new[f"fc2.{leaf}"] = state[f"fc2.{leaf}"], state[f"fc1.{leaf}"]
        return new

    return trap(folder, _square(), _square(), vectors(), change=change)


@pair("query and value exchanged under right names", "traps", reveals="probe")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.layers import SplitEncoder

    def change(state: State) -> State:
        words = {"to_q": "to_v", "to_v": "to_q"}
        made: State = {}
        for name, tensor in state.items():
            part = next((w for w in words if w in name), "")
            made[name.replace(part, words[part]) if part else name] = tensor
        return made

    return trap(folder, SplitEncoder(), SplitEncoder(), _sequences(), change=change)


@pair("kernels with height and width exchanged", "traps", reveals="probe")
def _(folder: Path) -> Built:
    def change(state: State) -> State:
        return {
            n: t.transpose(2, 3).contiguous() if t.ndim == 4 else t for n, t in state.items()
        }  # fmt: skip

    return trap(folder, _convs(), _convs(), images(*X), change=change)


@pair("norm before or after, equal tensors", "traps", reveals="probe")
def _(folder: Path) -> Built:
    return trap(folder, _encoder(prenorm=True), _encoder(prenorm=False), _sequences())


@pair("another number of heads, equal tensors", "traps", reveals="probe")
def _(folder: Path) -> Built:
    return trap(folder, _encoder(heads=4), _encoder(heads=2), _sequences())


@pair("another activation, equal tensors", "traps", reveals="probe")
def _(folder: Path) -> Built:
    return trap(
        folder, _encoder(), _encoder(activation="silu"), _sequences(), saved=files.safetensors
    )


@pair("another epsilon, equal tensors", "traps", reveals="probe")
def _(folder: Path) -> Built:
    return trap(folder, _convs(eps=1e-3), _convs(eps=1e-5), images(*X))


@pair("another epsilon: Keras' default to PyTorch's", "traps", reveals="probe")
def _(folder: Path) -> Built:
    import keras
    from torch import nn

    from benchmarks.pairs.randomness import random_keras

    layers = keras.layers
    source = keras.Sequential([layers.Input((12, 12, 3))])
    for width in (8, 12, 12):
        source.add(layers.Conv2D(width, 3, padding="same", use_bias=False))
        source.add(layers.BatchNormalization())
        source.add(layers.ReLU())
    source.add(layers.GlobalAveragePooling2D())
    source.add(layers.Dense(5))
    random_keras(source)
    steps: list[Any] = []
    for before, after in ((3, 8), (8, 12), (12, 12)):
        steps += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
        steps.append(nn.ReLU())
    target = nn.Sequential(*steps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
    x = images(2, 12, 12, 3)
    outputs = keras.ops.convert_to_numpy(source(x, training=False))
    path = files.keras_model(folder, source, "h5")
    return Built(path, random_torch(target, 9), outputs, x.transpose(0, 3, 1, 2).copy())


@pair("padding at one end or at both, equal tensors", "traps", reveals="probe")
def _(folder: Path) -> Built:
    """TensorFlow's SAME for a step of two against PyTorch's symmetric padding."""
    return trap(folder, _convs(padding=(0, 1)), _convs(padding=(1, 1)), images(*X))


@pair("another architecture with equal tensors: skips", "traps", reveals="probe")
def _(folder: Path) -> Built:
    return trap(
        folder, _convs(skips=True), _convs(skips=False), images(*X), saved=files.safetensors
    )


@pair("Gemma into LLaMA, whose norms and embeddings mean something else", "traps", reveals="probe")
def _(folder: Path) -> Built:
    from benchmarks.pairs.families.language_models import VOCABULARY, llama

    source = llama("Gemma", head_dim=8)
    target = llama()
    import torch

    random_torch(source)
    random_torch(target, 9)
    ids = tokens(2, 9, vocabulary=VOCABULARY)
    with torch.no_grad():
        outputs = source(torch.from_numpy(ids)).logits.numpy()
    path = files.safetensors(folder, source)
    return Built(path, target, {"logits": outputs}, {"input_ids": ids})


@pair("a GRU that resets before, into PyTorch's, which resets after", "traps", reveals="probe")
def _(folder: Path) -> Built:
    import keras

    from benchmarks.pairs.families.keras_layers import _sequence
    from benchmarks.pairs.models.layers import Recurrent
    from benchmarks.pairs.randomness import random_keras

    layers = keras.layers
    source = keras.Sequential(
        [layers.Input((7, 6)), layers.GRU(8, reset_after=False), layers.Dense(5)]
    )
    random_keras(source)
    x = _sequence(2, 7, 6)
    outputs = keras.ops.convert_to_numpy(source(x, training=False))
    target = random_torch(Recurrent("GRU", layers=1), 9)
    return Built(files.keras_model(folder, source), target, outputs, x)


@pair("rotary pairs interleaved or half a head apart under equal names", "traps", reveals="probe")
def _(folder: Path) -> Built:
    import torch

    from benchmarks.pairs.families.language_models import VOCABULARY, _roped, to_halves
    from benchmarks.pairs.models.decoders import MetaLlama

    source, target = MetaLlama(), MetaLlama(interleaved=False)
    random_torch(source)
    random_torch(target, 9)
    ids = tokens(2, 9, vocabulary=VOCABULARY)
    with torch.no_grad():
        outputs = source(torch.from_numpy(ids)).numpy()
    arrays = _roped(arrays_of(source), to_halves)
    return Built(
        files.pth(folder, source), target, outputs, ids,
        truth=lambda model: load_torch(model, arrays),
    )  # fmt: skip


@pair("variances stored as deviations", "traps", reveals="probe")
def _(folder: Path) -> Built:
    def change(state: State) -> State:
        return {n: t.sqrt() if n.endswith("running_var") else t for n, t in state.items()}

    return trap(folder, _convs(), _convs(), images(*X), change=change)
