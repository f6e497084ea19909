"""What callers may give as source or target, seen as a Catalogue with a way to read and write."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from regraft import checkpoints, targets
from regraft.checkpoints import Checkpoint
from regraft.errors import PlanError, RegraftError, TargetError
from regraft.sinks import Sink
from regraft.tensors import Catalogue, Read

if TYPE_CHECKING:
    from regraft.calls import Taps
    from regraft.tensors import Array, Slices

_CALLABLE = re.compile(r"(?:[\w.]+|.*\.py):[A-Za-z_][\w.]*")
# A path, a Checkpoint, a live model, or a Catalogue without values.
Given: TypeAlias = "str | os.PathLike[str] | Catalogue | object"


@dataclass(frozen=True)
class Side:
    """One side of a plan.

    - `catalogue`: what there is. `read`: its values, `None` where there are none.
    - `model`: the live model, `None` for a file or a bare Catalogue.
    - `notes`: remarks from building the model.
    - `inputs`: what a probe gives this side's model, `None` where there is none.
    """

    catalogue: Catalogue
    read: Read | None = None
    model: object = None
    notes: tuple[str, ...] = ()
    inputs: Any = None

    def sink(self) -> Sink:
        """Where a plan is written. **Raises** `TargetError` for anything but a live model."""
        if self.model is None:
            raise TargetError(
                self.catalogue.label,
                found=type(self.catalogue).__name__,
                expected="a live model",
                hint="to write a file through a plan: rg.convert(source, path, plan=plan)",
            )
        return targets.find(self.model).sink(self.model)

    def reader(self) -> Read:
        """The values. **Raises** `PlanError` for a bare Catalogue."""
        if self.read is None:
            raise PlanError(
                self.catalogue.label, found="a Catalogue without values", expected="a checkpoint"
            )
        return self.read

    @functools.cached_property
    def taps(self) -> Taps | None:
        """The live model, or the file that a runtime runs, under observation; None where there is
        neither. **Raises** `MissingDependency` where a runtime is missing, `TargetError`."""
        if self.model is not None:
            make = getattr(targets.find(self.model), "taps", None)
            return make(self.model) if make else None
        if isinstance(self.catalogue, Checkpoint):
            return targets.runner(self.catalogue.format, self.catalogue.path)
        return None

    def run(self) -> Callable[[Any], Mapping[str, Array]] | None:
        """What gives its outputs for inputs, where there is something that can be run."""
        if self.model is not None:
            return functools.partial(targets.find(self.model).run, self.model)
        return self.taps.run if self.taps is not None else None

    def followed(self) -> Side:
        """This side with its model's dataflow, where it takes example inputs to have it, and they
        are at hand. What has one, and what has no code, stays as it is."""
        if self.model is None or self.inputs is None or self.catalogue.flow:
            return self
        follow = getattr(targets.find(self.model), "followed", None)
        if follow is None:
            return self
        return replace(self, catalogue=follow(self.model, self.inputs))

    def content(self) -> str:
        """The file's content hash; `""` for a model, and for a file that was changed meanwhile."""
        if not isinstance(self.catalogue, Checkpoint) or self.catalogue.changed:
            return ""
        return self.catalogue.sha256

    @property
    def path(self) -> Path | None:
        """The file, where the side is one."""
        return self.catalogue.path if isinstance(self.catalogue, Checkpoint) else None


def ran(label: str, run: Callable[..., Any], *arguments: Any) -> Any:
    """What running a model gives. **Raises** `TargetError` for what its own code raises."""
    try:
        return run(*arguments)
    except RegraftError:
        raise
    except Exception as error:  # the model's own code may raise anything
        raise TargetError(
            label, found=f"{type(error).__name__}: {error}"[:400],
            expected="inputs that the model takes",
            hint="give inputs as this model takes them; for a model that takes others, a probe "
            "with both: rg.Probe(inputs=…, outputs=…)",
        ) from error  # fmt: skip


def source_side(
    given: Given,
    container: str | None = None,
    inputs: Any = None,
    source: Catalogue | None = None,
) -> Side:
    """A path is opened, a live model is read, and built first by running it on `inputs` where it is
    not yet. **Raises** as `open` does, and `TargetError`."""
    if isinstance(given, (str, os.PathLike)):
        if is_callable_name(given):
            return _model_side(targets_callables().build(str(given))[0], inputs=inputs)
        opened = checkpoints.open(given, container=container)
        return Side(opened, opened.read)
    if isinstance(given, Checkpoint):
        return Side(given, given.read)
    if isinstance(given, Catalogue):
        return Side(given)
    return _model_side(given, inputs=inputs, source=source)


def target_side(
    given: Given,
    *,
    arguments: Mapping[str, object] | None = None,
    container: str | None = None,
    meta: bool = False,
    inputs: Any = None,
    source: Catalogue | None = None,
) -> Side:
    """As `source_side`; `'module:callable'` is called with `arguments`, on the meta device where
    `meta` asks for it and the model allows it. A `source` can tell the shapes of what is lazy."""
    if isinstance(given, (str, os.PathLike)) and is_callable_name(given):
        model, notes = targets_callables().build(str(given), arguments, meta=meta)
        return _model_side(model, tuple(notes), readable=not meta, inputs=inputs, source=source)
    if arguments:
        raise TargetError(
            str(given), found="settings", expected="'module:callable', which alone takes settings"
        )
    return source_side(given, container, inputs, source)


def is_callable_name(given: str | os.PathLike[str]) -> bool:
    """Whether this is `module:callable` or `file.py:callable`, and not the path of a file."""
    return isinstance(given, str) and bool(_CALLABLE.fullmatch(given)) and not Path(given).exists()


def targets_callables() -> Any:
    """Building models imports user code: only where it is asked for."""
    from regraft.targets import callables

    return callables


def _model_side(
    model: object,
    notes: tuple[str, ...] = (),
    *,
    readable: bool = True,
    inputs: Any = None,
    source: Catalogue | None = None,
) -> Side:
    target = targets.find(model)
    build = getattr(target, "build", None)
    if build is not None and inputs is not None:
        build(model, inputs)
    abstract = getattr(target, "abstract", None)
    held = readable and not (abstract and abstract(model))
    described: Any = target.skeleton
    beside = source is not None and "source" in inspect.signature(described).parameters
    skeleton = described(model, source) if beside else described(model)
    return Side(skeleton, _reader(target, model) if held else None, model, notes)


def _reader(target: targets.Target, model: object) -> Read:
    sinks: list[Sink] = []  # made once, and only when values are asked for

    def read(name: str, slices: Slices | None) -> Array:
        if not sinks:
            sinks.append(target.sink(model))
        memory = sinks[0].memory(name)
        if memory is not None:  # no copy: it is read before anything is written
            array = memory.view()
            array.flags.writeable = False
        else:
            array = sinks[0].read(name)
        return array if slices is None else array[slices]

    return read
