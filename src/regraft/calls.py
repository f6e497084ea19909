"""What a running model tells: calls of its modules and of functions, and changes to try on them.

Targets record calls with the taps of their framework and carry changes out; verification compares
and decides. Neither sees the other: these values, all of plain arrays, are what they share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from regraft.tensors import Array

    Arrays: TypeAlias = Sequence[Array]
    Rewrite: TypeAlias = Callable[[list[Array], list[Array]], list[Array]]


@dataclass(frozen=True)
class Module:
    """A module of a model. `settings`: its plain attributes (numbers, texts, flags)."""

    path: str
    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    children: tuple[str, ...] = ()
    mode: bool = False
    """Whether it is in training mode."""
    step: bool = False
    """Whether it may be a step within a layer, so that what goes in may be a value of its inside
    (the affine part of a norm that a graph spells out)."""


@dataclass(frozen=True)
class Call:
    """One call of a module. `number` counts the calls of this path; `inside` are the paths of the
    modules that were running, outermost first; `frame` is the taps' own, to run it again."""

    path: str
    number: int
    inside: tuple[str, ...]
    frame: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class FunctionCall:
    """One call of a function of the framework, in the code of the module `path`.

    `number` counts the calls of this function in this call of the module. `arguments` are plain
    ones by name; `shapes` those of the tensors among the arguments, in their order; `output` that
    of the result."""

    path: str
    name: str
    number: int
    arguments: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]


class Watcher(Protocol):
    """Hears of each call, and may put other values in the place of those that flow.

    Arrays are the tensors among the arguments (or results) in their order. `None` leaves all as
    they are, and in a list the one at that place.
    """

    def enter(self, call: Call, inputs: list[Array]) -> Sequence[Array | None] | None: ...

    def leave(self, call: Call, outputs: list[Array]) -> Sequence[Array | None] | None: ...

    def function(self, call: FunctionCall) -> None: ...


@dataclass(frozen=True)
class Setting:
    """Attributes of a module, changed. Arrays are written into tensors."""

    path: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Rewritten:
    """The results of a module, made anew from its inputs and its results."""

    path: str
    change: Rewrite


@dataclass(frozen=True)
class Entered:
    """The inputs of a module, changed: before they are compared, as the code around it would, or
    `inside` it, after that."""

    path: str
    change: Callable[[list[Array]], list[Array]]
    inside: bool = False


@dataclass(frozen=True)
class InFunction:
    """A function call inside a module's code, changed.

    - `number`: which of the calls of this function; -1 is each.
    - `arguments`: arguments by name, in place of those given.
    - `before`: changes its tensors. `instead`: its result from its tensors and its result.
    """

    path: str
    name: str
    number: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    before: Callable[[list[Array]], list[Array]] | None = None
    instead: Callable[[list[Array], Array], Array] | None = None


@dataclass(frozen=True)
class Composed:
    """A module's code in place of its own: `program(x, call)`, where `call(path, x)` calls a module
    as it was called before, with `x` in place of its first input."""

    path: str
    program: Callable[[Any, Callable[[str, Any], Any]], Any]


@dataclass(frozen=True)
class Written:
    """A tensor of the model, by its name, with other values."""

    name: str
    value: Any


Edit: TypeAlias = Setting | Rewritten | Entered | InFunction | Composed | Written


class Taps(Protocol):
    """A live model, run under observation. Whatever happens, the model is as it was afterwards."""

    framework: str
    as_it_is: bool
    """Whether it runs in the modes that its modules have, and not in inference mode."""

    def modules(self) -> dict[str, Module]:
        """All modules by path, the model itself as `""`."""
        ...

    def owner(self, name: str) -> str:
        """The path of the module that holds a tensor."""
        ...

    def run(
        self,
        inputs: Any,
        watcher: Watcher | None = None,
        edits: Sequence[Edit] = (),
    ) -> dict[str, Array]:
        """Runs the model on inputs as `run` of a target takes them, or by a function of it."""
        ...

    def again(self, frame: Any, watcher: Watcher, edits: Sequence[Edit] = ()) -> list[Array]:
        """Runs one call of a module once more, and gives its results."""
        ...

    def fix(self, edit: Edit) -> str:
        """The change as code."""
        ...
