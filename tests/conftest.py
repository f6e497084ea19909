"""What all tests share."""

from __future__ import annotations

import os

# Before the first import of Keras, which reads it once.
os.environ.setdefault("KERAS_BACKEND", "jax")
