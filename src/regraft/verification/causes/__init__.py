"""Why two implementations part: one file per kind of cause, found by listing this folder.

A cause is a module, named as its kind with `_` for `-`, whose docstring explains it, with
`propose(scene) -> Iterable[Hypothesis]`: changes of the target that would explain what is seen at a
site. Nothing is claimed by it: each is tried, and what makes the outputs agree is proven.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from typing import Protocol

from regraft.verification.causes._scene import Hypothesis, Scene

__all__ = ["Cause", "Hypothesis", "Scene", "kinds", "load", "proposals"]


class Cause(Protocol):
    """The face of a cause's module."""

    __doc__: str | None

    @staticmethod
    def propose(scene: Scene) -> Iterable[Hypothesis]: ...


def kinds() -> list[str]:
    """The closed list of kinds, sorted."""
    names = (m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return sorted(name.replace("_", "-") for name in names)


def load(kind: str) -> Cause:
    return importlib.import_module(f"{__name__}.{kind.replace('-', '_')}")  # pyright: ignore[reportReturnType]


def proposals(scene: Scene) -> Iterator[Hypothesis]:
    """What all kinds propose. The one whose tensors are simply other ones comes last, as the kinds
    that say how they differ explain more."""
    for kind in sorted(kinds(), key=lambda kind: kind == "weights"):
        yield from load(kind).propose(scene)
