"""Lazy modules: parameters that have no shape before the first input comes.

What is loaded can tell the shapes, too, as `load_state_dict` lets it: where the source has a tensor
of the same name for each of them, and none contradicts the sizes that a module was made with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from regraft.errors import TargetError

if TYPE_CHECKING:
    from regraft.tensors import TensorInfo

_SIZES = ("out_features", "out_channels")


def lazy_among(tensors: Mapping[str, Any]) -> list[str]:
    """Names of tensors without a shape."""
    from torch.nn.parameter import is_lazy

    return [name for name, tensor in tensors.items() if is_lazy(tensor)]


def shapes_of(
    model: Any, tensors: Mapping[str, Any], source: Mapping[str, TensorInfo]
) -> dict[str, tuple[int, ...]]:
    """The shapes of lazy tensors, as the source's tensors of these names have them.

    **Raises** `TargetError` where it has none for some, or of other sizes than the model says.
    """
    lazy = lazy_among(tensors)
    sizes = dict(_sizes(model)) if lazy else {}
    unknown = [
        name
        for name in lazy
        if name not in source or (name in sizes and sizes[name] not in source[name].shape)
    ]
    if unknown:
        raise TargetError(
            f"{type(model).__name__}, {unknown[0]}",
            found=f"{len(lazy)} lazy parameters without a shape",
            expected="a model whose shapes are known, or a source with tensors of these names",
            hint="run the model once on an example input, or give a probe, whose inputs do that",
            problems=unknown,
        )
    return {name: tuple(source[name].shape) for name in lazy}


def _sizes(model: Any) -> Iterator[tuple[str, int]]:
    """How many outputs modules were made with, by the names of their tensors."""
    for path, module in model.named_modules():
        sizes = [size for a in _SIZES if isinstance(size := getattr(module, a, None), int)]
        for leaf in ("weight", "bias"):
            for size in sizes[:1]:
                yield (f"{path}.{leaf}" if path else leaf), size
