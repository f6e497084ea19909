"""Queries, keys and values are taken in another order, or head by head where the other side has
them part by part.

Tried on the result of the fused projection in the attention, with the rows of the fused tensor,
and by exchanging the results of separate projections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import permutations

import numpy as np

from regraft.calls import Edit, InFunction, Rewritten, Written
from regraft.verification.causes._arrays import Array
from regraft.verification.causes._scene import Hypothesis, Scene, in_forward

_NAMES = "qkv"


def propose(scene: Scene) -> Iterable[Hypothesis]:
    yield from _fused(scene)
    yield from _separate(scene)
    for path in scene.inner():
        for tensor in scene.tensors(path):
            if tensor.same or tensor.expected.shape != tensor.actual.shape:
                continue
            if tensor.expected.ndim == 0:
                continue
            for text, rows in _orders(tensor.expected.shape[0], _heads(scene)):
                if np.array_equal(tensor.expected[rows], tensor.actual):
                    wrong = [t for t in scene.tensors(path) if not t.same]
                    yield Hypothesis(
                        "qkv-order", tuple(Written(t.name, t.expected) for t in wrong), (path,),
                        f"rows in {text}", f"take the rows of {tensor.name} in the plan's order",
                    )  # fmt: skip


def _fused(scene: Scene) -> Iterator[Hypothesis]:
    for path, call in scene.children.items():
        if not all(arrays and arrays[0].ndim for arrays in (call.outputs, call.inputs)):
            continue
        width = call.outputs[0].shape[-1]
        if width % 3 or width <= call.inputs[0].shape[-1]:
            continue
        for text, columns in _orders(width, _heads(scene)):
            yield Hypothesis(
                "qkv-order", (Rewritten(path, _columns(columns)),), (scene.site.module,), text,
                f"{in_forward(scene.site.module)}: take the result of {path} in {text}",
            )  # fmt: skip

    for call in scene.calls("linear"):
        # Of a projection whose module the code does not call, only its tensors.
        if "linear" in scene.modules[call.path].kind.lower():
            continue
        if not call.shapes or not call.output or call.output[-1] % 3:
            continue
        if call.output[-1] <= call.shapes[0][-1]:
            continue
        for text, columns in _orders(call.output[-1], _heads(scene)):
            edit = InFunction(
                call.path, call.name, call.number,
                instead=lambda _, result, columns=columns: result[..., columns],
            )  # fmt: skip
            yield Hypothesis(
                "qkv-order", (edit,), (call.path,), text,
                f"{in_forward(call.path)}: take the projection's result in {text}",
            )  # fmt: skip


def _separate(scene: Scene) -> Iterator[Hypothesis]:
    """Two or three projections of the same input, whose results are exchanged."""
    calls = [(p, c) for p, c in scene.children.items() if c.outputs and c.keys]
    by_input: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for path, call in calls:
        by_input.setdefault((call.keys[0], call.outputs[0].shape), []).append(path)
    found = dict(calls)
    for paths in by_input.values():
        if not 2 <= len(paths) <= 3:
            continue
        for order in permutations(range(len(paths))):
            if list(order) == sorted(order):
                continue
            edits: tuple[Edit, ...] = tuple(
                Rewritten(paths[i], _given(found[paths[j]].outputs[0]))
                for i, j in enumerate(order)
                if i != j
            )
            text = "results exchanged: " + "".join(str(i) for i in order)
            yield Hypothesis(
                "qkv-order", edits, (scene.site.module,), text,
                f"{in_forward(scene.site.module)}: "
                + ", ".join(f"{paths[j]} for {paths[i]}" for i, j in enumerate(order) if i != j),
            )  # fmt: skip


def _orders(width: int, heads: list[int]) -> Iterator[tuple[str, Array]]:
    if width % 3:
        return
    part = width // 3
    plain = np.arange(width).reshape(3, part)
    for order in permutations(range(3)):
        if order != (0, 1, 2):
            yield f"the order {''.join(_NAMES[i] for i in order)}", plain[list(order)].reshape(-1)
    for count in heads:
        if part % count:
            continue
        whole = np.arange(width)
        by_part = whole.reshape(3, count, part // count)
        by_head = whole.reshape(count, 3, part // count)
        mixed = whole.reshape(count, part // count, 3)
        last = whole.reshape(3, part // count, count)
        yield f"parts, not {count} heads, first", by_head.transpose(1, 0, 2).reshape(-1)
        yield f"{count} heads, not parts, first", by_part.transpose(1, 0, 2).reshape(-1)
        yield f"{count} heads, parts last", by_part.transpose(1, 2, 0).reshape(-1)
        yield f"parts first, not last, {count} heads", mixed.transpose(2, 0, 1).reshape(-1)
        yield f"{count} heads, not their width, last", by_part.transpose(0, 2, 1).reshape(-1)
        yield f"{count} heads before their width", last.transpose(0, 2, 1).reshape(-1)


def _heads(scene: Scene) -> list[int]:
    told: dict[int, None] = {}
    for path in scene.inner():
        for name, value in scene.modules[path].settings.items():
            if "head" in name and isinstance(value, int) and 0 < value <= 128:
                told[value] = None
    for call in scene.functions:
        if len(call.output) > 3:
            told |= {n: None for n in call.output if 1 < n <= 64}
    return list(told)


def _columns(columns: Array) -> Callable[[list[Array], list[Array]], list[Array]]:
    return lambda _, outputs: [outputs[0][..., columns], *outputs[1:]]


def _given(array: Array) -> Callable[[list[Array], list[Array]], list[Array]]:
    return lambda _, outputs: [array.reshape(outputs[0].shape), *outputs[1:]]
