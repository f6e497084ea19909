"""How a pretrained model is to be fine-tuned, as plain values that every trainer can follow.

A `Policy` says it in general; `course(tensors, policy)` works it out for one model: for each tensor
from which epoch on it learns (or that it never does), at what share of the learning rate, and
whether weight decay acts on it. The plugs (`regraft.tuning.torch`, `.lightning`, `.transformers`,
`.keras`, `.optax`) carry a Course out in the trainers that people use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regraft.errors import TargetError

BatchNorm = Literal["train", "freeze", "recalibrate", "adapt"]


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
    - `ema`: decay d of an exponential moving average m of the weights w, 0 for none (Polyak &
      Juditsky 1992, Acceleration of Stochastic Approximation by Averaging); the average is what is
      kept. It begins at the weights before training; step n, from 1, sets m to δm + (1 - δ)w with
      δ = min(d, n / (n + 9)): the first steps weigh less, so that the start (of a fresh head, at
      random) does not weigh on a short run.

    **The model:**

    - `head`: templates of the head; what is fresh where there are none.
    - `towers`: templates of networks that stand side by side, whose depths are counted apart.
    - `stem`: templates of what comes before the blocks, where the order in which layers were made
      is not known (trees of JAX that were rebuilt are sorted by name).
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
    stem: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("freeze", "unfreeze", "head", "towers", "stem"):
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


def decay_at(step: int, decay: float) -> float:
    """The factor on a moving average at a step, from 1; see `Policy.ema`."""
    return min(decay, step / (step + 9))
