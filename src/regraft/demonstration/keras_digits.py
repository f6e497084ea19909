"""The network in Keras: channels last, layers named as its author liked."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:
    from regraft.tensors import Array

FEATURES = "ink_features"


def network() -> Any:
    """Three convolutions, a dense layer of 64 features and ten digits."""
    layers = keras.layers
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="strokes")(image)
    x = layers.BatchNormalization(name="strokes_bn")(x)
    x = layers.ReLU()(x)
    x = layers.Conv2D(32, 3, padding="same", use_bias=False, name="curves")(x)
    x = layers.BatchNormalization(name="curves_bn")(x)
    x = layers.ReLU()(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(32, 3, padding="same", use_bias=False, name="shapes")(x)
    x = layers.BatchNormalization(name="shapes_bn")(x)
    x = layers.ReLU()(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    x = layers.Dense(64, activation="relu", name=FEATURES)(x)
    return keras.Model(image, layers.Dense(10, name="digit")(x), name="digits")


def pretrain(path: Path, x: Array, y: Array) -> float:
    """Trains on clean images, saves the model as `.h5`; returns the last training accuracy."""
    keras.utils.set_random_seed(0)
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    history = model.fit(x, y, batch_size=32, epochs=20, verbose=0)
    # Keras calls the format legacy in a warning; it is here because so many files have it.
    logging.getLogger("absl").setLevel(logging.ERROR)
    model.save(path)
    return float(history.history["accuracy"][-1])


def features(path: Path, x: Array) -> Array:
    """What the saved model's last hidden layer gives, computed by Keras."""
    model: Any = keras.saving.load_model(path, compile=False)
    inner: Any = keras.Model(model.input, model.get_layer(FEATURES).output)
    found: Any = keras.ops.convert_to_numpy(inner(x, training=False))
    return found
