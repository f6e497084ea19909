"""What a cause may look at when it proposes changes, and what it proposes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.calls import Edit, FunctionCall, Module
from regraft.tensors import Array
from regraft.verification.kinds_of_modules import category
from regraft.verification.sites import Site
from regraft.verification.traces import Recorded


@dataclass(frozen=True)
class Hypothesis:
    """A change of the target that would explain a divergence.

    - `modules`: the target's modules that are changed. `text`: what is different, for people, and
      the same for the same change elsewhere in the model. `fix`: the change as code.
    """

    kind: str
    edits: tuple[Edit, ...]
    modules: tuple[str, ...]
    text: str
    fix: str

    @property
    def key(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True)
class Tensor:
    """A tensor of a module: as the plan makes it of the source, and as it is."""

    name: str
    expected: Array
    actual: Array

    @property
    def same(self) -> bool:
        return self.expected.shape == self.actual.shape and bool(
            np.array_equal(self.expected, self.actual, equal_nan=True)
        )


@dataclass(frozen=True)
class Tie:
    """An output layer's tensor and the embedding's, and whether they are one in the target;
    `expected` and `actual` are values of the output layer's, `embedding` is a tensor's name."""

    name: str
    embedding: str
    tied: bool
    expected: Array
    actual: Array


@dataclass
class Scene:
    """A site, and what is known around it.

    - `modules`, `sources`: the modules of target and source by path; `pair`: of a target's path
      the source's, where there is one.
    - `functions`: the functions that ran in the scope, in order; none where the framework does not
      tell. `children`: what was recorded of the paired modules inside, by the target's path.
    - `tensors`: the tensors of a module that the plan speaks of. `unused`: source tensors
      that the plan does not use, by name. `inputs`: what the model itself was given.
    """

    site: Site
    framework: str
    modules: Mapping[str, Module]
    sources: Mapping[str, Module]
    pair: Callable[[str], str | None]
    functions: list[FunctionCall]
    children: dict[str, Recorded]
    tensors: Callable[[str], list[Tensor]]
    unused: Callable[[], dict[str, Array]] = field(default=dict)
    inputs: list[Array] = field(default_factory=list[Array])
    ties: Callable[[str], list[Tie]] = field(default=lambda _: [])
    calls_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, "tuple[str, ...]"])
    """The modules that the code of each module calls, in order."""
    earlier: list[Recorded] = field(default_factory=list[Recorded])
    """What the source called before the site."""
    input_errors: Mapping[str, float] = field(default_factory=dict[str, float])
    """By module inside the scope, the error of what it is given as the target is."""
    values: Mapping[tuple[str, str], list[Array]] = field(
        default_factory=dict[tuple[str, str], "list[Array]"]
    )
    """What modules inside the scope are given (`"input"`) and make (`"output"`)."""

    whole: bool = False
    """Whether the scene is the whole model, of which nothing but outputs is known."""

    def inner(self) -> Iterator[str]:
        """The modules in which the site may lie: its own, and those inside that have no pair."""
        own = self.site.module
        yield own
        if self.site.behind is not None and self.site.behind != own:
            yield self.site.behind
        for path in self._below(own):
            if self.pair(path) is None:
                yield path

    def wrong_tensors(self) -> Iterator[tuple[tuple[str, ...], list[Tensor]]]:
        """Tensors that are not as the plan makes them: of each module where the site may lie, and
        where these are several of all together (a module's code may use its children's)."""
        found = {p: [t for t in self.tensors(p) if not t.same] for p in dict.fromkeys(self.inner())}
        found = {path: wrong for path, wrong in found.items() if wrong}
        yield from (((path,), wrong) for path, wrong in found.items())
        if len(found) > 1:
            yield tuple(found), [tensor for wrong in found.values() for tensor in wrong]

    def _below(self, path: str) -> Iterator[str]:
        for child in self.modules[path].children if path in self.modules else ():
            yield child
            yield from self._below(child)

    def calls(self, *names: str) -> Iterator[FunctionCall]:
        """Calls of these functions in the code where the site lies."""
        own = set(self.inner())
        yield from (f for f in self.functions if f.name in names and f.path in own)

    def source_setting(self, path: str, *names: str) -> Iterable[Any]:
        """What the paired source module says for a setting."""
        source = self.pair(path)
        settings = self.sources[source].settings if source and source in self.sources else {}
        return [settings[name] for name in names if name in settings]

    def called(self, path: str) -> tuple[str, ...]:
        """The modules that the code of a module calls, in order; those that do nothing left out."""
        names = self.calls_of.get(path, ())
        return tuple(
            n
            for n in names
            if n in self.modules and category(self.modules[n]) not in ("dropout", "identity")
        )

    def given(self, path: str) -> list[Array]:
        """What a module is given."""
        own = path == self.site.module and self.site.place[0] == "output"
        return self.site.inputs if own else self.values.get(("input", path), [])

    def made(self, path: str) -> tuple[int, ...]:
        """The shape of what a module makes."""
        if path == self.site.module and self.site.place[0] == "output":
            return self.site.actual.shape
        return next((a.shape for a in self.values.get(("output", path), [])), ())

    @property
    def first(self) -> bool:
        """Whether nothing with tensors ran before the site: it may be how inputs are prepared."""
        source = self.site.source
        return source is not None and not any(
            0 <= call.ended < source.began for call in self.children.values()
        )


def where(path: str) -> str:
    """A module as code."""
    return f"model.get_submodule({path!r})" if path else "model"


def in_forward(path: str) -> str:
    return f"in the code of {path or 'the model'}"
