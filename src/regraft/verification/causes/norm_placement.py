"""A norm stands elsewhere: before a branch (pre-norm), after the sum (post-norm), on the branch's
result, or after the activation instead of before it.

Tried with the flag of the module where it has one, and with the block's own modules put together
in the other orders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

from regraft.calls import Composed, Entered, InFunction, Rewritten, Setting
from regraft.verification.causes._activations import NAMES, activation
from regraft.verification.causes._scene import Hypothesis, Scene, in_forward, where
from regraft.verification.closeness import nearest
from regraft.verification.kinds_of_modules import is_activation, is_norm

_FLAGS = ("norm_first", "pre_norm", "prenorm", "normalize_before", "is_pre_norm", "post_norm",
          "postnorm", "do_layer_norm_before", "apply_residual_connection_post_layernorm",
          "use_post_norm", "norm_before", "pre_ln")  # fmt: skip
_WRONG = 1e-4
Call = Callable[[str, Any], Any]
Branch = tuple[str, tuple[str, ...]]


def propose(scene: Scene) -> Iterable[Hypothesis]:
    for path in scene.inner():
        settings = scene.modules[path].settings
        for name in _FLAGS:
            if isinstance(settings.get(name), bool):
                yield Hypothesis(
                    "norm-placement", (Setting(path, {name: not settings[name]}),), (path,),
                    f"{name} {not settings[name]}", f"{where(path)}.{name} = {not settings[name]}",
                )  # fmt: skip
        yield from _orders(scene, path)
        yield from _around_functions(scene, path)


def _orders(scene: Scene, path: str) -> Iterator[Hypothesis]:
    """Programs of the modules that the block calls, by their order in it."""
    called = list(scene.called(path))
    norms = [c for c in called if is_norm(scene.modules[c])]
    # A norm that is given the right values stands where it has to.
    if not any(scene.input_errors.get(norm, 0.0) > _WRONG for norm in norms):
        return
    for branches in _branches(called, norms):
        # What the code does between a branch's modules would be left out.
        if not all(_is_chain(scene, members) for _, members in branches):
            continue
        if len(branches) > 1:
            yield _composed(scene, path, "before the branches, side by side", _parallel(branches))
        for text, program in _PROGRAMS.items():
            yield _composed(scene, path, text, _program(program, branches))
    yield from _chains(scene, path, called)


def _branches(called: list[str], norms: list[str]) -> Iterator[list[Branch]]:
    """Each norm with the modules of its branch: those after it, or those before it."""
    members = [child for child in dict.fromkeys(called) if child not in norms]
    if len(members) == len(norms):
        yield [(n, (m,)) for n, m in zip(norms, members, strict=True)]
        if len(norms) == 2:
            yield [(norms[1], (members[0],)), (norms[0], (members[1],))]
    after: dict[str, list[str]] = {n: [] for n in norms}
    before: dict[str, list[str]] = {n: [] for n in norms}
    for index, child in enumerate(called):
        if child in norms:
            continue
        behind = [n for n in called[:index] if n in norms]
        ahead = [n for n in called[index:] if n in norms]
        if behind:
            after[behind[-1]].append(child)
        if ahead:
            before[ahead[0]].append(child)
    for groups in (after, before):
        if all(groups.values()):
            yield [(n, tuple(groups[n])) for n in norms]


def _is_chain(scene: Scene, members: tuple[str, ...]) -> bool:
    """Whether each module is given what the one before made, as far as that is known."""
    for one, two in pairwise(members):
        made, given = scene.values.get(("output", one)), scene.values.get(("input", two))
        if made and given and nearest(made[0], given[0])[0] > _WRONG:
            return False
    return True


def _parallel(branches: list[Branch]) -> Callable[[Any, Call], Any]:
    """Branches of the same value, whose results are added at once."""

    def run(x: Any, call: Call) -> Any:
        total = x
        for norm, members in branches:
            value = call(norm, x)
            for member in members:
                value = call(member, value)
            total = total + value
        return total

    return run


def _program(program: Any, branches: list[Branch]) -> Callable[[Any, Call], Any]:
    def run(x: Any, call: Call) -> Any:
        for norm, members in branches:

            def branch(value: Any, members: tuple[str, ...] = members) -> Any:
                for member in members:
                    value = call(member, value)
                return value

            x = program(x, lambda value, norm=norm: call(norm, value), branch)
        return x

    return run


_PROGRAMS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "before the branches": lambda x, norm, branch: x + branch(norm(x)),
    "after the sums": lambda x, norm, branch: norm(x + branch(x)),
    "on the branches' results": lambda x, norm, branch: x + norm(branch(x)),
    "before the branches, and the sum with what was normalised": lambda x, norm, branch: _with(
        norm(x), branch
    ),
    "after the branches, without a sum": lambda x, norm, branch: norm(branch(x)),
    "before the branches, without a sum": lambda x, norm, branch: branch(norm(x)),
}


def _with(normed: Any, branch: Any) -> Any:
    return normed + branch(normed)


def _chains(scene: Scene, path: str, called: list[str]) -> Iterator[Hypothesis]:
    """A norm and its neighbour in a plain chain, exchanged."""
    for index, (first, second) in enumerate(pairwise(called)):
        one, two = scene.modules[first], scene.modules[second]
        if is_norm(one) == is_norm(two) or not (is_activation(one) or is_activation(two)):
            continue
        order = [*called]
        order[index], order[index + 1] = second, first

        def run(x: Any, call: Call, order: tuple[str, ...] = tuple(order)) -> Any:
            for member in order:
                x = call(member, x)
            return x

        said = "after the activation" if is_norm(one) else "before the activation"
        yield _composed(scene, path, said, run)


def _around_functions(scene: Scene, path: str) -> Iterator[Hypothesis]:
    """A norm and an activation that the code calls as a function, exchanged."""
    kind, norm, _ = scene.site.place
    if kind != "input" or norm not in scene.modules or not is_norm(scene.modules[norm]):
        return
    for call in scene.calls("relu", "gelu", "silu", "relu6", "leaky_relu", "hardswish", "tanh"):
        if call.path != path:
            continue
        names = [n for n in NAMES if n.startswith(call.name.removesuffix("_"))]
        without = InFunction(call.path, call.name, call.number, instead=lambda t, _: t[0])
        for name in names:
            act = activation(name)
            later = Rewritten(norm, lambda _, out, act=act: [act(out[0]), *out[1:]])
            sooner = Entered(norm, lambda given, act=act: [act(given[0]), *given[1:]])
            for edit, said in ((later, "before"), (sooner, "after")):
                yield Hypothesis(
                    "norm-placement", (without, edit), (path,), f"norms {said} the activation",
                    f"{in_forward(path)}: {norm} {said} the activation",
                )  # fmt: skip


def _composed(scene: Scene, path: str, text: str, run: Any) -> Hypothesis:
    return Hypothesis(
        "norm-placement", (Composed(path, run),), (path,), f"norms {text}",
        f"{in_forward(path)}: norms {text}",
    )  # fmt: skip
