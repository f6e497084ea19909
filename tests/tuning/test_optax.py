"""Policies as transformations of gradients, in loops of plain JAX and of Flax."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax import numpy as jnp

import regraft as rg
from regraft.tuning.optax import averaged, course_of, follow, labels, mask, watch
from regraft.tuning.policies import Policy
from regraft.tuning.references import Reference

sys.path.insert(0, str(Path(__file__).parent))
from networks import changed, samples


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.Dense(8, name="first")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        return nn.Dense(2, name="head")(x)


def start() -> Any:
    variables = Net().init(jax.random.key(0), jnp.ones((1, 3)))
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(variables)))
    leaves = [
        a + 0.1 * jax.random.uniform(k, a.shape)
        for a, k in zip(jax.tree.leaves(variables), keys, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(variables), leaves)


def loop(variables: Any, optimizer: Any, state: Any, *, frozen_statistics: bool) -> tuple[Any, Any]:
    x, y = samples()

    def loss(params: Any) -> Any:
        out, new = Net().apply(
            {**variables, "params": params}, x, train=not frozen_statistics, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(out, y).mean(), new

    gradients, new = jax.grad(loss, has_aux=True)(variables["params"])
    updates, state = optimizer.update(gradients, state, variables["params"])
    params = optax.apply_updates(variables["params"], updates)
    return {
        "params": params,
        **(variables if frozen_statistics else new),
        **{"params": params},
    }, state


def test_frozen_tensors_are_the_same_bits() -> None:
    variables = start()
    policy = Policy(freeze=("*/first/*", "*/norm/*"))
    whole = course_of(variables, policy)
    params = variables["params"]
    course = course_of(params, Policy(freeze=("first/*", "norm/*")))
    assert labels(course, params)["head"] == {"kernel": "1", "bias": "1 bare"}
    assert mask(course, params)["first"] == {"kernel": False, "bias": False}
    optimizer = follow(course, params, lambda rate, decay: optax.adamw(0.05 * rate, weight_decay=decay),
                       weight_decay=0.1)  # fmt: skip
    state = optimizer.init(params)
    moments = [a for a in jax.tree.leaves(state) if a.shape == (3, 8)]
    assert not moments  # none are kept for what is frozen
    finish = watch(whole, variables)
    for _ in range(2):
        variables, state = loop(variables, optimizer, state, frozen_statistics=True)
    receipt = finish(variables, 2).check()
    assert set(receipt.learned) == {"params/head/kernel", "params/head/bias"}
    assert "batch_stats/norm/mean" in receipt.frozen
    variables, _ = loop(variables, optimizer, state, frozen_statistics=False)
    moved = finish(variables, 3)
    assert set(moved.moved) == {"batch_stats/norm/mean", "batch_stats/norm/var"}
    with pytest.raises(rg.VerificationFailed):
        moved.check()


def test_rates_decay_and_epochs() -> None:
    params = start()["params"]
    course = course_of(
        params, Policy(rates=(("*", 0.5), ("head/*", 1.0)), head=("head/*",), probe_epochs=1)
    )

    def make(rate: float, decay: float) -> Any:
        return optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate))

    zeros = jax.tree.map(jnp.zeros_like, params)
    with pytest.raises(rg.TargetError, match="epoch"):
        follow(course, params, make, weight_decay=0.5)
    optimizer = follow(course, params, make, weight_decay=0.5, epoch=1)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.5 * params["head"]["kernel"])
    np.testing.assert_allclose(updates["first"]["kernel"], -0.25 * params["first"]["kernel"])
    assert not np.any(updates["first"]["bias"])
    early = follow(course, params, make, weight_decay=0.5, epoch=0)
    updates, _ = early.update(zeros, early.init(params), params)
    assert not np.any(updates["first"]["kernel"])
    assert np.any(updates["head"]["kernel"])


def test_l2_sp(tmp_path: Path) -> None:
    params = start()["params"]
    rg.save(params, tmp_path / "base.safetensors")
    receipt = rg.load(tmp_path / "base.safetensors", params, fresh=["head/*"], unused=["head/*"])
    reference = Reference(receipt, rg.open(tmp_path / "base.safetensors").read)
    course = course_of(params, Policy(l2_sp=0.5, l2_sp_fresh=0.25), receipt)
    away = jax.tree.map(lambda a: a + 2.0, params)
    optimizer = follow(course, away, lambda rate, _: optax.sgd(rate), reference=reference)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, away), optimizer.init(away), away)
    np.testing.assert_allclose(updates["first"]["kernel"], -1.0, rtol=1e-5)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.25 * away["head"]["kernel"], rtol=1e-5)
    with pytest.raises(rg.TargetError, match="Reference"):
        follow(course, away, lambda rate, _: optax.sgd(rate))


def test_linens_statistics_belong_to_their_layer() -> None:
    variables = start()
    course = course_of(variables, Policy(freeze=("params/first/*", "params/norm/*")))
    assert course["batch_stats/norm/mean"].since is None
    finish = watch(course, variables)
    after = {**variables, "batch_stats": jax.tree.map(lambda a: a + 1, variables["batch_stats"])}
    assert finish(after, 1).moved == ["batch_stats/norm/mean", "batch_stats/norm/var"]
    deep = Policy(
        layer_decay=0.5, stem=("params/first/*", "params/norm/*"), head=("params/head/*",)
    )
    found = course_of(variables, deep)
    assert found["batch_stats/norm/mean"].depth == found["params/norm/scale"].depth


@pytest.mark.parametrize("kind", ["adapt", "recalibrate"])
def test_statistics_that_nobody_measures_are_told(kind: Any) -> None:
    with pytest.raises(rg.TargetError, match="cannot be run"):
        course_of(start(), Policy(batchnorm=kind))


def test_moving_average() -> None:
    params = start()["params"]
    course = course_of(params, Policy(ema=0.9, freeze=("first/*",)))
    optimizer = follow(course, params, lambda rate, _: optax.sgd(rate))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    now, mean = params, jax.tree.map(np.asarray, params)
    for step in range(1, 5):
        gradients = jax.tree.map(jnp.cos, now)
        updates, state = update(gradients, state, now)
        now = optax.apply_updates(now, updates)
        share = min(0.9, step / (step + 9))
        mean = jax.tree.map(lambda m, w, s=share: s * m + (1 - s) * np.asarray(w), mean, now)
    found = averaged(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, mean)
    assert not changed(
        {"first": np.asarray(params["first"]["kernel"])},
        {"first": np.asarray(found["first"]["kernel"])},
    )
    with pytest.raises(rg.TargetError, match="no moving average"):
        averaged(optax.sgd(0.1).init(params))


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(self.drop(nnx.relu(self.norm(self.first(x)))))


@pytest.mark.parametrize("still", [True, False])
def test_nnx_optimizer_and_statistics(still: bool) -> None:
    module = Block(nnx.Rngs(0))
    policy = Policy(freeze=("first/*", "norm/*"))
    state = nnx.state(module, nnx.Param)
    chain = follow(
        course_of(state, policy), state,
        lambda rate, decay: optax.adamw(0.1 * rate, weight_decay=decay), weight_decay=0.1,
    )  # fmt: skip
    optimizer = nnx.Optimizer(module, chain, wrt=nnx.Param)
    course = course_of(module, policy)
    assert course["norm/mean"].statistic
    assert not any("rngs" in name for name in course)
    finish = watch(course, nnx.state(module))
    x, y = samples()

    def loss(net: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(net(x), y).mean()

    for _ in range(2):
        module.train()
        if still:
            module.norm.eval()
        optimizer.update(module, nnx.grad(loss)(module))
    receipt = finish(nnx.state(module), 2)
    assert receipt.moved == ([] if still else ["norm/mean", "norm/var"])
    assert set(receipt.learned) == {"head/bias", "head/kernel"}
