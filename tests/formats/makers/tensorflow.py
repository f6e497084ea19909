from __future__ import annotations

from pathlib import Path
from typing import Any

from formats.samples import Values, arrays

SUFFIX = ""


def module() -> tuple[Any, Values]:
    """A tree of objects with these variables, and their values by path."""
    import tensorflow as tf

    root = tf.Module()
    values = {name.replace(".", "/"): value for name, value in arrays().items()}
    for path, value in values.items():
        owner = root
        *owners, leaf = path.split("/")
        for part in owners:
            if not hasattr(owner, part):
                setattr(owner, part, tf.Module())
            owner = getattr(owner, part)
        setattr(owner, leaf, tf.Variable(value))
    return root, values


def make(path: Path) -> Values:
    import tensorflow as tf

    root, values = module()
    path.mkdir()
    tf.train.Checkpoint(root).write(str(path / "ckpt"))
    return values
