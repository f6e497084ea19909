"""How a pretrained model is to be fine-tuned, as plain values that every trainer can follow.

A `Policy` says it in general; `course(tensors, policy)` works it out for one model: for each tensor
from which epoch on it learns (or that it never does), at what share of the learning rate, and
whether weight decay acts on it. The plugs (`regraft.tuning.torch`, `.lightning`, `.transformers`,
`.keras`, `.optax`) carry a Course out in the trainers that people use.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from regraft.errors import RuleMatchedNothing, TargetError
from regraft.rules import matches, matches_any
from regraft.tensors import TensorInfo
from regraft.tuning.depths import depths

BatchNorm = Literal["train", "freeze", "recalibrate", "adapt"]
# What layers that normalize by batches call what they keep of them, in all frameworks.
_STATISTICS = frozenset(
    {"running_mean", "running_var", "num_batches_tracked", "moving_mean", "moving_variance"}
)


@dataclass(frozen=True)
class Policy:
    """What learns, when, and how fast. The default is plain fine-tuning of everything.

    Templates are those of rules: `*` stands for any characters, `{i}` for a number.

    **What is frozen:**

    - `freeze`: templates of tensors that never learn. `unfreeze`: exceptions from it.
    - `freeze_depth`: units of depth, from the input, that never learn; below 0: all but so many.
    - `linear_probe`: only the head ever learns.
    - `batchnorm`: what becomes of statistics: `train` (they follow the data wherever the layer
      learns), `freeze` (they stay as they were pretrained everywhere), `recalibrate` (measured
      anew on the new data after training), `adapt` (measured on the new data before training and
      then frozen: AdaBN, Li et al. 2016, Revisiting Batch Normalization For Practical Domain
      Adaptation). A layer whose own parameters are all frozen keeps its statistics under `train`.

    **When it learns:**

    - `probe_epochs`: so long only the head learns, then all of it: LP-FT (Kumar et al. 2022,
      Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution).
    - `thaw_every`: gradual unfreezing: from the head down one more unit every so many epochs
      (ULMFiT; Howard & Ruder 2018, Universal Language Model Fine-tuning for Text Classification).

    **How fast:**

    - `head_lr`: factor on the head's learning rate.
    - `layer_decay`: factor per unit of depth below the head: layer-wise decay (Clark et al. 2020,
      ELECTRA; Bao et al. 2021, BEiT).
    - `rates`: discriminative rates: pairs of a template and a factor; the last that matches counts.
    - `decay_norms`: whether weight decay acts on norms and biases as well; commonly not.

    **Where it is pulled to, and what is kept:**

    - `l2_sp`: strength α of ½α‖w − w⁰‖² towards the pretrained values, and `l2_sp_fresh` β of
      ½β‖w‖² on what is fresh (Li et al. 2018, Explicit Inductive Bias for Transfer Learning with
      Convolutional Networks). α needs the values: a `Reference`.
    - `ema`: decay of an exponential moving average of the weights, 0 for none (Polyak & Juditsky
      1992, Acceleration of Stochastic Approximation by Averaging); the average is what is kept.

    **The model:**

    - `head`: templates of the head; what is fresh where there are none.
    - `towers`: templates of networks that stand side by side, whose depths are counted apart.
    """

    freeze: tuple[str, ...] = ()
    unfreeze: tuple[str, ...] = ()
    freeze_depth: int = 0
    linear_probe: bool = False
    batchnorm: BatchNorm = "train"
    probe_epochs: int = 0
    thaw_every: int = 0
    head_lr: float = 1.0
    layer_decay: float = 1.0
    rates: tuple[tuple[str, float], ...] = ()
    decay_norms: bool = False
    l2_sp: float = 0.0
    l2_sp_fresh: float = 0.0
    ema: float = 0.0
    head: tuple[str, ...] = ()
    towers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("freeze", "unfreeze", "head", "towers"):
            if isinstance(getattr(self, name), str):
                raise TargetError(f"Policy.{name}", found="a string", expected="a tuple of strings")
        limits = {"layer_decay": (0, 1), "ema": (0, 1)}
        for name in ("head_lr", "layer_decay", "l2_sp", "l2_sp_fresh", "ema", "probe_epochs",
                     "thaw_every"):  # fmt: skip
            low, high = limits.get(name, (0, float("inf")))
            if not low <= getattr(self, name) <= high or self.ema == 1:
                raise TargetError(
                    f"Policy.{name}",
                    found=str(getattr(self, name)),
                    expected=f"a number between {low} and {high}",
                )
        if self.batchnorm not in ("train", "freeze", "recalibrate", "adapt"):
            raise TargetError(
                "Policy.batchnorm",
                found=repr(self.batchnorm),
                expected="train, freeze, recalibrate or adapt",
            )


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
) -> Course:
    """Works a policy out for a model.

    **Arguments:**

    - `tensors`: all of the model, in order of definition.
    - `fresh`: names without pretrained values (`receipt.fresh`).
    - `statistics`: names of what no gradient reaches; by the names' last words by default.
    - `ties`: groups of names that are one tensor; the first speaks for all.

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
    towers = [[n for n in names if matches(t, n)] for t in policy.towers]
    depth = depths(listed, head=known, towers=towers)
    by_role = {n for n in names if _leaf(n) in _STATISTICS}
    still = by_role if statistics is None else set(statistics)
    found = {t.name: _treatment(t, policy, depth, known) for t in listed if t.name not in still}
    for info in (t for t in listed if t.name in still):
        found[info.name] = _statistic(info.name, policy, depth[info.name], found)
    for group in ties:
        found |= {name: found[group[0]] for name in group if name in found and group[0] in found}
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
    decays = policy.decay_norms or (len(info.shape) > 1 and _leaf(name) != "bias")
    return Treatment(depth[name], since, rate, decays)


def _statistic(
    name: str, policy: Policy, depth: int, parameters: Mapping[str, Treatment]
) -> Treatment:
    """A statistic follows the data as soon as a parameter of its own layer learns."""
    owner = name[: len(name) - len(_leaf(name))]
    beside = [t.since for n, t in parameters.items() if n[: len(n) - len(_leaf(n))] == owner]
    starts = [since for since in beside if since is not None]
    since = min(starts, default=None)
    if not beside and not (policy.linear_probe or matches_any(policy.freeze, name)):
        since = 0  # a norm without scale and shift
    held = matches_any(policy.freeze, name) and not matches_any(policy.unfreeze, name)
    if held or policy.batchnorm in ("freeze", "adapt"):
        since = None
    return Treatment(depth, since, 1.0, False, True)


def _leaf(name: str) -> str:
    return name.replace("/", ".").rpartition(".")[2]


def _all_match(policy: Policy, names: Collection[str]) -> None:
    said = (*policy.freeze, *policy.unfreeze, *policy.head, *policy.towers)
    said += tuple(template for template, _ in policy.rates)
    idle = [t for t in said if not any(matches(t, name) for name in names)]
    if idle:
        raise RuleMatchedNothing(
            f"{idle[0]!r} in the policy",
            found="no tensor of such a name",
            expected=f"a template for names such as {next(iter(names), '')!r}",
            problems=idle,
        )
