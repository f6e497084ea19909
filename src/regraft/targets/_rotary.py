"""Which layout of rotary embeddings a live PyTorch model has, and how many heads: by experiment.

Rotating a pair of rows of a query projection and the same pair of the key projection by one angle
leaves their product as it is if the rotary embedding turns just these two together: rotations of
one plane commute. So a model's outputs stay the same for pairs (i, i + d/2) of each head in a model
of that layout, and for pairs (2i, 2i + 1) in one of the other (Su and others 2021,
arXiv:2104.09864).

Of the value projection and the one behind the attention, rows and columns of one head are a basis
that can be turned at will, those of two heads are not: the outputs stay the same where planes
lie within heads, and so the widest ones that do so are as wide as a head.

The model is run on a few tokens, or on an image or on vectors in their place where that is what its
first layer takes; its weights are put back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

import numpy as np

from regraft.tensors import Array, Rows

_TOKENS = 7
_UNCHANGED, _CHANGED = 1e-4, 1e-3
_MOST_WIDTHS = 12
# The weights are held aside meanwhile. What is open of larger models a smaller one of the family
# tells (`Plan.for_target`), or a probe.
_MOST_BYTES = 1 << 28


class Rotary(NamedTuple):
    """`layout`: `half`, `interleaved`, or `none` where no rotary embedding is at work; `width`: of
    one head, 0 where the experiment does not tell."""

    layout: str
    width: int = 0


def rotary_of(model: Any, projections: Sequence[tuple[Rows, Rows]]) -> Rotary | None:
    """What the experiment shows; `None` where the model cannot be run on one sequence alone.

    **Arguments:**

    - `projections`: where the query and the key kernel, `[out, in]`, of each attention are.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    pairs = [tuple(_taken(weights, rows) for rows in pair) for pair in projections]
    if not pairs or any(w is None or w.is_meta or w.ndim != 2 for pair in pairs for w in pair):
        return None
    biases = [_taken(weights, _bias(rows)) for pair in projections for rows in pair]
    rows = [*pairs, *((bias,) for bias in biases if bias is not None)]
    return _run(model, lambda inputs: _experiment(model, inputs, rows))


def head_width_of(model: Any, value: Rows, outputs: Sequence[str]) -> int | None:
    """How many rows of the value projection are one head; `None` where that does not show.

    **Arguments:**

    - `outputs`: names of the kernels `[out, in]` of which one may be the projection behind.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    kernel, bias = _taken(weights, value), _taken(weights, _bias(value))
    behind = [w.detach().T for name in outputs if (w := weights.get(name)) is not None]
    if kernel is None or kernel.is_meta:
        return None
    rows = [kernel] if bias is None else [kernel, bias]
    found = _run(model, lambda inputs: [_head_width(model, inputs, rows, w) for w in behind])
    widths = {width for width in found or () if width}
    return widths.pop() if len(widths) == 1 else None


T = TypeVar("T")


def _run(model: Any, experiment: Callable[[Any], T]) -> T | None:
    """The experiment, on inputs that the model takes and with distinct weights; `None` where it
    would take much memory, or cannot be made."""
    import torch

    if sum(p.nbytes for p in model.parameters()) > _MOST_BYTES:
        return None
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad(), _distinct(model):
            for inputs in _inputs(model):
                with suppress(Exception):  # a model may ask for other inputs, and raise anything
                    return experiment(inputs)
    except Exception:  # some parameters cannot be written
        pass
    finally:
        for module, flag in flags:
            module.training = flag
    return None


def _head_width(model: Any, inputs: Any, value: Sequence[Any], behind: Any) -> int | None:
    before = _outputs(model, inputs)
    scale = float(np.abs(before).max()) or 1.0

    def change(width: int, *weights: Any) -> float:
        with _turned([(weight,) for weight in weights], width):
            return float(np.abs(np.subtract(_outputs(model, inputs), before)).max()) / scale

    common = math.gcd(value[0].shape[0], behind.shape[0])
    widths = [n for n in range(common, 1, -1) if common % n == 0 and n % 2 == 0][:_MOST_WIDTHS]
    moved = {width: change(width, *value, behind) for width in widths}
    head = next((width for width in widths if moved[width] < _UNCHANGED), 0)
    sure = all(
        moved[width] < _UNCHANGED if head % width == 0 else moved[width] > _CHANGED
        for width in widths
    )
    # The value projection alone has to make a difference, or nothing was shown.
    return head if head and sure and change(head, *value) > _CHANGED else None


def _taken(weights: Mapping[str, Any], rows: Rows) -> Any:
    """The part of a parameter, which shares its memory; `None` where there is none."""
    weight = weights.get(rows.name)
    return None if weight is None else weight.detach()[rows.start : rows.stop]


def _bias(rows: Rows) -> Rows:
    return rows._replace(name=rows.name.removesuffix("weight") + "bias")


def _inputs(model: Any) -> Iterator[Any]:
    """What a model may take: tokens, images for its first convolution, or vectors for its first
    dense layer."""
    import torch

    yield torch.arange(1, _TOKENS + 1)[None]
    generator = torch.Generator().manual_seed(1)
    first = next(
        (m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))), None
    )
    if isinstance(first, torch.nn.Conv2d):
        for size in _image_sizes(model):
            shape = (1, first.in_channels, *size)
            yield torch.randn(shape, generator=generator, dtype=first.weight.dtype)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            weight = module.weight
            yield torch.randn(
                (1, _TOKENS, module.in_features), generator=generator, dtype=weight.dtype
            )
            return


def _image_sizes(model: Any) -> Iterator[tuple[int, int]]:
    """Sizes that a model of images says it takes, and one that most take."""
    for holder in (getattr(model, "config", None), getattr(model, "patch_embed", None), model):
        for name in ("image_size", "img_size"):
            size = getattr(holder, name, None)
            if isinstance(size, int):
                yield size, size
            elif isinstance(size, (tuple, list)) and len(size) == 2:
                yield int(size[0]), int(size[1])
    yield 64, 64


def _experiment(model: Any, inputs: Any, pairs: Sequence[tuple[Any, ...]]) -> Rotary | None:
    before = _outputs(model, inputs)
    scale = float(np.abs(before).max()) or 1.0

    def change(width: int) -> float:
        with _turned(pairs, width):
            return float(np.abs(np.subtract(_outputs(model, inputs), before)).max()) / scale

    adjacent = change(0)
    sizes = [w.shape[0] for pair in pairs for w in pair]
    common = math.gcd(*sizes)
    widths = [n for n in range(2, common + 1, 2) if common % n == 0]
    halves = {width: change(width) for width in sorted(widths, reverse=True)[:_MOST_WIDTHS]}
    # Two rows to a head: both layouts are one.
    fitting = [w for w, moved in halves.items() if moved < _UNCHANGED and w > 2]
    sure = [w for w, moved in halves.items() if moved > _CHANGED]
    if adjacent < _UNCHANGED and fitting:
        return Rotary("none", fitting[0] if sure else 0)
    if adjacent < _UNCHANGED and len(sure) == len([w for w in halves if w > 2]):
        return Rotary("interleaved")
    if adjacent > _CHANGED and len(fitting) == 1:
        return Rotary("half", fitting[0])
    return None


def _outputs(model: Any, inputs: Any) -> Array:
    result = model(inputs)
    for key in ("logits", "last_hidden_state"):
        result = getattr(result, key, result)
    result = result[0] if isinstance(result, (tuple, list)) else result
    return result.double().numpy()


@contextmanager
def _distinct(model: Any) -> Generator[None]:
    """Random values in place of the model's own, which may be all alike."""
    import torch

    held = {name: p.detach().clone() for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    try:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                spread = (
                    1.0 / math.sqrt(max(1, parameter[0].numel())) if parameter.ndim > 1 else 0.1
                )
                noise = torch.randn(parameter.shape, generator=generator) * spread
                centre = 1.0 if parameter.ndim == 1 else 0.0
                parameter.copy_(noise.to(parameter.dtype) + centre)
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.copy_(held[name])


@contextmanager
def _turned(pairs: Sequence[tuple[Any, ...]], width: int) -> Generator[None]:
    """Rows of all projections turned in planes: halves of heads of `width` rows, or neighbours."""
    held = [(w, w.clone()) for pair in pairs for w in pair]
    try:
        for weight, before in held:
            weight.copy_(_rotated(before, width))
        yield
    finally:
        for weight, before in held:
            weight.copy_(before)


def _rotated(weight: Any, width: int) -> Any:
    """Each plane of a head by an angle of its own, the same in every head."""
    import torch

    rows = weight.shape[0]
    if width:
        cut = weight.reshape(rows // width, 2, width // 2, -1)
        a, b = cut[:, 0], cut[:, 1]
        angles = torch.arange(1, width // 2 + 1, dtype=weight.dtype)[None, :, None] * 0.7
    else:
        cut = weight.reshape(rows // 2, 2, -1)
        a, b = cut[:, 0], cut[:, 1]
        angles = torch.full((1, 1), 0.7, dtype=weight.dtype)
    turned = torch.stack(
        (a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()), 1
    )
    return turned.reshape(weight.shape)
