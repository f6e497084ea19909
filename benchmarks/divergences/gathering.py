"""All cases of the benchmark."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.divergences import cases, real, unseen, unseen_frameworks


def gathered() -> Iterator[cases.Case]:
    yield from cases.CASES
    yield from real.CASES
    yield from unseen.CASES
    yield from unseen_frameworks.CASES
