"""Policies worked out for models: what learns, when and how fast; depths from names alone."""

from __future__ import annotations

import pytest

import regraft as rg
from regraft.tensors import TensorInfo
from regraft.tuning.courses import course
from regraft.tuning.depths import depths
from regraft.tuning.policies import Policy


def infos(*named: tuple[str, int] | str) -> list[TensorInfo]:
    pairs = [(n, 2) if isinstance(n, str) else n for n in named]
    return [TensorInfo(name, (3,) * axes, "float32") for name, axes in pairs]


def block(path: str) -> list[TensorInfo]:
    return infos((f"{path}norm.weight", 1), f"{path}attn.q.weight", (f"{path}attn.q.bias", 1),
                 f"{path}mlp.0.weight", f"{path}mlp.2.weight")  # fmt: skip


def vit(count: int = 3) -> list[TensorInfo]:
    blocks = [info for i in range(count) for info in block(f"blocks.{i}.")]
    stem = infos("patch.weight", ("patch.bias", 1))
    return [*stem, *blocks, *infos(("norm.weight", 1), "head.weight", ("head.bias", 1))]


def by_depth(tensors: list[TensorInfo], head: tuple[str, ...] = ()) -> dict[str, int]:
    found = depths(tensors, head=head)
    return {name.rpartition(".")[0] or name: depth for name, depth in found.items()}


def test_depths_of_blocks() -> None:
    found = by_depth(vit(), ("head.weight", "head.bias"))
    assert found["patch"] == 0
    assert [found[f"blocks.{i}.mlp.2"] for i in range(3)] == [1, 2, 3]
    assert found["norm"] == found["head"] == 4


def test_a_head_that_is_defined_first_is_the_deepest() -> None:
    tensors = [*infos("head.weight"), *vit()[:-2]]
    assert by_depth(tensors, ("head.weight",))["head"] == 4


def test_depths_of_stages_and_of_plain_layers() -> None:
    staged = [t for s in range(2) for b in range(2) for t in block(f"stages.{s}.blocks.{b}.")]
    assert sorted(set(depths([*infos("stem.weight"), *staged]).values())) == [0, 1, 2, 3, 4]
    plain = infos("0.weight", ("0.bias", 1), ("1.weight", 1), "3.weight", "6.weight")
    assert by_depth(plain) == {"0": 0, "1": 0, "3": 1, "6": 2}
    keras = infos("conv/kernel", "block_1_expand/kernel", "block_1_project/kernel",
                  "block_2_expand/kernel", "block_2_project/kernel", "top/kernel")  # fmt: skip
    assert list(depths(keras).values()) == [0, 1, 1, 2, 2, 3]


def test_experts_are_no_depth() -> None:
    tensors = [
        info
        for layer in range(2)
        for part in (
            "attn.q",
            "attn.k",
            "experts.0.up",
            "experts.0.down",
            "experts.1.up",
            "experts.1.down",
        )
        for info in infos(f"layers.{layer}.{part}.weight")
    ]
    assert sorted(set(depths(tensors).values())) == [0, 1]


def test_towers_are_counted_apart() -> None:
    text = [t for i in range(2) for t in block(f"text.blocks.{i}.")]
    image = [t for i in range(4) for t in block(f"image.blocks.{i}.")]
    found = course(
        [*text, *image, *infos("head.weight")],
        Policy(layer_decay=0.5, head=("head.*",), towers=("text.*", "image.*")),
    )
    assert (
        found["text.blocks.1.attn.q.weight"].rate
        == found["image.blocks.3.attn.q.weight"].rate
        == 0.5
    )
    assert found["image.blocks.0.attn.q.weight"].rate == 0.5**4
    assert found["head.weight"].rate == 1


def test_rates_and_decay() -> None:
    policy = Policy(layer_decay=0.5, head_lr=10, head=("head.*",), rates=(("*.norm.*", 2.0),))
    found = course(vit(), policy)
    assert found["head.weight"].rate == 10
    assert found["norm.weight"].rate == 1
    assert found["blocks.2.attn.q.weight"].rate == 0.5
    assert found["blocks.2.norm.weight"].rate == 1.0
    assert found["patch.weight"].rate == 0.5**4
    assert [found[n].decays for n in ("head.weight", "head.bias", "norm.weight")] == [
        True,
        False,
        False,
    ]
    assert "never" not in str(found)


def test_sorted_names_need_a_stem_and_a_head() -> None:
    """Trees that were rebuilt are sorted: what is no block may come before or after them."""
    tensors = sorted(vit(12), key=lambda t: t.name)
    head = ("head.*", "norm.*")
    with pytest.raises(rg.TargetError, match="stem"):
        course(tensors, Policy(layer_decay=0.5, head=head), order="sorted")
    found = course(tensors, Policy(layer_decay=0.5, head=head, stem=("patch.*",)), order="sorted")
    wanted = course(vit(12), Policy(layer_decay=0.5, head=head))
    assert {n: t.rate for n, t in found.items()} == {n: t.rate for n, t in wanted.items()}
    assert found["blocks.10.norm.weight"].depth == 11
    course(tensors, Policy(freeze=("patch.*",)), order="sorted")


def test_when_it_learns() -> None:
    head = ("head.*",)
    lpft = course(vit(), Policy(probe_epochs=2, head=head))
    assert lpft.steps == [0, 2]
    assert lpft.learning(1) == ["head.weight", "head.bias"]
    gradual = course(vit(), Policy(thaw_every=2, head=head))
    assert gradual.steps == [0, 2, 4, 6, 8]
    assert gradual["blocks.2.norm.weight"].since == 2
    both = course(vit(), Policy(probe_epochs=3, thaw_every=2, head=head))
    assert both["blocks.2.norm.weight"].since == 3
    assert both["blocks.1.norm.weight"].since == 5
    deep = course(vit(), Policy(freeze_depth=2, unfreeze=("patch.bias",)))
    assert deep.frozen == ["patch.weight", *(t.name for t in block("blocks.0."))]
    assert course(vit(), Policy(freeze_depth=-1)).learning(0) == [
        "norm.weight",
        "head.weight",
        "head.bias",
    ]


def test_statistics_follow_their_layer() -> None:
    tensors = infos("conv.weight", ("bn.weight", 1), ("bn.running_mean", 1), "fc.weight")
    assert course(tensors, Policy(freeze=("bn.weight",)))["bn.running_mean"].since is None
    assert course(tensors, Policy())["bn.running_mean"].since == 0
    assert course(tensors, Policy(batchnorm="freeze"))["bn.running_mean"].since is None
    assert (
        "bn.running_mean"
        not in course(tensors, Policy(batchnorm="recalibrate", freeze=("bn.*",))).frozen
    )


def test_statistics_of_a_norm_without_scale_and_shift() -> None:
    tensors = infos("conv.weight", ("bn.running_mean", 1), "fc.weight")
    mean = "bn.running_mean"
    assert course(tensors, Policy())[mean].since == 0
    assert course(tensors, Policy(freeze_depth=1)).frozen == ["conv.weight", mean]
    assert mean in course(tensors, Policy(linear_probe=True, head=("fc.*",))).frozen
    assert mean in course(tensors, Policy(freeze=("bn.*",))).frozen


def test_policies_that_do_not_fit() -> None:
    with pytest.raises(rg.RuleMatchedNothing):
        course(vit(), Policy(freeze=("nothing.*",)))
    with pytest.raises(rg.TargetError, match="head"):
        course(vit(), Policy(linear_probe=True))
    with pytest.raises(rg.TargetError, match="something to learn"):
        course(vit(), Policy(freeze=("*",)))
    for wrong in (
        {"ema": 1.0},
        {"layer_decay": 1.5},
        {"freeze": "a.*"},
        {"batchnorm": "off"},
        {"l2_sp": -1},
    ):
        with pytest.raises(rg.TargetError):
            Policy(**wrong)  # pyright: ignore[reportArgumentType]


def test_norms_and_biases_of_several_axes_do_not_decay() -> None:
    tensors = [
        TensorInfo("norm.weight", (4, 8), "float32", "LayerNorm"),
        TensorInfo("own.weight", (1, 8, 1, 1), "float32", "LayerNorm2d"),
        TensorInfo("attn.bias_k", (1, 1, 8), "float32", "MultiheadAttention"),
        TensorInfo("attn.relative_position_bias_table", (9, 4), "float32", "WindowAttention"),
        TensorInfo("LayerNorm_0/scale", (4, 8), "float32"),
        TensorInfo("fc.weight", (1, 8), "float32", "Linear"),
        TensorInfo("cosine.weight", (4, 8), "float32", "NormedLinear"),
    ]
    found = course(tensors, Policy())
    assert [n for n, t in found.items() if t.decays] == ["fc.weight", "cosine.weight"]
    assert all(t.decays for t in course(tensors, Policy(decay_norms=True)).values())
