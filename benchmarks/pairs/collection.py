"""What a pair is, and the registry of all pairs."""

from __future__ import annotations

import importlib
import pkgutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

# In the order of the table.
Kind = Literal[
    "wrappers", "layouts", "attention", "numbering", "reparametrised", "transfer", "traps"
]
KINDS: tuple[str, ...] = (
    "wrappers", "layouts", "attention", "numbering", "reparametrised", "transfer", "traps"
)  # fmt: skip


@dataclass(frozen=True)
class Sets:
    """What a person would say about a transfer, as templates of names (`*`, `{i}`).

    `fresh` and `adapted` name target tensors, `unused` source tensors.
    """

    fresh: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


@dataclass
class Built:
    """A pair, built.

    - `source`: the path of a checkpoint, or a live model or tree. `container`: its part to open.
    - `target`: a live model or tree with values of its own.
    - `outputs`: what a right target answers, an array or a dict of arrays by output name. `None`:
      what the target answers once `truth` has loaded it.
    - `inputs`: given to the target as `rg.Probe` takes them; or `run`, which calls the target.
    - `truth`: loads the target by a mapping written by hand and returns it (a new tree where
      arrays are immutable). It proves that the pair is what it says.
    - `sets`: for a transfer, the answer. For others, what may be listed as fresh, adapted or
      unused; whoever loads must then say so, but the outputs must be equal all the same.
    - `accept`: codes of warnings that are no doubt here (values that a narrower dtype loses).
    - `tolerance`: largest error, relative to the largest output, that is rounding.
    """

    source: Any
    target: Any
    outputs: Any = None
    inputs: Any = None
    run: Callable[[Any], Any] | None = None
    truth: Callable[[Any], Any] | None = None
    container: str | None = None
    sets: Sets = field(default_factory=Sets)
    accept: tuple[str, ...] = ()
    tolerance: float = 1e-4


@dataclass(frozen=True)
class Pair:
    """One pair; `build(folder)` makes it, with files below `folder`.

    `expects`: `solvable` (an exact mapping exists), `transfer` (the sets are known) or `trap`
    (success must not be claimed). `reveals`: whether the plan itself can show a trap, or only
    outputs can, so that it takes a probe.
    """

    name: str
    kind: Kind
    family: str
    build: Callable[[Path], Built]
    expects: Literal["solvable", "transfer", "trap"]
    reveals: Literal["plan", "probe"]

    def made(self) -> tuple[Built, tempfile.TemporaryDirectory[str]]:
        """The pair, and the folder of its files, which lives as long as the caller keeps it."""
        folder = tempfile.TemporaryDirectory(prefix="pair-")
        return self.build(Path(folder.name)), folder


PAIRS: dict[str, Pair] = {}
Builder = Callable[[Path], Built]


def pair(
    name: str, kind: Kind, *, reveals: Literal["plan", "probe"] = "plan"
) -> Callable[[Builder], Builder]:
    """Registers a builder. The kinds `transfer` and `traps` tell what is expected."""
    expects = {"transfer": "transfer", "traps": "trap"}.get(kind, "solvable")

    def register(build: Builder) -> Builder:
        if name in PAIRS:
            raise ValueError(f"two pairs are called {name!r}")
        family = build.__module__.rpartition(".")[2]
        PAIRS[name] = Pair(name, kind, family, build, expects, reveals)  # pyright: ignore[reportArgumentType]
        return build

    return register


def collect() -> dict[str, Pair]:
    """All pairs. Frameworks are imported only when a pair is built."""
    from benchmarks.pairs import families

    for module in pkgutil.iter_modules(families.__path__):
        importlib.import_module(f"{families.__name__}.{module.name}")
    return PAIRS
