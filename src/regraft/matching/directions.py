"""Which way a recurrent layer runs along the sequence, by its name.

Both halves of a bidirectional layer have the same tensors, and mixing them up is silent. PyTorch
calls the second one `weight_ih_l0_reverse`, Keras `backward_lstm`, Flax `backward_rnn`, TensorFlow
`bw`. Two layers that both say which way they run, and say different ones, are never paired; where
all say it, those that run one way are compared among themselves.
"""

from __future__ import annotations

import re
from functools import lru_cache

_BACKWARD = re.compile(r"(^|_)(backwards?|reversed?|bw|bwd)(_|\d|$)")
_FORWARD = re.compile(r"(^|_)(forwards?|fw|fwd)(_|\d|$)")
_PYTORCH = re.compile(r"^l\d+(_reverse)?$")


@lru_cache(maxsize=65536)
def direction_of(path: tuple[str, ...]) -> str:
    """`forward`, `backward`, or `""` where the path does not say."""
    for part in reversed(path):
        lower = part.lower()
        if _BACKWARD.search(lower):
            return "backward"
        if _FORWARD.search(lower) and "feed" not in lower:
            return "forward"
    return "forward" if any(_PYTORCH.match(part) for part in path) else ""
