"""Red and blue are exchanged: the model was trained on BGR (OpenCV, Caffe) and is given RGB, or its
first kernel is flipped. Tried with the channels of the input reversed, and with the first kernel's.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from regraft.calls import Entered, Written
from regraft.verification.causes._arrays import Array
from regraft.verification.causes._inputs import at_the_input, images
from regraft.verification.causes._scene import Hypothesis, Scene

_CHANNELS = (3, 4)


def propose(scene: Scene) -> Iterable[Hypothesis]:
    text = "channels in reverse order"
    for index in images(scene):
        if at_the_input(scene):
            axis = _axis(scene.inputs[index])
            if axis is not None:
                yield Hypothesis(
                    "channel-order", (Entered("", _flipped(index, axis), inside=True),),
                    (scene.site.module,), text, f"give x.flip({axis}) for x",
                )  # fmt: skip
    for path in scene.inner():
        for tensor in scene.tensors(path):
            if tensor.same or tensor.expected.shape != tensor.actual.shape:
                continue
            for axis, length in enumerate(tensor.expected.shape):
                flipped = np.flip(tensor.expected, axis)
                if length in _CHANNELS and np.array_equal(flipped, tensor.actual):
                    yield Hypothesis(
                        "channel-order", (Written(tensor.name, tensor.expected),), (path,),
                        "kernel for channels in reverse order",
                        f"flip axis {axis} of {tensor.name}, or the input's channels",
                    )  # fmt: skip


def _axis(array: Array) -> int | None:
    return next((a for a in (1, array.ndim - 1) if array.shape[a] in _CHANNELS), None)


def _flipped(index: int, axis: int):
    def change(arrays: list[Array]) -> list[Array]:
        return [
            np.ascontiguousarray(np.flip(a, axis)) if i == index else a
            for i, a in enumerate(arrays)
        ]

    return change
