"""Another number of heads: the tensors are the same, and so are all shapes but those in between.

Tried in the attributes (with the width of a head and the scale that follow from it), and in the
reshapes of the code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from regraft.calls import Edit, InFunction, Setting
from regraft.verification.causes._arrays import Array
from regraft.verification.causes._scene import Hypothesis, Scene, in_forward, where

_HEADS = ("num_heads", "n_heads", "n_head", "nhead", "heads", "num_attention_heads", "h", "nh",
          "num_head", "_num_heads")  # fmt: skip
_WIDTHS = ("head_dim", "attention_head_size", "d_head", "d_k", "dim_head", "head_size", "hd", "dh",
           "dim_per_head", "_key_dim", "_head_dim", "_value_dim")  # fmt: skip
_SCALES = ("scale", "scaling", "attn_scale", "norm_factor", "_inverse_sqrt_key_dim")
_RESHAPES = ("view", "reshape", "unflatten")


def propose(scene: Scene) -> Iterable[Hypothesis]:
    for path in scene.inner():
        settings = scene.modules[path].settings
        for name in _HEADS:
            heads = settings.get(name)
            if isinstance(heads, int) and not isinstance(heads, bool) and heads > 0:
                yield from _attributes(scene, path, name, heads)
    yield from _reshapes(scene)


def _attributes(scene: Scene, path: str, name: str, heads: int) -> Iterator[Hypothesis]:
    settings = scene.modules[path].settings
    width = next((settings[w] for w in _WIDTHS if isinstance(settings.get(w), int)), None)
    total = heads * width if width else _total(scene)
    for other in _divisors(total):
        if other == heads:
            continue
        values: dict[str, Any] = {name: other}
        values |= {w: total // other for w in _WIDTHS if isinstance(settings.get(w), int)}
        for scaled in (True, False):
            more = rescaled(settings, heads, other) if scaled else {}
            if scaled and not more:
                continue
            yield Hypothesis(
                "head-count", (Setting(path, values | more),), (path,),
                f"{other} heads instead of {heads}", f"{where(path)}.{name} = {other}",
            )  # fmt: skip


def rescaled(settings: Mapping[str, Any], heads: int, other: int) -> dict[str, float]:
    """The scales that follow: scores are multiplied by them, and divided by a `norm_factor`."""
    root = (other / heads) ** 0.5
    return {
        s: settings[s] / root if s == "norm_factor" else settings[s] * root
        for s in _SCALES
        if isinstance(settings.get(s), float)
    }


def _reshapes(scene: Scene) -> Iterator[Hypothesis]:
    """Reshapes that split the last axis in two, all of them alike, and those that follow."""
    splits = [
        call
        for call in scene.calls(*_RESHAPES)
        if call.shapes and len(call.output) == len(call.shapes[0]) + 1
        and call.output[: len(call.shapes[0]) - 1] == call.shapes[0][:-1]
    ]  # fmt: skip
    for heads in dict.fromkeys(call.output[-2] for call in splits):
        alike = [call for call in splits if call.output[-2] == heads]
        total = heads * alike[0].output[-1]
        for other in _divisors(total):
            if other == heads:
                continue
            edits: list[Edit] = [
                InFunction(c.path, c.name, c.number, instead=_split(other)) for c in alike
            ]
            paths = tuple(dict.fromkeys(call.path for call in alike))
            joins: list[Edit] = [
                InFunction(c.path, c.name, c.number, instead=_joined)
                for c in scene.calls(*_RESHAPES)
                if c.shapes and len(c.shapes[0]) == len(c.output) + 1 and c.output[-1] == total
            ]
            softmax = list(scene.calls("softmax"))
            factor = (other / heads) ** 0.5
            scaled: list[Edit] = [
                InFunction(c.path, c.name, c.number, before=_times(factor)) for c in softmax
            ]
            for more in ([], scaled) if scaled else ([],):
                yield Hypothesis(
                    "head-count", (*edits, *joins, *more), paths,
                    f"{other} heads instead of {heads}",
                    f"{in_forward(paths[0])}: {other} heads of width {total // other}",
                )  # fmt: skip


def _split(heads: int) -> Callable[[list[Array], Array], Array]:
    return lambda tensors, _: tensors[0].reshape(*tensors[0].shape[:-1], heads, -1)


def _joined(tensors: list[Array], result: Array) -> Array:
    return tensors[0].reshape((*result.shape[:-1], -1))


def _times(factor: float) -> Callable[[list[Array]], list[Array]]:
    return lambda arrays: [(arrays[0] * factor).astype(arrays[0].dtype), *arrays[1:]]


def _total(scene: Scene) -> int:
    inputs = scene.site.inputs
    return inputs[0].shape[-1] if inputs and inputs[0].ndim > 1 else 0


def _divisors(total: int) -> list[int]:
    return [n for n in range(1, total + 1) if total % n == 0 and n <= 128]
