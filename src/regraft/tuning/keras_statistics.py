"""Statistics of BatchNormalization, measured anew on other data, in Keras."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from regraft.tuning.receipts import nothing_measured


def measure(model: Any, batches: Iterable[Any]) -> int:
    """Sets moving means and variances to the averages over these batches; how many layers.

    As `regraft.tuning.torch_statistics.measure`: AdaBN where the batches are of another domain
    (Li et al. 2016), recalibration after weights were averaged. Layers that draw (dropout) stay
    off.

    **Arguments:**

    - `batches`: inputs, or tuples that begin with them.

    **Raises** `TargetError` where there are none.
    """
    layers = list(model._flatten_layers())
    norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    if not norms:
        return 0
    # A layer measures where it is trainable and runs in training mode.
    before = [(norm, "momentum", norm.momentum) for norm in norms]
    # (Setting a flag that is set already would set it on the layer's variables, too.)
    before += [(norm, "trainable", False) for norm in norms if not norm.trainable]
    before += [(x, "rate", x.rate) for x in layers if isinstance(x, keras.layers.Dropout)]
    try:
        for thing, name, _ in before:
            setattr(thing, name, True if name == "trainable" else 0.0)
        number = -1
        for number, batch in enumerate(batches):
            for norm in norms:
                norm.momentum = number / (number + 1)  # a plain average
            model(batch[0] if isinstance(batch, (tuple, list)) else batch, training=True)
        if number < 0:
            raise nothing_measured()
    finally:
        for thing, name, value in before:
            setattr(thing, name, value)
    return len(norms)
