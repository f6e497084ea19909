from __future__ import annotations

import warnings
from pathlib import Path

from torch.package import PackageExporter

from formats.samples import Values, arrays, torch_tensors

SUFFIX = ".pt"


def make(path: Path) -> Values:
    with warnings.catch_warnings(), PackageExporter(path) as package:
        warnings.simplefilter("ignore")  # of typed storages, which it uses
        package.extern("**")
        package.save_pickle("model", "model.pkl", {"state_dict": torch_tensors(), "epoch": 3})
    return arrays()
