"""JAX: trees of every sort, NNX modules in place, sharded arrays."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from flax.training.train_state import TrainState

import regraft as rg
from regraft import targets
from regraft.errors import TargetError, TransferError, VerificationFailed


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.bn = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.dropout(nnx.relu(self.bn(self.conv(x))))


class Net(nnx.Module):
    """Attributes are not in the order of the alphabet."""

    def __init__(self, seed: int = 0, *, tied: bool = False) -> None:
        rngs = nnx.Rngs(seed)
        self.stem = Block(rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(4, 2, rngs=rngs)
        if tied:
            self.layers[1].kernel = self.layers[0].kernel

    def __call__(self, x: Any) -> Any:
        x = self.stem(x).mean((1, 2))
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x)


class TorchNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4)
        )
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in range(2)])
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        x = self.stem(x).relu().mean((2, 3))
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


def randomised(model: Any, seed: int = 1) -> Any:
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.from_numpy(generator.uniform(0.2, 1.0, tuple(tensor.shape))))
    return model.eval()


def values_of(model: Any) -> dict[str, np.ndarray]:
    target = targets.find(model)
    sink = target.sink(model)
    return {name: sink.read(name) for name in target.skeleton(model)}


def test_nnx_modules_are_described_as_they_are_made() -> None:
    skeleton = targets.find(Net()).skeleton(Net())
    assert list(skeleton) == [
        "stem/conv/kernel", "stem/conv/bias", "stem/bn/mean", "stem/bn/var", "stem/bn/scale",
        "stem/bn/bias", "layers/0/kernel", "layers/0/bias", "layers/1/kernel", "layers/1/bias",
        "head/kernel", "head/bias",
    ]  # fmt: skip
    assert skeleton.order == "definition"
    assert skeleton["stem/bn/mean"].module == "BatchNorm"
    assert skeleton["layers/1/kernel"].module == "Linear"
    assert skeleton.settings["stem/bn"]["epsilon"] == 1e-5
    tied = targets.find(Net()).skeleton(Net(tied=True))
    assert tied.ties == (("layers/0/kernel", "layers/1/kernel"),)


def test_nnx_in_place_from_torch_with_proof() -> None:
    source, target = randomised(TorchNet()), Net()
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    expected = source(torch.from_numpy(x)).detach().numpy()
    kernel = target.head.kernel
    seeds = [v.get_raw_value() for v in jax.tree_util.tree_leaves(nnx.state(target, nnx.RngCount))
             if hasattr(v, "get_raw_value")]  # fmt: skip
    probe = rg.Probe(x.transpose(0, 2, 3, 1), expected)
    receipt = rg.load(source, target, probe=probe)
    assert receipt.verified
    assert receipt.model is target
    assert target.head.kernel is kernel  # the same variable, so that an optimizer keeps it
    np.testing.assert_allclose(np.array(kernel.get_value()), source.head.weight.detach().T)
    assert target.stem.dropout.deterministic is False
    assert target.stem.bn.use_running_average is False
    assert seeds == [v.get_raw_value() for v in jax.tree_util.tree_leaves(nnx.state(target, nnx.RngCount))
                     if hasattr(v, "get_raw_value")]  # fmt: skip
    before = values_of(target)
    with pytest.raises(VerificationFailed):
        rg.load(randomised(TorchNet(), 2), target, probe=probe)
    for name, array in values_of(target).items():
        np.testing.assert_array_equal(array, before[name])


def test_nnx_modules_without_values_are_filled() -> None:
    target = nnx.eval_shape(Net)
    assert not rg.plan(target, Net()).undecided  # shapes are enough to plan
    rg.load(randomised(TorchNet()), target)
    outputs = targets.find(target).run(target, np.ones((1, 8, 8, 3), np.float32))
    assert np.isfinite(outputs["output"]).all()


@flax.struct.dataclass
class Dense:
    kernel: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Model:
    stem: Any
    blocks: list[Any]
    activation: Any = dataclasses.field(metadata={"static": True}, default=None)


def dense(generator: np.random.Generator, make: Any = dict) -> Any:
    arrays = {"kernel": jnp.array(generator.uniform(1, 2, (3, 4)), jnp.float32),
              "bias": jnp.array(generator.uniform(1, 2, 4), jnp.float32)}  # fmt: skip
    return make(**arrays)


def trees() -> dict[str, Any]:
    g = np.random.default_rng(0)
    net = nn.Sequential([nn.Conv(4, (3, 3)), nn.BatchNorm(use_running_average=True), nn.Dense(2)])
    variables = net.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    params = {"dense": dense(g)}
    import optax

    state = TrainState.create(apply_fn=print, params=params, tx=optax.adam(1e-3))
    return {
        "linen": variables,
        "frozen": flax.core.freeze(variables),
        "haiku": {"mlp/~/linear_1": {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}, "a": {"w": jnp.ones(2)}},
        "lists": [dense(g), (dense(g), dense(g, Dense))],
        "dataclass": Model(dense(g), [dense(g, Dense), dense(g, Dense)], activation=print),
        "train state": state,
        "partitioned": {"w": nn.Partitioned(jnp.ones((2, 2)), ("x", None))},
        "nnx state": nnx.state(Net(), nnx.Not(nnx.RngState)),
        "mixed": {"a": jnp.ones(3), "b": np.ones(3), "f": print, "key": jax.random.key(0), "none": None},
        "shapes": jax.eval_shape(lambda: {"params": {"dense": dense(np.random.default_rng(0))}}),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(trees()))
def test_every_sort_of_tree(name: str) -> None:
    tree = trees()[name]
    target = targets.find(tree)
    assert target.__name__.endswith(".jax")
    skeleton = target.skeleton(tree)
    assert len(skeleton)
    assert not any("opt_state" in n or "key" in n.split("/") for n in skeleton)
    g = np.random.default_rng(5)
    source = {n: g.uniform(1, 2, i.shape).astype(i.dtype) for n, i in skeleton.items()}
    sink = target.sink(tree)
    for tensor, array in source.items():
        sink.write(tensor, array)
        np.testing.assert_array_equal(sink.read(tensor), array)
    new = sink.model
    assert jax.tree_util.tree_structure(new) == jax.tree_util.tree_structure(tree)
    assert type(new) is type(tree)
    for tensor, array in values_of(new).items():
        np.testing.assert_array_equal(array, source[tensor])
    if name != "shapes":  # what was no weight, and the tree itself, are as they were
        assert any(not np.array_equal(values_of(tree)[n], a) for n, a in source.items())


def test_names_and_order_of_trees() -> None:
    made = trees()
    names = {key: list(targets.find(made[key]).skeleton(made[key])) for key in made}
    assert names["haiku"] == ["mlp/~/linear_1/w", "mlp/~/linear_1/b", "a/w"]
    assert names["dataclass"] == [f"{part}/{leaf}" for part in ("stem", "blocks/0", "blocks/1")
                                  for leaf in ("kernel", "bias")]  # fmt: skip
    assert names["train state"] == ["params/dense/kernel", "params/dense/bias"]
    assert names["partitioned"] == ["w"]
    assert names["mixed"] == ["a", "b"]
    assert "head/kernel" in names["nnx state"]
    mixed = targets.find(made["mixed"]).sink(made["mixed"])
    mixed.write("b", np.full(3, 7.0))
    new: Any = mixed.model
    assert isinstance(new["b"], np.ndarray)
    assert new["b"].dtype == np.float64
    assert new["f"] is print


def test_linen_from_torch_gives_a_new_tree() -> None:
    source = randomised(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)))
    net = nn.Sequential(
        [nn.Conv(4, (3, 3), padding="VALID"), nn.BatchNorm(use_running_average=True)]
    )
    variables = flax.core.freeze(net.init(jax.random.key(0), jnp.ones((1, 8, 8, 3))))
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    expected = source(torch.from_numpy(x)).detach().numpy().transpose(0, 2, 3, 1)
    probe = rg.Probe(run=lambda tree: net.apply(tree, x.transpose(0, 2, 3, 1)), outputs=expected)
    receipt = rg.load(source, variables, probe=probe)
    assert receipt.verified
    assert isinstance(receipt.model, flax.core.FrozenDict)
    assert not np.array_equal(values_of(variables)["params/layers_0/kernel"],
                              values_of(receipt.model)["params/layers_0/kernel"])  # fmt: skip


def test_equinox_lays_out_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equinox itself is not installed everywhere: what matters is a class registered as it does."""

    class Module:
        pass

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Linear(Module):
        weight: Any
        bias: Any

        def __call__(self, x: Any) -> Any:
            return self.weight @ x + self.bias

    inference = SimpleNamespace(inference_mode=lambda model: model)
    monkeypatch.setitem(sys.modules, "equinox", SimpleNamespace(Module=Module, nn=inference))
    source = randomised(torch.nn.Linear(4, 4))  # square: only the layout tells
    target = Linear(jnp.zeros((4, 4)), jnp.zeros(4))
    x = np.arange(4, dtype=np.float32)
    expected = source(torch.from_numpy(x)).detach().numpy()
    receipt = rg.load(source, target, probe=rg.Probe(x, expected))
    assert receipt.verified
    np.testing.assert_array_equal(np.array(receipt.model.weight), source.weight.detach().numpy())


SHARDED = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from flax import nnx
import regraft as rg
mesh = jax.make_mesh((4,), ("x",))
rows, whole = NamedSharding(mesh, P("x", None)), NamedSharding(mesh, P())
values = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
tree = {"w": jax.device_put(jnp.zeros((8, 4)), rows), "b": jax.device_put(jnp.zeros(4), whole),
        "s": jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=rows)}
source = {"w": values, "b": values[0], "s": values[:, :2].copy()}
new = rg.load(source, tree).model
model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
model.kernel.set_raw_value(jax.device_put(jnp.zeros((8, 4)), rows))
rg.load({"kernel": values, "bias": values[0]}, model)
print(json.dumps({
    "kept": [str(new[k].sharding == s) for k, s in (("w", rows), ("b", whole), ("s", rows))]
    + [str(model.kernel.get_raw_value().sharding == rows)],
    "shards": [list(s.data.shape) for s in new["w"].addressable_shards],
    "right": bool((np.array(new["w"]) == values).all() and (np.array(new["s"]) == values[:, :2]).all()
                  and all((np.array(s.data) == values[s.index]).all() for s in new["w"].addressable_shards)),
}))
"""


def test_sharded_arrays_keep_their_sharding() -> None:
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
                   "JAX_PLATFORMS": "cpu"}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True,
                          env=environment, timeout=240)  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == {"kept": ["True"] * 4, "shards": [[2, 4]] * 4, "right": True}


def test_what_cannot_be_loaded_says_how(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"module\.init"):
        rg.plan({"w": np.ones(3)}, nn.Dense(3))
    shapes = {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}
    with pytest.raises(rg.RegraftError, match="values"):
        rg.load(shapes, {"w": jnp.ones(3)})


def test_a_failure_leaves_an_nnx_module_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from regraft.targets import _nnx

    target, write = Net(), _nnx.ModuleSink.write
    before = values_of(target)

    def failing(self: Any, name: str, array: Any) -> None:
        if name == "head/kernel":
            raise MemoryError("injected")
        write(self, name, array)

    monkeypatch.setattr(_nnx.ModuleSink, "write", failing)
    with pytest.raises(TransferError, match="injected"):
        rg.load(randomised(TorchNet()), target)
    for name, array in values_of(target).items():
        np.testing.assert_array_equal(array, before[name])
