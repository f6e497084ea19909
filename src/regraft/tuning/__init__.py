"""Fine-tuning inside the trainers that people already use; one file per trainer.

A `Policy` (`policies`) says what learns, when and how fast. Whoever has a trainer follows it
through a plug: `torch` (plain loops), `lightning`, `transformers`, `keras`, `optax`. Whoever has
none is given one: a trainer is a module named after the framework, with

- `EXTRA`: the extra of ours that installs it;
- `fit(job) -> Outcome`: trains the job's model in place, leaves it with the weights of its best
  epoch, and calls `job.each(epoch)` after every one.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from regraft.errors import MissingDependency, TargetError
from regraft.tuning.courses import Course, course
from regraft.tuning.policies import Policy

if TYPE_CHECKING:
    from pathlib import Path

    from regraft.receipts import Receipt
    from regraft.tuning.data import Data
    from regraft.tuning.receipts import TuningReceipt
    from regraft.tuning.references import Reference

__all__ = ["Course", "Epoch", "Policy", "Settings", "Tuned", "course"]


@dataclass(frozen=True)
class Settings:
    """How to train.

    - `epochs`: at most so many passes over the data. `batch_size`: samples per step and process.
    - `accumulate`: steps whose gradients are added up before one update.
    - `lr`: learning rate of AdamW; `"auto"`: found by a short run in which it grows (Smith 2017).
    - `weight_decay`: its decoupled decay. `clip`: largest norm of a gradient; 0: any.
    - `schedule`: the rate over all steps: `constant`, `linear` or `cosine` down to 0, after it has
      risen over the first `warmup` of them (a share).
    - `precision`: `32`, `bf16` or `16`: what layers compute in; weights stay as they are.
    - `patience`: stop after so many epochs without a better validation loss; `None`: never.
    - `seed`: of shuffling, dropout and whatever else draws. What a step draws depends on the seed
      and its number alone: two runs with one seed agree on one machine, and so does a run that
      was killed and goes on.
    """

    epochs: int = 10
    batch_size: int = 32
    lr: float | Literal["auto"] = 1e-3
    weight_decay: float = 0.0
    patience: int | None = None
    seed: int = 0
    accumulate: int = 1
    clip: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = 0.0
    precision: Literal["32", "bf16", "16"] = "32"

    def __post_init__(self) -> None:
        wrong = {
            "epochs": self.epochs < 1,
            "batch_size": self.batch_size < 1,
            "accumulate": self.accumulate < 1,
            "lr": self.lr != "auto" if isinstance(self.lr, str) else not self.lr > 0,
            "warmup": not 0 <= self.warmup < 1,
            "schedule": self.schedule not in ("constant", "linear", "cosine"),
            "precision": self.precision not in ("32", "bf16", "16"),
        }
        for name in (name for name, bad in wrong.items() if bad):
            raise TargetError(
                f"Settings.{name}",
                found=repr(getattr(self, name)),
                expected="a value as its documentation says",
            )

    def share(self, step: int, steps: int) -> float:
        """The factor on the rate at a step, from 0, of all `steps`."""
        rising = self.warmup * steps
        if step < rising:
            return (step + 1) / (rising + 1)
        done = (step - rising) / max(1.0, steps - rising)
        if self.schedule == "linear":
            return max(0.0, 1.0 - done)
        if self.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return 1.0


@dataclass(frozen=True)
class Epoch:
    """One row of the learning curve; validation values are `None` where there is no such data.

    `accuracy` is the share of right answers among validation samples, `f1` the mean F1 of its
    classes; both `None` in regression, where `mae` is the mean absolute error.
    """

    number: int
    loss: float
    val_loss: float | None = None
    accuracy: float | None = None
    f1: float | None = None
    mae: float | None = None

    @property
    def monitored(self) -> float:
        """What makes one epoch better than another: validation loss, or the training loss."""
        return self.loss if self.val_loss is None else self.val_loss

    def __str__(self) -> str:
        facts = {name: value for name, value in asdict(self).items() if name != "number"}
        told = "  ".join(
            f"{name} {value:.4f}" for name, value in facts.items() if value is not None
        )
        return f"epoch {self.number}  {told}"


@dataclass(frozen=True)
class Tuned:
    """What fine-tuning did.

    - `model`: the model with the weights of its best epoch.
    - `curve`: one Epoch each. `best`: number of the best one, from 1.
    - `trained`: by tensor, whether training was allowed to change it; for `rg.save`.
    - `training`: the settings as text; for `rg.save`.
    - `receipt`: hashes which show that what was frozen is the same bits.
    """

    model: object = field(repr=False)
    curve: tuple[Epoch, ...]
    best: int
    trained: Mapping[str, bool] = field(repr=False)
    training: Mapping[str, str] = field(repr=False)
    receipt: TuningReceipt = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "best": self.best,
            "curve": [asdict(epoch) for epoch in self.curve],
            "trained": dict(self.trained),
            "training": dict(self.training),
            "receipt": self.receipt.to_json(),
        }


@dataclass(frozen=True)
class Job:
    """What a trainer is to do.

    - `loading`: what loading gave. `reference`: the pretrained values, for L2-SP.
    - `each`: called with every finished epoch.
    - `folder`: where the last checkpoint is kept; a run that finds one there goes on from it.
    """

    model: Any
    data: Data
    settings: Settings
    policy: Policy
    loading: Receipt | None = None
    reference: Reference | None = None
    each: Callable[[Epoch], None] = lambda _: None
    folder: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What a trainer did. `lr` is the rate that was found or given."""

    curve: list[Epoch]
    course: Course
    receipt: TuningReceipt
    lr: float


class Trainer(Protocol):
    """The face of a trainer module; see this package's docstring."""

    EXTRA: str

    @staticmethod
    def fit(job: Job) -> Outcome: ...


def trainer_of(framework: str) -> Trainer:
    """The trainer for a framework. **Raises** `MissingDependency` where there is none."""
    try:
        return importlib.import_module(f"{__name__}.{framework}_trainer")  # pyright: ignore[reportReturnType]
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library != "regraft":
            raise MissingDependency(library, extra="tune", purpose="fine-tuning") from error
        raise TargetError(
            framework or "unknown framework",
            found="no trainer for this framework",
            expected="a PyTorch or a Keras model",
            hint="JAX: regraft.tuning.optax makes an optimizer that follows a policy",
        ) from error
    except (RuntimeError, ImportError) as error:  # what its own dependencies raise when they clash
        raise TargetError(
            f"the trainer for {framework}",
            found=f"{type(error).__name__}: {error}",
            expected="libraries that work together",
            hint="reinstall the named library for the version of the framework that you have",
        ) from error


def best_of(curve: list[Epoch]) -> int:
    """Number of the first epoch with the lowest monitored loss; NaN is never the best."""
    finite = [epoch for epoch in curve if epoch.monitored == epoch.monitored]
    return min(finite or curve, key=lambda epoch: epoch.monitored).number


def stopped(curve: list[Epoch], settings: Settings) -> bool:
    """Whether training ends here: all epochs done, no better one for too long, or no number."""
    if not curve:
        return False
    last = curve[-1]
    waited = last.number - best_of(curve)
    tired = settings.patience is not None and waited >= max(1, settings.patience)
    return last.number >= settings.epochs or tired or not math.isfinite(last.monitored)
