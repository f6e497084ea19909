"""What is told of a folder's checkpoints: edges from parent to child, and the trees they make."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from regraft import markup

Direction = Literal["certain", "likely", "open"]
_RESTS = {
    "values": "by values",
    "shape": "by the shape of the tree",
    "names and counters": "not without names or counters",
    "times": "only by times of the files",
}


class Edge(msgspec.Struct, frozen=True):
    """One file came from another.

    - `distance`: that of `kinship.distance`.
    - `direction`: `certain` (a lineage, a rounding, a mean), `likely`, or `open`: next to each
      other for sure, but which came first is a guess. `confidence`: its probability as far as the
      evidence's odds hold, for the tree of which it is part.
    - `rests`: what the direction could not do without: `values` alone, with these the `shape` of
      the tree (the middle of a star is its base), `names and counters`, or no less than the `times`
      of the files; what makes it certain; `""` where it is open.
    - `why`: reasons and their log-odds, the weightiest first.
    """

    parent: str
    child: str
    distance: float
    direction: Direction
    why: tuple[str, ...]
    confidence: float = 0.5
    rests: str = ""

    def __str__(self) -> str:
        how = self.direction
        if how == "likely":
            how += f" ({self.confidence:.0%}), {_RESTS[self.rests]}"
        first = f"; {self.why[0]}" if self.why else ""
        return f"distance {self.distance:.3g}, direction {how}{first}"


class FamilyTree(msgspec.Struct, frozen=True):
    """All files of a folder: `families` are groups of kin, their root first; `edges` go from parent
    to child (a merged file has several parents); `remarks` say what was not read, and why."""

    nodes: tuple[str, ...]
    edges: tuple[Edge, ...]
    families: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...] = ()

    @property
    def roots(self) -> tuple[str, ...]:
        """Files without a parent here."""
        children = {edge.child for edge in self.edges}
        return tuple(name for name in self.nodes if name not in children)

    def to_json(self) -> dict[str, Any]:
        pairs = [[edge.parent, edge.child] for edge in self.edges]
        told = {(e.parent, e.child): e for e in self.edges}
        return {
            "schema_version": 1,
            "nodes": list(self.nodes),
            "edges": pairs,
            "undirected": [[e.parent, e.child] for e in told.values() if e.direction == "open"],
            "evidence": [msgspec.to_builtins(edge) for edge in self.edges],
            "families": [list(family) for family in self.families],
            "remarks": list(self.remarks),
        }

    def __str__(self) -> str:
        rows = [f"{len(self.nodes)} files, {len(self.families)} families"]
        for root in self.roots:
            rows += self._rows(root, "", None)
        return "\n".join([*rows, *(f"note  {remark}" for remark in self.remarks)])

    def _repr_html_(self) -> str:
        rows = ((e.child, e.parent, e.distance, e.direction, "; ".join(e.why)) for e in self.edges)
        caption = f"{len(self.nodes)} files, {len(self.families)} families"
        head = ("file", "from", "distance", "direction", "why")
        return markup.table(caption, head, rows, len(self.edges))

    def _rows(self, name: str, indent: str, edge: Edge | None) -> Iterator[str]:
        yield f"{indent}{name}" + (f"  ({edge})" if edge else "")
        for one in self.edges:
            if one.parent == name:
                yield from self._rows(one.child, f"{indent}  ", one)
