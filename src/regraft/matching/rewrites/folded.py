"""Folded norms: a convolution that has taken up the norm behind it.

In inference a BatchNorm is a scale and a shift by channel, which can be computed into the kernel
and the bias before it (Jacob and others 2018, arXiv:1712.05877, section 3.2). An unfolded source
is seen folded where the target has no norms; an unfolded target where the source has none: its
norm then is set to do nothing but add the bias. Where both have norms but only one has biases
before them, the bias is taken into the norm's mean; not where a layer of that size has a bias on
the other side, too: between it and a norm there may be steps that the dataflow does not show.

The norm's epsilon decides the values. It is known of live layers and of Keras' configs; else the
usual ones are alternatives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from regraft.matching import epsilons
from regraft.matching.layouts import CHANNELS_FIRST
from regraft.matching.modules import Module, parts_of
from regraft.matching.rewrites.finding import Finding, Sight, kernel_of
from regraft.matching.views import Expression, Rewrite
from regraft.operations import Fill, FoldScale, FoldShift, Subtract
from regraft.tensors import TensorInfo


class _Unit(NamedTuple):
    """A layer with a kernel, the norm behind it, and the axis of its outputs."""

    layer: Module
    norm: Module
    axis: int


def find(here: Sight, there: Sight) -> Sequence[Finding]:
    units = list(_units(here))
    if not units:
        return ()
    if not any("var" in m.leaves for m in there.modules):
        whole = all(u.norm.leaves.keys() >= {"scale", "bias", "mean", "var"} for u in units)
        sizes = {m.leaves["kernel"].info.size for m in there.modules if _has_bias(m)}
        if whole and all(u.layer.leaves["kernel"].info.size in sizes for u in units):
            return [_folding(here, units)]
        return ()
    also = {m.leaves["kernel"].info.size for m in there.modules if _has_bias(m)}
    biased = [
        u
        for u in units
        if "bias" in u.layer.leaves and u.layer.leaves["kernel"].info.size not in also
    ]
    theirs = list(_units(there))
    if biased and theirs and not any("bias" in u.layer.leaves for u in theirs):
        return [Finding([_absorbed(u) for u in biased], certain=True)]
    return ()


def _has_bias(module: Module) -> bool:
    return {"kernel", "bias"} <= module.leaves.keys()


def _units(sight: Sight) -> Iterator[_Unit]:
    """Layers with the norm that follows them: by the dataflow where there is one, else by order."""
    by_path = {module.path: module for module in sight.modules}
    taken: set[tuple[str, ...]] = set()
    for layer, norm in _followers(sight, by_path):
        kernel = kernel_of(layer)
        if kernel is None or norm.path in taken:
            continue
        axis = _output_axis(layer)
        size = norm.leaves["var"].info.shape
        if axis is not None and size == (kernel.info.shape[axis],):
            taken.add(norm.path)
            yield _Unit(layer, norm, axis)


def _followers(
    sight: Sight, by_path: Mapping[tuple[str, ...], Module]
) -> Iterator[tuple[Module, Module]]:
    flow = sight.catalogue.flow
    if flow:
        uses: dict[int, int] = {}
        for node in flow:
            for index in node.inputs:
                uses[index] = uses.get(index, 0) + 1
        for node in flow:
            norm = by_path.get(tuple(parts_of(node.owner)))
            if norm is None or "var" not in norm.leaves or len(node.inputs) != 1:
                continue
            layer = by_path.get(tuple(parts_of(flow[node.inputs[0]].owner)))
            if layer is not None and uses[node.inputs[0]] == 1:
                yield layer, norm
        return
    for layer, norm in zip(sight.modules, sight.modules[1:], strict=False):
        if "var" in norm.leaves and "kernel" in layer.leaves:
            yield layer, norm


def _output_axis(layer: Module) -> int | None:
    kernel = kernel_of(layer)
    if kernel is None or len(kernel.info.shape) < 2 or kernel.kind == "transposed":
        return None
    if kernel.framework in CHANNELS_FIRST:
        return 0
    if kernel.kind == "depthwise":
        shape = kernel.info.shape  # [h, w, c, 1]
        return len(shape) - 2 if shape[-1] == 1 else None
    return len(kernel.info.shape) - 1 if kernel.framework else None


def _folding(here: Sight, units: Sequence[_Unit]) -> Finding:
    told = epsilons.by_path(here.view.stored)
    known = [epsilons.of_owner(told, unit.norm.name) for unit in units]
    if all(eps is not None for eps in known):
        values = [[eps for eps in known if eps is not None]]
    else:
        usual = epsilons.usual(here.framework)
        values = [[eps if eps is not None else guess for eps in known] for guess in usual]
    readings = [
        [_folded(u, eps) for u, eps in zip(units, reading, strict=True)] for reading in values
    ]
    return Finding(readings[0], readings[1:], "epsilon of the norms that are folded")


def _folded(unit: _Unit, eps: float) -> Rewrite:
    """Kernel, bias and norm seen as kernel and bias; the way back has a norm that adds the bias."""
    kernel = unit.layer.leaves["kernel"].info
    own = unit.layer.leaves.get("bias")
    scale, shift, mean, var = (unit.norm.leaves[r].info for r in ("scale", "bias", "mean", "var"))
    cut = max(kernel.name.rfind("."), kernel.name.rfind("/")) + 1
    bias = TensorInfo(
        own.info.name if own else f"{kernel.name[:cut]}bias", mean.shape, mean.dtype, kernel.module
    )
    vectors = (scale.name, shift.name, mean.name, var.name, *((own.info.name,) if own else ()))
    down = {
        kernel.name: Expression((kernel.name, scale.name, var.name), (FoldScale(unit.axis, eps),)),
        bias.name: Expression(vectors, (FoldShift(eps),)),
    }
    up = {
        kernel.name: Expression.of(kernel.name),
        scale.name: Expression((), (Fill(scale.shape, 1.0, scale.dtype),)),
        shift.name: Expression.of(bias.name),
        mean.name: Expression((), (Fill(mean.shape, 0.0, mean.dtype),)),
        var.name: Expression((), (Fill(var.shape, 1.0 - eps, var.dtype),)),
    }
    if own:
        up[own.info.name] = Expression((), (Fill(own.info.shape, 0.0, own.info.dtype),))
    old = (kernel, *((own.info,) if own else ()), scale, shift, mean, var)
    text = f"a norm (epsilon {eps:g}) folded into the layer before it"
    return Rewrite(old, (kernel, bias), down, up, text, {".".join(unit.norm.path): ()})


def _absorbed(unit: _Unit) -> Rewrite:
    """A bias before a norm is a shift of the norm's mean."""
    bias, mean = unit.layer.leaves["bias"].info, unit.norm.leaves["mean"].info
    return Rewrite(
        (bias, mean),
        (mean,),
        {mean.name: Expression((mean.name, bias.name), (Subtract(),))},
        {
            mean.name: Expression.of(mean.name),
            bias.name: Expression((), (Fill(bias.shape, 0.0, bias.dtype),)),
        },
        "a bias before a norm, taken into the norm's mean",
    )
