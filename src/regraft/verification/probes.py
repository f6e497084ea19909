"""Probes: inputs, and the outputs that the source model gives for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.errors import RegraftError, VerificationFailed
from regraft.tensors import Array, Arrays
from regraft.verification.comparison import Report, compare
from regraft.verification.traces import Trace


@dataclass(frozen=True, eq=False)
class Probe:
    """What a right model gives.

    - `inputs`: an array, a tuple of positional arrays or a dict of keyword arrays. They are given
      as they are: NCHW or NHWC is for the caller to choose, never guessed. Images of a recorded
      probe are given with their channels moved where the target takes them so only.
    - `outputs`: an array, a tuple or a (nested) dict of arrays, from the source model.
    - `run`: calls the target where that is not `model(inputs)`: `run(model)` returns outputs.
    - `rtol`, `atol`: tolerances in place of those that follow from the dtype.
    - `trace`: what the source's modules were given and made, as `rg.record` keeps it.
    """

    inputs: Any = None
    outputs: Any = field(default=None, repr=False)
    run: Callable[[Any], Any] | None = None
    rtol: float | None = None
    atol: float | None = None
    trace: Trace | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.outputs is None:
            raise VerificationFailed(
                "probe", found="no outputs", expected="what the source model gives for the inputs"
            )
        if self.inputs is None and self.run is None:
            raise VerificationFailed("probe", found="no inputs", expected="inputs, or run=")

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], label: str = "probe") -> Probe:
        """A probe from a file's arrays: `input` and `output`, or `inputs.<name>`, `outputs.<name>`.

        Names that are numbers (`inputs.0`) are positional. **Raises** `VerificationFailed`.
        """
        sides: dict[str, Any] = {}
        for side in ("input", "output"):
            named = {
                key.partition(".")[2]: array
                for key, array in arrays.items()
                if key.partition(".")[0] == f"{side}s" and "." in key
            }
            if side in arrays:
                sides[side] = arrays[side]
            elif named and all(name.isdigit() for name in named):
                sides[side] = tuple(named[name] for name in sorted(named, key=int))
            elif named:
                sides[side] = named
            else:
                raise VerificationFailed(
                    label,
                    found=f"arrays {', '.join(list(arrays)[:8]) or 'none'}",
                    expected=f"'{side}', or '{side}s.<name>'",
                )
        from regraft.verification.recording import trace_of

        return cls(sides["input"], sides["output"], trace=trace_of(arrays, label))

    @property
    def expected(self) -> dict[str, Array]:
        """The outputs by name: `output`, `output.0` …, or a dict's keys joined with dots."""
        return dict(flat(self.outputs))


def flat(outputs: Any, name: str = "") -> Iterator[tuple[str, Array]]:
    """Outputs of any nesting by name. Arrays of other frameworks are converted by numpy."""
    if isinstance(outputs, Mapping):
        for key, part in outputs.items():
            yield from flat(part, f"{name}.{key}" if name else str(key))
    elif isinstance(outputs, (list, tuple)):
        for index, part in enumerate(outputs):
            yield from flat(part, f"{name or 'output'}.{index}")
    elif outputs is not None:
        detached = outputs.detach().cpu() if hasattr(outputs, "detach") else outputs
        yield name or "output", np.asarray(detached)


def verify(run: Callable[[Any], Arrays], probe: Probe, model: object) -> Report:
    """Runs the target on the probe's inputs and compares. `run(inputs)` runs the model.

    A model that raises gives a report that is not equal and says why: a wrong plan can make a
    model fail on its inputs, and that is a finding, not an accident.
    """
    try:
        actual = dict(flat(probe.run(model))) if probe.run else run(probe.inputs)
    except RegraftError:
        raise
    except Exception as error:  # the model's own code may raise anything
        return Report.failed(f"{type(error).__name__}: {error}")
    return compare(probe.expected, actual, rtol=probe.rtol, atol=probe.atol)
