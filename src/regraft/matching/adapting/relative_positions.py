"""Tables of relative positions for windows of another size (Swin, BEiT, MaxViT).

A table has one row for each distance in two directions, `[(2h - 1)(2w - 1), heads]`, or shows its
sides, `[heads, 2h - 1, 2w - 1]`. It is resized as timm's `resize_rel_pos_bias_table` does (which
comes from BEiT): distances near zero keep their meaning, and far ones spread geometrically. BEiT's
three rows for the class token, the last ones, are kept as they are. Windows that are not square are
not known from the number of rows. The indices into the table (`relative_position_index`) are
constants of the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import isqrt

from regraft.matching.adapting.changes import Change, Situation, Way, only
from regraft.matching.modules import Leaf, Module
from regraft.operations import AnyOp, Concat, Each, Interpolate, Reshape, Slice

_NAMES = re.compile(r"^(relative_position_bias_table|rel_pos_bias|relative_position_bias)$")
# Rows behind the grid: none, or those from, to and between class tokens.
_ROWS_BEHIND = (0, 3)


def find(situation: Situation) -> Iterable[Change]:
    for source, target in situation.left.pairs(_fits, _is_table):
        ours, theirs = only(source), only(target)
        way = _shown(ours, theirs) if len(ours.info.shape) == 3 else _flat(ours, theirs)
        unknown = "relative positions of a window that is not square: its sides are not known"
        yield Change(ours, theirs, (way,) if way else (), "" if way else unknown)


def _is_table(module: Module) -> bool:
    named = any(_NAMES.match(part.lower()) for part in module.path[-2:])
    return named and len(module.leaves) == 1 and len(only(module).info.shape) in (2, 3)


def _fits(source: Module, target: Module) -> bool:
    here, there = only(source).info.shape, only(target).info.shape
    heads = -1 if len(here) == 2 else 0
    return len(here) == len(there) and here != there and here[heads] == there[heads]


def _flat(ours: Leaf, theirs: Leaf) -> Way | None:
    (before, heads), after = ours.info.shape, theirs.info.shape[0]
    behind = [n for n in _ROWS_BEHIND if _window(before - n) and _window(after - n)]
    if len(behind) != 1:
        return None
    rows = behind[0]
    side, wanted = isqrt(before - rows), isqrt(after - rows)
    resized: tuple[AnyOp, ...] = (
        Reshape((side, side, heads)),
        Interpolate((0, 1), (wanted, wanted), "geometric", False),
        Reshape((wanted * wanted, heads)),
    )
    text = _text((side, side), (wanted, wanted))
    if not rows:
        return Way(text, resized)
    branches = ((Slice(0, 0, before - rows), *resized), (Slice(0, before - rows, before),))
    return Way(f"{text}; {rows} rows behind kept", (Each((1, 1), branches), Concat(0)), copies=2)


def _shown(ours: Leaf, theirs: Leaf) -> Way | None:
    here, there = ours.info.shape[1:], theirs.info.shape[1:]
    if any(size % 2 == 0 for size in (*here, *there)):
        return None
    return Way(_text(here, there), (Interpolate((1, 2), there, "geometric", False),))


def _window(rows: int) -> bool:
    """Whether so many rows are the distances in a square window."""
    return rows > 0 and isqrt(rows) ** 2 == rows and isqrt(rows) % 2 == 1


def _text(here: tuple[int, ...], there: tuple[int, ...]) -> str:
    windows = [f"{(h + 1) // 2} × {(w + 1) // 2}" for h, w in (here, there)]
    return f"relative positions resized from windows of {windows[0]} to {windows[1]}, as timm does"
