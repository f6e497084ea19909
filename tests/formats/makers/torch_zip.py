from __future__ import annotations

from pathlib import Path

import torch

from formats.samples import Values, arrays, torch_tensors

SUFFIX = ".pth"


def make(path: Path) -> Values:
    torch.save({"state_dict": torch_tensors(), "epoch": 3}, path)
    return arrays()
