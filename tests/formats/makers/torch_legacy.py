from __future__ import annotations

from pathlib import Path

import torch

from formats.samples import Values, arrays, torch_tensors

SUFFIX = ".pt"


def make(path: Path) -> Values:
    torch.save({"state_dict": torch_tensors()}, path, _use_new_zipfile_serialization=False)
    return arrays()
