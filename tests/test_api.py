"""The verbs as a user calls them: differences allowed one by one, lineage, the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg


def net(width: int = 6, classes: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(),
        nn.Linear(width * 36, classes),
    )  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = net()
    model[1].running_var.uniform_(0.5, 2)
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    more = {"optimizer": {"state": {0: torch.ones(3)}}, "epoch": 7}
    torch.save({"state_dict": state, **more}, tmp_path / "base.pth")
    return tmp_path / "base.pth"


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(t, b.state_dict()[n]) for n, t in a.state_dict().items())


def test_load_save_trace_diff_and_back(base: Path, tmp_path: Path) -> None:
    model = net()
    receipt = rg.load(base, model)
    assert receipt.loaded == [n for n in model.state_dict() if not n.startswith("x")]
    assert receipt.model is model
    assert len(receipt.source_hash) == 64
    with torch.no_grad():
        model[4].weight.add_(0.01)
    tuned = rg.save(model, tmp_path / "tuned.safetensors", receipt=receipt,
                    training={"epochs": "3"})  # fmt: skip

    told = rg.trace(tuned)
    assert told.source == "base.pth"
    assert told.source_hash == receipt.source_hash
    assert told.training == {"epochs": "3"}
    assert told.counts() == {"loaded": 8, "tuned": 1}
    assert told.tensors["4.weight"].sources == ("module.4.weight",)

    changes = rg.diff(base, tuned)
    assert changes.counts() == {"identical": 8, "moved": 1}
    moved = changes["4.weight"]
    assert moved.max_abs == pytest.approx(0.01, rel=1e-3)
    assert 0 < moved.rel_l2 < 1
    assert moved.base == "module.4.weight"

    before = rg.pretrained(tuned, base=base)
    original = torch.load(base)["state_dict"]
    for name, array in before.items():
        np.testing.assert_array_equal(array, original[f"module.{name}"].numpy())

    back = receipt.plan.inverse()
    rg.convert(tuned, tmp_path / "back.pth", plan=back)
    state = torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(state) == list(original)
    assert torch.equal(state["module.4.weight"], model[4].weight)


def test_a_changed_file_is_told(base: Path, tmp_path: Path) -> None:
    model = net()
    receipt = rg.load(base, model)
    rg.save(model, tmp_path / "a.pth", receipt=receipt)
    with torch.no_grad():
        model[0].bias.zero_()
    source = rg.open(tmp_path / "a.pth")
    from regraft import checkpoints

    items = [(info, lambda n=name: model.state_dict()[n].numpy()) for name, info in source.items()]
    checkpoints.write(tmp_path / "b.pth", items, source.metadata)
    told = rg.trace(tmp_path / "b.pth")
    assert told.tensors["0.bias"].state == "changed"
    assert told.counts()["changed"] == 1
    with pytest.raises(rg.FormatError, match="no lineage"):
        rg.trace(base)


def test_pretrained_holds_the_base_to_its_hash(base: Path, tmp_path: Path) -> None:
    model = net()
    rg.save(model, tmp_path / "t.pth", receipt=rg.load(base, model))
    state = torch.load(base)
    state["state_dict"]["module.0.bias"] += 1
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(rg.StalePlan, match="another file"):
        rg.pretrained(tmp_path / "t.pth", base=tmp_path / "other.pth")


def test_every_difference_is_an_error_that_says_how_to_allow_it(base: Path) -> None:
    model = net(classes=9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(rg.IncompletePlan) as caught:
        rg.load(base, model)
    told = "\n".join(caught.value.problems)
    for hint in ("fresh=['4.weight']", "fresh=['4.bias']", "unused=['module.4.weight']"):
        assert hint in told
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in before.items())

    receipt = rg.load(base, model, fresh=["4.*"], unused=["module.4.*"])
    assert receipt.fresh == ["4.weight", "4.bias"]
    assert torch.equal(model[4].weight, before["4.weight"])
    assert torch.equal(model[0].weight, torch.load(base)["state_dict"]["module.0.weight"])


def test_templates_that_name_nothing_are_errors(base: Path) -> None:
    with pytest.raises(rg.RuleMatchedNothing):
        rg.load(base, net(), fresh=["hed.*"])
    with pytest.raises(rg.RuleMatchedNothing):
        rg.plan(base, net(), rules=[rg.leave("nothing.like.it")])


def test_nan_is_no_reason_to_be_silent(tmp_path: Path) -> None:
    model = net()
    with torch.no_grad():
        model[1].running_mean[2] = float("nan")
    torch.save(model.state_dict(), tmp_path / "nan.pth")
    with pytest.raises(rg.IncompletePlan, match="not-finite"):
        rg.load(tmp_path / "nan.pth", net())
    receipt = rg.load(tmp_path / "nan.pth", net(), accept=["not-finite"])
    assert [w.code for w in receipt.warnings] == ["not-finite"]


def test_partial_loads_what_is_certain(base: Path) -> None:
    model = net(width=6, classes=9)
    receipt = rg.load(base, model, partial=True)
    assert "0.weight" in receipt.loaded
    assert "4.weight" not in receipt.loaded


def test_probe_failure_puts_the_model_back(base: Path) -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    with pytest.raises(rg.VerificationFailed) as caught:
        rg.load(base, model, probe=rg.Probe(x, np.zeros((2, 4), np.float32)))
    assert caught.value.report.verdict == "different"
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in before.items())


def test_plans_are_values(base: Path, tmp_path: Path) -> None:
    model = net()
    plan = rg.plan(base, model)
    plan.save(tmp_path / "x.plan.json")
    again = rg.Plan.load(tmp_path / "x.plan.json")
    assert again == plan
    receipt = rg.apply(again, base, model)
    assert receipt.hashes
    with pytest.raises(rg.StalePlan):
        rg.apply(again, base, net(classes=9))
    with pytest.raises(rg.PlanError):
        rg.Plan.load(base)
    assert "copy" in plan.why("0.weight")
    with pytest.raises(rg.PlanError):
        plan.why("nothing")


def test_conversion_script_stands_alone(base: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    source = rg.convert(base, tmp_path / "base.npz")
    model = net()
    plan = rg.plan(source, model)
    script = plan.to_python()
    assert "import regraft" not in script
    (tmp_path / "convert.py").write_text(script)
    subprocess.run([sys.executable, "-m", "py_compile", tmp_path / "convert.py"], check=True)
    names: dict[str, Any] = {}
    exec(compile(script, "convert.py", "exec"), names)
    with np.load(source) as arrays:
        made = names["convert"](dict(arrays))
    rg.apply(plan, source, model)
    for name, array in made.items():
        np.testing.assert_array_equal(array, model.state_dict()[name].numpy())


def test_convert_keeps_every_byte(base: Path, tmp_path: Path) -> None:
    for suffix in (".safetensors", ".npz", ".pth"):
        path = rg.convert(base, tmp_path / f"out{suffix}")
        assert rg.diff(base, path).same
    with pytest.raises(rg.FormatError, match="exists"):
        rg.convert(base, tmp_path / "out.npz")
    with pytest.raises(rg.UnknownFormat):
        rg.convert(base, tmp_path / "out.unknown")


def test_meta_models_are_made_real_and_put_back(base: Path) -> None:
    with torch.device("meta"):
        model = net()
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    with pytest.raises(rg.VerificationFailed):
        rg.load(base, model, probe=rg.Probe(x, np.zeros((2, 4), np.float32)))
    assert all(parameter.is_meta for parameter in model.parameters())
    rg.load(base, model)
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_containers(base: Path) -> None:
    found = rg.open(base)
    assert found.container == "state_dict"
    assert "optimizer" in found.containers
    with pytest.raises(rg.FormatError):
        rg.open(base, container="ema")
    assert len(rg.open(base, container="")) == len(found) + 1


def test_live_models_and_catalogues_as_source() -> None:
    source, target = net(), net()
    rg.load(source, target)
    assert equal(source, target)
    bare = rg.Catalogue(rg.plan(source, target).source.tensors and [
        rg.TensorInfo("0.weight", (6, 3, 3, 3), "float32")], framework="torch")  # fmt: skip
    with pytest.raises(rg.RegraftError):
        rg.load(bare, target, partial=True)
    with pytest.raises(rg.TargetError):
        rg.plan(source, object())
