"""Ways back: pretrained values and differences as arrays, restore, export, trace and its sources."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg
from regraft import checkpoints, transfer
from regraft.lineage import encode, parent_of, sidecar
from regraft.tensors import TensorInfo


def net(classes: int = 4, width: int = 6) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(),
        nn.Linear(width * 36, classes),
    )  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = net()
    nn.init.uniform_(model[1].weight)
    model[1].running_mean.uniform_(-1, 1)
    model[1].running_var.uniform_(0.5, 2)
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "base.pth")
    return tmp_path / "base.pth"


@pytest.fixture
def tuned(base: Path, tmp_path: Path) -> Path:
    model = net(9)
    receipt = rg.load(base, model, fresh=["4.*"], unused=["module.4.*"])
    with torch.no_grad():
        model[0].weight.add_(0.01 * torch.randn(6, 3, 3, 3))
        model[1].weight.mul_(2)
    return rg.save(model, tmp_path / "tuned.safetensors", receipt=receipt)


def state(path: Path) -> dict[str, np.ndarray]:
    with rg.open(path) as found:
        return {name: found.read(name).copy() for name in found}


def test_differences_as_arrays(base: Path, tuned: Path) -> None:
    before, change, after = rg.pretrained(tuned, base), rg.delta(tuned, base), state(tuned)
    assert set(before) == set(change) == set(after) - {"4.weight", "4.bias"}
    for name in before:
        np.testing.assert_allclose(before[name] + change[name], after[name], atol=1e-6)
    assert change["0.weight"].dtype == np.float32
    assert change["1.num_batches_tracked"].dtype == np.int64
    assert np.abs(change["0.weight"]).max() > 0
    assert not change["0.bias"].any()


def test_restore(base: Path, tuned: Path, tmp_path: Path) -> None:
    done = rg.restore(tuned, base, tmp_path / "r.safetensors", tensors=["0.*", "4.bias"])
    assert done.rewound == ("0.weight", "0.bias")
    assert done.kept == ("4.bias",)
    told = rg.trace(done.path)
    assert told.tensors["0.weight"].state == "loaded"
    assert told.tensors["1.weight"].state == "tuned"
    assert "changed" not in told.counts()
    found = rg.diff(base, done.path)
    assert found["0.weight"].status == "identical"
    assert found["1.weight"].status == "moved"
    kept, rewound = state(tuned), state(done.path)
    assert all((kept[n] == rewound[n]).all() for n in kept if not n.startswith("0."))


def test_restore_says_what_it_cannot_do(base: Path, tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.safetensors"
    with pytest.raises(rg.RuleMatchedNothing):
        rg.restore(tuned, base, out, tensors=["layer9.*"])
    with pytest.raises(rg.IncompletePlan, match="fresh"):
        rg.restore(tuned, base, out, tensors=["4.*"])
    other = torch.load(base)
    other["state_dict"]["module.0.bias"] += 1
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(rg.StalePlan):
        rg.restore(tuned, tmp_path / "other.pth", out, tensors=["0.*"])
    assert not out.exists()


def test_restore_without_lineage_by_names(base: Path, tmp_path: Path) -> None:
    plain = torch.load(base)["state_dict"]
    changed = {n: t + 1 if t.is_floating_point() else t for n, t in plain.items()}
    torch.save(changed, tmp_path / "plain.pth")
    done = rg.restore(tmp_path / "plain.pth", base, tmp_path / "r.pth", tensors=["*.1.*"])
    found = rg.diff(base, done.path)
    assert [n for n, e in found.items() if e.status == "moved"] == [
        n for n in plain if ".1." not in n and "tracked" not in n
    ]


def trained(seed: int, *, move: float = 0.0) -> dict[str, torch.Tensor]:
    """A network of four layers alike and a head; every tensor has values of its own."""
    draw = torch.Generator().manual_seed(seed)
    state = {f"l{i}.{n}": torch.randn(s, generator=draw) for i in range(4)
             for n, s in {"weight": (16, 16), "bias": (16,), "scale": (3,)}.items()}  # fmt: skip
    state["head.weight"] = torch.randn(8, 16, generator=draw)
    other = torch.Generator().manual_seed(99)
    return {n: t + move * torch.randn(t.shape, generator=other) for n, t in state.items()}


def stored(folder: Path, **states: dict[str, torch.Tensor]) -> list[Path]:
    for name, state in states.items():
        torch.save(state, folder / f"{name}.pth")
    return [folder / f"{name}.pth" for name in states]


def test_restore_takes_what_values_bear_out(tmp_path: Path) -> None:
    """Far moved ones, too; small tensors and a layer that was begun anew by their company."""
    base = trained(0)
    moved = trained(0, move=1.0) | {"head.weight": trained(5)["head.weight"]}
    named = {f"net.{n}": t for n, t in moved.items()}
    files = stored(tmp_path, base=base, tuned=moved, named=named)
    for file in files[1:]:
        done = rg.restore(file, files[0], tmp_path / "r.pth", tensors=["*"], force=True)
        assert set(done.rewound) == set(torch.load(file))
        for name, tensor in torch.load(done.path).items():
            assert torch.equal(tensor, base[name.removeprefix("net.")])


def test_restore_writes_no_guesses(tmp_path: Path) -> None:
    base, far = trained(0), trained(1)
    swapped = trained(0, move=0.01)
    for kind in ("weight", "bias", "scale"):
        one, other = f"l1.{kind}", f"l2.{kind}"
        swapped[one], swapped[other] = swapped[other], swapped[one]
    one, other, renumbered = stored(tmp_path, base=base, far=far, swapped=swapped)
    out = tmp_path / "r.pth"
    # The same names and shapes, from another start.
    with pytest.raises(rg.AmbiguousMatch, match="5 of 5 tensors") as caught:
        rg.restore(other, one, out, tensors=["l*.weight", "l0.bias"])
    assert len(caught.value.problems) == 5
    # The same names, but layers were numbered in another order: their values tell whose they are.
    with pytest.raises(
        rg.AmbiguousMatch, match=r"l1\.weight ← l1\.weight: .*or l2\.weight \(1\.00\)"
    ):
        rg.restore(renumbered, one, out, tensors=["l1.weight", "l3.weight"])
    with pytest.raises(rg.RuleMatchedNothing):
        rg.restore(other, one, out, tensors=["l0.*"], accept=["m0.*"])
    with pytest.raises(rg.AmbiguousMatch, match="l0\\.bias"):
        rg.restore(other, one, out, tensors=["l0.*"], accept=["l0.[ws]*"])
    assert not out.exists()
    done = rg.restore(other, one, out, tensors=["l0.*"], accept=["l0.*"])
    assert torch.equal(torch.load(done.path)["l0.weight"], base["l0.weight"])
    # A plan is a person's word.
    plan = rg.plan(one, other)
    assert rg.restore(other, one, out, tensors=["l0.*"], plan=plan, force=True).rewound
    assert rg.restore(renumbered, one, out, tensors=["l3.*"], force=True).rewound


def test_restore_keeps_the_dtype_of_the_tuned_file(tmp_path: Path) -> None:
    model = net()
    wide = model.state_dict()
    narrow = {n: (t + 1).bfloat16() if t.is_floating_point() else t for n, t in wide.items()}
    torch.save(wide, tmp_path / "wide.pth")
    torch.save(narrow, tmp_path / "narrow.pth")
    out = tmp_path / "r.safetensors"
    rg.restore(tmp_path / "narrow.pth", tmp_path / "wide.pth", out, tensors=["0.*"])
    with rg.open(out) as found:
        assert found["0.weight"].dtype == "bfloat16"
        want = wide["0.weight"].bfloat16().float().numpy()
        np.testing.assert_array_equal(found.read("0.weight").astype(np.float32), want)


def test_restore_by_a_plan_says_which_file_it_was(base: Path, tuned: Path, tmp_path: Path) -> None:
    other = {n: t * 3 for n, t in torch.load(base)["state_dict"].items()}
    torch.save(other, tmp_path / "other.pth")
    rules = {"fresh": ["4.*"], "unused": ["module.4.*"]}
    plan = rg.load(tmp_path / "other.pth", net(9), **rules).plan
    out = tmp_path / "r.safetensors"
    rg.restore(tuned, tmp_path / "other.pth", out, tensors=["0.*"], plan=plan)
    told = rg.trace(out)
    assert told.tensors["0.bias"].state == "loaded"
    assert told.tensors["0.bias"].file == "other.pth"
    assert set(told.also) == {"other.pth"}
    # Of the lineage's own source there are the others still.
    assert set(rg.pretrained(out, base)) == {n for n in told.tensors if n.startswith("1.")}
    few = msgspec.structs.replace(plan, grafts={n: plan.grafts[n] for n in ("0.weight",)})
    done = rg.restore(tuned, tmp_path / "other.pth", out, tensors=["0.*"], plan=few, force=True)
    assert (done.rewound, done.kept) == (("0.weight",), ("0.bias",))
    wider = rg.save(net(9, width=9), tmp_path / "wider.safetensors")
    with pytest.raises(rg.ShapeMismatch, match=r"0\.weight"):
        rg.restore(wider, tmp_path / "other.pth", out, tensors=["0.*"], plan=plan, force=True)


def test_export_in_the_source_s_terms(base: Path, tuned: Path, tmp_path: Path) -> None:
    done = rg.export(tuned, tmp_path / "back.pth")
    assert done.left == ("4.weight", "4.bias")
    assert all(name.startswith("module.") for name in done.written)
    back, ours = torch.load(done.path), state(tuned)
    np.testing.assert_array_equal(back["module.0.weight"].numpy(), ours["0.weight"])
    whole = rg.export(tuned, tmp_path / "whole.pth", base=base)
    assert whole.filled == ("module.4.weight", "module.4.bias")
    assert list(torch.load(whole.path)) == list(torch.load(base)["state_dict"])
    assert rg.diff(base, whole.path).counts() == {"identical": 7, "moved": 2}
    assert set(rg.trace(whole.path).counts()) == {"loaded"}
    # What came from the base is no part of the tuned file.
    assert set(rg.pretrained(whole.path, tuned)) == set(done.written)
    assert rg.export(whole.path, tmp_path / "again.safetensors").left == whole.filled


def test_export_takes_nothing_from_another_training(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    held = torch.load(base)["state_dict"]
    torch.save({"state_dict": held, "epoch": 3}, tmp_path / "same.pth")
    assert rg.export(tuned, tmp_path / "a.pth", base=tmp_path / "same.pth").filled
    torch.save({"state_dict": {n: t * 2 for n, t in held.items()}}, tmp_path / "other.pth")
    with pytest.raises(rg.StalePlan, match="other values than were loaded"):
        rg.export(tuned, tmp_path / "b.pth", base=tmp_path / "other.pth")


def test_export_from_another_layout(tmp_path: Path) -> None:
    import keras

    keras.utils.set_random_seed(1)
    layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(5, 3), keras.layers.Flatten(),
              keras.layers.Dense(4)]  # fmt: skip
    source = keras.Sequential(layers)
    source.save_weights(tmp_path / "k.weights.h5")
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(180, 4))
    receipt = rg.load(tmp_path / "k.weights.h5", model, probe=None, partial=True)
    with torch.no_grad():
        model[0].weight.add_(0.5)
    tuned = rg.save(model, tmp_path / "t.safetensors", receipt=receipt)
    done = rg.export(tuned, tmp_path / "e.weights.h5", base=tmp_path / "k.weights.h5")
    again = keras.Sequential(layers)
    again.load_weights(done.path)
    kernel = model[0].weight.detach().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(np.asarray(again.weights[0]), kernel)


def test_export_refuses_what_was_adapted(base: Path, tmp_path: Path) -> None:
    narrow = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)
    )
    receipt = rg.load(base, narrow, adapt=True)
    tuned = rg.save(narrow, tmp_path / "t.safetensors", receipt=receipt)
    with pytest.raises(rg.IncompletePlan, match=r"module\.0\.weight: 0\.weight was made of it by"):
        rg.export(tuned, tmp_path / "e.pth")


def test_lower_precision_is_not_forced_on_tuned_weights(tmp_path: Path) -> None:
    model = net()
    half = {n: t.bfloat16() if t.is_floating_point() else t for n, t in model.state_dict().items()}
    torch.save(half, tmp_path / "half.pth")
    fresh = net()
    receipt = rg.load(tmp_path / "half.pth", fresh)
    with torch.no_grad():
        fresh[0].weight.add_(1e-4)
    tuned = rg.save(fresh, tmp_path / "t.safetensors", receipt=receipt)
    done = rg.export(tuned, tmp_path / "e.pth")
    assert torch.equal(torch.load(done.path)["0.weight"], fresh[0].weight)


def test_values_are_hashed_once(
    base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []
    survey = transfer.survey

    def counting(array: np.ndarray) -> object:
        hashed.append(array.nbytes)
        return survey(array)

    monkeypatch.setattr(transfer, "survey", counting)
    plan = rg.plan(base, net(4))
    hashed.clear()
    path = rg.convert(base, tmp_path / "c.safetensors", plan=plan)
    with rg.open(path) as found:
        assert sum(hashed) == found.nbytes
    for given in (None, base):
        hashed.clear()
        done = rg.export(tuned, tmp_path / "e.pth", base=given, force=True)
        with rg.open(done.path) as found:
            assert sum(hashed) == found.nbytes
    monkeypatch.undo()
    assert set(rg.trace(path).counts()) == set(rg.trace(done.path).counts()) == {"loaded"}


def test_chains_of_parents(base: Path, tuned: Path, tmp_path: Path) -> None:
    model = net(9)
    receipt = rg.load(tuned, model)
    with torch.no_grad():
        model[0].bias.add_(1)
    last = rg.save(model, tmp_path / "last.safetensors", receipt=receipt)
    told = rg.trace(last)
    parent = parent_of(told)
    assert (told.source, parent.source) == ("tuned.safetensors", "base.pth")
    sources = rg.sources_of(last)
    assert [(s.name, s.depth, s.state) for s in sources] == [
        ("tuned.safetensors", 0, "verified"), ("base.pth", 1, "verified"),
    ]  # fmt: skip
    found = rg.diff(base, last)
    assert found["0.bias"].base == "module.0.bias"
    assert found.counts() == {"identical": 4, "moved": 3, "fresh": 2, "gone": 2}
    base.write_bytes(base.read_bytes() + b"x")
    assert [s.state for s in rg.sources_of(last)] == ["verified", "changed"]
    base.unlink()
    assert [s.state for s in rg.sources_of(last)] == ["verified", "absent"]


def test_a_lineage_beside_its_file(base: Path, tuned: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.pth"
    torch.save({n: torch.from_numpy(a) for n, a in state(tuned).items()}, bare)
    assert not rg.has_lineage(bare)
    with pytest.raises(rg.FormatError, match="no lineage"):
        rg.trace(bare)
    sidecar.write(bare, rg.trace(tuned), rg.open(bare).sha256)
    assert rg.has_lineage(bare)
    assert rg.trace(bare).counts() == rg.trace(tuned).counts()
    assert rg.diff(base, bare)["0.bias"].base == "module.0.bias"
    sidecar.path_of(bare).write_text("{")
    with pytest.raises(rg.FormatError, match="cannot be read"):
        rg.trace(bare)


def test_a_lineage_is_not_believed(tuned: Path, base: Path, tmp_path: Path) -> None:
    """It names no file outside its folder, and sources that it does not describe are an error."""
    told = rg.trace(tuned)
    (tmp_path / "inner").mkdir()
    bare = tmp_path / "inner" / "bare.safetensors"
    rg.convert(tuned, bare)
    with rg.open(bare) as found:
        kept = {name: found.read(name).copy() for name in found}
    items = [(TensorInfo(n, a.shape, a.dtype.name), lambda a=a: a) for n, a in kept.items()]
    for name in (str(base), f"../{base.name}", "..", ""):
        wrong = msgspec.structs.replace(told, source=name)
        checkpoints.write(bare, items, encode(wrong), force=True)
        assert [s.state for s in rg.sources_of(bare)] == ["absent"]
    checkpoints.write(
        bare, items, encode(msgspec.structs.replace(told, source_tensors={})), force=True
    )
    with pytest.raises(rg.FormatError, match="says no shape"):
        rg.export(bare, tmp_path / "e.pth")


def test_a_plan_of_other_files_is_told(base: Path, tuned: Path) -> None:
    model = nn.ModuleDict({"net": net(9)})
    plan = rg.plan(base, model)
    with pytest.raises(rg.StalePlan, match="none of the tensors"):
        rg.diff(base, tuned, plan=plan)


@pytest.mark.parametrize("kind", ["model", "weights"])
def test_export_to_keras_older_file(tmp_path: Path, kind: str) -> None:
    """A copy of the base with other values: Keras opens it as it opened the base."""
    import h5py
    import keras

    keras.utils.set_random_seed(1)
    layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(5, 3), keras.layers.BatchNormalization(),
              keras.layers.Flatten(), keras.layers.Dense(4)]  # fmt: skip
    source = keras.Sequential(layers)
    source.layers[1].set_weights(
        [np.random.default_rng(i).uniform(0.5, 2, 5).astype(np.float32) for i in range(4)]
    )
    base = tmp_path / "base.h5"
    if kind == "model":
        source.compile("adam", "mse")
        source.fit(np.ones((2, 8, 8, 3)), np.ones((2, 4)), verbose=0)
        source.save(base)
    else:  # as Keras 2 saved weights alone
        with h5py.File(base, "w") as file:
            keras.src.legacy.saving.legacy_h5_format.save_weights_to_hdf5_group(file, source)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, eps=1e-3), nn.Flatten(), nn.Linear(180, 4)
    )
    receipt = rg.load(base, model, fresh=["3.*"], unused=["*dense*"])
    with torch.no_grad():
        model[0].weight.add_(0.5)
    tuned = rg.save(model, tmp_path / "t.safetensors", receipt=receipt)
    done = rg.export(tuned, tmp_path / "back.h5", base=base)
    assert any("dense" in name for name in done.filled)
    if kind == "model":
        again = keras.models.load_model(done.path, compile=False)
        with h5py.File(done.path) as file:
            assert "optimizer_weights" not in file
    else:
        again = keras.models.clone_model(source)
        again.load_weights(done.path)
    for mine, theirs in zip(again.weights, source.weights, strict=True):
        expected = np.asarray(theirs) + (0.5 if theirs is source.weights[0] else 0)
        np.testing.assert_array_equal(np.asarray(mine), expected)
    assert rg.trace(done.path).source == "t.safetensors"
    with pytest.raises(rg.FormatError, match="exists"):
        rg.export(tuned, done.path, base=base)
    with pytest.raises(rg.FormatError, match="ending"):
        rg.export(tuned, tmp_path / "alone.h5")
    half = model.half()
    receipt = rg.load(base, half, fresh=["3.*"], unused=["*dense*"], accept=["lossy-cast"])
    tuned = rg.save(half, tmp_path / "half.safetensors", receipt=receipt)
    done = rg.export(tuned, tmp_path / "half.h5", base=base)
    kernel = next(i for i in rg.open(done.path).values() if "conv" in i.name and len(i.shape) == 4)
    assert kernel.dtype == "float16"


@pytest.mark.parametrize("with_base", [True, False])
def test_export_keeps_flaxs_collection(tmp_path: Path, with_base: bool) -> None:
    flax = pytest.importorskip("flax")
    random = np.random.default_rng(0)
    shapes = {"c": {"kernel": (3, 3, 3, 5), "bias": (5,)}, "d": {"kernel": (5, 4), "bias": (4,)}}
    variables = {"params": {
        layer: {name: random.normal(size=shape).astype(np.float32) for name, shape in held.items()}
        for layer, held in shapes.items()
    }}  # fmt: skip
    base = tmp_path / "base.msgpack"
    base.write_bytes(flax.serialization.to_bytes(variables))
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Linear(5, 4))
    receipt = rg.load(base, model)
    with torch.no_grad():
        model[0].weight.add_(0.5)
    tuned = rg.save(model, tmp_path / "t.safetensors", receipt=receipt)
    done = rg.export(tuned, tmp_path / "back.msgpack", base=base if with_base else None)
    again = flax.serialization.from_bytes(variables, done.path.read_bytes())
    kernel = variables["params"]["c"]["kernel"] + np.float32(0.5)
    np.testing.assert_array_equal(again["params"]["c"]["kernel"], kernel)
    np.testing.assert_array_equal(
        again["params"]["d"]["kernel"], variables["params"]["d"]["kernel"]
    )
    assert list(rg.open(done.path)) == list(rg.open(base))
    assert not any(origin.state == "changed" for origin in rg.trace(done.path).tensors.values())
