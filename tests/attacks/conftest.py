"""Every module of attacks lists them as `ATTACKS`; all of a module's go through one child."""

from __future__ import annotations

from typing import Any

import pytest

from attacks import harness


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "attack" in metafunc.fixturenames:
        metafunc.parametrize("attack", metafunc.module.ATTACKS)


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    return harness.outcomes(request.module.ATTACKS, tmp_path_factory.mktemp("attacks"))
