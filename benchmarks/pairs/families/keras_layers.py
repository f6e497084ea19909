"""Keras models of one kind of layer each, beside PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pairs import files
from benchmarks.pairs.collection import Built, Sets, pair
from benchmarks.pairs.families.keras_applications import to_keras, to_torch
from benchmarks.pairs.randomness import generator, random_keras, random_torch
from benchmarks.pairs.truths import (
    arrays_of,
    by_layers,
    fill,
    in_order,
    keras_array,
    load_torch,
    slots,
)

Array = Any


def _layers() -> Any:
    import keras

    return keras.layers


def _sequence(*shape: int) -> Array:
    return generator(1, "sequence").standard_normal(shape).astype(np.float32)


def _recurrent(kind: str, both: bool, layers: int = 2) -> Any:
    import keras

    make = getattr(keras.layers, kind)
    model = keras.Sequential([keras.layers.Input((7, 6))])
    for index in range(layers):
        cell = make(8, return_sequences=index < layers - 1)
        model.add(keras.layers.Bidirectional(cell) if both else cell)
    model.add(keras.layers.Dense(5))
    return model


# Keras' gates in the order of PyTorch's: LSTM i, f, c, o is i, f, g, o; GRU z, r, h to r, z, n.
_GATES = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2), "SimpleRNN": (0,)}


def _cell(kind: str, weights: list[Array], back: list[Array] | None = None) -> list[Array]:
    """`weight_ih`, `weight_hh`, `bias_ih`, `bias_hh` of a Keras cell's kernels and bias."""
    kernel, recurrent, bias = weights

    def gates(array: Array, axis: int) -> Array:
        parts = np.split(array, len(_GATES[kind]), axis)
        return np.concatenate([parts[i] for i in _GATES[kind]], axis)

    biases = [gates(row, 0) for row in bias] if bias.ndim == 2 else [gates(bias, 0), 0 * bias]
    return [gates(kernel, 1).T, gates(recurrent, 1).T, *biases]


def _recurrent_truth(kind: str) -> Callable[[Any], Callable[[Any], Any]]:
    def truth(source: Any) -> Callable[[Any], Any]:
        weights = [keras_array(v) for v in source.weights]
        made: list[Array] = []
        for start in range(0, len(weights) - 2, 3):
            made += _cell(kind, weights[start : start + 3])
        values = [("", a) for a in [*made, weights[-2].T, weights[-1]]]
        return lambda target: fill(target, values)

    return truth


def _register_recurrent(kind: str, both: bool, ending: str) -> None:
    title = f"{'Bidirectional ' if both else ''}{kind}: Keras to PyTorch"

    @pair(title, "layouts")
    def _(folder: Path) -> Built:
        import keras

        from benchmarks.pairs.models.layers import Recurrent

        source = random_keras(_recurrent(kind, both))
        target = random_torch(Recurrent(kind.replace("Simple", ""), both), 9)
        x = _sequence(3, 7, 6)
        outputs = keras.ops.convert_to_numpy(source(x, training=False))
        path = files.keras_model(folder, source, ending)
        # A second bias, which is a sum's second part, may be said to be zero in many ways.
        sets = Sets(fresh=("rnn.bias_hh_*",), adapted=("rnn.bias_*",))
        return Built(path, target, outputs, x, truth=_recurrent_truth(kind)(source), sets=sets)


_register_recurrent("LSTM", False, "keras")
_register_recurrent("GRU", False, "h5")
_register_recurrent("LSTM", True, "weights.h5")
_register_recurrent("GRU", True, "keras")
_register_recurrent("SimpleRNN", True, "h5")


@pair("LSTM: PyTorch to Keras, two biases into one", "layouts")
def _(folder: Path) -> Built:
    import torch

    from benchmarks.pairs.models.layers import Recurrent

    source, target = random_torch(Recurrent("LSTM")), random_keras(_recurrent("LSTM", False), 9)
    x = _sequence(3, 7, 6)
    with torch.no_grad():
        outputs = source(torch.from_numpy(x)).numpy()
    arrays = list(arrays_of(source).values())

    def truth(model: Any) -> Any:
        made: list[Array] = []
        for start in (0, 4):
            ih, hh, one, two = arrays[start : start + 4]
            made += [ih.T, hh.T, one + two]
        for variable, array in zip(model.weights, [*made, arrays[-2].T, arrays[-1]], strict=True):
            variable.assign(np.ascontiguousarray(array))
        return model

    return Built(files.pth(folder, source), target, outputs, x, truth=truth)


@pair("Bidirectional GRU: PyTorch to Keras, biases stacked", "layouts")
def _(folder: Path) -> Built:
    import torch

    from benchmarks.pairs.models.layers import Recurrent

    source = random_torch(Recurrent("GRU", True))
    target = random_keras(_recurrent("GRU", True), 9)
    x = _sequence(3, 7, 6)
    with torch.no_grad():
        outputs = source(torch.from_numpy(x)).numpy()
    arrays = list(arrays_of(source).values())

    def gates(array: Array) -> Array:
        r, z, n = np.split(array, 3)
        return np.concatenate([z, r, n])

    def truth(model: Any) -> Any:
        made: list[Array] = []
        for start in range(0, 16, 4):
            ih, hh, *biases = (gates(a) for a in arrays[start : start + 4])
            made += [ih.T, hh.T, np.stack(biases)]
        for variable, array in zip(model.weights, [*made, arrays[-2].T, arrays[-1]], strict=True):
            variable.assign(np.ascontiguousarray(array))
        return model

    return Built(files.pth(folder, source), target, outputs, x, truth=truth)


def _separable() -> Any:
    import keras

    layers = keras.layers
    x = image = keras.Input((8, 8, 3))
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, use_bias=False)(x)
    x = layers.PReLU(shared_axes=[1, 2])(x)
    x = layers.SeparableConv2D(10, 3, padding="same")(x)
    x = layers.PReLU(shared_axes=[1, 2])(layers.BatchNormalization()(x))
    x = layers.Conv2DTranspose(4, 2, 2, activation="relu")(x)
    return keras.Model(image, layers.Conv2D(2, 1)(x))


def _channels_first(made: Built) -> Built:
    """Maps as outputs are moved to the side of the channels that PyTorch has."""
    made.outputs = np.moveaxis(made.outputs, -1, 1)
    return made


def _channels_last(made: Built) -> Built:
    made.outputs = np.moveaxis(made.outputs, 1, -1)
    return made


def _separable_truth(source: Any) -> Callable[[Any], Any]:
    values = [(n, a.reshape(-1) if a.ndim == 3 else a) for n, a in slots(source)]
    return lambda target: fill(target, values)


@pair("depthwise, separable, transposed, PReLU: Keras to PyTorch", "layouts")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.layers import Separable

    return _channels_first(to_torch(folder, _separable(), Separable(), 8, truth=_separable_truth))


@pair("depthwise, separable, transposed, PReLU: PyTorch to Keras", "layouts")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.layers import Separable

    def truth(source: Any) -> Callable[[Any], Any]:
        values = slots(source)

        def load(target: Any) -> Any:
            shaped = [(n, a.reshape(1, 1, -1) if n.startswith("act") else a) for n, a in values]
            return fill(target, shaped)

        return load

    return _channels_last(to_keras(folder, Separable(), _separable(), 8, truth=truth))


@pair("Conv1D, grouped too: Keras to PyTorch", "layouts")
def _(folder: Path) -> Built:
    import keras

    from benchmarks.pairs.models.layers import Audio

    layers = keras.layers
    source = keras.Sequential([layers.Input((40, 4))])
    for width, size, stride, groups in ((8, 5, 2, 1), (12, 3, 1, 1), (12, 3, 1, 3)):
        source.add(layers.Conv1D(width, size, stride, groups=groups))
        source.add(layers.BatchNormalization())
        source.add(layers.ReLU())
    source.add(layers.GlobalAveragePooling1D())
    source.add(layers.Dense(5))
    random_keras(source)
    target = random_torch(Audio(), 9)
    x = _sequence(2, 40, 4)
    outputs = keras.ops.convert_to_numpy(source(x, training=False))
    names = [layer.name for layer in source.layers if layer.weights]
    order = ["encoder.0", "norms.0", "encoder.1", "norms.1", "encoder.2", "norms.2", "head"]
    truth = by_layers(source, dict(zip(names, order, strict=True)))
    path = files.keras_model(folder, source, "h5")
    return Built(path, target, outputs, x.transpose(0, 2, 1).copy(), truth=truth)


@pair("Conv3D: Keras to PyTorch", "layouts")
def _(folder: Path) -> Built:
    import keras

    from benchmarks.pairs.models.layers import Volume

    layers = keras.layers
    source = keras.Sequential(
        [
            layers.Input((4, 6, 6, 1)),
            layers.Conv3D(4, 3, padding="same", activation="relu"),
            layers.Conv3D(8, (1, 3, 3), padding="same", activation="relu"),
            layers.Conv3D(8, (3, 1, 1), padding="same", activation="relu"),
            layers.GlobalAveragePooling3D(),
            layers.Dense(3),
        ]
    )
    random_keras(source)
    x = _sequence(2, 4, 6, 6, 1)
    outputs = keras.ops.convert_to_numpy(source(x, training=False))
    path = files.keras_model(folder, source)
    target, moved = random_torch(Volume(), 9), x.transpose(0, 4, 1, 2, 3).copy()
    return Built(path, target, outputs, moved, truth=in_order(source))


def _lenet() -> Any:
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(6, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(40, activation="relu"),
            layers.Dense(24, activation="relu"),
            layers.Dense(10),
        ]
    )


def _flat_rows(array: Array, to_torch_order: bool) -> Array:
    """The first dense layer of LeNet, `[40, 256]`, between the two orders of flattening."""
    if to_torch_order:
        return array.reshape(40, 4, 4, 16).transpose(0, 3, 1, 2).reshape(40, -1)
    return array.reshape(40, 16, 4, 4).transpose(0, 2, 3, 1).reshape(40, -1)


@pair("LeNet with Flatten: Keras to PyTorch", "layouts")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.layers import Flattened

    def truth(source: Any) -> Callable[[Any], Any]:
        values = [(n, _flat_rows(a, True) if a.shape == (40, 256) else a) for n, a in slots(source)]
        return lambda target: fill(target, values)

    return to_torch(folder, _lenet(), Flattened(), 28, truth=truth)


@pair("LeNet with Flatten: PyTorch to Keras", "layouts")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.layers import Flattened

    def truth(source: Any) -> Callable[[Any], Any]:
        values = [
            (n, _flat_rows(a, False) if a.shape == (40, 256) else a) for n, a in slots(source)
        ]
        return lambda target: fill(target, values)

    return to_keras(folder, Flattened(), _lenet(), 28, truth=truth)


def _unet() -> Any:
    import keras

    layers = keras.layers

    def double(x: Any, width: int) -> Any:
        for _ in range(2):
            x = layers.Conv2D(width, 3, padding="same")(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
        return x

    image = keras.Input((16, 16, 3))
    first = double(image, 8)
    second = double(layers.MaxPooling2D()(first), 16)
    up = layers.Conv2DTranspose(8, 2, 2)(second)
    x = double(layers.Concatenate()([first, up]), 8)
    return keras.Model(image, layers.Conv2D(2, 1)(x))


@pair("U-Net, names numbered by Keras, to PyTorch", "numbering")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.layers import UNet

    return _channels_first(to_torch(folder, _unet(), UNet(), 16, ending="weights.h5"))


@pair("U-Net between two Keras sessions, whose numbers overlap", "numbering")
def _(folder: Path) -> Built:
    import keras

    keras.utils.clear_session()
    source = random_keras(_unet())
    keras.utils.clear_session()
    _layers().Conv2D(1, 1)  # takes the name conv2d, so that every other moves on by one
    target = random_keras(_unet(), 9)
    x = _sequence(2, 16, 16, 3)
    outputs = keras.ops.convert_to_numpy(source(x, training=False))
    path = files.keras_model(folder, source, "h5")
    return Built(path, target, outputs, x, truth=in_order(source))


def _keras_attention() -> Any:
    import keras

    layers = keras.layers
    tokens = keras.Input((7, 6))
    x = layers.Dense(16)(tokens)
    for _ in range(2):
        y = layers.MultiHeadAttention(4, 4)(x, x)
        x = layers.LayerNormalization(epsilon=1e-5)(layers.Add()([x, y]))
        y = layers.Dense(16)(layers.Dense(32, activation="relu")(x))
        x = layers.LayerNormalization(epsilon=1e-5)(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(tokens, layers.Dense(5)(x))


def _attention_arrays(source: Any) -> list[Array]:
    """All weights with attention kernels as matrices in PyTorch's layout."""
    made: list[Array] = []
    for variable in source.weights:
        array = keras_array(variable)
        if array.ndim == 3:  # [16, 4, 4] to heads, or from heads
            array = array.reshape(16, 16)
        made.append(array.T if array.ndim == 2 and array.shape != (4, 4) else array.reshape(-1))
    return made


@pair("MultiHeadAttention: Keras to separate projections in PyTorch", "attention")
def _(folder: Path) -> Built:
    import keras

    from benchmarks.pairs.models.layers import SplitEncoder

    source, target = random_keras(_keras_attention()), random_torch(SplitEncoder(), 9)
    x = _sequence(2, 7, 6)
    outputs = keras.ops.convert_to_numpy(source(x, training=False))
    values = [("", a) for a in _split_order(source)]
    path = files.keras_model(folder, source)
    return Built(path, target, outputs, x, truth=lambda model: fill(model, values))


def _split_order(source: Any) -> list[Array]:
    """Keras' weights in the order in which `SplitEncoder` defines its own."""
    by_layer = {layer.name: layer.weights for layer in source.layers if layer.weights}
    arrays = {id(v): a for v, a in zip(source.weights, _attention_arrays(source), strict=True)}
    dense = [w for n, w in by_layer.items() if n.startswith("dense")]
    norms = [w for n, w in by_layer.items() if n.startswith("layer_norm")]
    attention = [w for n, w in by_layer.items() if n.startswith("multi_head")]
    order = [dense[0]]
    for i in range(2):
        order += [attention[i], norms[2 * i], dense[2 * i + 1], dense[2 * i + 2], norms[2 * i + 1]]
    return [arrays[id(v)] for weights in [*order, dense[-1]] for v in weights]


@pair("MultiHeadAttention: Keras to PyTorch's in_proj_weight", "attention")
def _(folder: Path) -> Built:
    import keras

    from benchmarks.pairs.models.layers import Encoder

    source, target = random_keras(_keras_attention()), random_torch(Encoder(), 9)
    x = _sequence(2, 7, 6)
    outputs = keras.ops.convert_to_numpy(source(x, training=False))
    given = _split_order(source)

    def truth(model: Any) -> Any:
        made, rest = [*given[:2]], given[2:]
        for start in (0, 16):
            block = rest[start : start + 16]
            weights, biases = block[0:6:2], block[1:6:2]
            made += [np.concatenate(weights), np.concatenate(biases), *block[6:8]]
            norm_a, dense, norm_b = block[8:10], block[10:14], block[14:16]
            made += [*dense, *norm_a, *norm_b]
        made += rest[32:]
        return load_torch(model, dict(zip(arrays_of(model), made, strict=True)))

    path = files.keras_model(folder, source, "weights.h5")
    return Built(path, target, outputs, x, truth=truth)
