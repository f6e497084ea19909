from __future__ import annotations

import pickle
from pathlib import Path

from formats.samples import Values, arrays

SUFFIX = ".pkl"


def make(path: Path) -> Values:
    values = arrays()
    nested = {"params": {"stem": {"weight": values["stem.weight"]}, "half": values["half"]}}
    path.write_bytes(pickle.dumps(nested))
    return {"stem/weight": values["stem.weight"], "half": values["half"]}
