"""Another activation, or one that is missing or one too many.

The two GELUs (with erf, and approximated by tanh) differ by 1e-4, SiLU and the quick GELU by more;
leaky ReLUs have slopes of 0.01 (PyTorch) and 0.2 or 0.3 (TensorFlow). Tried in the place of the
module, of the function in the code, of the layer's own setting, and before what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from regraft.calls import Entered, InFunction, Rewritten, Setting
from regraft.verification.causes._activations import NAMES, activation
from regraft.verification.causes._arrays import Array
from regraft.verification.causes._scene import Hypothesis, Scene, in_forward
from regraft.verification.closeness import noise
from regraft.verification.kinds_of_modules import is_activation

_FUNCTIONS = (
    "relu", "relu_", "gelu", "silu", "silu_", "relu6", "leaky_relu", "tanh", "sigmoid", "elu",
    "selu", "mish", "hardswish", "hardsigmoid", "hardtanh", "softplus", "swish", "softsign", "celu",
    "prelu", "quick_gelu", "hard_swish", "hard_sigmoid", "hard_silu", "exp",
)  # fmt: skip


def propose(scene: Scene) -> Iterable[Hypothesis]:
    modules = [p for p in scene.inner() if p and is_activation(scene.modules[p])]
    for path in modules:
        for name in NAMES:
            yield _of(path, name, Rewritten(path, _module(activation(name))))
    for call in scene.calls(*_FUNCTIONS):
        if call.path in modules:
            continue
        for name in NAMES:
            edit = InFunction(
                call.path, call.name, call.number, instead=_function(activation(name))
            )
            yield _of(call.path, name, edit)
    for path in scene.inner():
        if "activation" in scene.modules[path].settings:
            for name in NAMES:
                yield _of(path, name, Setting(path, {"activation": activation(name)}))
    yield from _missing(scene)
    yield from _between(scene)


def _between(scene: Scene) -> Iterable[Hypothesis]:
    """Code of several functions that is an activation: what follows is given an activation of what
    came before."""
    kind, path, _ = scene.site.place
    if kind != "input" or scene.site.source is None:
        return
    before = [c for c in scene.children.values() if 0 <= c.ended < scene.site.source.began]
    last = max(before, key=lambda call: call.ended, default=None)
    own = next((p for p, call in scene.children.items() if call is last), "")
    given = next(iter(scene.values.get(("output", own), [])), None)
    if given is None or given.shape != scene.site.actual.shape or given.dtype.kind != "f":
        return
    for name in NAMES[:-1]:
        made = activation(name)(given)
        yield Hypothesis(
            "activation", (Entered(path, lambda arrays, made=made: [made, *arrays[1:]]),),
            (scene.site.module,), f"activation {name}",
            f"{in_forward(scene.site.module)}: {name} before {path}",
        )  # fmt: skip


def _missing(scene: Scene) -> Iterable[Hypothesis]:
    """An activation that the target does not have: what it has there, through one, is what the
    source has."""
    site = scene.site
    if site.expected.shape != site.actual.shape or site.actual.dtype.kind != "f":
        return
    for name in NAMES[:-1]:
        made = activation(name)(site.actual)
        if np.abs(made - site.expected).max(initial=0.0) > 1e3 * noise(made) * (
            1 + np.abs(site.expected).max(initial=0.0)
        ):
            continue
        _, path, _ = site.place
        text = f"{name} is missing"
        if site.place[0] == "input":
            edit = Entered(path, _first(activation(name)))
            fix = f"{in_forward(site.module)}: {name} on what {path!r} is given"
        else:
            edit = Rewritten(path, lambda _, out, name=name: _first(activation(name))(out))
            fix = f"{in_forward(site.module)}: {name} on the result"
        yield Hypothesis("activation", (edit,), (site.module,), text, fix)


def _of(path: str, name: str, edit: Rewritten | InFunction | Setting) -> Hypothesis:
    fix = f"{in_forward(path)}: {name} in place of the present activation"
    return Hypothesis("activation", (edit,), (path,), f"activation {name}", fix)


def _module(
    function: Callable[[Array], Array],
) -> Callable[[list[Array], list[Array]], list[Array]]:
    return lambda inputs, outputs: [function(inputs[0]), *outputs[1:]]


def _function(function: Callable[[Array], Array]) -> Callable[[list[Array], Array], Array]:
    return lambda tensors, result: function(tensors[0]).astype(result.dtype)


def _first(function: Callable[[Array], Array]) -> Callable[[list[Array]], list[Array]]:
    return lambda arrays: [function(arrays[0]), *arrays[1:]]
