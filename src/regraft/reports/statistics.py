"""What the values of tensors look like."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from regraft.reports.listing import shape_text
from regraft.tensors import TensorInfo
from regraft.values import not_finite

if TYPE_CHECKING:
    from regraft.tensors import Array


def rows(
    infos: Iterable[TensorInfo], read: Callable[[str], Array]
) -> Iterator[tuple[str, str, str, str, str]]:
    """Name, shape, range, mean and deviation of each tensor, and how many values are no numbers."""
    for info in infos:
        array = read(info.name)
        odd = not_finite(array)
        if array.size == 0 or array.dtype.kind == "c":
            yield info.name, shape_text(info.shape), "", "", ""
            continue
        values = array.astype(np.float64)
        finite = values[np.isfinite(values)] if odd else values
        low, high = (finite.min(), finite.max()) if finite.size else (np.nan, np.nan)
        spread = f"[{low:.4g}, {high:.4g}]"
        middle = f"mean {finite.mean():.4g}  std {finite.std():.4g}" if finite.size else ""
        yield info.name, shape_text(info.shape), spread, middle, f"{odd} NaN or Inf" if odd else ""
