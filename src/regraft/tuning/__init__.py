"""Fine-tuning inside the trainers that people already use; one file per trainer.

A trainer is a module named after the framework, with

- `EXTRA`: the extra of ours that installs it;
- `fit(model, data, settings, each) -> list[Epoch]`: trains the model in place, leaves it with the
  weights of its best epoch, and calls `each(epoch)` after every one. Which tensors learn was set
  before, through the target.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from regraft.errors import MissingDependency, TargetError

if TYPE_CHECKING:
    from regraft.tuning.data import Data


@dataclass(frozen=True)
class Settings:
    """How to train.

    - `epochs`: at most so many passes over the data. `batch_size`: samples per step.
    - `lr`: learning rate of AdamW. `weight_decay`: its decoupled decay.
    - `patience`: stop after so many epochs without a better validation loss; `None`: never.
    - `seed`: of shuffling, dropout and whatever else draws; two runs with one seed agree on one
      machine.
    """

    epochs: int = 10
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.0
    patience: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """One row of the learning curve; validation values are `None` where there is no such data.

    `accuracy` is the share of right answers among validation samples, `None` in regression.
    """

    number: int
    loss: float
    val_loss: float | None = None
    accuracy: float | None = None

    @property
    def monitored(self) -> float:
        """What makes one epoch better than another: validation loss, or the training loss."""
        return self.loss if self.val_loss is None else self.val_loss

    def __str__(self) -> str:
        facts = {"loss": self.loss, "val_loss": self.val_loss, "accuracy": self.accuracy}
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
    """

    model: object = field(repr=False)
    curve: tuple[Epoch, ...]
    best: int
    trained: Mapping[str, bool] = field(repr=False)
    training: Mapping[str, str] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "best": self.best,
            "curve": [asdict(epoch) for epoch in self.curve],
            "trained": dict(self.trained),
            "training": dict(self.training),
        }


class Trainer(Protocol):
    """The face of a trainer module; see this package's docstring."""

    EXTRA: str

    @staticmethod
    def fit(
        model: Any, data: Data, settings: Settings, each: Callable[[Epoch], None]
    ) -> list[Epoch]: ...


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
