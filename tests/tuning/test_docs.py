"""The recipes in docs/finetuning.md run as they stand, one after the other."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import regraft as rg

sys.path.insert(0, str(Path(__file__).parent))
from networks import samples, torch_net

TEXT = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text()


def world() -> dict[str, Any]:
    """What the recipes share."""
    import keras
    from jax import numpy as jnp

    torch.save(torch_net(1)[:3].state_dict(), "base.pth")
    net = torch_net(2)
    receipt = rg.load("base.pth", net, fresh=["3.*"])
    x, y = samples()
    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((3,)), layers.Dense(4, name="first"), layers.Dense(2, name="head")]
    )
    params = {"encoder": {"w": jnp.full((3, 4), 0.5)}, "head": {"w": jnp.full((4, 2), 0.5)}}

    def apply(p: Any, data: Any) -> Any:
        return data @ p["encoder"]["w"] @ p["head"]["w"]

    return {
        "net": net,
        "receipt": receipt,
        "x": x,
        "y": y,
        "model": model,
        "params": params,
        "apply": apply,
    }


@pytest.mark.filterwarnings("ignore")
def test_recipes_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 9
    space = world()
    for number, block in enumerate(blocks):
        exec(compile(block, f"recipe {number}", "exec"), space)
    out = capsys.readouterr().out
    assert out.count("frozen tensors are the same bits as before") == 5
    assert not re.search(r"^  moved", out, re.MULTILINE)
    with rg.open("soup.safetensors") as soup, rg.open("base.pth") as base:
        np.testing.assert_array_equal(soup.read("0.bias"), base.read("0.bias"))


def test_the_command_has_the_options_that_are_shown() -> None:
    from regraft.cli.tuning import finetune

    known = {option for parameter in finetune.params for option in parameter.opts}
    shown = set(re.findall(r"(?<= )--[a-z][a-z-]+", TEXT)) - {"--nproc-per-node"}
    assert len(shown) > 8
    assert shown <= known


def test_every_field_of_a_policy_is_in_the_table() -> None:
    import dataclasses

    for field in dataclasses.fields(rg.Policy):
        assert f"`{field.name}`" in TEXT, field.name
