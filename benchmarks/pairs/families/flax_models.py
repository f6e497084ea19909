"""Flax, linen and NNX, and plain JAX trees, beside PyTorch and Keras."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pairs import files
from benchmarks.pairs.collection import Built, pair
from benchmarks.pairs.randomness import generator, images, random_torch, random_tree
from benchmarks.pairs.truths import arrays_of, leaves, load_torch, tree_with

Arrays = dict[str, Any]
NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def _sequences() -> Any:
    return generator(1, "sequences").standard_normal((2, 7, 6)).astype(np.float32)


def _nchw(x: Any) -> Any:
    return x.transpose(0, 3, 1, 2).copy() if x.ndim == 4 else x


def to_torch(
    folder: Path,
    net: Any,
    target: Any,
    x: Any,
    change: Callable[[Arrays], Arrays],
    *,
    saved: Callable[[Path, Any], Path] = files.pickled_tree,
    **options: Any,
) -> Built:
    """A linen model's tree saved, and a torch model. `change` makes torch arrays of the leaves."""
    import jax

    from benchmarks.pairs.models.flax_models import initial

    tree = random_tree(initial(net, x))
    outputs = np.asarray(jax.jit(net.apply)(tree, x))
    arrays = change(leaves(tree))

    def truth(model: Any) -> Any:
        return load_torch(model, arrays)

    path = saved(folder, tree)
    return Built(path, random_torch(target, 9), outputs, _nchw(x), truth=truth, **options)


def to_flax(
    folder: Path, source: Any, net: Any, x: Any, change: Callable[[Arrays], Arrays]
) -> Built:
    """A torch file, and a linen tree. `change` makes torch-like arrays of leaves' names: it is the
    inverse of that of `to_torch`, built by running it on the positions of all values."""
    import jax
    import torch

    from benchmarks.pairs.models.flax_models import initial

    random_torch(source)
    tree = random_tree(initial(net, x), 9)
    with torch.no_grad():
        outputs = source(torch.from_numpy(_nchw(x))).numpy()
    apply = jax.jit(net.apply)
    made = inverse(leaves(tree), change, arrays_of(source))
    return Built(
        files.pth(folder, source), tree, outputs, run=lambda t: np.asarray(apply(t, x)),
        truth=lambda t: tree_with(t, made),
    )  # fmt: skip


def inverse(present: Arrays, change: Callable[[Arrays], Arrays], wanted: Arrays) -> Arrays:
    """Leaves of the shapes of `present` for which `change` gives `wanted`, where it only moves
    values: it is run on their positions."""
    ends = np.cumsum([0, *(a.size for a in present.values())])
    numbered = {
        name: np.arange(start, start + a.size, dtype=np.float64).reshape(a.shape)
        for start, (name, a) in zip(ends, present.items(), strict=False)
    }
    pool = np.zeros(int(ends[-1]))
    for name, positions in change(numbered).items():
        pool[positions.astype(int)] = wanted[name]
    return {
        name: pool[start : start + a.size].reshape(a.shape).astype(np.float32)
        for start, (name, a) in zip(ends, present.items(), strict=False)
    }


def kernel(array: Any) -> Any:
    """[k…, in, out] to [out, in, k…]."""
    rank = array.ndim
    return array.transpose(rank - 1, rank - 2, *range(rank - 2))


def _norm(arrays: Arrays, name: str) -> Arrays:
    """A norm's leaves under PyTorch's words."""
    made = {}
    for leaf, word in NORM.items():
        for group in ("params", "batch_stats"):
            if f"{group}/{name}/{leaf}" in arrays:
                made[word] = arrays[f"{group}/{name}/{leaf}"]
    return made


def _under(prefix: str, arrays: Arrays) -> Arrays:
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def _dense(arrays: Arrays, name: str) -> Arrays:
    made = {"weight": kernel(arrays[f"{name}/kernel"])}
    if f"{name}/bias" in arrays:
        made["bias"] = arrays[f"{name}/bias"]
    return made


def _conv_net(arrays: Arrays) -> Arrays:
    made: Arrays = {}
    for i in range(4):
        made |= _under(f"conv{i + 1}", _dense(arrays, f"params/Conv_{i}"))
        made |= _under(f"bn{i + 1}", _norm(arrays, f"BatchNorm_{i}"))
    return made | _under("classifier", _dense(arrays, "params/Dense_0"))


def _classic() -> Any:
    from benchmarks.pairs.families.numbering import _classic as classic

    return classic(lambda i: f"conv{i + 1}", lambda i: f"bn{i + 1}")


@pair("convolutions and norms: linen to PyTorch", "layouts")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.flax_models import ConvNet

    return to_torch(folder, ConvNet(), _classic(), images(2, 12, 12, 3), _conv_net)


@pair("convolutions and norms: PyTorch to linen", "layouts")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.flax_models import ConvNet

    return to_flax(folder, _classic(), ConvNet(), images(2, 12, 12, 3), _conv_net)


def _resnet(arrays: Arrays) -> Arrays:
    made = _under("conv1", _dense(arrays, "params/conv_init"))
    made |= _under("bn1", _norm(arrays, "bn_init"))
    for i in range(4):
        stem, block = f"layer{i // 2 + 1}.{i % 2}", f"Block_{i}"
        for j in (0, 1):
            made |= _under(f"{stem}.conv{j + 1}", _dense(arrays, f"params/{block}/Conv_{j}"))
            made |= _under(f"{stem}.bn{j + 1}", _norm(arrays, f"{block}/BatchNorm_{j}"))
        if f"params/{block}/conv_proj/kernel" in arrays:
            made |= _under(f"{stem}.downsample.0", _dense(arrays, f"params/{block}/conv_proj"))
            made |= _under(f"{stem}.downsample.1", _norm(arrays, f"{block}/norm_proj"))
    return made | _under("fc", _dense(arrays, "params/Dense_0"))


@pair("resnet: linen to PyTorch", "layouts")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.flax_models import ResNet
    from benchmarks.pairs.models.nets import SmallResNet

    return to_torch(
        folder, ResNet(), SmallResNet(), images(2, 16, 16, 3), _resnet, saved=files.npz_tree
    )


@pair("resnet: PyTorch to linen", "layouts")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.flax_models import ResNet
    from benchmarks.pairs.models.nets import SmallResNet

    return to_flax(folder, SmallResNet(), ResNet(), images(2, 16, 16, 3), _resnet)


@pair("resnet with training state of JAX, to PyTorch", "wrappers")
def _(folder: Path) -> Built:
    """Optimizers keep two copies of everything, under the names of the weights."""
    import pickle

    import jax

    from benchmarks.pairs.models.flax_models import ResNet
    from benchmarks.pairs.models.nets import SmallResNet

    def saved(folder: Path, tree: Any) -> Path:
        plain = jax.tree.map(np.asarray, tree)
        state = {
            "step": np.asarray(1200), "params": plain["params"],
            "batch_stats": plain["batch_stats"],
            "opt_state": [
                {
                    "count": np.asarray(1200), "mu": random_like(plain["params"], 5),
                    "nu": random_like(plain["params"], 6),
                },
                {},
            ],
        }  # fmt: skip
        path = folder / "train_state.pkl"
        path.write_bytes(pickle.dumps(state))
        return path

    return to_torch(
        folder, ResNet(), SmallResNet(), images(2, 16, 16, 3), _resnet, saved=saved
    )  # fmt: skip


def random_like(tree: Any, seed: int) -> Any:
    import jax

    return jax.tree.map(np.asarray, random_tree(tree, seed))


def _block(arrays: Arrays, stem: str, pick: Callable[[Any], Any]) -> Arrays:
    """A block's leaves in the names of `SplitEncoder.Block`. `pick` takes one of stacked layers."""
    here = {
        name.removeprefix(f"{stem}/"): pick(a)
        for name, a in arrays.items()
        if name.startswith(f"{stem}/")
    }
    made: Arrays = {}
    attention = "MultiHeadDotProductAttention_0"
    for word, letter in (("query", "q"), ("key", "k"), ("value", "v")):
        made[f"to_{letter}.weight"] = here[f"{attention}/{word}/kernel"].reshape(16, 16).T
        made[f"to_{letter}.bias"] = here[f"{attention}/{word}/bias"].reshape(-1)
    made["to_out.weight"] = here[f"{attention}/out/kernel"].reshape(16, 16).T
    made["to_out.bias"] = here[f"{attention}/out/bias"]
    for index, word in enumerate(("norm_a", "norm_b")):
        made[f"{word}.weight"] = here[f"LayerNorm_{index}/scale"]
        made[f"{word}.bias"] = here[f"LayerNorm_{index}/bias"]
    # Flax numbers by the order of construction: the inner call, Dense(32), comes second.
    for index, word in enumerate(("narrow", "wide")):
        made |= _under(word, _dense(here, f"Dense_{index}"))
    return made


def _encoder(arrays: Arrays) -> Arrays:
    made = _under("proj_in", _dense(arrays, "params/Dense_0"))
    for i in range(2):
        made |= _under(f"blocks.{i}", _block(arrays, f"params/EncoderBlock_{i}", lambda a: a))
    return made | _under("classify", _dense(arrays, "params/Dense_1"))


def _scanned(arrays: Arrays) -> Arrays:
    made = _under("proj_in", _dense(arrays, "params/Dense_0"))
    for i in range(3):
        made |= _under(f"blocks.{i}", _block(arrays, "params/blocks", lambda a, i=i: a[i]))
    return made | _under("classify", _dense(arrays, "params/Dense_1"))


@pair("attention: linen to PyTorch's separate projections", "attention")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.flax_models import Encoder
    from benchmarks.pairs.models.layers import SplitEncoder

    return to_torch(folder, Encoder(), SplitEncoder(), _sequences(), _encoder)


@pair("attention: PyTorch's separate projections to linen", "attention")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.flax_models import Encoder
    from benchmarks.pairs.models.layers import SplitEncoder

    return to_flax(folder, SplitEncoder(), Encoder(), _sequences(), _encoder)


@pair("scanned blocks: linen to PyTorch's list", "attention")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.flax_models import Encoder
    from benchmarks.pairs.models.layers import SplitEncoder

    net = Encoder(3, scanned=True)
    return to_torch(folder, net, SplitEncoder(3), _sequences(), _scanned, saved=files.npz_tree)


@pair("scanned blocks: PyTorch's list to linen", "attention")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.flax_models import Encoder
    from benchmarks.pairs.models.layers import SplitEncoder

    net = Encoder(3, scanned=True)
    return to_flax(folder, SplitEncoder(3), net, _sequences(), _scanned)


def _in_proj(arrays: Arrays) -> Arrays:
    """The linen encoder in the names of PyTorch's own layers."""
    split = _encoder(arrays)
    made = {
        "embed.weight": split["proj_in.weight"], "embed.bias": split["proj_in.bias"],
        "head.weight": split["classify.weight"], "head.bias": split["classify.bias"],
    }  # fmt: skip
    words = {
        "to_out": "self_attn.out_proj", "norm_a": "norm1", "norm_b": "norm2", "wide": "linear1",
        "narrow": "linear2",
    }  # fmt: skip
    for i in range(2):
        stem = f"encoder.layers.{i}"
        for leaf in ("weight", "bias"):
            parts = [split[f"blocks.{i}.to_{letter}.{leaf}"] for letter in "qkv"]
            made[f"{stem}.self_attn.in_proj_{leaf}"] = np.concatenate(parts)
            made |= {
                f"{stem}.{new}.{leaf}": split[f"blocks.{i}.{old}.{leaf}"]
                for old, new in words.items()
            }
    return made


@pair("attention: linen to PyTorch's in_proj_weight", "attention")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.flax_models import Encoder
    from benchmarks.pairs.models.layers import Encoder as TorchEncoder

    return to_torch(folder, Encoder(), TorchEncoder(), _sequences(), _in_proj)


def _lstm(arrays: Arrays) -> Arrays:
    cell = "params/OptimizedLSTMCell_0/"
    gates = "ifgo"
    made = {
        "rnn.weight_ih_l0": [arrays[f"{cell}i{g}/kernel"].T for g in gates],
        "rnn.weight_hh_l0": [arrays[f"{cell}h{g}/kernel"].T for g in gates],
        "rnn.bias_hh_l0": [arrays[f"{cell}h{g}/bias"] for g in gates],
    }
    joined = {name: np.concatenate(parts) for name, parts in made.items()}
    joined["rnn.bias_ih_l0"] = 0 * joined["rnn.bias_hh_l0"]
    return joined | _under("fc", _dense(arrays, "params/Dense_0"))


def _gru(arrays: Arrays) -> Arrays:
    cell = "params/GRUCell_0/"
    made = {
        "rnn.weight_ih_l0": [arrays[f"{cell}i{g}/kernel"].T for g in "rzn"],
        "rnn.weight_hh_l0": [arrays[f"{cell}h{g}/kernel"].T for g in "rzn"],
        "rnn.bias_ih_l0": [arrays[f"{cell}i{g}/bias"] for g in "rzn"],
        "rnn.bias_hh_l0": [np.zeros(8), np.zeros(8), arrays[f"{cell}hn/bias"]],
    }
    joined = {name: np.concatenate(parts) for name, parts in made.items()}
    return joined | _under("fc", _dense(arrays, "params/Dense_0"))


def _recurrent(folder: Path, kind: str, change: Callable[[Arrays], Arrays]) -> Built:
    from benchmarks.pairs.collection import Sets
    from benchmarks.pairs.models.flax_models import Recurrent
    from benchmarks.pairs.models.layers import Recurrent as TorchRecurrent

    target = TorchRecurrent(kind, layers=1)
    # That a bias without a counterpart is zero may be said in several ways.
    sets = Sets(fresh=("rnn.bias_ih_l0",), adapted=("rnn.bias_*",))
    return to_torch(folder, Recurrent(kind), target, _sequences(), change, sets=sets)


@pair("LSTM: linen, gate by gate, to PyTorch", "layouts")
def _(folder: Path) -> Built:
    return _recurrent(folder, "LSTM", _lstm)


@pair("GRU: linen, gate by gate, to PyTorch", "layouts")
def _(folder: Path) -> Built:
    return _recurrent(folder, "GRU", _gru)


def _lenet(arrays: Arrays) -> Arrays:
    from benchmarks.pairs.families.keras_layers import _flat_rows

    made: Arrays = {}
    for i in (0, 1):
        made |= _under(f"conv{i + 1}", _dense(arrays, f"params/Conv_{i}"))
    for i in (0, 1, 2):
        made |= _under(f"fc{i + 1}", _dense(arrays, f"params/Dense_{i}"))
    # Dense(10)(relu(Dense(24)(x))): the outer layer is made first.
    made["fc2.weight"], made["fc3.weight"] = made["fc3.weight"], made["fc2.weight"]
    made["fc2.bias"], made["fc3.bias"] = made["fc3.bias"], made["fc2.bias"]
    return made | {"fc1.weight": _flat_rows(made["fc1.weight"], True)}


@pair("LeNet: linen to PyTorch, flattened, numbers out of order", "layouts")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.flax_models import LeNet
    from benchmarks.pairs.models.layers import Flattened

    return to_torch(folder, LeNet(), Flattened(), images(2, 28, 28, 1), _lenet)


@pair("depthwise and grouped convolutions: linen to PyTorch", "layouts")
def _(folder: Path) -> Built:
    from torch import nn

    from benchmarks.pairs.models.flax_models import Depthwise

    target = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False), nn.ReLU(),
        nn.Conv2d(6, 10, 1), nn.ReLU(), nn.Conv2d(10, 10, 3, padding=1, groups=5), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 5),
    )  # fmt: skip

    def change(arrays: Arrays) -> Arrays:
        made: Arrays = {}
        for i, place in enumerate((0, 2, 4)):
            made |= _under(str(place), _dense(arrays, f"params/Conv_{i}"))
        return made | _under("8", _dense(arrays, "params/Dense_0"))

    return to_torch(folder, Depthwise(), target, images(2, 12, 12, 3), change)


def _nnx_tree(kind: Any, x: Any, seed: int = 0) -> tuple[Any, Callable[[Any], Any]]:
    """An NNX module's arrays as a tree of random values, and how to run such a tree on `x`."""
    import jax
    from flax import nnx

    shapes = nnx.eval_shape(lambda: kind(nnx.Rngs(0)))
    graph, state = nnx.split(shapes)

    @jax.jit
    def run(values: Any) -> Any:
        full = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(full, values)
        return nnx.merge(graph, full)(x)

    tree = random_tree(nnx.to_pure_dict(state), seed)
    return tree, lambda values: np.asarray(run(values))


def _nnx_net(arrays: Arrays) -> Arrays:
    made: Arrays = {}
    for i in range(3):
        made |= _under(f"features.{i}.conv", _dense(arrays, f"convs/{i}"))
        norm = {word: arrays[f"norms/{i}/{leaf}"] for leaf, word in NORM.items()}
        made |= _under(f"features.{i}.bn", norm)
    return made | _under("head", _dense(arrays, "head"))


def _units() -> Any:
    from torch import nn

    from benchmarks.pairs.models.nets import Chain, ConvUnit

    widths = (3, 8, 8, 16)
    steps: list[tuple[str, Any]] = [
        (f"features.{i}", ConvUnit(a, b)) for i, (a, b) in enumerate(itertools.pairwise(widths))
    ]
    steps += [("", nn.AdaptiveAvgPool2d(1)), ("", nn.Flatten()), ("head", nn.Linear(16, 5))]
    return Chain(steps)


@pair("convolutions and norms: NNX to PyTorch", "layouts")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.flax_models import NnxNet

    x = images(2, 12, 12, 3)
    tree, run = _nnx_tree(NnxNet, x)
    outputs = run(tree)
    arrays = _nnx_net(leaves(tree))
    return Built(
        files.pickled_tree(folder, tree), random_torch(_units(), 9), outputs, _nchw(x),
        truth=lambda model: load_torch(model, arrays),
    )  # fmt: skip


@pair("convolutions and norms: PyTorch to NNX", "layouts")
def _(folder: Path) -> Built:
    import torch

    from benchmarks.pairs.models.flax_models import NnxNet

    x = images(2, 12, 12, 3)
    tree, run = _nnx_tree(NnxNet, x, 9)
    source = random_torch(_units())
    with torch.no_grad():
        outputs = source(torch.from_numpy(_nchw(x))).numpy()
    made = inverse(leaves(tree), _nnx_net, arrays_of(source))
    return Built(
        files.safetensors(folder, source), tree, outputs, run=run,
        truth=lambda values: tree_with(values, made),
    )  # fmt: skip


@pair("attention: NNX to PyTorch's separate projections", "attention")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.flax_models import NnxEncoder
    from benchmarks.pairs.models.layers import SplitEncoder

    x = _sequences()
    tree, run = _nnx_tree(NnxEncoder, x)
    outputs = run(tree)
    given = leaves(tree)
    arrays = _under("proj_in", _dense(given, "embed")) | _under("classify", _dense(given, "head"))
    for i in range(2):
        for word, letter in (("query", "q"), ("key", "k"), ("value", "v")):
            stem = f"attention/{i}/{word}"
            weight = given[f"{stem}/kernel"].reshape(16, 16).T
            arrays[f"blocks.{i}.to_{letter}.weight"] = weight
            arrays[f"blocks.{i}.to_{letter}.bias"] = given[f"{stem}/bias"].reshape(-1)
        out = f"attention/{i}/out"
        arrays[f"blocks.{i}.to_out.weight"] = given[f"{out}/kernel"].reshape(16, 16).T
        arrays[f"blocks.{i}.to_out.bias"] = given[f"{out}/bias"]
        for word in ("norm_a", "norm_b"):
            arrays[f"blocks.{i}.{word}.weight"] = given[f"{word}/{i}/scale"]
            arrays[f"blocks.{i}.{word}.bias"] = given[f"{word}/{i}/bias"]
        for word in ("wide", "narrow"):
            arrays |= _under(f"blocks.{i}.{word}", _dense(given, f"{word}/{i}"))
    return Built(
        files.pickled_tree(folder, tree), random_torch(SplitEncoder(), 9), outputs, x,
        truth=lambda model: load_torch(model, arrays),
    )  # fmt: skip


def _perceptron(weights: list[tuple[Any, Any]], x: Any) -> Any:
    for w, b in weights[:-1]:
        x = np.maximum(x @ w + b, 0)
    w, b = weights[-1]
    return x @ w + b


def _layer_values(widths: tuple[int, ...]) -> list[tuple[Any, Any]]:
    random = generator(0, "layers")
    return [
        (
            (random.standard_normal((a, b)) / a**0.5).astype(np.float32),
            (0.2 * random.standard_normal(b)).astype(np.float32),
        )
        for a, b in itertools.pairwise(widths)
    ]


def _plain(folder: Path, widths: tuple[int, ...], content: Callable[[Any], Any]) -> Built:
    """Arrays of plain code in a pickle, to a torch perceptron."""
    import pickle

    from benchmarks.pairs.families.numbering import vectors
    from benchmarks.pairs.models.nets import Perceptron

    values = _layer_values(widths)
    x = vectors(widths[0])
    path = folder / "params.pkl"
    path.write_bytes(pickle.dumps(content(values)))
    arrays = {f"layers.{i}.weight": w.T for i, (w, _) in enumerate(values)}
    arrays |= {f"layers.{i}.bias": b for i, (_, b) in enumerate(values)}
    return Built(
        path, random_torch(Perceptron(*widths), 9), _perceptron(values, x), x,
        truth=lambda model: load_torch(model, arrays),
    )  # fmt: skip


@pair("a plain list of weights and biases to PyTorch", "layouts")
def _(folder: Path) -> Built:
    return _plain(folder, (12, 20, 20, 20, 5), lambda values: [list(pair) for pair in values])


@pair("Haiku names, eleven of them sorted as text, to PyTorch", "numbering")
def _(folder: Path) -> Built:
    def content(values: Any) -> Any:
        names = ["linear", *(f"linear_{i}" for i in range(1, len(values)))]
        tree = {f"mlp/~/{n}": {"w": w, "b": b} for n, (w, b) in zip(names, values, strict=True)}
        return dict(sorted(tree.items()))

    return _plain(folder, (12, *[16] * 11, 5), content)


@pair("convolutions and norms: Keras to linen", "layouts")
def _(folder: Path) -> Built:
    import jax
    import keras

    from benchmarks.pairs.models.flax_models import ConvNet, initial
    from benchmarks.pairs.randomness import random_keras
    from benchmarks.pairs.truths import keras_array

    layers = keras.layers
    source = keras.Sequential([layers.Input((12, 12, 3))])
    for width in (8, 8, 16, 16):
        source.add(layers.Conv2D(width, 3, padding="same", use_bias=False))
        source.add(layers.BatchNormalization(epsilon=1e-5))
        source.add(layers.ReLU())
    source.add(layers.GlobalAveragePooling2D())
    source.add(layers.Dense(5))
    random_keras(source)
    net, x = ConvNet(), images(2, 12, 12, 3)
    tree = random_tree(initial(net, x), 9)
    given = [keras_array(v) for v in source.weights]
    made: Arrays = {}
    for i in range(4):
        kernel_, gamma, beta, mean, var = given[5 * i : 5 * i + 5]
        made |= {
            f"params/Conv_{i}/kernel": kernel_, f"params/BatchNorm_{i}/scale": gamma,
            f"params/BatchNorm_{i}/bias": beta, f"batch_stats/BatchNorm_{i}/mean": mean,
            f"batch_stats/BatchNorm_{i}/var": var,
        }  # fmt: skip
    made |= {"params/Dense_0/kernel": given[-2], "params/Dense_0/bias": given[-1]}
    outputs = keras.ops.convert_to_numpy(source(x, training=False))
    apply = jax.jit(net.apply)
    return Built(
        files.keras_model(folder, source, "weights.h5"), tree, outputs,
        run=lambda t: np.asarray(apply(t, x)), truth=lambda t: tree_with(t, made),
    )  # fmt: skip
