"""Flatten order: a dense layer behind a flattened map reads its inputs in the order of the axes.

Channels-last data `[h, w, c]` and channels-first data `[c, h, w]` flatten in different orders, so
that the dense kernel's inputs must be reordered when weights move between the two. Its shape says
nothing of it. What tells: the layer before has `c` channels, and the kernel has `k·c` inputs.

A graph that shows a plain flatten, or one after moving the channels, is certain. Where a file has
none, its framework's order is taken: of Keras and Flax channels last, of PyTorch channels first.
With no graph on either side both must have a convolution, or its BatchNorm, of the same `c` right
before the kernel, and `k` must be the square of 2 or more. A live model whose code could not be
followed may do anything, and an ONNX graph, which lays maps out channels first, comes from
anywhere: the order is then an open question.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isqrt
from typing import NamedTuple

from regraft.matching.kinds import FROM_HEADS, HEADS_FIRST, TO_HEADS
from regraft.matching.layouts import CHANNELS_FIRST, CHANNELS_LAST, Conversion
from regraft.matching.modules import Leaf, Module, parts_of
from regraft.operations import Reshape, Transpose, infer, simplify
from regraft.tensors import Catalogue, FlowNode, Skeleton

Via = tuple[str, ...]
# The order in which frameworks' maps lie when they are flattened.
_ORDERS = {"keras": "last", "jax": "last", "torch": "first", "onnx": "first"}
_OTHER = {"last": "first", "first": "last"}
_HEADS = (TO_HEADS, FROM_HEADS, HEADS_FIRST)
# Frameworks whose models flatten alike unless a graph shows otherwise.
_OWN_MAPS = ("keras", "jax", "torch")


class Flat(NamedTuple):
    """What is known of a dense layer's inputs.

    - `channels`: how many a flattened map before it may have; none: there is no such map.
    - `via`: what the data goes through on the way, `None` where there is no graph.
    - `usual`: whether nothing speaks against the framework's own order.
    """

    channels: frozenset[int]
    via: Via | None
    usual: bool = True


def flattened(catalogue: Catalogue, modules: Sequence[Module]) -> dict[str, Flat]:
    """By the name of its kernel, each dense layer, and what it may read."""
    if not catalogue.flow:
        code = isinstance(catalogue, Skeleton) and catalogue.framework != "jax"
        ordered = catalogue.order != "sorted"
        return dict(_from_order(modules, usual=not code, ordered=ordered))
    known = {name: flat.channels for name, flat in _from_order(modules, usual=False)}
    found = dict(_from_flow(catalogue.flow, {module.path: module for module in modules}, known))
    if "channels_first" in catalogue.metadata.get("model_config", ""):
        # Keras then flattens some maps in one order and some in the other.
        return {name: Flat(flat.channels, None, usual=False) for name, flat in found.items()}
    return found


def _from_order(
    modules: Sequence[Module], *, usual: bool, ordered: bool = True
) -> Iterable[tuple[str, Flat]]:
    """By what stands before each dense layer. In a sorted file that may be any layer: where some
    map has as many channels as the kernel has inputs, it may as well be that one that is read."""
    channels: frozenset[int] = frozenset()
    maps = frozenset[int]()
    if not ordered:
        maps = maps.union(*(_channels(m, maps) for m in modules if not _dense_kernel(m)))
    for module in modules:
        kernel = _dense_kernel(module)
        if kernel:
            found = _multiples(kernel, channels)
            doubted = any(size in maps for size in _input_sizes(kernel))
            if doubted and not any(_square(kernel, c) for c in found):
                found = frozenset[int]()
            yield kernel.info.name, Flat(found, None, usual and not (doubted and found))
        stays = "kernel" in module.leaves or "var" in module.leaves
        channels = _channels(module, channels) if stays else frozenset[int]()


def _from_flow(
    flow: Sequence[FlowNode],
    modules: Mapping[tuple[str, ...], Module],
    in_order: Mapping[str, frozenset[int]],
) -> Iterable[tuple[str, Flat]]:
    """By the graph; behind a step whose inside it does not show, by the order of definition."""
    inside = {path[:cut] for path in modules for cut in range(1, len(path))}
    ends: list[frozenset[int] | None] = []  # None: not known
    passing: list[Via] = []  # steps that have reached the end of a node without weights
    for node in flow:
        own = (step for step in node.via if step != "pool")
        via = (*(step for i in node.inputs for step in passing[i]), *own)
        before = [ends[i] for i in node.inputs]
        path = tuple(parts_of(node.owner)) if node.owner else ()
        module = modules.get(path)
        channels = None if None in before else _joined([c for c in before if c is not None])
        if module:
            kernel = _dense_kernel(module)
            if kernel and channels is not None:
                yield kernel.info.name, Flat(_multiples(kernel, channels), via)
            elif kernel:
                guessed = in_order[kernel.info.name]
                yield kernel.info.name, Flat(guessed, via if guessed else None)
            channels = _channels(module, channels or frozenset())
        elif path in inside:
            channels = None
        ends.append(channels)
        passing.append(() if module else via)


def _joined(channels: Sequence[frozenset[int]]) -> frozenset[int]:
    """Channels of a map where several come together: as many, or the sum in a concatenation."""
    together = frozenset[int]().union(*channels)
    if len(channels) > 1 and all(channels):
        together |= {sum(max(part) for part in channels)}
    return together


def _dense_kernel(module: Module) -> Leaf | None:
    kernel = module.leaves.get("kernel")
    return kernel if kernel and len(kernel.info.shape) == 2 else None


def _multiples(kernel: Leaf, channels: frozenset[int]) -> frozenset[int]:
    """Channel counts of which the kernel's inputs are a multiple."""
    sizes = _input_sizes(kernel)
    return frozenset(c for c in channels if any(n > c > 1 and n % c == 0 for n in sizes))


def _input_sizes(kernel: Leaf) -> tuple[int, ...]:
    """How many inputs a dense kernel has, or may have where its layout is not known."""
    return (kernel.info.shape[_inputs_axis(kernel)],) if kernel.framework else kernel.info.shape


def _inputs_axis(kernel: Leaf) -> int:
    """Where a dense kernel has its inputs."""
    return int(kernel.framework not in CHANNELS_LAST and kernel.kind != "matmul")


def _channels(module: Module, before: frozenset[int]) -> frozenset[int]:
    """Channels of a module's output where it is a map; none after a dense layer."""
    kernel = module.leaves.get("kernel")
    if kernel and (len(kernel.info.shape) == 2 or kernel.kind in _HEADS):
        return frozenset()
    vectors = {leaf.info.shape[0] for leaf in module.leaves.values() if len(leaf.info.shape) == 1}
    if vectors and (kernel or before):
        return frozenset(vectors)
    if kernel and len(kernel.info.shape) > 2:
        return _outputs(kernel)
    return before


def _outputs(kernel: Leaf) -> frozenset[int]:
    """Numbers of channels that a convolution's kernel may give, by its layout."""
    shape = kernel.info.shape
    torch = kernel.framework in CHANNELS_FIRST
    ends = {shape[0]} if torch else {shape[-1]} if kernel.framework else {shape[0], shape[-1]}
    if kernel.kind == "transposed":
        ends = {shape[1]} if torch else {shape[-2], shape[-1]}
    elif kernel.kind == "depthwise" and not torch:
        ends = {shape[-2] * shape[-1]}
    return frozenset(ends)


def variants(
    source: Leaf,
    target: Leaf,
    plain: Conversion,
    flats: tuple[Flat | None, Flat | None],
) -> tuple[Conversion, ...]:
    """The conversions of a dense kernel under the flatten orders that are possible.

    One conversion where the order is certain or none was flattened; the reordered ones first.
    """
    ours, theirs = flats
    if max(len(source.info.shape), len(target.info.shape)) > 2:
        return (plain,)  # a convolution over the whole map shows where its inputs lie
    if not any(flat and flat.channels for flat in flats):
        return (plain,)
    if any(flat and flat.via is not None and not flat.channels for flat in flats):
        return (plain,)  # a graph shows that no map is flattened here
    here, there = _order(source, ours), _order(target, theirs)
    if here == there != "":
        return (plain,)
    if not (here and there) and source.framework == target.framework in _OWN_MAPS:
        return (plain,)
    channels = frozenset[int]().union(*(flat.channels for flat in flats if flat))
    both = ours.channels & theirs.channels if ours and theirs else frozenset[int]()
    channels = both or channels
    certain = bool(here and there) and (
        any(_shown(*side) for side in ((source, ours), (target, theirs)))
        or any(_square(target, c) for c in both)
    )
    order = here or _OTHER.get(there) or _ORDERS.get(source.framework, "last")
    reordered = [_reordered(source, target, plain, c, order == "last") for c in sorted(channels)]
    return tuple(reordered) if certain and len(reordered) == 1 else (*reordered, plain)


def _order(leaf: Leaf, flat: Flat | None) -> str:
    """The order in which maps are flattened, `last` or `first`; `""` where nothing tells."""
    if flat is None:
        return ""
    if flat.via is None and flat.usual and leaf.framework in _OWN_MAPS:
        return _ORDERS[leaf.framework]
    return _shown(leaf, flat)


def _shown(leaf: Leaf, flat: Flat | None) -> str:
    """The order in which a graph is seen to flatten; `""` where it is not."""
    order = _ORDERS.get(leaf.framework, "")
    if flat is None or flat.via not in (("flatten",), ("permute", "flatten")):
        return ""
    return order if flat.via == ("flatten",) else _OTHER.get(order, "")


def _square(target: Leaf, channels: int) -> bool:
    """Whether the kernel may read a square map of more than one place."""
    places = target.info.shape[_inputs_axis(target)] // channels
    return places > 1 and isqrt(places) ** 2 == places


def _reordered(
    source: Leaf, target: Leaf, plain: Conversion, channels: int, from_last: bool
) -> Conversion:
    """`plain` with the kernel's inputs brought from one flatten order to the other."""
    shape = infer(plain.ops, (source.info.shape,))
    axis = _inputs_axis(target)
    count = shape[axis] // channels
    split = (count, channels) if from_last else (channels, count)
    if axis:
        steps = (Reshape((shape[0], *split)), Transpose((0, 2, 1)), Reshape(shape))
    else:
        steps = (Reshape((*split, shape[1])), Transpose((1, 0, 2)), Reshape(shape))
    label = f"flattened maps of {channels} channels"
    return Conversion(simplify((*plain.ops, *steps)), frozenset({label}))
