"""What a Keras target owes, run in a process of its own for each backend (argument 1)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

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
# Without a probe values are copied last, and where a backend replaces memory, into new memory.
from regraft import renewing, transfer  # noqa: E402
from regraft.targets import keras as sinks  # noqa: E402

renewed: list[str] = []


def counting(wanted):
    renewed.extend(one.name for one in wanted)
    return renewing.renew_all(wanted)


def values(model: keras.Model) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(v)) for v in model.weights]


def same(model: keras.Model, wanted: list[np.ndarray]) -> None:
    for now, then in zip(values(model), wanted, strict=True):
        np.testing.assert_array_equal(now, then)


transfer.renew_all = counting
budget, transfer.BUDGET = transfer.BUDGET, 0  # as for a large model
path = Path(sys.argv[2]).with_suffix(".weights.h5")
source.save_weights(path)
plain, file = net(), path.read_bytes()
before = values(plain)
held = [variable.value for variable in plain.weights]
if sys.argv[1] == "tensorflow":
    held = [value.read_value() for value in held]
receipt = rg.load(path, plain)
# All but the depthwise kernel, which needs an operation.
assert len(renewed) == (0 if sys.argv[1] == "torch" else 11), renewed
same(plain, values(source))
sink = rg.targets.find(plain).sink(plain)
assert receipt.hashes == {
    n: transfer.fingerprint(sink.read(n)) for n in receipt.plan.target.tensors
}
np.testing.assert_array_equal(keras.ops.convert_to_numpy(plain(x, training=False)), expected)
if sys.argv[1] != "torch":  # tensors that somebody held are what they were
    for value, then in zip(held, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(value), then)
for variable in plain.weights:  # and so is the file
    variable.assign_add(np.ones(variable.shape, np.float32))
same(plain, [value + 1 for value in values(source)])
assert path.read_bytes() == file

# What cannot be written is found before anything is.
plain, write = net(), sinks._KerasSink.write
*_, broken = rg.plan(path, plain).grafts
before = values(plain)


def failing(self, name, array):
    if name == broken:
        raise MemoryError("injected")
    write(self, name, array)


if sys.argv[1] != "torch":
    sinks._KerasSink.write = failing
    for transfer.BUDGET in (0, budget):
        try:
            rg.load(path, plain)
            raise AssertionError("nothing was raised")
        except rg.TransferError as error:
            assert "injected" in str(error)
        same(plain, before)
    sinks._KerasSink.write = write

flags = [layer.trainable for layer in target.layers]
try:
    rg.load(sys.argv[2], net(), probe=rg.Probe(x, expected + 1))
except rg.VerificationFailed:
    print("verified", len(receipt.loaded), flags.count(True))
