"""Views: a catalogue seen with other tensors in the place of some of its own.

Two implementations of one layer may hold its weights differently: one fused kernel for q, k and v
or three of them, one tensor for all layers or one per layer, a weight or the parts it is computed
from. A `Rewrite` says how the old tensors make the new ones (`down`) and how the new ones make the
old ones again (`up`). Matching then pairs the tensors of two views one to one; a pairing becomes a
graft of stored tensors by putting the expressions of both sides together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from regraft.matching.modules import Module, conventions_of, modules_of
from regraft.operations import AnyOp, Concat, Each, Slice, infer, simplify
from regraft.plans import Evidence
from regraft.tensors import Catalogue, FlowNode, Skeleton, TensorInfo


class Expression(NamedTuple):
    """A tensor made of others: their names and the operations on them, in a graft's form."""

    names: tuple[str, ...]
    ops: tuple[AnyOp, ...] = ()

    @classmethod
    def of(cls, name: str) -> Expression:
        return cls((name,))


class Rewrite(NamedTuple):
    """Tensors `old` of a view seen as tensors `new`.

    - `down`: each new tensor from the old ones; `up`: each old tensor from the new ones. An old
      tensor that is not in `up` keeps the values it has (a LoRA factor beside the merged weight).
    - `text`: what this is, for people.
    - `owners`: layers of the dataflow that other ones stand for now, none where one is left out.
    - `adapts`: whether values are dropped, mixed or left to the target (`adapting`).
    """

    old: tuple[TensorInfo, ...]
    new: tuple[TensorInfo, ...]
    down: Mapping[str, Expression]
    up: Mapping[str, Expression]
    text: str
    owners: Mapping[str, tuple[str, ...]] = {}
    adapts: bool = False


@dataclass(frozen=True)
class View:
    """A catalogue after rewrites.

    - `catalogue`: what matching sees. `stored`: the catalogue as it is.
    - `made`: each seen tensor from stored ones. `held`: each stored tensor from seen ones.
    - `reasons`: for seen and for stored tensors that a rewrite touched, what it was.
    - `adapted`: seen tensors whose values are not all, or not only, those of stored ones.
    """

    catalogue: Catalogue
    stored: Catalogue
    made: Mapping[str, Expression]
    held: Mapping[str, Expression]
    reasons: Mapping[str, tuple[Evidence, ...]] = field(
        default_factory=dict[str, tuple[Evidence, ...]]
    )
    adapted: frozenset[str] = frozenset()

    @cached_property
    def framework(self) -> str:
        """Whose layouts the seen tensors follow: those of the stored ones, whatever new ones are
        called."""
        return conventions_of(self.stored)

    @cached_property
    def modules(self) -> list[Module]:
        """The layers that are seen."""
        return modules_of(self.catalogue, self.framework)

    @classmethod
    def plain(cls, catalogue: Catalogue) -> View:
        """The view in which every tensor is seen as it is stored."""
        itself = {name: Expression.of(name) for name in catalogue}
        return cls(catalogue, catalogue, itself, itself)

    def rewritten(self, rewrites: Iterable[Rewrite]) -> View:
        """The view with these rewrites, which touch different tensors, on top of its own."""
        rewrites = list(rewrites)
        if not rewrites:
            return self
        place: dict[str, Rewrite] = {r.old[0].name: r for r in rewrites}
        gone = {info.name for r in rewrites for info in r.old}
        infos: list[TensorInfo] = []
        for name, info in self.catalogue.items():
            if name in place:
                infos += place[name].new
            elif name not in gone:
                infos.append(info)
        made = {name: e for name, e in self.made.items() if name not in gone}
        up: dict[str, Expression] = {n: Expression.of(n) for n in self.catalogue if n not in gone}
        reasons = dict(self.reasons)
        for rewrite in rewrites:
            made |= {name: composed(e, self.made) for name, e in rewrite.down.items()}
            up |= rewrite.up
            says = (Evidence("rewrite", 0.0, rewrite.text),)
            touched = [info.name for info in (*rewrite.new, *rewrite.old)]
            reasons |= {name: (*reasons.get(name, ()), *says) for name in touched}
        held = {
            name: composed(e, up) for name, e in self.held.items() if all(n in up for n in e.names)
        }
        owners = {old: new for r in rewrites for old, new in r.owners.items()}
        return replace(
            self,
            catalogue=with_tensors(self.catalogue, infos, _moved(self.catalogue.flow, owners)),
            made=made,
            held=held,
            reasons=reasons,
            adapted=self.adapted | {info.name for r in rewrites if r.adapts for info in r.new},
        )


def without(catalogue: Catalogue, names: Collection[str]) -> Catalogue:
    """The catalogue without these tensors; its dataflow stays whole."""
    if not names:
        return catalogue
    kept = [info for name, info in catalogue.items() if name not in names]
    return with_tensors(catalogue, kept, catalogue.flow)


def with_tensors(
    catalogue: Catalogue, infos: Iterable[TensorInfo], flow: Iterable[FlowNode]
) -> Catalogue:
    """The catalogue with other tensors; ties among those that stay."""
    infos = list(infos)
    names = {info.name for info in infos}
    ties = [tuple(n for n in group if n in names) for group in catalogue.ties]
    make = Skeleton if isinstance(catalogue, Skeleton) else Catalogue
    return make(
        infos,
        framework=catalogue.framework,
        order=catalogue.order,
        ties=[group for group in ties if len(group) > 1],
        container=catalogue.container,
        label=catalogue.label,
        metadata=catalogue.metadata,
        notes=catalogue.notes,
        flow=flow,
        settings=catalogue.settings,
    )


def _moved(flow: Sequence[FlowNode], owners: Mapping[str, tuple[str, ...]]) -> tuple[FlowNode, ...]:
    """The dataflow with other layers in some places: several stand side by side."""
    if not owners:
        return tuple(flow)
    result: list[FlowNode] = []
    ends: list[tuple[int, ...]] = []
    for node in flow:
        inputs = tuple(dict.fromkeys(end for i in node.inputs for end in ends[i]))
        standing = owners.get(node.owner, (node.owner,))
        start = len(result)
        result += [node._replace(owner=owner, inputs=inputs) for owner in standing]
        ends.append(tuple(range(start, len(result))) or inputs)
    return tuple(result)


def composed(expression: Expression, inner: Mapping[str, Expression]) -> Expression:
    """`expression` with every name replaced by the expression that makes it."""
    parts = [inner[name] for name in expression.names]
    names = tuple(name for part in parts for name in part.names)
    if not any(part.ops for part in parts):
        return Expression(names, expression.ops)
    if len(parts) == 1:
        return Expression(names, simplify((*parts[0].ops, *expression.ops)))
    counts = tuple(len(part.names) for part in parts)
    each = Each(counts, tuple(part.ops for part in parts))
    return Expression(names, (each, *expression.ops))


def tidied(expression: Expression, shapes: Mapping[str, tuple[int, ...]]) -> Expression:
    """The same in fewer steps: slices of one tensor that are joined again in order are that
    tensor; equal branches are no branches."""
    names, ops = expression
    if len(ops) < 1 or not isinstance(ops[0], Each):
        return expression
    each, rest = ops[0], ops[1:]
    if any(count != 1 for count in each.counts):
        return expression
    whole = _rejoined(names, each, rest, shapes)
    if whole is not None:
        return whole
    if len(set(each.branches)) == 1:
        return Expression(names, simplify((*each.branches[0], *rest)))
    return expression


def _rejoined(
    names: tuple[str, ...],
    each: Each,
    rest: tuple[AnyOp, ...],
    shapes: Mapping[str, tuple[int, ...]],
) -> Expression | None:
    """Concat of Slices that cover one tensor in order, with like steps before and after."""
    if len(set(names)) > 1 or not rest or not isinstance(rest[0], Concat):
        return None
    cuts = [next((i for i, op in enumerate(b) if isinstance(op, Slice)), -1) for b in each.branches]
    if len(set(cuts)) > 1 or cuts[0] < 0:
        return None
    before, after = each.branches[0][: cuts[0]], each.branches[0][cuts[0] + 1 :]
    if any(b[: cuts[0]] != before or b[cuts[0] + 1 :] != after for b in each.branches) or after:
        return None
    slices = [b[cuts[0]] for b in each.branches]
    whole = infer(before, (shapes[names[0]],))
    starts = [s.start for s in slices if isinstance(s, Slice)]
    stops = [s.stop for s in slices if isinstance(s, Slice)]
    axes = {s.axis for s in slices if isinstance(s, Slice)}
    if axes != {rest[0].axis} or starts != [0, *stops[:-1]] or stops[-1] != whole[rest[0].axis]:
        return None
    return Expression(names[:1], simplify((*before, *rest[1:])))
