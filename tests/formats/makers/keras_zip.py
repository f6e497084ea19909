from __future__ import annotations

from pathlib import Path

from formats.samples import Values, keras_model

SUFFIX = ".keras"


def make(path: Path) -> Values:
    model, values = keras_model()
    model.save(path)
    return values
