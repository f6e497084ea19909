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

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import optax

from regraft.receipts import Receipt
from regraft.targets import jax as jax_target
from regraft.targets._jax_trees import leaf_names
from regraft.tuning.courses import Course, course
from regraft.tuning.policies import Policy
from regraft.tuning.receipts import TuningReceipt, Watch
from regraft.tuning.references import Reference, pulls


def course_of(params: Any, policy: Policy, receipt: Receipt | None = None) -> Course:
    """A policy worked out for a tree of parameters, whose keys joined with `/` are the names."""
    catalogue = jax_target.skeleton(params)
    statistics = [name for name in catalogue if name.startswith("batch_stats/")]
    fresh = receipt.fresh if receipt else ()
    return course(
        catalogue.values(), policy, fresh=fresh, statistics=statistics, order=catalogue.order
    )


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
    - `epoch`: from 0: what learns in it alone; a policy that lets more learn later needs
      `optimizer.init` anew at each of `course.steps`. `None`: all that ever learns.
    - `reference`: the pretrained values, for L2-SP; they are constants of a compiled step.

    **Raises** `TargetError` for L2-SP without a reference.
    """
    tree = labels(course, params, epoch)
    found: dict[Hashable, optax.GradientTransformation] = {"frozen": optax.set_to_zero()}
    for label in sorted(set(jax.tree.leaves(tree)) - {"frozen"}):
        rate, _, bare = label.partition(" ")
        found[label] = make(float(rate), 0.0 if bare else weight_decay)
    chosen: Any = optax.partition(found, tree)
    pulled = pulls(course, reference)
    return optax.chain(_pull(pulled), chosen) if pulled else chosen


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


def _by_name(params: Any, text: Callable[[str], str]) -> Any:
    """A tree like `params` of texts made from names."""
    names = leaf_names(params)
    return jax.tree.unflatten(jax.tree.structure(params), [text(name) for name in names])
