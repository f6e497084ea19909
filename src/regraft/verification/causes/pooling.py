"""A pool of another kind, or at the border: maximum or mean, padding that is counted or not, padded
on one side only, a last window that is not whole (`ceil_mode`), other windows.

Tried in numpy, in the place of the module or of the function, so that the conventions of all
frameworks are met.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from regraft.calls import FunctionCall, InFunction, Rewritten
from regraft.verification.causes._arrays import Array
from regraft.verification.causes._scene import Hypothesis, Scene, in_forward
from regraft.verification.causes._windows import ends, pooled
from regraft.verification.kinds_of_modules import category

_WINDOWED = ("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "_max_pool2d", "_max_pool1d",
             "max_pool2d_with_indices")  # fmt: skip
_WHOLE = ("adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool1d",
          "adaptive_max_pool1d", "mean", "amax", "max", "sum")  # fmt: skip
Pool = Callable[[Array], Array]


def propose(scene: Scene) -> Iterable[Hypothesis]:
    modules: set[str] = set()
    for path in scene.inner():
        if path and category(scene.modules[path]) == "pool" and scene.framework != "torch":
            modules.add(path)
            for text, pool in _of_layer(scene, path):
                yield _hypothesis(path, text, Rewritten(path, _replacing(pool)))
    for call in scene.calls(*_WINDOWED, *_WHOLE):
        for text, pool in _of_function(scene, call):
            edit = InFunction(call.path, call.name, call.number, instead=_made(pool))
            yield _hypothesis(call.path, text, edit)


def _of_function(scene: Scene, call: FunctionCall) -> Iterator[tuple[str, Pool]]:
    shape = call.shapes[0] if call.shapes else ()
    if call.name in _WHOLE:
        yield from _global(shape, call.output, call.arguments)
        return
    rank = 1 if call.name.endswith("1d") else 2
    kernel = _tuple(call.arguments.get("kernel_size", 2), rank)
    strides = _tuple(call.arguments.get("stride") or kernel, rank)
    spatial, wanted = shape[-rank:], call.output[-rank:]
    for size in dict.fromkeys((kernel, *_kernels(scene, call.path, rank))):
        yield from _windows(spatial, size, strides, wanted, last=False)


def _kernels(scene: Scene, path: str, rank: int) -> Iterator[tuple[int, ...]]:
    names = ("kernel_size", "pool_size", "window_shape", "kernel_shape")
    for value in (*scene.source_setting(path, *names), 2, 3):
        several = isinstance(value, (tuple, list)) and all(isinstance(n, int) for n in value)
        if isinstance(value, int) or several:
            yield _tuple(value, rank)


def _of_layer(scene: Scene, path: str) -> Iterator[tuple[str, Pool]]:
    settings, inputs = scene.modules[path].settings, scene.given(path)
    wanted_shape = scene.site.expected.shape if scene.site.module == path else scene.made(path)
    if not inputs or not wanted_shape:
        return
    x = inputs[0]
    last = settings.get("data_format") != "channels_first"
    if "pool_size" not in settings:
        axes = tuple(range(1, x.ndim - 1)) if last else tuple(range(2, x.ndim))
        yield "the maximum instead of the mean", lambda v: v.max(axes).reshape(wanted_shape)
        yield "the mean instead of the maximum", lambda v: v.mean(axes).reshape(wanted_shape)
        return
    rank = x.ndim - 2
    kernel = _tuple(settings["pool_size"], rank)
    strides = _tuple(settings.get("strides") or kernel, rank)
    spatial, wanted = (
        (x.shape[1:-1], wanted_shape[1:-1]) if last else (x.shape[2:], wanted_shape[2:])
    )
    for size in dict.fromkeys((kernel, *_kernels(scene, path, rank))):
        yield from _windows(spatial, size, strides, wanted, last=last)


def _windows(
    spatial: Any, kernel: Any, strides: Any, wanted: Any, *, last: bool
) -> Iterator[tuple[str, Pool]]:
    for pads in dict.fromkeys(ends(spatial, kernel, strides, wanted)):
        for kind, counted in (("max", False), ("mean", False), ("mean", True)):
            zeros = ", padding counted" if counted else ""

            def pool(
                x: Array, kind: str = kind, pads: Any = pads, counted: bool = counted
            ) -> Array:
                return pooled(x, kind, kernel, strides, pads, counted=counted, last=last)

            yield f"the {kind} over windows of {list(kernel)} padded by {list(pads)}{zeros}", pool


def _global(shape: Any, out: Any, arguments: Any) -> Iterator[tuple[str, Pool]]:
    dims = arguments.get("dim", arguments.get("1"))
    if isinstance(dims, int):
        dims = (dims,)
    if not isinstance(dims, (tuple, list)):
        dims = tuple(range(2, len(shape)))
    axes = tuple(int(d) for d in dims)
    options: dict[str, Callable[[Array], Any]] = {
        "the maximum": lambda x: x.max(axes),
        "the mean": lambda x: x.mean(axes),
        "the sum": lambda x: x.sum(axes),
        "the first": lambda x: np.take(x, 0, axes[0]),
        "the last": lambda x: np.take(x, -1, axes[0]),
    }
    for text, function in options.items():
        if text[4:] in ("first", "last") and len(axes) != 1:
            continue
        yield f"{text} over all places", lambda x, f=function: np.asarray(f(x)).reshape(out)


def _replacing(pool: Pool) -> Callable[[list[Array], list[Array]], list[Array]]:
    return lambda inputs, outputs: [pool(inputs[0]).astype(outputs[0].dtype), *outputs[1:]]


def _made(pool: Pool) -> Callable[[list[Array], Array], Array]:
    return lambda tensors, result: pool(tensors[0]).astype(result.dtype)


def _hypothesis(path: str, text: str, edit: Any) -> Hypothesis:
    return Hypothesis("pooling", (edit,), (path,), text, f"{in_forward(path)}: pool by {text}")


def _tuple(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(int(n) for n in value)
