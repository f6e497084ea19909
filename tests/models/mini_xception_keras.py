"""mini-XCEPTION (Arriaga et al., 2017) in Keras 3, with names of its own."""

from __future__ import annotations

from typing import Any

import keras


def mini_xception(classes: int = 7) -> Any:
    layers = keras.layers
    face = keras.Input((64, 64, 1))

    def norm(x: Any, name: str) -> Any:
        return layers.BatchNormalization(name=f"{name}_norm")(x)

    x = face
    for part in ("entry_a", "entry_b"):
        x = norm(layers.Conv2D(8, 3, use_bias=False, name=part)(x), part)
        x = layers.ReLU()(x)
    for number, width in enumerate((16, 32, 64, 128)):
        name = f"stage{number}"
        skip = layers.Conv2D(width, 1, 2, "same", use_bias=False, name=f"{name}_skip")(x)
        skip = norm(skip, f"{name}_skip")
        for part in ("one", "two"):
            own = f"{name}_{part}"
            x = layers.SeparableConv2D(width, 3, padding="same", use_bias=False, name=own)(x)
            x = norm(x, own)
            x = layers.ReLU()(x) if part == "one" else x
        x = layers.Add()([layers.MaxPooling2D(3, 2, "same")(x), skip])
    x = layers.Conv2D(classes, 3, padding="same", name="score")(x)
    return keras.Model(face, layers.Softmax()(layers.GlobalAveragePooling2D()(x)))
