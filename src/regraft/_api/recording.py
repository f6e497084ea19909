"""Recording: what a model gives, and what its modules do on the way, kept for others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from regraft import checkpoints, targets
from regraft._sides import Given, Side, ran, source_side, target_side
from regraft.checkpoints import Checkpoint
from regraft.errors import TargetError
from regraft.tensors import Arrays, TensorInfo
from regraft.verification import Probe
from regraft.verification.recording import encoded
from regraft.verification.traces import Recorder, Trace


def record(
    source: Given,
    inputs: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    activations: bool = True,
    execute: bool = False,
    arguments: Mapping[str, object] | None = None,
    force: bool = False,
) -> Probe:
    """Runs a live model and keeps what it gives, as a probe for others.

    **Arguments:**

    - `source`: a live model, `'module:callable'`, or an ONNX file, which onnxruntime runs.
    - `inputs`: an array, a tuple of positional arrays or a dict, as the model takes them. They are
      kept as they are: a target with channels elsewhere is given them with channels moved only
      where it cannot take them otherwise.
    - `path`: the file to write (`.npz`, `.safetensors`).
    - `activations`: whether what every module was given and made is kept, too, so that a first
      divergence can be found without the source.
    - `execute`: runs the code that a TorchScript file or a SavedModel holds: anything that its
      author wrote. Only outputs are kept of these.

    **Raises** `TargetError` where the model cannot be had or observed, `FormatError`,
    `MissingDependency` without the runtime of a file.
    """
    side = source_side(source, None, inputs) if not arguments else target_side(
        source, arguments=arguments, inputs=inputs
    )  # fmt: skip
    outputs, trace = _executed(side, inputs) if execute else _observed(side, inputs)
    trace = trace if activations else None
    given = next(iter(outputs.values())) if list(outputs) == ["output"] else outputs
    probe = Probe(inputs, given, trace=trace)
    if path is not None:
        arrays = encoded(probe)
        items = (
            (TensorInfo(n, tuple(a.shape), a.dtype.name), lambda a=a: a) for n, a in arrays.items()
        )
        checkpoints.write(path, items, {}, force=force)
    return probe


def _observed(side: Side, inputs: Any) -> tuple[Arrays, Trace | None]:
    taps = side.taps
    if taps is None:
        raise TargetError(
            side.catalogue.label, found="no model that can be run and observed",
            expected=f"a live model of {', '.join(targets.names())}, 'module:callable', or a file "
            f"that can be run ({', '.join(targets.runnable())})",
            hint="a TorchScript file or a SavedModel holds code: execute=True (--execute) runs it",
        )  # fmt: skip
    recorder = Recorder()
    outputs: Arrays = ran(side.catalogue.label, taps.run, inputs, recorder)
    owners = {name: taps.owner(name) for name in side.catalogue}
    return outputs, recorder.trace(taps.modules(), taps.framework, owners)


def _executed(side: Side, inputs: Any) -> tuple[Arrays, Trace | None]:
    held = side.catalogue
    run = targets.executor(held.format, held.path) if isinstance(held, Checkpoint) else None
    if run is None:
        raise TargetError(
            held.label, found="no file with code", expected="a TorchScript file or a SavedModel",
            hint="without execute (--execute) a live model or an ONNX file is run",
        )  # fmt: skip
    return ran(held.label, run, inputs), None
