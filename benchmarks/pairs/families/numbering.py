"""One network under two ways to name and number its layers."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pairs import files
from benchmarks.pairs.collection import Built, Kind, Sets, pair
from benchmarks.pairs.randomness import generator, images, random_torch
from benchmarks.pairs.truths import arrays_of, load_torch

Steps = list[tuple[str, Any]]
Build = Callable[[], Any]


def same_layers(
    folder: Path,
    source: Any,
    target: Any,
    layers: dict[str, str],
    x: Any,
    *,
    saved: Callable[[Path, Any], Path] = files.pth,
    **options: Any,
) -> Built:
    """A torch pair; `layers` maps the paths of source modules to those of target modules."""
    import torch

    random_torch(source, 0)
    random_torch(target, 9)
    with torch.no_grad():
        outputs = source(torch.from_numpy(x)).numpy()
    arrays = {name: np.array(array) for name, array in arrays_of(source).items()}

    def moved(name: str) -> str:
        path, _, leaf = name.rpartition(".")
        # The longest path that is spoken of; what lies below keeps its name.
        parts = path.split(".")
        for depth in range(len(parts), 0, -1):
            start = ".".join(parts[:depth])
            if start in layers:
                return ".".join([layers[start], *parts[depth:], leaf])
        return name

    def truth(model: Any) -> Any:
        return load_torch(model, {moved(name): array for name, array in arrays.items()})

    return Built(saved(folder, source), target, outputs, x, truth=truth, **options)


def vectors(width: int = 12) -> Any:
    return generator(1, "vectors").standard_normal((4, width)).astype(np.float32)


def renumbered(
    name: str,
    steps: Callable[[Callable[[int], str]], Any],
    source_path: Callable[[int], str],
    target_path: Callable[[int], str],
    count: int,
    x: Callable[[], Any],
    *,
    kind: Kind = "numbering",
    **options: Any,
) -> None:
    """Registers a pair of equal networks whose step `i` lies at `source_path(i)` and
    `target_path(i)`; `steps(path)` builds the network."""

    @pair(name, kind)
    def _(folder: Path) -> Built:
        layers = {source_path(i): target_path(i) for i in range(count)}
        return same_layers(
            folder, steps(source_path), steps(target_path), layers, x(), **options
        )  # fmt: skip


def residual_stack(count: int, width: int = 12) -> Callable[[Callable[[int], str]], Any]:
    """`count` equal blocks between two dense layers, which keep the names `stem` and `head`."""

    def build(path: Callable[[int], str]) -> Any:
        from torch import nn

        from benchmarks.pairs.models.nets import Chain, Residual

        steps: Steps = [("stem", nn.Linear(width, 16))]
        steps += [(path(i), Residual(16, 24)) for i in range(count)]
        return Chain([*steps, ("head", nn.Linear(16, 5))])

    return build


renumbered(
    "blocks in one list to blocks in stages (layers.7 to stages.2.blocks.1)",
    residual_stack(12),
    lambda i: f"layers.{i}",
    lambda i: f"stages.{i // 3}.blocks.{i % 3}",
    12,
    vectors,
)
renumbered(
    "blocks in stages, counted from one, to blocks in one list",
    residual_stack(10),
    lambda i: f"layer{i // 5 + 1}.block{i % 5 + 1}",
    lambda i: f"encoder.{i}",
    10,
    vectors,
)
renumbered(
    "counted from one to counted from zero, numbers overlap",
    residual_stack(6),
    lambda i: f"blocks.{i + 1}",
    lambda i: f"blocks.{i}",
    6,
    vectors,
)
renumbered(
    "numbers sorted as text: twelve blocks in a sorted file",
    residual_stack(12),
    lambda i: f"encoder.layer.{i}",
    lambda i: f"transformer.h.{i}",
    12,
    vectors,
    saved=files.safetensors,
)
renumbered(
    "numbers with leading zeros from one to plain numbers",
    residual_stack(11),
    lambda i: f"block_{i + 1:02d}",
    lambda i: f"blocks.{i}",
    11,
    vectors,
    saved=files.safetensors,
)
renumbered(
    "numbers with gaps, as Sequential leaves them, to none",
    residual_stack(5),
    lambda i: f"net.{1 + 3 * i}",
    lambda i: f"layers.{i}",
    5,
    vectors,
)


def _classic(conv: Callable[[int], str], norm: Callable[[int], str]) -> Any:
    """Convolutions and norms numbered apart, two of them of one shape."""
    from torch import nn

    from benchmarks.pairs.models.nets import Chain

    widths = (3, 8, 8, 16, 16)
    steps: Steps = []
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        steps.append((conv(i), nn.Conv2d(before, after, 3, padding=1, bias=False)))
        steps += [(norm(i), nn.BatchNorm2d(after)), ("", nn.ReLU())]
    steps += [("", nn.AdaptiveAvgPool2d(1)), ("", nn.Flatten())]
    return Chain([*steps, ("classifier", nn.Linear(16, 5))])


@pair("conv1, bn1, conv2 … to places in one Sequential", "numbering")
def _(folder: Path) -> Built:
    source = _classic(lambda i: f"conv{i + 1}", lambda i: f"bn{i + 1}")
    target = _classic(lambda i: f"features.{3 * i}", lambda i: f"features.{3 * i + 1}")
    layers = {f"conv{i + 1}": f"features.{3 * i}" for i in range(4)}
    layers |= {f"bn{i + 1}": f"features.{3 * i + 1}" for i in range(4)}
    return same_layers(folder, source, target, layers, images(2, 3, 12, 12))


@pair("places in one Sequential to convs and norms in two lists", "numbering")
def _(folder: Path) -> Built:
    source = _classic(lambda i: f"features.{3 * i}", lambda i: f"features.{3 * i + 1}")
    target = _classic(lambda i: f"convs.{i}", lambda i: f"norms.{i}")
    layers = {f"features.{3 * i}": f"convs.{i}" for i in range(4)}
    layers |= {f"features.{3 * i + 1}": f"norms.{i}" for i in range(4)}
    return same_layers(
        folder, source, target, layers, images(2, 3, 12, 12), saved=files.safetensors
    )  # fmt: skip


def _named_dense(names: Sequence[str], widths: Sequence[int], defined: Any = None) -> Any:
    from torch import nn

    from benchmarks.pairs.models.nets import Chain

    steps: Steps = []
    for name, before, after in zip(names, widths, widths[1:], strict=False):
        steps += [(name, nn.Linear(before, after)), ("", nn.Tanh())]
    return Chain(steps[:-1], None if defined is None else [2 * i for i in defined])


@pair("one-letter names, every shape once", "numbering")
def _(folder: Path) -> Built:
    widths = (12, 20, 16, 9, 5)
    source = _named_dense("qxab", widths)
    target = _named_dense(["fc1", "fc2", "fc3", "out"], widths)
    layers = dict(zip("qxab", ["fc1", "fc2", "fc3", "out"], strict=True))
    return same_layers(folder, source, target, layers, vectors(), saved=files.safetensors)


@pair("meaningless names of equal blocks in the order of definition", "numbering")
def _(folder: Path) -> Built:
    def hashed(i: int) -> str:
        return f"m{zlib.crc32(str(i).encode()):08x}"

    stack = residual_stack(5)
    layers = {hashed(i): f"blocks.{i}" for i in range(5)}
    return same_layers(folder, stack(hashed), stack(lambda i: f"blocks.{i}"), layers, vectors())


@pair("names that say all, in shuffled order", "numbering")
def _(folder: Path) -> Built:
    def saved(folder: Path, model: Any) -> Path:
        state = model.state_dict()
        order = generator(4, "order").permutation(len(state))
        names = list(state)
        return files.pth(folder, {names[i]: state[names[i]] for i in order})

    stack = residual_stack(6)
    layers = {f"encoder.layers.{i}": f"h.{i}" for i in range(6)}
    source, target = stack(lambda i: f"encoder.layers.{i}"), stack(lambda i: f"h.{i}")
    return same_layers(folder, source, target, layers, vectors(), saved=saved)


@pair("defined in another order than used", "numbering")
def _(folder: Path) -> Built:
    widths = (12, 16, 16, 16, 5)
    names = ["input", "hidden_a", "hidden_b", "output"]
    source = _named_dense(names, widths)
    target = _named_dense([f"net.{n}" for n in names], widths, defined=(3, 2, 1, 0))
    layers = {name: f"net.{name}" for name in names}
    return same_layers(folder, source, target, layers, vectors())


def _decoder(up: Callable[[int], str]) -> Any:
    """Three steps up from 32 channels; `up(i)` names the i-th from the bottom."""
    from torch import nn

    from benchmarks.pairs.models.nets import Chain, ConvUnit

    steps: Steps = [("bottom", ConvUnit(3, 32, 2))]
    for i in range(3):
        steps += [("", nn.Upsample(scale_factor=2)), (up(i), ConvUnit(32 >> i, 16 >> i))]
    return Chain([*steps, ("last", nn.Conv2d(4, 2, 1))])


@pair("decoder levels counted from the other end", "numbering")
def _(folder: Path) -> Built:
    source = _decoder(lambda i: f"up{i + 1}")
    target = _decoder(lambda i: f"decoder.up{3 - i}")
    layers = {f"up{i + 1}": f"decoder.up{3 - i}" for i in range(3)}
    layers |= {"bottom": "bottom", "last": "last"}
    return same_layers(folder, source, target, layers, images(1, 3, 8, 8))


def _deep(path: Callable[[int], str], inner: tuple[str, str, str]) -> Any:
    from torch import nn

    from benchmarks.pairs.models.nets import Chain, Residual

    steps: Steps = [("embed", nn.Linear(12, 16))]
    steps += [(path(i), Residual(16, 16, inner)) for i in range(24)]
    return Chain([*steps, ("out", nn.Linear(16, 5))])


@pair("twenty-four equal blocks, square layers, other words inside", "numbering")
def _(folder: Path) -> Built:
    source = _deep(lambda i: f"decoder.layers.{i}", ("final_layer_norm", "fc1", "fc2"))
    target = _deep(lambda i: f"blocks.{i}", ("ln", "mlp.c_fc", "mlp.c_proj"))
    layers: dict[str, str] = {}
    for i in range(24):
        start, stop = f"decoder.layers.{i}", f"blocks.{i}"
        layers[f"{start}.final_layer_norm"] = f"{stop}.ln"
        layers |= {f"{start}.fc1": f"{stop}.mlp.c_fc", f"{start}.fc2": f"{stop}.mlp.c_proj"}
    return same_layers(folder, source, target, layers, vectors(), saved=files.safetensors)


@pair("names of TensorFlow 1 in an .npz, sorted, to PyTorch", "numbering")
def _(folder: Path) -> Built:
    import torch

    target_net = _classic(lambda i: f"features.{3 * i}", lambda i: f"features.{3 * i + 1}")
    source = random_torch(_classic(lambda i: f"conv{i + 1}", lambda i: f"bn{i + 1}"))
    words = {
        "weight": "gamma", "bias": "beta", "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }  # fmt: skip
    flat: dict[str, Any] = {}
    for name, array in arrays_of(source).items():
        layer, _, leaf = name.rpartition(".")
        if layer.startswith("conv"):
            flat[f"net/{layer}/weights"] = array.transpose(2, 3, 1, 0)
        elif layer.startswith("bn"):
            flat[f"net/conv{layer[2:]}/BatchNorm/{words[leaf]}"] = array
        else:
            new = "weights" if leaf == "weight" else "biases"
            flat[f"net/logits/{new}"] = array.T if leaf == "weight" else array
    np.savez(folder / "net.npz", **dict(sorted(flat.items())))
    x = images(2, 3, 12, 12)
    with torch.no_grad():
        outputs = source(torch.from_numpy(x)).numpy()
    arrays = list(arrays_of(source).values())

    def truth(model: Any) -> Any:
        return load_torch(model, dict(zip(arrays_of(model), arrays, strict=True)))

    return Built(folder / "net.npz", random_torch(target_net, 9), outputs, x, truth=truth)


@pair("encoder and decoder of equal layers under other words", "numbering")
def _(folder: Path) -> Built:
    """Both halves have equal shapes; only words and order tell them apart."""

    def build(first: str, second: str) -> Any:
        from torch import nn

        from benchmarks.pairs.models.nets import Chain, Residual

        steps: Steps = [("inp", nn.Linear(12, 16))]
        steps += [(f"{first}.{i}", Residual(16, 24)) for i in range(3)]
        steps += [(f"{second}.{i}", Residual(16, 24)) for i in range(3)]
        return Chain([*steps, ("outp", nn.Linear(16, 5))])

    source = build("encoder.layers", "decoder.layers")
    target = build("enc.blocks", "dec.blocks")
    layers = {f"encoder.layers.{i}": f"enc.blocks.{i}" for i in range(3)}
    layers |= {f"decoder.layers.{i}": f"dec.blocks.{i}" for i in range(3)}
    return same_layers(folder, source, target, layers, vectors())


@pair("stacked over layers to one by one", "attention")
def _(folder: Path) -> Built:
    """As JAX code keeps scanned layers: one array `[layers, …]` for all blocks."""
    return _stacked(folder, forth=True)


@pair("one by one to stacked over layers", "attention")
def _(folder: Path) -> Built:
    return _stacked(folder, forth=False)


def _stacked(folder: Path, *, forth: bool) -> Built:
    import torch

    from benchmarks.pairs.models.stacked import Stacked

    one_by_one = residual_stack(4, 12)(lambda i: f"blocks.{i}")
    stacked = Stacked(12, 16, 24, 4, 5)
    source, target = (stacked, one_by_one) if forth else (one_by_one, stacked)
    random_torch(source)
    random_torch(target, 9)
    x = vectors()
    with torch.no_grad():
        outputs = source(torch.from_numpy(x)).numpy()
    arrays = {name: np.array(array) for name, array in arrays_of(source).items()}
    names = {
        "norm_scale": "norm.weight", "norm_shift": "norm.bias", "w_in": "fc1.weight",
        "b_in": "fc1.bias", "w_out": "fc2.weight", "b_out": "fc2.bias",
    }  # fmt: skip

    def truth(model: Any) -> Any:
        made = {n: a for n, a in arrays.items() if n.startswith(("stem", "head"))}
        for short, long in names.items():
            if forth:
                made |= {f"blocks.{i}.{long}": arrays[f"blocks.{short}"][i] for i in range(4)}
            else:
                made[f"blocks.{short}"] = np.stack([arrays[f"blocks.{i}.{long}"] for i in range(4)])
        return load_torch(model, made)

    return Built(files.pth(folder, source), target, outputs, x, truth=truth, sets=Sets())
