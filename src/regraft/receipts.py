"""What loading did: which tensors were written, and what their values were when they were.

Tensors that were copied were hashed on the way. A tensor that got the pages of its file, and no
copy of them, has nothing to be read back that could differ: its values are the file's until
somebody writes to them. They are looked at when somebody asks, out of the file and not out of the
model, which may have been trained by then; so that loading takes as long as taking pages does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from regraft import markup
from regraft.copying import Survey, survey
from regraft.errors import TargetError, TransferError
from regraft.plans import Graft, Plan, Remark
from regraft.values import intact

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from regraft.tensors import Array


class Hashes(Mapping[str, str]):
    """xxh3-128 of tensors by name. Where values that lie in a mapped file are given in place of a
    hash, they are hashed when it is asked for, which **raises** `TransferError` where the file was
    changed meanwhile."""

    def __init__(self, entries: Mapping[str, str | Array]) -> None:
        self._entries = dict(entries)
        self._surveys: dict[str, Survey] = {}

    def __getitem__(self, name: str) -> str:
        entry = self._entries[name]
        return entry if isinstance(entry, str) else self.survey(name).digest

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def lying(self) -> tuple[str, ...]:
        """Names of the tensors whose values lie in mapped files."""
        return tuple(name for name, entry in self._entries.items() if not isinstance(entry, str))

    def survey(self, name: str) -> Survey:
        """What a pass over a lying tensor shows, once."""
        if name not in self._surveys:
            array: Any = self._entries[name]
            if not intact(array):
                raise TransferError(
                    name,
                    found="its file was changed after it was loaded",
                    expected="the file as it was",
                    hint="the model has the file's pages and may show the change: load again, and "
                    "write new files beside old ones",
                )
            self._surveys[name] = survey(array)
        return self._surveys[name]


class Keeper(Protocol):
    """What makes and keeps lineages of a receipt: a room above this one."""

    def metadata(
        self,
        receipt: Receipt,
        hashes: Mapping[str, str],
        trained: Mapping[str, bool] | None,
        training: Mapping[str, str] | None,
    ) -> dict[str, str]: ...

    def beside(
        self,
        receipt: Receipt,
        path: str | os.PathLike[str],
        trained: Mapping[str, bool] | None,
        training: Mapping[str, str] | None,
    ) -> Path: ...


@dataclass(frozen=True)
class Receipt:
    """What `apply` did.

    - `hashes`: xxh3-128 of each target tensor's bytes as read back from the model, by name; see
      `Hashes` for tensors that got the pages of the file.
    - `fresh`, `adapted`, `unused`: as in the plan. `noted`: the plan's warnings, and what the
      values showed on their way; `warnings`: with what values that lie in the file show.
    - `verified`: True only if a probe's outputs agreed.
    - `model`: the model, or the new tree where the framework's arrays are immutable.
    - `source_hash`: sha256 of the source file, computed when it is first asked for; `""` where the
      source is no file, or was changed since.
    - `parent`: the lineage that the source file itself held, as JSON, `""` for none.
    - `keeper`: what writes lineages of it; see `keep_beside`.
    """

    plan: Plan = field(repr=False)
    model: object = field(repr=False)
    hashes: Mapping[str, str] = field(repr=False)
    noted: tuple[Remark, ...] = ()
    verified: bool = False
    hashing: Callable[[], str] = field(default=str, repr=False, compare=False)
    parent: str = field(default="", repr=False)
    keeper: Keeper | None = field(default=None, repr=False, compare=False)

    @cached_property
    def source_hash(self) -> str:
        return self.hashing()

    @cached_property
    def warnings(self) -> tuple[Remark, ...]:
        """Reasons to doubt. Where tensors got the pages of the file, they are looked at once."""
        known = {(remark.code, remark.where) for remark in self.plan.warnings}
        found = [remark for remark in self._seen() if (remark.code, remark.where) not in known]
        return (*self.noted, *found)

    def _seen(self) -> Iterator[Remark]:
        if not isinstance(self.hashes, Hashes):
            return
        for name in self.hashes.lying:
            try:
                seen = self.hashes.survey(name)
            except TransferError as error:
                yield Remark("file-changed", name, f"{error.found}: {error.hint}")
                return
            yield from doubts(self.plan.grafts[name], seen)

    def keep_beside(
        self,
        path: str | os.PathLike[str],
        *,
        trained: Mapping[str, bool] | None = None,
        training: Mapping[str, str] | None = None,
    ) -> Path:
        """Puts a lineage beside a file that another program wrote of the model, such as a trainer's
        own checkpoint (`model.keras.lineage.json`), as `rg.save` puts it into its files.

        Names in the file may have parts before the model's. The lineage holds as long as the file
        is not written again. **Returns** its path.

        **Raises** `StalePlan` where the file holds another model, `FormatError` as `rg.open`,
        `TargetError` where this is no receipt of `rg.load` or `rg.apply`.
        """
        return self._keeper().beside(self, path, trained, training)

    def lineage_entries(
        self, hashes: Mapping[str, str], trained: Mapping[str, bool] | None = None
    ) -> dict[str, str]:
        """Entries of a file's metadata that hold the lineage of the model, as its tensors' hashes
        are now; for trainers that write their own files."""
        return self._keeper().metadata(self, hashes, trained, None)

    def _keeper(self) -> Keeper:
        if self.keeper is None:
            raise TargetError(
                "the receipt", found="one that was not given by a load", expected="that of rg.load"
            )
        return self.keeper

    @property
    def fresh(self) -> list[str]:
        return self.plan.fresh

    @property
    def adapted(self) -> list[str]:
        return self.plan.adapted

    @property
    def unused(self) -> list[str]:
        return list(self.plan.unused)

    @property
    def loaded(self) -> list[str]:
        """Names of the target tensors that were written."""
        return list(self.hashes)

    def __str__(self) -> str:
        counts = {"fresh": self.fresh, "adapted": self.adapted, "unused": self.unused}
        told = ", ".join(f"{len(names)} {word}" for word, names in counts.items() if names)
        state = "outputs verified" if self.verified else "outputs not compared"
        rows = [f"{len(self.hashes)} tensors loaded{told and ', '}{told}; {state}"]
        return "\n".join([*rows, *(f"  warning  {remark}" for remark in self.warnings)])

    def _repr_html_(self) -> str:
        grafts = [g for g in self.plan.grafts.values() if not g.counter]
        rows = [("warning", r.where, r.code, r.text) for r in self.warnings]
        rows += [
            (g.kind, g.target, " + ".join(g.sources), self.hashes.get(g.target, "")) for g in grafts
        ]
        caption = str(self).split("\n")[0]
        return markup.table(caption, ("kind", "tensor", "from", "xxh3"), rows, len(rows))


def doubts(graft: Graft, seen: Survey) -> list[Remark]:
    """NaN and Inf, seen on the way, under the source's name."""
    size = math.prod(graft.spec.shape)
    text = f"{seen.odd} of {size} values are NaN or Inf"
    return [Remark("not-finite", (*graft.sources, graft.target)[0], text)] if seen.odd else []


def verified(receipt: Receipt) -> Receipt:
    """The receipt with its outputs compared and found equal."""
    return replace(receipt, verified=True)
