"""Flatten order: a dense layer behind a flattened map reads its inputs in the order of the axes.

Channels-last data `[h, w, c]` and channels-first data `[c, h, w]` flatten in different orders, so
that the dense kernel's inputs must be reordered when weights move between the two. Its shape says
nothing of it. What tells: the layer before has `c` channels, and the kernel has `k·c` inputs.
Where both graphs show a plain flatten, or one after moving the channels, the order is certain;
else it is an open question. An ONNX graph lays maps out channels first, but comes from anywhere:
only what it shows counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from regraft.matching.layouts import CHANNELS_FIRST, CHANNELS_LAST, Conversion
from regraft.matching.modules import Leaf, Module, parts_of
from regraft.operations import Reshape, Transpose, infer, simplify
from regraft.tensors import Catalogue, FlowNode

Via = tuple[str, ...]
# The order in which frameworks' maps lie when they are flattened.
_ORDERS = {"keras": "last", "jax": "last", "torch": "first", "onnx": "first"}
_OTHER = {"last": "first", "first": "last"}
# Frameworks whose models flatten alike unless a graph shows otherwise.
_OWN_MAPS = ("keras", "jax", "torch")


class Flat(NamedTuple):
    """What is known of a dense layer's inputs: how many channels a flattened map before it may
    have (none: there is no such map), and what the data goes through on the way, `None` where
    there is no graph."""

    channels: frozenset[int]
    via: Via | None


def flattened(catalogue: Catalogue, modules: Sequence[Module]) -> dict[str, Flat]:
    """By the name of its kernel, each dense layer that may read a flattened map."""
    if not catalogue.flow:
        return dict(_from_order(modules))
    found = dict(_from_flow(catalogue.flow, {module.path: module for module in modules}))
    if "channels_first" in catalogue.metadata.get("model_config", ""):
        # Keras then flattens some maps in one order and some in the other.
        return {name: Flat(flat.channels, None) for name, flat in found.items()}
    return found


def _from_order(modules: Sequence[Module]) -> Iterable[tuple[str, Flat]]:
    channels: frozenset[int] = frozenset()
    for module in modules:
        kernel = _dense_kernel(module)
        if kernel and _multiples(kernel, channels):
            yield kernel.info.name, Flat(_multiples(kernel, channels), None)
        channels = _channels(module, channels)


def _from_flow(
    flow: Sequence[FlowNode], modules: Mapping[tuple[str, ...], Module]
) -> Iterable[tuple[str, Flat]]:
    ends: list[frozenset[int]] = []
    passing: list[Via] = []  # steps that have reached the end of a node without weights
    for node in flow:
        via = (*(step for i in node.inputs for step in passing[i]), *node.via)
        before = [ends[i] for i in node.inputs]
        channels = frozenset[int]().union(*before)
        if len(before) > 1 and all(before):
            channels |= {sum(max(part) for part in before)}  # where it is a concatenation
        module = modules.get(tuple(parts_of(node.owner))) if node.owner else None
        if module:
            kernel = _dense_kernel(module)
            if kernel:
                yield kernel.info.name, Flat(_multiples(kernel, channels), via)
            channels = _channels(module, channels)
        ends.append(channels)
        passing.append(() if module else via)


def _dense_kernel(module: Module) -> Leaf | None:
    kernel = module.leaves.get("kernel")
    return kernel if kernel and len(kernel.info.shape) == 2 else None


def _multiples(kernel: Leaf, channels: frozenset[int]) -> frozenset[int]:
    """Channel counts of which the kernel's inputs are a multiple."""
    rows, columns = kernel.info.shape
    sizes = (kernel.info.shape[_inputs_axis(kernel)],) if kernel.framework else (rows, columns)
    return frozenset(c for c in channels if any(n > c > 1 and n % c == 0 for n in sizes))


def _inputs_axis(kernel: Leaf) -> int:
    """Where a dense kernel has its inputs."""
    return int(kernel.framework not in CHANNELS_LAST and kernel.kind != "matmul")


def _channels(module: Module, before: frozenset[int]) -> frozenset[int]:
    """Channels of a module's output where it is a map; none after a dense layer."""
    kernel = module.leaves.get("kernel")
    if kernel and len(kernel.info.shape) == 2:
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
    if ours is None and theirs is None:
        return (plain,)
    if any(flat and flat.via is not None and not flat.channels for flat in flats):
        return (plain,)  # a graph shows that no map is flattened here
    ours_shown, theirs_shown = _shown(source, ours), _shown(target, theirs)
    if ours_shown == theirs_shown != "":
        return (plain,)
    certain = bool(ours_shown and theirs_shown)
    if not certain and source.framework == target.framework in _OWN_MAPS:
        return (plain,)
    channels = frozenset[int]().union(*(flat.channels for flat in flats if flat))
    if ours and theirs and ours.channels & theirs.channels:
        channels = ours.channels & theirs.channels
    order = ours_shown or _OTHER.get(theirs_shown) or _ORDERS.get(source.framework, "last")
    reordered = [_reordered(source, target, plain, c, order == "last") for c in sorted(channels)]
    return tuple(reordered) if certain and len(reordered) == 1 else (*reordered, plain)


def _shown(leaf: Leaf, flat: Flat | None) -> str:
    """The order in which a graph is seen to flatten, `last` or `first`; `""` where it is not."""
    order = _ORDERS.get(leaf.framework, "")
    if flat is None or flat.via not in (("flatten",), ("permute", "flatten")):
        return ""
    return order if flat.via == ("flatten",) else _OTHER.get(order, "")


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
