"""What models do besides holding tensors: hooks, constants made of weights, tensors in one memory,
tensors without values, codes in place of values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg
from regraft.errors import TargetError, TransferError, VerificationFailed


def randomised(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return model


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


class Derived(nn.Module):
    """Computes with what a hook of `load_state_dict` makes of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 4))
        self.heard: list[Any] = []
        self.register_load_state_dict_post_hook(Derived.loaded)
        self.cached = self.weight.detach().T

    def loaded(self, keys: Any) -> None:
        self.heard.append(keys)
        self.cached = self.weight.detach().T.contiguous()

    def forward(self, x: Any) -> Any:
        return x @ self.cached


def test_hooks_of_load_state_dict_hear_of_new_values_and_of_old_ones() -> None:
    source, model = randomised(Derived(), 1), randomised(Derived(), 2)
    source.loaded(None)
    rg.load(source, model)
    assert len(model.heard) == 1
    assert not model.heard[0].missing_keys
    assert torch.equal(model.cached, source.weight.T)

    other = randomised(Derived(), 3)
    probe = rg.Probe(inputs=np.ones((2, 4), np.float32), outputs=np.zeros((2, 3), np.float32))
    with pytest.raises(VerificationFailed):
        rg.load(other, model, probe=probe)
    assert torch.equal(model.weight, source.weight)
    assert torch.equal(model.cached, source.weight.T)


def test_a_hook_that_fails_or_changes_values_undoes_the_load() -> None:
    def failing(module: Any, _: Any) -> None:
        raise ValueError("not like this")

    def doubling(module: Any, _: Any) -> None:
        with torch.no_grad():
            module.weight.copy_(module.weight.clamp(max=0.5))

    for hook, said in ((failing, "not like this"), (doubling, "changes what it is given")):
        model = randomised(nn.Linear(4, 3), 2)
        with torch.no_grad():
            model.weight.clamp_(max=0.5)
        before = state(model)
        handle = model.register_load_state_dict_post_hook(hook)
        with pytest.raises(TransferError, match=said):
            rg.load(randomised(nn.Linear(4, 3), 1), model)
        handle.remove()
        assert same(state(model), before)


class Overridden(nn.Linear):
    def _load_from_state_dict(self, *given: Any) -> None:
        super()._load_from_state_dict(*given)
        self.total = float(self.weight.detach().sum())


def test_methods_in_place_of_torchs_are_called() -> None:
    source, model = randomised(nn.Linear(3, 2), 1), randomised(Overridden(3, 2), 2)
    rg.load({"weight": source.weight.detach(), "bias": source.bias.detach()}, model)
    assert model.total == float(source.weight.detach().sum())


@pytest.mark.parametrize("meta", [False, True])
def test_tied_tensors_are_not_given_different_values(tmp_path: Path, meta: bool) -> None:
    def make() -> Any:
        model = nn.ModuleDict({"emb": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})
        model["head"].weight = model["emb"].weight
        return model

    held = state(randomised(make(), 1))
    torch.save(held, tmp_path / "equal.pth")
    torch.save(held | {"head.weight": held["head.weight"] + 1}, tmp_path / "different.pth")
    with torch.device("meta" if meta else "cpu"):
        model = make()
    before = None if meta else state(model)
    with pytest.raises(TransferError, match=r"one memory.*unused") as caught:
        rg.load(tmp_path / "different.pth", model)
    assert "weight" in str(caught.value)
    assert model.emb.weight.is_meta if before is None else same(state(model), before)
    rg.load(tmp_path / "equal.pth", model)
    assert same(state(model), held)
    assert model.emb.weight is model.head.weight
    rg.load(tmp_path / "different.pth", model, unused=["head.weight"])
    assert same(state(model), held)


def test_arrays_that_overlap_are_not_given_different_values() -> None:
    held = np.zeros(8, np.float32)
    model = {"a": held[:6].reshape(2, 3), "b": held[2:8].reshape(3, 2)}
    rng = np.random.default_rng(0)
    source = {name: rng.random(array.shape).astype(np.float32) for name, array in model.items()}
    with pytest.raises(TransferError, match="one memory"):
        rg.load(source, model)
    assert not held.any()


def test_fresh_tensors_have_values_to_keep(tmp_path: Path) -> None:
    def make(classes: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, classes, 1))

    source = randomised(make(9), 1)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    with torch.device("meta"):
        model = make(5)
    with pytest.raises(TargetError, match="without values") as caught:
        rg.load(tmp_path / "w.pth", model, fresh=["2.*"], unused=["2.*"])
    assert caught.value.problems == ("2.weight", "2.bias")
    assert model[0].weight.is_meta
    model[2].to_empty(device="cpu").reset_parameters()
    head = model[2].weight.clone()
    rg.load(tmp_path / "w.pth", model, fresh=["2.*"], unused=["2.*"])
    assert torch.equal(model[2].weight, head)
    assert torch.equal(model[0].weight, source[0].weight)


def test_counts_that_no_file_holds_begin_with_0() -> None:
    source = randomised(nn.BatchNorm2d(4), 1)
    held = {name: t for name, t in state(source).items() if "batches" not in name}
    with torch.device("meta"):
        model = nn.BatchNorm2d(4)
    rg.load(held, model)
    assert model.num_batches_tracked is not None
    assert int(model.num_batches_tracked) == 0


def test_fresh_leaves_of_a_tree_have_values_to_keep() -> None:
    tree = {"a": {"w": jnp.ones((3, 4))}, "b": {"w": jnp.ones((4, 2))}}
    shapes = jax.eval_shape(lambda: tree)
    with pytest.raises(TargetError, match="without values"):
        rg.load(tree, shapes, fresh=["b/*"], unused=["b/*"])
    gone = {"a": {"w": jnp.ones((3, 4))}, "b": {"w": jnp.ones((4, 2))}}
    gone["a"]["w"].delete()
    with pytest.raises(TargetError, match="deleted"):
        rg.load(gone, tree)
    with pytest.raises(TargetError, match="outside of the function"):
        jax.jit(lambda traced: rg.load(tree, traced).model)(tree)


def test_meta_tensors_keep_their_class_layout_and_notes(tmp_path: Path) -> None:
    class Marked(nn.Parameter):
        pass

    source = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(300, 300)), 1)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(300, 300))
    model.to(memory_format=torch.channels_last)
    model[1].weight = Marked(model[1].weight.data, requires_grad=False)
    model[1].weight.axes = "rows"
    strides = model[0].weight.stride()
    with torch.inference_mode():
        rg.load(tmp_path / "w.pth", model)
    assert same(state(model), state(source))
    assert model[0].weight.stride() == strides
    assert type(model[1].weight) is Marked
    assert model[1].weight.axes == "rows"
    assert not model[1].weight.requires_grad
    assert not model[0].weight.is_inference()


def test_tensors_made_in_inference_mode_are_set() -> None:
    source = randomised(nn.Linear(4, 3), 1)
    with torch.inference_mode():
        model = nn.Linear(4, 3).double()
    rg.load(source, model)
    assert torch.equal(model.weight, source.weight.double())
    assert model.weight.is_inference()


def test_a_meta_model_is_proven_by_a_live_source() -> None:
    source = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 1).eval()
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert rg.load(source, model, probe=torch.rand(2, 3, 6, 6)).verified
    assert same(state(model), state(source))
    assert model[0].weight.data_ptr() != source[0].weight.data_ptr()


def test_what_could_not_be_written_need_not_be_put_back() -> None:
    class Refusing(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, *given: Any) -> Any:
            if func is torch.Tensor.copy_:
                raise RuntimeError("no")
            return super().__torch_function__(func, *given)

    model = randomised(nn.Linear(4, 3), 2)
    before = state(model)
    model.bias = nn.Parameter(model.bias.detach().as_subclass(Refusing))
    with pytest.raises(TransferError, match="put back as it was"):
        rg.load(randomised(nn.Linear(4, 3), 1).state_dict(), model)
    assert torch.equal(model.weight, before["weight"])


def test_keras_layers_derive_their_constants_anew() -> None:
    def make(seed: int) -> Any:
        norm = keras.layers.Normalization()
        norm.adapt(np.random.default_rng(seed).normal(seed, seed, (50, 4)).astype(np.float32))
        return keras.Sequential([keras.Input((4,)), norm, keras.layers.Dense(2)])

    source, model = make(1), make(2)
    assert rg.load(source, model, probe=np.ones((2, 4), np.float32)).verified
    held = keras.ops.convert_to_numpy(model.layers[0].mean)
    assert np.array_equal(held, keras.ops.convert_to_numpy(source.layers[0].mean))
    probe = rg.Probe(inputs=np.ones((2, 4), np.float32), outputs=np.zeros((2, 2), np.float32))
    with pytest.raises(VerificationFailed):
        rg.load(make(3), model, probe=probe)
    assert np.array_equal(held, keras.ops.convert_to_numpy(model.layers[0].mean))


def test_keras_codes_are_divided_by_their_scales() -> None:
    def make(seed: int) -> Any:
        layers = [keras.layers.Embedding(11, 8), keras.layers.Dense(8), keras.layers.Dense(3)]
        model = keras.Sequential([keras.Input((5,), dtype="int32"), *layers])
        rng = np.random.default_rng(seed)
        for variable in model.weights:
            wide = rng.normal(size=variable.shape) * np.linspace(0.2, 3, variable.shape[-1])
            variable.assign(wide)
        return model

    source, model, coded = make(1), make(2), make(3)
    wanted = [keras.ops.convert_to_numpy(variable) for variable in source.weights]
    for layer in (*source.layers, *coded.layers):
        layer.quantize("int8")
    rg.load(source, model)
    for variable, plain in zip(model.weights, wanted, strict=True):
        found = keras.ops.convert_to_numpy(variable)
        assert np.abs(found - plain).max() <= np.abs(plain).max() / 200
    receipt = rg.load(source, coded)
    assert len(receipt.loaded) == len(source.weights)
    for one, other in zip(source.weights, coded.weights, strict=True):
        assert np.array_equal(keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other))
