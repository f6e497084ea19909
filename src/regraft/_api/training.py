"""Fine-tuning a live model in place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from regraft import targets
from regraft._sides import Given, source_side, target_side
from regraft.errors import TargetError
from regraft.receipts import Receipt
from regraft.tuning import Epoch, Job, Policy, Settings, Tuned, best_of, logs, processes, trainer_of
from regraft.tuning import data as training_data
from regraft.tuning.references import Reference


def finetune(
    model: Given,
    data: Any,
    *,
    receipt: Receipt | None = None,
    policy: Policy | None = None,
    freeze: Iterable[str] = (),
    linear_probe: bool = False,
    settings: Settings | None = None,
    source: Given | None = None,
    validation: float = 0.2,
    reading: training_data.Reading | None = None,
    size: Iterable[int] = (),
    gray: bool = False,
    checkpoints: str | os.PathLike[str] | None = None,
    log: str | os.PathLike[str] | None = None,
    tensorboard: bool = False,
    progress: Callable[[Epoch], None] | None = None,
    **options: Any,
) -> Tuned:
    """Fine-tunes a live model in place: PyTorch through Lightning, Keras through `model.fit`.

    **Arguments:**

    - `data`: a folder of images by class, an `.npz` with `x` and `y`, a table (`.csv`,
      `.parquet`), a folder that the datasets library saved, `(x, y)` or a `Data`.
    - `receipt`: what loading gave; `linear_probe` needs it.
    - `policy`: what learns, when and how fast. `freeze` (templates of tensors that are not to
      learn) and `linear_probe` (only what is fresh learns) are short for two of its fields.
    - `settings`: a `Settings`; its fields as further keyword arguments (`epochs=10`) count before
      it.
    - `source`: the file that the model was loaded from, for L2-SP; of a live model's values a copy
      is kept.
    - `validation`: share of each class that is held out where the data brings no split.
    - `reading`: how files become arrays; `size`, `gray` are short for two of its fields.
    - `checkpoints`: a folder; a run that was killed and is started again goes on from there, to
      the same weights that it would have come to.
    - `log`: a folder for `curve.csv`, and for TensorBoard's events where `tensorboard` asks for it.
    - `progress`: called with each finished `Epoch`.

    **Raises** `TargetError`, `FormatError` for data that does not fit, `RuleMatchedNothing` for a
    template that names no tensor, `StalePlan` where the checkpoint is another run's,
    `VerificationFailed` where something frozen moved, `MissingDependency`.
    """
    chosen = replace(settings or Settings(), **options)
    side = target_side(model)
    live: Any = side.model
    framework = side.catalogue.framework
    if live is None:
        raise TargetError(side.catalogue.label, found="no model", expected="a live model")
    trainer = trainer_of(framework)
    wanted = _policy(policy or Policy(), tuple(freeze), linear_probe, receipt, len(side.catalogue))
    how = reading or training_data.Reading()
    how = replace(how, size=tuple(size) or how.size, gray=gray or how.gray)
    samples = training_data.load(data, channels_first=framework == "torch", reading=how)
    samples = samples.split(validation, chosen.seed)
    _answers_fit(live, samples)
    reference = None
    if source is not None and receipt is not None:
        container = receipt.plan.source.container or None
        origin = source_side(source, container)
        reference = Reference(receipt, origin.reader(), copy=origin.model is not None)
    folder = None if checkpoints is None else Path(checkpoints)
    with _Told(progress, None if log is None else Path(log), tensorboard) as each:
        job = Job(live, samples, chosen, wanted, receipt, reference, each, folder)
        outcome = trainer.fit(job)
    told = {key: str(value) for key, value in asdict(chosen).items()}
    told |= {"lr": f"{outcome.lr:g}", "samples": str(len(samples.y)), "trainer": framework}
    told |= {f"policy.{key}": value for key, value in _said(wanted).items()}
    learns = {name: name not in outcome.receipt.frozen for name in side.catalogue}
    best = best_of(outcome.curve)
    return Tuned(live, tuple(outcome.curve), best, learns, told, outcome.receipt)


def _policy(
    policy: Policy, freeze: tuple[str, ...], linear_probe: bool, receipt: Receipt | None, count: int
) -> Policy:
    """The policy with its two short forms."""
    if linear_probe and not policy.head and (receipt is None or not receipt.fresh):
        raise TargetError(
            f"a model of {count} tensors",
            found="nothing fresh" if receipt else "no receipt",
            expected="a receipt with fresh tensors, which alone learn in a linear probe",
            hint="load with fresh=['head.*'] first, and give receipt=",
        )
    return replace(
        policy,
        freeze=(*policy.freeze, *freeze),
        linear_probe=policy.linear_probe or linear_probe,
    )


def _said(policy: Policy) -> dict[str, str]:
    """What the policy says beyond its defaults, as text."""
    plain = asdict(Policy())
    return {key: str(value) for key, value in asdict(policy).items() if value != plain[key]}


class _Told:
    """Tells the caller and the logs of each epoch."""

    def __init__(
        self, progress: Callable[[Epoch], None] | None, folder: Path | None, board: bool
    ) -> None:
        self._progress, self._folder = progress, folder
        self._curve: list[Epoch] = []
        # Where `torchrun` started several processes, the first one writes.
        if not processes.is_first():
            self._folder = None
        self._board: logs.Board | None = None
        if board and self._folder is not None:
            self._board = logs.Board(self._folder / "tensorboard")

    def __enter__(self) -> Callable[[Epoch], None]:
        return self._each

    def __exit__(self, *_: object) -> None:
        if self._board:
            self._board.close()

    def _each(self, epoch: Epoch) -> None:
        self._curve.append(epoch)
        if self._folder is not None:
            logs.table(self._folder, self._curve)
        if self._board:
            self._board.add(epoch)
        if self._progress:
            self._progress(epoch)


def _answers_fit(model: Any, data: training_data.Data) -> None:
    """Raises `TargetError` where the model has too few outputs, before training fails on it."""
    outputs = targets.find(model).run(model, data.first(1))
    shapes = [array.shape for array in outputs.values()]
    if data.classification and (not shapes or shapes[0][-1] < data.count):
        raise TargetError(
            type(model).__name__,
            found=f"outputs of shape {shapes[0] if shapes else ()}",
            expected=f"{data.count} classes, as the data has",
            hint="build the model with as many classes (--set num_classes=…)",
        )
