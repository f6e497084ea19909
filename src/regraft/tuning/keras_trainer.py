"""Keras models, trained by their own `fit`, one epoch at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import msgspec
import numpy as np

from regraft.errors import TargetError
from regraft.targets import keras as keras_target
from regraft.tensors import numpy_dtype
from regraft.tuning import Epoch, Job, Outcome, Settings, best_of, runs, seeds, stopped, sweeps
from regraft.tuning.data import taken
from regraft.tuning.keras import Tuning
from regraft.tuning.keras_statistics import measure
from regraft.tuning.metrics import measured, probabilities

EXTRA = "keras"
_PRECISION = {"bf16": "mixed_bfloat16", "16": "mixed_float16"}


def fit(job: Job) -> Outcome:
    """Trains with AdamW; cross-entropy for class numbers, squared error for floats.

    The model is compiled anew, so an optimizer's state from before is not used. Where the policy
    lets more tensors learn later, moments start anew with them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TargetError(
            "the Keras trainer",
            found="several processes",
            expected="one, or model.fit under keras.distribution",
        )
    run = _Run(job)
    with _precision(job.model, job.settings):
        run.start()
        while not stopped(run.curve, job.settings):
            run.epoch(len(run.curve))
        run.end()
    receipt = run.tuning.finish(_Batches(job, None)).check()
    return Outcome(run.curve, run.tuning.course, receipt, run.lr)


class _Batches(keras.utils.PyDataset):
    """The samples of one epoch, in its order, or first sample first."""

    def __init__(self, job: Job, epoch: int | None) -> None:
        super().__init__()
        count, size = len(job.data.y), job.settings.batch_size
        drawn = range(count) if epoch is None else seeds.order(count, job.settings.seed, epoch)
        self._job, self._order = job, np.asarray(drawn)
        # A last batch of one sample would break BatchNorm.
        odd = epoch is not None and count % size == 1 and count > size
        self._count = count // size if odd else -(-count // size)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        size = self._job.settings.batch_size
        chosen = self._order[index * size : (index + 1) * size]
        return taken(self._job.data.x, chosen), self._job.data.y[chosen]


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
        self._identity = runs.identity(job, self.tuning.course)
        self._path = job.folder / "last.npz" if job.folder else None

    def start(self) -> None:
        """From the beginning, or from the checkpoint that there is."""
        kept = self._kept()
        if kept is None and self.job.policy.batchnorm == "adapt":
            measure(self.model, _Batches(self.job, None))
        self.tuning.begin()
        if kept is None:
            self.lr = self._rate()
            return
        told = msgspec.json.decode(bytes(kept["told"]))
        self.curve = [Epoch(**row) for row in told["curve"]]
        self.lr = told["lr"]
        self.tuning.resume(told["watch"])
        for name, (variable, _) in keras_target.named(self.model).items():
            _assign(variable, kept[f"model {name}"])
        self.best = {k[5:]: v for k, v in kept.items() if k.startswith("best ")}
        self.compile(len(self.curve) - 1)
        self._optimizer.build(list(self.model.trainable_variables))
        for number, variable in enumerate(self._optimizer.variables):
            _assign(variable, kept[f"optimizer {number}"])
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
        each = len(_Batches(self.job, 0)) / settings.accumulate
        rate = _Schedule(self.lr, settings, start * each, settings.epochs * each)
        self._optimizer = self.tuning.optimizer(self._adamw(rate), overwrite=False)
        self.model.compile(self._optimizer, self._loss())

    def epoch(self, number: int) -> None:
        """One pass over the data, its validation, and a checkpoint."""
        self.compile(number)
        self._seed(number)
        batches = _Batches(self.job, number)
        history = self.model.fit(batches, epochs=1, shuffle=False, verbose=0)
        with_average = self._swap()
        found = self._validated()
        self.curve.append(Epoch(number + 1, float(history.history["loss"][0]), **found))
        if best_of(self.curve) == number + 1:
            self.best = {name: self.tuning.read(name) for name in self._moving()}
        if with_average:
            self._swap()
        self._keep()
        self.job.each(self.curve[-1])

    def end(self) -> None:
        """The best epoch's values."""
        weights = keras_target.named(self.model)
        for name, value in self.best.items():
            _assign(weights[name][0], value)

    def _moving(self) -> Iterator[str]:
        return (name for name, t in self.tuning.course.items() if t.since is not None)

    def _loss(self) -> Any:
        if not self.classes:
            return "mse"
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
        loss: Any = self._loss()
        loss = keras.losses.get(loss) if isinstance(loss, str) else loss
        shaped = out if self.classes else out.reshape(data.y_val.shape)
        value: Any = keras_target.to_numpy(loss(data.y_val, shaped))
        return {"val_loss": float(value.mean())} | measured(
            out, data.y_val, classification=self.classes
        )

    def _keep(self) -> None:
        if self._path is None:
            return
        told = {
            "curve": [asdict(epoch) for epoch in self.curve],
            "lr": self.lr,
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
        with np.load(self._path, allow_pickle=False) as found:
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
        optimizer = self.tuning.optimizer(keras.optimizers.AdamW(1.0), overwrite=False)
        self.model.compile(optimizer, self._loss())
        self._seed(0)
        batches = _Batches(self.job, 0)
        number = 0

        def step(rate: float) -> float:
            nonlocal number
            optimizer.learning_rate = rate
            x, y = batches[number % len(batches)]
            number += 1
            return float(self.model.train_on_batch(x, y))

        try:
            return sweeps.suggested(*sweeps.sweep(step))
        finally:
            weights = keras_target.named(self.model)
            for name, value in before.items():
                weights[name][0].assign(value)


def _assign(variable: Any, array: Any) -> None:
    """Sets a variable. An `.npz` keeps the bits of bfloat16 and not its name."""
    if array.dtype.kind == "V":
        array = array.view(numpy_dtype(keras.backend.standardize_dtype(variable.dtype)))
    variable.assign(array)


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """`Settings.share` at each step, as a table that the backend looks up."""

    def __init__(self, lr: float, settings: Settings, first: float, steps: float) -> None:
        count = max(1, round(steps - first))
        rates = [lr * settings.share(round(first) + i, round(steps)) for i in range(count)]
        self._rates = np.array(rates, np.float32)

    def __call__(self, step: Any) -> Any:
        index = keras.ops.minimum(keras.ops.cast(step, "int32"), len(self._rates) - 1)
        return keras.ops.take(keras.ops.convert_to_tensor(self._rates), index)

    def get_config(self) -> dict[str, Any]:
        return {}


class _precision:
    """Lets layers compute in another precision for a while; variables stay as they are."""

    def __init__(self, model: Any, settings: Settings) -> None:
        self._name = _PRECISION.get(settings.precision)
        self._layers = [x for x in model._flatten_layers() if x.variables] if self._name else []

    def __enter__(self) -> None:
        self._before = [layer.dtype_policy for layer in self._layers]
        for layer in self._layers:
            layer.dtype_policy = self._name

    def __exit__(self, *_: object) -> None:
        for layer, policy in zip(self._layers, self._before, strict=True):
            layer.dtype_policy = policy
