"""What a comparison of two files says: an entry for each tensor, modules summed up, remarks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from regraft import markup
from regraft.operations import AnyOp
from regraft.plans import Remark

Status = Literal["identical", "renamed", "moved", "fresh", "gone"]
STATUSES: tuple[Status, ...] = ("identical", "renamed", "moved", "fresh", "gone")
_NOT_A_NUMBER = float("nan")
_PARTS = re.compile(r"[./]")


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one tensor differs between two files.

    - `status`: `identical` to the bit (through a plan or a lineage: to what it makes of the base);
      `renamed`: identical to the bit, but under another name or in another layout, found by its
      values; `moved`: other values; `fresh`: the base has none of it; `gone`: only the base has it.
    - `rel_l2` is ‖b − a‖ / ‖a‖ (0 where both are 0, inf where only a is), `max_abs` the largest
      absolute change, `cosine` of the angle between them (1 where both are 0). NaN where a tensor
      is on one side only, and where no place has a number on both. Places that hold NaN or Inf on
      either side are counted in `odd` and left out of these.
    - `base` names the base's tensor where its name differs, `ops` what brings it into the layout of
      the newer file, `note` says what else is known (`the rows of axis 0 in another order`).
    - `norm` is ‖a‖, `l2` is ‖b − a‖; `rank` the effective rank of the change, where it was asked
      for.
    """

    status: Status
    shape: tuple[int, ...]
    dtype: str
    rel_l2: float = _NOT_A_NUMBER
    max_abs: float = _NOT_A_NUMBER
    cosine: float = _NOT_A_NUMBER
    base: str = ""
    ops: tuple[AnyOp, ...] = ()
    note: str = ""
    norm: float = _NOT_A_NUMBER
    rank: float = _NOT_A_NUMBER
    odd: int = 0
    l2: float = _NOT_A_NUMBER

    @property
    def from_zero(self) -> bool:
        """Whether all values were 0 before, and are not now: there is no relative change then."""
        return self.rel_l2 == float("inf")


class Module(msgspec.Struct, frozen=True):
    """Tensors of one module together: their numbers by status, and `rel_l2` and `max_abs` of all
    that are on both sides, as if they were one vector; NaN where none is, or that of one is."""

    counts: dict[str, int]
    rel_l2: float
    max_abs: float = _NOT_A_NUMBER


class Diff(Mapping[str, Entry]):
    """Differences by tensor name, in the order of the newer file; what is gone comes last.

    `remarks` say what is to be known of the two files as a whole.
    """

    def __init__(
        self,
        base: str,
        tuned: str,
        entries: Mapping[str, Entry],
        remarks: Iterable[Remark] = (),
    ) -> None:
        self.base, self.tuned = base, tuned
        self.remarks = tuple(remarks)
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def same(self) -> bool:
        """Whether every tensor is identical and none is renamed, fresh or gone."""
        return all(entry.status == "identical" for entry in self.values())

    def counts(self) -> dict[str, int]:
        """Number of tensors by status."""
        return _counts(self.values())

    def modules(self, depth: int | None = None) -> dict[str, Module]:
        """Tensors summed up by module, in the file's order: by all parts of a name but its last,
        or by the first `depth` of these."""
        groups: dict[str, list[Entry]] = {}
        for name, entry in self.items():
            ends = [found.start() for found in _PARTS.finditer(name)][:depth]
            groups.setdefault(name[: ends[-1]] if ends else "", []).append(entry)
        return {path: Module(_counts(g), *_together(g)) for path, g in groups.items()}

    def _repr_html_(self) -> str:
        told = ", ".join(f"{count} {status}" for status, count in self.counts().items())
        entries = sorted(self.items(), key=lambda item: item[1].status == "identical")
        rows = ((e.status, name, e.base, e.rel_l2, e.max_abs, e.cosine) for name, e in entries)
        head = ("", "tensor", "was", "relative L2", "largest change", "cosine")
        caption = f"{self.base} → {self.tuned}: {told or 'nothing'}"
        return markup.table(caption, head, rows, len(self))

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "base": self.base,
            "tuned": self.tuned,
            "counts": self.counts(),
            "remarks": [msgspec.to_builtins(remark) for remark in self.remarks],
            "tensors": {name: _plain(entry) for name, entry in self.items()},
            "modules": {path: msgspec.to_builtins(m) for path, m in self.modules().items()},
        }

    def __str__(self) -> str:
        told = ", ".join(f"{count} {status}" for status, count in self.counts().items())
        rows = [f"{self.base} → {self.tuned}: {told or 'no tensors'}"]
        rows += [f"  note    {remark.text}" for remark in self.remarks]
        listed = {name: e for name, e in self.items() if e.status != "identical"}
        width = max(map(len, listed), default=0)
        rows += [
            f"  {e.status:<8}{name:<{width}}{_facts(e)}".rstrip() for name, e in listed.items()
        ]
        return "\n".join(rows)


def _counts(entries: Iterable[Entry]) -> dict[str, int]:
    states = [entry.status for entry in entries]
    return {status: states.count(status) for status in STATUSES if status in states}


def _together(entries: Iterable[Entry]) -> tuple[float, float]:
    """Relative L2 and the largest change, as of one vector."""
    known = [e for e in entries if e.norm == e.norm]
    if not known or any(e.l2 != e.l2 for e in known):
        return _NOT_A_NUMBER, _NOT_A_NUMBER
    norm, change = sum(e.norm**2 for e in known), sum(e.l2**2 for e in known)
    largest = max(e.max_abs for e in known)
    if not change:
        return 0.0, largest
    return (change / norm) ** 0.5 if norm else float("inf"), largest


def _plain(entry: Entry) -> dict[str, Any]:
    """With every number, also those that are not known."""
    told: dict[str, Any] = msgspec.to_builtins(entry)
    numbers = ("rel_l2", "max_abs", "cosine")
    return told | {name: getattr(entry, name) for name in numbers} | {"base": entry.base}


def _facts(entry: Entry) -> str:
    facts = ""
    if entry.status in ("fresh", "gone"):
        facts = f"  {entry.dtype}{list(entry.shape)}"
    if entry.status == "moved":
        facts = f"  L2 {entry.rel_l2:<8.3g}  max {entry.max_abs:<8.3g}  cos {entry.cosine:.6f}"
    if entry.rank == entry.rank:
        facts += f"  rank {entry.rank:.1f}"
    if entry.odd:
        facts += f"  {entry.odd} of NaN or Inf left out"
    facts += f"  was {entry.base}" if entry.base else ""
    facts += "".join(f", {op}" for op in entry.ops)
    return f"{facts}  {entry.note}" if entry.note else facts
