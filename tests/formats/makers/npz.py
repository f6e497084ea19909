from __future__ import annotations

from pathlib import Path

import numpy as np

from formats.samples import Values, arrays

SUFFIX = ".npz"


def make(path: Path) -> Values:
    np.savez(path, **arrays())  # pyright: ignore[reportArgumentType]
    return arrays()
