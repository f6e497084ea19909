"""An image is made one row in another order: channels first or last, rows or columns first.

Tried on the reshape in the code or the module that flattens, on what the following layer is given,
and with the columns of its kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import permutations
from math import prod

import numpy as np

from regraft.calls import Entered, Written
from regraft.verification.causes._arrays import Array
from regraft.verification.causes._scene import Hypothesis, Scene, in_forward


def propose(scene: Scene) -> Iterable[Hypothesis]:
    site = scene.site
    shapes = list(dict.fromkeys((*_shapes(scene), *_pooled(scene))))
    seen = site.actual
    for shape in shapes:
        for axes in permutations(range(len(shape))):
            if list(axes) == sorted(axes):
                continue
            text = f"flattened with axes {axes}"
            flat = 1 < seen.ndim <= len(shape) and prod(seen.shape[1:]) == prod(shape)
            if site.place[0] == "input" and flat:
                yield Hypothesis(
                    "flatten-order", (Entered(site.place[1], _reordered(shape, axes)),),
                    (site.module,), text,
                    f"{in_forward(site.module)}: permute{(0, *(a + 1 for a in axes))} before "
                    "it is flattened",
                )  # fmt: skip
            for path in scene.inner():
                yield from _kernels(scene, path, shape, axes)


def _kernels(
    scene: Scene, path: str, shape: tuple[int, ...], axes: tuple[int, ...]
) -> Iterator[Hypothesis]:
    for tensor in scene.tensors(path):
        if tensor.same or tensor.expected.ndim != 2:
            continue
        for axis in (1, 0):
            if tensor.expected.shape[axis] != prod(shape):
                continue
            order = np.arange(prod(shape)).reshape(shape).transpose(axes).reshape(-1)
            if np.array_equal(np.take(tensor.expected, order, axis), tensor.actual):
                yield Hypothesis(
                    "flatten-order", (Written(tensor.name, tensor.expected),), (path,),
                    f"kernel for what was flattened with axes {axes}",
                    f"take the columns of {tensor.name} in the plan's order",
                )  # fmt: skip


def _shapes(scene: Scene) -> Iterator[tuple[int, ...]]:
    """Shapes of one sample before it is flattened, as the code and the calls before tell."""
    for call in scene.functions:
        for shape in call.shapes[:1]:
            if len(shape) in (3, 4) and call.output:
                yield shape[1:]
    for child in scene.children.values():
        for array in (*child.outputs[:1], *child.inputs[:1]):
            if array.ndim in (3, 4):
                yield array.shape[1:]
    for (_, path), arrays in scene.values.items():
        # A pool without a pair, such as the target's layer for the source's function.
        for array in arrays[:1]:
            if array.ndim in (3, 4) and scene.pair(path) is None:
                yield array.shape[1:]
    for call in reversed(scene.earlier[-12:]):
        for array in (*call.outputs[:1], *call.inputs[:1]):
            if array.ndim in (3, 4):
                yield array.shape[1:]
    for array in scene.inputs:
        if array.ndim in (3, 4):
            yield array.shape[1:]


def _pooled(scene: Scene) -> Iterator[tuple[int, ...]]:
    """Shapes after a pool of which neither side tells: of images before it, with height and width
    divided."""
    for child in scene.children.values():
        for array in child.outputs[:1]:
            if array.ndim != 4:
                continue
            for by in (2, 3, 4):
                first, *middle, last = array.shape[1:]
                yield first, *(n // by for n in (*middle, last))
                yield first // by, *(n // by for n in middle), last


def _reordered(
    shape: tuple[int, ...], axes: tuple[int, ...]
) -> Callable[[list[Array]], list[Array]]:
    def change(arrays: list[Array]) -> list[Array]:
        first = arrays[0]
        whole = first.reshape(first.shape[0], *shape).transpose(0, *(a + 1 for a in axes))
        return [np.ascontiguousarray(whole).reshape(first.shape), *arrays[1:]]

    return change
