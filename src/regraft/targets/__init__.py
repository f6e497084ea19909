"""One file per framework; the registry finds them by listing this folder.

A target is a module with

- `owns(model) -> bool`: whether the object is a model of this framework. It looks the
  framework up in `sys.modules` and never imports it: a model that exists was made by a
  framework that the caller imported (einops' `get_backend` does the same);
- `skeleton(model) -> Skeleton`: names, shapes, dtypes, module classes, ties, in definition
  order (`order="definition"`), without touching values;
- `sink(model) -> Sink`: sets and reads tensors by the skeleton's names;
- `run(model, inputs) -> dict[str, numpy array]`: the outputs in inference mode, with no
  gradient; `inputs` is an array, a tuple of positional arrays or a dict of keyword arrays.
  The model's training flags are put back afterwards;
- `rotary(model, projections)` and `head_width(model, value, outputs)`, optional: which rotary
  layout, and heads of which width, a live model has, by experiment;
- `followed(model, inputs) -> Skeleton`, optional: the skeleton with the dataflow of a run on
  example inputs, for models whose code alone does not tell it, or a note of why there is none;
- `trainable(model, names)`: sets which tensors gradients flow to.

`regraft.targets.callables` builds a model from `module:callable`. Third parties add targets
through the entry point group `regraft.targets`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from regraft.errors import TargetError
from regraft.sinks import Sink
from regraft.tensors import Skeleton

if TYPE_CHECKING:
    from regraft.calls import Taps
    from regraft.tensors import Array

    Inputs: TypeAlias = Array | tuple[Array, ...] | dict[str, Array]


class Target(Protocol):
    """The face of a target module; see this package's docstring."""

    __name__: str

    @staticmethod
    def owns(model: object) -> bool: ...

    @staticmethod
    def skeleton(model: object) -> Skeleton: ...

    @staticmethod
    def sink(model: object) -> Sink: ...

    @staticmethod
    def run(model: object, inputs: Inputs) -> dict[str, Array]: ...

    @staticmethod
    def trainable(model: object, names: Collection[str]) -> None: ...


@cache
def names() -> tuple[str, ...]:
    """Names of the built-in targets, sorted; importing none of them."""
    hidden = ("_", "callables")
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in found if not name.startswith(hidden)))


def load(name: str) -> Target:
    """The target module of that name."""
    return importlib.import_module(f"{__name__}.{name}")  # pyright: ignore[reportReturnType]


# Files that say themselves what is computed, by format, and the module that runs them.
_RUNNABLE = {"onnx": ("_onnx_taps", "OnnxTaps")}


def runner(format: str, path: Path) -> Taps | None:
    """Taps on a file that a runtime of its own runs; None for files that hold weights alone.

    **Raises** `MissingDependency` without that runtime, `TargetError` where it does not take it.
    """
    if format not in _RUNNABLE or not path.is_file():
        return None
    module, name = _RUNNABLE[format]
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)(path)


# Files that hold code, by format, and what runs them where the caller asks for that.
_EXECUTABLE = {"torch_zip": "torch_script", "tensorflow_saved_model": "saved_model"}


def executor(format: str, path: Path) -> Callable[[Any], dict[str, Array]] | None:
    """What runs the code in a file; None for files of other formats. **Only for files that the
    caller trusts and has asked to run.** **Raises** `MissingDependency`, `TargetError`."""
    if format not in _EXECUTABLE:
        return None
    return getattr(importlib.import_module(f"{__name__}._executing"), _EXECUTABLE[format])(path)


def runnable() -> list[str]:
    """Formats of files that `runner` runs."""
    return sorted(_RUNNABLE)


def find(model: object) -> Target:
    """The target module that owns a model. **Raises** `TargetError` where none does."""
    for name in names():
        target = load(name)
        if target.owns(model):
            return target
    for entry in entry_points(group="regraft.targets"):
        target = entry.load()
        if target.owns(model):
            return target
    raise TargetError(
        f"{type(model).__module__}.{type(model).__qualname__}",
        found="an object that is no model of a known framework",
        expected=f"a live model of {', '.join(names())}, a path, or 'module:callable'",
    )
