"""What pairs showed that nobody had tuned for: the exact values are compared."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg
from regraft import matching
from regraft.matching.modules import Module, tokens
from tests.matching.test_naming import Values, catalogue, check, planned, random

WIDTH, HIDDEN = 8, 12


def renamed(values: Values, *rules: tuple[str, str]) -> Values:
    made: Values = {}
    for name, array in values.items():
        for pattern, into in rules:
            name = re.sub(pattern, into, name)
        made[name] = array
    return made


def both_ways(source: Values, target: Values, order: Any = "stored") -> None:
    check(planned(source, target, order), source, target)
    check(planned(target, source, order), target, source)


def arrays(model: nn.Module) -> Values:
    generator = np.random.default_rng(0)
    return {
        name: generator.uniform(0.5, 1.5, tuple(tensor.shape)).astype(np.float32)
        for name, tensor in model.state_dict().items()
    }


# Names among sisters


def gated(gate: str, up: str, down: str) -> Values:
    shapes = {gate: (HIDDEN, WIDTH), up: (HIDDEN, WIDTH), down: (WIDTH, HIDDEN)}
    return random({f"layers.{i}.mlp.{n}.weight": s for i in range(3) for n, s in shapes.items()})


def test_w1_beside_w3_is_the_gate() -> None:
    source = gated("gate_proj", "up_proj", "down_proj")
    target = renamed(source, ("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2"))
    both_ways(source, target)


@pytest.mark.parametrize("order", ["stored", "sorted"])
def test_w1_beside_w2_of_its_size_is_not_said_to_be_the_gate(order: Any) -> None:
    source, target = gated("gate_proj", "up_proj", "down_proj"), gated("w1", "w2", "c_proj")
    plan = planned(source, target, order)
    assert {n for n in target if "c_proj" not in n} == plan.undecided.keys()


def test_norms_of_torchs_decoder_layer_are_those_of_its_attentions() -> None:
    layer = nn.TransformerDecoderLayer(WIDTH, 2, HIDDEN)
    target = arrays(nn.TransformerDecoder(layer, 2))
    rules = (
        (r"multihead_attn", "encoder_attn"),
        (r"norm1", "self_attn_layer_norm"),
        (r"norm2", "encoder_attn_layer_norm"),
        (r"norm3", "final_layer_norm"),
        (r"linear(\d)", r"fc\1"),
    )
    source = dict(sorted(renamed(target, *rules).items()))
    check(planned(source, target, "sorted"), source, target)


def test_halves_of_a_model_are_told_by_short_words() -> None:
    source = random({f"model.{half}coder.embed_positions.weight": (9, 4) for half in ("en", "de")})
    source |= random({"model.shared.weight": (7, 4)})
    target = renamed(source, (r"model\.(..)coder\.embed_positions", r"\1c_pos"), ("model.", ""))
    both_ways(dict(sorted(source.items())), target, "sorted")


def test_an_output_beside_query_key_and_value_is_the_attentions() -> None:
    words = {"q": "query", "k": "key", "v": "value", "o": "out"}
    source = random(
        {f"block.{i}.att.{n}.weight": (WIDTH, WIDTH) for i in range(2) for n in words}
        | {"block.0.att.pos_table.weight": (5, 2)}  # the blocks do not hold the same layers
    )
    target = {
        "position_table.weight" if "table" in n else f"blocks.{n[6]}.{words[n[12]]}.weight": a
        for n, a in source.items()
    }
    both_ways(source, target)


def test_w1_w2_w3_of_which_the_last_leads_back() -> None:
    source = gated("gate_proj", "up_proj", "down_proj")
    target = renamed(source, ("gate_proj", "w1"), ("up_proj", "w2"), ("down_proj", "w3"))
    both_ways(source, target, "sorted")


# Numbers


@pytest.mark.parametrize("letter", ["block_{}", "Block{}"])
def test_letters_count_where_all_are_there(letter: str) -> None:
    letters = "abcdefghijkl" if letter.islower() else "ABCDEFGHIJKL"
    target = random({f"blocks.{i}.fc.weight": (WIDTH, WIDTH) for i in range(12)})
    source = {
        f"{letter.format(letters[i])}.fc.weight": array for i, array in enumerate(target.values())
    }
    source = dict(sorted(source.items(), key=lambda item: item[0][::-1]))
    check(planned(source, target, "sorted"), source, target)


def test_letters_with_gaps_do_not_count() -> None:
    target = random({f"blocks.{i}.fc.weight": (WIDTH, WIDTH) for i in range(3)})
    source = {f"{n}.fc.weight": a for n, a in zip("qxb", target.values(), strict=True)}
    assert planned(source, target, "sorted").undecided.keys() == target.keys()


def test_the_fourth_block_of_a_stage_is_no_class_of_layers() -> None:
    assert tokens(["res2d"]) == ["res", "2", "3"]
    assert tokens(["conv2d_4"]) == ["conv2d", "4"]
    assert tokens(["BatchNorm2d"]) == ["batchnorm2d"]
    assert Module(("bn1d",), 0).tokens == ("bn1d",)


# Several networks


@pytest.mark.parametrize("names", [("nets.0", "nets.1"), ("first", "second"), ("a", "b")])
def test_none_of_two_networks_is_the_first(names: tuple[str, str]) -> None:
    shapes = {"conv.weight": (4, 3, 3, 3), "norm.weight": (4,), "fc.weight": (5, 4)}
    source = random({f"{name}.{n}": s for name in names for n, s in shapes.items()})
    source |= random({"queue": (3, 7)})
    assert planned(source, random(shapes)).undecided.keys() == shapes.keys()


def tower(extra: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    names = ("fc1.weight", "fc2.weight")
    return extra | {f"layers.{i}.{n}": (WIDTH, WIDTH) for i in range(2) for n in names}


def test_a_tower_goes_with_its_unmistakable_layers() -> None:
    image = tower({"patch.weight": (WIDTH, 3, 4, 4), "positions.weight": (17, WIDTH)})
    text = tower({"tokens.weight": (50, WIDTH), "positions.weight": (9, WIDTH)})
    source = random(
        {f"text.{n}": s for n, s in text.items()} | {f"image.{n}": s for n, s in image.items()}
    )
    for side, shapes in (("image", image), ("text", text)):
        target = {n: source[f"{side}.{n}"] for n in shapes}
        plan = planned(source, target, "sorted")
        assert not plan.undecided
        assert {g.sources for g in plan.grafts.values()} == {(f"{side}.{n}",) for n in target}


# Fused projections


def test_a_query_beside_key_and_value_in_one() -> None:
    source = random(
        {"fc.weight": (5, 8), "pool.in_proj_weight": (24, 8), "pool.in_proj_bias": (24,)}
    )
    target = {
        f"pool.{name}.{leaf}": source[f"pool.in_proj_{leaf}"][rows]
        for name, rows in (("q", slice(8)), ("kv", slice(8, 24)))
        for leaf in ("weight", "bias")
    }
    target["fc.weight"] = source["fc.weight"]
    both_ways(source, target)


def test_wqkv_spells_its_order() -> None:
    target = random({f"h.{i}.mixer.Wqkv.weight": (24, 8) for i in range(2)})
    source = {
        f"layers.{i}.self_attn.{n}_proj.weight": target[f"h.{i}.mixer.Wqkv.weight"][8 * k :][:8]
        for i in range(2)
        for k, n in enumerate("qkv")
    }
    source |= random({"positions.weight": (5, 8)})
    target["wpe.weight"] = source["positions.weight"]
    both_ways(source, target)


def test_rotary_layouts_do_not_depend_on_the_height_of_a_stack() -> None:
    inner = "attention.wq attention.wk attention.wv attention.wo feed_forward.w1 feed_forward.w2"
    names = [*inner.split(), "feed_forward.w3"]
    shapes = {f"layers.{i}.{n}.weight": (32, 32) for i in range(2) for n in names}
    norms = ("attention_norm", "ffn_norm")
    shapes |= {f"layers.{i}.{n}.weight": (32,) for i in range(2) for n in norms}
    source = random({"tok_embeddings.weight": (9, 32), **shapes})
    rules = (
        (r"tok_embeddings", "model.embed_tokens"),
        (r"layers", "model.layers"),
        (r"attention\.w(.)", r"self_attn.\1_proj"),
        (r"feed_forward\.w1", "mlp.gate_proj"),
        (r"feed_forward\.w2", "mlp.down_proj"),
        (r"feed_forward\.w3", "mlp.up_proj"),
        (r"attention_norm", "input_layernorm"),
        (r"ffn_norm", "post_attention_layernorm"),
    )
    target = renamed(source, *rules)
    deeper = target | {
        n.replace("layers.1", "layers.2"): a for n, a in target.items() if "layers.1" in n
    }
    for model in (target, deeper):
        plan = planned(source, model)
        said = [*plan.grafts.items(), *plan.undecided.items()]
        turned = {n for n, one in said if "half" in str(one) and "model.layers.2" not in n}
        assert turned == {n for n in target if re.search(r"[qk]_proj", n)}


# Ties


def test_a_bias_beside_a_tied_weight() -> None:
    shapes = {"embed.weight": (9, 4), "fc.weight": (4, 4), "fc.bias": (4,)}
    source = random(shapes | {"head.bias": (9,)})
    target = {f"net.{n}": a for n, a in source.items()}
    target["net.head.weight"] = source["embed.weight"]
    model = catalogue(
        {n: a.shape for n, a in target.items()}, framework="torch", order="definition",
        ties=[("net.embed.weight", "net.head.weight")],
    )  # fmt: skip
    file = catalogue({n: a.shape for n, a in source.items()})
    check(matching.match(file, model), source, target)


# Reparametrised


def spectral(old: bool) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    utils = torch.nn.utils
    norm = utils.spectral_norm if old else utils.parametrizations.spectral_norm
    layers = [nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 3), nn.Linear(4, 5)]
    source = nn.Sequential(*(norm(layer) for layer in layers))
    target = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 3), nn.Linear(4, 5))
    for name, parameter in source.named_parameters():
        nn.init.normal_(parameter, 0.0, 1.0 + len(name) / 50)
    return source.eval(), target


@pytest.mark.parametrize("old", [True, False])
def test_spectral_norms_are_divided_out(old: bool, tmp_path: Path) -> None:
    source, target = spectral(old)
    torch.save(source.state_dict(), tmp_path / "net.pth")
    plan = rg.plan(tmp_path / "net.pth", target)
    assert plan.complete
    assert not plan.unused
    rg.apply(plan, tmp_path / "net.pth", target)
    space: dict[str, Any] = {}
    exec(plan.to_python(), space)  # the script does the same
    inputs = torch.randn(2, 3, 6, 6), torch.randn(2, 8, 6, 6), torch.randn(2, 4)
    for x, layer, plain in zip(inputs, source, target, strict=True):  # pyright: ignore
        layer(x)  # the old form computes the weight here
        torch.testing.assert_close(plain.weight, layer.weight, rtol=1e-5, atol=1e-6)


def test_llm_int8_scales_stand_for_the_largest_value(tmp_path: Path) -> None:
    target = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    state, wanted = {}, {}
    for name, tensor in target.state_dict().items():
        state[name] = torch.randn(tensor.shape)
        if name.endswith("weight"):
            largest = state[name].abs().amax(1)
            codes = (state[name] * 127 / largest[:, None]).round().to(torch.int8)
            wanted[name] = codes.float() * largest[:, None] / 127
            state[name], state[name.replace("weight", "SCB")] = codes, largest
    torch.save(state, tmp_path / "int8.pth")
    rg.apply(rg.plan(tmp_path / "int8.pth", target), tmp_path / "int8.pth", target)
    for name, tensor in wanted.items():
        torch.testing.assert_close(target.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)


def test_integers_without_known_scales_are_doubted(tmp_path: Path) -> None:
    target = nn.Linear(6, 4)
    state = {"weight": torch.ones(4, 6, dtype=torch.int8), "bias": torch.ones(4)}
    torch.save(state, tmp_path / "int8.pth")
    plan = rg.plan(tmp_path / "int8.pth", target)
    assert [w.code for w in plan.warnings] == ["integer-weights"]


def test_what_was_trained_beside_adapters_takes_the_place_of_what_was_before() -> None:
    target = random({"body.weight": (6, 4), "head.weight": (3, 6), "head.bias": (3,)})
    stem = "base_model.model."
    source = {f"{stem}body.weight": target["body.weight"]}
    for leaf in ("weight", "bias"):
        source[f"{stem}head.original_module.{leaf}"] = -target[f"head.{leaf}"]
        source[f"{stem}head.modules_to_save.default.{leaf}"] = target[f"head.{leaf}"]
    plan = planned(source, target)
    assert plan.complete
    assert {n: g.sources for n, g in plan.grafts.items() if "head" in n} == {
        f"head.{leaf}": (f"{stem}head.modules_to_save.default.{leaf}",)
        for leaf in ("weight", "bias")
    }


# Attachment


def test_sizes_tell_which_layer_a_norm_follows_in_a_sorted_file() -> None:
    parts = ("weight", "bias", "running_mean", "running_var")
    norms = {f"n{i}.{p}": (8,) for i in (1, 4) for p in parts}
    shapes = {"n0.weight": (8, 3, 3, 3), "n3.weight": (8, 1, 3, 3), "n6.weight": (4, 8, 1, 1)}
    flat = random({**shapes, **norms})
    order = [f"n{i}" for i in (0, 1, 3, 4, 6)]
    target = {n: a for one in order for n, a in flat.items() if n.startswith(f"{one}.")}
    target = renamed(target, (r"^n(\d)", r"layers.\1"))
    rules = (
        (r"layers\.0", "stem"), (r"layers\.1", "bn1"), (r"layers\.3", "block.depthwise"),
        (r"layers\.4", "block.bn1"), (r"layers\.6", "block.point"),
    )  # fmt: skip
    source = dict(sorted(renamed(target, *rules).items()))
    check(planned(source, target, "sorted"), source, target)
