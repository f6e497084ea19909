"""A trace: every call of a model's modules, with what went in and what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import xxhash

from regraft.calls import Call, FunctionCall, Module
from regraft.tensors import Array
from regraft.values import bits

# What a trace keeps at most; calls after that are known, but not their values.
BUDGET = 2 << 30


@dataclass
class Recorded:
    """One call. `began`, `ended`: its place among all beginnings and ends; `keys` name the values
    that went in, the same for the same values. `whole`: whether all values are kept."""

    path: str
    number: int
    inside: tuple[str, ...]
    began: int
    ended: int = -1
    inputs: list[Array] = field(default_factory=list[Array])
    outputs: list[Array] = field(default_factory=list[Array])
    keys: list[str] = field(default_factory=list[str])
    whole: bool = True


@dataclass
class Trace:
    """The calls of one run in the order in which they began.

    - `modules`: the model's modules by path; `framework`: whose they are.
    - `born`: when each value was first seen. `owners`: the module of each tensor, by its name,
      where the trace was kept in a file.
    """

    calls: list[Recorded]
    modules: Mapping[str, Module]
    framework: str = ""
    born: dict[str, int] = field(default_factory=dict[str, int])
    owners: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        self._by_name = {(call.path, call.number): call for call in self.calls}

    @property
    def left_out(self) -> list[Recorded]:
        """Calls whose values are not all kept, and which nothing can be compared with."""
        return [call for call in self.calls if not call.whole]

    def find(self, path: str, number: int) -> Recorded | None:
        return self._by_name.get((path, number))

    @property
    def paths(self) -> list[str]:
        """Paths of the modules that were called, in the order of their first calls."""
        return list(dict.fromkeys(call.path for call in self.calls))


class Recorder:
    """A watcher that makes a trace; values that recur are kept once."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._calls: list[Recorded] = []
        self._open: list[Recorded] = []
        self._kept: dict[str, Array] = {}
        self._budget = budget
        self._born: dict[str, int] = {}
        self._time = 0

    def enter(self, call: Call, inputs: list[Array]) -> None:
        recorded = Recorded(call.path, call.number, call.inside, self._tick())
        recorded.inputs, recorded.keys = self._keep(recorded, inputs)
        self._calls.append(recorded)
        self._open.append(recorded)

    def leave(self, call: Call, outputs: list[Array]) -> None:
        recorded = self._open.pop()
        recorded.ended = self._tick()
        recorded.outputs, _ = self._keep(recorded, outputs)

    def function(self, call: FunctionCall) -> None:
        pass

    def _tick(self) -> int:
        self._time += 1
        return self._time

    def _keep(self, call: Recorded, arrays: Sequence[Array]) -> tuple[list[Array], list[str]]:
        kept: list[Array] = []
        keys: list[str] = []
        for array in arrays:
            key = f"{array.shape}{array.dtype}{xxhash.xxh3_64_hexdigest(bits(array).data)}"
            keys.append(key)
            self._born.setdefault(key, self._time)
            if key not in self._kept:
                if self._budget < array.nbytes:
                    call.whole = False
                    continue
                self._budget -= array.nbytes
                self._kept[key] = array
            kept.append(self._kept[key])
        return kept, keys

    def trace(
        self, modules: Mapping[str, Module], framework: str, owners: Mapping[str, str] | None = None
    ) -> Trace:
        return Trace(self._calls, modules, framework, self._born, owners or {})


class Listener:
    """A watcher that only notes which modules are called, and what functions in them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.functions: list[FunctionCall] = []

    def enter(self, call: Call, inputs: list[Array]) -> None:
        self.calls.append(Call(call.path, call.number, call.inside))

    def leave(self, call: Call, outputs: list[Array]) -> None:
        pass

    def function(self, call: FunctionCall) -> None:
        self.functions.append(call)
