"""Policies in a plain PyTorch loop: frozen tensors are the same bits, averages and pulls exact."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import regraft as rg
from regraft.tuning.policies import Policy
from regraft.tuning.references import Reference
from regraft.tuning.torch import Tuning
from regraft.tuning.torch_statistics import measure

sys.path.insert(0, str(Path(__file__).parent))
from networks import TRUNK, changed, samples, torch_net, values

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd with momentum": lambda groups: torch.optim.SGD(groups, momentum=0.9),
    "adamw": torch.optim.AdamW,
}


def loop(
    net: nn.Module,
    tuning: Tuning,
    optimizer: torch.optim.Optimizer,
    epochs: int = 2,
    each: Callable[[int], None] = lambda _: None,
) -> None:
    """What people write, `model.train()` in every step as transformers' Trainer has it."""
    x, y = (torch.as_tensor(part) for part in samples())
    for epoch in range(epochs):
        tuning.epoch(epoch)
        for batch in range(0, len(x), 10):
            net.train()
            optimizer.zero_grad()
            functional.cross_entropy(net(x[batch : batch + 10]), y[batch : batch + 10]).backward()
            optimizer.step()
        each(epoch)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_frozen_tensors_are_the_same_bits(kind: str) -> None:
    net = torch_net()
    before = values(net)
    tuning = Tuning(net, Policy(freeze=("0.*", "1.weight", "1.bias"), ema=0.9))
    optimizer = OPTIMIZERS[kind](tuning.groups(0.05, weight_decay=0.1))
    tuning.begin(optimizer)
    loop(net, tuning, optimizer)
    receipt = tuning.finish().check()
    assert set(receipt.frozen) == set(TRUNK)
    assert changed(before, values(net)) == {"3.weight", "3.bias"} == set(receipt.learned)
    assert receipt.held
    assert "7 of 7" in str(receipt)
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_thaws_later_is_untouched_until_then(kind: str) -> None:
    net = torch_net()
    before = values(net)
    tuning = Tuning(net, Policy(probe_epochs=2, head=("3.*",), layer_decay=0.5))
    optimizer = OPTIMIZERS[kind](tuning.groups(0.05, weight_decay=0.1))
    tuning.begin(optimizer)
    moved: list[set[str]] = []
    loop(net, tuning, optimizer, 3, lambda _: moved.append(changed(before, values(net))))
    assert moved[0] == moved[1] == {"3.weight", "3.bias"}
    assert moved[2] >= set(before) - {"0.bias"}  # whose gradient the norm takes away
    assert tuning.finish().held


def test_a_frozen_tensor_that_moves_is_told() -> None:
    net = torch_net()
    tuning = Tuning(net, Policy(freeze=("0.*",)))
    tuning.begin()
    with torch.no_grad():
        net[0].bias[1] += 1e-6
    receipt = tuning.finish()
    assert receipt.moved == ["0.bias"]
    with pytest.raises(rg.VerificationFailed, match=r"0\.bias"):
        receipt.check()


def test_frozen_statistics_everywhere() -> None:
    net = torch_net()
    before = values(net)
    tuning = Tuning(net, Policy(batchnorm="freeze"))
    optimizer = torch.optim.AdamW(tuning.groups(0.01))
    tuning.begin(optimizer)
    loop(net, tuning, optimizer)
    assert set(before) - changed(before, values(net)) == set(TRUNK[4:])
    assert tuning.finish().check().held


def test_an_end_that_lacks_something() -> None:
    tuning = Tuning(torch_net(), Policy(batchnorm="recalibrate"))
    with pytest.raises(rg.TargetError, match="begin"):
        tuning.finish()
    tuning.begin()
    with pytest.raises(rg.TargetError, match="no data"):
        tuning.finish()
    assert "1.running_mean" in tuning.finish([torch.randn(4, 3)]).learned


def test_groups_keep_their_rates() -> None:
    tuning = Tuning(torch_net(), Policy(layer_decay=0.1, head=("3.*",), head_lr=4))
    found = {name: g for g in tuning.groups(1.0, 0.3) for name in g["names"]}
    assert {n: (g["lr"], g["weight_decay"]) for n, g in found.items()} == {
        "0.weight": (0.1, 0.3), "0.bias": (0.1, 0.0), "1.weight": (0.1, 0.0), "1.bias": (0.1, 0.0),
        "3.weight": (4.0, 0.3), "3.bias": (4.0, 0.0),
    }  # fmt: skip


def test_tied_tensors_are_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

    for frozen in ("0.embed.weight", "0.head.weight"):
        tuning = Tuning(nn.Sequential(Tied(), nn.Linear(5, 5)), Policy(freeze=(frozen,)))
        assert tuning.course.frozen == ["0.embed.weight", "0.head.weight"]
        assert [n for g in tuning.groups(1.0) for n in g["names"]] == ["1.weight", "1.bias"]


def test_moving_average() -> None:
    net = torch_net()
    tuning = Tuning(net, Policy(ema=0.5))
    optimizer = torch.optim.SGD(tuning.groups(0.1))
    tuning.begin(optimizer)
    mean = net[3].weight.detach().clone()
    for step in range(1, 4):
        net.zero_grad()
        net(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        mean.lerp_(net[3].weight.detach(), 1 - min(0.5, step / (step + 9)))
    raw = net[3].weight.detach().clone()
    with tuning.averaged():
        torch.testing.assert_close(net[3].weight.detach(), mean)
    assert torch.equal(net[3].weight, raw)
    tuning.finish()
    torch.testing.assert_close(net[3].weight.detach(), mean)


def _loaded(folder: Path) -> tuple[nn.Sequential, rg.Receipt, rg.Checkpoint]:
    torch.save(torch_net(1)[:3].state_dict(), folder / "trunk.pth")
    net = torch_net(2)
    receipt = rg.load(folder / "trunk.pth", net, fresh=["3.*"])
    return net, receipt, rg.open(folder / "trunk.pth")


def test_l2_sp_by_step_and_by_term_agree(tmp_path: Path) -> None:
    """The gradient that is added before a step is the penalty's own."""
    x = torch.randn(6, 3)
    found: list[dict[str, np.ndarray]] = []  # pyright: ignore[reportMissingTypeArgument]
    for hooked in (True, False):
        net, receipt, source = _loaded(tmp_path)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.3)
        policy = Policy(l2_sp=0.7, l2_sp_fresh=0.2)
        tuning = Tuning(net, policy, receipt=receipt, reference=Reference(receipt, source.read))
        optimizer = torch.optim.SGD(tuning.groups(0.1))
        tuning.begin(*([optimizer] if hooked else []))
        (net.eval()(x).square().mean() + (0 if hooked else tuning.penalty())).backward()
        optimizer.step()
        found.append(values(net))
    assert changed(found[0], values(torch_net(2)))
    for name in found[0]:
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-6, atol=1e-7)


def test_l2_sp_holds_weights_near_the_pretrained_ones(tmp_path: Path) -> None:
    apart: list[float] = []
    for strength in (0.0, 10.0):
        net, receipt, source = _loaded(tmp_path)
        start = net[0].weight.detach().clone()
        reference = Reference(receipt, source.read) if strength else None
        tuning = Tuning(net, Policy(l2_sp=strength), receipt=receipt, reference=reference)
        optimizer = torch.optim.SGD(tuning.groups(0.05))
        tuning.begin(optimizer)
        loop(net, tuning, optimizer, 3)
        apart.append(float((net[0].weight.detach() - start).norm()))
    assert apart[1] < 0.5 * apart[0]


def test_only_what_is_fresh_is_pulled_to_0(tmp_path: Path) -> None:
    """Pretrained values are not, though no reference says what they were."""
    net, receipt, _ = _loaded(tmp_path)
    before = values(net)
    tuning = Tuning(net, Policy(l2_sp_fresh=0.2), receipt=receipt)
    optimizer = torch.optim.SGD(tuning.groups(0.5))
    tuning.begin(optimizer)
    (0 * net.eval()(torch.randn(6, 3)).sum()).backward()
    optimizer.step()
    assert changed(before, values(net)) == {"3.weight", "3.bias"}
    np.testing.assert_allclose(values(net)["3.weight"], 0.9 * before["3.weight"], rtol=1e-6)
    with pytest.raises(rg.TargetError, match="fresh"):
        Tuning(net, Policy(l2_sp_fresh=0.2))


def test_the_reference_is_the_file(tmp_path: Path) -> None:
    _, receipt, source = _loaded(tmp_path)
    reference = Reference(receipt, source.read)
    assert np.shares_memory(reference["0.weight"], reference["0.weight"])  # mapped, not copied
    assert "3.weight" not in reference
    torch.save(torch_net(5)[:3].state_dict(), tmp_path / "other.pth")
    with pytest.raises(rg.StalePlan):
        Reference(receipt, rg.open(tmp_path / "other.pth").read)
    with pytest.raises(rg.TargetError, match="Reference"):
        Tuning(torch_net(), Policy(l2_sp=0.1))


def test_an_optimizer_that_does_not_keep_the_rates_is_told() -> None:
    net = torch_net()
    tuning = Tuning(net, Policy(layer_decay=0.5, head=("3.*",)))
    with pytest.raises(rg.TargetError, match="groups") as told:
        tuning.begin(torch.optim.AdamW(net.parameters()))
    assert "3.weight: the policy's share is 1" in told.value.problems
    optimizer = torch.optim.SGD(tuning.groups(0.1))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    tuning.begin(optimizer)
    plain = Tuning(net, Policy(freeze=("0.*",)))
    plain.begin(torch.optim.AdamW(net.parameters()))  # says nothing of rates: all are the same


def test_an_average_that_saw_no_step_is_told() -> None:
    net = torch_net()
    tuning = Tuning(net, Policy(ema=0.9))
    optimizer = torch.optim.SGD(tuning.groups(0.1))
    tuning.begin()
    loop(net, tuning, optimizer)
    learned = values(net)
    with pytest.raises(rg.TargetError, match="no step"):
        tuning.finish()
    assert not changed(learned, values(net))


def test_an_average_of_short_floats_moves_by_small_steps() -> None:
    net = nn.Linear(4, 4).bfloat16()
    tuning = Tuning(net, Policy(ema=0.9999))
    optimizer = torch.optim.SGD(tuning.groups(0.0))
    tuning.begin(optimizer)
    net(torch.ones(2, 4, dtype=torch.bfloat16)).sum().backward()
    for _ in range(200):
        optimizer.step()
    start = net.weight.detach().clone()
    net.weight.data += 0.5
    for _ in range(200):
        optimizer.step()
    weights = [0.0]
    for step in range(201, 401):
        share = min(0.9999, step / (step + 9))
        weights.append(weights[-1] * share + 1 - share)
    with tuning.averaged():
        moved = (net.weight - start).float()
    torch.testing.assert_close(moved, torch.full_like(moved, weights[-1] / 2), atol=0.01, rtol=0)
    with tuning.averaged():  # looking at it does not round it
        torch.testing.assert_close((net.weight - start).float(), moved, atol=0, rtol=0)


def test_statistics_are_adapted_before_training() -> None:
    net = torch_net()
    tuning = Tuning(net, Policy(batchnorm="adapt"))
    optimizer = torch.optim.SGD(tuning.groups(0.1))
    with pytest.raises(rg.TargetError, match="adapt"):
        tuning.begin(optimizer)
    x = torch.as_tensor(samples()[0])
    tuning.adapt([x[:20], x[20:]])
    seen = net[0](x).detach()
    torch.testing.assert_close(net[1].running_mean, seen.mean(0))
    variances = torch.stack([seen[:20].var(0), seen[20:].var(0)]).mean(0)
    torch.testing.assert_close(net[1].running_var, variances)
    tuning.begin(optimizer)
    loop(net, tuning, optimizer)
    assert "1.running_mean" in tuning.finish().check().frozen


class _WithAuxiliary(nn.Module):
    """A head that runs in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.aux = torch_net(0), torch_net(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.main(x) + self.aux(x) if self.training else self.main(x)


def test_statistics_are_measured_or_stay() -> None:
    net = _WithAuxiliary()
    before = values(net)
    with pytest.raises(rg.TargetError, match="no batch"):
        measure(net, [])
    with pytest.raises(RuntimeError):
        measure(net, [torch.ones(4, 3), torch.ones(4, 2)])
    assert not changed(before, values(net))
    assert measure(net, [torch.as_tensor(samples()[0])]) == 2
    moved = {n for n in changed(before, values(net)) if "batches" not in n}
    assert moved == {"main.1.running_mean", "main.1.running_var"}
