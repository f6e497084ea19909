"""Tensors of other sizes: each case against timm's functions or arrays made by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg
from regraft import matching, transfer
from regraft.plans import Plan
from regraft.tensors import Catalogue, TensorInfo

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import timm.layers
    from timm.layers.pos_embed import resample_abs_pos_embed_nhwc
    from timm.models._manipulate import adapt_input_conv

Values = dict[str, np.ndarray[Any, Any]]


def values(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Values:
    """Distinct values everywhere."""
    generator = np.random.default_rng(seed)
    return {n: generator.uniform(0.5, 1.5, s).astype(np.float32) for n, s in shapes.items()}


def catalogue(held: Values, framework: str, **options: Any) -> Catalogue:
    infos = [TensorInfo(n, v.shape, v.dtype.name) for n, v in held.items()]
    return Catalogue(infos, framework=framework, label="x", **options)


def planned(
    source: Values, target: Values, frameworks: tuple[str, str] = ("torch", "torch"), **options: Any
) -> Plan:
    ours = catalogue(source, frameworks[0], order="definition")
    theirs = catalogue(target, frameworks[1], order="definition", **options)
    return matching.match(ours, theirs)


def made(plan: Plan, name: str, source: Values, own: Values | None = None) -> Any:
    read = lambda n, part: source[n] if part is None else source[n][part]  # noqa: E731
    graft = plan.grafts[name]
    array = transfer.make(plan, graft, read, own.__getitem__ if own else None)
    script: dict[str, Any] = {}
    exec(plan.to_python(), script)
    needs_own = any(g.keeps for g in plan.grafts.values())
    np.testing.assert_array_equal(
        script["convert"](source, own)[name] if needs_own else script["convert"](source)[name],
        array,
    )
    return array


def text_of(plan: Plan, name: str) -> str:
    return "; ".join(e.text for e in plan.grafts[name].evidence)


# Input channels


def network(channels: int, classes: int = 5, layout: str = "torch") -> Values:
    shapes: dict[str, tuple[int, ...]] = {
        "stem.weight": (8, channels, 3, 3),
        "stem.bias": (8,),
        "body.weight": (6, 8, 3, 2),
        "body.bias": (6,),
        "fc.weight": (classes, 6),
        "fc.bias": (classes,),
    }
    held = values(shapes)
    if layout == "torch":
        return held
    moved = {n: np.transpose(v, (*range(2, v.ndim), 1, 0)) if v.ndim > 1 else v
             for n, v in held.items()}  # fmt: skip
    return {n.replace("weight", "kernel"): v for n, v in moved.items()}


@pytest.mark.parametrize("wanted", [1, 2, 4, 5, 7])
@pytest.mark.parametrize("layouts", [("torch", "torch"), ("keras", "torch"), ("torch", "jax")])
def test_input_channels_are_timms(wanted: int, layouts: tuple[str, str]) -> None:
    source, target = network(3, layout=layouts[0]), network(wanted, layout=layouts[1])
    plan = planned(source, target, layouts)
    (name,) = plan.adapted
    assert plan.complete
    assert name.startswith("stem.")
    assert not plan.fresh
    assert not plan.unused
    kernel = torch.from_numpy(network(3)["stem.weight"].copy())
    expected = adapt_input_conv(wanted, kernel).numpy()
    if layouts[1] != "torch":
        expected = expected.transpose(2, 3, 1, 0)
    np.testing.assert_allclose(made(plan, name, source), expected, rtol=1e-6)
    assert "as timm does" in text_of(plan, name)


def test_grey_kernels_for_colours() -> None:
    source = network(1)
    plan = planned(source, network(3))
    array = made(plan, "stem.weight", source)
    np.testing.assert_allclose(array.sum(1, keepdims=True), source["stem.weight"], rtol=1e-6)


def test_other_layers_with_other_channels_are_no_input() -> None:
    source, target = network(3), network(3)
    target["body.weight"] = target["body.weight"][:, :1]
    plan = planned(source, target)
    assert "body.weight" in plan.undecided
    assert not plan.adapted


def test_channels_that_hold_space_are_not_summed() -> None:
    assert "stem.weight" in planned(network(12), network(4)).undecided


def test_a_depthwise_first_layer_is_left_alone() -> None:
    source, target = nn.Sequential(nn.Conv2d(3, 6, 3)), nn.Sequential(nn.Conv2d(3, 6, 3, groups=3))
    plan = rg.plan(source, target)
    assert not plan.complete
    assert not plan.adapted


# Positions


class Encoder(nn.Module):
    """What stands around a table of positions; `like` is a kernel or a table of tokens."""

    def __init__(self, table: tuple[int, ...], like: str, grid: tuple[int, int] | None = None):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.rand(table) + 0.5)
        if like == "grid":
            self.patches = nn.Conv2d(3, table[-1], 4, 4)
        elif like == "sound":
            self.patches = nn.Conv1d(3, table[-1], 4, 4)
        elif like == "text":
            self.tokens = nn.Embedding(30, table[-1])
        else:
            self.patches = nn.Linear(12, table[-1])
        if grid:
            self.patches.grid_size = grid  # pyright: ignore[reportArgumentType]
        self.norm = nn.LayerNorm(table[-1])
        self.head = nn.Linear(table[-1], 7)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("sides", [(4, 6), (6, 4), (5, 3)])
def test_grids_of_positions_are_timms(prefix: int, sides: tuple[int, int]) -> None:
    before, after = (side * side + prefix for side in sides)
    source, target = Encoder((1, before, 8), "grid"), Encoder((1, after, 8), "grid")
    receipt = rg.load(source, target, adapt=True)
    assert receipt.adapted == ["pos_embed"]
    assert not receipt.fresh
    assert not receipt.unused
    expected = timm.layers.resample_abs_pos_embed(
        source.pos_embed.detach(), [sides[1]] * 2, [sides[0]] * 2, num_prefix_tokens=prefix
    )
    torch.testing.assert_close(target.pos_embed.detach(), expected)
    with pytest.raises(rg.IncompletePlan, match="values would change; allow with adapt=True"):
        rg.load(source, Encoder((1, after, 8), "grid"))


def test_a_table_without_the_batch_axis() -> None:
    source, target = Encoder((17, 8), "grid"), Encoder((1, 37, 8), "grid")
    rg.load(source, target, adapt=True)
    expected = timm.layers.resample_abs_pos_embed(source.pos_embed.detach()[None], [6, 6], [4, 4])
    torch.testing.assert_close(target.pos_embed.detach(), expected)


def test_sides_of_a_grid_come_from_settings() -> None:
    source, target = Encoder((1, 17, 8), "grid"), Encoder((1, 33, 8), "grid", grid=(4, 8))
    rg.load(source, target, adapt=True)
    expected = timm.layers.resample_abs_pos_embed(source.pos_embed.detach(), [4, 8], [4, 4])
    torch.testing.assert_close(target.pos_embed.detach(), expected)


def test_sides_that_nobody_tells_are_open() -> None:
    plan = rg.plan(Encoder((1, 17, 8), "grid"), Encoder((1, 33, 8), "grid"))
    assert "not square" in plan.undecided["pos_embed"].reason
    assert not plan.adapted


def test_grids_that_a_table_shows() -> None:
    source, target = Encoder((1, 4, 6, 8), "grid"), Encoder((1, 7, 5, 8), "grid")
    rg.load(source, target, adapt=True)
    expected = resample_abs_pos_embed_nhwc(source.pos_embed.detach(), [7, 5])
    torch.testing.assert_close(target.pos_embed.detach(), expected)


@pytest.mark.parametrize("like", ["text", "sound"])
def test_sequences_keep_their_first_positions(like: str) -> None:
    """16 and 25 are squares, too: it is the layer beside them that tells."""
    long, short = Encoder((25, 8), like), Encoder((16, 8), like)
    rg.load(long, short, adapt=True)
    assert torch.equal(short.pos_embed, long.pos_embed[:16])
    target = Encoder((25, 8), like)
    own = target.pos_embed.detach().clone()
    rg.load(short, target, adapt=True)
    assert torch.equal(target.pos_embed, torch.cat([short.pos_embed, own[16:]]))


def test_positions_of_an_unknown_kind_are_open_both_ways() -> None:
    source, target = Encoder((16, 8), ""), Encoder((25, 8), "")
    plan = rg.plan(source, target)
    ways = plan.undecided["pos_embed"].alternatives
    assert [way.kind for way in ways] == ["adapt", "adapt", "fresh"]
    for way in ways:
        rule = eval(way.rule, {"rg": rg})
        assert rg.plan(source, target, rules=[rule]).complete


# Relative positions


def timms_table(*arguments: Any) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how it indexes is deprecated
        return timm.layers.resize_rel_pos_bias_table(*arguments)


@pytest.mark.parametrize(("before", "after"), [(4, 8), (7, 4), (3, 6)])
@pytest.mark.parametrize("behind", [0, 3])
def test_relative_positions_are_timms(before: int, after: int, behind: int) -> None:
    shapes = {
        f"blocks.{i}.attn.{n}": s
        for i in range(2)
        for n, s in (("qkv.weight", (24, 8)), ("proj.weight", (8, 8)))
    }
    rows = {side: (2 * side - 1) ** 2 + behind for side in (before, after)}
    tables = [f"blocks.{i}.attn.relative_position_bias_table" for i in range(2)]
    source = values(shapes | dict.fromkeys(tables, (rows[before], 2)))
    plan = planned(source, values(shapes | dict.fromkeys(tables, (rows[after], 2))))
    assert plan.complete
    assert plan.adapted == tables
    assert not plan.unused
    for name in tables:
        expected = timms_table(torch.from_numpy(source[name]), (after, after), (rows[after], 2))
        np.testing.assert_allclose(made(plan, name, source), expected.numpy(), rtol=2e-5)


def test_tables_that_show_their_sides() -> None:
    name, other = "attn.relative_position_bias_table", {"attn.proj.weight": (8, 8)}
    source = values(other | {name: (2, 7, 13)})
    plan = planned(source, values(other | {name: (2, 15, 9)}))
    expected = timms_table(torch.from_numpy(source[name]), (8, 5), (2, 15, 9))
    np.testing.assert_allclose(made(plan, name, source), expected.numpy(), rtol=2e-5)


# Vocabularies


class Language(nn.Module):
    def __init__(self, tokens: int, *, tied: bool, bias: bool = True) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(tokens, 12)
        self.cell = nn.GRU(12, 12)
        self.lm_head = nn.Linear(12, tokens, bias=bias)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("tokens", [20, 40])
def test_vocabularies_by_rows(tied: bool, tokens: int) -> None:
    source, target = Language(30, tied=tied), Language(tokens, tied=tied)
    own = {n: t.clone() for n, t in target.state_dict().items()}
    receipt = rg.load(source, target, adapt=True)
    names = ["embed_tokens.weight", "lm_head.weight", "lm_head.bias"]
    assert receipt.adapted == names
    assert not receipt.fresh
    assert not receipt.unused
    for name in names:
        first, held = source.state_dict()[name][:tokens], target.state_dict()[name]
        assert torch.equal(held[:30], first)
        assert torch.equal(held[30:], own[name][30:])


def test_a_tied_head_that_the_file_leaves_out(tmp_path: Path) -> None:
    source, target = Language(30, tied=True, bias=False), Language(40, tied=True, bias=False)
    state = {n: t for n, t in source.state_dict().items() if n != "lm_head.weight"}
    torch.save(state, tmp_path / "x.pth")
    receipt = rg.load(tmp_path / "x.pth", target, adapt=True)
    assert receipt.adapted == ["embed_tokens.weight", "lm_head.weight"]
    assert torch.equal(target.lm_head.weight[:30], source.embed_tokens.weight)


def test_output_layers_in_another_layout() -> None:
    torch_names = {"wte.weight": (30, 12), "inner.weight": (12, 12, 3), "lm_head.weight": (30, 12)}
    source = values(torch_names)
    jax_names = {"wte.embedding": (40, 12), "inner.kernel": (3, 12, 12), "lm_head.kernel": (12, 40)}
    own = values(jax_names, 1)
    plan = planned(source, own, ("torch", "jax"))
    assert plan.complete
    assert plan.adapted == ["wte.embedding", "lm_head.kernel"]
    held = made(plan, "lm_head.kernel", source, own)
    np.testing.assert_array_equal(held[:, :30], source["lm_head.weight"].T)
    np.testing.assert_array_equal(held[:, 30:], own["lm_head.kernel"][:, 30:])


def test_a_head_with_other_rows_than_the_table_is_another_head() -> None:
    source, target = Language(30, tied=False), Language(30, tied=False)
    target.lm_head = nn.Linear(12, 5)
    plan = rg.plan(source, target)
    assert plan.fresh == ["lm_head.weight", "lm_head.bias"]
    assert not plan.adapted
    assert "30 outputs, this layer 5" in text_of(plan, "lm_head.weight")


def test_half_precision_rows_beside_the_models_own() -> None:
    """The model's own rows keep their precision."""
    source, target = Language(30, tied=False).half(), Language(40, tied=False)
    own = target.embed_tokens.weight.detach().clone()
    rg.load(source, target, adapt=True)
    assert torch.equal(target.embed_tokens.weight[30:], own[30:])
    assert torch.equal(target.embed_tokens.weight[:30], source.embed_tokens.weight.float())


def test_own_rows_need_a_model(tmp_path: Path) -> None:
    source, target = Language(30, tied=False), Language(40, tied=False)
    plan = rg.plan(source, target)
    torch.save(source.state_dict(), tmp_path / "base.pth")
    with pytest.raises(rg.IncompletePlan, match="or not all"):
        rg.convert(tmp_path / "base.pth", tmp_path / "x.safetensors", plan=plan)
    with torch.device("meta"):
        empty = Language(40, tied=False)
    with pytest.raises(rg.TargetError, match="meta device"):
        rg.apply(plan, source, empty)
    back = plan.inverse()
    assert not back.fresh
    assert back.grafts["embed_tokens.weight"].ops == (rg.ops.Slice(0, 0, 30),)


def test_lineage_of_grown_tables(tmp_path: Path) -> None:
    """Rows that the model added are no difference to a base that has none of them."""
    source, target = Language(30, tied=False), Language(40, tied=False)
    base, tuned = tmp_path / "base.pth", tmp_path / "tuned.safetensors"
    torch.save(source.state_dict(), base)
    receipt = rg.load(base, target, adapt=True)
    with torch.no_grad():
        target.embed_tokens.weight[35:] += 1
        target.lm_head.weight[:2] += 1
    rg.save(target, tuned, receipt=receipt)
    found = rg.diff(base, tuned)
    assert found["embed_tokens.weight"].status == "identical"
    assert found["lm_head.weight"].status == "moved"
    before = rg.pretrained(tuned, base)
    np.testing.assert_array_equal(before["lm_head.weight"][:30], source.lm_head.weight.detach())


def test_keep_is_the_last_operation() -> None:
    source, target = Language(30, tied=False), Language(40, tied=False)
    ops = [rg.ops.Keep(0, 40), rg.ops.Flip(1)]
    with pytest.raises(rg.PlanError, match="Keep as the last one"):
        rg.plan(source, target, rules=[rg.pin("lm_head.weight", "lm_head.weight", ops)])


# What is fresh, and why


class Heads(nn.Module):
    """A body with heads that are defined before it."""

    def __init__(self, depth: int = 2, width: int = 16, **heads: int) -> None:
        super().__init__()
        for name, count in heads.items():
            setattr(self, name, nn.Linear(width, count))
        self.stem = nn.Linear(10, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(width, 24), "down": nn.Linear(24, width)})
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)


def test_another_head_wherever_it_is_defined() -> None:
    plan = rg.plan(Heads(answer=5), Heads(answer=7))
    assert plan.complete
    assert plan.fresh == ["answer.weight", "answer.bias"]
    assert list(plan.unused) == plan.fresh
    assert "another head: answer has 5 outputs, this layer 7" in text_of(plan, "answer.bias")


def test_heads_of_other_names_are_other_heads() -> None:
    """Of the same shape; the names of all other layers are equal, so that these mean something."""
    source, target = Heads(projection_head=5), Heads(quality_score=5)
    plan = rg.plan(source, target)
    assert list(plan.undecided) == ["quality_score.weight", "quality_score.bias"]
    for open_ in plan.undecided.values():
        taken, kept = (eval(way.rule, {"rg": rg}) for way in open_.alternatives)
        assert "projection_head" in taken.sources[0]
        assert rg.plan(source, target, rules=[kept]).fresh


def test_new_and_dropped_heads_beside_one_that_stays() -> None:
    plan = rg.plan(Heads(age=1, gender=2), Heads(age=1, emotion=7))
    assert plan.complete
    assert plan.fresh == ["emotion.weight", "emotion.bias"]
    assert list(plan.unused) == ["gender.weight", "gender.bias"]


@pytest.mark.parametrize("depths", [(2, 4), (4, 2), (1, 3)])
def test_stacks_of_another_height(depths: tuple[int, int]) -> None:
    source, target = Heads(depths[0], answer=5), Heads(depths[1], answer=7)
    plan = rg.plan(source, target)
    shared = min(depths)
    names = [n for n in target.state_dict() if n.startswith("blocks.")]
    beyond = [n for n in names if int(n.split(".")[1]) >= shared]
    assert plan.complete
    assert plan.fresh == ["answer.weight", "answer.bias", *beyond]
    assert all(plan.grafts[n].sources == (n,) for n in names if n not in beyond)


def test_wider_layers_are_not_made_up() -> None:
    plan = rg.plan(Heads(answer=5), Heads(answer=5, width=32))
    assert not plan.complete
    assert not plan.adapted


def test_what_a_rule_leaves_is_unused() -> None:
    receipt = rg.load(Heads(answer=5), Heads(answer=7), fresh=["answer.*"], unused=["answer.*"])
    assert receipt.fresh == receipt.unused == ["answer.weight", "answer.bias"]


Net = Callable[[], nn.Module]


def _vit(**options: Any) -> nn.Module:
    from timm.models import VisionTransformer

    chosen = {"img_size": 32, "num_classes": 10, "depth": 2} | options
    return VisionTransformer(patch_size=8, embed_dim=32, num_heads=4, mlp_ratio=2, **chosen)


def _hf(kind: str, config: str, **options: Any) -> nn.Module:
    import transformers

    chosen = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64,
    } | options  # fmt: skip
    return getattr(transformers, kind)(getattr(transformers, config)(**chosen))


def _hf_vit(**options: Any) -> nn.Module:
    chosen = {"image_size": 32, "patch_size": 8, "num_labels": 10} | options
    return _hf("ViTForImageClassification", "ViTConfig", **chosen)


def _bert(kind: str, tokens: int = 60, **options: Any) -> nn.Module:
    chosen = {"vocab_size": tokens, "max_position_embeddings": 16} | options
    return _hf(kind, "BertConfig", **chosen)


def _roberta(kind: str, **options: Any) -> nn.Module:
    chosen = {"vocab_size": 60, "max_position_embeddings": 18} | options
    return _hf(kind, "RobertaConfig", **chosen)


Said = tuple[tuple[str, ...], ...]
# Source, target, and what is fresh, adapted and unused, as a person would state it.
TRANSFERS: dict[str, tuple[Net, Net, Said]] = {
    "vit of another library, larger images, another head": (
        _hf_vit, lambda: _vit(img_size=64, num_classes=3),
        (("head.*",), ("pos_embed",), ("classifier.*",)),
    ),
    "vit of another library, grey, smaller images": (
        lambda: _vit(img_size=64), lambda: _hf_vit(num_channels=1),
        ((), ("vit.embeddings.position_embeddings",
              "vit.embeddings.patch_embeddings.projection.weight"), ()),
    ),
    "vit of another library, deeper": (
        _hf_vit, lambda: _vit(depth=4), (("blocks.2.*", "blocks.3.*"), (), ()),
    ),
    "vit of another library, shallower": (
        lambda: _hf_vit(num_hidden_layers=4), _vit, ((), (), ("vit.layers.2.*", "vit.layers.3.*")),
    ),
    "masked words with a larger vocabulary": (
        lambda: _bert("BertForMaskedLM"), lambda: _bert("BertForMaskedLM", 70),
        ((), ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias",
              "cls.predictions.decoder.*"), ()),
    ),
    "masked words to a classifier whose head begins with a layer as wide": (
        lambda: _roberta("RobertaForMaskedLM"),
        lambda: _roberta("RobertaForSequenceClassification", num_labels=3),
        (("classifier.*",), (), ("lm_head.*",)),
    ),
    "pretraining heads to answers": (
        lambda: _bert("BertForPreTraining"), lambda: _bert("BertForQuestionAnswering"),
        (("qa_outputs.*",), (), ("cls.*", "bert.pooler.*")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFERS)
def test_sets_as_a_person_states_them(name: str) -> None:
    from regraft.rules import matches_any

    make_source, make_target, said = TRANSFERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source, target = make_source(), make_target()
    plan = rg.plan(source, target)
    assert plan.complete
    found = (plan.fresh, plan.adapted, plan.unused)
    every = (plan.target.tensors, plan.target.tensors, plan.source.tensors)
    for names, all_, templates in zip(found, every, said, strict=True):
        floats = [n for n in all_ if "position_ids" not in n]
        assert set(names) == {n for n in floats if matches_any(templates, n)}
