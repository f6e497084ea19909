"""Evidence of attachment: a norm with statistics belongs to the layer that it normalises.

Of two norms of one size in a block it is the layer before each that tells which is which. The
dataflow knows it; without one, names do (`conv1` and `bn1`, `expand` and `expand_BN`), or the order
of definition, where layers and norms alternate in their block without a gap; in a sorted file sizes
do, where each norm of a block can follow one layer only. Keras lists the
layers of parallel branches in turns, so that its order does not say. Numbers that a framework gives
each class of layers as they are made (`conv2d_7`, `batch_normalization_5`) are no names: of as many
layers of one class as there are norms, the n-th one has the n-th norm.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from regraft.matching.layouts import CHANNELS_FIRST
from regraft.matching.modules import Leaf, Module, parts_of, tokens
from regraft.tensors import Catalogue

_NORMS = re.compile(r"^(bn|norm|batch|batchnorm|normalization|batch_?norm[123]d)$")
# Words that say what kind of layer it is, and not which one.
_KINDS = re.compile(
    r"^(conv|convolution|conv[123]d|bn|norm|batch|batchnorm|normalization|batch_?norm[123]d|layer|"
    r"dw|sep|dwconv|sepconv|convbn|fc|linear|dense)$"
)


def attached(catalogue: Catalogue, modules: Sequence[Module]) -> Mapping[int, Module]:
    """By `id(norm)`, the layer that each norm with statistics is attached to."""
    siblings: dict[tuple[str, ...], list[Module]] = defaultdict(list)
    for module in modules:
        siblings[module.path[:-1]].append(module)
    found: dict[int, Module] = _by_flow(catalogue, modules)
    before = {family for members in siblings.values() for family in _before(members)}
    for members in siblings.values():
        by_name = _by_name([m for m in members if m.family not in before])
        found = by_name | found
        ordered = catalogue.order != "sorted" and catalogue.framework != "keras"
        if not by_name and ordered and _alternating(members):
            found = {
                id(norm): layer
                for layer, norm in pairwise(members)
                if "var" in norm.leaves and _feeds(layer, norm)
            } | found
        elif not by_name and catalogue.order == "sorted":
            found = _by_size(members) | found
    return found


def _by_size(members: Sequence[Module]) -> dict[int, Module]:
    """Norms and layers of which each can go with one other only."""
    norms = [m for m in members if "var" in m.leaves]
    feeding = {id(n): [m for m in members if _feeds(m, n)] for n in norms}
    before = [layers[0] for layers in feeding.values() if len(layers) == 1]
    if len(before) < len(norms) or len({id(m) for m in before}) < len(norms):
        return {}
    return {id(n): m for n, m in zip(norms, before, strict=True)}


def _by_flow(catalogue: Catalogue, modules: Sequence[Module]) -> dict[int, Module]:
    by_path = {module.path: module for module in modules}
    found: dict[int, Module] = {}
    for node in catalogue.flow:
        norm = by_path.get(tuple(parts_of(node.owner))) if node.owner else None
        if norm is None or "var" not in norm.leaves or len(node.inputs) != 1:
            continue
        owner = tuple(parts_of(catalogue.flow[node.inputs[0]].owner))
        before = by_path.get(owner) or by_path.get((*owner, "pointwise"))
        if before is not None and _feeds(before, norm):
            found[id(norm)] = before
    return found


def _before(members: Sequence[Module]) -> Iterator[str]:
    """Families of norms that stand before the layers of their names (`norm1`, `conv1`): some have
    another size than these put out. Where sizes are equal by chance, it is so all the same."""
    named = [module for module in members if not _count(module)]
    layers: dict[tuple[str, ...], list[Module]] = defaultdict(list)
    for module in named:
        if "kernel" in module.leaves:
            layers[_stem(module, _KINDS)].append(module)
    for norm in named:
        same = layers.get(_stem(norm, _KINDS), ()) if "var" in norm.leaves else ()
        if same and _stem(norm, _KINDS) and not any(_feeds(m, norm) for m in same):
            yield norm.family


def _by_name(members: Sequence[Module]) -> dict[int, Module]:
    """Sisters whose names are equal but for the words for norms (`conv_dw_1`, `conv_dw_1_bn`), or
    else but for all words for kinds of layers (`conv1`, `bn1`)."""
    found = _by_count(members)
    members = [module for module in members if not _count(module)]
    for kinds in (_KINDS, _NORMS):
        layers: dict[tuple[str, ...], list[Module]] = defaultdict(list)
        for module in members:
            if "kernel" in module.leaves:
                layers[_stem(module, kinds)].append(module)
        for norm in members:
            stem = _stem(norm, kinds)
            same = [m for m in layers.get(stem, ()) if stem and _feeds(m, norm)]
            if "var" in norm.leaves and len(same) == 1:
                found[id(norm)] = same[0]
    return found


# What Keras and Flax call the n-th layer of a class; Keras the first one without a number.
_COUNTED = re.compile(
    r"^(conv[123]d|conv[123]d_transpose|dense|Conv|ConvTranspose|Dense|batch_normalization|BatchNorm)"
    r"(?:_(\d+))?$"
)


def _count(module: Module) -> tuple[str, int] | None:
    """Class and number of a layer that the framework has named; `None` for others."""
    framework = next(iter(module.leaves.values())).framework
    found = _COUNTED.match(module.path[-1]) if module.path and framework != "torch" else None
    return (found[1], int(found[2] or 0)) if found else None


def _by_count(members: Sequence[Module]) -> dict[int, Module]:
    classes: dict[str, list[tuple[int, Module]]] = defaultdict(list)
    for module in members:
        counted = _count(module)
        if counted:
            classes[counted[0]].append((counted[1], module))
    ordered = [[m for _, m in sorted(c, key=lambda item: item[0])] for c in classes.values()]
    norms = next((c for c in ordered if all("var" in m.leaves for m in c)), [])
    fitting = [
        layers for layers in ordered
        if len(layers) == len(norms) and all(map(_feeds, layers, norms))
    ]  # fmt: skip
    return {id(n): m for m, n in zip(fitting[0], norms, strict=True)} if len(fitting) == 1 else {}


def _stem(module: Module, kinds: re.Pattern[str]) -> tuple[str, ...]:
    last = [p for p in module.path if p not in ("depthwise", "pointwise")][-1:]
    return tuple(token for token in tokens(last) if not kinds.match(token))


def _alternating(members: Sequence[Module]) -> bool:
    """Whether each norm comes right after a layer, and no layer comes before another norm."""
    kinds = ["var" in m.leaves for m in members if "var" in m.leaves or "kernel" in m.leaves]
    return any(kinds) and not any(a and b for a, b in pairwise([True, *kinds]))


def _feeds(layer: Module, norm: Module) -> bool:
    """Whether the layer may have as many outputs as the norm has entries."""
    kernel, var = layer.leaves.get("kernel"), norm.leaves.get("var")
    return kernel is not None and var is not None and var.info.size in _outputs(kernel)


def _outputs(kernel: Leaf) -> set[int]:
    shape = kernel.info.shape
    if len(shape) < 2:
        return set()
    if kernel.kind == "depthwise" and kernel.framework not in CHANNELS_FIRST:
        return {shape[-2] * shape[-1]}
    if kernel.kind == "transposed":
        return {shape[1], shape[-1], shape[-2]}
    return {shape[0]} if kernel.framework in CHANNELS_FIRST else {shape[-1]}
