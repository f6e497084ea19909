"""Height and width are exchanged: the images are, or the kernels (MTCNN's, which came from MATLAB).

Tried with the input's axes exchanged, with what follows exchanged, and with the kernels of the
plan, where the present ones are the same with their axes exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from regraft.calls import Entered, InFunction, Written
from regraft.verification.causes._arrays import Array
from regraft.verification.causes._inputs import at_the_input, images
from regraft.verification.causes._scene import Hypothesis, Scene, Tensor, in_forward


def propose(scene: Scene) -> Iterable[Hypothesis]:
    site = scene.site
    text = "height and width exchanged"
    if at_the_input(scene):
        for index in images(scene):
            for axes in _spatial(scene.inputs[index]):
                yield Hypothesis(
                    "spatial-transpose", (Entered("", _exchanged(index, axes), inside=True),),
                    (site.module,), text, f"give x.transpose{axes} for x",
                )  # fmt: skip
    if site.place[0] == "input" and site.actual.ndim >= 4:
        for axes in _spatial(site.actual):
            yield Hypothesis(
                "spatial-transpose", (Entered(site.place[1], _exchanged(0, axes)),),
                (site.module,), text,
                f"{in_forward(site.module)}: exchange axes {axes} of what {site.place[1]} is given",
            )  # fmt: skip
    for call in scene.calls("flatten", "reshape", "view", "_unsafe_view"):
        # Positions made one axis; where height and width are alike, shapes do not tell them.
        if call.shapes and len(call.shapes[0]) == 4 and len(call.output) == 3:
            for axes in ((2, 3), (1, 2)):
                if call.shapes[0][axes[0]] == call.shapes[0][axes[1]]:
                    edit = InFunction(call.path, call.name, call.number,
                                      before=_exchanged(0, axes))  # fmt: skip
                    yield Hypothesis(
                        "spatial-transpose", (edit,), (call.path,), text,
                        f"{in_forward(call.path)}: exchange axes {axes} before positions are put "
                        "in a row",
                    )  # fmt: skip
    for path in scene.inner():
        for tensor in scene.tensors(path):
            axes = _kernel(tensor)
            if axes is not None:
                yield Hypothesis(
                    "spatial-transpose", (Written(tensor.name, tensor.expected),), (path,),
                    "kernel with height and width exchanged",
                    f"exchange axes {axes} of {tensor.name}, or height and width of the input",
                )  # fmt: skip


def _kernel(tensor: Tensor) -> tuple[int, int] | None:
    if tensor.same or tensor.expected.ndim != 4:
        return None
    for axes in ((2, 3), (0, 1)):
        made = np.swapaxes(tensor.expected, *axes)
        if made.shape == tensor.actual.shape and np.array_equal(made, tensor.actual):
            return axes
    return None


def _spatial(array: Array) -> list[tuple[int, int]]:
    return [(2, 3), (1, 2)] if array.ndim == 4 else []


def _exchanged(index: int, axes: tuple[int, int]):
    def change(arrays: list[Array]) -> list[Array]:
        return [
            np.ascontiguousarray(np.swapaxes(a, *axes)) if i == index else a
            for i, a in enumerate(arrays)
        ]

    return change
