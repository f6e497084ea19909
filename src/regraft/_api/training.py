"""Fine-tuning a live model in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from regraft import targets
from regraft._sides import Given, target_side
from regraft.errors import RuleMatchedNothing, TargetError
from regraft.rules import matches
from regraft.tensors import Catalogue
from regraft.transfer import Receipt
from regraft.tuning import Epoch, Settings, Tuned, best_of, trainer_of
from regraft.tuning import data as training_data


def finetune(
    model: Given,
    data: Any,
    *,
    receipt: Receipt | None = None,
    freeze: Iterable[str] = (),
    linear_probe: bool = False,
    settings: Settings | None = None,
    validation: float = 0.2,
    size: Iterable[int] = (),
    gray: bool = False,
    progress: Callable[[Epoch], None] | None = None,
    **options: Any,
) -> Tuned:
    """Fine-tunes a live model in place: PyTorch through Lightning, Keras through `model.fit`.

    **Arguments:**

    - `data`: a folder of images by class, an `.npz` with `x` and `y`, `(x, y)` or a `Data`.
    - `receipt`: what loading gave; `linear_probe` needs it.
    - `freeze`: templates of tensors that are not to learn.
    - `linear_probe`: learn only what is fresh, so that the pretrained weights stay as they are.
    - `settings`: a `Settings`, or its fields as further keyword arguments (`epochs=10`).
    - `validation`: share of each class that is held out where the data brings no split.
    - `size`, `gray`: how images of a folder are read.
    - `progress`: called with each finished `Epoch`.

    **Raises** `TargetError`, `FormatError` for data that does not fit, `RuleMatchedNothing` for a
    template that names no tensor, `MissingDependency`.
    """
    chosen = settings or Settings(**options)
    side = target_side(model)
    live: Any = side.model
    framework = side.catalogue.framework
    if live is None:
        raise TargetError(side.catalogue.label, found="no model", expected="a live model")
    trainer = trainer_of(framework)
    samples = training_data.load(
        data, channels_first=framework == "torch", size=tuple(size), gray=gray
    ).split(validation, chosen.seed)
    learns = _learning(side.catalogue, receipt, tuple(freeze), linear_probe)
    targets.find(live).trainable(live, [name for name, yes in learns.items() if yes])
    _answers_fit(live, samples)
    curve = trainer.fit(live, samples, chosen, progress or (lambda _: None))
    told = {key: str(value) for key, value in asdict(chosen).items()}
    told |= {"samples": str(len(samples.x)), "trainer": framework}
    if freeze or linear_probe:
        told["frozen"] = "all but the fresh" if linear_probe else ", ".join(freeze)
    return Tuned(live, tuple(curve), best_of(curve), learns, told)


def _learning(
    catalogue: Catalogue, receipt: Receipt | None, freeze: tuple[str, ...], linear_probe: bool
) -> dict[str, bool]:
    """By tensor, whether it may learn."""
    idle = [t for t in freeze if not any(matches(t, name) for name in catalogue)]
    if idle:
        raise RuleMatchedNothing(
            f"freeze {idle[0]!r}",
            found="no tensor of such a name",
            expected=f"a template for names such as {next(iter(catalogue), '')!r}",
            problems=idle,
        )
    if not linear_probe:
        return {name: not any(matches(t, name) for t in freeze) for name in catalogue}
    if receipt is None or not receipt.fresh:
        raise TargetError(
            catalogue.label,
            found="nothing fresh" if receipt else "no receipt",
            expected="a receipt with fresh tensors, which alone learn in a linear probe",
            hint="load with fresh=['head.*'] first, and give receipt=",
        )
    fresh = set(receipt.fresh)
    return {name: name in fresh for name in catalogue}


def _answers_fit(model: Any, data: training_data.Data) -> None:
    """Raises `TargetError` where the model has too few outputs, before training fails on it."""
    outputs = targets.find(model).run(model, data.x[:1])
    shapes = [array.shape for array in outputs.values()]
    if data.classification and (not shapes or shapes[0][-1] < data.count):
        raise TargetError(
            type(model).__name__,
            found=f"outputs of shape {shapes[0] if shapes else ()}",
            expected=f"{data.count} classes, as the data has",
            hint="build the model with as many classes (--set num_classes=…)",
        )
