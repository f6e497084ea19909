"""Dataflow by torch.export on a probe's inputs, where torch.fx cannot trace a model's Python."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import regraft as rg
from regraft import targets
from regraft.targets import _export, _fx, _steps

_TARGET = targets.load("torch")


def tokens() -> dict[str, Any]:
    return {"input_ids": np.random.default_rng(1).integers(1, 49, (2, 7))}


def pixels() -> dict[str, Any]:
    return {"pixel_values": np.random.default_rng(1).normal(size=(2, 3, 16, 16)).astype(np.float32)}


def _transformer(kind: str) -> Callable[[], Any]:
    def make() -> Any:
        import transformers as tf

        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        if kind == "GPT2":
            sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4}
            ends = {"bos_token_id": 1, "eos_token_id": 2}
            return tf.GPT2Model(tf.GPT2Config(vocab_size=50, **sizes, **ends))
        if kind == "ViT":
            sizes = {"image_size": 16, "patch_size": 8, "intermediate_size": 48}
            return tf.ViTModel(tf.ViTConfig(**small, **sizes))
        config = getattr(tf, f"{kind}Config")(vocab_size=50, **small, intermediate_size=48)
        return getattr(tf, f"{kind}Model")(config)

    return make


# Those that torch.fx finds no layer of, and inputs that they take.
UNTRACED = {
    "BERT": (_transformer("Bert"), tokens),
    "GPT-2": (_transformer("GPT2"), tokens),
    "Llama": (_transformer("Llama"), tokens),
    "ViT": (_transformer("ViT"), pixels),
}


def filled(model: Any, seed: int) -> Any:
    """The model with random, distinct values everywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            around = 1.0 if tensor.ndim == 1 else 0.0
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.4 - 0.2 + around)
    return model


def renamed(model: Any, chance: random.Random) -> Any:
    """The same model, its modules under names that say nothing and defined in another order; its
    code finds them all the same."""
    for inner in model.children():
        renamed(inner, chance)
    held = model._modules
    if isinstance(model, nn.ModuleList) or not held:
        return model
    new = {name: "".join(chance.choices("bcdfghjklmnpqrstvwxz", k=6)) for name in held}
    moved = [(new[name], inner) for name, inner in held.items()]
    chance.shuffle(moved)
    held.clear()
    held.update(moved)
    known = {name: property(lambda self, n=n: self._modules[n]) for name, n in new.items()}
    model.__class__ = type(type(model).__name__, (type(model),), {"__module__": __name__, **known})
    return model


class First(nn.Module):
    """Gives the first of a model's outputs, as both models of a pair do."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)[0]


@pytest.mark.parametrize("kind", UNTRACED)
def test_layers_are_found_and_the_model_is_as_it_was(kind: str) -> None:
    make, inputs = UNTRACED[kind]
    model = filled(make(), 1).train()
    heard: list[Any] = []
    next(model.children()).register_forward_hook(lambda *given: heard.append(given))
    model.seen = heard
    modes = [module.training for module in model.modules()]
    attributes = [{**vars(module)} for module in model.modules()]
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not _TARGET.skeleton(model).flow
    skeleton = targets.load("torch").followed(model, inputs())  # pyright: ignore
    found = {node.owner for node in skeleton.flow}
    layers = {path for path, module in model.named_modules() if _steps.is_layer(module)}
    unused = {"pooler"} if kind == "BERT" else set[str]()
    assert {
        path for path in layers if any(True for _ in model.get_submodule(path).parameters())
    } <= (found | unused)
    (note,) = skeleton.notes
    assert "torch.export" in note
    assert not heard
    assert modes == [module.training for module in model.modules()]
    for module, before in zip(model.modules(), attributes, strict=True):
        assert vars(module).keys() == before.keys()
        assert all(vars(module)[name] is value for name, value in before.items())
    assert all(torch.equal(values[name], held) for name, held in model.state_dict().items())
    assert all(type(buffer) is torch.Tensor for buffer in model.buffers())
    # residuals: the norms read what the blocks before them give, and not one another
    starts = {n.owner for n in skeleton.flow if n.owner and not n.inputs}
    assert not any("norm" in owner.lower() or "ln_" in owner for owner in starts)


@pytest.mark.parametrize("kind", UNTRACED)
def test_renamed_models_are_decided_by_dataflow(kind: str) -> None:
    """Names that say nothing, in an order that is not that of use: without a graph much is open,
    and what is told by place alone may be wrong."""
    make, inputs = UNTRACED[kind]
    inner = filled(make(), 1)
    values = {name: tensor.numpy().copy() for name, tensor in inner.state_dict().items()}
    source, target = First(renamed(copy.deepcopy(inner), random.Random(2))), First(make())
    plan = rg.plan(source, target, probe=inputs())
    assert plan.complete
    told = {e.kind for graft in plan.grafts.values() for e in graft.evidence}
    assert "dataflow" in told
    held = targets.find(source).sink(source)
    for graft in plan.grafts.values():
        if graft.sources:
            given = held.read(graft.sources[0])
            np.testing.assert_array_equal(given, values[graft.target.removeprefix("model.")])
    assert sum("followed by torch.export" in remark.text for remark in plan.notes) == 2
    assert rg.load(source, target, probe=inputs()).verified

    fewer = rg.plan(source, target)
    wrong = [
        graft.target
        for graft in fewer.grafts.values()
        if graft.sources and graft.sources != plan.grafts[graft.target].sources
    ]
    assert fewer.undecided or wrong


class Mixed(nn.Module):
    """What fx can trace: layers used twice, functions, a parameter by itself, an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.norm, self.act, self.pool = nn.BatchNorm2d(4), nn.SiLU(), nn.MaxPool2d(1)
        self.scale = nn.ParameterDict({"by": nn.Parameter(torch.ones(1, 4, 1, 1))})
        self.attention, self.dense = nn.MultiheadAttention(4, 2), nn.Linear(144, 4)
        self.table = nn.Embedding(7, 4)

    def forward(self, x: Any) -> Any:
        y = self.act(self.norm(self.convolution(x))) + self.other(x) * self.scale["by"]
        y = self.dense(F.avg_pool2d(self.pool(y), 1).flatten(1))
        z = torch.cat([self.attention(y, y, y)[0], y], -1)[:, :4]
        z = z[:, :, None, None].expand(-1, -1, 6, 6).permute(0, 3, 2, 1)
        z = self.dense(z.reshape(z.shape[0], -1))
        return z @ self.table.weight.T, z.sigmoid() * z


class Nested(nn.Module):
    """Layers under other settings of autograd and autocast, one of them under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.again = nn.Linear(4, 4)
        self.blocks = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.LayerNorm(4), nn.ReLU()))

    def forward(self, x: Any) -> Any:
        x = self.first(self.first(x))
        with torch.autocast("cpu", enabled=False):
            y = self.again(x) + self.blocks(x)
        with torch.enable_grad():
            return self.blocks(y) * x, y


_IMAGE, _ROWS = torch.randn(2, 3, 8, 8), torch.randn(2, 4)


@pytest.mark.parametrize(("make", "x"), [(Mixed, _IMAGE), (Nested, _ROWS)])
def test_both_ways_to_trace_give_the_same(make: type[nn.Module], x: Any) -> None:
    model = make().eval()
    traced, _ = _fx.flow_of(model) if make is Mixed else (_expected_of_nested(), "")
    followed, why = _export.flow_of(model, (x,), {})
    assert not why
    assert followed == traced


def _expected_of_nested() -> tuple[Any, ...]:
    node = _fx.FlowNode
    return (
        node("first", "", ()), node("first", "", (0,)), node("first", "", (1,)),
        node("blocks.0", "", (1,)), node("blocks.1.0", "", (3,)), node("", "add", (2, 4)),
        node("blocks.0", "", (5,)), node("blocks.1.0", "", (6,)), node("", "mul", (7, 1)),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "densenet121"])
def test_both_ways_agree_on_models_of_torchvision(name: str) -> None:
    import torchvision

    model = getattr(torchvision.models, name)().eval()
    followed, why = _export.flow_of(model, (torch.randn(1, 3, 64, 64),), {})
    assert not why
    assert followed == _fx.flow_of(model)[0]


class Attention(nn.Module):
    def __init__(self, *, fused: bool, biased: bool) -> None:
        super().__init__()
        self.fused = fused
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))
        self.bias = nn.Linear(2, 2) if biased else None

    def forward(self, x: Any) -> Any:
        q, k, v = self.query(x), self.key(x), self.value(x)
        bias = 0.0 if self.bias is None else self.bias(x.new_ones(2, 2))
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v, bias if self.bias else None)
        return torch.softmax(q @ k.transpose(-1, -2) / 2 + bias, -1) @ v


@pytest.mark.parametrize("biased", [False, True])
def test_an_attention_in_one_step_is_what_it_is_made_of(biased: bool) -> None:
    found: list[Any] = []
    for fused in (False, True):
        model = Attention(fused=fused, biased=biased)
        followed, why = _export.flow_of(model, (torch.randn(1, 2, 4),), {})
        assert not why
        assert followed == _fx.flow_of(model)[0]
        found.append([(n.owner, n.label, n.inputs) for n in followed])
    assert found[0] == found[1]


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return self.layer(x) if x.sum() > 0 else x


class Remembering(nn.Module):
    """Keeps what it has seen, in every way in which a module can."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen, self.last = nn.Linear(4, 4), [torch.zeros(2)], None
        self.kept: dict[str, Any] = {}
        self.register_buffer("mean", torch.arange(4.0))

    def forward(self, x: Any) -> Any:
        self.seen.append(x)
        self.kept["x"] = self.last = x
        self.mean += x.mean(0)
        return self.layer(x) + self.mean if isinstance(x, torch.Tensor) else x


def test_what_a_model_keeps_is_taken_away() -> None:
    model = Remembering()
    (first,) = model.seen
    _export.flow_of(model, (_ROWS,), {})
    assert model.seen == [first]
    assert model.last is None
    assert model.kept == {}
    assert model.mean.tolist() == [0, 1, 2, 3]
    assert type(model.mean) is torch.Tensor


def test_why_it_is_not_followed_is_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = logging.root.manager.disable
    flow, why = _export.flow_of(Branching(), (_ROWS,), {})
    assert not flow
    assert "data-dependent" in why
    model = Nested()
    with monkeypatch.context() as patch:
        patch.setattr(_export, "SECONDS", 0.0)
        assert _export.flow_of(model, (_ROWS,), {}) == ((), "more than 0 seconds")
    with monkeypatch.context() as patch:
        patch.setattr(_steps, "LIMIT", 3)
        assert "steps, more than 3" in _export.flow_of(model, (_ROWS,), {})[1]
    assert "reduction dim" in _export.flow_of(model, (torch.ones(2, 3),), {})[1]
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == before
    assert not any(module._forward_pre_hooks for module in model.modules())

    class Outer(Branching):
        def forward(self, x: Any) -> Any:
            return super().forward(x) * 2

    (note,) = _TARGET.followed(Outer(), _ROWS.numpy()).notes  # pyright: ignore
    assert "torch.fx cannot trace" in note
    assert "torch.export cannot follow it (Guard" in note


def test_nothing_is_followed_without_a_probe_or_where_names_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> Any:
        raise AssertionError("the model's code was run")

    monkeypatch.setattr(_TARGET, "followed", fail)
    source, target = filled(Branching(), 1), filled(Branching(), 2)
    assert rg.plan(source, target).complete
    assert rg.plan(source, target, probe=_ROWS.numpy()).complete
