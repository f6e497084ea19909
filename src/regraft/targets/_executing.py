"""Files that hold code of their own: TorchScript and TensorFlow's SavedModel.

To run one is to run whatever its author wrote, so nothing here is called unless the caller asks for
it by name. Only what goes in and comes out is seen: their modules are no longer Python's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.errors import MissingDependency, TargetError

if TYPE_CHECKING:
    from regraft.tensors import Array

Run = Callable[[Any], "dict[str, Array]"]


def torch_script(path: Path) -> Run:
    """The module that `torch.jit.save` wrote, on the CPU."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependency("torch", extra="torch", purpose=f"running {path.name}") from error
    from regraft.targets import torch as target

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it still runs what exists
        try:
            model = torch.jit.load(str(path), map_location="cpu")
        except Exception as error:  # the file's own code, too
            raise _refused(path, error, "a TorchScript file") from error
    return lambda inputs: target.run(model, inputs)


def saved_model(path: Path) -> Run:
    """The signature `serving_default` of a SavedModel, or the only one that it has."""
    try:
        import tensorflow
    except ImportError as error:
        raise MissingDependency("tensorflow", extra="", purpose=f"running {path.name}") from error
    folder = path if path.is_dir() else path.parent
    tf: Any = tensorflow
    try:
        model = tf.saved_model.load(str(folder))
    except Exception as error:  # the file's own code, too
        raise _refused(path, error, "a SavedModel") from error
    signatures = dict(model.signatures)
    chosen = signatures.get("serving_default")
    if chosen is None and len(signatures) == 1:
        chosen = next(iter(signatures.values()))
    if chosen is None:
        raise TargetError(
            path.name, found=f"signatures {', '.join(signatures) or 'none'}",
            expected="serving_default, or one alone",
            hint="run the signature that you mean yourself, and give rg.Probe its outputs",
        )  # fmt: skip
    names = list(chosen.structured_input_signature[1])

    def run(inputs: Any) -> dict[str, Array]:
        given = inputs
        if not isinstance(inputs, dict):
            row = inputs if isinstance(inputs, tuple) else (inputs,)
            if len(row) != 1 or len(names) != 1:  # a signature has names, and no order
                raise TargetError(
                    path.name, found=f"{len(row)} inputs in a row",
                    expected=f"inputs by name: {', '.join(names)}",
                    hint="give a dict of arrays",
                )  # fmt: skip
            given = {names[0]: row[0]}
        tensors = {name: tf.convert_to_tensor(np.asarray(value)) for name, value in given.items()}
        return {name: np.asarray(value) for name, value in chosen(**tensors).items()}

    return run


def _refused(path: Path, error: Exception, expected: str) -> TargetError:
    found = f"{type(error).__name__}: {error}".replace("\n", " ")[:400]
    hint = "run it where it was made, by the library that wrote it, and give rg.Probe its outputs"
    return TargetError(path.name, found=found, expected=expected, hint=hint)
