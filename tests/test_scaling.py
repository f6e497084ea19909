"""Plans that were learnt on a small model, applied to a larger one; plans as key mappings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg
from regraft.errors import PlanError, StalePlan


class Block(nn.Module):
    """Attention and a gated layer, with three projections or one."""

    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        if fused:
            self.qkv_proj = nn.Linear(width, 3 * width)
        else:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.fused = fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fused:
            q, k, v = self.qkv_proj(x).chunk(3, -1)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        x = self.norm(x + nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.down(self.up(x).relu())


class Model(nn.Module):
    def __init__(self, width: int, depth: int, fused: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width, fused) for _ in range(depth))
        self.head = nn.Linear(width, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def saved(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save(state, folder / "x.pth")
    return folder / "x.pth"


def made(width: int, depth: int, fused: bool, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    model = Model(width, depth, fused)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.3, 0.2)
    return model.eval()


@pytest.mark.parametrize("fused", [True, False])
def test_a_plan_of_two_narrow_layers_serves_five_wide_ones(fused: bool) -> None:
    small = rg.plan(made(8, 2, fused), made(8, 2, not fused))
    assert small.complete
    source, target = made(12, 5, fused, 1), made(12, 5, not fused, 2)
    plan = small.for_target(target, source)
    assert plan.complete
    assert len(plan.grafts) == len(target.state_dict())
    rg.apply(plan, source, target)
    x = torch.randn(2, 3, 12)
    torch.testing.assert_close(target(x), source(x))


def test_keras_layouts_scale(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")

    def model(width: int, depth: int) -> Any:
        layers = [
            keras.layers.Conv2D(width, 3, padding="same", name=f"conv{i}") for i in range(depth)
        ]
        return keras.Sequential([keras.layers.Input((8, 8, 3)), *layers])

    class Same(nn.Module):
        def __init__(self, width: int, depth: int) -> None:
            super().__init__()
            for i in range(depth):
                convolution = nn.Conv2d(width if i else 3, width, 3, padding="same")
                setattr(self, f"conv{i}", convolution)
            self.depth = depth

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for i in range(self.depth):
                x = getattr(self, f"conv{i}")(x)
            return x

    plan = rg.plan(model(4, 2), Same(4, 2))
    assert plan.complete, str(plan)
    source, target = model(6, 4), Same(6, 4)
    rg.apply(plan.for_target(target), source, target)
    x = torch.rand(1, 3, 8, 8)
    wanted = torch.as_tensor(np.array(source(x.permute(0, 2, 3, 1).numpy())))
    torch.testing.assert_close(target(x).permute(0, 2, 3, 1), wanted, rtol=1e-4, atol=1e-5)


def test_another_source_than_expected_is_refused() -> None:
    small = rg.plan(made(8, 2, True), made(8, 2, False))
    with pytest.raises(StalePlan, match=re.escape("layers.4.norm.weight")):
        small.for_target(made(12, 5, False), made(12, 4, True))


def test_what_sizes_do_not_tell_is_refused_with_all_findings(tmp_path: Path) -> None:
    small = rg.plan(made(8, 2, True), made(8, 2, False))
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 4))
    with pytest.raises(PlanError, match="does not tell") as caught:
        small.for_target(other)
    assert len(caught.value.problems) == 4
    heads = rg.pin("q.weight", "w", [rg.ops.Rope(axis=0, heads=2, to="half")])
    rotary = rg.plan(saved(tmp_path, {"w": torch.ones(8, 8)}), nn.ModuleDict({"q": nn.Linear(8, 8, False)}),
                     rules=[heads])  # fmt: skip
    with pytest.raises(PlanError) as caught:
        rotary.for_target(nn.ModuleDict({"q": nn.Linear(16, 16, False)}))
    assert "rope" in str(caught.value).lower()


# Key mappings


def loaded_by(mapping: dict[str, str], names: list[str]) -> list[list[str]]:
    """What transformers make of names, before version 5 and from it on."""
    first: list[str] = []
    turns: list[str] = []
    for name in names:
        renamed = name
        for pattern, replacement in mapping.items():
            renamed, count = re.subn(pattern, replacement, renamed)
            if count:
                break
        first.append(renamed)
        key = name
        for pattern, replacement in mapping.items():
            match = re.search(pattern, key)
            if match:
                group = match[1] if match.re.groups else ""
                key = key.replace(match[0], replacement.replace(r"\1", group), 1)
        turns.append(key)
    return [first, turns]


def test_a_renaming_is_a_key_mapping(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=12, num_attention_heads=2, intermediate_size=16,
        vocab_size=20,
    )  # fmt: skip
    model = transformers.BertModel(config)
    state = {
        "net." + name.replace("encoder.layer.", "blocks.").replace("attention.self", "attn"): value
        for name, value in model.state_dict().items()
    }
    plan = rg.plan(saved(tmp_path, state), model)
    mapping = plan.to_key_mapping()
    assert len(mapping) < 12
    for made_names in loaded_by(mapping, list(state)):
        assert sorted(made_names) == sorted(model.state_dict())


def test_transformers_load_by_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    safetensors = pytest.importorskip("safetensors.torch")
    config = transformers.GPT2Config(n_embd=8, n_layer=3, n_head=2, vocab_size=20, n_positions=8)
    torch.manual_seed(0)
    model = transformers.GPT2Model(config).eval()
    state = {
        name.replace("h.", "stack.").replace("mlp", "forward"): value.clone()
        for name, value in model.state_dict().items()
    }
    safetensors.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    config.save_pretrained(tmp_path)
    mapping = rg.plan(tmp_path / "model.safetensors", model).to_key_mapping()
    again = transformers.GPT2Model.from_pretrained(tmp_path, key_mapping=mapping)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)


def test_more_than_names_is_no_key_mapping() -> None:
    with pytest.raises(PlanError, match="only renamed") as caught:
        rg.plan(made(8, 2, True), made(8, 2, False)).to_key_mapping()
    assert any("slice" in problem for problem in caught.value.problems)


def test_swapped_names_are_no_key_mapping(tmp_path: Path) -> None:
    source = saved(tmp_path, {"a.weight": torch.ones(3, 3), "b.weight": torch.zeros(3, 3)})
    rules = [rg.pin("a.weight", "b.weight"), rg.pin("b.weight", "a.weight")]
    target = nn.ModuleDict({"a": nn.Linear(3, 3, False), "b": nn.Linear(3, 3, False)})
    plan = rg.plan(source, target, rules=rules)
    with pytest.raises(PlanError, match="tell apart"):
        plan.to_key_mapping()
