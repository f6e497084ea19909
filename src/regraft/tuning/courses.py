"""A Policy worked out for one model: what each tensor does, epoch by epoch."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from regraft.errors import RuleMatchedNothing, TargetError
from regraft.rules import matches, matches_any
from regraft.tensors import Order, TensorInfo
from regraft.tuning.depths import defined, depths
from regraft.tuning.policies import Policy

# What layers that normalize by batches call what they keep of them, in all frameworks.
_STATISTICS = frozenset(
    {"running_mean", "running_var", "num_batches_tracked", "moving_mean", "moving_variance"}
)
# Classes of layers that normalize, and of those that have such a word in their name and mix.
_NORM = re.compile("norm", re.IGNORECASE)
_MIXES = re.compile("linear|dense|conv|normed|embed", re.IGNORECASE)


class Treatment(NamedTuple):
    """What a Course does with one tensor.

    - `depth`: see `depths`. `since`: the epoch, from 0, from which it learns; `None`: never.
    - `rate`: factor on the learning rate. `decays`: whether weight decay acts on it.
    - `statistic`: it is no parameter: no gradient reaches it, it follows the data.
    """

    depth: int
    since: int | None
    rate: float
    decays: bool
    statistic: bool = False

    def learns(self, epoch: int) -> bool:
        return self.since is not None and epoch >= self.since


@dataclass(frozen=True)
class Course(Mapping[str, Treatment]):
    """A Policy worked out for one model: a Treatment by tensor.

    `fresh` are the tensors without pretrained values, `head` those of the head.
    """

    policy: Policy
    treatments: Mapping[str, Treatment] = field(repr=False)
    head: frozenset[str] = frozenset()
    fresh: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> Treatment:
        return self.treatments[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.treatments)

    def __len__(self) -> int:
        return len(self.treatments)

    @property
    def frozen(self) -> list[str]:
        """What is the same bits after training as before it."""
        measured = self.policy.batchnorm == "recalibrate"
        return [n for n, t in self.items() if t.since is None and not (t.statistic and measured)]

    def learning(self, epoch: int) -> list[str]:
        """What learns in this epoch, from 0."""
        return [name for name, treatment in self.items() if treatment.learns(epoch)]

    @property
    def steps(self) -> list[int]:
        """The epochs at which something starts to learn."""
        return sorted({t.since for t in self.values() if t.since is not None})

    def __str__(self) -> str:
        rows = [f"{'depth':>5}  {'learns':<12} {'rate':<8} {'decay':<6} tensors"]
        groups: dict[Treatment, list[str]] = {}
        for name, t in self.items():
            groups.setdefault(t, []).append(name)
        for key, names in sorted(groups.items(), key=lambda item: item[0][0]):
            depth, since, rate, decays, statistic = key
            when = "never" if since is None else f"from epoch {since + 1}"
            shown = "" if statistic or since is None else f"{rate:g}"
            told = f"{names[0]}" + (f" … {names[-1]} ({len(names)})" if len(names) > 1 else "")
            kind = "data" if statistic else "yes" if decays else "no"
            rows.append(f"{depth:>5}  {when:<12} {shown:<8} {kind:<6} {told}")
        return "\n".join(rows)


def course(
    tensors: Iterable[TensorInfo],
    policy: Policy,
    *,
    fresh: Collection[str] = (),
    statistics: Collection[str] | None = None,
    ties: Iterable[tuple[str, ...]] = (),
    order: Order = "definition",
    layer: Callable[[str], str] | None = None,
) -> Course:
    """Works a policy out for a model.

    **Arguments:**

    - `tensors`: all of the model, in order of definition.
    - `fresh`: names without pretrained values (`receipt.fresh`).
    - `statistics`: names of what no gradient reaches; by the names' last words by default.
    - `order`: of the tensors, as in a Catalogue.
    - `layer`: the layer that a name belongs to; what stands before its last part by default.
    - `ties`: groups of names that are one tensor; it is frozen where any of them is, and the first
      speaks for the rest.

    **Raises** `RuleMatchedNothing` for a template that names nothing; `TargetError` where a head
    is needed and none is known, or where nothing would learn.
    """
    listed = list(tensors)
    names = [t.name for t in listed]
    _all_match(policy, names)
    known = (
        {n for n in names if matches_any(policy.head, n)}
        if policy.head
        else set(fresh) & set(names)
    )
    if not known and (policy.linear_probe or policy.probe_epochs or policy.head_lr != 1):
        raise TargetError(
            "the policy",
            found="a model of which no tensor is fresh, and no head is named",
            expected="a head, which learns first, alone or faster",
            hint="load with fresh=['head.*'] and give receipt=, or Policy(head=('head.*',))",
        )
    by_role = {n for n in names if _leaf(n) in _STATISTICS}
    still = by_role if statistics is None else set(statistics)
    layer_of = layer or _layer
    beside = _by_layer((n for n in names if n not in still), layer_of)
    deep = policy.layer_decay != 1 or policy.freeze_depth or policy.thaw_every
    # Statistics are as deep as the parameters of their layer.
    chain = [t for t in listed if t.name not in still or layer_of(t.name) not in beside]
    if order == "sorted" and deep:
        stem = {name for name in names if matches_any(policy.stem, name)}
        chain = defined([t for t in chain if t.name not in still], stem=stem, head=known)
    towers = [[n for n in names if matches(t, n)] for t in policy.towers]
    depth = depths(chain, head=known, towers=towers)
    for name in [name for name in names if name not in depth]:
        own = [depth[n] for n in beside.get(layer_of(name), ())]
        depth[name] = min(own, default=max(depth.values()))
    found = {t.name: _treatment(t, policy, depth, known) for t in listed if t.name not in still}
    for info in (t for t in listed if t.name in still):
        alone = _treatment(info._replace(kind="weight"), policy, depth, known)
        parameters = [found[n] for n in beside.get(layer_of(info.name), ())]
        found[info.name] = _statistic(info.name, policy, alone, parameters)
    for group in (tuple(name for name in tied if name in found) for tied in ties):
        held = any(found[name].since is None for name in group)
        found |= {
            n: found[group[0]]._replace(since=None) if held else found[group[0]] for n in group
        }
    if not any(t.since is not None and not t.statistic for t in found.values()):
        raise TargetError(
            "the policy", found="a policy that freezes every tensor", expected="something to learn"
        )
    ordered = {name: found[name] for name in names}
    return Course(policy, ordered, frozenset(known), frozenset(fresh) & frozenset(names))


def _treatment(
    info: TensorInfo, policy: Policy, depth: Mapping[str, int], head: Collection[str]
) -> Treatment:
    name, top = info.name, max(depth.values())
    below = top - depth[name]
    held = policy.freeze_depth if policy.freeze_depth >= 0 else top + 1 + policy.freeze_depth
    said = matches_any(policy.freeze, name) or depth[name] < held
    since: int | None = policy.probe_epochs
    if name in head:
        since = 0
    elif policy.linear_probe:
        since = None
    elif policy.thaw_every:
        # Right after the probe, or else one step after the head, comes the unit next to it.
        steps = below - 1 if policy.probe_epochs and below else below
        since = policy.probe_epochs + steps * policy.thaw_every
    if (said and not matches_any(policy.unfreeze, name)) or info.kind != "weight":
        since = None
    rate = policy.layer_decay**below
    rate *= policy.head_lr if name in head else 1.0
    rate *= next((factor for t, factor in reversed(policy.rates) if matches(t, name)), 1.0)
    decays = policy.decay_norms or not (len(info.shape) <= 1 or _norm_or_bias(info))
    return Treatment(depth[name], since, rate, decays)


def _statistic(
    name: str, policy: Policy, alone: Treatment, parameters: Collection[Treatment]
) -> Treatment:
    """A statistic follows the data as soon as a parameter of its own layer learns; where the layer
    has none (a norm without scale and shift), unless a parameter there would be frozen (`alone`).
    """
    starts = [t.since for t in parameters if t.since is not None]
    since = min(starts, default=None)
    if not parameters and alone.since is not None:
        since = 0
    held = matches_any(policy.freeze, name) and not matches_any(policy.unfreeze, name)
    if held or policy.batchnorm in ("freeze", "adapt"):
        since = None
    return Treatment(alone.depth, since, 1.0, False, True)


def _norm_or_bias(info: TensorInfo) -> bool:
    """Whether a tensor of several axes is what norms scale and shift by, or added to something, by
    its layer's class or its own name (`bias_k`, `relative_position_bias_table`)."""
    norm = _NORM.search(info.module) and not _MIXES.search(info.module)
    leaf = _leaf(info.name)
    return bool(norm) or leaf == "scale" or bool({"bias", "biases"} & set(leaf.split("_")))


def _layer(name: str) -> str:
    return name[: len(name) - len(_leaf(name))]


def _by_layer(names: Iterable[str], layer: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(layer(name), []).append(name)
    return found


def _leaf(name: str) -> str:
    return name.replace("/", ".").rpartition(".")[2]


def _all_match(policy: Policy, names: Collection[str]) -> None:
    said = (*policy.freeze, *policy.unfreeze, *policy.head, *policy.towers, *policy.stem)
    said += tuple(template for template, _ in policy.rates)
    idle = [t for t in said if not any(matches(t, name) for name in names)]
    if idle:
        raise RuleMatchedNothing(
            f"{idle[0]!r} in the policy",
            found="no tensor of such a name",
            expected=f"a template for names such as {next(iter(names), '')!r}",
            problems=idle,
        )
