"""What people do by hand, to compare with: the naive loop and `strict=False`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from regraft.tensors import Array

_SAME_WORD = {"gamma": "weight", "kernel": "weight", "beta": "bias",
              "moving_mean": "running_mean", "moving_variance": "running_var"}  # fmt: skip


def naive_loop(model: Any, source: Mapping[str, Array]) -> int:
    """For each tensor the first source tensor with the same last word and shape; how many fit.

    Kernels are brought to PyTorch's layout first, as a careful person would.
    """
    found = 0
    state = model.state_dict()
    laid_out = {name: _channels_first(array) for name, array in source.items()}
    for name, tensor in state.items():
        word = name.rpartition(".")[2]
        for other, array in laid_out.items():
            last = other.rpartition("/")[2].partition(":")[0]
            if _SAME_WORD.get(last, last) == word and array.shape == tuple(tensor.shape):
                state[name] = torch.from_numpy(array.copy())
                found += 1
                break
    model.load_state_dict(state)
    return found


def strict_false(model: Any, source: Mapping[str, Array]) -> int:
    """`load_state_dict(strict=False)` with the source's names; how many tensors it loaded."""
    state = {name: torch.from_numpy(_channels_first(a).copy()) for name, a in source.items()}
    result = model.load_state_dict(state, strict=False)
    return len(state) - len(result.unexpected_keys)


def _channels_first(array: Array) -> Array:
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return array.T if array.ndim == 2 else array
