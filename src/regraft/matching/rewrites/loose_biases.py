"""Biases of a fused projection that stand by themselves: `q_bias` and `v_bias` beside `qkv.weight`.

BEiT, EVA and the second Swin keep them so, as a key's bias moves no attention: it adds the same to
all scores of a query, which the softmax takes away again (and where keys are normalised first, as
in the second Swin, its authors have none). Where the other side has one bias for all three, that is
what these are seen as, with zeros for the keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from regraft.matching.modules import Module
from regraft.matching.projections import fused_of
from regraft.matching.rewrites.finding import Finding, Sight, kernel_of
from regraft.matching.views import Expression, Rewrite, composed
from regraft.operations import Concat, Fill, Slice

_PARTS = ("q_bias", "k_bias", "v_bias")


def find(here: Sight, there: Sight) -> Sequence[Finding]:
    sizes = {
        m.leaves["bias"].info.size for m in there.modules if _is_fused(m) and "bias" in m.leaves
    }
    rewrites = [
        rewrite
        for module in here.modules
        if _is_fused(module) and "bias" not in module.leaves
        for rewrite in _joined(module, here)
        if rewrite.new[0].size in sizes
    ]
    return [Finding(rewrites)] if rewrites else []


def _is_fused(module: Module) -> bool:
    return fused_of(module.path) == ("q", "k", "v") and kernel_of(module) is not None


def _joined(module: Module, here: Sight) -> Iterator[Rewrite]:
    kernel = module.leaves["kernel"].info
    around, _, word = kernel.name.rpartition(".")
    prefix = around.rpartition(".")[0]
    held = {part: info for part in _PARTS if (info := here.catalogue.get(f"{prefix}.{part}"))}
    own = f"{around}.bias"
    if word != "weight" or not {"q_bias", "v_bias"} <= held.keys() or own in here.catalogue:
        return
    width = held["q_bias"].size
    if any(info.shape != (width,) for info in held.values()) or kernel.shape[0] != 3 * width:
        return
    whole = held["q_bias"]._replace(name=own, shape=(3 * width,), owner="", role="")
    zeros = Expression((), (Fill((width,), 0.0, whole.dtype),))
    parts = {part: Expression.of(held[part].name) if part in held else zeros for part in _PARTS}
    yield Rewrite(
        tuple(held.values()),
        (whole,),
        {own: composed(Expression(_PARTS, (Concat(0),)), parts)},
        {
            held[part].name: _cut(own, place, width)
            for place, part in enumerate(_PARTS)
            if part in held
        },
        "biases of queries and values by themselves: that of keys moves no attention",
    )


def _cut(whole: str, place: int, width: int) -> Expression:
    return Expression((whole,), (Slice(0, place * width, (place + 1) * width),))
