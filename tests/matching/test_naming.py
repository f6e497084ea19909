"""What names say of tensors that differ in nothing else: the exact values are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from regraft import matching
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
