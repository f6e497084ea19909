"""PyTorch: meta models, wrappers, parametrizations, hooks, ties, dtypes, what cannot be loaded."""

from __future__ import annotations

import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg
from regraft import targets
from regraft.errors import TargetError, TransferError
from regraft.targets import _steps


class Net(nn.Module):
    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.rnn = nn.LSTM(4, 4, batch_first=True)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x: Any) -> Any:
        y, _ = self.rnn(self.embed(x))
        return self.head(self.norm(y.transpose(1, 2)).transpose(1, 2))


def randomised(model: nn.Module, seed: int = 1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.8 + 0.2)
    return model.eval()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


X = torch.arange(6).reshape(2, 3)


def test_meta_models_are_made_real_with_ties_and_flags() -> None:
    source = randomised(Net())
    with torch.device("meta"):
        target = Net().eval()
    target.norm.weight.requires_grad_(False)
    receipt = rg.load(source, target)
    assert receipt.model is target
    same(state(target), state(source))
    assert target.head.weight is target.embed.weight
    assert [p.requires_grad for p in target.norm.parameters()] == [False, True]
    torch.testing.assert_close(target(X), source(X))  # the LSTM's own list of weights is new, too


def test_meta_models_take_no_more_than_their_size(tmp_path: Path) -> None:
    """Every tensor is made once: the peak is the model and what one tensor needs on its way."""
    shape, count = (512, 512), 8
    source = nn.ModuleList([nn.Linear(*shape, bias=False) for _ in range(count)])
    for i, layer in enumerate(source):
        nn.init.normal_(layer.weight, mean=i)
    with torch.device("meta"):
        target = nn.ModuleList([nn.Linear(*shape, bias=False) for _ in range(count)])
    tracemalloc.start()  # counts numpy's memory, which all that is in between would be
    rg.load(source, target)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    same(state(target), state(source))
    assert peak < 4 * 512 * 512 * 4


def test_a_meta_model_is_meta_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    from regraft.targets import torch as target_module

    with torch.device("meta"):
        target = Net()
    before = dict(target.named_parameters())
    fail_at(monkeypatch, target_module, "norm.weight")
    with pytest.raises(TransferError, match="injected"):
        rg.load(randomised(Net()), target)
    assert all(tensor.is_meta for tensor in target.state_dict().values())
    assert all(parameter is before[name] for name, parameter in target.named_parameters())


def fail_at(monkeypatch: pytest.MonkeyPatch, target_module: Any, at: str) -> None:
    write, failed = target_module._TorchSink.write, []

    def failing(self: Any, name: str, array: Any) -> None:
        if name == at and not failed:
            failed.append(name)
            raise MemoryError("injected")
        write(self, name, array)

    monkeypatch.setattr(target_module._TorchSink, "write", failing)
    # Copies into the model's own memory do not fail: as on a device.
    monkeypatch.setattr(target_module._TorchSink, "memory", lambda *_: None)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    import torch.distributed as dist

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dist.init_process_group(
            "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
        )
        yield
        dist.destroy_process_group()


def wrapped(kind: str, model: nn.Module) -> nn.Module:
    if kind == "compile":
        return torch.compile(model)  # pyright: ignore[reportReturnType]
    if kind == "compiled inside":
        model.norm = torch.compile(model.norm)  # pyright: ignore[reportAttributeAccessIssue]
    if kind == "data parallel":
        return nn.DataParallel(model)
    if kind == "distributed":
        return nn.parallel.DistributedDataParallel(model)
    if kind == "checkpointed inside":
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

        model.rnn = checkpoint_wrapper(model.rnn)  # pyright: ignore[reportAttributeAccessIssue]
    if kind == "fully sharded":
        from torch.distributed.fsdp import fully_shard

        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        fully_shard(model, mesh=mesh)
    return model


WRAPPERS = ["compile", "compiled inside", "data parallel", "distributed", "checkpointed inside",
            "fully sharded"]  # fmt: skip


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrappers_are_seen_through(kind: str) -> None:
    source, inner = randomised(Net(tied=False)), Net(tied=False)
    target = wrapped(kind, inner)
    names = list(source.state_dict())
    skeleton = targets.find(target).skeleton(target)
    assert list(skeleton) == names
    assert skeleton["norm.weight"].module == "BatchNorm1d"
    receipt = rg.load(source, target)
    assert set(receipt.hashes) >= {n for n in names if "num_batches" not in n}
    read = targets.find(target).sink(target)
    for name, value in source.state_dict().items():
        np.testing.assert_array_equal(read.read(name), value.numpy())
    targets.find(target).trainable(target, ["norm.weight"])
    assert [p.requires_grad for p in inner.parameters()].count(True) == 1


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore")
def test_flat_pieces_of_fsdp_say_how_to_load() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    source, target = randomised(nn.Linear(3, 4)), nn.Sequential(nn.Linear(3, 4))
    sharded = FullyShardedDataParallel(target, device_id=torch.device("cpu"))
    with pytest.raises(TargetError, match="summon_full_params"):
        rg.plan(source, sharded)
    with FullyShardedDataParallel.summon_full_params(sharded, writeback=True):
        rg.load(source, sharded)
    with FullyShardedDataParallel.summon_full_params(sharded):
        torch.testing.assert_close(target[0].weight.data, source.weight.data, rtol=0, atol=0)


def test_dtypes_flags_and_counters_are_kept() -> None:
    source = randomised(Net(tied=False))
    target = Net(tied=False).to(torch.bfloat16)
    target.register_buffer("note", torch.full((3,), 5.0), persistent=False)
    target.norm.bias.requires_grad_(False)
    pointers = {name: p.data_ptr() for name, p in target.named_parameters()}
    receipt = rg.load(source, target, accept=["lossy-cast"])
    assert receipt.plan.grafts["norm.weight"].kind == "convert"
    for name, parameter in target.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert parameter.data_ptr() == pointers[name]
        assert parameter.requires_grad == (name != "norm.bias")
        torch.testing.assert_close(parameter, source.get_parameter(name).to(torch.bfloat16),
                                   rtol=0, atol=0)  # fmt: skip
    assert "note" not in receipt.plan.target.tensors
    assert target.note.tolist() == [5.0] * 3


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "old_weight_norm"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_parametrized_layers_take_plain_weights(kind: str, tmp_path: Path) -> None:
    """What the user sees, `layer.weight`, is then the weight of the source."""
    from torch.nn.utils import parametrizations, weight_norm

    make = {"weight_norm": parametrizations.weight_norm, "old_weight_norm": weight_norm,
            "spectral_norm": parametrizations.spectral_norm}[kind]  # fmt: skip
    source = randomised(nn.Sequential(nn.Conv1d(3, 4, 3), nn.Linear(5, 6)))
    target = nn.Sequential(make(nn.Conv1d(3, 4, 3)), make(nn.Linear(5, 6))).eval()
    own = rg.load(
        randomised_norms(nn.Sequential(make(nn.Conv1d(3, 4, 3)), make(nn.Linear(5, 6)))), target
    )
    assert not own.fresh  # from one of its own kind, tensor by tensor
    if kind == "spectral_norm":  # the effective weight is w / sigma: only u and v are the model's
        plan = rg.plan(source, target)
        assert not any(
            graft.kind == "copy" for name, graft in plan.grafts.items() if "original" in name
        )
        return
    rg.load(source, target)
    target[1](torch.ones(2, 5)), target[0](torch.ones(1, 3, 5))  # the old one computes it in a hook
    for made, wanted in zip(target, source, strict=True):
        torch.testing.assert_close(made.weight, wanted.weight, rtol=1e-6, atol=1e-6)


def randomised_norms(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.0)
    return model


def test_hooks_of_state_dict_are_heard() -> None:
    """A module that renames its tensors for `state_dict` is loaded by the names that it gives."""
    source, target = randomised(nn.Linear(3, 4)), nn.Linear(3, 4)
    given = {
        name.replace("weight", "kernel_of_old"): tensor.numpy()
        for name, tensor in source.state_dict().items()
    }

    def rename(module: Any, held: dict[str, Any], prefix: str, _: Any) -> None:
        held[f"{prefix}kernel_of_old"] = held.pop(f"{prefix}weight")

    target._register_state_dict_hook(rename)
    assert list(targets.find(target).skeleton(target)) == ["bias", "kernel_of_old"]
    rules = [rg.rename(name, name) for name in given]  # a leaf of this name says nothing
    rg.load(given, target, rules=rules)
    torch.testing.assert_close(target.weight, source.weight, rtol=0, atol=0)


def test_quantized_modules_are_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 4)), {nn.Linear})
    with pytest.raises(TargetError, match="quantized") as caught:
        rg.plan({"0.weight": np.ones((4, 3), np.float32)}, model)
    assert "0: torch.ao.nn.quantized.dynamic" in str(caught.value)
    assert "before it is quantized" in str(caught.value)


class Lazy(nn.Module):
    def __init__(self, *, lazy: bool) -> None:
        super().__init__()
        self.conv = nn.LazyConv2d(4, 3) if lazy else nn.Conv2d(3, 4, 3)
        self.norm = nn.LazyBatchNorm2d() if lazy else nn.BatchNorm2d(4)
        self.head = nn.LazyLinear(5) if lazy else nn.Linear(4, 5)

    def forward(self, x: Any) -> Any:
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("as_file", [False, True])
def test_lazy_modules_take_their_shapes_from_the_source(tmp_path: Path, as_file: bool) -> None:
    source, model = randomised(Lazy(lazy=False)).eval(), Lazy(lazy=True).eval()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    given = tmp_path / "w.pth" if as_file else source
    assert rg.plan(given, model).complete
    assert nn.parameter.is_lazy(model.head.weight)
    rg.load(given, model)
    same(state(model), state(source))
    x = torch.rand(2, 3, 6, 6)
    assert torch.equal(model(x), source(x))
    assert type(model.head) is nn.Linear
    assert model.head.in_features == 4
    assert type(model.head.weight) is nn.Parameter


def test_a_lazy_model_is_lazy_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    from regraft.targets import torch as target_module

    model = Lazy(lazy=True)
    with monkeypatch.context() as patched:
        fail_at(patched, target_module, "head.weight")
        with pytest.raises(TransferError, match="put back"):
            rg.load(randomised(Lazy(lazy=False)), model)
    assert all(nn.parameter.is_lazy(parameter) for parameter in model.parameters())
    rg.load(randomised(Lazy(lazy=False)), model)


def test_lazy_modules_say_how() -> None:
    for wrong in ({"w": np.ones((4, 3))}, {"weight": np.ones((5, 3)), "bias": np.ones(5)}):
        with pytest.raises(TargetError, match="run the model once"):
            rg.plan({k: v.astype(np.float32) for k, v in wrong.items()}, nn.LazyLinear(4))
    with pytest.raises(TargetError, match="run the model once"):
        rg.save(nn.LazyLinear(4), "never.safetensors")


def test_a_failure_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from regraft.targets import torch as target_module

    target = randomised(Net(), 3)
    before = state(target)
    fail_at(monkeypatch, target_module, "norm.running_var")
    with pytest.raises(TransferError, match="injected"):
        rg.load(randomised(Net(), 4), target)
    same(state(target), before)


def test_a_model_without_values_is_no_source() -> None:
    with torch.device("meta"):
        source = Net()
    assert rg.plan(source, Net()).complete
    with pytest.raises(rg.RegraftError, match="values"):
        rg.load(source, Net())


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_mappings_of_arrays_are_sources_and_targets(framework: str) -> None:
    source = randomised(Net(tied=False))
    arrays: dict[str, Any] = {
        n: np.zeros(tuple(t.shape), t.numpy().dtype) for n, t in source.state_dict().items()
    }
    if framework == "torch":
        arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}
    before = dict(arrays)
    receipt = rg.load(source, arrays)
    assert receipt.model is arrays
    for name, value in source.state_dict().items():
        assert arrays[name] is before[name]  # in place
        np.testing.assert_array_equal(np.asarray(arrays[name]), value.numpy())
    target = Net(tied=False)
    rg.load(arrays, target)
    same(state(target), state(source))


class Scaler:
    """As scikit-like libraries keep weights: arrays of numpy, handed over as a whole."""

    def __init__(self) -> None:
        self.weight, self.bias, self.calls = (
            np.zeros((4, 3), np.float32),
            np.zeros(4, np.float32),
            0,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight, "bias": self.bias, "version": 3, "name": "scaler"}

    def load_state_dict(self, held: dict[str, Any]) -> None:
        self.calls += 1
        assert held["version"] == 3
        self.weight, self.bias = held["weight"] * self.factor, held["bias"]

    factor = 1.0

    def __call__(self, x: Any) -> Any:
        return x @ self.weight.T + self.bias


def test_objects_with_a_state_dict() -> None:
    source, target = randomised(nn.Linear(3, 4)), Scaler()
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    expected = source(torch.from_numpy(x)).detach().numpy()
    receipt = rg.load(source, target, probe=rg.Probe(x, expected))
    assert receipt.verified
    assert target.calls == 1
    np.testing.assert_array_equal(target.weight, source.weight.detach().numpy())
    back = nn.Linear(3, 4)
    rg.load(target, back)
    same(state(back), state(source))
    with pytest.raises(rg.VerificationFailed):
        rg.load(randomised(nn.Linear(3, 4), 9), target, probe=rg.Probe(x, expected))
    np.testing.assert_array_equal(target.weight, source.weight.detach().numpy())


def test_objects_that_change_what_they_are_given() -> None:
    target = Scaler()
    target.factor = 2.0
    with pytest.raises(rg.RegraftError, match="load_state_dict"):
        rg.load(randomised(nn.Linear(3, 4)), target)
    np.testing.assert_array_equal(target.bias, 0)


def test_a_catalogue_is_planned_for() -> None:
    catalogue = targets.find(Net()).skeleton(Net(tied=False))
    assert rg.plan(randomised(Net(tied=False)), catalogue).complete
    assert rg.plan(catalogue, Net(tied=False)).complete
    with pytest.raises(rg.RegraftError, match="values"):
        rg.load(catalogue, Net(tied=False))


def test_values_set_through_numpy_are_seen(tmp_path: Path) -> None:
    """They do not raise a tensor's version counter: contents are what is compared."""
    source, target = randomised(nn.Linear(3, 4), 1), randomised(nn.Linear(3, 4), 9)
    receipt = rg.load(source, target)
    version = target.weight._version
    target.weight.detach().numpy()[2, 1] += 1
    assert target.weight._version == version
    told = rg.trace(rg.save(target, tmp_path / "t.safetensors", receipt=receipt))
    assert {name: origin.state for name, origin in told.tensors.items()} == {
        "weight": "tuned", "bias": "loaded",
    }  # fmt: skip


def test_why_a_model_is_not_traced_is_said(monkeypatch: Any) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2)

        def forward(self, x: Any) -> Any:
            return self.a(x) if x.sum() > 0 else x

    (note,) = targets.find(Branching()).skeleton(Branching()).notes
    assert "control flow" in note
    assert targets.find(nn.Sequential(nn.Linear(2, 2))).skeleton(nn.Sequential()).notes == ()
    monkeypatch.setattr(_steps, "LIMIT", 1)
    model = nn.Sequential(nn.Linear(2, 2))
    (note,) = targets.find(model).skeleton(model).notes
    assert "3 steps, more than 1" in note
