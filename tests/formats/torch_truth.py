"""What torch itself loads, by the names that a listing has, as arrays to compare to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

from formats.samples import Values
from regraft.checkpoints import Checkpoint


def named(value: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Tensors and arrays of nested dicts and lists, by their keys with dots."""
    if isinstance(value, Mapping):
        parts: Any = value.items()
    elif isinstance(value, (list, tuple)):
        parts = enumerate(value)
    else:
        if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
            yield ".".join(prefix), value
        return
    for key, part in parts:
        yield from named(part, (*prefix, str(key)))


def array(value: Any) -> np.ndarray[Any, Any]:
    """A tensor's values: dense, dequantized, resolved; in ml_dtypes' types where numpy has none."""
    if not isinstance(value, torch.Tensor):
        found = np.asarray(value)
        return found.astype(found.dtype.newbyteorder("="))
    tensor = value.detach()
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
    tensor = tensor.resolve_conj().resolve_neg().contiguous()
    name = str(tensor.dtype).removeprefix("torch.")
    extended = getattr(ml_dtypes, name, None)
    if extended is None:
        return tensor.numpy()
    integers = {1: torch.uint8, 2: torch.int16}[tensor.element_size()]
    return tensor.view(integers).numpy().view(extended)


def loaded(path: Path) -> Values:
    found = torch.load(path, map_location="cpu", weights_only=False)
    return {name: array(value) for name, value in named(found)}


def assert_same(found: Checkpoint, truth: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Names, shapes, dtypes and bytes, of whole tensors and of slices."""
    assert sorted(found) == sorted(truth), set(found) ^ set(truth)
    for name, expected in truth.items():
        assert found[name].shape == expected.shape, name
        read = found.read(name)
        assert read.dtype == expected.dtype, name
        assert read.tobytes() == expected.tobytes(), name
        for part in _slices(expected.shape):
            assert found.read(name, part).tobytes() == expected[part].tobytes(), (name, part)


def _slices(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    if shape:
        yield (slice(1, 2), *(slice(0, n) for n in shape[1:]))
        yield tuple(slice(n // 3, n - n // 4) for n in shape)
        yield (slice(1, 1), *(slice(0, n) for n in shape[1:]))
