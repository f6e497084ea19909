"""Planted differences between PyTorch, Keras and Flax: a network in each, loaded with `rg.load`.

Frameworks are imported when a case is made. Keras runs on the backend of the process.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import regraft as rg
from benchmarks.divergences.cases import Case, distinct

_RANDOM = np.random.default_rng(6)
PIXELS = _RANDOM.random((2, 16, 24, 3), dtype="f4")
ROWS = _RANDOM.normal(size=(2, 9, 24)).astype("f4")


class Net(nn.Module):
    """Images of (batch, 3, 16, 24)."""

    def __init__(self, eps: float = 1e-3, **k: Any) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8, eps=eps)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12, eps=eps)
        self.fc1, self.fc2, self.k = nn.Linear(12 * 4 * 6, 16), nn.Linear(16, 5), k

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k = self.k
        x = k["prep"](x) if "prep" in k else x
        x = self.conv1(x)
        x = k.get("act", F.relu)(self.bn1(x))
        if "up" in k:
            x = F.avg_pool2d(F.interpolate(x, scale_factor=2, **k["up"]), 2)
        x = k.get("pool", lambda t: F.max_pool2d(t, 2))(F.relu(self.bn2(self.conv2(x))))
        x = x.flatten(1) if k.get("chw") else x.permute(0, 2, 3, 1).flatten(1)
        return self.fc2(F.relu(self.fc1(x)))


def keras_net(eps: float = 1e-3, **k: Any) -> Any:
    keras = importlib.import_module("keras")
    L = keras.layers
    i = L.Input((16, 24, 3))
    x = k["prep"](L)(i) if "prep" in k else i
    if not k.get("same"):
        x = L.ZeroPadding2D(1)(x)
    how = "same" if k.get("same") else "valid"
    x = L.Conv2D(8, 3, 2, padding=how, use_bias=False, name="conv1")(x)
    x = L.BatchNormalization(epsilon=eps, name="bn1")(x, training=k.get("training"))
    x = k.get("act", lambda L: L.ReLU(name="act1"))(L)(x)
    if "up" in k:
        x = L.UpSampling2D(2, interpolation=k["up"], name="up")(x)
        x = L.AveragePooling2D(2)(x)
    x = L.BatchNormalization(epsilon=eps, name="bn2")(L.Conv2D(12, 3, padding="same",
                                                               name="conv2")(x))  # fmt: skip
    x = k.get("pool", lambda L: L.MaxPooling2D(2, name="pool"))(L)(L.ReLU()(x))
    x = L.Permute((3, 1, 2))(x) if k.get("chw") else x
    x = L.Dense(16, activation="relu", name="fc1")(L.Flatten(name="flatten")(x))
    return keras.Model(i, L.Dense(5, name="fc2")(x))


class Block(nn.Module):
    def __init__(self, d: int = 24, h: int = 4, eps: float = 1e-6, **k: Any) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(d, eps=eps), nn.LayerNorm(d, eps=eps)
        self.query, self.key = nn.Linear(d, d), nn.Linear(d, d)
        self.value, self.attention_output = nn.Linear(d, d), nn.Linear(d, d)
        self.fc1, self.fc2, self.h, self.k = nn.Linear(d, 48), nn.Linear(48, d), h, k

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        b, n, d = x.shape
        q, k, v = (f(x).view(b, n, self.h, -1).transpose(1, 2)
                   for f in (self.query, self.key, self.value))  # fmt: skip
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.k.get("causal", False),
                                           scale=self.k.get("scale"))  # fmt: skip
        return self.attention_output(y.transpose(1, 2).reshape(b, n, d))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mlp = lambda t: self.fc2(F.gelu(self.fc1(t), approximate=self.k.get("gelu", "none")))  # noqa: E731
        if self.k.get("post"):
            x = self.ln1(x + self.attend(x))
            return self.ln2(x + mlp(x))
        x = x + self.attend(self.ln1(x))
        return x + mlp(self.ln2(x))


def keras_block(h: int = 4, eps: float = 1e-6, **k: Any) -> Any:
    keras = importlib.import_module("keras")
    L = keras.layers
    i = L.Input((9, 24))
    y = L.LayerNormalization(epsilon=eps, name="ln1")(i)
    attention = L.MultiHeadAttention(h, 24 // h, name="attention")
    x = i + attention(y, y, use_causal_mask=k.get("causal", False))
    y = L.LayerNormalization(epsilon=eps, name="ln2")(x)
    act = lambda t: keras.activations.gelu(t, approximate=k.get("gelu") == "tanh")  # noqa: E731
    y = L.Dense(48, activation=act, name="fc1")(y)
    return keras.Model(i, x + L.Dense(24, name="fc2")(y))


def linen_net(**k: Any) -> Any:
    linen = importlib.import_module("flax.linen")

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            eps = k.get("eps", 1e-3)
            pads = "SAME" if k.get("same") else ((1, 1), (1, 1))
            x = linen.Conv(8, (3, 3), 2, padding=pads, use_bias=False, name="conv1")(x)
            x = linen.BatchNorm(not k.get("training"), epsilon=eps, name="bn1")(x)
            x = k.get("act", linen.relu)(x)
            x = linen.Conv(12, (3, 3), name="conv2")(x)
            x = linen.relu(linen.BatchNorm(True, epsilon=eps, name="bn2")(x))
            x = k.get("pool", linen.max_pool)(x, (2, 2), (2, 2))
            x = x.transpose(0, 3, 1, 2) if k.get("chw") else x
            x = x.reshape(x.shape[0], -1)
            return linen.Dense(5, name="fc2")(linen.relu(linen.Dense(16, name="fc1")(x)))

    return Net()


def linen_block(h: int = 4, **k: Any) -> Any:
    linen = importlib.import_module("flax.linen")

    class Block(linen.Module):
        def setup(self) -> None:
            eps = k.get("eps", 1e-6)
            self.ln1, self.ln2 = linen.LayerNorm(epsilon=eps), linen.LayerNorm(epsilon=eps)
            self.query, self.key = linen.Dense(24), linen.Dense(24)
            self.value, self.attention_output = linen.Dense(24), linen.Dense(24)
            self.fc1, self.fc2 = linen.Dense(48), linen.Dense(24)

        def attend(self, x: Any) -> Any:
            b, n, d = x.shape
            q, key, v = (f(x).reshape(b, n, h, -1) for f in (self.query, self.key, self.value))
            mask = linen.make_causal_mask(x[..., 0]) if k.get("causal") else None
            y = linen.dot_product_attention(q, key, v, mask=mask)
            return self.attention_output(y.reshape(b, n, d))

        def __call__(self, x: Any) -> Any:
            mlp = lambda t: self.fc2(  # noqa: E731
                linen.gelu(self.fc1(t), approximate=k.get("gelu") == "tanh")
            )
            if k.get("post"):
                x = self.ln1(x + self.attend(x))
                return self.ln2(x + mlp(x))
            x = x + self.attend(self.ln1(x))
            return x + mlp(self.ln2(x))

    return Block()


def nnx_block(h: int = 4, **k: Any) -> Any:
    jax = importlib.import_module("jax")
    nnx = importlib.import_module("flax.nnx")

    class Block(nnx.Module):
        def __init__(self) -> None:
            r = nnx.Rngs(0)
            eps = k.get("eps", 1e-6)
            self.ln1, self.ln2 = (nnx.LayerNorm(24, epsilon=eps, rngs=r) for _ in range(2))
            self.query, self.key = (nnx.Linear(24, 24, rngs=r) for _ in range(2))
            self.value = nnx.Linear(24, 24, rngs=r)
            self.attention_output = nnx.Linear(24, 24, rngs=r)
            self.fc1, self.fc2 = nnx.Linear(24, 48, rngs=r), nnx.Linear(48, 24, rngs=r)

        def attend(self, x: Any) -> Any:
            b, n, d = x.shape
            q, key, v = (f(x).reshape(b, n, h, d // h) for f in (self.query, self.key, self.value))
            s = jax.numpy.einsum("bqhd,bkhd->bhqk", q, key) * k.get("scale", (d // h) ** -0.5)
            y = jax.numpy.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(s, -1), v)
            return self.attention_output(y.reshape(b, n, d))

        def __call__(self, x: Any) -> Any:
            x = x + self.attend(self.ln1(x))
            y = nnx.gelu(self.fc1(self.ln2(x)), approximate=k.get("gelu") == "tanh")
            return x + self.fc2(y)

    return Block()


def _linen(make: Any, inputs: Any, source: Any, k: Any) -> Any:
    model = make(**k)
    jax = importlib.import_module("jax")
    variables = model.init(jax.random.key(0), inputs)
    return model.bind(rg.load(source, variables, accept=["epsilon-differs"]).model)


def _loaded(make: Any, inputs: Any, source: Any, k: Any) -> Any:
    model = make(**k)
    rg.load(source, model, accept=["epsilon-differs"])
    return model


IMAGE = {"keras": (keras_net, _loaded), "linen": (linen_net, _linen)}
ROW = {"keras": (keras_block, _loaded), "linen": (linen_block, _linen), "nnx": (nnx_block, _loaded)}


def across(
    framework: str, name: str, theirs: Any, ours: Any, where: Any = (), kinds: Any = (),
    back: bool = False, rows: bool = False, known: str = "live", late: Any = None,
) -> Case:  # fmt: skip
    """PyTorch's network with the settings `theirs`, and the same of another framework with `ours`;
    `back`: the latter is the source; `late`: what PyTorch's changes after loading."""

    def build() -> tuple[Any, Any, Any]:
        torch.manual_seed(4)
        one = distinct((Block if rows else Net)(**theirs))
        if theirs.get("train"):
            one.bn1.train()
        make, how = (ROW if rows else IMAGE)[framework]
        inputs = ROWS if rows else PIXELS
        other = how(make, inputs, one, ours)
        one.k |= late or {}
        if back:
            return other, one, inputs
        return one, other, inputs if rows else inputs.transpose(0, 3, 1, 2)

    where, kinds = ((v,) if isinstance(v, str) else v for v in (where, kinds))
    return Case(f"unseen {framework} {name}", build, where, kinds, known)


K, N, X = "keras", "linen", "nnx"
RESCALED = {"prep": lambda L: L.Rescaling(1 / 127.5, -1.0)}
CASES = [
    across(K, "equal", {}, {}),
    across(K, "equal, back", {}, {}, back=True),
    across(K, "eps", {"eps": 1e-5}, {}, "bn1", "norm-epsilon"),
    across(K, "eps, back", {"eps": 1e-5}, {}, "bn1", "norm-epsilon", back=True),
    across(K, "same", {}, {"same": True}, ("conv1", ""), "padding"),
    across(K, "flatten equal, as the loading takes care of it", {"chw": True}, {}),
    across(K, "flatten equal, back", {"chw": True}, {}, back=True),
    across(K, "up nearest", {"up": {"mode": "bilinear"}}, {"up": "nearest"}, "up", "resize"),
    across(K, "average", {"pool": lambda t: F.avg_pool2d(t, 2)}, {}, ("pool", ""), "pooling"),
    across(K, "leaky", {"act": lambda t: F.leaky_relu(t, 0.01)},
           {"act": lambda L: L.LeakyReLU(name="act1")}, "act1", "activation", known="recorded"),
    across(K, "rescaled", {}, RESCALED, ("", "rescaling"), "input-scale"),
    across(K, "bgr, back", {"prep": lambda x: x.flip(1)}, {}, "", "channel-order", back=True),
    across(K, "training", {}, {"training": True}, "bn1", "train-mode"),
    across(K, "eps and flatten", {"eps": 1e-5}, {}, "bn1", ("norm-epsilon", "flatten-order"),
           late={"chw": True}),
    across(K, "flatten", {}, {}, ("flatten", "", "fc1"), "flatten-order", late={"chw": True}),
    across(K, "flatten, back", {}, {}, "", "flatten-order", back=True, late={"chw": True}),
    across(K, "block equal", {}, {}, rows=True),
    across(K, "block eps", {"eps": 1e-5}, {"eps": 1e-3}, "ln1", "norm-epsilon", rows=True),
    across(K, "block gelu", {"gelu": "tanh"}, {}, "fc1", "activation", rows=True),
    across(K, "block causal", {"causal": True}, {}, "attention", "attention-mask", rows=True),
    across(K, "block not causal", {}, {"causal": True}, "attention", "attention-mask", rows=True),
    across(K, "block causal, back", {}, {"causal": True}, "", "attention-mask", rows=True,
           back=True),
    across(K, "block scale, back", {"scale": 1.0}, {}, "", "attention-scale", rows=True, back=True),
    across(N, "equal", {}, {}),
    across(N, "eps", {}, {"eps": 1e-5}, "bn1", "norm-epsilon"),
    across(N, "same", {}, {"same": True}, "conv1", "padding"),
    across(N, "flatten", {}, {}, ("", "fc1"), "flatten-order", late={"chw": True}),
    across(N, "flatten, back", {}, {}, "", "flatten-order", back=True, late={"chw": True}),
    across(N, "one trains, back", {"train": True}, {}, "bn1", "train-mode", back=True),
    across(N, "block gelu", {}, {"gelu": "tanh"}, "", "activation", rows=True),
    across(N, "block eps and gelu, back", {"eps": 1e-5}, {"gelu": "tanh"}, "ln1",
           ("norm-epsilon", "activation"), rows=True, back=True),
    across(N, "block causal", {}, {"causal": True}, "", "attention-mask", rows=True),
    across(N, "block causal, back", {}, {"causal": True}, "", "attention-mask", rows=True,
           back=True),
    across(N, "block post", {"post": True}, {}, "", "norm-placement", rows=True),
    across(N, "block post, back", {"post": True}, {}, "", "norm-placement", rows=True, back=True),
    across(N, "block heads, back", {"h": 2}, {}, "", "head-count", rows=True, back=True),
    across(X, "equal", {}, {}, rows=True),
    across(X, "eps", {}, {"eps": 1e-3}, "ln1", "norm-epsilon", rows=True),
    across(X, "gelu", {}, {"gelu": "tanh"}, "", "activation", rows=True),
    across(X, "scale", {}, {"scale": 1.0}, "", "attention-scale", rows=True),
    across(X, "scale, back", {}, {"scale": 1.0}, "", "attention-scale", rows=True, back=True),
    across(X, "heads", {}, {"h": 2}, "", "head-count", rows=True),
]  # fmt: skip
