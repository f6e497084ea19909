"""A convolution is padded otherwise.

TensorFlow's `same` with a stride of 2 pads more at the end than at the beginning, PyTorch's padding
is the same on both sides: shapes agree, and values are shifted by a pixel. Also: other values at
the border (zeros, reflected, repeated, circular), and no padding where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any

import numpy as np

from regraft.calls import Entered, FunctionCall, InFunction, Setting
from regraft.verification.causes._arrays import Array
from regraft.verification.causes._scene import Hypothesis, Scene, in_forward, where
from regraft.verification.causes._windows import Pads, paddings, same_pads

_MODES = ("constant", "reflect", "edge", "wrap")


def propose(scene: Scene) -> Iterable[Hypothesis]:
    for call in scene.calls("conv1d", "conv2d", "conv3d"):
        yield from _convolution(call)
    for call in scene.calls("pad"):
        yield from _explicit(call)
    for path in scene.inner():
        settings = scene.modules[path].settings
        if scene.framework != "torch" and "kernel_size" in settings and "padding" in settings:
            yield from _layer(scene, path, settings)


def _convolution(call: FunctionCall) -> Iterator[Hypothesis]:
    """Paddings under which the result keeps its shape."""
    shape, kernel = call.shapes[0], call.shapes[1][2:]
    rank = len(kernel)
    strides, dilations = (_tuple(call.arguments.get(k, 1), rank) for k in ("stride", "dilation"))
    spatial = shape[len(shape) - rank :]
    present = call.arguments.get("padding", 0)
    held = _held(present, kernel, dilations, spatial, strides)
    wanted = call.output[len(call.output) - rank :]
    options = paddings(spatial, kernel, strides, dilations, wanted, held)
    for pads, mode in product(options, _MODES):
        if pads == held and mode == "constant":
            continue
        edit = InFunction(
            call.path, call.name, call.number, {"padding": 0}, before=_first(_padded(pads, mode))
        )
        yield _hypothesis(call.path, pads, held, mode, (edit,))


def _explicit(call: FunctionCall) -> Iterator[Hypothesis]:
    """The padding that the code does itself, with as much in all shared out otherwise."""
    given = call.arguments.get("pad", call.arguments.get("1"))
    if not isinstance(given, (tuple, list)) or len(given) % 2:
        return
    pairs = [(int(given[i]), int(given[i + 1])) for i in range(0, len(given), 2)]
    per_axis = [[(a, sum(p) - a) for a in range(sum(p) + 1)] for p in pairs]
    for chosen in product(*per_axis):
        flat = tuple(n for p in chosen for n in p)
        if flat != tuple(given):
            edit = InFunction(call.path, call.name, call.number, {"pad": flat})
            yield _hypothesis(call.path, tuple(reversed(chosen)), tuple(reversed(pairs)),
                              "constant", (edit,))  # fmt: skip
    for mode in ("reflect", "replicate", "circular", "constant"):
        edit = InFunction(call.path, call.name, call.number, {"mode": mode, "value": None})
        yield _hypothesis(call.path, tuple(pairs), tuple(pairs), mode, (edit,))


def _layer(scene: Scene, path: str, settings: Any) -> Iterator[Hypothesis]:
    """A layer with channels last that pads by name: padded before, and then not by itself."""
    inputs, out = scene.given(path), scene.made(path)
    if not inputs or inputs[0].ndim < 3 or len(out) != inputs[0].ndim:
        return
    kernel = tuple(settings["kernel_size"])
    rank = len(kernel)
    strides, dilations = (_tuple(settings.get(k, 1), rank) for k in ("strides", "dilation_rate"))
    first = settings.get("data_format") == "channels_first"
    spatial = inputs[0].shape[2:] if first else inputs[0].shape[1:-1]
    wanted = out[2:] if first else out[1:-1]
    same = str(settings["padding"]).lower() == "same"
    held = same_pads(spatial, kernel, strides, dilations) if same else ((0, 0),) * rank
    for pads, mode in product(paddings(spatial, kernel, strides, dilations, wanted, held), _MODES):
        if pads == held and mode == "constant":
            continue
        changed = Entered(path, _first(_padded(pads, mode, last=not first)), inside=True)
        none = "VALID" if scene.framework == "jax" else "valid"
        yield _hypothesis(path, pads, held, mode, (changed, Setting(path, {"padding": none})))


def _hypothesis(
    path: str, pads: Pads, held: Pads | None, mode: str, edits: tuple[Any, ...]
) -> Hypothesis:
    border = "" if mode == "constant" else f", border {mode}"
    text = f"padding {list(pads)}{border} instead of {list(held) if held else 'the present one'}"
    fix = f"{in_forward(path)}: pad the input by {list(pads)}{border} (begin, end of each axis)"
    if all(a == b for a, b in pads) and not border:
        fix = f"{where(path)}.padding = {tuple(a for a, _ in pads)}"
    return Hypothesis("padding", edits, (path,), text, fix)


def _held(present: Any, kernel: Any, dilations: Any, spatial: Any, strides: Any) -> Pads | None:
    if present == "same":
        return same_pads(spatial, kernel, strides, dilations)
    if present == "valid":
        present = 0
    if isinstance(present, (int, tuple, list)):
        return tuple((int(n), int(n)) for n in _tuple(present, len(kernel)))
    return None


def _padded(pads: Pads, mode: Any, *, last: bool = False) -> Callable[[Array], Array]:
    def pad(x: Array) -> Array:
        around = [(0, 0)] * (x.ndim - len(pads))
        widths = [*around[:-1], *pads, (0, 0)] if last else [*around, *pads]
        return np.pad(x, widths, mode=mode)

    return pad


def _first(change: Callable[[Array], Array]) -> Callable[[list[Array]], list[Array]]:
    return lambda arrays: [change(arrays[0]), *arrays[1:]]


def _tuple(value: Any, rank: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * rank
    return tuple(int(n) for n in value) if len(value) == rank else (int(value[0]),) * rank
