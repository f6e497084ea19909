"""Layers that the source spells out: a norm as a dozen operations, of which its tensors say where
it ends, and not where it begins."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from regraft.tensors import Array
from regraft.verification.closeness import nearest, noise
from regraft.verification.traces import Recorded, Trace

# Where a layer may begin: so many values of its size back.
_NEAR = 64
Compared = list[tuple[float, "Array | None"]]


def entered(trace: Trace, source: Recorded, inputs: Sequence[Array], found: Compared) -> Compared:
    """What a layer's inputs are compared with, where the source's call may be a step in it.

    `found` is the comparison with the step's own inputs. Where they are others, the layer is given
    a value that the source made before; (0, None), as of what is not known, where there is none.
    """
    module = trace.modules.get(source.path)
    if module is None or not module.step or all(error <= noise(*inputs) for error, _ in found):
        return found
    return [_made_before(trace, source, array) for array in inputs]


def _made_before(trace: Trace, source: Recorded, array: Array) -> tuple[float, Array | None]:
    before = (call for call in reversed(trace.calls) if 0 <= call.ended < source.began)
    values = (value for call in before for value in call.outputs if value.size == array.size)
    for value in islice(values, _NEAR):
        error, fitted = nearest(value, array)
        if fitted is not None and error <= noise(array):
            return error, fitted
    return 0.0, None
