"""`regraft inspect`: the folded tree, families, statistics, what is odd, and how it prints."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import regraft as rg
from regraft.reports import folding, listing, outline, recognition, statistics
from regraft.reports.folding import Fold
from regraft.tensors import CODED, DTYPE_BITS, Catalogue, TensorInfo, numpy_dtype


def infos(names: Iterable[str] | dict[str, tuple[int, ...]]) -> list[TensorInfo]:
    shapes = names if isinstance(names, dict) else dict.fromkeys(names, (3,))
    return [TensorInfo(name, shape, "float32") for name, shape in shapes.items()]


def shown(tensors: Iterable[TensorInfo], rows: int = 40, again: tuple[str, ...] = ()) -> list[str]:
    """The folded view's names."""
    found, _ = outline.screenful(folding.whole(tensors, again), rows)
    return [row.path + row.fold.label + ("" if row.fold.tensor else ".*") for row in found]


class TestFolding:
    def test_blocks_of_equal_structure_are_one_row(self) -> None:
        names = [f"layers.{i}.{n}" for i in range(12) for n in ("a.weight", "a.bias", "b.weight")]
        assert shown(infos(names)) == [
            "layers.0-11.*", "layers.0-11.a.*", "layers.0-11.b.weight",
        ]  # fmt: skip
        (whole,) = folding.whole(infos(names)).inside
        assert (whole.tensors, whole.nbytes, whole.times) == (36, 36 * 12, 12)

    def test_blocks_that_differ_stand_apart(self) -> None:
        shapes: dict[str, tuple[int, ...]] = {f"h.{i}.w": (4, 4) for i in range(9)}
        shapes |= {"h.3.w": (4, 5), "h.5.extra": (1,), "h.1.w": (4, 4)}
        assert shown(infos(shapes)) == [
            "h.*", "h.0-2,4,6-8.w", "h.3.w", "h.5.*",
        ]  # fmt: skip

    def test_the_order_of_names_is_no_structure(self) -> None:
        names = ["x.0.a", "x.0.b", "x.1.b", "x.1.a"]
        assert shown(infos(names)) == ["x.0-1.*"]

    def test_stages_with_blocks_in_them(self) -> None:
        names = [f"stage{s}.{b}.conv{c}.w" for s in (1, 2, 4) for b in range(3) for c in (1, 2)]
        assert shown(infos(names)) == ["stage1-2,4.0-2.conv1-2.w"]
        assert shown(infos([*names, "stage4.3.conv1.w", "stage4.3.conv2.w"])) == [
            "stage1-2.0-2.conv1-2.w", "stage4.0-3.conv1-2.w",
        ]  # fmt: skip

    def test_several_numbers_in_one_label(self) -> None:
        names = [f"block{b}_conv{c}/kernel" for b in (1, 2) for c in (1, 2, 3)]
        assert shown(infos(names)) == ["block1-2_conv1-3/kernel"]
        assert shown(infos([*names, "block2_conv4/kernel"])) == [
            "block1_conv1-3/kernel", "block2_conv1-4/kernel",
        ]  # fmt: skip

    def test_layers_that_say_their_own_name_again(self) -> None:
        names = [f"conv_{i}/conv_{i}_1/{n}:0" for i in (1, 2, 3) for n in ("kernel", "bias")]
        (row,), _ = outline.screenful(folding.whole(infos(names)), 9)
        assert row.fold.label == "conv_1-3/conv_1-3_1"
        assert row.fold.tensors == 6

    def test_tied_tensors_count_once_and_stand_apart(self) -> None:
        names = [f"layers.{i}.w" for i in range(4)]
        assert shown(infos(names), again=("layers.3.w",)) == [
            "layers.*", "layers.0-2.w", "layers.3.w",
        ]  # fmt: skip
        assert folding.whole(infos(names), ("layers.3.w",)).nbytes == 3 * 12

    def test_a_tensor_and_a_module_of_one_name(self) -> None:
        for names in (["a", "a.b", "a.c"], ["a.b", "a", "a.c"]):
            top = folding.whole(infos(names)).inside
            assert [fold.tensors for fold in top] == [3]
            assert sorted(fold.label for fold in top[0].inside) == ["", ".b", ".c"]

    def test_flat_files_fit_a_screen(self) -> None:
        many = {f"t{i}": (3 + i % 7,) for i in range(20_000)}
        assert len(shown(infos(many))) == 7
        assert shown(infos(f"t{i}" for i in range(20_000))) == ["t0-19999"]
        words = ["".join(chr(97 + (i // 26**k) % 26) for k in range(4)) for i in range(20_000)]
        found, left = outline.screenful(folding.whole(infos(words)), 40)
        assert (len(found), len(left)) == (40, 19_960)

    def test_names_that_mean_harm(self) -> None:
        deep = "a" + ".a" * 100_000
        names = [deep, f"{deep}b", "", ".", "..", "/", "a//b", "9" * 5000, "9" * 4999 + "8"]
        assert folding.whole(infos(names)).tensors == len(names)
        assert len(shown(infos(names))) >= 8
        numbers = [f"{'1,' * 200_000}{i}" for i in range(3)]
        assert len(shown(infos(numbers))) == 3

    @settings(max_examples=200, deadline=None)
    @given(
        st.dictionaries(
            st.tuples(
                st.sampled_from(["a", "b"]), st.integers(0, 6), st.sampled_from([".p", "/q"]),
                st.integers(8, 12), st.sampled_from([".w", ".v"]),
            ).map(lambda t: "".join(map(str, t))),
            st.sampled_from([(2,), (3, 3)]),
            max_size=40,
        )
    )  # fmt: skip
    def test_folded_rows_stand_for_all_names_and_no_others(
        self, shapes: dict[str, tuple[int, ...]]
    ) -> None:
        found: dict[str, tuple[int, ...]] = {}
        for path, fold in leaves(folding.whole(infos(shapes))):
            assert fold.tensor is not None
            names = list(spread(path))
            assert len(names) == fold.times
            found |= dict.fromkeys(names, fold.tensor.shape)
        assert found == shapes

    def test_a_screenful_opens_equals_alike(self) -> None:
        names = [f"s{s}.{w}.x.{n}" for s, w in enumerate("abc") for n in "pqrstuvwxyz"]
        for rows in range(3, 60):
            found, _ = outline.screenful(folding.whole(infos(names)), rows)
            assert len(found) in (3, 36)
            assert len(found) <= rows


def leaves(fold: Fold, path: str = "") -> Iterator[tuple[str, Fold]]:
    if fold.tensor is not None:
        yield path, fold
    for inner in fold.inside:
        yield from leaves(inner, path + inner.label)


def spread(label: str) -> Iterator[str]:
    """The names that a folded label stands for."""
    parts = re.split(r"([0-9]+(?:[-,][0-9]+)*)", label)
    ranges: list[list[str]] = []
    for run in parts[1::2]:
        ends = [[int(n) for n in piece.split("-")] for piece in run.split(",")]
        ranges.append([str(n) for end in ends for n in range(end[0], end[-1] + 1)])
    for numbers in product(*ranges):
        yield parts[0] + "".join(n + text for n, text in zip(numbers, parts[2::2], strict=True))


# Families


def resnet(**options: Any) -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [2, 1, 3, 2], **options)


def timm_model(name: str) -> nn.Module:
    import timm

    return timm.create_model(name)


def transformer(config: str, model: str, **sizes: int) -> nn.Module:
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**sizes))


_SMALL = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip


class Known(NamedTuple):
    make: Callable[[], nn.Module]
    name: str
    blocks: tuple[int, ...] = ()
    width: int = 0
    under: str = ""


KNOWN = [
    Known(resnet, "ResNet (torchvision names)", (2, 1, 3, 2)),
    Known(lambda: timm_model("vit_tiny_patch16_224"), "ViT (timm names)", (12,), 192),
    Known(lambda: timm_model("swin_tiny_patch4_window7_224"), "Swin Transformer (timm names)",
          (2, 2, 6, 2)),
    Known(lambda: timm_model("convnext_atto"), "ConvNeXt (timm names)", (2, 2, 6, 2)),
    Known(lambda: timm_model("seresnet18"), "SE-ResNet (timm names)", (2, 2, 2, 2)),
    Known(lambda: timm_model("mobilenetv3_small_050"), "EfficientNet or MobileNet (timm names)",
          (1, 2, 3, 2, 3, 1)),
    Known(lambda: transformer("BertConfig", "BertForMaskedLM", **_SMALL),
          "BERT (transformers names, which RoBERTa and ELECTRA share)", (3,), 32, "bert."),
    Known(lambda: transformer("LlamaConfig", "LlamaForCausalLM", **_SMALL),
          "LLaMA-like (transformers names: Llama, Mistral, Qwen, Gemma and others)", (3,), 32,
          "model."),
    Known(lambda: transformer("GPT2Config", "GPT2Model", n_embd=32, n_layer=2, n_head=4),
          "GPT-2", (2,), 32),
    Known(lambda: transformer("CLIPConfig", "CLIPModel"), "CLIP (transformers names)"),
]  # fmt: skip
# Relatives of the above that are something else.
STRANGERS = ["res2net50_14w_8s", "cait_xxs24_224", "mobilevit_xxs", "xcit_nano_12_p16_224"]


def catalogue(model: nn.Module, prefix: str = "") -> Catalogue:
    state = model.state_dict()
    return Catalogue(
        TensorInfo(f"{prefix}{name}", tuple(tensor.shape), "float32")
        for name, tensor in state.items()
    )


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_families_are_known_by_their_names(known: Known) -> None:
    with torch.device("meta"):
        model = known.make()
    (look,) = recognition.looks(catalogue(model))
    assert (look.name, look.said, look.under) == (known.name, False, known.under)
    assert look.blocks == known.blocks
    assert look.sizes == ({"width": known.width} if known.width else {})
    # The same model in a wrapper is the same; in something larger it is a part of it.
    (wrapped,) = recognition.looks(catalogue(model, "module._orig_mod."))
    assert (wrapped.name, wrapped.blocks) == (look.name, look.blocks)
    listed = [*catalogue(model, "teacher.").values(), TensorInfo("head.weight", (3, 4), "float32")]
    (part,) = recognition.looks(Catalogue(listed))
    assert (part.name, part.under) == (look.name, f"teacher.{known.under}")


@pytest.mark.parametrize("name", STRANGERS)
def test_no_family_is_invented(name: str) -> None:
    with torch.device("meta"):
        model = timm_model(name)
    assert recognition.looks(catalogue(model)) == []


def test_adapters_optimizers_and_metadata() -> None:
    lora = [f"base_model.model.h.{i}.attn.lora_{x}.weight" for i in (0, 1) for x in "AB"]
    shapes = {name: (8, 64) if "_A" in name else (64, 8) for name in lora}
    (look,) = recognition.looks(Catalogue(infos(shapes)))
    assert (look.name, look.sizes) == ("LoRA adapter (PEFT names)", {"rank": 8})
    state = [f"state.{i}.{n}" for i in range(3) for n in ("step", "exp_avg", "exp_avg_sq")]
    assert recognition.looks(Catalogue(infos(state)))[0].name == "Adam's state (PyTorch optimizer)"
    said = {
        "general.architecture": "llama", "llama.block_count": "22", "x.model_type": "y" * 101,
        "llama.embedding_length": "2048", "llama.x": "9" * 5000, "tokenizer.ggml.model": "gpt2",
    }  # fmt: skip
    (look,) = recognition.looks(Catalogue(infos(["blk.0.attn_q.weight"]), metadata=said))
    assert (look.name, look.said, look.by) == ("llama", True, ("general.architecture",))
    assert look.details == "22 blocks, width 2,048"
    config = {"class_name": "Functional", "config": {"name": "mobilenet", "layers": [{}] * 5}}
    for text, expected in (
        (json.dumps(config), ["Keras Functional 'mobilenet' of 5 layers"]),
        ('{"class_name": "Sequential", "config": [{}, {}]}', ["Keras Sequential of 2 layers"]),
        ("{", []), ("[1]", []), ('{"class_name": 3, "config": 4}', []), ("[" * 10_000, []),
    ):  # fmt: skip
        found = recognition.looks(Catalogue((), metadata={"model_config": text}))
        assert [look.name for look in found] == expected


def test_recognition_ends_with_any_names() -> None:
    words = ["".join(chr(97 + (i // 26**k) % 26) for k in range(3)) for i in range(9_000)]
    many = [f"{word}.{leaf}.weight" for word in words for leaf in ("embeddings", "wte")]
    deep = ["embed_tokens." * 40_000 + f"{i}.embed_tokens.w" for i in range(3)]
    assert recognition.looks(Catalogue(infos([*many, *deep]))) == []


# Statistics


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in many pieces of odd sizes."""
    monkeypatch.setattr(statistics, "_PIECE", 52)
    monkeypatch.setattr(statistics, "_CHUNK", 5)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", [d for d in DTYPE_BITS if not d.startswith("complex")])
@pytest.mark.parametrize("shape", [(), (1,), (7, 5), (1, 1, 61), (2, 3, 5, 7), (3, 0)])
def test_statistics_are_those_of_the_values(dtype: str, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(len(dtype) + 7 * len(shape))
    values = generator.normal(1, 2, shape) * (generator.random(shape) > 0.3)
    stored = np.abs(values) if dtype.startswith(("uint", "float8_e8m0")) else values
    array = np.asarray(stored).astype(numpy_dtype(dtype))
    found = of_array(array, dtype)
    exact = array.astype(np.float64)
    finite = exact[np.isfinite(exact)]
    assert found.zeros == np.sum(exact == 0)
    assert (found.nan, found.inf) == (np.isnan(exact).sum(), np.isinf(exact).sum())
    if finite.size:
        assert (found.min, found.max) == (finite.min(), finite.max())
        assert found.mean == pytest.approx(finite.mean(), rel=1e-12, abs=1e-12)
        assert found.std == pytest.approx(finite.std(), rel=1e-12, abs=1e-12)
    else:
        assert (found.min, found.max, found.mean, found.std) == (None,) * 4


def of_array(array: Any, dtype: str = "", axes: tuple[int, ...] = ()) -> statistics.Statistics:
    info = TensorInfo("x", array.shape, dtype or array.dtype.name)
    reads: list[Any] = []

    def read(name: str, slices: Any) -> Any:
        reads.append(slices)
        return array if slices is None else array[slices]

    ((_, found),) = statistics.measured([info], read, {"x": axes} if axes else {})
    assert None not in reads or len(reads) == 1
    return found


@pytest.mark.usefixtures("small_pieces")
def test_statistics_at_their_limits() -> None:
    big = 2**53 + 1
    integers = of_array(np.array([big, -big, 5] * 20))
    assert (integers.min, integers.max) == (-big, big)
    far = of_array(1e9 + np.random.default_rng(0).normal(size=4000))
    assert far.std == pytest.approx(1, rel=0.1)  # a sum of squares would have lost it
    odd = np.array([1, np.nan, 3, -np.inf, np.inf, 0, np.nan] * 3, np.float32)
    found = of_array(odd)
    assert (found.nan, found.inf, found.zeros, found.min, found.max) == (6, 6, 3, 0, 3)
    assert of_array(np.full(9, np.nan)).mean is None
    assert of_array(np.full(30, 1e308)).nan == 0
    tiny = np.array([1e-40, 0, 1, -1e-45], np.float32)
    assert of_array(tiny).denormal == 2
    assert of_array(tiny.astype(ml_dtypes.bfloat16)).denormal == 1
    assert of_array(np.array([1e-5], np.float16)).denormal == 0
    mixed = of_array(np.array([1 + 2j, 0, complex(0, np.nan), np.inf]))
    assert (mixed.zeros, mixed.nan, mixed.inf, mixed.min) == (1, 1, 1, None)
    assert of_array(np.full((3, 3), 2.0)).constant
    assert not of_array(np.full(1, 2.0)).constant
    coded = next(iter(CODED))
    assert of_array(np.arange(64, dtype=np.float32), coded).max == 63


@pytest.mark.usefixtures("small_pieces")
def test_dead_channels_along_any_axes() -> None:
    kernel = np.random.default_rng(0).normal(size=(4, 5, 3, 6))
    kernel[2] = 0
    kernel[:, :, :, 1] = 0
    kernel[:, :, 1, :] = np.where(np.arange(6) == 3, 0, kernel[:, :, 1, :])
    assert of_array(kernel, axes=(0,)).dead == (1, 4)
    assert of_array(kernel, axes=(3,)).dead == (1, 6)
    assert of_array(kernel, axes=(2, 3)).dead == (4, 18)
    kernel[2, 0, 0, 0] = np.nan
    assert of_array(kernel, axes=(0,)).dead == (0, 4)


def test_pieces_cover_a_tensor_within_their_size() -> None:
    for shape in ((), (0, 3), (5,), (1, 1, 2**25 + 3), (3, 2**23, 2), (2**24, 3)):
        info = TensorInfo("x", shape, "float32")
        sizes = [
            int(np.prod([s.stop - s.start for s in piece])) for piece in statistics.pieces(info)
        ]
        assert sum(sizes) == info.size
        assert max(sizes, default=0) * 4 <= 32 * 2**20


# The command


class Done(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def inspect(tmp_path: Path) -> Callable[..., Done]:
    def run(*arguments: str, **environment: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "regraft", "inspect", *arguments], cwd=tmp_path,
            capture_output=True, encoding="utf-8", env={**os.environ, **environment}, timeout=120,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    return run


def save(folder: Path, state: Any, name: str = "x.pth") -> None:
    torch.save(state, folder / name)


Inspect = Callable[..., Done]


def test_the_default_view(inspect: Inspect, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(6, 6) for _ in range(12))})
    model["head"] = nn.Linear(6, 3)
    save(tmp_path, {"model": model.state_dict(), "epoch": 7, "optimizer": {"m": torch.ones(9)}})
    done = inspect("x.pth")
    assert (done.status, done.err) == (0, "")
    head, *facts = done.out.split("\n\n")[0].splitlines()
    assert head == ("x.pth  torch_zip · in 'model' · 26 tensors · 525 values · 2.05 KiB · float32")
    assert facts == [
        "  also there  optimizer (1 tensor); --container NAME opens it",
        "  metadata    epoch=7",
    ]
    assert done.out.split("\n\n")[1].splitlines() == [
        "  layers.0-11.*  24 tensors  1.97 KiB  float32  weight 6×6 · bias 6",
        "  head.*         2 tensors       84 B  float32  weight 3×6 · bias 3",
    ]


def test_tree_names_sort_and_limit(inspect: Inspect, tmp_path: Path) -> None:
    save(tmp_path, resnet(num_classes=5).state_dict())
    tree = inspect("x.pth", "--tree").out
    assert "layer2.0.downsample.1.running_var" in tree
    assert re.search(r"layer3\.\*  +\d+ tensors", tree)
    listed = inspect("x.pth", "--names", "layer4.*.conv1.*", "fc.*").out.split("\n\n")[1]
    assert [line.split()[0] for line in listed.splitlines()] == [
        "layer4.0.conv1.weight", "layer4.1.conv1.weight", "fc.weight", "fc.bias",
    ]  # fmt: skip
    largest = inspect("x.pth", "*", "--sort", "size", "--limit", "3").out.splitlines()
    assert [line.split()[1] for line in largest[-4:-1]] == ["512×512×3×3"] * 3
    assert "more rows" in largest[-1]
    for sort in ("name", "shape", "dtype", "order"):
        found = json.loads(inspect("x.pth", "--sort", sort, "--json").out)["tensors"]
        assert len(found) == len(rg.open(tmp_path / "x.pth"))
        by = {"name": lambda t: t["name"], "shape": lambda t: -len(t["shape"]),
              "dtype": lambda t: t["dtype"], "order": lambda t: 0}[sort]  # fmt: skip
        assert found == sorted(found, key=by)
    natural = infos(f"a.{i}" for i in (10, 9, 1))
    save(tmp_path, {info.name: torch.zeros(2) for info in natural}, "n.pth")
    done = json.loads(inspect("n.pth", "--sort", "name", "--json").out)
    assert [t["name"] for t in done["tensors"]] == ["a.1", "a.9", "a.10"]
    assert inspect("x.pth", "--tree", "--stats").status == 2
    assert inspect("x.pth", "--limit", "0").status == 2


def test_names_that_match_nothing(inspect: Inspect, tmp_path: Path) -> None:
    save(tmp_path, {"conv1.weight": torch.ones(2), "a[0]": torch.ones(1)})
    done = inspect("x.pth", "--names", "conv2.weight")
    assert (done.status, done.out) == (3, "")
    assert "FormatError" in done.err
    assert "'conv1.weight' is nearest" in done.err
    done = inspect("x.pth", "conv1.*", "--names", "bn*")
    assert (done.status, done.err) == (0, "warning  no-such-name: no tensor is called 'bn*'\n")
    assert "a[0]" in inspect("x.pth", "a[0]").out


def test_ties_prefixes_and_rivals(inspect: Inspect, tmp_path: Path) -> None:
    torch.manual_seed(0)
    embed = torch.randn(20, 4)
    state = {"module.embed.weight": embed, "module.head.weight": embed, "module.b": torch.ones(3)}
    save(tmp_path, {"state_dict": state, "ema": dict(state), "optimizer": {"m": torch.ones(9)}})
    done = inspect("x.pth")
    assert "83 values · 332 B" in done.out
    assert "tied        module.head.weight = module.embed.weight; counted once" in done.out
    assert "begin with module." in done.out
    assert "ema (3 tensors), optimizer (1 tensor)" in done.out
    assert done.err == (
        "warning  other-weights: opened 'state_dict'; 'ema' holds 3 tensors, too: "
        "--container ema opens it\n"
    )
    assert inspect("x.pth", "--container", "ema").err == ""
    found = json.loads(inspect("x.pth", "--json").out)
    assert (found["nbytes"], found["values"], found["prefix"]) == (332, 83, "module.")
    assert [w["code"] for w in found["warnings"]] == ["other-weights"]
    row = next(line for line in done.out.splitlines() if "module.head.weight  " in line)
    assert row.split()[1:3] == ["20×4", "tied"]
    assert row.endswith("= module.embed.weight")


def test_of_many_facts_the_first_are_shown(inspect: Inspect, tmp_path: Path) -> None:
    shared = torch.ones(2)
    state = {f"w{i}": shared for i in range(6)} | {"b": torch.ones(9)}
    parts = {f"optimizer{i}": {"m": torch.ones(3)} for i in range(5)}
    save(tmp_path, {"state_dict": state, **parts, **{f"note{i}": i for i in range(9)}})
    done = inspect("x.pth")
    assert (done.status, done.err) == (0, "")
    assert "optimizer2 (1 tensor), … 2 more; --container NAME" in done.out
    assert "w1 = w0, w2 = w0, w3 = w0, … 2 more; counted once" in done.out
    assert "note5=5, … 3 more\n" in done.out


def test_what_was_left_out_is_a_warning(inspect: Inspect, tmp_path: Path) -> None:
    sparse = torch.eye(3).to_sparse()
    save(tmp_path, {"a": torch.ones(2), "s": sparse})
    done = inspect("x.pth")
    if not done.err:
        pytest.skip("sparse tensors are read")
    assert done.err.startswith("warning  note: ")
    assert json.loads(inspect("x.pth", "--json").out)["warnings"][0]["code"] == "note"


def test_statistics_and_what_is_odd(inspect: Inspect, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)).state_dict()
    state["0.weight"][2:4] = 0
    state["0.bias"][:] = 0
    state["1.running_var"][3] = -1
    state["2.weight"][1, 1] = float("nan")
    state["2.bias"] = torch.tensor([1e-40, 1, 2, 3])
    save(tmp_path, state)
    found = json.loads(inspect("x.pth", "--stats", "--json").out)
    odd = {warning["code"]: warning["tensors"] for warning in found["warnings"]}
    assert odd == {
        "not-finite": ["2.weight"],
        "negative-variance": ["1.running_var"],
        "dead-channels": ["0.weight"],
        "all-zero": ["0.bias", "1.bias", "1.running_mean"],
        "constant": ["1.weight"],
        "denormal": ["2.bias"],
    }
    of = {tensor["name"]: tensor["statistics"] for tensor in found["tensors"]}
    finite = state["2.weight"].double().flatten()
    finite = finite[finite.isfinite()]
    assert of["2.weight"]["mean"] == pytest.approx(finite.mean().item(), rel=1e-12)
    assert of["2.weight"]["std"] == pytest.approx(finite.std(correction=0).item(), rel=1e-12)
    assert (of["2.weight"]["nan"], of["0.weight"]["dead_channels"]) == (1, 2)
    done = inspect("x.pth", "--stats")
    assert len(done.err.splitlines()) == 6
    assert all(line.startswith("warning  ") for line in done.err.splitlines())
    row = next(line for line in done.out.splitlines() if line.startswith("  0.bias"))
    assert row.split() == ["0.bias", "8", "float32", "0", "0", "0", "0", "100.00%", "0", "0"]
    only = json.loads(inspect("x.pth", "--stats", "--json", "0.*").out)
    assert {w["code"] for w in only["warnings"]} == {"dead-channels", "all-zero"}


def test_a_checkpoint_of_nothing(inspect: Inspect, tmp_path: Path) -> None:
    save(tmp_path, {"epoch": 3})
    done = inspect("x.pth")
    assert done.status == 0
    assert done.out.startswith("x.pth  torch_zip · 0 tensors · 0 values · 0 B")
    for option in ("--tree", "--stats", "--json"):
        assert inspect("x.pth", option).status == 0


def test_names_cannot_command_a_terminal(inspect: Inspect, tmp_path: Path) -> None:
    names = ["a\x1b]0;owned\x07.w", "b\ud800.w", "c\x9b31m.w", "d\ne.w"]
    save(tmp_path, {name: torch.ones(2) for name in names})
    for options in ([], ["--tree"], ["*"], ["--stats"]):
        done = inspect("x.pth", *options)
        assert done.status == 0
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.out + done.err)
        assert r"a\x1b]0;owned\x07.w" in done.out
    assert r"b\ud800.w" in done.out
    found = json.loads(inspect("x.pth", "--json").out)
    assert [t["name"] for t in found["tensors"]] == names


def test_coded_dtypes_print_as_they_are_called() -> None:
    info = TensorInfo("blk.0.ffn_up.weight", (256, 512), "q4_k")
    assert listing.of_tensor(info, {})[1:4] == ("256×512", "72.0 KiB", "q4_k")


def test_sizes_have_three_digits() -> None:
    for count, text in (
        (0, "0 B"), (999, "999 B"), (1000, "0.98 KiB"), (1536, "1.50 KiB"), (10_235, "10.0 KiB"),
        (324 << 20, "324 MiB"), ((1 << 30) - 1, "1.00 GiB"), (5 << 42, "20.0 TiB"),
    ):  # fmt: skip
        assert listing.size_text(count) == text


def test_it_needs_neither_numpy_nor_a_table_library(tmp_path: Path) -> None:
    save(tmp_path, {f"layers.{i}.w": torch.ones(2) for i in range(3)})
    code = (
        "import os, sys; sys.argv = ['regraft', 'inspect', sys.argv[1]]\n"
        "os._exit = sys.exit  # the command ends at once\n"
        "from regraft.cli import main\n"
        "try: main()\n"
        "finally: print([m for m in ('numpy', 'rich', 'msgspec', 'torch') if m in sys.modules])"
    )
    path = tmp_path / "x.pth"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr


def on_terminal(folder: Path, *arguments: str, columns: int, **environment: str) -> str:
    """What the command writes to a terminal so wide, 30 lines high."""
    import fcntl
    import struct
    import termios

    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    base = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    running = subprocess.Popen(
        [sys.executable, "-m", "regraft", "inspect", *arguments], cwd=folder, stdout=other,
        stderr=other, stdin=other, env={**base, "TERM": "xterm-256color", **environment},
    )  # fmt: skip
    os.close(other)
    found = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        found += part
    os.close(main)
    assert running.wait(60) == 0
    return found.decode().replace("\r\n", "\n")


def test_a_terminal_gets_colours_and_rows_that_fit(tmp_path: Path) -> None:
    save(tmp_path, resnet(num_classes=5).state_dict())
    plain = re.compile(r"\x1b\[[0-9;]*m")
    for columns in (50, 60, 90):
        out = on_terminal(tmp_path, "x.pth", columns=columns)
        assert "\x1b[" in out
        rows = plain.sub("", out).split("\n\n")[1].splitlines()
        assert max(map(len, rows)) <= columns
        assert len(rows) <= 30
        assert any(row.startswith("    con") for row in rows)  # below its module
    without = on_terminal(tmp_path, "x.pth", columns=80, NO_COLOR="1")
    assert "\x1b[" not in without


def test_long_output_is_paged(tmp_path: Path) -> None:
    save(tmp_path, {f"t{i}": torch.ones(i + 1) for i in range(99)})
    pager = tmp_path / "pager.py"
    pager.write_text("import sys; print('PAGED', len(sys.stdin.read().splitlines()))")
    command = f"{sys.executable} {pager}"
    assert "PAGED 101" in on_terminal(tmp_path, "x.pth", "*", columns=80, PAGER=command)
    assert "PAGED" not in on_terminal(
        tmp_path, "x.pth", "*", "--no-pager", columns=80, PAGER=command
    )
    assert "PAGED" not in on_terminal(tmp_path, "x.pth", columns=80, PAGER=command)


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    save(tmp_path, {"a[red]": torch.ones(3)})
    assert "reading" in on_terminal(tmp_path, "x.pth", "--stats", columns=80)


def test_real_files(inspect: Inspect, real: Path) -> None:
    opened = 0
    for path in sorted(real.rglob("*")):
        if path.suffix in (".md", ".json") or not path.is_file():
            continue
        done = inspect(str(path), "--stats", "--json")
        assert done.status in (0, 3), (path, done.err)
        if done.status == 0:
            opened += 1
            found = json.loads(done.out)
            assert all("statistics" in tensor for tensor in found["tensors"])
    assert opened >= 10
    done = inspect(str(real / "cifar-resnet/resnet20-12fca82f.th"))
    assert "ResNet (torchvision names): 3 stages of 3, 3, 3 blocks" in done.out
    assert "module.layer1.0-2.conv1-2.weight" in done.out
