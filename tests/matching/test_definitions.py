"""Real model definitions of other libraries, small or random: a complete plan has equal outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import timm
    import torchvision
    import transformers
    from flax import linen


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Distinct values everywhere, statistics and biases too, so that any swap shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.dtype.is_floating_point:
                spread = 0.5 / max(1, tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 0.2
                noise = torch.randn(tensor.shape, generator=generator) * spread
                centre = 1.0 if name.endswith(("running_var",)) or _scale(name, tensor) else 0.0
                tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else noise + centre)
    return model.eval()


def _scale(name: str, tensor: torch.Tensor) -> bool:
    return tensor.ndim == 1 and name.endswith("weight")


def hugging_face_resnet() -> nn.Module:
    config = transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2],
        layer_type="basic", num_labels=10,
    )  # fmt: skip

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = transformers.ResNetForImageClassification(config)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(pixel_values=x).logits

    return Logits()


Maker = Callable[[], nn.Module]
RESNET_TV: Maker = lambda: torchvision.models.resnet18(num_classes=10)  # noqa: E731
RESNET_TIMM: Maker = lambda: timm.create_model("resnet18", num_classes=10)  # noqa: E731
# Source, target, whether this version is expected to settle everything.
PAIRS: dict[str, tuple[Maker, Maker, bool]] = {
    "resnet18 torchvision to timm": (RESNET_TV, RESNET_TIMM, True),
    "resnet18 timm to torchvision": (RESNET_TIMM, RESNET_TV, True),
    "resnet18 torchvision to transformers": (RESNET_TV, hugging_face_resnet, False),
    "resnet18 transformers to timm": (hugging_face_resnet, RESNET_TIMM, False),
    "mobilenet_v2 torchvision to timm": (
        lambda: torchvision.models.mobilenet_v2(num_classes=10),
        lambda: timm.create_model("mobilenetv2_100", num_classes=10),
        False,
    ),
    "vgg11_bn torchvision to itself": (
        lambda: torchvision.models.vgg11_bn(num_classes=10),
        lambda: torchvision.models.vgg11_bn(num_classes=10),
        True,
    ),
    "densenet121 torchvision to timm": (
        lambda: torchvision.models.densenet121(num_classes=10),
        lambda: timm.create_model("densenet121", num_classes=10),
        True,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_complete_plan_gives_equal_outputs(name: str) -> None:
    make_source, make_target, expected = PAIRS[name]
    source, target = randomised(make_source()), randomised(make_target(), 1)
    plan = rg.plan(source, target)
    if expected:
        assert plan.complete, str(plan)
    if not plan.complete:
        with pytest.raises(rg.IncompletePlan):
            rg.load(source, target)
        return
    rg.load(source, target)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(target.eval()(x), source(x), rtol=1e-4, atol=1e-4)


class FlaxNet(linen.Module):
    """Flax numbers layers by construction; statistics lie in a tree of their own."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        for width in (8, 12):
            x = linen.Conv(width, (3, 3), use_bias=False)(x)
            x = linen.BatchNorm(use_running_average=True)(x)
            x = linen.relu(x)
        return linen.Dense(5)(x.mean((1, 2)))


class TorchNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(12)
        self.out = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first_norm(self.first(x)))
        x = torch.relu(self.second_norm(self.second(x)))
        return self.out(x.mean((2, 3)))


def _flax() -> tuple[Any, Any]:
    import jax

    net = FlaxNet()
    tree = net.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    generator = np.random.default_rng(0)

    def random(leaf: Any) -> Any:
        return jax.numpy.asarray(generator.uniform(0.2, 1.0, leaf.shape).astype(np.float32))

    return net, jax.tree.map(random, tree)


def test_flax_to_pytorch_and_back() -> None:
    net, tree = _flax()
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
    expected = np.asarray(net.apply(tree, x))
    model = TorchNet()
    model_input = x.transpose(0, 3, 1, 2).copy()
    receipt = rg.load(tree, model, probe=rg.Probe(model_input, expected))
    assert receipt.verified

    _, other = _flax()
    import jax

    blank = jax.tree.map(jax.numpy.zeros_like, other)
    back = rg.Probe(run=lambda t: net.apply(t, x), outputs=expected)
    again = rg.load(model, blank, probe=back)
    assert again.verified
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(again.model), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(not leaf.any() for leaf in jax.tree.leaves(blank))  # JAX trees do not change


def test_keras_application_between_its_own_files(tmp_path: Any) -> None:
    """Names that Keras numbers per process differ between two instances of one model."""
    first = keras.applications.MobileNetV2((64, 64, 3), alpha=0.35, weights=None, classes=4)
    second = keras.applications.MobileNetV2((64, 64, 3), alpha=0.35, weights=None, classes=4)
    generator = np.random.default_rng(0)
    for variable in first.weights:
        variable.assign(generator.uniform(0.1, 0.5, variable.shape))
    first.save(tmp_path / "m.keras")
    receipt = rg.load(tmp_path / "m.keras", second)
    assert len(receipt.loaded) == len(first.weights)
    x = generator.normal(size=(2, 64, 64, 3)).astype(np.float32)
    np.testing.assert_allclose(first(x), second(x), rtol=1e-5)
