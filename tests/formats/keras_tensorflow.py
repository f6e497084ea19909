"""Run as a script: a Keras model on TensorFlow, trained a step and saved in all of its ways.

Writes into the folder given: `export` (Keras' own SavedModel), `saved` (TensorFlow's), `checkpoint`
(model and optimizer), and `values.npz`: variables by path, an input and the output.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf

layers = keras.layers
inner = keras.Sequential(
    [layers.Input((4,)), layers.Dense(3, name="first"), layers.Dense(4)], name="inner"
)
inputs = keras.Input((6, 7, 3))
x = layers.Conv2D(4, 3, name="stem")(inputs)
x = layers.BatchNormalization()(x)
x = layers.DepthwiseConv2D(2, name="depthwise", activation="relu")(x)
x = layers.GlobalAveragePooling2D()(x)
x = layers.Add()([inner(x), x])
model = keras.Model(inputs, layers.Dense(2, name="head")(x))
model.compile(optimizer="adam", loss="mse")
generator = np.random.default_rng(0)
model.fit(generator.normal(size=(2, 6, 7, 3)), np.zeros((2, 2)), verbose=0)
for variable in model.weights:
    variable.assign(generator.uniform(0.1, 0.9, size=variable.shape))

folder = Path(sys.argv[1])
model.export(str(folder / "export"), verbose=False)
tf.saved_model.save(model, str(folder / "saved"))
tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(folder / "checkpoint/ckpt"))
example = generator.normal(size=(3, 6, 7, 3)).astype(np.float32)
values = {variable.path: np.asarray(variable) for variable in model.weights}
np.savez(folder / "values.npz", x=example, y=np.asarray(model(example)), **values)
