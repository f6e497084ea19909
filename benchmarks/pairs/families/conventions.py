"""Conventions that a file does not tell: orders inside fused weights, roles of numbered ones,
biases that one side lacks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pairs import files
from benchmarks.pairs.collection import Built, Sets, pair
from benchmarks.pairs.families.numbering import vectors
from benchmarks.pairs.randomness import generator, images, random_torch, random_tree
from benchmarks.pairs.truths import arrays_of, by_names, leaves, load_torch

Arrays = dict[str, Any]


def _sequences() -> Any:
    return generator(1, "sequences").standard_normal((2, 7, 6)).astype(np.float32)


def two(
    folder: Path,
    source: Any,
    target: Any,
    x: Any,
    change: Callable[[Arrays], Arrays],
    *,
    saved: Callable[[Path, Any], Path] = files.safetensors,
    **options: Any,
) -> Built:
    """Two torch models; `change` makes the target's arrays of the source's."""
    import torch

    random_torch(source, 0)
    random_torch(target, 9)
    with torch.no_grad():
        outputs = source(torch.from_numpy(x)).numpy()
    arrays = change({name: np.array(array) for name, array in arrays_of(source).items()})
    return Built(
        saved(folder, source), target, outputs, x,
        truth=lambda model: load_torch(model, arrays), **options,
    )  # fmt: skip


def _fused(**options: Any) -> Any:
    from benchmarks.pairs.models.lookalikes import FusedOrder

    return FusedOrder(**options)


def _split(**options: Any) -> Any:
    from benchmarks.pairs.models.lookalikes import SplitOrder

    return SplitOrder(**options)


def _apart(arrays: Arrays, order: str, per_head: bool = False, name: str = "qkv") -> Arrays:
    made: Arrays = {}
    for path, array in arrays.items():
        if f".{name}." not in path:
            made[path.replace(".proj.", ".out_proj.")] = array
            continue
        rest = array.shape[1:]
        if per_head:
            shaped = array.reshape(4, 3, 4, *rest)
            parts = [shaped[:, i].reshape(16, *rest) for i in range(3)]
        else:
            parts = np.split(array, 3)
        for letter, part in zip(order, parts, strict=True):
            made[path.replace(f".{name}.", f".{letter}_proj.")] = part
    return made


@pair("q, k, v in one matrix to three, in that order", "attention")
def _(folder: Path) -> Built:
    return two(folder, _fused(), _split(), _sequences(), lambda a: _apart(a, "qkv"))


@pair("q, k, v per head in a matrix that is called qkv", "traps", reveals="probe")
def _(folder: Path) -> Built:
    source = _fused(per_head=True)
    return two(folder, source, _split(), _sequences(), lambda a: _apart(a, "qkv", True))


@pair("fused in the order v, k, q under a name that does not say so", "traps", reveals="probe")
def _(folder: Path) -> Built:
    source = _fused(order="vkq")
    return two(folder, source, _split(), _sequences(), lambda a: _apart(a, "vkq"))


@pair("fused in the order k, q, v, as the name says", "attention")
def _(folder: Path) -> Built:
    source = _fused(order="kqv", name="kqv")
    return two(folder, source, _split(), _sequences(), lambda a: _apart(a, "kqv", name="kqv"))


@pair("q, k, v joined for a model that interleaves heads", "traps", reveals="probe")
def _(folder: Path) -> Built:
    """Equal names and shapes on both sides of a fused matrix, but rows in another order."""

    def change(arrays: Arrays) -> Arrays:
        made: Arrays = {}
        for name, array in arrays.items():
            if ".qkv." in name:
                rest = array.shape[1:]
                array = array.reshape(3, 4, 4, *rest).swapaxes(0, 1).reshape(48, *rest)
            made[name] = array
        return made

    return two(folder, _fused(), _fused(per_head=True), _sequences(), change)


def _joined(arrays: Arrays, key_bias: bool) -> Arrays:
    made: Arrays = {}
    for name, array in arrays.items():
        if "q_proj" in name:
            missing = np.zeros(16, np.float32)
            parts = [array, arrays.get(name.replace("q_", "k_"), missing)]
            if not key_bias and name.endswith("bias"):
                parts[1] = missing
            parts.append(arrays[name.replace("q_", "v_")])
            made[name.replace("q_proj", "qkv")] = np.concatenate(parts)
        elif not re.search(r"\.[kv]_proj", name):
            made[name.replace("out_proj", "proj")] = array
    return made


@pair("keys without bias into a fused bias", "attention")
def _(folder: Path) -> Built:
    source = _split(key_bias=False)
    return two(folder, source, _fused(), _sequences(), lambda a: _joined(a, False))


@pair("a key bias that the model does not have", "attention")
def _(folder: Path) -> Built:
    """It shifts all scores of a query alike, so that no output depends on it."""

    def change(arrays: Arrays) -> Arrays:
        return {n: a for n, a in arrays.items() if not n.endswith("k_proj.bias")}

    sets = Sets(unused=("*.k_proj.bias",))
    return two(folder, _split(), _split(key_bias=False), _sequences(), change, sets=sets)


def _gated(**options: Any) -> Any:
    from benchmarks.pairs.models.lookalikes import Gated

    return Gated(**options)


@pair("gate, up, down called w1, w2, w3, down last", "numbering")
def _(folder: Path) -> Built:
    words = {"w1": "gate", "w2": "up", "w3": "down"}

    def change(arrays: Arrays) -> Arrays:
        return {re.sub(r"w\d", lambda found: words[found[0]], n): a for n, a in arrays.items()}

    return two(folder, _gated(names=("w1", "w2", "w3")), _gated(), vectors(), change)


def _apart_gates(arrays: Arrays, order: str) -> Arrays:
    made: Arrays = {}
    for name, array in arrays.items():
        if "gate_up" in name:
            for word, part in zip(order.split("+"), np.split(array, 2), strict=True):
                made[name.replace("gate_up", word)] = part
        else:
            made[name] = array
    return made


@pair("gate and up in one matrix to two", "attention")
def _(folder: Path) -> Built:
    source = _gated(fused="gate+up")
    return two(folder, source, _gated(), vectors(), lambda a: _apart_gates(a, "gate+up"))


@pair("up before gate in a matrix that is called gate_up", "traps", reveals="probe")
def _(folder: Path) -> Built:
    source = _gated(fused="up+gate")
    return two(folder, source, _gated(), vectors(), lambda a: _apart_gates(a, "up+gate"))


def _experts(merged: bool) -> Any:
    from benchmarks.pairs.models.lookalikes import ExpertList

    return ExpertList(merged)


@pair("experts merged, inputs first, to a list", "attention")
def _(folder: Path) -> Built:
    def change(arrays: Arrays) -> Arrays:
        made = {n: a for n, a in arrays.items() if not n.startswith("w_")}
        for i in range(3):
            made[f"experts.{i}.fc1.weight"] = arrays["w_in"][i].T
            made[f"experts.{i}.fc2.weight"] = arrays["w_out"][i].T
        return made

    return two(folder, _experts(True), _experts(False), vectors(), change)


@pair("experts of a list to merged, inputs first", "attention")
def _(folder: Path) -> Built:
    def change(arrays: Arrays) -> Arrays:
        made = {n: a for n, a in arrays.items() if not n.startswith("experts")}
        for name, layer in (("w_in", "fc1"), ("w_out", "fc2")):
            made[name] = np.stack([arrays[f"experts.{i}.{layer}.weight"].T for i in range(3)])
        return made

    return two(folder, _experts(False), _experts(True), vectors(), change, saved=files.pth)


@pair("Flax' numbers of equal layers, which are not the order of use", "traps", reveals="probe")
def _(folder: Path) -> Built:
    """`Dense(12)(relu(Dense(12)(x)))` makes the outer layer first: `Dense_0` is used last."""
    import jax
    from flax import linen

    from benchmarks.pairs.models.flax_models import initial
    from benchmarks.pairs.models.nets import Perceptron

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.relu(linen.Dense(12)(linen.relu(linen.Dense(12)(x))))
            return linen.Dense(12)(x)

    net, x = Net(), vectors()
    tree = random_tree(initial(net, x))
    outputs = np.asarray(jax.jit(net.apply)(tree, x))
    given = leaves(tree)
    arrays: Arrays = {}
    for place, number in enumerate((1, 0, 2)):
        arrays[f"layers.{place}.weight"] = given[f"params/Dense_{number}/kernel"].T
        arrays[f"layers.{place}.bias"] = given[f"params/Dense_{number}/bias"]
    target = random_torch(Perceptron(12, 12, 12, 12), 9)
    return Built(
        files.pickled_tree(folder, tree), target, outputs, x,
        truth=lambda model: load_torch(model, arrays),
    )  # fmt: skip


@pair("equal layers without meaning, the model's defined from the last to the first", "numbering")
def _(folder: Path) -> Built:
    """The file's order is that of use, as is usual; the model's dataflow tells its own."""
    from benchmarks.pairs.families.numbering import _named_dense

    widths = (12, 12, 12, 12, 12)
    source = _named_dense(["la", "lb", "lc", "ld"], widths)
    target = _named_dense(["tp", "tq", "tr", "ts"], widths, defined=(3, 2, 1, 0))
    names = dict(zip(("la", "lb", "lc", "ld"), ("tp", "tq", "tr", "ts"), strict=True))

    def change(arrays: Arrays) -> Arrays:
        return {names[n.split(".")[0]] + "." + n.split(".")[1]: a for n, a in arrays.items()}

    return two(folder, source, target, vectors(), change, saved=files.pth)


@pair("one tensor missing from the file", "traps")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.nets import SmallResNet

    def saved(folder: Path, model: Any) -> Path:
        state = dict(model.state_dict())
        del state["layer2.0.conv2.weight"]
        return files.pth(folder, state)

    made = two(
        folder, SmallResNet(), SmallResNet(), images(2, 3, 16, 16), dict, saved=saved
    )  # fmt: skip
    made.truth = None
    return made


@pair("a file of another, smaller model of the family", "traps")
def _(folder: Path) -> Built:
    """Fewer and thinner layers under the same names."""
    import torch

    from benchmarks.pairs.models.nets import Segmentor, SmallResNet

    source = random_torch(Segmentor().backbone)
    target = random_torch(SmallResNet(10, depths=(2, 2, 2)), 9)
    x = images(2, 3, 16, 16)
    with torch.no_grad():
        outputs = source(torch.from_numpy(x)).mean((2, 3)).numpy()
    return Built(files.pth(folder, source), target, outputs, x)


@pair("folded convolutions into a model with norms as made", "reparametrised")
def _(folder: Path) -> Built:
    """The norms are still the identity, but for epsilon; their biases can hold the file's."""
    import torch
    from torch import nn

    from benchmarks.pairs.families.reparametrised import _folded, _with_norms

    source, target = random_torch(_folded()), random_torch(_with_norms(), 9)
    for module in target.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    x = images(2, 3, 12, 12)
    with torch.no_grad():
        outputs = source(torch.from_numpy(x)).numpy()
    given = arrays_of(source)
    arrays: Arrays = {"11.weight": given["fc.weight"], "11.bias": given["fc.bias"]}
    for number, place in ((1, 0), (2, 3), (3, 6)):
        arrays[f"{place}.weight"] = given[f"conv{number}.weight"]
        arrays[f"{place + 1}.bias"] = given[f"conv{number}.bias"]
    norms = ("{i}.running_mean", "{i}.running_var", "1.weight", "4.weight", "7.weight")
    return Built(
        files.pth(folder, source), target, outputs, x, sets=Sets(fresh=norms),
        truth=lambda model: load_torch(model, arrays, stays=r"^[147]\.(weight|running)"),
    )  # fmt: skip


@pair("float32 into a model of bfloat16", "reparametrised")
def _(folder: Path) -> Built:
    import torch

    from benchmarks.pairs.models.nets import Perceptron

    source, target = random_torch(Perceptron(12, 20, 16, 5)), Perceptron(12, 20, 16, 5)
    x = vectors()
    with torch.no_grad():
        outputs = source(torch.from_numpy(x)).numpy()
    target = random_torch(target, 9).to(torch.bfloat16)
    return Built(
        files.safetensors(folder, source), target, outputs, x, truth=by_names(source),
        accept=("lossy-cast",), tolerance=0.03,
        run=lambda model: model(torch.from_numpy(x).bfloat16()).float().detach().numpy(),
    )  # fmt: skip


@pair("group and instance norms under other words", "layouts")
def _(folder: Path) -> Built:
    """`scale` and `offset`, in an archive of a JAX library, to PyTorch's group norms."""
    import torch
    from torch import nn

    target = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1), nn.InstanceNorm2d(12, affine=True), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LayerNorm(48), nn.Linear(48, 5),
    )  # fmt: skip
    random_torch(target)
    x = images(2, 3, 12, 12)
    with torch.no_grad():
        outputs = target(torch.from_numpy(x)).numpy()
    arrays = {name: np.array(array) for name, array in arrays_of(target).items()}
    words = {"0": "conv2_d", "1": "group_norm", "3": "conv2_d_1", "4": "instance_norm"}
    words |= {"8": "layer_norm", "9": "linear"}
    flat: Arrays = {}
    for name, array in arrays.items():
        place, leaf = name.split(".")
        layer = words[place]
        if "norm" in layer:
            flat[f"net/~/{layer}/{'scale' if leaf == 'weight' else 'offset'}"] = array
        elif leaf == "bias":
            flat[f"net/~/{layer}/b"] = array
        else:
            moved = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
            flat[f"net/~/{layer}/w"] = moved
    np.savez(folder / "net.npz", **dict(sorted(flat.items())))
    random_torch(target, 9)
    return Built(
        folder / "net.npz", target, outputs, x, truth=lambda model: load_torch(model, arrays)
    )


@pair("PyTorch classifier to Keras with another head", "transfer")
def _(folder: Path) -> Built:
    import keras

    from benchmarks.pairs.models.layers import Audio
    from benchmarks.pairs.randomness import random_keras
    from benchmarks.pairs.truths import fill, slots

    keras.utils.clear_session()
    layers = keras.layers
    target = keras.Sequential([layers.Input((40, 4))])
    for width, size, stride, groups in ((8, 5, 2, 1), (12, 3, 1, 1), (12, 3, 1, 3)):
        target.add(layers.Conv1D(width, size, stride, groups=groups))
        target.add(layers.BatchNormalization())
        target.add(layers.ReLU())
    target.add(layers.GlobalAveragePooling1D())
    target.add(layers.Dense(3, name="classes"))
    random_keras(target, 9)
    source = random_torch(Audio())
    given = arrays_of(source)
    order = ("encoder.0", "norms.0", "encoder.1", "norms.1", "encoder.2", "norms.2")
    kept = [(n, np.array(a)) for p in order for n, a in given.items() if n.startswith(p + ".")]
    own = slots(target)[-2:]
    x = generator(1, "sequence").standard_normal((2, 40, 4)).astype(np.float32)
    return Built(
        files.pth(folder, source), target, None, x,
        truth=lambda model: fill(model, [*kept, *own]),
        sets=Sets(fresh=("classes/*",), unused=("head.*",)),
    )  # fmt: skip


@pair("linen classifier with another number of classes", "transfer")
def _(folder: Path) -> Built:
    import jax

    from benchmarks.pairs.models.flax_models import ResNet, initial
    from benchmarks.pairs.truths import tree_with

    x = images(2, 16, 16, 3)
    source = random_tree(initial(ResNet(), x))
    net = ResNet(classes=4)
    target = random_tree(initial(net, x), 9)
    head = "params/Dense_0/"
    made = {n: a for n, a in leaves(source).items() if not n.startswith(head)}
    made |= {n: a for n, a in leaves(target).items() if n.startswith(head)}
    apply = jax.jit(net.apply)
    return Built(
        files.pickled_tree(folder, source), target, None,
        run=lambda tree: np.asarray(apply(tree, x)), truth=lambda tree: tree_with(tree, made),
        sets=Sets(fresh=("*Dense_0/*",), unused=("*Dense_0/*",)),
    )  # fmt: skip
