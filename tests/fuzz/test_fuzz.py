"""Every format's reader on real files that were changed: a value, or a typed error, in bounded time.

The same cases in every run; longer and guided by coverage with `python -m tests.fuzz.run`. What was
ever found lies in `corpus/`, and is read again here.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attacks.harness import Attack, Child, check
from fuzz.mutations import mutated
from fuzz.samples import CORPUS, Sample, of_format, open_and_read, small, written
from regraft import formats

EXAMPLES = 150
FOUND = sorted(CORPUS.glob("*/*"))  # files, or folders where the format is one


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Sample]]:
    made: dict[str, list[Sample]] = {}
    for name in formats.names():
        made[name] = small(of_format(name, tmp_path_factory.mktemp(name)))
    return made


@pytest.mark.parametrize("name", formats.names())
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(random=st.randoms(use_true_random=True))
def test_changed_files(
    name: str, random: Random, samples: dict[str, list[Sample]], tmp_path: Path
) -> None:
    sample = random.choice(samples[name])
    with written(sample, mutated(name, sample.data, random), tmp_path) as path:
        open_and_read(path)


@pytest.fixture(scope="module")
def replayed() -> dict[Path, dict[str, Any]]:
    child = Child()
    try:
        return {path: {**child.outcome(path), "size": _size(path)} for path in FOUND}
    finally:
        child.close()


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in (path, *path.rglob("*")) if p.is_file())


@pytest.mark.parametrize("path", FOUND, ids=lambda p: p.relative_to(CORPUS).as_posix())
def test_what_was_found_before(path: Path, replayed: dict[Path, dict[str, Any]]) -> None:
    outcome = {**replayed[path], "marker": False, "changed": []}
    check(Attack(lambda folder, marker: path, None), outcome)
