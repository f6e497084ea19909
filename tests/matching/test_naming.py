"""What names say of tensors that differ in nothing else: the exact values are compared."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg
from regraft import matching
from regraft.matching import projections
from regraft.operations import run
from regraft.plans import Plan
from regraft.tensors import Catalogue, Order, TensorInfo

Values = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]


def random(shapes: Shapes) -> Values:
    """Values that are all distinct, in the order given."""
    generator = np.random.default_rng(0)
    return {n: generator.uniform(0.5, 1.5, s).astype(np.float32) for n, s in shapes.items()}


def catalogue(shapes: Shapes, **options: Any) -> Catalogue:
    return Catalogue([TensorInfo(n, s, "float32") for n, s in shapes.items()], **options)


def planned(source: Values, target: Values, order: Order = "stored", **options: Any) -> Plan:
    """The plan from a file to a model of PyTorch, whose values are not looked at."""
    ours = {name: array.shape for name, array in source.items()}
    theirs = {name: array.shape for name, array in target.items()}
    model = catalogue(theirs, framework="torch", order="definition", label="model")
    return matching.match(catalogue(ours, order=order, label="file", **options), model)


def check(plan: Plan, source: Values, expected: Values) -> None:
    """Every target tensor gets the very values that are expected."""
    assert plan.complete, plan
    assert not plan.unused
    assert not plan.fresh
    for name, array in expected.items():
        graft = plan.grafts[name]
        made = run(graft.ops, [source[one] for one in graft.sources])
        np.testing.assert_array_equal(made, array, err_msg=name)


def both_ways(source: Values, target: Values) -> None:
    check(planned(source, target), source, target)
    check(planned(target, source), target, source)


# The order of text


def test_a_file_that_was_sorted_without_saying_so_has_no_order() -> None:
    names = ["linear", *(f"linear_{i}" for i in range(1, 12))]
    expected = random({f"layers.{i}.weight": (6, 6) for i in range(12)})
    given = {f"mlp/~/{n}/w": a.T for n, a in zip(names, expected.values(), strict=True)}
    given = {"mlp/~/first/w": np.zeros((5, 6), np.float32), **given}
    expected = {"first.weight": given["mlp/~/first/w"].T, **expected}
    source = dict(sorted(given.items()))
    plan = planned(source, expected)
    check(plan, source, expected)


# Experts


def experts(count: int, width: int, hidden: int) -> tuple[Values, Values]:
    """A list of experts, and their weights merged with the inputs first."""
    listed = random(
        {"router.weight": (count, width)}
        | {f"experts.{i}.fc1.weight": (hidden, width) for i in range(count)}
        | {f"experts.{i}.fc2.weight": (width, hidden) for i in range(count)}
    )
    merged = {"router.weight": listed["router.weight"]}
    for name, layer in (("w_in", "fc1"), ("w_out", "fc2")):
        merged[name] = np.stack([listed[f"experts.{i}.{layer}.weight"].T for i in range(count)])
    return listed, merged


def test_experts_merged_inputs_first_are_a_list_of_experts() -> None:
    both_ways(*experts(3, 4, 6))


def test_experts_merged_outputs_first_are_a_list_of_experts() -> None:
    listed, merged = experts(3, 4, 6)
    merged |= {name: merged[name].transpose(0, 2, 1) for name in ("w_in", "w_out")}
    both_ways(listed, merged)


def test_square_experts_may_lie_either_way() -> None:
    listed, merged = experts(3, 4, 4)
    plan = planned(merged, listed)
    assert {f"experts.{i}.fc{j}.weight" for i in range(3) for j in (1, 2)} == set(plan.undecided)


def test_layers_are_not_fresh_where_unused_ones_may_hold_their_values() -> None:
    """Nothing says which of these matrices leads into an expert and which out of it."""
    listed, merged = experts(3, 4, 6)
    source = {n.replace("w_in", "a").replace("w_out", "z"): array for n, array in merged.items()}
    stem = random({"stem.weight": (4, 5), "stem.bias": (4,), "head.weight": (7, 4)})
    plan = planned(stem | source, stem | listed)
    assert not plan.fresh
    assert {f"experts.{i}.fc{j}.weight" for i in range(3) for j in (1, 2)} == set(plan.undecided)


# Attentions of a decoder

# Names of the layers of a decoder's block, in one order.
DECODERS = {
    "authors of Whisper": (
        ("attn.query", "attn.key", "attn.value", "attn.out"),
        ("cross_attn.query", "cross_attn.key", "cross_attn.value", "cross_attn.out"),
        ("attn_ln", "cross_attn_ln", "mlp_ln"),
    ),
    "transformers": (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
        ("encoder_attn.q_proj", "encoder_attn.k_proj", "encoder_attn.v_proj",
         "encoder_attn.out_proj"),
        ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
    ),
    "T5": (
        ("SelfAttention.q", "SelfAttention.k", "SelfAttention.v", "SelfAttention.o"),
        ("EncDecAttention.q", "EncDecAttention.k", "EncDecAttention.v", "EncDecAttention.o"),
        ("attention_norm", "cross_attention_norm", "ffn_norm"),
    ),
}  # fmt: skip


def decoder(style: str, body: str) -> Values:
    # Learned positions: there is no question of a rotary layout.
    shapes: dict[str, tuple[int, ...]] = {f"{body.partition('.')[0]}.positions.weight": (5, 8)}
    for block in range(2):
        attentions = [layer for layers in DECODERS[style][:2] for layer in layers]
        for layer in attentions:
            shapes[f"{body}.{block}.{layer}.weight"] = 8, 8
            shapes[f"{body}.{block}.{layer}.bias"] = (8,)
        for norm in DECODERS[style][2]:
            shapes[f"{body}.{block}.{norm}.weight"] = (8,)
            shapes[f"{body}.{block}.{norm}.bias"] = (8,)
    return random(shapes)


@pytest.mark.parametrize("ours", DECODERS)
@pytest.mark.parametrize("theirs", DECODERS)
def test_attentions_of_a_decoder_are_told_apart_by_their_names(ours: str, theirs: str) -> None:
    """Shuffled, so that no order says which is which."""
    source, target = decoder(ours, "model.decoder.layers"), decoder(theirs, "dec.blocks")
    names = list(source)
    np.random.default_rng(0).shuffle(names)
    check(planned({name: source[name] for name in names}, target), source, target)


# Fused projections


def block(
    fused: str, parts: str, sizes: tuple[int, ...], *, biased: str = ""
) -> tuple[Values, Values]:
    """A fused projection whose parts lie in the order of `parts`, and the same apart."""
    shapes = {"positions.weight": (5, 8)}  # learned: there is no question of a rotary layout
    names = parts.split(",")
    shapes |= {f"h.{i}.attn.{n}_proj.weight": (s, 8) for i in range(2)
               for n, s in zip(names, sizes, strict=True)}  # fmt: skip
    shapes |= {f"h.{i}.attn.{n}_proj.bias": (s,) for i in range(2)
               for n, s in zip(names, sizes, strict=True) if n in biased.split(",")}  # fmt: skip
    split = random(shapes)
    whole = {"positions.weight": split["positions.weight"]}
    for i in range(2):
        for role in ("weight", "bias") if biased else ("weight",):
            zero = [np.zeros(size, np.float32) for size in sizes]
            held = [split.get(f"h.{i}.attn.{n}_proj.{role}") for n in names]
            made = [z if a is None else a for a, z in zip(held, zero, strict=True)]
            whole[f"h.{i}.attn.{fused}.{role}"] = np.concatenate(made)
    return whole, split


@pytest.mark.parametrize(
    ("fused", "parts", "sizes"),
    [
        ("kqv", "k,q,v", (8, 8, 8)),
        ("vqk_proj", "v,q,k", (4, 8, 4)),
        ("qkv", "q,k,v", (8, 4, 4)),
        ("key_query_value", "k,q,v", (8, 8, 8)),
        ("gate_up", "gate,up", (12, 12)),
        ("up_gate_proj", "up,gate", (12, 12)),
    ],
)
def test_names_that_spell_an_order_say_how_parts_lie(
    fused: str, parts: str, sizes: tuple[int, ...]
) -> None:
    both_ways(*block(fused, parts, sizes))


def test_names_that_spell_no_order_leave_it_open() -> None:
    whole, split = block("mixer", "q,k,v", (8, 8, 8))
    assert len(planned(whole, split).undecided) == 6


def test_a_part_without_bias_is_zero_in_a_fused_one() -> None:
    whole, split = block("qkv", "q,k,v", (8, 8, 8), biased="q,v")
    check(planned(split, whole), split, whole)


# Rotary layouts


def llama(style: str) -> Values:
    """Two blocks under the names of LLaMA's first code, or those of transformers."""
    names = {
        "tok_embeddings": "embed_tokens", "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj", "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (11, 8)}
    for i in range(2):
        for name in names:
            sizes = {
                "feed_forward.w1": (12, 8),
                "feed_forward.w3": (12, 8),
                "feed_forward.w2": (8, 12),
            }
            shape = (8,) if name.endswith("norm") else sizes.get(name, (8, 8))
            if name != "tok_embeddings":
                shapes[f"layers.{i}.{name}.weight"] = shape
    values = random(shapes)
    if style == "authors":
        return values
    for name, new in names.items():
        values = {key.replace(name, new): array for key, array in values.items()}
    return values


def test_the_names_of_llamas_first_code_tell_its_rotary_layout() -> None:
    source, target = llama("authors"), llama("transformers")
    plan = planned(source, target, metadata={"config": '{"num_attention_heads": 2}'})
    for i in range(2):
        for part in "qk":
            name = f"layers.{i}.self_attn.{part}_proj.weight"
            neighbours = target[name].reshape(2, 2, 2, 8)
            target[name] = neighbours.swapaxes(1, 2).reshape(8, 8)
    check(plan, source, target)
    reasons = plan.grafts["layers.0.self_attn.q_proj.weight"].evidence
    assert any("LLaMA's first code" in reason.text for reason in reasons)


def test_some_of_these_names_do_not_tell_it() -> None:
    source = {
        name: a for name, a in llama("authors").items() if not name.endswith("ffn_norm.weight")
    }
    target = {name: a for name, a in llama("transformers").items() if "post_attention" not in name}
    plan = planned(source, target, metadata={"config": '{"num_attention_heads": 2}'})
    assert {f"layers.{i}.self_attn.{p}_proj.weight" for i in range(2) for p in "qk"} == set(
        plan.undecided
    )


class Attention(nn.Module):
    """Of vectors, without positions. `fused`: one projection for query, key and value."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.parts = names
        for name in names:
            self.add_module(name, nn.Linear(8, 24 // len(names)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        q, k, v = torch.cat([getattr(self, name)(x) for name in self.parts], -1).chunk(3, -1)
        return torch.softmax(q @ k.transpose(-1, -2), -1) @ v


@pytest.mark.parametrize("names", [("qkv",), ("q", "k", "v")])
def test_a_model_that_turns_nothing_is_not_asked_about_its_rotary_layout(
    names: tuple[str, ...],
) -> None:
    source, target = Attention("query", "key", "value"), Attention(*names)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    plan = rg.plan(source, target)
    assert plan.complete
    for name, tensor in target.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    rg.load(source, target)
    x = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(source(x), target(x))


# Numbers of heads


def by_head(heads: int) -> tuple[Values, Values]:
    """A projection whose parts lie by head, as GPT-NeoX has it, and the same apart."""
    whole, split = block("query_key_value", "q,k,v", (8, 8, 8))
    for i in range(2):
        parts = [split[f"h.{i}.attn.{n}_proj.weight"].reshape(heads, -1, 8) for n in "qkv"]
        whole[f"h.{i}.attn.query_key_value.weight"] = np.concatenate(parts, 1).reshape(24, 8)
    return whole, split


@pytest.mark.parametrize("heads", [2, 4])
def test_heads_are_known_from_the_configuration(heads: int) -> None:
    whole, split = by_head(heads)
    config = {"config": f'{{"num_attention_heads": {heads}, "model_type": "gpt_neox"}}'}
    check(planned(whole, split, metadata=config), whole, split)
    check(planned(split, whole, metadata=config), split, whole)


@pytest.mark.parametrize(
    "attribute", ["num_heads", "n_head", "n_heads", "heads", "nhead", "config"]
)
def test_heads_are_known_from_a_live_model(attribute: str) -> None:
    target = Attention("q", "k", "v")
    held = {"config": type("Config", (), {})()}.get(attribute, 2)
    setattr(target, attribute, held)
    if attribute == "config":
        held.num_attention_heads = 2
    source = Attention("query_key_value")
    plan = rg.plan(source, target)
    rg.apply(plan, source, target)
    fused = source.state_dict()["query_key_value.weight"].reshape(2, 3, 4, 8)
    for place, name in enumerate("qkv"):
        made = target.state_dict()[f"{name}.weight"]
        torch.testing.assert_close(made, fused[:, place].reshape(8, 8), rtol=0, atol=0)


def test_of_several_numbers_of_heads_none_is_taken() -> None:
    whole, split = by_head(2)
    config = '{"text": {"num_attention_heads": 2}, "vision": {"num_attention_heads": 4}}'
    assert len(planned(whole, split, metadata={"config": config}).undecided) == 6


# Adapters


@pytest.mark.parametrize(("alpha", "prefix"), [("4", "adapter."), ("16", "adapter."), ("16", "")])
def test_the_factor_of_adapters_is_that_of_their_config(alpha: str, prefix: str) -> None:
    source = random(
        {"base.base_layer.weight": (6, 8), "base.lora_A.default.weight": (4, 8),
         "base.lora_B.default.weight": (6, 4)}
    )  # fmt: skip
    a, b = source["base.lora_A.default.weight"], source["base.lora_B.default.weight"]
    merged = source["base.base_layer.weight"] + np.float32(int(alpha) / 4) * (b @ a)
    told = {f"{prefix}r": "4", f"{prefix}lora_alpha": alpha, f"{prefix}rank_pattern": "{}"}
    plan = planned(source, {"base.weight": merged}, metadata=told)
    graft = plan.grafts["base.weight"]
    made = run(graft.ops, [source[name] for name in graft.sources])
    np.testing.assert_allclose(made, merged, rtol=1e-6)
    told[f"{prefix}rank_pattern"] = '{"base": 2}'
    assert planned(source, {"base.weight": merged}, metadata=told).undecided


# Trees of JAX


@pytest.mark.parametrize("prefix", ["", "state/", "train/0/"])
def test_statistics_in_a_tree_of_their_own_beside_other_state(prefix: str) -> None:
    expected = random(
        {f"layers.{i}.{kind}": shape for i in range(2)
         for kind, shape in {"conv.weight": (6, 6, 3, 3), "norm.weight": (6,), "norm.bias": (6,),
                             "norm.running_mean": (6,), "norm.running_var": (6,)}.items()}
    )  # fmt: skip
    words = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    source: Values = {}
    for name, array in expected.items():
        _, number, layer, leaf = name.split(".")
        tree = "batch_stats" if "running" in leaf else "params"
        word = "kernel" if layer == "conv" else words[leaf]
        moved = array.transpose(2, 3, 1, 0) if layer == "conv" else array
        source[f"{prefix}{tree}/layers_{number}/{layer}/{word}"] = moved
    source = {f"{prefix}rate/table": np.zeros((3, 5), np.float32), **source}
    plan = planned(source, expected)
    assert plan.unused == (f"{prefix}rate/table",)
    for name, array in expected.items():
        graft = plan.grafts[name]
        made = run(graft.ops, [source[one] for one in graft.sources])
        np.testing.assert_array_equal(made, array, err_msg=name)


def test_a_counter_of_steps_is_no_unused_weight() -> None:
    infos = [TensorInfo("a.weight", (3, 4), "float32"), TensorInfo("step", (), "int64")]
    model = catalogue({"a.weight": (3, 4)}, framework="torch", order="definition")
    assert not matching.match(Catalogue(infos), model).unused
    learnt = [infos[0], TensorInfo("step", (), "float32")]
    assert matching.match(Catalogue(learnt), model).unused == ("step",)


def test_a_plain_list_of_kernels_and_biases() -> None:
    widths = (5, 8, 8, 8, 3)
    expected = random(
        {f"layers.{i}.{word}": shape for i, (a, b) in enumerate(itertools.pairwise(widths))
         for word, shape in (("weight", (b, a)), ("bias", (b,)))}
    )  # fmt: skip
    source = {f"{i}/0": expected[f"layers.{i}.weight"].T for i in range(4)}
    source |= {f"{i}/1": expected[f"layers.{i}.bias"] for i in range(4)}
    check(planned(source, expected), source, expected)


def test_a_list_of_other_things_has_no_roles() -> None:
    expected = random({"layers.0.weight": (8, 5), "layers.0.bias": (8,)})
    source = {"0/0": expected["layers.0.bias"], "0/1": expected["layers.0.weight"].T}
    assert set(planned(source, expected).undecided) == set(expected)


def test_the_path_of_haiku_says_how_kernels_lie() -> None:
    expected = random({"conv.weight": (4, 6, 3, 3), "conv.bias": (4,)})
    kernel = expected["conv.weight"].transpose(2, 3, 1, 0)
    source = {"net/~/conv2_d/w": kernel, "net/~/conv2_d/b": expected["conv.bias"]}
    check(planned(source, expected), source, expected)
    other = {name.replace("/~", ""): array for name, array in source.items()}
    assert planned(other, expected).undecided


def test_between_trees_of_one_framework_no_kernel_is_turned() -> None:
    """Without classes `[3, 3, 6, 6]` may be a depthwise kernel as well; it is so on both sides."""
    values = random({"params/Conv_0/kernel": (3, 3, 6, 6), "params/Conv_0/bias": (6,)})
    shapes = {name: array.shape for name, array in values.items()}
    plan = matching.match(catalogue(shapes), catalogue(shapes, framework="jax"))
    assert plan.complete
    assert all(not graft.ops for graft in plan.grafts.values())


# Places in a block


def test_branches_of_a_residual_block_of_equal_sizes() -> None:
    ours = ("f.a.0", "f.b.0", "f.c.0", "proj.0")
    theirs = ("conv1.conv", "conv2.conv", "conv3.conv", "downsample.conv")
    shapes = ((6, 4, 1, 1), (6, 6, 3, 3), (6, 6, 1, 1), (6, 4, 1, 1))
    expected = random(
        {f"s1.b{block + 1}.{layer}.weight": shape for block in range(2)
         for layer, shape in zip(theirs, shapes, strict=True)}
    )  # fmt: skip
    source = {
        f"block1.block1-{block}.{layer}.weight": expected[f"s1.b{block + 1}.{other}.weight"]
        for block in range(2)
        for layer, other in zip(ours[::-1], theirs[::-1], strict=True)
    }
    check(planned(source, expected), source, expected)


def test_a_projection_of_patches_is_no_shortcut() -> None:
    for a, b in (("conv_proj", "visual.conv1"), ("patch_embed.proj", "conv1")):
        assert not projections.at_odds(tuple(a.split(".")), tuple(b.split(".")))
    assert projections.at_odds(("layer1", "0", "downsample", "0"), ("Block_0", "conv1"))


def test_t5_counts_the_layers_of_a_block() -> None:
    """Its first block has a table more, so that its blocks are not alike."""
    names = {
        "layer.0.SelfAttention.q": "attention.q", "layer.0.SelfAttention.k": "attention.k",
        "layer.0.SelfAttention.v": "attention.v", "layer.0.SelfAttention.o": "attention.o",
        "layer.0.layer_norm": "pre_attention", "layer.1.DenseReluDense.wi": "feed.wi",
        "layer.1.DenseReluDense.wo": "feed.wo", "layer.1.layer_norm": "pre_feed",
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {}
    for block_ in range(2):
        for name in names:
            wide = {"layer.1.DenseReluDense.wi": (12, 8), "layer.1.DenseReluDense.wo": (8, 12)}
            shape = (8,) if "norm" in name else wide.get(name, (8, 8))
            shapes[f"encoder.block.{block_}.{name}.weight"] = shape
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = 5, 2
    shapes["encoder.final_layer_norm.weight"] = (8,)
    source = random(dict(sorted(shapes.items())))
    expected: Values = {}
    for name, array in source.items():
        new = name.replace("encoder.block", "blocks")
        for ours, theirs in names.items():
            new = new.replace(ours, theirs)
        new = new.replace("encoder.final_layer_norm", "norm")
        new = "distance.weight" if "relative" in name else new
        expected[new] = array
    check(planned(source, expected, order="sorted"), source, expected)


def test_a_norm_behind_the_attention_is_the_one_before_the_feed_forward_layers() -> None:
    blocks = {"input_layernorm": "norm_attention", "post_attention_layernorm": "norm_mlp"}
    outside = {"word_embeddings_layernorm": "norm_in", "ln_f": "norm_out"}
    shapes = {f"h.{i}.{n}.weight": (8,) for i in range(2) for n in blocks}
    shapes |= {f"h.{i}.mlp.weight": (8, 8) for i in range(2)}
    source = random(dict(sorted((shapes | {f"{n}.weight": (8,) for n in outside}).items())))
    expected: Values = {}
    for name, array in source.items():
        new = name.replace("h.", "blocks.")
        for ours, theirs in (blocks | outside).items():
            new = new.replace(ours, theirs)
        expected[new] = array
    check(planned(source, expected, order="sorted"), source, expected)


class Heads(nn.Module):
    """An attention that tells nobody how many heads it has: three, of two rows each."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.parts = names
        for name in names:
            self.add_module(name, nn.Linear(6, 18 // len(names)))
        self.behind, self.other = nn.Linear(6, 6), nn.Linear(6, 12)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        whole = torch.cat([getattr(self, name)(x) for name in self.parts], -1)
        if len(self.parts) == 1:  # by head
            q, k, v = whole.unflatten(-1, (3, 3, 2)).transpose(1, 2).unbind(-2)
        else:
            q, k, v = (p.unflatten(-1, (3, 2)).transpose(1, 2) for p in whole.chunk(3, -1))
        x = (torch.softmax(q @ k.transpose(-1, -2), -1) @ v).transpose(1, 2).flatten(2)
        return self.other(self.behind(x))


def test_heads_are_known_by_experiment_with_a_live_model() -> None:
    source, target = Heads("query_key_value"), Heads("q", "k", "v")
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    plan = rg.plan(source, target)
    assert plan.complete, plan
    for name, tensor in target.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    rg.load(source, target)
    ids = torch.arange(7)[None]
    torch.testing.assert_close(source(ids), target(ids))


def test_a_dense_layer_of_a_head_is_no_projection_of_an_attention() -> None:
    assert projections.at_odds(("encoder", "self", "query"), ("pooled_dense",))
    assert not projections.at_odds(("pooler", "dense"), ("pooled_dense",))


@pytest.mark.parametrize("start", [0, 30])
@pytest.mark.parametrize("bare", [0, 1])
def test_norms_follow_layers_though_keras_counts_them_apart(start: int, bare: int) -> None:
    """Of equal layers; `bare`: the first ones have no norm, so that equal numbers do not belong
    together."""
    words = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean",
             "running_var": "moving_variance"}  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(4):
        shapes[f"net.{2 * i}.weight"] = 6, 6, 3, 3
        shapes |= {f"net.{2 * i + 1}.{word}": (6,) for word in words if i >= bare}
    expected = random(shapes)
    source: Values = {}
    for name, array in expected.items():
        _, place, word = name.split(".")
        number, norm = divmod(int(place), 2)
        number = number - bare + 2 * start if norm else number + start
        layer = "batch_normalization" if norm else "conv2d"
        layer += f"_{number}" if number else ""
        moved = array if norm else array.transpose(2, 3, 1, 0)
        source[f"{layer}/{words[word] if norm else 'kernel'}"] = moved
    for order in ("stored", "sorted"):
        given = dict(sorted(source.items())) if order == "sorted" else source
        check(planned(given, expected, order=order, framework="keras"), given, expected)
