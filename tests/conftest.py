"""What all tests share."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import pytest

# Before the first import of Keras, which reads it once.
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

from places import REAL


def _mend_torchvision() -> None:
    """torchvision built for CUDA beside a CPU torch lacks two operators at import; their schemas
    are all that is needed. The library object must stay alive."""
    try:
        import torch
    except ImportError:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    globals()["_kept_alive"] = library


_mend_torchvision()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of third-party imports, which are not ours to mend
    import keras  # noqa: F401


@pytest.fixture(scope="session")
def real() -> Path:
    """Real checkpoints by other people; tests that use them are skipped where they are absent."""
    if not REAL.is_dir():
        pytest.skip("no real checkpoints here")
    return REAL
