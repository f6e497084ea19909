"""Keras models, trained by their own `fit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from regraft.tuning import Epoch, Settings
from regraft.tuning.data import Data

EXTRA = "keras"


def fit(model: Any, data: Data, settings: Settings, each: Callable[[Epoch], None]) -> list[Epoch]:
    """Trains with AdamW; cross-entropy for class numbers, squared error for floats.

    The model is compiled anew, so an optimizer's state from before is not used.
    """
    keras.utils.set_random_seed(settings.seed)
    classes = data.classification
    optimizer = keras.optimizers.AdamW(settings.lr, weight_decay=settings.weight_decay)
    loss: Any = "mse"
    if classes:
        logits = not _gives_probabilities(model, data)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    model.compile(optimizer, loss, metrics=["accuracy"] if classes else None)
    curve: list[Epoch] = []

    def end(epoch: int, logs: dict[str, float] | None = None) -> None:
        found = logs or {}
        row = Epoch(epoch + 1, found["loss"], found.get("val_loss"), found.get("val_accuracy"))
        curve.append(row)
        each(row)

    monitor = "loss" if data.x_val is None else "val_loss"
    patience = settings.epochs if settings.patience is None else settings.patience
    model.fit(
        data.x,
        data.y,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        validation_data=None if data.x_val is None else (data.x_val, data.y_val),
        callbacks=[
            keras.callbacks.LambdaCallback(on_epoch_end=end),
            keras.callbacks.EarlyStopping(monitor, patience=patience, restore_best_weights=True),
        ],
        verbose=0,
    )
    return curve


def _gives_probabilities(model: Any, data: Data) -> bool:
    """Whether the model ends in a softmax, seen from what it gives for a sample or two."""
    out = np.asarray(keras.ops.convert_to_numpy(model(data.x[:2], training=False)))
    return bool((out >= 0).all() and (np.abs(out.sum(-1) - 1) < 1e-4).all())
