"""A probe for free: where the source is a live model, it says itself what should come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from regraft.errors import TargetError, VerificationFailed
from regraft.tensors import Array, Arrays
from regraft.verification.probes import Probe

Run = Callable[[Any], Arrays]
# Where frameworks have the channels of images: ONNX' models, too, are mostly made by PyTorch.
_CHANNELS = {"torch": "first", "onnx": "first", "keras": "last", "jax": "last"}


def probe_of(inputs: Any, source: Run, target: Run | None, frameworks: tuple[str, str]) -> Probe:
    """What the source gives for `inputs`, as a probe for the target.

    Images are given as the source takes them. Where the target's framework has channels in another
    place, and the target cannot take them as they are, they are moved there, and so they are in the
    outputs; it is never guessed where it could take both. A `target` of None cannot be run yet.

    **Raises** `VerificationFailed` where the target can take both or neither; what running the
    source raises.
    """
    outputs = source(inputs)
    ways = {"as given": (inputs, outputs)}
    here, there = (_CHANNELS.get(framework) for framework in frameworks)
    if here and there and here != there and _has_images(inputs):
        ways["with channels moved"] = _moved(inputs, there), _moved(dict(outputs), there)
    fitting: list[tuple[Any, Arrays]] = []
    failures: list[str] = []
    for way, (given, wanted) in ways.items():
        if target is None:
            fitting.append((given, wanted))
            continue
        found = _shapes(target, given)
        if isinstance(found, str):
            failures.append(f"{way}: {found}")
        elif len(ways) > 1 and found != sorted(np.shape(output) for output in wanted.values()):
            failures.append(f"{way}: outputs of shapes {found}")
        else:
            fitting.append((given, wanted))
    if len(fitting) == 1:
        return Probe(*fitting[0])
    raise VerificationFailed(
        "probe",
        found="inputs that the target may take both as given and with channels moved"
        if fitting
        else f"inputs that the target does not take: {'; '.join(failures)}"[:600],
        expected="inputs that are certain",
        hint="give rg.Probe(inputs=…, outputs=…) with the target's inputs and the source's outputs",
    )


def as_taken(probe: Probe, target: Run, framework: str) -> Probe:
    """A recorded probe as the target takes it.

    Images were recorded as the source takes them. Where the target's framework has channels in
    another place, and the target takes them there only, they are moved, and so they are in the
    outputs. What was not recorded is as its author gave it.
    """
    here = _CHANNELS.get(probe.trace.framework) if probe.trace else None
    there = _CHANNELS.get(framework)
    if not here or not there or here == there or probe.run or not _has_images(probe.inputs):
        return probe
    if not isinstance(_shapes(target, probe.inputs), str):
        return probe
    inputs, outputs = _moved(probe.inputs, there), _moved(dict(probe.expected), there)
    wanted = sorted(np.shape(output) for output in outputs.values())
    fits = _shapes(target, inputs) == wanted
    return replace(probe, inputs=inputs, outputs=outputs) if fits else probe


def _shapes(target: Run, inputs: Any) -> list[tuple[int, ...]] | str:
    """The shapes of a target's outputs, or why it cannot be run on these inputs."""
    try:
        return sorted(np.shape(output) for output in target(inputs).values())
    except TargetError:  # it cannot be run at all
        raise
    except Exception as error:  # the model's own code may raise anything
        return f"{type(error).__name__}: {error}".split("\n")[0][:200]


def _has_images(inputs: Any) -> bool:
    parts = inputs.values() if isinstance(inputs, dict) else inputs
    several = isinstance(inputs, (dict, tuple))
    return any(np.ndim(array) > 2 for array in (parts if several else (inputs,)))


def _moved(value: Any, to: str) -> Any:
    if isinstance(value, dict):
        return {key: _moved(part, to) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_moved(part, to) for part in value)
    array: Array = np.asarray(value)
    if array.ndim < 3:
        return array
    moved = np.moveaxis(array, 1, -1) if to == "last" else np.moveaxis(array, -1, 1)
    return np.ascontiguousarray(moved)
