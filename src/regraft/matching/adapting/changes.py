"""What the cases look at, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from regraft.matching.leftovers import Leftovers
from regraft.matching.modules import Leaf, Module
from regraft.operations import AnyOp, Keep
from regraft.tensors import Catalogue


class Way(NamedTuple):
    """One way to make a target tensor of a source tensor of another size.

    - `text`: the rule, for people.
    - `ops`: on the source, which is named `copies` times: they give it the size that is wanted and
      leave it in its own layout.
    - `keep`: the target's own entries stay behind those of the source; on the target.
    """

    text: str
    ops: tuple[AnyOp, ...] = ()
    copies: int = 1
    keep: Keep | None = None


class Change(NamedTuple):
    """A source tensor and the target tensor of another size that is to be made of it.

    Without a `reason` there is one way, which is settled. A reason says what is not known, and
    the ways, any number of them, are alternatives.
    """

    source: Leaf
    target: Leaf
    ways: tuple[Way, ...]
    reason: str = ""


def only(module: Module) -> Leaf:
    """The one tensor of a layer that is nothing but a table."""
    (leaf,) = module.leaves.values()
    return leaf


@dataclass(frozen=True)
class Half:
    """One side: its catalogue as matching sees it, and all of its modules in order."""

    catalogue: Catalogue
    modules: Sequence[Module]

    @cached_property
    def kernels(self) -> list[Leaf]:
        return [m.leaves["kernel"] for m in self.modules if "kernel" in m.leaves]


@dataclass(frozen=True)
class Situation:
    """Both sides, what a first pairing left over, and which target tensors a rule lets widen."""

    source: Half
    target: Half
    left: Leftovers
    may_widen: Callable[[str], bool] = lambda _: False
