"""What kinds of rewrites look at, and what they find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from regraft.matching.experiments import NOT_ASKED, Asked
from regraft.matching.modules import Leaf, Module
from regraft.matching.views import Rewrite, View
from regraft.operations import Slice
from regraft.tensors import Catalogue, Read, Rows, TensorInfo


@dataclass(frozen=True)
class Finding:
    """Rewrites that hold or fail together.

    - `variants`: the same old and new tensors under other conventions.
    - `label`: what the variants are about, the name of the open question.
    - `certain`: to be taken whether it serves at once or not.
    """

    rewrites: Sequence[Rewrite]
    variants: Sequence[Sequence[Rewrite]] = ()
    label: str = ""
    certain: bool = False


@dataclass(frozen=True)
class Sight:
    """One side as it is seen so far."""

    view: View
    is_source: bool
    read: Read | None = None
    asked: Asked = NOT_ASKED

    def ask_rotary(self, projections: Sequence[tuple[str, str]]) -> tuple[str, int] | None:
        """Layout and width of a head, found by an experiment with the live model; `None` where
        there is none to ask, or where it does not hold the kernels as rows of its own."""
        rows = [(self._rows(query), self._rows(key)) for query, key in projections]
        whole = [(query, key) for query, key in rows if query and key]
        ask = self.asked.rotary
        return ask(whole) if ask and len(whole) == len(rows) else None

    def ask_head_width(self, value: str, outputs: Sequence[str]) -> int | None:
        """Width of a head, found in the same way; `outputs` are kernels of which one may be the
        projection behind the attention."""
        rows, ask = self._rows(value), self.asked.head_width
        return ask(rows, outputs) if ask and rows else None

    def _rows(self, name: str) -> Rows | None:
        """Where the model holds a kernel that may be part of a fused one."""
        names, ops = self.view.made[name]
        if len(names) != 1 or len(ops) > 1:
            return None
        if not ops:
            return Rows(names[0])
        cut = ops[0]
        if isinstance(cut, Slice) and cut.axis == 0:
            return Rows(names[0], cut.start, cut.stop)
        return None

    @property
    def catalogue(self) -> Catalogue:
        return self.view.catalogue

    @property
    def framework(self) -> str:
        return self.view.framework

    @property
    def modules(self) -> list[Module]:
        return self.view.modules

    @cached_property
    def by_leaf(self) -> Mapping[str, dict[str, TensorInfo]]:
        """Tensors by their last word and, below it, by what stands before (with separator)."""
        found: dict[str, dict[str, TensorInfo]] = {}
        for name, info in self.view.catalogue.items():
            cut = max(name.rfind("."), name.rfind("/")) + 1
            found.setdefault(name[cut:], {})[name[:cut]] = info
        return found

    def leaf_words(self) -> set[str]:
        return set(self.by_leaf)


def kernel_of(module: Module) -> Leaf | None:
    return module.leaves.get("kernel")
