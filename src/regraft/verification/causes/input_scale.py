"""Inputs are scaled otherwise: 0 to 255, 0 to 1 or −1 to 1, by ImageNet's mean and deviation, with
Caffe's means. Also a constant factor on embeddings, such as the root of the width.

Where the source prepares inputs itself, what its first layer is given says the factors: each
channel of it is a multiple of the target's plus a constant, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from regraft.calls import Entered
from regraft.verification.causes._arrays import Array
from regraft.verification.causes._inputs import at_the_input, images
from regraft.verification.causes._scene import Hypothesis, Scene, in_forward

_EXACT = 1e-5
_MEANS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "ImageNet's mean and deviation": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP's mean and deviation": (
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    ),
    "0 to 255 made 0 to 1": ((0.0,), (255.0,)),
    "0 to 255 made -1 to 1": ((127.5,), (127.5,)),
    "0 to 1 made -1 to 1": ((0.5,), (0.5,)),
    "Caffe's means": ((103.939, 116.779, 123.68), (1.0,)),
    "Caffe's means, red first": ((123.68, 116.779, 103.939), (1.0,)),
}  # fmt: skip


def propose(scene: Scene) -> Iterable[Hypothesis]:
    site = scene.site
    if at_the_input(scene):
        for name, (mean, deviation) in _MEANS.items():
            for index in images(scene):
                yield from _known(scene, index, name, np.array(mean), np.array(deviation))
    if site.place[0] != "input" or site.expected.shape != site.actual.shape:
        return
    if site.expected.ndim < 2 or site.expected.dtype.kind != "f":
        return
    for axis in dict.fromkeys((1, site.expected.ndim - 1)):
        fitted = _fitted(site.expected, site.actual, axis)
        if fitted is None:
            continue
        factor, shift = fitted
        one = np.ptp(factor) < 1e-4 * np.abs(factor).max() and np.ptp(shift) < 1e-4
        if not one and not at_the_input(scene):
            continue  # a factor for each channel inside a model is a layer scale
        said = f"× {_numbers(factor)} + {_numbers(shift)}"
        yield Hypothesis(
            "input-scale", (Entered(site.place[1], _affine(0, factor, shift, axis)),),
            (site.module,), "scaled otherwise before it is used",
            f"{in_forward(site.module)}: what {site.place[1]!r} is given {said}",
        )  # fmt: skip


def _known(
    scene: Scene, index: int, name: str, mean: Array, deviation: Array
) -> Iterable[Hypothesis]:
    array = scene.inputs[index]
    axis = next((a for a in (1, array.ndim - 1) if array.shape[a] == 3), 1)
    if mean.size == 3 and array.shape[axis] != 3:
        return
    forward, back = 1 / deviation, -mean / deviation
    for factor, shift, said in (
        (forward, back, f"{name} not applied"),
        (deviation, mean, f"{name} applied once too often"),
    ):
        factor, shift = np.broadcast_arrays(factor, shift)
        yield Hypothesis(
            "input-scale", (Entered("", _affine(index, factor, shift, axis), inside=True),),
            (scene.site.module,), said,
            f"give x × {_numbers(factor)} + {_numbers(shift)} for x",
        )  # fmt: skip


def _fitted(expected: Array, actual: Array, axis: int) -> tuple[Array, Array] | None:
    """By channel, the factor and the shift that make `actual` `expected`, where they do exactly."""
    if np.iscomplexobj(actual) or np.iscomplexobj(expected):
        return None
    others = tuple(i for i in range(actual.ndim) if i != axis)
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    if a.size < 8 * a.shape[axis]:
        return None
    centred, meant = a - a.mean(others, keepdims=True), b - b.mean(others, keepdims=True)
    size = np.square(centred).sum(others, keepdims=True)
    if not size.all():
        return None
    factor = (centred * meant).sum(others, keepdims=True) / size
    shift = b.mean(others, keepdims=True) - factor * a.mean(others, keepdims=True)
    left = np.abs(factor * a + shift - b).max()
    if left > _EXACT * np.abs(b).max():
        return None
    shift[np.abs(shift) < 1e-6 * np.abs(b).max()] = 0
    return factor.reshape(-1), shift.reshape(-1)


def _affine(
    index: int, factor: Array, shift: Array, axis: int
) -> Callable[[list[Array]], list[Array]]:
    def change(arrays: list[Array]) -> list[Array]:
        x = arrays[index]
        shape = [1] * x.ndim
        shape[axis] = factor.size
        made = x.astype(np.float64) * factor.reshape(shape) + shift.reshape(shape)
        return [*arrays[:index], made.astype(x.dtype), *arrays[index + 1 :]]

    return change


def _numbers(values: Array) -> str:
    if np.ptp(values) < 1e-6 * max(1.0, float(np.abs(values).max())):
        return f"{float(values[0]):.6g}"
    return str([float(f"{v:.6g}") for v in values[:8]])
