"""Lineages stay with what is written: every verb, every format that can be written, and beside
files that can hold none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg
from regraft import formats, registry
from regraft.formats import npz
from regraft.lineage import sidecar

# A format of a third party, whose writer knows nothing of metadata; npz reads its files.
MUTE = ".mute"
ENDINGS = [
    ending
    for name in formats.names()
    if hasattr(formats.load(name), "write")
    for ending in formats.load(name).SUFFIXES
]


@pytest.fixture(autouse=True)
def mute(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, tensors: Any, metadata: Any) -> None:
        npz.write(path, tensors, {})

    found = SimpleNamespace(EXTRA="", SUFFIXES=(MUTE,), write=write, sniff=lambda _: False)
    entry = SimpleNamespace(name="mute", load=lambda: found)
    monkeypatch.setattr(registry, "_entry_points", lambda: [entry])


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        for tensor in made.parameters():
            tensor.add_(torch.randn_like(tensor))
    return made


@pytest.fixture
def base(tmp_path: Path) -> Path:
    state = {f"old.{name}": tensor for name, tensor in net(0).state_dict().items()}
    torch.save(state, tmp_path / "base.pth")
    return tmp_path / "base.pth"


def tuned(base: Path, path: Path, seed: int = 1) -> Path:
    model = net(seed)
    receipt = rg.load(base, model, fresh=["3.*"], unused=["old.3.*"])
    with torch.no_grad():
        model[0].weight.add_(0.01 * torch.randn(8, 4))
    return rg.save(model, path, receipt=receipt)


def holds(path: Path, sources: Iterable[str]) -> rg.Lineage:
    """It names its sources, which are there, and its tensors are as it says."""
    told = rg.trace(path)
    assert "changed" not in told.counts()
    with rg.open(path) as found:
        assert set(told.tensors) == set(found)
        held = "regraft.lineage" in found.metadata
    assert held != sidecar.path_of(path).exists()
    states = {source.name: source.state for source in rg.sources_of(path)}
    assert {states[name] for name in sources} == {"verified"}
    return told


@pytest.mark.parametrize("ending", [*ENDINGS, MUTE])
def test_every_verb_in_every_format(ending: str, base: Path, tmp_path: Path) -> None:
    def out(name: str) -> Path:
        return tmp_path / f"{name}{ending}"

    first = tuned(base, out("first"))
    told = holds(first, ["base.pth"])
    assert {told.tensors[n].state for n in ("0.weight", "0.bias", "3.bias")} == {
        "tuned", "loaded", "fresh",
    }  # fmt: skip
    second = tuned(base, out("second"), 2)
    copied = rg.convert(first, out("copied"))
    assert holds(copied, ["base.pth"]).counts() == told.counts()
    # From a format of its own to another one, and back.
    there = rg.convert(first, tmp_path / "there.safetensors")
    assert holds(rg.convert(there, out("back")), ["base.pth"]).counts() == told.counts()
    plan = rg.plan(there, model := net(3))  # whose layout no format speaks against
    planned = rg.convert(first, out("planned"), plan=plan)
    holds(planned, [first.name, "base.pth"])
    holds(rg.export(first, out("exported"), base=base).path, [first.name, "base.pth"])
    rewound = rg.restore(first, base, out("rewound"), tensors=["0.*"]).path
    assert holds(rewound, ["base.pth"]).tensors["0.weight"].state == "loaded"
    holds(rg.interpolate(base, first, out("between")), ["base.pth", first.name])
    holds(rg.soup([first, second], out("soup")), [first.name, second.name, "base.pth"])
    delta = rg.make_delta(base, first, tmp_path / "x.delta")
    again = rg.apply_delta(base, delta, out("again"))
    assert holds(again, ["base.pth"]).counts() == told.counts()
    # A model that is loaded from it has it as its parent.
    receipt = rg.apply(plan, first, model)
    holds(rg.save(model, out("child"), receipt=receipt), [first.name, "base.pth"])


def test_what_lies_beside_another_file_is_not_believed(base: Path, tmp_path: Path) -> None:
    path = tuned(base, tmp_path / f"t{MUTE}")
    assert rg.diff(base, path)["0.bias"].base == "old.0.bias"
    values = {name: array * 2 for name, array in np.load(path).items()}
    with path.open("wb") as file:
        np.savez(file, **values)
    for verb in (
        lambda: rg.trace(path),
        lambda: rg.sources_of(path),
        lambda: rg.pretrained(path, base),
        lambda: rg.restore(path, base, tmp_path / "r.pth", tensors=["*"]),
        lambda: rg.export(path, tmp_path / "e.pth"),
        lambda: rg.interpolate(base, path, tmp_path / "i.pth"),
    ):
        with pytest.raises(rg.StalePlan, match=r"t\.mute\.lineage\.json"):
            verb()
    # Where names and values do as well, it is told.
    (remark,) = rg.diff(base, path).remarks
    assert remark.code == "stale-lineage"
    assert "t.mute.lineage.json is not believed" in remark.text
    # What is made of the file does not hold it, and the family tree goes without.
    receipt = rg.load(path, model := net(4))
    assert receipt.parent == ""
    assert not rg.has_lineage(rg.convert(path, tmp_path / "c.npz"))
    rg.save(model, tmp_path / "m.npz", receipt=receipt)
    assert [s.name for s in rg.sources_of(tmp_path / "m.npz")] == ["t.mute"]
    assert rg.family_tree(tmp_path).nodes
    # Written anew without lineage, it has none.
    rg.convert(values, path, force=True)
    assert not rg.has_lineage(path)
    assert rg.diff(base, path).remarks == ()


def test_files_that_others_write(base: Path, tmp_path: Path) -> None:
    model = net(1)
    receipt = rg.load(base, model, fresh=["3.*"], unused=["old.3.*"])
    with torch.no_grad():
        model[0].weight.add_(0.01)
    path = tmp_path / "checkpoint.pt"
    torch.save({"epoch": 3, "model": {f"net.{n}": t for n, t in model.state_dict().items()}}, path)
    assert receipt.keep_beside(path, trained={"0.bias": False}, training={"epochs": "3"}).exists()
    told = holds(path, ["base.pth"])
    assert told.training == {"epochs": "3"}
    assert {n: o.state for n, o in told.tensors.items() if ".0." in n or ".3." in n} == {
        "net.0.weight": "tuned", "net.0.bias": "frozen", "net.3.weight": "fresh",
        "net.3.bias": "fresh",
    }  # fmt: skip
    assert rg.diff(base, path)["net.0.bias"].status == "identical"
    # It stays with the tensors through other formats.
    assert holds(rg.convert(path, tmp_path / "c.safetensors"), ["base.pth"])
    torch.save(nn.Conv2d(1, 1, 1).state_dict(), tmp_path / "other.pt")
    with pytest.raises(rg.StalePlan, match="none of the tensors"):
        receipt.keep_beside(tmp_path / "other.pt")
    torch.save({n + k: t for n, t in model.state_dict().items() for k in ("",)} | {
        f"ema.{n}": t for n, t in model.state_dict().items()}, tmp_path / "twice.pt")  # fmt: skip
    with pytest.raises(rg.StalePlan, match="names twice"):
        receipt.keep_beside(tmp_path / "twice.pt")
    with pytest.raises(rg.FormatError, match="no such file"):
        receipt.keep_beside(tmp_path / "absent.pt")


@pytest.mark.parametrize("ending", [".keras", ".weights.h5", ".h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_files_that_keras_writes(ending: str, tmp_path: Path) -> None:
    def made(seed: int) -> Any:
        keras.utils.set_random_seed(seed)
        layers = [keras.Input((3,)), keras.layers.Dense(4, name="first"),
                  keras.layers.Dense(2, name="head")]  # fmt: skip
        return keras.Sequential(layers)

    rg.save(made(0), tmp_path / "base.npz")
    model = made(1)
    receipt = rg.load(tmp_path / "base.npz", model)
    path = tmp_path / f"m{ending}"
    model.save_weights(path) if "weights" in ending else model.save(path)
    receipt.keep_beside(path)
    assert set(holds(path, ["base.npz"]).counts()) == {"loaded"}
