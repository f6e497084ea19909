"""Which part of a file is opened. Files nest: weights beside an optimizer, raw weights beside an
average.

The rule:

1. Parts named after optimizers, schedulers and the like (`NEVER`) are never chosen unasked.
2. Of the parts whose name is in `CONTAINERS`, the first in that order is chosen; the others are
   named in `notes`. Tensors that lie loose beside it (`epoch`) stay outside.
3. A chosen part that holds such a part in turn, and no other, is searched again:
   `{"model": {"state_dict": …}}` opens `model/state_dict`.
4. Where no part has such a name, everything but rule 1 is taken together, names prefixed. So it
   is where the part is a tree of modules among others and not a flat state dict, as in Flax'
   `{"params": …, "batch_stats": …}`.

A plain state dict, whose keys merely contain dots, is no nesting: its container is `""`.
`container="ema"` (`--container ema`) chooses otherwise, `container=""` takes the whole file.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from regraft.errors import FormatError

# Parts that hold a model's weights, most wanted first; averages after the weights themselves.
CONTAINERS = (
    "state_dict", "model_state_dict", "model_state", "model", "model_weights", "module", "net",
    "network", "params", "parameters", "weights",
    "ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "model_ema_state_dict",
    "params_ema", "ema_params", "ema_weights",
)  # fmt: skip
# Patterns of parts that hold training state.
NEVER = (
    "optimizer*", "*_optimizer", "*_optimizers", "optim", "optim_*", "optimizers", "opt_state*",
    "opt", "*scheduler*", "lr_sched*", "scaler", "*_scaler", "loss_scaler*", "rng*", "*rng_state*",
    "amp", "amp_state*", "callbacks", "loops", "hparams", "hyper_parameters", "bookkeeping",
)  # fmt: skip
_SHOWN = 20


class Choice(NamedTuple):
    """A part of the file: a path prefix, without the names right below it that stay out."""

    prefix: tuple[str, ...]
    without: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def holds(self, path: tuple[str, ...]) -> bool:
        depth = len(self.prefix)
        if path[:depth] != self.prefix or len(path) == depth:
            return False
        return len(path) == depth + 1 or path[depth] not in self.without


class Tree:
    """The nesting of a file: for each part its inner parts, and how many tensors lie below."""

    def __init__(self, paths: Iterable[tuple[str, ...]]) -> None:
        self.count: Counter[tuple[str, ...]] = Counter()
        self._inner: dict[tuple[str, ...], dict[str, None]] = {}
        self._flat: set[tuple[str, ...]] = set()
        for path in paths:
            self._flat.add(path[:-1])
            for depth in range(len(path)):
                self.count[path[:depth]] += 1
                if depth:
                    self._inner.setdefault(path[: depth - 1], {})[path[depth - 1]] = None

    def parts(self, prefix: tuple[str, ...]) -> list[str]:
        return list(self._inner.get(prefix, ()))

    def known(self, prefix: tuple[str, ...]) -> list[str]:
        return sorted(
            (part for part in self.parts(prefix) if part in CONTAINERS), key=CONTAINERS.index
        )

    def others(self, prefix: tuple[str, ...]) -> list[str]:
        """Parts whose names say nothing."""
        return [p for p in self.parts(prefix) if p not in CONTAINERS and not never(p)]

    def flat(self, prefix: tuple[str, ...]) -> bool:
        """Whether a part is a state dict, or wraps one, rather than a tree of modules."""
        if prefix in self._flat:
            return True
        return any(self.flat((*prefix, part)) for part in self.known(prefix))

    def containers(self) -> dict[str, int]:
        """Parts that could be chosen, with their tensors; `""` where tensors lie at the root."""
        found = {"": self.count[()]} if () in self._flat else {}
        pending = [(part,) for part in self.parts(())]
        for prefix in pending:
            found["/".join(prefix)] = self.count[prefix]
            pending += [(*prefix, part) for part in self.known(prefix)]
        return found


def never(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in NEVER)


def asked(label: str, tree: Tree, wanted: str) -> Choice:
    """The part that the caller named."""
    prefix = tuple(part for part in wanted.split("/") if part)
    # A part's own name may contain the slash.
    exact = next((p for p in tree.count if "/".join(p) == wanted.strip("/")), prefix)
    if exact and exact not in tree.count:
        listed = [part for part in tree.containers() if part]
        raise FormatError(
            f"{label}, container {wanted!r}",
            found="no such part",
            expected=", ".join(listed[:_SHOWN]) or "none: all tensors lie at the root",
            hint="leave the container out, and the file's weights are found by rule",
        )
    return Choice(_unwrapped(tree, exact)) if exact else Choice(())


def chosen(tree: Tree) -> Choice:
    """The part that the rule of this module finds."""
    known = tree.known(())
    left_out = [part for part in tree.parts(()) if never(part)]
    together = tree.others(())
    if not known or (together and not tree.flat((known[0],))):
        passed = [*known[1:], *left_out]
        if not known and not together and not tree.flat(()):
            return Choice(())  # nothing but training state: better that than nothing
        return Choice((), frozenset(passed), _left_out(passed))
    prefix = _unwrapped(tree, (known[0],))
    passed = [*known[1:], *together, *left_out]
    if not passed:
        return Choice(prefix)
    example = next(iter(passed))
    note = (
        f"opened {'/'.join(prefix)!r}; also there: {', '.join(passed[:_SHOWN])} "
        f"(container={example!r} or --container {example})"
    )
    return Choice(prefix, notes=(note,))


def _left_out(parts: list[str]) -> tuple[str, ...]:
    if not parts:
        return ()
    return (
        f"left out: {', '.join(parts[:_SHOWN])} (container={parts[0]!r} or --container {parts[0]})",
    )


def _unwrapped(tree: Tree, prefix: tuple[str, ...]) -> tuple[str, ...]:
    """Follows wrappers inside a chosen part, as long as they leave no other weights behind."""
    while True:
        known = tree.known(prefix)
        if not known or tree.others(prefix) or not tree.flat((*prefix, known[0])):
            return prefix
        prefix = (*prefix, known[0])
