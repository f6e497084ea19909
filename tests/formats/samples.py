"""One sample of each format, made by the format's own library, with the values that are in it.

The conformance tests enumerate the registry: a format without a maker here fails them.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import safetensors.numpy
import torch

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


def _tensors() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value.copy()) for name, value in arrays().items()}


def _model() -> tuple[Any, Values]:
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


def keras_h5(path: Path) -> Values:
    logging.getLogger("absl").setLevel(logging.ERROR)
    model, values = _model()
    model.save(path)
    return {f"{name.partition('/')[0]}/{model.name}/{name}": v for name, v in values.items()}


def keras_weights_h5(path: Path) -> Values:
    model, values = _model()
    model.save_weights(path)
    return values


def keras_zip(path: Path) -> Values:
    model, values = _model()
    model.save(path)
    return values


def npy(path: Path) -> Values:
    values = arrays()
    nested = {"stem": {"weight": values["stem.weight"], "bias": values["stem.bias"]}}
    np.save(path, np.array(nested, dtype=object), allow_pickle=True)
    return {"stem/weight": values["stem.weight"], "stem/bias": values["stem.bias"]}


def npz(path: Path) -> Values:
    np.savez(path, **arrays())  # pyright: ignore[reportArgumentType]
    return arrays()


def pickle_file(path: Path) -> Values:
    values = arrays()
    nested = {"params": {"stem": {"weight": values["stem.weight"]}, "half": values["half"]}}
    path.write_bytes(pickle.dumps(nested))
    return {"stem/weight": values["stem.weight"], "half": values["half"]}


def safetensors_file(path: Path) -> Values:
    safetensors.numpy.save_file(arrays(), path, metadata={"made": "here"})
    return arrays()


def torch_legacy(path: Path) -> Values:
    torch.save({"state_dict": _tensors()}, path, _use_new_zipfile_serialization=False)
    return arrays()


def torch_zip(path: Path) -> Values:
    torch.save({"state_dict": _tensors(), "epoch": 3}, path)
    return arrays()


# Format, ending of the file, maker.
MAKERS: dict[str, tuple[str, Callable[[Path], Values]]] = {
    "keras_h5": (".h5", keras_h5),
    "keras_weights_h5": (".weights.h5", keras_weights_h5),
    "keras_zip": (".keras", keras_zip),
    "npy": (".npy", npy),
    "npz": (".npz", npz),
    "pickle_file": (".pkl", pickle_file),
    "safetensors": (".safetensors", safetensors_file),
    "torch_legacy": (".pt", torch_legacy),
    "torch_zip": (".pth", torch_zip),
}
