"""What may be asked of a live target: small experiments, told as plain functions, so that matching
needs no framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from regraft.tensors import Rows

# Asks a live model which rotary layout its attentions have, by the rows of their projections.
AskRotary: TypeAlias = "Callable[[Sequence[tuple[Rows, Rows]]], tuple[str, int] | None]"
# Asks it how wide a head is, by the rows of a value projection and the kernels that may follow.
AskHeads: TypeAlias = "Callable[[Rows, Sequence[str]], int | None]"


class Asked(NamedTuple):
    """The experiments that a live target allows."""

    rotary: AskRotary | None = None
    head_width: AskHeads | None = None


NOT_ASKED = Asked()
