"""Probes in files: inputs, outputs and, where wanted, what every module was given and made.

A trace is kept as arrays by number and one text (JSON, as bytes), so that any format of named
arrays holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from regraft.calls import Module
from regraft.errors import VerificationFailed
from regraft.tensors import Array
from regraft.verification.probes import Probe, flat
from regraft.verification.traces import Recorded, Trace

KEY = "trace"
_VALUE = "activations"
_VERSION = 1


class _Call(msgspec.Struct, array_like=True):
    path: str
    number: int
    inside: tuple[str, ...]
    began: int
    ended: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    keys: tuple[str, ...]
    whole: bool


class _Kept(msgspec.Struct):
    schema_version: int
    framework: str
    modules: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]]
    calls: list[_Call]
    born: dict[str, int]
    steps: tuple[str, ...] = ()
    owners: dict[str, str] = {}


def encoded(probe: Probe) -> dict[str, Array]:
    """A probe as named arrays, as `Probe.from_arrays` reads them."""
    arrays = {**_named("input", probe.inputs), **_named("output", probe.outputs)}
    if probe.trace is not None:
        arrays |= _encoded(probe.trace)
    return arrays


def _named(side: str, value: Any) -> dict[str, Array]:
    if isinstance(value, Mapping):
        return {f"{side}s.{name}": array for name, array in flat(value)}
    if isinstance(value, (tuple, list)):
        return {f"{side}s.{i}": np.asarray(array) for i, (_, array) in enumerate(flat(value))}
    return {side: next(array for _, array in flat(value))}


def _encoded(trace: Trace) -> dict[str, Array]:
    numbers: dict[int, str] = {}
    arrays: dict[str, Array] = {}

    def keep(array: Array) -> str:
        if id(array) not in numbers:
            numbers[id(array)] = f"{_VALUE}.{len(numbers)}"
            arrays[numbers[id(array)]] = array
        return numbers[id(array)]

    calls = [
        _Call(
            c.path, c.number, c.inside, c.began, c.ended, tuple(map(keep, c.inputs)),
            tuple(map(keep, c.outputs)), tuple(c.keys), c.whole,
        )
        for c in trace.calls
    ]  # fmt: skip
    modules = {p: (m.kind, _plain(m.settings), m.children) for p, m in trace.modules.items()}
    steps = tuple(path for path, module in trace.modules.items() if module.step)
    owners = dict(trace.owners)
    kept = _Kept(_VERSION, trace.framework, modules, calls, trace.born, steps, owners)
    arrays[KEY] = np.frombuffer(msgspec.json.encode(kept), np.uint8)
    return arrays


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that JSON holds; tables of numbers as lists."""
    plain: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, np.ndarray):
            if value.size <= 1024 and value.dtype.kind in "fiu":
                plain[name] = {"array": value.tolist()}
        elif not isinstance(value, float) or np.isfinite(value):
            plain[name] = value
    return plain


def trace_of(arrays: Mapping[str, Array], label: str) -> Trace | None:
    """The trace among a probe's arrays. **Raises** `VerificationFailed` where it does not fit."""
    if KEY not in arrays:
        return None
    try:
        kept = msgspec.json.decode(np.asarray(arrays[KEY], np.uint8).tobytes(), type=_Kept)
        if kept.schema_version == _VERSION:
            return _trace(kept, arrays)
    except (LookupError, TypeError, ValueError) as error:  # msgspec's and unicode's among them
        raise VerificationFailed(
            label, found=f"a trace that cannot be read: {error}"[:300], expected="a recorded probe"
        ) from error
    raise VerificationFailed(
        label, found=f"a trace of version {kept.schema_version}", expected=str(_VERSION)
    )


def _trace(kept: _Kept, arrays: Mapping[str, Array]) -> Trace:
    steps = set(kept.steps)
    modules = {
        path: Module(
            path, kind, {k: _back(v) for k, v in settings.items()}, children, step=path in steps
        )
        for path, (kind, settings, children) in kept.modules.items()
    }
    calls = [_recorded(call, modules, arrays) for call in kept.calls]
    return Trace(calls, modules, kept.framework, kept.born, kept.owners)


def _back(value: Any) -> Any:
    if isinstance(value, dict) and "array" in value:
        return np.array(value["array"])
    return tuple(value) if isinstance(value, list) else value


def _recorded(call: _Call, modules: Mapping[str, Module], arrays: Mapping[str, Array]) -> Recorded:
    """One call. **Raises** `LookupError` where it is of an unknown module or of unknown values."""
    unknown = [path for path in (call.path, *call.inside) if path not in modules]
    if unknown:
        raise LookupError(f"a call of {unknown[0]!r}, which is no module of it")

    def values(names: tuple[str, ...]) -> list[Array]:
        found = [arrays[name] for name in names if name.startswith(f"{_VALUE}.")]
        if len(found) < len(names) or any(a.dtype.kind in "OUSmM" for a in found):
            raise LookupError(f"a call of {call.path!r} with values that are none")
        return found

    return Recorded(
        call.path, call.number, call.inside, call.began, call.ended, values(call.inputs),
        values(call.outputs), list(call.keys), call.whole,
    )  # fmt: skip
