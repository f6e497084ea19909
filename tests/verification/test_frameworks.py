"""Divergences between frameworks: Keras, Flax' linen and NNX, each against PyTorch, both ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import regraft as rg
from benchmarks.divergences.cases import distinct

keras = pytest.importorskip("keras")
jax = pytest.importorskip("jax")
linen = pytest.importorskip("flax.linen")
X = np.random.default_rng(0).normal(size=(4, 8)).astype("f4")
IMAGES = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype("f4")


class Mlp(nn.Module):
    def __init__(self, eps: float = 1e-6, approximate: str = "tanh") -> None:
        super().__init__()
        self.d0, self.ln, self.d1 = nn.Linear(8, 16), nn.LayerNorm(16, eps=eps), nn.Linear(16, 32)
        self.d2, self.d3, self.approximate = nn.Linear(32, 16), nn.Linear(16, 4), approximate

    def forward(self, x: Any) -> Any:
        x = self.d0(x)
        h = functional.gelu(self.d1(self.ln(x)), approximate=self.approximate)
        return self.d3(x + self.d2(h))


class LinenMlp(linen.Module):
    eps: float = 1e-6

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.Dense(16)(x)
        h = linen.gelu(linen.Dense(32)(linen.LayerNorm(epsilon=self.eps)(x)))
        return linen.Dense(4)(x + linen.Dense(16)(h))


def told(report: Any) -> tuple[Any, list[str]]:
    return report.first_divergence, [cause.kind for cause in report.causes if cause.proven]


@pytest.mark.parametrize(
    ("settings", "there", "here", "kinds"),
    [
        ({}, None, None, []),
        ({"eps": 1e-5}, "ln", "LayerNorm_0", ["norm-epsilon"]),
        ({"approximate": "none"}, "", "", ["activation"]),
    ],
)
def test_linen_and_torch(settings: Any, there: Any, here: Any, kinds: list[str]) -> None:
    torch.manual_seed(1)
    source, target = LinenMlp(), distinct(Mlp(**settings))
    variables = rg.load(target, source.init(jax.random.key(0), X)).model
    bound = source.bind(variables)
    assert told(rg.verify(target, X, source=bound)) == (there, kinds)
    assert told(rg.verify(bound, X, source=target)) == (here, kinds)
    probe = rg.Probe(X, target(torch.tensor(X)), run=lambda tree: source.apply(tree, X))
    assert told(rg.verify(variables, probe, source=target)) == (here, kinds)


def test_nnx_and_torch() -> None:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.d0, self.d1 = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 32, rngs=rngs)
            self.ln = nnx.LayerNorm(16, epsilon=1e-6, rngs=rngs)
            self.d2, self.d3 = nnx.Linear(32, 16, rngs=rngs), nnx.Linear(16, 4, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = self.d0(x)
            return self.d3(x + self.d2(nnx.gelu(self.d1(self.ln(x)))))

    torch.manual_seed(1)
    source = distinct(Mlp(eps=1e-5, approximate="none"))
    target = Net()
    rg.load(source, target)
    report = rg.verify(target, X, source=source)
    assert told(report) == ("ln", ["norm-epsilon", "activation"])
    assert target.ln.epsilon == 1e-6


class Cnn(nn.Module):
    def __init__(self, eps: float = 1e-3) -> None:
        super().__init__()
        self.c1, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, eps=eps)
        self.c2, self.fc = nn.Conv2d(8, 12, 3, 2, padding=1), nn.Linear(12 * 64, 4)

    def forward(self, x: Any) -> Any:
        x = functional.relu(self.c2(functional.relu(self.bn(self.c1(x)))))
        return self.fc(x.permute(0, 2, 3, 1).flatten(1))


def test_what_keras_code_changes_in_inference_mode_is_put_back() -> None:
    layers = keras.layers
    given = keras.Input((8,))
    norm, drop = layers.BatchNormalization(name="bn"), layers.Dropout(0.5, name="drop")
    made = drop(norm(layers.Dense(8, name="d")(given), training=True), training=True)
    model = keras.Model(given, made)
    before = [keras.ops.convert_to_numpy(v).copy() for v in model.variables]
    first, second = (rg.record(model, X).outputs for _ in range(2))
    assert np.array_equal(first, second)
    after = [keras.ops.convert_to_numpy(v).copy() for v in model.variables]
    assert len(before) > 6
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def keras_cnn(padding: str) -> Any:
    layers = keras.layers
    given = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", name="c1")(given)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    x = layers.ZeroPadding2D(1)(x) if padding == "valid" else x
    x = layers.Conv2D(12, 3, 2, padding=padding, activation="relu", name="c2")(x)
    return keras.Model(given, layers.Dense(4, name="fc")(layers.Flatten()(x)))


@pytest.mark.parametrize(
    ("padding", "eps", "where", "kinds"),
    [
        ("valid", 1e-3, None, []),
        ("valid", 1e-5, "bn", ["norm-epsilon"]),
        ("same", 1e-3, "c2", ["padding"]),
    ],
)
def test_keras_and_torch(padding: str, eps: float, where: Any, kinds: list[str]) -> None:
    torch.manual_seed(1)
    source, target = distinct(Cnn(eps)), keras_cnn(padding)
    rg.load(source, target, accept=["epsilon-differs"])
    before = [keras.ops.convert_to_numpy(weight).copy() for weight in target.weights]
    call = keras.Layer.__call__
    assert told(rg.verify(target, IMAGES.transpose(0, 3, 1, 2), source=source)) == (where, kinds)
    assert told(rg.verify(source, IMAGES, source=target)) == (where, kinds)
    assert keras.Layer.__call__ is call
    after = [keras.ops.convert_to_numpy(weight).copy() for weight in target.weights]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("part", ["all of it", "params"])
def test_a_recorded_linen_probe_and_a_file_say_as_much_as_the_live_model(
    part: str, tmp_path: Any
) -> None:
    serialization = pytest.importorskip("flax.serialization")
    torch.manual_seed(1)
    source, right = LinenMlp(), distinct(Mlp())
    variables = rg.load(right, source.init(jax.random.key(0), X)).model
    file = tmp_path / "source.msgpack"
    file.write_bytes(
        serialization.to_bytes(variables if part == "all of it" else variables["params"])
    )
    probe = rg.record(source.bind(variables), X, tmp_path / "probe.npz")
    kept = rg.open(tmp_path / "probe.npz")
    probe = rg.Probe.from_arrays({name: kept.read(name) for name in kept})
    target = Mlp(eps=1e-5)
    target.load_state_dict(right.state_dict())
    with torch.no_grad():
        target.d2.weight[3, 5] += 0.3
    live = rg.verify(target, X, source=source.bind(variables))
    whole = rg.open(file, container="") if part == "all of it" else rg.open(file)
    for given in (file, whole):
        recorded = rg.verify(target, probe, source=given)
        assert told(recorded) == told(live) == ("ln", ["norm-epsilon", "weights"])
        assert len(recorded.steps) == len(live.steps)


@pytest.mark.parametrize(("slope", "there"), [(0.1, None), (0.3, "leaky")])
def test_recorded_images_go_to_the_place_where_the_target_has_channels(
    slope: float, there: Any, tmp_path: Any
) -> None:
    """In inputs and outputs; a probe that nobody recorded is as it was given."""
    source = distinct(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.1), nn.Conv2d(8, 5, 3)).eval()
    )
    layers = keras.layers
    target = keras.Sequential(
        [keras.Input((16, 16, 3)), layers.Conv2D(8, 3),
         layers.LeakyReLU(negative_slope=slope, name="leaky"), layers.Conv2D(5, 3)]
    )  # fmt: skip
    torch.save(source.state_dict(), tmp_path / "source.pth")
    rg.load(tmp_path / "source.pth", target)
    images = np.ascontiguousarray(np.moveaxis(IMAGES, -1, 1))
    recorded = rg.record(source, images, tmp_path / "probe.npz")
    for given in (None, tmp_path / "source.pth", source):
        report = rg.verify(target, recorded, source=given)
        assert report.equal == (there is None)
        assert not report.warnings
        if given is not None:
            assert told(report) == (there, ["activation"] if there else [])
    if there is None:
        assert "verified" in str(rg.load(tmp_path / "source.pth", target, probe=recorded))
        by_hand = rg.Probe(images, recorded.outputs)
        assert not rg.verify(target, by_hand).equal
