"""Learned positions for more or fewer places than the source has.

*Grids* (vision): as timm's `resample_abs_pos_embed`. Up to two tokens before the grid (class,
distillation) are kept as they are; their number is the one for which what is left is a grid on both
sides. The grid is resized bicubically with antialiasing. A table `[1, N, D]` does not show the
sides of its grid: they are what a live model's settings say, else it is taken to be square, or the
question stays open. Tables that show their grid, `[1, H, W, D]`, need neither.

*Sequences* (text, sound): positions count from the start on both sides. A shorter table has the
first rows; a longer one has the source's rows first, and the model's own behind them: what no
training has seen is not made up. fairseq's models, and those that come from them (RoBERTa, BART,
OPT), begin to count at 2, behind the padding's number, so that their tables have two rows more
than there are positions. Between implementations that name their layers otherwise, tables that
differ by these two rows are shifted where the longer side's settings say so, or where the shorter
one has a round number of rows (512 beside 514); else both ways are open.

Which of the two it is, the layers near by tell: a table of tokens or a convolution over one axis
stands beside the positions of a sequence, one over two axes beside those of a grid. Where nothing
tells, both ways are open.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import isqrt, prod

from regraft.matching.adapting.changes import Change, Half, Situation, Way, only
from regraft.matching.adapting.vocabularies import is_vocabulary
from regraft.matching.modules import Leaf, Module
from regraft.operations import AnyOp, Concat, Each, Interpolate, Keep, Reshape, Slice

_NAMES = re.compile(r"(^|_)(wpe|pos|posemb|position|positions|positional|posembed)(_|$)")
# Rows before the first position in models that come from fairseq.
_OFFSET = 2
# Class and distillation tokens before a grid.
_TOKENS_BEFORE = (0, 1, 2)


def find(situation: Situation) -> Iterable[Change]:
    for source, target in situation.left.pairs(_fits, _is_table):
        kind = _kind(target, situation.target) or _kind(source, situation.source)
        halves = situation.source, situation.target
        change = _change(only(source), only(target), kind, halves)
        shifted = None if situation.left.same_naming else _shifted(change, kind)
        if shifted is None:
            yield change
        elif _counts_from_offset(shifted, halves):
            yield change._replace(ways=(shifted,), reason="")
        else:
            unknown = "the longer table may have two rows before the first position"
            yield change._replace(ways=(*change.ways, shifted), reason=unknown)


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


def _change(ours: Leaf, theirs: Leaf, kind: str, halves: tuple[Half, Half]) -> Change:
    if len(_sizes(ours)) == 3:
        return Change(ours, theirs, (_shown_grid(ours, _sizes(theirs)[:2]),))
    grid, sequence = _grid(ours, theirs, halves), _sequence(ours, theirs)
    if kind == "sequence":
        return Change(ours, theirs, (sequence,))
    if kind == "grid":
        unknown = "positions of a grid that is not square: its sides are not known"
        return Change(ours, theirs, (grid,) if grid else (), "" if grid else unknown)
    unknown = "positions of a grid or of a sequence: no layer near by tells which"
    return Change(ours, theirs, (grid, sequence) if grid else (sequence,), unknown)


def _grid(ours: Leaf, theirs: Leaf, halves: tuple[Half, Half]) -> Way | None:
    """The grid resized, the tokens before it kept apart."""
    shape = ours.info.shape
    axis = len(shape) - 2
    before, after = shape[axis], _sizes(theirs)[0]
    found = {
        apart: sides
        for apart in _TOKENS_BEFORE
        if all(sides := (_sides(halves[0], before - apart), _sides(halves[1], after - apart)))
    }
    if len(found) != 1:
        return None
    [(apart, (here, there))] = found.items()
    lead, width = shape[:axis], shape[-1]
    resized: tuple[AnyOp, ...] = (
        Reshape((*lead, *here, width)),
        Interpolate((axis, axis + 1), there),
        Reshape((*lead, prod(there), width)),
    )
    text = f"a grid of positions resized from {here[0]} × {here[1]} to {there[0]} × {there[1]}, "
    text += "bicubic with antialiasing, as timm does"
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


def _shifted(change: Change, kind: str) -> Way | None:
    """Two rows before the first position, in the longer of two tables."""
    ours, theirs = change.source, change.target
    before, after = _sizes(ours)[0], _sizes(theirs)[0]
    if kind != "sequence" or len(_sizes(ours)) != 2 or abs(before - after) != _OFFSET:
        return None
    if after < before:
        text = f"{after} positions behind the {_OFFSET} rows that stand before the first one"
        return Way(text, (Slice(len(ours.info.shape) - 2, _OFFSET, before),))
    keep = Keep(len(theirs.info.shape) - 2, after, _OFFSET)
    text = f"{before} positions; the {_OFFSET} rows before the first one stay the model's own"
    return Way(text, keep=keep)


def _counts_from_offset(way: Way, halves: tuple[Half, Half]) -> bool:
    """Whether the longer table is known to begin with rows of no position."""
    longer = halves[1] if way.keep else halves[0]
    told = ((s.get("offset"), s.get("padding_idx")) for s in longer.catalogue.settings.values())
    if any(offset == _OFFSET or padding == _OFFSET - 1 for offset, padding in told):
        return True
    rows = way.keep.size if way.keep else next(op.stop for op in way.ops if isinstance(op, Slice))
    places = rows - _OFFSET
    return places >= 16 and places & (places - 1) == 0


def _sides(half: Half, places: int) -> tuple[int, ...]:
    """The sides of a grid of so many places: as the model's settings say, else those of a square;
    `()` where it is none."""
    told = {sides for sides in _told_grids(half) if prod(sides) == places}
    side = isqrt(max(places, 0))
    if told:
        return told.pop() if len(told) == 1 else ()
    return (side, side) if places > 0 and side * side == places else ()


def _told_grids(half: Half) -> Iterable[tuple[int, ...]]:
    """Grids that layers of a live model name, or that follow from sizes of images and patches."""
    for settings in half.catalogue.settings.values():

        def sides(key: str, settings: Mapping[str, object] = settings) -> list[int]:
            named = [settings.get(f"{key}.{i}", settings.get(key)) for i in (0, 1)]
            return [value for value in named if isinstance(value, int) and value > 0]

        image, patch = sides("image_size") or sides("img_size"), sides("patch_size")
        if grid := sides("grid_size"):
            yield tuple(grid)
        elif len(image) == len(patch) == 2:
            yield tuple(i // p for i, p in zip(image, patch, strict=True))


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
