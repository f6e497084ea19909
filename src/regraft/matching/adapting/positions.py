"""Learned positions for more or fewer places than the source has.

*Grids* (vision): as timm's `resample_abs_pos_embed`. Up to two tokens before the grid (class,
distillation) are kept as they are; their number is the one for which what is left is a square on
both sides. The grid is resized bicubically with antialiasing. Grids that are not square are not
known from a table `[1, N, D]` and stay open; tables that show their grid, `[1, H, W, D]`, need
neither.

*Sequences* (text, sound): positions count from the start on both sides. A shorter table has the
first rows; a longer one has the source's rows first, and the model's own behind them: what no
training has seen is not made up.

Which of the two it is, the layers near by tell: a table of tokens or a convolution over one axis
stands beside the positions of a sequence, one over two axes beside those of a grid. Where nothing
tells, both ways are open.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import isqrt, prod

from regraft.matching.adapting.changes import Change, Half, Situation, Way, only
from regraft.matching.adapting.vocabularies import is_vocabulary
from regraft.matching.modules import Leaf, Module
from regraft.operations import AnyOp, Concat, Each, Interpolate, Keep, Reshape, Slice

_NAMES = re.compile(r"(^|_)(wpe|pos|posemb|position|positions|positional|posembed)(_|$)")
# Class and distillation tokens before a grid.
_TOKENS_BEFORE = (0, 1, 2)


def find(situation: Situation) -> Iterable[Change]:
    for source, target in situation.left.pairs(_fits, _is_table):
        kind = _kind(target, situation.target) or _kind(source, situation.source)
        yield _change(only(source), only(target), kind)


def is_position(module: Module) -> bool:
    """Whether a layer's name says that it holds positions, and not relative ones."""
    # A tensor without a role of its own has its name before the number that tells it apart.
    own = module.path[-2:] if "other" in module.leaves else module.path[-1:]
    told = [part.lower() for part in own]
    return any(map(_NAMES.search, told)) and not any("rel" in part for part in told)


def _is_table(module: Module) -> bool:
    return len(module.leaves) == 1 and is_position(module) and len(_sizes(only(module))) in (2, 3)


def _sizes(leaf: Leaf) -> tuple[int, ...]:
    """The shape without the leading axes that broadcast over the batch."""
    shape = leaf.info.shape
    return shape[1:] if len(shape) > 2 and shape[0] == 1 else shape


def _fits(source: Module, target: Module) -> bool:
    here, there = _sizes(only(source)), _sizes(only(target))
    return len(here) == len(there) and here != there and here[-1] == there[-1]


def _change(ours: Leaf, theirs: Leaf, kind: str) -> Change:
    if len(_sizes(ours)) == 3:
        return Change(ours, theirs, (_shown_grid(ours, _sizes(theirs)[:2]),))
    ways = {"grid": _grid(ours, theirs), "sequence": _sequence(ours, theirs)}
    if kind == "sequence" or (kind == "grid" and ways["grid"]):
        chosen = ways[kind]
        return Change(ours, theirs, (chosen,) if chosen else ())
    known = tuple(way for way in ways.values() if way)
    if kind == "grid":
        return Change(ours, theirs, known, "positions of a grid that is not square: its sides are "
                      "not known")  # fmt: skip
    return Change(ours, theirs, known, "positions of a grid or of a sequence: no layer near by "
                  "tells which")  # fmt: skip


def _grid(ours: Leaf, theirs: Leaf) -> Way | None:
    """The square grid resized, the tokens before it kept apart."""
    shape = ours.info.shape
    axis = len(shape) - 2
    before, after = shape[axis], _sizes(theirs)[0]
    counts = [n for n in _TOKENS_BEFORE if _square(before - n) and _square(after - n)]
    if len(counts) != 1:
        return None
    apart = counts[0]
    side, wanted = isqrt(before - apart), isqrt(after - apart)
    lead, width = shape[:axis], shape[-1]
    resized: tuple[AnyOp, ...] = (
        Reshape((*lead, side, side, width)),
        Interpolate((axis, axis + 1), (wanted, wanted)),
        Reshape((*lead, wanted * wanted, width)),
    )
    text = f"a grid of positions resized from {side} × {side} to {wanted} × {wanted}, bicubic "
    text += "with antialiasing, as timm does"
    if not apart:
        return Way(text, resized)
    branches = ((Slice(axis, 0, apart),), (Slice(axis, apart, before), *resized))
    text += f"; {apart} token{'s' if apart > 1 else ''} before it kept"
    return Way(text, (Each((1, 1), branches), Concat(axis)), copies=2)


def _shown_grid(ours: Leaf, wanted: tuple[int, ...]) -> Way:
    axis = len(ours.info.shape) - 3
    text = f"a grid of positions resized to {wanted[0]} × {wanted[1]}, bicubic with antialiasing"
    return Way(text, (Interpolate((axis, axis + 1), wanted),))


def _sequence(ours: Leaf, theirs: Leaf) -> Way:
    before, after = _sizes(ours)[0], _sizes(theirs)[0]
    if after < before:
        axis = len(ours.info.shape) - 2
        return Way(f"the first {after} of {before} positions", (Slice(axis, 0, after),))
    axis = len(theirs.info.shape) - 2
    return Way(
        f"the first {before} positions; the other {after - before} stay the model's own",
        keep=Keep(axis, after),
    )


def _square(number: int) -> bool:
    return number > 0 and isqrt(number) ** 2 == number


def _kind(module: Module, half: Half) -> str:
    """`grid` or `sequence`, as the nearest layers say that take in data; `""` where none does."""
    found: dict[str, int] = {}
    for other in half.modules:
        told = "sequence" if is_vocabulary(other) and not is_position(other) else _space(other)
        if told:
            shared = sum(1 for _ in _while_equal(module.path, other.path))
            # Layers further out say less; of those equally far out, the ones less deep say more.
            away = (len(module.path) - shared) * 100 + len(other.path) - shared
            found[told] = min(found.get(told, away), away)
    nearest = min(found.values(), default=0)
    kinds = [kind for kind, away in found.items() if away == nearest]
    return kinds[0] if len(kinds) == 1 and kinds[0] != "volume" else ""


def _space(module: Module) -> str:
    kernel = module.leaves.get("kernel")
    shape = kernel.info.shape if kernel else ()
    if prod(shape[:1]) < 2:
        return ""
    return {3: "sequence", 4: "grid", 5: "volume"}.get(len(shape), "")


def _while_equal(a: tuple[str, ...], b: tuple[str, ...]) -> Iterable[str]:
    for one, other in zip(a, b, strict=False):
        if one != other:
            return
        yield one
