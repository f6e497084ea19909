"""The main job on data that needs no download; what `regraft demo` runs.

A small convolutional network is defined twice, independently: in Keras (`keras_digits`) and in
PyTorch (`torch_digits`, other names and nesting, channels first, another head). The Keras one
learns one half of scikit-learn's handwritten digits; its `.h5` file is then used for the PyTorch
one, on the other half under noise, with three labelled examples of each digit.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from regraft.demonstration.experiment import Found

__all__ = ["Found", "run"]


def run(folder: Path, seeds: int = 5, say: Callable[[str], None] = lambda _: None) -> Found:
    """Runs the demonstration, keeping its files in `folder`; the pretrained one is made once.

    **Raises** `MissingDependency` where scikit-learn, Keras or PyTorch are not installed.
    """
    # Keras on PyTorch, unless the caller runs it on something else: one framework fewer to have.
    os.environ.setdefault("KERAS_BACKEND", "torch")
    from regraft.demonstration import experiment

    folder.mkdir(parents=True, exist_ok=True)
    return experiment.run(folder, seeds, say)
