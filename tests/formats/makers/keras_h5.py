from __future__ import annotations

import logging
from pathlib import Path

from formats.samples import Values, keras_model

SUFFIX = ".h5"


def make(path: Path) -> Values:
    logging.getLogger("absl").setLevel(logging.ERROR)
    model, values = keras_model()
    model.save(path)
    return {f"{name.partition('/')[0]}/{model.name}/{name}": v for name, v in values.items()}
