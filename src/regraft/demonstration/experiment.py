"""The experiment and its table: five ways to start, several seeds each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import regraft as rg
from regraft import checkpoints, reports
from regraft.demonstration.digits import NOISE, SHOTS, Halves, few_shot, halves
from regraft.tuning import Settings, Tuned
from regraft.verification import Probe

if TYPE_CHECKING:
    from regraft.receipts import Receipt
    from regraft.tensors import Array

# Stages of training: whether only the fresh tensors learn, and how. A fresh head that learns
# together with the rest spoils the pretrained features first; learning it alone before is LP-FT
# (Kumar et al., 2022, Fine-Tuning can Distort Pretrained Features).
Stages = tuple[tuple[bool, Settings], ...]
ALL: Stages = ((False, Settings(epochs=100, batch_size=10, lr=1e-3)),)
PROBE: Stages = ((True, Settings(epochs=60, batch_size=10, lr=3e-3)),)
PROBE_THEN_ALL: Stages = (*PROBE, (False, Settings(epochs=40, batch_size=10, lr=3e-4)))
# The pretrained model's own head is no use here: the new one starts fresh.
NEW_HEAD, OLD_HEAD = "head.*", "digit/*"
PROBED = 128


@dataclass(frozen=True)
class Row:
    """One way to start, and the accuracy on the shifted task for each seed."""

    name: str
    loaded: str
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracies))

    @property
    def deviation(self) -> float:
        return float(np.std(self.accuracies, ddof=1)) if len(self.accuracies) > 1 else 0.0

    @property
    def cells(self) -> tuple[str, str, str]:
        return self.name, self.loaded, f"{self.mean:6.1%} ± {self.deviation:.1%}"


@dataclass(frozen=True)
class Found:
    """What the demonstration found, and the files that it leaves."""

    rows: tuple[Row, ...]
    plan: str
    largest_error: float
    pretrained: str
    tuned: str
    report: str
    moved: dict[str, int]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        rows = [{**asdict(row), "mean": row.mean, "deviation": row.deviation} for row in self.rows]
        return {"schema_version": 1, **asdict(self), "rows": rows}

    def __str__(self) -> str:
        widths = [max(len(row.cells[i]) for row in self.rows) for i in (0, 1)]
        table = [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in _cells(self.rows)]
        changes = ", ".join(f"{count} {status}" for status, count in self.moved.items())
        return "\n".join(
            [
                "A Keras network, pretrained on clean digits, in a PyTorch one:",
                *(f"  {line}" for line in self.plan.split("\n")),
                "Outputs of all that was loaded agree: "
                f"largest difference {self.largest_error:.2g}",
                "",
                f"Digits under noise (σ = {NOISE}), {SHOTS} labelled ones of each; "
                f"accuracy, mean and deviation of {len(self.rows[0].accuracies)} seeds:",
                *table,
                "  (the first three: all learns, 100 epochs; fine-tuned: a probe, then all of it)",
                "",
                f"Fine-tuned against pretrained: {changes}",
                f"Files: {self.pretrained}  {self.tuned}  {self.report}",
                f"{self.seconds:.0f} s",
            ]
        )


def _cells(rows: tuple[Row, ...]) -> list[tuple[str, str, str]]:
    return [row.cells for row in rows]


def run(folder: Path, seeds: int, say: Callable[[str], None]) -> Found:
    """Pretrains (once), loads, proves, fine-tunes, saves, diffs and reports."""
    started = time.perf_counter()
    data = halves()
    pretrained = folder / "digits.h5"
    if not pretrained.exists():
        say("pretraining in Keras")
        _pretrain(pretrained, data)
    say("loading and comparing outputs")
    with checkpoints.open(pretrained) as source:
        arrays = {name: source.read(name) for name in source}
    x = data.x_other[:PROBED]
    probe = _feature_probe(pretrained, x)
    rows = tuple(_rows(pretrained, arrays, data, probe, seeds, say))
    say("saving and comparing")
    return _kept(folder, pretrained, data, probe, rows, started)


def _pretrain(path: Path, data: Halves) -> None:
    from regraft.demonstration import keras_digits

    keras_digits.pretrain(path, data.x, data.y)


def _feature_probe(path: Path, x: Array) -> Probe:
    """Features as Keras gives them: the outputs of everything that is loaded."""
    import torch

    from regraft.demonstration import keras_digits

    expected = keras_digits.features(path, x)
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())

    def features(model: Any) -> Any:
        model.eval()
        with torch.no_grad():
            return model.encoder(image)

    return Probe(run=features, outputs=expected)


def _load(path: Path, model: Any, probe: Probe) -> Receipt:
    return rg.load(path, model, fresh=[NEW_HEAD], unused=[OLD_HEAD], probe=probe)


def _rows(
    path: Path,
    arrays: dict[str, Array],
    data: Halves,
    probe: Probe,
    seeds: int,
    say: Callable[[str], None],
) -> list[Row]:
    from regraft.demonstration import baselines, torch_digits

    def scratch(model: Any) -> tuple[str, None]:
        return "nothing", None

    def naive(model: Any) -> tuple[str, None]:
        return f"{baselines.naive_loop(model, arrays)} tensors, unchecked", None

    def strict(model: Any) -> tuple[str, None]:
        return f"{baselines.strict_false(model, arrays)} tensors, no error", None

    def grafted(model: Any) -> tuple[str, Receipt]:
        receipt = _load(path, model, probe)
        return f"{len(receipt.loaded)} tensors, outputs compared", receipt

    ways: list[tuple[str, Callable[[Any], tuple[str, Receipt | None]], Stages]] = [
        ("from scratch", scratch, ALL),
        ("the naive loop", naive, ALL),
        ("strict=False", strict, ALL),
        ("linear probe", grafted, PROBE),
        ("fine-tuned", grafted, PROBE_THEN_ALL),
    ]
    rows: list[Row] = []
    for name, prepare, stages in ways:
        accuracies: list[float] = []
        loaded = ""
        for seed in range(seeds):
            say(f"{name}, seed {seed + 1} of {seeds}")
            model = torch_digits.new(seed)
            loaded, receipt = prepare(model)
            x, y, x_test, y_test = few_shot(data, seed)
            _tune(model, x, y, receipt, stages, seed)
            accuracies.append(torch_digits.accuracy(model, x_test, y_test))
        rows.append(Row(name, loaded, tuple(accuracies)))
    return rows


def _tune(
    model: Any, x: Array, y: Array, receipt: Receipt | None, stages: Stages, seed: int
) -> list[Tuned]:
    """One stage after the other; there are too few examples to hold any out."""
    return [
        rg.finetune(
            model,
            (x, y),
            receipt=receipt,
            linear_probe=linear,
            settings=replace(settings, seed=seed),
            validation=0,
        )
        for linear, settings in stages
    ]


def _kept(
    folder: Path,
    pretrained: Path,
    data: Halves,
    probe: Probe,
    rows: tuple[Row, ...],
    started: float,
) -> Found:
    """Saves one fine-tuned model with its lineage, compares it and writes the report."""
    from regraft.demonstration import torch_digits

    model = torch_digits.new(0)
    receipt = _load(pretrained, model, probe)
    report = rg.verify(model, probe)
    x, y, _, _ = few_shot(data, 0)
    tuned = _tune(model, x, y, receipt, PROBE_THEN_ALL, 0)[-1]
    path, page = folder / "tuned.safetensors", folder / "report.html"
    rg.save(
        model, path, receipt=receipt, trained=tuned.trained, training=tuned.training, force=True
    )
    changes = rg.diff(pretrained, path)
    table = reports.Table(
        f"Digits under noise, {SHOTS} labelled ones of each",
        ("start", "loaded", "accuracy"),
        [row.cells for row in rows],
        f"Mean and deviation of {len(rows[0].accuracies)} seeds; noise of σ = {NOISE}.",
    )
    reports.report(
        page,
        title="Regraft demo: from Keras to PyTorch",
        receipt=receipt,
        verification=report,
        tuned=tuned,
        diff=changes,
        lineage=rg.trace(path),
        tables=[table],
        force=True,
    )
    return Found(
        rows,
        str(receipt.plan),
        report.max_abs,
        str(pretrained),
        str(path),
        str(page),
        changes.counts(),
        time.perf_counter() - started,
    )
