"""What a Keras target owes, run in a process of its own for each backend (argument 1)."""

from __future__ import annotations

import os
import sys

os.environ["KERAS_BACKEND"] = sys.argv[1]

import keras
import numpy as np

import regraft as rg

assert keras.backend.backend() == sys.argv[1]
layers = keras.layers


def net() -> keras.Model:
    return keras.Sequential(
        [layers.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(),
         layers.DepthwiseConv2D(3), layers.Conv2DTranspose(5, 2), layers.GlobalAveragePooling2D(),
         layers.Dense(2)]
    )  # fmt: skip


generator = np.random.default_rng(0)
source, target = net(), net()
for variable in source.weights:
    variable.assign(generator.uniform(0.2, 1.0, variable.shape))
x = generator.normal(size=(2, 8, 8, 3)).astype(np.float32)
expected = keras.ops.convert_to_numpy(source(x, training=False))
source.save(sys.argv[2])
receipt = rg.load(sys.argv[2], target, probe=rg.Probe(x, expected))
assert receipt.verified
assert len(receipt.loaded) == len(source.weights)
flags = [layer.trainable for layer in target.layers]
try:
    rg.load(sys.argv[2], net(), probe=rg.Probe(x, expected + 1))
except rg.VerificationFailed:
    print("verified", len(receipt.loaded), flags.count(True))
