"""Keras models, trained by their own `fit`, one epoch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import msgspec
import numpy as np

from regraft.errors import TargetError
from regraft.targets import keras as keras_target
from regraft.tuning import Epoch, Job, Outcome, best_of, processes, runs, seeds, stopped, sweeps
from regraft.tuning.keras import Tuning
from regraft.tuning.keras_data import Batches, Schedule, assign, precision
from regraft.tuning.metrics import measured, probabilities

EXTRA = "keras"


def fit(job: Job) -> Outcome:
    """Trains with AdamW; cross-entropy for class numbers, squared error for floats.

    The model is compiled anew, so an optimizer's state from before is not used. Where the policy
    lets more tensors learn later, moments start anew with them.
    """
    if processes.count() > 1:
        raise TargetError(
            "the Keras trainer",
            found="several processes",
            expected="one, or model.fit under keras.distribution",
        )
    if not keras_target.owns(job.model):
        raise TargetError(
            getattr(job.model, "name", "the model"),
            found=f"a model of {type(job.model).__module__.partition('.')[0]}",
            expected="one of Keras 3",
            hint="train it with its own model.fit, and give what it then holds to rg.save",
        )
    run = _Run(job)
    with precision(job.model, job.settings):
        run.start()
        while not stopped(run.curve, job.settings):
            run.epoch(len(run.curve))
        run.end()
    receipt = run.tuning.finish(Batches(job, None)).check()
    return Outcome(run.curve, run.tuning.course, receipt, run.lr)


class _Run:
    """One run: what learns, the curve, the best epoch, and the checkpoint it goes on from."""

    def __init__(self, job: Job) -> None:
        self.job, self.model = job, job.model
        first = keras_target.run(job.model, job.data.first(2))
        self.classes = job.data.classification
        self._logits = not probabilities(next(iter(first.values())))
        self.tuning = Tuning(job.model, job.policy, receipt=job.loading, reference=job.reference)
        self.curve: list[Epoch] = []
        self.lr = 0.0
        self.best: dict[str, Any] = {}
        self._optimizer: Any = None
        self._phase: tuple[str, ...] = ()
        self._identity = runs.identity(job, self.tuning.course, self.tuning.read)
        self._path = job.folder / "last.npz" if job.folder else None

    def start(self) -> None:
        """From the beginning, or from the checkpoint that there is."""
        kept = self._kept()
        if kept is None and self.job.policy.batchnorm == "adapt":
            self.tuning.adapt(Batches(self.job, None))
        self.tuning.begin(resuming=kept is not None)
        if kept is None:
            self.lr = self._rate()
            return
        told = msgspec.json.decode(bytes(kept["told"]))
        self.curve = [Epoch(**row) for row in told["curve"]]
        self.lr = told["lr"]
        self.tuning.resume(told["watch"])
        for name, (variable, _) in keras_target.named(self.model).items():
            assign(variable, kept[f"model {name}"])
        self.best = {k[5:]: v for k, v in kept.items() if k.startswith("best ")}
        self.compile(len(self.curve) - 1)
        self._optimizer.averaged = told["averaged"]
        if not self._optimizer.built:
            self._optimizer.build(list(self.model.trainable_variables))
        for number, variable in enumerate(self._optimizer.variables):
            assign(variable, kept[f"optimizer {number}"])
        for epoch in self.curve:
            self.job.each(epoch)

    def compile(self, epoch: int) -> None:
        """Compiles where other tensors learn than did before."""
        learning = tuple(self.tuning.course.learning(epoch))
        self.tuning.epoch(epoch)
        if learning == self._phase:
            return
        self._phase = learning
        settings = self.job.settings
        start = max((s for s in self.tuning.course.steps if s <= epoch), default=0)
        each = len(Batches(self.job, 0)) / settings.accumulate
        rate = Schedule(self.lr, settings, start * each, settings.epochs * each)
        self._optimizer = self.tuning.optimizer(self._adamw(rate))
        # The loss alone: what is minimised has the pull to the pretrained values in it.
        loss = self._loss()
        alone = keras.metrics.MeanMetricWrapper(loss.call, name="alone")
        self.model.compile(self._optimizer, loss, metrics=[alone])

    def epoch(self, number: int) -> None:
        """One pass over the data, its validation, and a checkpoint."""
        self.compile(number)
        self._seed(number)
        batches = Batches(self.job, number)
        history = self.model.fit(batches, epochs=1, shuffle=False, verbose=0)
        with_average = self._swap()
        found = self._validated()
        self.curve.append(Epoch(number + 1, float(history.history["alone"][0]), **found))
        if best_of(self.curve) == number + 1:
            self.best = {name: self.tuning.read(name) for name in self._moving()}
        if with_average:
            self._swap()
        self._keep()
        self.job.each(self.curve[-1])

    def end(self) -> None:
        """The best epoch's values."""
        self.tuning.keep(self.best)

    def _moving(self) -> Iterator[str]:
        return (name for name, t in self.tuning.course.items() if t.since is not None)

    def _loss(self) -> Any:
        if not self.classes:
            return keras.losses.MeanSquaredError()
        return keras.losses.SparseCategoricalCrossentropy(from_logits=self._logits)

    def _adamw(self, rate: Any) -> Any:
        settings = self.job.settings
        steps = settings.accumulate if settings.accumulate > 1 else None
        return keras.optimizers.AdamW(
            rate,
            weight_decay=settings.weight_decay,
            gradient_accumulation_steps=steps,
            global_clipnorm=settings.clip or None,
        )

    def _seed(self, epoch: int) -> None:
        """What an epoch draws depends on the seed and its number: layers' own generators, too."""
        seed = seeds.derived(self.job.settings.seed, epoch, 0)
        keras.utils.set_random_seed(seed)
        generators = {
            id(g): g
            for layer in self.model._flatten_layers()
            for g in vars(layer).values()
            if isinstance(g, keras.random.SeedGenerator)
        }
        for number, generator in enumerate(generators.values()):
            value = seeds.derived(seed, number)
            generator.state.assign(np.array([value, 0], dtype=generator.state.dtype))

    def _swap(self) -> bool:
        """Exchanges the model's values with their moving averages, where there are some."""
        pairs = self._optimizer.averages()
        for variable, mean in pairs:
            value = keras_target.to_numpy(variable.value)
            variable.assign(keras_target.to_numpy(mean.value))
            mean.assign(value)
        return bool(pairs)

    def _validated(self) -> dict[str, float]:
        data = self.job.data
        if data.x_val is None or data.y_val is None:
            return {}
        out = self.model.predict(data.x_val, batch_size=self.job.settings.batch_size, verbose=0)
        out = np.asarray(out, np.float32)
        shaped = out if self.classes else out.reshape(data.y_val.shape)
        value: Any = keras_target.to_numpy(self._loss()(data.y_val, shaped))
        return {"val_loss": float(value.mean())} | measured(
            out, data.y_val, classification=self.classes
        )

    def _keep(self) -> None:
        if self._path is None:
            return
        told = {
            "curve": [asdict(epoch) for epoch in self.curve],
            "lr": self.lr,
            "averaged": self._optimizer.averaged,
            "watch": self.tuning.state(),
            "identity": self._identity,
        }
        arrays = {f"model {name}": self.tuning.read(name) for name in self.tuning.course}
        arrays |= {f"best {name}": value for name, value in self.best.items()}
        for number, variable in enumerate(self._optimizer.variables):
            arrays[f"optimizer {number}"] = keras_target.to_numpy(variable.value)
        arrays["told"] = np.frombuffer(msgspec.json.encode(told), np.uint8)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".part")
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
        runs.replaced(temporary, self._path)

    def _kept(self) -> dict[str, Any] | None:
        """The checkpoint of this run. **Raises** `StalePlan` for another run's."""
        if self._path is None or not Path(self._path).exists():
            return None
        with runs.reading(self._path):
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                kept = {name: found[name] for name in found.files}
            told = msgspec.json.decode(bytes(kept["told"]))
            runs.same(told["identity"], self._identity, str(self._path))
        return kept

    def _rate(self) -> float:
        """The learning rate as given, or found; the model is as before afterwards."""
        settings = self.job.settings
        if settings.lr != "auto":
            return settings.lr
        before = {name: self.tuning.read(name) for name in self._moving()}
        adamw = keras.optimizers.AdamW(1.0, weight_decay=settings.weight_decay)
        optimizer = self.tuning.optimizer(adamw, trial=True)
        self.model.compile(optimizer, self._loss())
        self._seed(0)
        batches = Batches(self.job, 0)
        number = 0

        def step(rate: float) -> float:
            nonlocal number
            optimizer.learning_rate = rate
            x, y, *_ = batches[number % len(batches)]
            number += 1
            return float(self.model.train_on_batch(x, y))

        try:
            return sweeps.suggested(*sweeps.sweep(step))
        finally:
            weights = keras_target.named(self.model)
            for name, value in before.items():
                weights[name][0].assign(value)
