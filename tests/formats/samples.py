"""Samples of the formats, made by the formats' own libraries, with the values that are in them.

`makers/` has one module per format; the conformance tests enumerate the registry: a format without
a maker fails them. A maker writes a file, or a folder where the format is one.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch

from formats import makers

Values = dict[str, np.ndarray[Any, Any]]


def arrays(seed: int = 0) -> Values:
    generator = np.random.default_rng(seed)
    return {
        "stem.weight": generator.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "stem.bias": generator.normal(size=4).astype(np.float32),
        "head.weight": generator.normal(size=(5, 4)).astype(np.float64),
        "half": generator.normal(size=(7,)).astype(np.float16),
        "count": np.array(3, np.int64),
        "flags": np.array([True, False, True]),
        "empty": np.zeros((0, 4), np.float32),
    }


def torch_tensors() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value.copy()) for name, value in arrays().items()}


def keras_model() -> tuple[Any, Values]:
    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((8, 8, 3)), layers.Conv2D(4, 3, name="stem"),
         layers.BatchNormalization(name="norm"), layers.Flatten(), layers.Dense(2, name="head")]
    )  # fmt: skip
    generator = np.random.default_rng(1)
    for variable in model.weights:
        variable.assign(generator.normal(size=variable.shape))
    values = {"/".join(v.path.split("/")[-2:]): np.asarray(v) for v in model.weights}
    return model, values


def all_makers() -> dict[str, tuple[str, Callable[[Path], Values]]]:
    """Ending of the path and maker, by format."""
    modules = {m.name: importlib.import_module(f"formats.makers.{m.name}")
               for m in pkgutil.iter_modules(makers.__path__)}  # fmt: skip
    return {name: (module.SUFFIX, module.make) for name, module in modules.items()}
