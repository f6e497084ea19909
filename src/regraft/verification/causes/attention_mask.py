"""What attention may look at: a causal mask that is missing or one too many, a mask whose meaning
is inverted (True for "look" or for "do not look"), one that begins a place too early or too late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from regraft.calls import Entered, FunctionCall, InFunction, Setting
from regraft.verification.causes._arrays import Array
from regraft.verification.causes._scene import Hypothesis, Scene, in_forward, where

_FLAGS = ("is_causal", "causal", "use_causal_mask", "bidirectional", "masked", "use_mask",
          "mask_future", "is_decoder")  # fmt: skip
_LOW = -1e4


def propose(scene: Scene) -> Iterable[Hypothesis]:
    for path in scene.inner():
        for name in _FLAGS:
            present = scene.modules[path].settings.get(name)
            if isinstance(present, bool):
                yield Hypothesis(
                    "attention-mask", (Setting(path, {name: not present}),), (path,),
                    f"{name} {not present}", f"{where(path)}.{name} = {not present}",
                )  # fmt: skip
    yield from _given_mask(scene)
    for call in scene.calls("scaled_dot_product_attention"):
        causal = bool(call.arguments.get("is_causal", False))
        masked = call.arguments.get("attn_mask", ...) is ... and len(call.shapes) > 3
        options: dict[str, InFunction] = {}
        if not masked:
            text = "every place looked at" if causal else "only earlier places looked at"
            options[text] = _call(call, {"is_causal": not causal, "attn_mask": None})
        else:
            options["no mask"] = _call(call, {"attn_mask": None, "is_causal": False})
            options["only earlier places looked at"] = _call(
                call, {"attn_mask": None, "is_causal": True}
            )
            options["the mask inverted"] = InFunction(
                call.path, call.name, call.number, before=_inverted
            )
        for text, edit in options.items():
            yield _hypothesis(edit, text)
    for call in scene.calls("dot_product_attention"):
        if call.arguments.get("is_causal", False):
            yield _hypothesis(_call(call, {"is_causal": False}), "every place looked at")
        else:
            text = "only earlier places looked at"
            yield _hypothesis(_call(call, {"is_causal": True, "mask": None}), text)
            yield _hypothesis(_call(call, {"mask": None}), "no mask")
    for call in scene.calls("softmax", "_softmax"):
        for text, rule in _RULES.items():
            yield _hypothesis(
                InFunction(call.path, call.name, call.number, before=_masked(rule)), text
            )
    for call in scene.calls("masked_fill", "masked_fill_", "where"):
        first = 1 if call.name == "where" else 0
        edit = InFunction(call.path, call.name, call.number, instead=_without(first))
        yield _hypothesis(edit, "no mask")
        inverted = InFunction(call.path, call.name, call.number, before=_first_bool_inverted)
        yield _hypothesis(inverted, "the mask inverted")
        causal = InFunction(call.path, call.name, call.number, before=_first_bool_causal)
        yield _hypothesis(causal, "only earlier places looked at")
    for call in scene.calls("add", "__add__", "add_"):
        if len(call.shapes) == 2 and len(call.shapes[0]) > 2:
            edit = InFunction(call.path, call.name, call.number, instead=_unmasked)
            yield _hypothesis(edit, "no mask")
    for call in scene.calls("tril", "triu"):
        present = call.arguments.get("diagonal", call.arguments.get("1", 0))
        for diagonal in (0, 1, -1):
            if diagonal != present:
                key = "1" if "1" in call.arguments else "diagonal"
                edit = _call(call, {key: diagonal})
                yield _hypothesis(edit, f"the mask from diagonal {diagonal}")
        full = InFunction(
            call.path, call.name, call.number,
            instead=lambda tensors, result, name=call.name: (
                np.ones_like(result) if name == "tril" else np.zeros_like(result)
            ),
        )  # fmt: skip
        yield _hypothesis(full, "no mask")


def _given_mask(scene: Scene) -> Iterator[Hypothesis]:
    """A mask that a module is given, with the source's in its place."""
    (kind, path, _), site = scene.site.place, scene.site
    if kind != "input" or not (_is_mask(site.actual) and _is_mask(site.expected)):
        return
    if np.array_equal(site.expected, _opposite(site.actual)):
        text = "the mask inverted"
    elif site.actual.ndim > 1 and _looks(site.expected).sum() > _looks(site.actual).sum():
        text = "more places looked at"
    else:
        text = "fewer places looked at"
    held = site.actual

    def change(arrays: list[Array]) -> list[Array]:
        return [
            site.expected.astype(a.dtype)
            if a.shape == held.shape and a.dtype == held.dtype and np.array_equal(a, held)
            else a
            for a in arrays
        ]

    fix = f"{in_forward(site.module)}: {text}, in what {path!r} is given"
    yield Hypothesis("attention-mask", (Entered(path, change),), (site.module,), text, fix)


def _is_mask(array: Array) -> bool:
    """Flags, or numbers to be added to scores: 0, or so low that nothing is left."""
    if array.dtype.kind == "b":
        return array.ndim > 1
    if array.dtype.kind != "f" or array.ndim < 2:
        return False
    low = array <= _LOW
    return bool(low.any() and not array[~low].any())


def _looks(mask: Array) -> Array:
    return mask if mask.dtype.kind == "b" else mask > _LOW / 2


def _causal(rows: int, columns: int, shift: int) -> Array:
    """True where a place may be looked at."""
    return np.arange(columns)[None, :] <= np.arange(rows)[:, None] + columns - rows + shift


_RULES: dict[str, Callable[[Array], Array]] = {
    "only earlier places looked at": lambda s: np.where(
        _causal(s.shape[-2], s.shape[-1], 0), s, _LOW
    ),
    "only strictly earlier places looked at": lambda s: np.where(
        _causal(s.shape[-2], s.shape[-1], -1), s, _LOW
    ),
    "only later places looked at": lambda s: np.where(
        _causal(s.shape[-2], s.shape[-1], -1), _LOW, s
    ),
}


def _masked(rule: Callable[[Array], Array]) -> Callable[[list[Array]], list[Array]]:
    return lambda arrays: [rule(arrays[0]).astype(arrays[0].dtype), *arrays[1:]]


def _inverted(arrays: list[Array]) -> list[Array]:
    return [*arrays[:3], *(_opposite(mask) for mask in arrays[3:])]


def _opposite(mask: Array) -> Array:
    if mask.dtype.kind == "b":
        return ~mask
    return np.where(mask < _LOW / 10, 0.0, _LOW * 10).astype(mask.dtype)


def _first_bool_inverted(arrays: list[Array]) -> list[Array]:
    return [~a if a.dtype.kind == "b" else a for a in arrays]


def _first_bool_causal(arrays: list[Array]) -> list[Array]:
    return [
        np.broadcast_to(~_causal(a.shape[-2], a.shape[-1], 0), a.shape).copy()
        if a.dtype.kind == "b" and a.ndim > 1
        else a
        for a in arrays
    ]


def _without(index: int) -> Callable[[list[Array], Array], Array]:
    def change(tensors: list[Array], result: Array) -> Array:
        kept = [t for t in tensors if t.dtype == result.dtype and t.shape == result.shape]
        return kept[0] if kept else tensors[min(index, len(tensors) - 1)]

    return change


def _unmasked(tensors: list[Array], result: Array) -> Array:
    """Of a sum of scores and a mask, the scores."""
    masks = [
        i for i, t in enumerate(tensors) if t.dtype.kind == "f" and t.min(initial=0) < _LOW / 2
    ]
    if len(masks) != 1:
        return result
    return np.broadcast_to(tensors[1 - masks[0]], result.shape).astype(result.dtype)


def _call(call: FunctionCall, arguments: dict[str, Any]) -> InFunction:
    return InFunction(call.path, call.name, call.number, arguments)


def _hypothesis(edit: InFunction, text: str) -> Hypothesis:
    return Hypothesis(
        "attention-mask", (edit,), (edit.path,), text, f"{in_forward(edit.path)}: {text}"
    )
