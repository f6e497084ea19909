"""What pairs with trees of JAX and stores of Keras showed: the exact values are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import regraft as rg
from regraft import matching
from regraft.plans import Plan
from regraft.tensors import Catalogue, TensorInfo
from tests.matching.test_naming import Values, catalogue, check, planned, random

WIDTH, HIDDEN, HEADS, LAYERS = 8, 12, 2, 3
SIZE = WIDTH // HEADS
STATISTICS = ("weight", "bias", "running_mean", "running_var")


def keras_plan(source: Values, target: Values, classes: dict[str, str]) -> Plan:
    """From a Keras file whose layers' classes are told by the end of their names."""
    infos = [
        TensorInfo(name, array.shape, "float32", module=kind)
        for name, array in source.items()
        for ending, kind in classes.items()
        if name.rpartition("/")[0].endswith(ending)
    ]
    theirs = {name: array.shape for name, array in target.items()}
    model = catalogue(theirs, framework="torch", order="definition", label="model")
    return matching.match(Catalogue(infos, framework="keras", label="file"), model)


# Norms and the layers they follow


def test_a_norm_with_the_whole_name_of_a_layer_follows_it() -> None:
    target = random(
        {"stem.weight": (8, 3, 3, 3)}
        | {f"bn1.{p}": (8,) for p in STATISTICS}
        | {"block.conv_dw.weight": (8, 1, 3, 3)}
        | {f"block.bn1.{p}": (8,) for p in STATISTICS}
        | {"block.conv_pw.weight": (6, 8, 1, 1)}
    )
    words = dict(zip(STATISTICS, ("gamma", "beta", "moving_mean", "moving_variance"), strict=True))
    # Norms before kernels, as a legacy file has them.
    source = {f"conv1_bn/{w}": target[f"bn1.{p}"] for p, w in words.items()}
    source |= {f"conv_dw_1_bn/{w}": target[f"block.bn1.{p}"] for p, w in words.items()}
    source["conv1/kernel"] = target["stem.weight"].transpose(2, 3, 1, 0)
    source["conv_dw_1/kernel"] = target["block.conv_dw.weight"].transpose(2, 3, 0, 1)
    source["conv_pw_1/kernel"] = target["block.conv_pw.weight"].transpose(2, 3, 1, 0)
    classes = {"_bn": "BatchNormalization", "conv1": "Conv2D", "conv_pw_1": "Conv2D",
               "conv_dw_1": "DepthwiseConv2D"}  # fmt: skip
    check(keras_plan(source, target, classes), source, target)


def test_numbers_tell_norms_apart_once_that_of_the_stem_is_settled() -> None:
    target = random(
        {"stem/kernel": (3, 3, 3, 8)}
        | {f"stem_bn/{w}": (8,) for w in ("gamma", "beta", "moving_mean", "moving_variance")}
        | {"depthwise/kernel": (3, 3, 8, 1)}
        | {f"depthwise_bn/{w}": (8,) for w in ("gamma", "beta", "moving_mean", "moving_variance")}
        | {"project/kernel": (1, 1, 8, 8)}
        | {f"project_bn/{w}": (8,) for w in ("gamma", "beta", "moving_mean", "moving_variance")}
    )
    layers = {"stem": "conv_stem", "depthwise": "blocks.0.conv_dw", "project": "blocks.0.conv_pw"}
    norms = {"stem_bn": "bn1", "depthwise_bn": "blocks.0.bn1", "project_bn": "blocks.0.bn2"}
    words = dict(zip(("gamma", "beta", "moving_mean", "moving_variance"), STATISTICS, strict=True))
    source: Values = {}
    for name, array in target.items():
        layer, word = name.split("/")
        axes = (2, 3, 0, 1) if layer == "depthwise" else (3, 2, 0, 1)
        if word == "kernel":
            source[f"{layers[layer]}.weight"] = array.transpose(axes)
        else:
            source[f"{norms[layer]}.{words[word]}"] = array
    source = dict(sorted(source.items()))
    kinds = {"stem": "Conv2D", "depthwise": "DepthwiseConv2D", "project": "Conv2D"}
    model = Catalogue(
        [
            TensorInfo(n, a.shape, "float32", module=kinds.get(n.split("/")[0], "BatchNormalization"))
            for n, a in target.items()
        ],
        framework="keras", order="definition", label="model",
    )  # fmt: skip
    shapes = {name: array.shape for name, array in source.items()}
    file = catalogue(shapes, framework="torch", order="sorted", label="file")
    check(matching.match(file, model), source, target)


# Norms of a block


def transformer(first: str, second: str, *, second_first: bool) -> Values:
    """Blocks with two norms and two square layers each; the second norm may be listed first."""
    values: dict[str, tuple[int, ...]] = {}
    for i in range(LAYERS):
        names = [f"blocks.{i}.{first}", f"blocks.{i}.{second}"]
        for name in reversed(names) if second_first else names:
            values |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
        values |= {
            f"blocks.{i}.up.weight": (HIDDEN, WIDTH),
            f"blocks.{i}.down.weight": (WIDTH, HIDDEN),
        }
    return random(values)


def test_what_names_say_of_two_norms_is_no_question_of_their_order() -> None:
    source = transformer("self_attention_layer_norm", "feedforward_layer_norm", second_first=True)
    target = transformer("ln_1", "ln_2", second_first=False)
    for name in target:
        same = name.replace("ln_1", "self_attention_layer_norm")
        target[name] = source[same.replace("ln_2", "feedforward_layer_norm")]
    check(planned(source, target), source, target)


def test_norms_counted_from_zero_are_the_first_and_the_second() -> None:
    source = transformer("LayerNorm_0", "LayerNorm_1", second_first=False)
    target = {n.replace("LayerNorm_0", "norm1").replace("LayerNorm_1", "norm2"): a
              for n, a in source.items()}  # fmt: skip
    check(planned(dict(sorted(source.items())), target, "sorted"), source, target)


# Trees


def tree(count: int) -> tuple[Values, Values]:
    """Blocks one by one, as PyTorch has them, and Flax' words for their arrays, one by one."""
    torch_ = random(
        {"tok.weight": (9, WIDTH)}
        | {
            f"h.{i}.{n}": s
            for i in range(count)
            for n, s in {
                "ln_1.weight": (WIDTH,), "ln_1.bias": (WIDTH,),
                "attn.c_attn.weight": (3 * WIDTH, WIDTH), "attn.c_attn.bias": (3 * WIDTH,),
                "attn.c_proj.weight": (WIDTH, WIDTH), "attn.c_proj.bias": (WIDTH,),
            }.items()
        }
    )  # fmt: skip
    flax: Values = {"tok/embedding": torch_["tok.weight"]}
    for i in range(count):
        own = {n.removeprefix(f"h.{i}."): a for n, a in torch_.items() if n.startswith(f"h.{i}.")}
        flax |= {
            f"blocks_{i}/ln_1/scale": own["ln_1.weight"],
            f"blocks_{i}/ln_1/bias": own["ln_1.bias"],
            f"blocks_{i}/attn/qkv/kernel":
                own["attn.c_attn.weight"].T.reshape(WIDTH, 3, HEADS, SIZE),
            f"blocks_{i}/attn/qkv/bias": own["attn.c_attn.bias"].reshape(3, HEADS, SIZE),
            f"blocks_{i}/attn/c_proj/kernel": own["attn.c_proj.weight"].T,
            f"blocks_{i}/attn/c_proj/bias": own["attn.c_proj.bias"],
        }  # fmt: skip
    return torch_, flax


def stacked(flax: Values, axis: int) -> Values:
    """The same with the blocks along an axis of each array."""
    ends = [n.removeprefix("blocks_0/") for n in flax if n.startswith("blocks_0/")]
    made = {f"blocks/{e}": np.stack([flax[f"blocks_{i}/{e}"] for i in range(LAYERS)], axis)
            for e in ends}  # fmt: skip
    return {"tok/embedding": flax["tok/embedding"]} | made


def jax_target(source: Values, target: Values, framework: str = "torch") -> Plan:
    file = catalogue({n: a.shape for n, a in source.items()}, framework=framework, label="file")
    model = catalogue({n: a.shape for n, a in target.items()}, framework="jax", order="sorted")
    return matching.match(file, model)


def test_parts_along_an_axis_are_those_of_a_joined_kernel() -> None:
    torch_, flax = tree(LAYERS)
    check(planned(flax, torch_), flax, torch_)
    check(jax_target(torch_, flax), torch_, flax)


def test_parts_along_an_axis_stay_whole_where_the_other_side_has_the_same() -> None:
    _, flax = tree(2)
    plan = jax_target(flax, flax, "jax")
    check(plan, flax, flax)
    assert all(not graft.ops for graft in plan.grafts.values())


@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_along_the_first_or_the_second_axis(axis: int) -> None:
    """A bias `[3, h, k]` has no second axis that could be the blocks': it is left out there."""
    torch_, flax = tree(LAYERS)
    torch_ = {n: a for n, a in torch_.items() if not n.endswith("bias")}
    flax = stacked({n: a for n, a in flax.items() if not n.endswith("bias")}, axis)
    check(planned(flax, torch_), flax, torch_)
    check(jax_target(torch_, flax), torch_, flax)


def test_a_table_of_relative_positions_may_lie_with_its_heads_first() -> None:
    target = random({"block.0.attention.relative_attention_bias.weight": (6, HEADS)})
    target |= random({"block.0.attention.o.weight": (5, 7)})
    source = {
        "layers_0/attention/out/kernel": target["block.0.attention.o.weight"].T,
        "relpos_bias/rel_embedding":
            target["block.0.attention.relative_attention_bias.weight"].T,
    }  # fmt: skip
    check(planned(source, target), source, target)


def test_a_square_table_of_relative_positions_may_lie_either_way() -> None:
    target = random({"block.0.attention.relative_attention_bias.weight": (HEADS, HEADS)})
    source = {"relpos_bias/rel_embedding": next(iter(target.values())).T}
    plan = planned(source, target)
    (question,) = plan.undecided.values()
    assert {tuple(map(str, a.ops)) for a in question.alternatives} == {(), ("transpose(1, 0)",)}


def test_a_table_serves_all_layers_that_are_tied() -> None:
    names = ["shared.weight", "encoder.embed.weight", "decoder.embed.weight"]
    table = random({"x": (9, WIDTH)})["x"]
    target: Values = dict.fromkeys(names, table) | random({"encoder.fc.weight": (5, WIDTH)})
    source = {"token_embedder/embedding": table, "encoder/fc/kernel": target["encoder.fc.weight"].T}
    infos = [TensorInfo(n, a.shape, "float32") for n, a in target.items()]
    options: Any = {"framework": "torch", "order": "definition", "ties": [tuple(names)]}
    ours = catalogue({n: a.shape for n, a in source.items()}, label="file")
    check(matching.match(ours, Catalogue(infos, label="model", **options)), source, target)


def test_a_kernel_is_no_table_where_both_words_are_told() -> None:
    """Neither of these names says more than what its tensor is."""
    source = random({"a/embedding": (9, WIDTH), "b/kernel": (WIDTH, 9)})
    infos = [
        TensorInfo("x.weight", (9, WIDTH), "float32", module="Linear"),
        TensorInfo("y.weight", (9, WIDTH), "float32", module="Embedding"),
    ]
    model = Catalogue(infos, framework="torch", order="definition", label="model")
    plan = matching.match(catalogue({n: a.shape for n, a in source.items()}), model)
    assert plan.grafts["x.weight"].sources == ("b/kernel",)
    assert plan.grafts["y.weight"].sources == ("a/embedding",)


# Biases by themselves


def test_biases_of_queries_and_values_beside_a_fused_kernel() -> None:
    shapes = {"norm.weight": (WIDTH,), "attn.qkv.weight": (3 * WIDTH, WIDTH)}
    shapes |= {"attn.qkv.bias": (3 * WIDTH,)}
    whole = random({f"blocks.{i}.{n}": s for i in range(2) for n, s in shapes.items()})
    loose = {n: a for n, a in whole.items() if not n.endswith("qkv.bias")}
    for i in range(2):
        q, k, v = np.split(whole[f"blocks.{i}.attn.qkv.bias"], 3)
        loose |= {f"blocks.{i}.attn.q_bias": q, f"blocks.{i}.attn.v_bias": v}
        k[...] = 0
    check(planned(whole, loose), whole, loose)
    check(planned(loose, whole), loose, whole)


def test_the_norm_of_embeddings_is_called_in_two_ways() -> None:
    names = {"embeddings_layer_norm": "embeddings.LayerNorm", "rel_layer_norm": "encoder.LayerNorm"}
    target = random({f"{n}.{w}": (4,) for n in names.values() for w in ("weight", "bias")})
    target |= random({"encoder.fc.weight": (4, 6), "embeddings.word_embeddings.weight": (9, 4)})
    source: Values = {
        "token_embedding/embeddings": target["embeddings.word_embeddings.weight"],
        "fc/kernel": target["encoder.fc.weight"].T,
    }
    for ours, theirs in reversed(names.items()):
        source[f"{ours}/gamma"], source[f"{ours}/beta"] = (
            target[f"{theirs}.{w}"] for w in ("weight", "bias")
        )
    check(planned(source, target, "sorted"), source, target)


def test_an_embedding_of_ones_own_is_a_table() -> None:
    target = random({"positions.weight": (9, WIDTH), "tokens.weight": (9, WIDTH)})
    infos = [
        TensorInfo("positions.weight", (9, WIDTH), "float32", module="LearnedPositionalEmbedding"),
        TensorInfo("tokens.weight", (9, WIDTH), "float32", module="ScaledEmbedding"),
    ]
    source = {n.replace(".weight", "/embedding"): a for n, a in target.items()}
    model = Catalogue(infos, framework="torch", order="definition", label="model")
    file = catalogue({n: a.shape for n, a in source.items()}, framework="jax")
    check(matching.match(file, model), source, target)


# What a sorted tree does not tell


def classifier(stem: int, last: int) -> tuple[Values, Values]:
    """Convolutions and a head on their mean, sorted: the head stands behind the first of them."""
    torch_ = random(
        {"conv1.weight": (stem, 3, 3, 3), "fc.weight": (5, last)}
        | {"layer1.weight": (last, stem, 3, 3), "layer2.weight": (last, last, 3, 3)}
    )
    flax = {
        f"params/{n.removesuffix('.weight')}/kernel": a.transpose(*range(2, a.ndim), 1, 0)
        for n, a in torch_.items()
    }
    return dict(sorted(torch_.items())), dict(sorted(flax.items()))


def sorted_plan(source: Values, target: Values) -> Plan:
    file = catalogue({n: a.shape for n, a in source.items()}, framework="torch", order="sorted")
    model = catalogue({n: a.shape for n, a in target.items()}, framework="jax", order="sorted")
    return matching.match(file, model)


def test_a_head_behind_the_first_convolution_of_a_sorted_tree_reads_the_last_one() -> None:
    source, target = classifier(4, 8)
    check(sorted_plan(source, target), source, target)


def test_a_head_that_might_as_well_read_a_square_map_is_a_question() -> None:
    source, target = classifier(4, 16)
    plan = sorted_plan(source, target)
    assert plan.undecided.keys() == {"params/fc/kernel"}
    assert any(not {"reshape"} & {str(op).partition("(")[0] for op in a.ops}
               for a in plan.undecided["params/fc/kernel"].alternatives)  # fmt: skip


def test_a_tied_head_whose_kernel_lies_turned() -> None:
    table = random({"embed_tokens.weight": (9, 4), "fc.weight": (5, 4)})
    target = {
        "params/embed_tokens/embedding": table["embed_tokens.weight"],
        "params/fc/kernel": table["fc.weight"].T,
        "params/lm_head/kernel": table["embed_tokens.weight"].T,
    }
    (name, question), *others = sorted_plan(table, target).undecided.items()
    assert not others
    assert name == "params/lm_head/kernel"
    way = question.alternatives[0]
    assert way.sources == ("embed_tokens.weight",)
    assert list(map(str, way.ops)) == ["transpose(1, 0)"]


class _Attention(torch.nn.Module):
    def __init__(self, loose: bool) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(12, 36, bias=not loose)
        self.proj = torch.nn.Linear(12, 12)
        if loose:
            self.q_bias = torch.nn.Parameter(torch.zeros(12))
            self.v_bias = torch.nn.Parameter(torch.zeros(12))


def test_a_bias_of_keys_that_goes_nowhere_is_told() -> None:
    """It changes nothing where it is zero, and may where keys are normalised or turned."""
    torch.manual_seed(0)
    source, target = (torch.nn.ModuleDict({"attn": _Attention(loose)}) for loose in (False, True))
    plan = rg.plan(source, target)
    assert plan.complete
    assert [(w.code, w.where) for w in plan.warnings] == [("partly-used", "attn.qkv.bias")]
    with torch.no_grad():
        source["attn"].qkv.bias[12:24] = 0
    assert not rg.plan(source, target).warnings
    assert not rg.plan(target, source).warnings


@pytest.mark.parametrize(
    ("shape", "certain"), [((20, 3, 4, 5), True), ((20, 3, 3, 5), False), ((24, 3, 24), False)]
)
def test_an_axis_of_three_that_may_be_heads(shape: tuple[int, ...], certain: bool) -> None:
    """Three heads, of which each has its query, key and value, make the same shape."""
    width = int(np.prod(shape[2:]))
    source = random({"attn/qkv/kernel": shape, "attn/out/kernel": (width, shape[0])})
    parts = {f"attn.{n}.weight": (width, shape[0]) for n in "qkv"}
    target = random(parts | {"attn.out.weight": (shape[0], width)})
    plan = planned(source, target, framework="jax")
    assert ("attn.q.weight" in plan.grafts) == certain, plan
