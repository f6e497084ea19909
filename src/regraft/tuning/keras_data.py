"""What the Keras trainer hands to Keras: batches, rates over time, precision."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from regraft.tensors import numpy_dtype
from regraft.tuning import Job, Settings, seeds
from regraft.tuning.data import taken

_PRECISION = {"bf16": "mixed_bfloat16", "16": "mixed_float16"}


class Batches(keras.utils.PyDataset):
    """The samples of one epoch, in its order; `None`: for measuring statistics."""

    def __init__(self, job: Job, epoch: int | None) -> None:
        super().__init__()
        count, size = len(job.data.y), job.settings.batch_size
        self._job, self._measuring = job, epoch is None
        if epoch is None:
            self._drawn = seeds.even(count, size, job.settings.seed)
            return
        order = seeds.order(count, job.settings.seed, epoch)
        together = job.settings.accumulate
        if together > 1:
            self._drawn = _added_up(order, size, together)
            return
        # A last batch of one sample would break BatchNorm.
        odd = count % size == 1 and count > size
        self._drawn = [order[at : at + size] for at in range(0, count - odd, size)]

    def __len__(self) -> int:
        return len(self._drawn)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        chosen = np.asarray(self._drawn[index])
        batch = taken(self._job.data.x, chosen), self._job.data.y[chosen]
        together = self._job.settings.accumulate
        if self._measuring or together == 1:
            return batch
        # Keras adds up means: each sample is to count the same, whatever the size of its batch.
        first = index // together * together
        samples = sum(len(part) for part in self._drawn[first : first + together])
        return *batch, np.full(len(chosen), len(chosen) * together / samples, np.float32)


def _added_up(order: list[int], size: int, together: int) -> list[list[int]]:
    """Batches in groups of as many as are added up, as Keras knows no smaller sum: the last group
    is of smaller batches, or joins the one before where these would be of one sample."""
    whole = size * together
    groups = [order[at : at + whole] for at in range(0, len(order), whole)]
    if len(groups) > 1 and len(groups[-1]) < 2 * together:
        last = groups.pop()
        groups[-1] = groups[-1] + last
    parts = [part.tolist() for g in groups for part in np.array_split(np.asarray(g), together)]
    return [part for part in parts if part]


def assign(variable: Any, array: Any) -> None:
    """Sets a variable. An `.npz` keeps the bits of bfloat16 and not its name."""
    if array.dtype.kind == "V":
        array = array.view(numpy_dtype(keras.backend.standardize_dtype(variable.dtype)))
    variable.assign(array)


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """`Settings.share` at each update, as a table that the backend looks up."""

    def __init__(self, lr: float, settings: Settings, first: float, steps: float) -> None:
        count = max(1, round(steps - first))
        rates = [lr * settings.share(round(first) + i, round(steps)) for i in range(count)]
        self._rates = np.array(rates, np.float32)
        self._batches = settings.accumulate

    def __call__(self, step: Any) -> Any:
        # Keras counts batches here, also those whose gradients are only added up.
        update = keras.ops.floor_divide(keras.ops.cast(step, "int32"), self._batches)
        index = keras.ops.minimum(update, len(self._rates) - 1)
        return keras.ops.take(keras.ops.convert_to_tensor(self._rates), index)

    def get_config(self) -> dict[str, Any]:
        return {}


class precision:
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
