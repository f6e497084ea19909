"""Other input channels: a model of colour images for grey ones, or for more bands.

The rules are those of timm's `adapt_input_conv`: for one channel the kernels of all channels are
summed, which is what grey images in all channels would have given; for more channels they are
repeated in turn, cut to the number wanted, and scaled so that equal values in all channels give
what they gave before. It is done to the first convolution only, where the data comes in; everywhere
else other numbers of channels mean another layer. Grouped and depthwise kernels are left alone, and
so are stems that have moved space to channels (12 channels of 3 colours), whose channels are not
alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from regraft.matching.adapting.changes import Change, Half, Situation, Way
from regraft.matching.layouts import entries_wanted
from regraft.matching.modules import Leaf, Module, parts_of
from regraft.operations import AnyOp, Scale, Slice, Sum, Tile

_COLOURS = 3


def find(situation: Situation) -> Iterable[Change]:
    def fits(source: Module, target: Module) -> bool:
        return (
            _axis(source, target) is not None
            and _is_first(source, situation.source)
            and _is_first(target, situation.target)
        )

    for source, target in situation.left.pairs(fits, _is_convolution):
        ours, theirs = source.leaves["kernel"], target.leaves["kernel"]
        axis = _axis(source, target)
        assert axis is not None  # as `fits` has found
        counts = ours.info.shape[axis], entries_wanted(ours, theirs, axis)
        yield Change(ours, theirs, (_way(axis, *counts),))


def _is_convolution(module: Module) -> bool:
    kernel = module.leaves.get("kernel")
    return kernel is not None and len(kernel.info.shape) > 2 and kernel.kind in ("", "plain")


def _axis(source: Module, target: Module) -> int | None:
    """The axis of the source's kernel that holds input channels, where nothing else differs."""
    ours, theirs = source.leaves["kernel"], target.leaves["kernel"]
    axes = {"torch": (1,), "keras": (-2,), "jax": (-2,)}.get(ours.framework, (1, -2))
    found = [axis % len(ours.info.shape) for axis in axes if _fits_along(ours, theirs, axis)]
    return found[0] if len(found) == 1 else None


def _fits_along(ours: Leaf, theirs: Leaf, axis: int) -> bool:
    before, after = ours.info.shape[axis], entries_wanted(ours, theirs, axis)
    hidden = before > _COLOURS and before % _COLOURS == 0  # may be space moved to channels
    return 0 < after != before and not hidden


def _is_first(module: Module, half: Half) -> bool:
    """Whether data comes in here, ungrouped: by the graph, else by the order of definition; a side
    that tells neither is believed where it has as many channels as images have."""
    catalogue = half.catalogue
    if catalogue.settings.get(module.name, {}).get("groups", 1) != 1:
        return False
    nodes = [n for n in catalogue.flow if n.owner and tuple(parts_of(n.owner)) == module.path]
    if nodes:
        return all(not node.inputs for node in nodes)
    kernel = module.leaves["kernel"]
    convolutions = [leaf for leaf in half.kernels if len(leaf.info.shape) > 2]
    if catalogue.order != "sorted":
        return kernel is convolutions[0]
    few = min(kernel.info.shape[1], kernel.info.shape[-2])
    return few in (1, _COLOURS)


def _way(axis: int, before: int, after: int) -> Way:
    if after == 1:
        return Way(f"{before} input channels summed to one, as timm does", (Sum(axis),))
    times = ceil(after / before)
    ops: list[AnyOp] = [Tile(axis, times)] if times > 1 else []
    if times * before > after:
        ops.append(Slice(axis, 0, after))
    done = "repeated" if times > 1 else "cut"
    return Way(
        f"{before} input channels {done} to {after} and scaled by {before}/{after}, as timm does",
        (*ops, Scale(before / after)),
    )
