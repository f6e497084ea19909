"""All cases of the benchmark."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.divergences import cases, real


def gathered() -> Iterator[cases.Case]:
    yield from cases.CASES
    yield from real.CASES
