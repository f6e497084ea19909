"""Places where target and source part, and the calls that were compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regraft.calls import Call
from regraft.tensors import Array
from regraft.verification.traces import Recorded

Place = tuple[Literal["input", "output"], str, int]


@dataclass
class Site:
    """A place where target and source part.

    - `module`: the target's module in which it happens.
    - `place`: where it was seen: the results of a call, or what went into one.
    - `scope`: the call to run again to see it again.
    - `expected`, `actual`: the source's value, in the target's layout, and the target's.
    - `inputs`: what the module was given, `source`: the call of the source.
    - `instead`: the same seen where the value is next used, in the code around the module, which
      is then what is `behind` it.
    """

    module: str
    place: Place
    scope: Call
    error: float
    expected: Array
    actual: Array
    inputs: list[Array]
    source: Recorded | None = None
    instead: Site | None = None
    leaf: bool = True
    behind: str | None = None

    @property
    def time(self) -> int:
        """When the source did what is compared here."""
        if self.source is None:
            return 0
        return self.source.ended if self.place[0] == "output" else self.source.began


@dataclass(frozen=True)
class Step:
    """One call that was compared: errors of what went in (before it was put right) and came out."""

    path: str
    number: int
    source: str
    input: float
    output: float
