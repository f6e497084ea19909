"""Whole modules, compiled modules, exported programs and trainers' checkpoints."""

from __future__ import annotations

import zipfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import nn

from formats.makers import torch_tar
from formats.torch_truth import array, assert_same, loaded, named
from regraft import checkpoints
from regraft.errors import CorruptFile, FormatError

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
Layout = pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])


class Block(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.PReLU()
        self.register_buffer("table", torch.randn(2))
        self.register_buffer("scratch", torch.randn(2), persistent=False)
        self.register_parameter("absent", None)
        self.plain = torch.randn(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.conv(x))) + self.table.sum() + self.plain.sum()


class Net(nn.Module):
    """Modules in modules, one used twice, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(Block(), nn.ModuleDict({"x": nn.Linear(4, 4)}))
        self.head = nn.Linear(4, 4)
        self.head.weight = self.model[1]["x"].weight
        self.shared = self.model[0]
        self.extra = nn.ParameterList([torch.randn(2), torch.randn(3)])
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)


def state(module: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    return {name: array(tensor) for name, tensor in named(module.state_dict())}


@Layout
def test_a_module_is_read_as_its_state_dict(new: bool, tmp_path: Path) -> None:
    net = Net()
    whole = {"model": net, "epoch": 3, "optimizer": torch.optim.Adam(net.parameters()).state_dict()}
    for value, container, expected in (
        (net, "", state(net)),
        (nn.DataParallel(net), "", state(nn.DataParallel(net))),
        (whole, "model", state(net)),
    ):
        torch.save(value, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
        with checkpoints.open(tmp_path / "x.pth") as found:
            assert found.container == container
            assert list(found) == list(expected)
            assert_same(found, expected)
            prefix = "module." if next(iter(expected)).startswith("module.") else ""
            assert found[f"{prefix}model.0.conv.weight"].module == "Conv2d"
            assert found[f"{prefix}model.0.table"].module == "Block"
            assert found[f"{prefix}model.0.norm.num_batches_tracked"].kind == "counter"
            ties = {frozenset(group) for group in found.ties}
            assert {f"{prefix}model.1.x.weight", f"{prefix}head.weight"} in ties
            assert {f"{prefix}model.0.table", f"{prefix}shared.table"} in ties


Pair = namedtuple("Pair", "left right")


class Learner:
    """An object that knows a module, itself in a circle, and has slots."""

    __slots__ = ("__dict__", "more")

    def __init__(self, net: nn.Module) -> None:
        self.model, self.more = net, {"w": torch.randn(2)}
        self.me, self.callbacks = self, [self]
        self.pair = Pair(torch.randn(1), torch.randn(2))


@Layout
def test_objects_with_attributes(new: bool, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 3))
    learner = Learner(net)
    torch.save(learner, tmp_path / "x.pkl", _use_new_zipfile_serialization=new)
    with checkpoints.open(tmp_path / "x.pkl") as found:
        assert found.container == "model"
        assert_same(found, state(net))
    with checkpoints.open(tmp_path / "x.pkl", container="") as found:
        assert sorted(found) == ["model.0.bias", "model.0.weight", "more.w", "pair.0", "pair.1"]
        assert found.read("pair.1").tobytes() == array(learner.pair.right).tobytes()


@Layout
def test_quantized_modules(new: bool, tmp_path: Path) -> None:
    net = nn.Sequential(
        torch.ao.quantization.QuantStub(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * 36, 5), torch.ao.quantization.DeQuantStub(),
    ).eval()  # fmt: skip
    torch.backends.quantized.engine = "fbgemm"
    net.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    prepared = torch.ao.quantization.prepare(net)
    prepared(torch.randn(2, 3, 8, 8))
    quantized = torch.ao.quantization.convert(prepared)
    expected = state(quantized)
    torch.save(quantized.state_dict(), tmp_path / "state.pth", _use_new_zipfile_serialization=new)
    with checkpoints.open(tmp_path / "state.pth") as found:
        assert_same(found, expected)
        assert found["1.weight"].dtype == "qint8"
        assert found["4._packed_params._packed_params.0"].dtype == "qint8"
    # In the pickled module scales and zero points of layers are numbers, and no tensors.
    numbers = {name for name in expected if name[1:] in (".scale", ".zero_point")}
    numbers -= {"0.scale", "0.zero_point"}
    torch.save(quantized, tmp_path / "module.pth", _use_new_zipfile_serialization=new)
    with checkpoints.open(tmp_path / "module.pth") as found:
        assert_same(found, {n: v for n, v in expected.items() if n not in numbers})


def test_torchscript(tmp_path: Path) -> None:
    net = Net().model
    two = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), Block(), Block())  # of one class
    block, linear = Block().eval(), nn.Linear(3, 2).eval()
    for name, compiled in (
        ("script", torch.jit.script(nn.Sequential(net[0]))),
        ("two", torch.jit.script(two)),
        ("trace", torch.jit.trace(block, torch.randn(1, 3, 8, 8))),
        ("freeze", torch.jit.freeze(torch.jit.script(linear))),
    ):
        path = tmp_path / f"{name}.pt"
        torch.jit.save(compiled, path)
        assert torch.jit.load(path).state_dict().keys() == compiled.state_dict().keys()
        if name != "freeze":
            with checkpoints.open(path) as found:
                assert found.container == "state_dict"
                assert list(found) == list(compiled.state_dict())
                assert_same(found, state(torch.jit.load(path)))
                owner = found["0.conv.weight" if name == "script" else next(iter(found))].module
                assert owner in ("Conv2d", "Linear", "Block")
    with checkpoints.open(tmp_path / "two.pt", container="attributes") as found:
        expected = {f"{i}.plain": array(two[i].plain) for i in (2, 3)}
        assert_same(found, expected)
    with checkpoints.open(tmp_path / "trace.pt", container="constants") as found:
        assert_same(found, {"c0": array(block.plain)})
    with checkpoints.open(tmp_path / "freeze.pt") as found:  # all weights are constants
        expected = {"constants.c0": linear.weight, "constants.c1": linear.bias}
        assert_same(found, {name: array(tensor) for name, tensor in expected.items()})


def test_torchscript_of_quantized_weights_and_without_code(tmp_path: Path) -> None:
    net = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 2)), {nn.Linear})
    path = tmp_path / "x.pt"
    torch.jit.save(torch.jit.script(net), path)
    with checkpoints.open(path, container="attributes") as found:
        weight, bias = net[0].weight(), net[0].bias()
        names = [f"0._packed_params._packed_params.{index}" for index in (0, 1)]
        assert_same(found, dict(zip(names, map(array, (weight, bias)), strict=True)))
    torch.jit.save(torch.jit.script(Block()), path)
    bare = tmp_path / "bare.pt"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(bare, "w") as copy:
        for name in archive.namelist():
            if "/code/" not in name:
                copy.writestr(name, archive.read(name))
    with checkpoints.open(path) as whole, checkpoints.open(bare) as found:
        assert set(found) == {*whole, "plain"}  # nothing says that this is no buffer


class Task(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"rate": 0.1})
        self.net = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self.norm(self.net(batch[0])).sum()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 0.01)
        return {"optimizer": optimizer,
                "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}  # fmt: skip


def test_lightning_checkpoints(tmp_path: Path) -> None:
    task = Task()
    data = torch.utils.data.TensorDataset(torch.randn(8, 2))
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(task, torch.utils.data.DataLoader(data, batch_size=4))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    with checkpoints.open(tmp_path / "x.ckpt") as found:
        assert found.container == "state_dict"
        assert_same(found, state(task))
        assert found.metadata["hyper_parameters.rate"] == "0.1"
    with checkpoints.open(tmp_path / "x.ckpt", container="") as found:
        assert_same(found, loaded(tmp_path / "x.ckpt"))
        assert any(name.endswith("exp_avg") for name in found)


class Shared(nn.Module):
    """A program whose tensors share storages, with a constant and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.again = self.layer.weight
        self.register_buffer("base", torch.randn(4, 3))
        self.register_buffer("table", self.base[1:, :2])
        self.register_buffer("low", torch.randn(3).bfloat16())
        self.register_buffer("scratch", torch.randn(3), persistent=False)
        self.plain = torch.randn(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x) @ self.again + self.plain + self.scratch + self.low.float()
        return x + self.table.sum() + self.base.sum() + torch.tensor([1.0, 2.0, 3.0])


def test_exported_programs(tmp_path: Path) -> None:
    program = torch.export.export(Shared(), (torch.randn(2, 3),))
    path = tmp_path / "x.pt2"
    torch.export.save(program, path)
    again = torch.export.load(path)
    with checkpoints.open(path) as found:
        assert found.format == "torch_export"
        assert found.container == "state_dict"
        assert_same(found, {name: array(t) for name, t in again.state_dict.items()})
        assert {"layer.weight", "again"} in [set(group) for group in found.ties]
    with checkpoints.open(path, container="constants") as found:
        assert_same(found, {name: array(t) for name, t in again.constants.items()})


def test_exported_programs_of_before(tmp_path: Path) -> None:
    """Files of torch.save inside a zip: one for the state dict, one for constants."""
    tensors = {"w": torch.randn(2, 3), "b": torch.randn(3)}
    path, inner = tmp_path / "x.pt2", tmp_path / "inner.pt"
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("version", "5.1")
            archive.writestr("serialized_exported_program.json", "{}")
            for name, part in (("state_dict", tensors), ("constants", {"c": tensors["b"]})):
                torch.save(part, inner)
                archive.write(inner, f"serialized_{name}.pt")
        if compression == zipfile.ZIP_DEFLATED:
            with pytest.raises(CorruptFile, match="compressed"):
                checkpoints.open(path)
        else:
            with checkpoints.open(path) as found:
                assert_same(found, {name: array(t) for name, t in tensors.items()})


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"as_int": 4}, {"as_int": 3}', b'"as_int": 9}, {"as_int": 3}'),
     (b'"strides": [{"as_int": 3}', b'"strides": [{"as_int": -3}'),
     (b'weight_0', b'weight_9'), (b'"storage_offset": {"as_int": 3}', b'"storage_offset": {"as_int": 8}'),
     (b'"sizes": [', b'"sizes": [['), (b'{"config"', b'{"other"')],
)  # fmt: skip
def test_exported_programs_that_lie(old: bytes, new: bytes, tmp_path: Path) -> None:
    path, edited = tmp_path / "x.pt2", tmp_path / "y.pt2"
    torch.export.save(torch.export.export(Shared(), (torch.randn(2, 3),)), path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(edited, "w") as copy:
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith("weights_config.json"):
                assert old in data
                data = data.replace(old, new)
            copy.writestr(name, data)
    with pytest.raises(FormatError):
        checkpoints.open(edited)


def test_packages_of_several_pickles(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    net, plain = nn.Linear(2, 3), {"w": torch.randn(2)}
    with torch.package.PackageExporter(path) as package:
        package.extern("**")
        package.save_pickle("model", "net.pkl", net)
        package.save_pickle("more", "plain.pkl", plain)
    with checkpoints.open(path) as found:
        assert_same(
            found,
            {
                **{f"model/net.{n}": v for n, v in state(net).items()},
                "more/plain.w": array(plain["w"]),
            },
        )


def test_tar_files_share_storages(tmp_path: Path) -> None:
    base = torch.randn(4, 5)
    values = {"base": base, "rows": base[1:], "column": base[:, 2], "other": [torch.arange(3)],
              "epoch": 2}  # fmt: skip
    torch_tar.write(tmp_path / "x.pt", values)
    with checkpoints.open(tmp_path / "x.pt") as found:
        assert found.format == "torch_tar"
        assert_same(found, loaded(tmp_path / "x.pt"))
        assert_same(found, {name: array(tensor) for name, tensor in named(values)})
