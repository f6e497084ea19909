"""The processes of one run: how many `torchrun` started, and which one this is.

Read from the environment variables that it sets; without them there is one process, the first.
"""

from __future__ import annotations

import os


def count() -> int:
    """How many processes take part, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def count_here() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this one, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this is the one that writes files and speaks."""
    return rank() == 0
