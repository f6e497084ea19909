"""Family trees: real epochs, little families whose trees are known, and what is not known said."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import regraft as rg
from regraft import checkpoints
from regraft.cli import cli
from regraft.lineage import Lineage, Origin, encode
from regraft.lineage.hints import order_by_names
from regraft.tensors import TensorInfo

Arrays = dict[str, np.ndarray]


class Little:
    """Models of random numbers. Steps are at random, as noise is: norms grow by what was moved."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.random = folder, np.random.default_rng(seed)

    def new(self, classes: int = 10) -> Arrays:
        draw = self.random.standard_normal
        made = {f"body.{i}.weight": draw((40, 40)).astype(np.float32) for i in range(3)}
        made |= {f"body.{i}.bias": draw(40).astype(np.float32) for i in range(3)}
        return made | {"head.weight": draw((classes, 40)).astype(np.float32)}

    def step(self, model: Arrays, size: float = 0.1, frozen: str = "none") -> Arrays:
        return {
            n: a if n.startswith(frozen)
            else (a + size * self.random.standard_normal(a.shape)).astype(np.float32)
            for n, a in model.items()
        }  # fmt: skip

    def save(self, name: str, model: Arrays) -> str:
        items = [(TensorInfo(n, a.shape, a.dtype.name), lambda a=a: a) for n, a in model.items()]
        checkpoints.write(self.folder / name, items)
        os.utime(self.folder / name, (1e9, 1e9))
        return name


def edges(folder: Path) -> set[tuple[str, str]]:
    return {(e.parent, e.child) for e in rg.family_tree(folder).edges}


def test_real_epochs(real: Path) -> None:
    found = rg.family_tree(real / "mini-xception")
    epochs = [f"fer2013_mini_XCEPTION.{n}.hdf5" for n in ("00-0.47", "10-0.58", "102-0.66", "107-0.66")]  # fmt: skip
    assert [(e.parent, e.child) for e in found.edges] == list(pairwise(epochs))
    assert found.roots == (epochs[0], "gender_mini_XCEPTION.21-0.95.hdf5")
    assert found.remarks == ("SOURCE.md: not read: a file that begins with b'# mini-x'",)


def test_real_epochs_by_values_alone(real: Path, tmp_path: Path) -> None:
    """Other names, other formats, no optimizer, one time."""
    new = {"00-0.47": "k.safetensors", "10-0.58": "a.pth", "102-0.66": "z.npz", "107-0.66": "b.pth"}
    for old, name in new.items():
        rg.convert(real / "mini-xception" / f"fer2013_mini_XCEPTION.{old}.hdf5", tmp_path / name)
        os.utime(tmp_path / name, (1e9, 1e9))
    found = rg.family_tree(tmp_path, by_values=True).edges
    told = {(e.parent, e.child): e.rests for e in found}
    assert told.keys() == set(pairwise(new.values()))
    assert told["k.safetensors", "a.pth"] == told["a.pth", "z.npz"] == "values"


@pytest.mark.parametrize("seed", range(4))
def test_trees_of_random_steps(tmp_path: Path, seed: int) -> None:
    little = Little(tmp_path, seed)
    models = {"q.safetensors": little.new()}
    truth: set[tuple[str, str]] = set()
    for name in ("c.safetensors", "x.pth", "b.npz", "m.safetensors", "a.pth"):
        parent = str(little.random.choice(list(models)))
        frozen = str(little.random.choice(["none", "body.0", "body.1"]))
        models[name] = little.step(models[parent], little.random.uniform(0.05, 0.2), frozen)
        truth.add((parent, name))
    stranger = little.new()
    models["s.safetensors"], models["t.safetensors"] = stranger, little.step(stranger)
    truth.add(("s.safetensors", "t.safetensors"))
    for name, model in models.items():
        little.save(name, model)
    found = rg.family_tree(tmp_path)
    assert {(e.parent, e.child) for e in found.edges} == truth
    assert len(found.families) == 2


def test_wrappers_layouts_and_new_heads(tmp_path: Path) -> None:
    little = Little(tmp_path)
    base = little.new()
    little.save("z.safetensors", base)
    tuned = {**little.step(base, frozen="body.0"), "head.weight": little.new(3)["head.weight"]}
    little.save("b.safetensors", {f"module.{n}": a for n, a in tuned.items()})
    more = little.step(tuned)
    little.save(
        "a.safetensors", {f"net/{n}".replace(".", "/"): a.T.copy() for n, a in more.items()}
    )
    assert edges(tmp_path) == {
        ("z.safetensors", "b.safetensors"),
        ("b.safetensors", "a.safetensors"),
    }


def test_roundings_hang_on_their_origin(tmp_path: Path) -> None:
    little = Little(tmp_path)
    base = little.new()
    tuned = little.step(base)
    little.save("m.safetensors", base)
    little.save("k.safetensors", tuned)
    little.save("b.safetensors", {n: a.astype(np.float16) for n, a in tuned.items()})
    little.save("p.safetensors", {n: np.where(abs(a) < 0.5, 0, a) for n, a in tuned.items()})
    steps = {n: np.abs(a).max() / 127 for n, a in tuned.items()}
    coarse = {n: (np.round(a / steps[n]) * steps[n]).astype(np.float32) for n, a in tuned.items()}
    little.save("a.safetensors", coarse)
    little.save("c.pth", tuned)
    found = rg.family_tree(tmp_path)
    told = {(e.parent, e.child): e for e in found.edges}
    origin = "k.safetensors" if ("k.safetensors", "c.pth") in told else "c.pth"
    assert ("m.safetensors", origin) in told
    for name, how in (("b", "cast to float16"), ("p", "pruned"), ("a", "quantised")):
        edge = told[origin, f"{name}.safetensors"]
        assert (edge.direction, edge.why[0]) == ("certain", how)
    assert len(told) == 5


def test_copies_of_two_files_of_a_family_hang_on_their_own(tmp_path: Path) -> None:
    little = Little(tmp_path)
    base = little.new()
    tuned = little.step(base)
    for name in ("a.safetensors", "b.pth"):
        little.save(name, base)
    # The first of these in order is not the one that others go on from, by its name.
    for name in ("w-copy.npz", "w.safetensors", "w-copy-2.npz"):
        little.save(name, tuned)
    same = {(e.parent, e.child) for e in rg.family_tree(tmp_path).edges if "same" in e.why[0]}
    groups = ({"a.safetensors", "b.pth"}, {"w-copy.npz", "w.safetensors", "w-copy-2.npz"})
    assert len(same) == 3
    assert all(any({p, c} <= group for group in groups) for p, c in same)


def test_means_have_all_their_parents(tmp_path: Path) -> None:
    little = Little(tmp_path)
    base = little.new()
    little.save("z.safetensors", base)
    parts = [little.step(base) for _ in range(3)]
    for name, model in zip("yxw", parts, strict=True):
        little.save(f"{name}.safetensors", model)
    soup = {n: np.mean([p[n] for p in parts], axis=0).astype(np.float32) for n in base}
    little.save("a.safetensors", soup)
    found = edges(tmp_path)
    assert {p for p, c in found if c == "a.safetensors"} == {f"{n}.safetensors" for n in "yxw"}
    assert {c for p, c in found if p == "z.safetensors"} == {f"{n}.safetensors" for n in "yxw"}


def test_what_nothing_tells_is_open(tmp_path: Path) -> None:
    """Two that are equally far from an absent base."""
    little = Little(tmp_path)
    base = little.new()
    for name in ("a.safetensors", "b.safetensors"):
        little.save(name, little.step(base))
    found = rg.family_tree(tmp_path)
    (edge,) = found.edges
    assert edge.direction == "open"
    told = found.to_json()
    assert told["undirected"] == told["edges"] == [[edge.parent, edge.child]]


def test_times_tell_what_values_leave_open(tmp_path: Path) -> None:
    little = Little(tmp_path)
    base = little.new()
    for i, name in enumerate(("b.safetensors", "a.safetensors")):
        little.save(name, little.step(base))
        os.utime(tmp_path / name, ns=(10**18 + i, 10**18 + i))
    (edge,) = rg.family_tree(tmp_path).edges
    assert (edge.parent, edge.direction, edge.rests) == ("b.safetensors", "likely", "times")
    assert 0.8 <= edge.confidence < 0.95
    assert "only by times of the files" in str(edge)
    assert edge.why[-1] == "times of the files: before"
    (edge,) = rg.family_tree(tmp_path, by_values=True).edges
    assert (edge.direction, edge.rests) == ("open", "")
    # Times that run as the names do are those of a copied folder, too.
    for i, name in enumerate(("a.safetensors", "b.safetensors")):
        os.utime(tmp_path / name, ns=(10**18 + i, 10**18 + i))
    (edge,) = rg.family_tree(tmp_path).edges
    assert (edge.parent, edge.direction) == ("a.safetensors", "open")


def test_counters_and_dates_in_the_file_are_read(tmp_path: Path) -> None:
    import torch

    little = Little(tmp_path)
    base = little.new()
    for name, epoch, date in (("b", 3, "2024-05-01"), ("a", 12, "2024-05-02T10:00:00")):
        weights = {n: torch.from_numpy(a) for n, a in little.step(base).items()}
        torch.save({"epoch": epoch, "saved": date, "model": weights}, tmp_path / f"{name}.pth")
        os.utime(tmp_path / f"{name}.pth", (1e9, 1e9))
    (edge,) = rg.family_tree(tmp_path).edges
    assert (edge.parent, edge.child, edge.rests) == ("b.pth", "a.pth", "names and counters")
    told = " ".join(edge.why)
    assert "epoch in the file: 3, 12" in told
    assert "dates in the files" in told


def test_a_lineage_in_the_file_is_believed(tmp_path: Path) -> None:
    from torch import nn

    source = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 5))
    rg.save(source, tmp_path / "b.safetensors")
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 5))
    receipt = rg.load(tmp_path / "b.safetensors", model)
    model[0].weight.data *= 0.9  # a step back, by its norms
    rg.save(model, tmp_path / "a.safetensors", receipt=receipt)
    (edge,) = rg.family_tree(tmp_path).edges
    assert (edge.parent, edge.child, edge.direction) == (
        "b.safetensors",
        "a.safetensors",
        "certain",
    )
    assert "the lineage in the file" in edge.why[0]


def test_files_of_which_nothing_is_compared_are_not_the_same(tmp_path: Path) -> None:
    """Integers alone: kin by the lineage in the file, and by nothing else."""
    little = Little(tmp_path)
    values = np.arange(30).reshape(5, 6)
    little.save("base.safetensors", {"w": values})
    with rg.open(tmp_path / "base.safetensors") as base:
        told = Lineage("base.safetensors", base.sha256, "", {"w": Origin("tuned", "", ("w",))})
    item = (TensorInfo("w", (5, 6), "int64"), lambda: values[::-1].copy())
    checkpoints.write(tmp_path / "tuned.safetensors", [item], encode(told))
    (edge,) = rg.family_tree(tmp_path).edges
    assert (edge.parent, edge.direction) == ("base.safetensors", "certain")
    assert not any("same values" in reason for reason in edge.why)


@pytest.mark.parametrize(
    ("first", "second", "sign"),
    [
        ("base", "tuned", 1), ("model", "model-squad", 1), ("run_epoch_2", "run_epoch_10", 1),
        ("ckpt-300", "ckpt-20", -1), ("a1b2", "a3c4", 0), ("0f3", "9ac", 0), ("x", "x", 0),
        ("net.00-0.47", "net.10-0.58", 1), ("same", "similar", 0), ("bert-fp16", "bert", -1),
    ],
)  # fmt: skip
def test_names(first: str, second: str, sign: int) -> None:
    odds = sum(reason.odds for reason in order_by_names(first, second))
    assert (odds > 0) - (odds < 0) == sign
    assert sum(reason.odds for reason in order_by_names(second, first)) == -odds


def test_shards_empty_folders_and_strange_files(tmp_path: Path) -> None:
    little = Little(tmp_path)
    base = little.new()
    little.save("whole.safetensors", base)
    rg.convert(tmp_path / "whole.safetensors", tmp_path / "s.safetensors", max_shard="8KB")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:900])
    found = rg.family_tree(tmp_path)
    assert set(found.nodes) == {"whole.safetensors", "s.safetensors.index.json"}
    assert [e.why[0] for e in found.edges] == ["the same values"]
    assert len(found.remarks) == 2
    (tmp_path / "empty").mkdir()
    assert rg.family_tree(tmp_path / "empty").nodes == ()
    with pytest.raises(rg.FormatError, match="no such folder"):
        rg.family_tree(tmp_path / "nowhere")


def test_commands(tmp_path: Path) -> None:
    little = Little(tmp_path)
    base = little.new()
    little.save("base.safetensors", base)
    little.save("tuned.safetensors", little.step(base, frozen="body.0"))
    one, other = str(tmp_path / "base.safetensors"), str(tmp_path / "tuned.safetensors")
    run = CliRunner().invoke

    told = json.loads(run(cli, ["lineage", str(tmp_path), "--json"]).stdout)
    assert told["edges"] == [["base.safetensors", "tuned.safetensors"]]
    assert set(told["nodes"]) == {"base.safetensors", "tuned.safetensors"}
    drawn = run(cli, ["lineage", str(tmp_path)]).stdout
    assert "└── tuned.safetensors" in drawn

    out = str(tmp_path / "d.delta")
    assert "would write" in run(cli, ["delta", "make", one, other, "-o", out, "--dry-run"]).stdout
    assert run(cli, ["delta", "make", one, other, "-o", out]).exit_code == 0
    back = str(tmp_path / "back.safetensors")
    assert json.loads(run(cli, ["delta", "apply", one, out, "-o", back, "--json"]).stdout)["bytes"]
    assert Path(back).read_bytes() == Path(other).read_bytes()

    page = str(tmp_path / "page.html")
    done = run(cli, ["diff", one, other, "--html", page, "--modules"], standalone_mode=False)
    assert done.return_value == 1
    assert "body.0" in done.stdout
    assert "Drift by depth" in Path(page).read_text()
    rewound = str(tmp_path / "r.safetensors")
    args = ["restore", other, "--tensors", "body.*", "--base", one, "-o", rewound, "--json"]
    assert len(json.loads(run(cli, args).stdout)["rewound"]) == 6
    assert rg.diff(one, rewound).counts() == {"identical": 6, "moved": 1}
