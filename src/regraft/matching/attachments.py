"""Evidence of attachment: a norm with statistics belongs to the layer that it normalises.

Of two norms of one size in a block it is the layer before each that tells which is which: the
dataflow's, or, where there is no graph, the one defined right before it, if as many channels come
out of it as the norm has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from regraft.matching.modules import Leaf, Module, parts_of
from regraft.tensors import Catalogue


def attached(catalogue: Catalogue, modules: Sequence[Module]) -> Mapping[int, Module]:
    """By `id(norm)`, the layer that each norm with statistics is attached to."""
    if catalogue.flow:
        found = _by_flow(catalogue, modules)
        if found:
            return found
    if catalogue.order == "sorted":
        return {}
    found: dict[int, Module] = {}
    for before, norm in pairwise(modules):
        if "var" in norm.leaves and _feeds(before, norm):
            found[id(norm)] = before
    return found


def _by_flow(catalogue: Catalogue, modules: Sequence[Module]) -> dict[int, Module]:
    by_path = {module.path: module for module in modules}
    found: dict[int, Module] = {}
    for node in catalogue.flow:
        norm = by_path.get(tuple(parts_of(node.owner))) if node.owner else None
        if norm is None or "var" not in norm.leaves or len(node.inputs) != 1:
            continue
        before = by_path.get(tuple(parts_of(catalogue.flow[node.inputs[0]].owner)))
        if before is not None and _feeds(before, norm):
            found[id(norm)] = before
    return found


def _feeds(layer: Module, norm: Module) -> bool:
    """Whether the layer may have as many outputs as the norm has entries."""
    kernel = layer.leaves.get("kernel")
    size = norm.leaves["var"].info.size
    return kernel is not None and size in _outputs(kernel)


def _outputs(kernel: Leaf) -> set[int]:
    shape = kernel.info.shape
    if len(shape) < 2:
        return set()
    if kernel.kind == "depthwise" and kernel.framework != "torch":
        return {shape[-2] * shape[-1]}
    if kernel.kind == "transposed":
        return {shape[1], shape[-1], shape[-2]}
    return {shape[0]} if kernel.framework == "torch" else {shape[-1]}
