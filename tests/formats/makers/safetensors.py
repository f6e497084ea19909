from __future__ import annotations

from pathlib import Path

import safetensors.numpy

from formats.samples import Values, arrays

SUFFIX = ".safetensors"


def make(path: Path) -> Values:
    safetensors.numpy.save_file(arrays(), path, metadata={"made": "here"})
    return arrays()
