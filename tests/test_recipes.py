"""The recipes of the documentation, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regraft as rg

PAGE = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text()
SECTIONS = re.split(r"^## ", PAGE, flags=re.M)[1:]


def code(title: str) -> str:
    (section,) = (text for text in SECTIONS if text.startswith(title))
    return "\n".join(re.findall(r"^```python\n(.*?)^```", section, flags=re.M | re.S))


def run(title: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code(title), "docs/recipes.md", "exec"), names)
    return names


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_torchvision_with_a_new_head(folder: Path) -> None:
    names = run("torchvision")
    states = {name: origin.state for name, origin in names["lineage"].tensors.items()}
    assert set(states) == set(names["model"].state_dict())
    counters = {name for name in states if name.endswith("num_batches_tracked")}
    assert {n for n, s in states.items() if s == "fresh"} == {"fc.weight", "fc.bias"}
    tuned = {name for name, state in states.items() if state == "tuned"}
    assert tuned - counters == {n for n in states if n.startswith("layer4.")} - counters
    changes = rg.diff("resnet18.pth", "tuned.safetensors")
    frozen = {n for n in states if not n.startswith(("layer4.", "fc."))} - counters
    assert {changes[name].status for name in frozen} == {"identical"}
    assert "fc.weight" not in names["before"]
    with rg.open("resnet18.pth") as base:
        for name, array in names["before"].items():
            np.testing.assert_array_equal(array, base.read(name))
    # A meta model from the same file.
    meta = run("Into a model")
    assert not any(parameter.is_meta for parameter in meta["model"].parameters())


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_keras_without_its_top(folder: Path) -> None:
    names = run("Keras'")
    told = rg.trace("tuned.weights.h5").tensors
    states = {name: origin.state for name, origin in told.items()}
    assert {n for n, s in states.items() if s == "fresh"} == {"head/kernel", "head/bias"}
    assert {s for n, s in states.items() if not n.startswith("head/")} == {"loaded"}
    assert len(states) == len(names["model"].weights)
    assert all(origin.sources for name, origin in told.items() if not name.startswith("head/"))
