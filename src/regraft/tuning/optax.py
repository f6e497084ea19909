"""Optax: a Policy as a transformation of gradients, for any JAX loop.

    course = course_of(params, Policy(freeze=("encoder/*",), layer_decay=0.8))
    optimizer = follow(
        course, params, lambda rate, decay: optax.adamw(1e-3 * rate, weight_decay=decay),
        weight_decay=0.05,
    )
    state = optimizer.init(params)
    updates, state = optimizer.update(gradients, state, params)
    params = optax.apply_updates(params, updates)

What is frozen gets no update, keeps no moments and is never decayed; it is the same bits.
Statistics of linen's BatchNorm are in a collection of their own (`batch_stats`), which gradients do
not reach: a loop freezes them by not taking the new ones, and a `watch` on all variables shows it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jax import numpy as jnp

from regraft.errors import TargetError
from regraft.receipts import Receipt
from regraft.targets import jax as jax_target
from regraft.targets._jax_trees import leaf_names
from regraft.tuning.courses import Course, course
from regraft.tuning.policies import Policy
from regraft.tuning.receipts import TuningReceipt, Watch
from regraft.tuning.references import Reference, pulls


def course_of(params: Any, policy: Policy, receipt: Receipt | None = None) -> Course:
    """A policy worked out for a tree of parameters, whose keys joined with `/` are the names; or
    for an NNX module, whose layers are in the order in which they were made.

    **Raises** `TargetError` for a policy that measures statistics: a tree cannot be run.
    """
    catalogue = jax_target.skeleton(params)
    if policy.batchnorm in ("adapt", "recalibrate"):
        raise TargetError(
            f'batchnorm="{policy.batchnorm}"',
            found="a tree, which cannot be run to measure statistics",
            expected='batchnorm="train" or "freeze"',
            hint="run the module on the new data before or after, and put its statistics in the "
            "tree yourself",
        )
    held = _variables(params)
    return course(
        (info for name, info in catalogue.items() if not _draws(held.get(name))),
        policy,
        fresh=receipt.fresh if receipt else (),
        statistics=[name for name, leaf in held.items() if _is_statistic(name, leaf)],
        order=catalogue.order,
        layer=_layer,
    )


def _variables(params: Any) -> dict[str, Any]:
    """The leaves by name; of NNX, its variables, whose classes tell what they are."""
    nnx: Any = sys.modules.get("flax.nnx")
    if nnx is None:
        return dict(zip(leaf_names(params), jax.tree.leaves(params), strict=True))
    tree = nnx.state(params) if isinstance(params, nnx.Module) else params
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, nnx.Variable))
    return dict(zip(leaf_names(tree), leaves, strict=True))


def _is_statistic(name: str, leaf: Any) -> bool:
    """Whether it is in linen's collection of statistics, or one of NNX."""
    nnx: Any = sys.modules.get("flax.nnx")
    return name.startswith("batch_stats/") or (nnx is not None and isinstance(leaf, nnx.BatchStat))


def _draws(leaf: Any) -> bool:
    """Whether it is the state of a generator of NNX, which moves with every step."""
    nnx: Any = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(leaf, nnx.RngState)


def _layer(name: str) -> str:
    """The layer of a name, without linen's collection, as its statistics are in another."""
    collection, _, rest = name.partition("/")
    return (rest if collection in ("params", "batch_stats") else name).rpartition("/")[0]


def labels(course: Course, params: Any, epoch: int | None = None) -> Any:
    """A tree of texts like `params`, one for each rate with and without decay, `frozen` for what
    does not learn (ever, or in this epoch); for `optax.multi_transform` (`partition`)."""

    def label(name: str) -> str:
        if name not in course:
            return "frozen"  # no weight: a key of random numbers
        treatment = course[name]
        learns = treatment.since is not None if epoch is None else treatment.learns(epoch)
        if not learns or treatment.statistic:
            return "frozen"
        return f"{treatment.rate:.9g}{'' if treatment.decays else ' bare'}"

    return _by_name(params, label)


def mask(course: Course, params: Any, epoch: int | None = None) -> Any:
    """A tree of booleans like `params`: what learns; for `optax.masked`."""
    return jax.tree.map(lambda label: label != "frozen", labels(course, params, epoch))


def follow(
    course: Course,
    params: Any,
    make: Callable[[float, float], optax.GradientTransformation],
    *,
    weight_decay: float = 0.0,
    epoch: int | None = None,
    reference: Reference | None = None,
) -> optax.GradientTransformation:
    """An optimizer that carries a course out.

    **Arguments:**

    - `make`: makes an optimizer of a factor on the learning rate and a weight decay.
    - `epoch`: from 0: what learns in it alone; a policy that lets more learn later needs one, and
      `optimizer.init` anew at each of `course.steps`.
    - `reference`: the pretrained values, for L2-SP; they are constants of a compiled step.

    A moving average (`Policy.ema`) is kept in the optimizer's state, for `averaged`.

    **Raises** `TargetError` for L2-SP without a reference, and for a policy that lets more learn
    later without an epoch.
    """
    if epoch is None and len(course.steps) > 1:
        raise TargetError(
            "the policy",
            found=f"tensors that start to learn later, with epochs {course.steps}",
            expected="an epoch, of which this is the optimizer",
            hint="follow(…, epoch=start) and optimizer.init(params) for each of course.steps",
        )
    tree = labels(course, params, epoch)
    found: dict[Hashable, optax.GradientTransformation] = {"frozen": optax.set_to_zero()}
    for label in sorted(set(jax.tree.leaves(tree)) - {"frozen"}):
        rate, _, bare = label.partition(" ")
        found[label] = make(float(rate), 0.0 if bare else weight_decay)
    # Labels of whatever tree comes, as NNX' optimizer hands on another than the module's state.
    chosen: Any = optax.partition(found, lambda tree: labels(course, tree, epoch))
    pulled, decay = pulls(course, reference), course.policy.ema
    parts = [*([_pull(pulled)] if pulled else []), chosen]
    parts += [_averaging(course, decay)] if decay else []
    return optax.chain(*parts) if len(parts) > 1 else chosen


class Averages(NamedTuple):
    """The state of a moving average: how many steps it saw, and a tree like the parameters."""

    steps: Any
    means: Any


def averaged(state: Any) -> Any:
    """The moving average in the state of an optimizer that `follow` made, as a tree like the
    parameters. **Raises** `TargetError` where there is none."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Averages))
    for node in nodes:
        if isinstance(node, Averages):
            return node.means
    raise TargetError(
        "an optimizer's state", found="no moving average", expected="a policy with ema"
    )


def watch(course: Course, params: Any) -> Callable[[Any, int], TuningReceipt]:
    """Hashes a tree before training; what it gives is called with the tree after so many epochs.

    finish = watch(course, params)
    …
    print(finish(params, 10).check())
    """
    before = Watch(course, jax_target.sink(params).read)
    return lambda after, epochs: before.receipt(jax_target.sink(after).read, epochs)


def _pull(pulled: Mapping[str, tuple[float, Reference | None]]) -> optax.GradientTransformation:
    """Adds the gradient of L2-SP's term (Li et al. 2018)."""

    def one(name: str, gradient: Any, value: Any) -> Any:
        if name not in pulled:
            return gradient
        strength, reference = pulled[name]
        return gradient + strength * (value if reference is None else value - reference[name])

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(one, _by_name(params, str), updates, params), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)  # pyright: ignore[reportArgumentType]


def _averaging(course: Course, decay: float) -> optax.GradientTransformation:
    """Follows the weights after each step; what is frozen stays the same bits."""

    def start(params: Any) -> Averages:
        return Averages(jnp.zeros((), jnp.int32), jax.tree.map(jnp.array, params))

    def update(updates: Any, state: Averages, params: Any = None) -> tuple[Any, Averages]:
        steps = state.steps + 1
        share = jnp.minimum(decay, steps / (steps + 9))

        def one(learns: bool, mean: Any, value: Any) -> Any:
            mixed = learns and jnp.issubdtype(value.dtype, jnp.inexact)
            return (mean * share + value * (1 - share)).astype(mean.dtype) if mixed else value

        after = optax.apply_updates(params, updates)
        return updates, Averages(steps, jax.tree.map(one, mask(course, params), state.means, after))

    return optax.GradientTransformation(start, update)  # pyright: ignore[reportArgumentType]


def _by_name(params: Any, text: Callable[[str], str]) -> Any:
    """A tree like `params` of texts made from names."""
    names = leaf_names(params)
    return jax.tree.unflatten(jax.tree.structure(params), [text(name) for name in names])
