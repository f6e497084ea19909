"""JAX: trees of arrays (linen, Haiku, Equinox, plain ones) and Flax NNX modules.

Arrays of JAX do not change: a tree is built anew, and `receipt.model` is the new one. An NNX module
is set in place.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from regraft.errors import TargetError
from regraft.sinks import Sink
from regraft.targets import _jax_arrays, _jax_taps, _jax_trees, _nnx
from regraft.targets._outputs import leaves_of
from regraft.tensors import Skeleton

if TYPE_CHECKING:
    from regraft.calls import Taps
    from regraft.targets import Inputs
    from regraft.tensors import Array


def owns(model: object) -> bool:
    if sys.modules.get("jax") is None or isinstance(model, type):
        return False
    return _nnx.is_module(model) or _is_linen(model) or _jax_trees.holds_arrays(model)


def _is_linen(model: object) -> bool:
    linen = sys.modules.get("flax.linen")
    return linen is not None and isinstance(model, linen.Module)


def is_bound(model: object) -> bool:
    """Whether it is a linen module with its variables, as `module.bind(variables)` gives it."""
    return _is_linen(model) and getattr(model, "scope", None) is not None


def _variables(model: Any) -> Any:
    return model.variables


def taps(model: object) -> Taps | None:
    """A Flax module, or a tree that a function of the caller runs, under observation."""
    if _nnx.is_module(model):
        return _jax_taps.NnxTaps(model)
    return _jax_taps.LinenTaps(model) if "flax" in sys.modules else None


def skeleton(model: object) -> Skeleton:
    """The arrays, named by the keys that lead to them joined with `/`.

    **Raises** `TargetError` for a linen module that is not bound, which holds no arrays.
    """
    if is_bound(model):
        return _jax_trees.skeleton(_variables(model))
    if _is_linen(model):
        raise TargetError(
            type(model).__name__,
            found="a linen module, which holds no arrays",
            expected="its variables",
            hint="give variables = module.init(key, x), or its shapes by jax.eval_shape, and take "
            "the new ones from receipt.model",
        )
    return _nnx.skeleton(model) if _nnx.is_module(model) else _jax_trees.skeleton(model)


def abstract(model: object) -> bool:
    """Whether some arrays are shapes without values, as `jax.eval_shape` gives them."""
    import jax

    leaves = jax.tree_util.tree_leaves(model)
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


def sink(model: object) -> Sink:
    """Sets an NNX module's variables in place, or builds a new tree of the same structure. Sharded
    arrays keep their sharding: each device is sent its own slice only."""
    if is_bound(model):
        return _jax_trees.TreeSink(_variables(model))
    return _nnx.ModuleSink(model) if _nnx.is_module(model) else _jax_trees.TreeSink(model)


def run(model: object, inputs: Inputs) -> dict[str, Array]:
    """Outputs of an NNX module in evaluation mode, or of a tree that can be called (Equinox).

    **Raises** `TargetError` for a tree of arrays, which cannot.
    """
    live: Any = model
    if _nnx.is_module(model):
        live = _nnx.evaluating(model)
    elif isinstance(model, (Mapping, list, tuple)) or not callable(model):
        raise TargetError(
            "a JAX tree",
            found="arrays without the function that uses them",
            expected="a way to run them",
            hint="give rg.Probe(run=lambda tree: apply(tree, x), outputs=y)",
        )
    elif (equinox := sys.modules.get("equinox")) is not None:
        live = equinox.nn.inference_mode(model)
    if isinstance(inputs, dict):
        result = live(**inputs)
    else:
        result = live(*inputs) if isinstance(inputs, tuple) else live(inputs)
    return {n: _jax_arrays.to_numpy(leaf, n) for n, leaf in leaves_of(result)}


def outputs_of(value: Any) -> dict[str, Array]:
    """Outputs of any nesting by name."""
    return {n: _jax_arrays.to_numpy(leaf, n) for n, leaf in leaves_of(value)}


def trainable(model: object, names: Collection[str]) -> None:
    """A tree has no flags. **Raises** `TargetError`."""
    raise TargetError(
        "a JAX model",
        found="arrays without trainable flags",
        expected="a mask for the optimizer",
        hint="give optax.masked a tree of booleans",
    )
