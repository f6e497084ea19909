"""Lists of arrays: what `get_weights` gives and `numpy.savez` keeps, places instead of names.

The k-th array of a list is meant for the k-th tensor; that is how `set_weights` reads it. Where a
list has as many arrays as the model has tensors, and every one of them has the shape of its place,
it is a list of just this model, and is settled. Where shapes fit only through other layouts it was
another implementation's, which may list its layers in another order: that is an open question, of
which a probe settles all at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from regraft.matching.layouts import conversions
from regraft.matching.modules import Leaf
from regraft.matching.settling import Settled, alternative, graft, spec_of
from regraft.operations import AnyOp
from regraft.plans import Evidence, Undecided
from regraft.tensors import Catalogue, TensorInfo

# `arr_0`, as numpy.savez names them, and the places of a list that was pickled.
_PLACE = re.compile(r"(arr_|(?:[^0-9]*[./])?)(\d{1,9})")
_LEAST = 2


def settle_list(
    source: Catalogue, target: Catalogue, leaves: Mapping[str, Leaf], state: Settled
) -> bool:
    """Settles or opens all of the target, where the source is a list of as many tensors."""
    arrays = _list_of(source)
    if len(arrays) < _LEAST or state.grafts or state.pairs or target.order == "sorted":
        return False
    for wanted in (list(target.values()), [t for t in target.values() if t.kind == "weight"]):
        if [a.shape for a in arrays] == [t.shape for t in wanted]:
            says = Evidence("order", 2.0, "a list: as many arrays, each of the shape of its place")
            for array, info in zip(arrays, wanted, strict=True):
                state.grafts[info.name] = graft(info, [array], (), (says,))
            return True
        ways = [_ways(a, t, leaves) for a, t in zip(arrays, wanted, strict=False)]
        if len(arrays) == len(wanted) and all(ways):
            _open(arrays, wanted, ways, state)
            return True
    return False


def _list_of(source: Catalogue) -> list[TensorInfo]:
    """The arrays in their places; none where this is no list."""
    found = [_PLACE.fullmatch(name) for name in source]
    places = [int(match[2]) for match in found if match]
    if len({match[1] for match in found if match}) != 1 or len(places) < len(source):
        return []
    if sorted(places) != list(range(len(places))):
        return []
    return [info for _, info in sorted(zip(places, source.values(), strict=True))]


def _ways(
    array: TensorInfo, info: TensorInfo, leaves: Mapping[str, Leaf]
) -> list[tuple[AnyOp, ...]]:
    """How an array whose role is that of its place can be laid out for it."""
    leaf = leaves.get(info.name)
    if leaf is None:
        return [()] if array.shape == info.shape else []
    there = Leaf(array, leaf.role, "", leaf.kind)
    return [conversion.ops for conversion in conversions(there, leaf)]


def _open(
    arrays: Sequence[TensorInfo],
    wanted: Sequence[TensorInfo],
    ways: Sequence[Sequence[tuple[AnyOp, ...]]],
    state: Settled,
) -> None:
    for array, info, several in zip(arrays, wanted, ways, strict=True):
        made = [graft(info, [array], ops) for ops in several]
        state.undecided[info.name] = Undecided(
            spec_of(info),
            f"{array.name} of a list is at its place and fits in another layout; whether the list "
            "has the model's order is not told",
            tuple(map(alternative, made)),
            "list",
        )
