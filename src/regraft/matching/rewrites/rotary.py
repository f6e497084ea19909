"""Rotary layouts: pairs of rows of a head, half a head apart or next to each other.

LLaMA's first code turns neighbours, transformers' turns halves, and the conversion between them
permutes the rows of the query and key projections. Shapes do not show it, names hardly. So where
two attentions without learned positions call their projections differently, the layout is open;
an experiment with the live target and what the source's names are known to mean settle it, or a
probe. Known are the names of transformers, and those of LLaMA's first code where all of them are
there: code that took only some of them may turn as it likes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from regraft.matching.modules import Leaf, Module
from regraft.matching.projections import projection_of
from regraft.matching.rewrites.finding import Finding, Sight, kernel_of
from regraft.matching.rewrites.heads import HeadCounts, head_counts
from regraft.matching.views import Expression, Rewrite
from regraft.operations import Rope

_POSITIONS = re.compile(
    r"(^|[./_])(wpe|pos|position|positions|positional|relative_attention_bias|relative_position\w*|"
    r"rel_pos\w*|alibi|pos_emb\w*|pos_embed\w*|position_embedding\w*)([./_]|$)"
)
# Names that are transformers' own for the families of LLaMA, which turn halves.
_HALF = re.compile(r"(^|\.)layers\.\d+\.self_attn\.(q|qkv)_proj\.weight$")
_LIKE_LLAMA = ("input_layernorm", "post_attention_layernorm", "mlp.")
# All names of a block of LLaMA's first code, which has no biases.
_AUTHORS = """
attention.wq attention.wk attention.wv attention.wo feed_forward.w1 feed_forward.w2 feed_forward.w3
attention_norm ffn_norm
"""
_AUTHORED = re.compile(r"^(?:.*\.)?layers\.\d+\.(.+)\.weight$")
_IN_BLOCK = re.compile(r"(?:^|\.)layers\.\d+\.")


def find(here: Sight, there: Sight) -> Sequence[Finding]:
    """For the source alone: its projections are permuted, or not, into the target's layout."""
    if not here.is_source:
        return ()
    ours, theirs = _attentions(here), _attentions(there)
    if not ours or not theirs or _positions(here) or _positions(there):
        return ()
    if _called(ours) == _called(theirs):
        return ()
    found = there.ask_rotary([(q.info.name, k.info.name) for q, k, _ in theirs])
    layout, width = found or (_known(there), 0)
    source = _known(here)
    if layout == "none" or (layout and layout == source):
        return ()
    widths = (width,) if width else _widths(head_counts(here, there), ours[0])
    orders = {"": list(_LAYOUTS), "half": ["", "interleaved"], "interleaved": ["", "half"]}
    ways = [layout] if layout and source else ["", layout] if layout else orders[source]
    told = f"; the source has the names of {_MEANT[source]}" if source else ""
    readings = [
        list(_rewrites(ours, width, way, told))
        for way in ways
        for width in (widths if way else widths[:1])
    ]
    readings = [reading for reading in readings if reading]
    label = "rotary layout of the projections"
    return [Finding(readings[0], readings[1:], label, certain=True)] if readings else ()


_MEANT = {
    "half": "transformers' LLaMA, which turns rows half a head apart",
    "interleaved": "LLaMA's first code, which turns neighbouring rows",
}
_LAYOUTS = ("", "half", "interleaved")
_USUAL_WIDTHS = (64, 128, 32, 96, 80, 16, 8, 4)


def _widths(counts: HeadCounts, attention: _Attention) -> tuple[int, ...]:
    """Widths of a head that are known, or else usual."""
    q, k, _ = attention
    rows = q.info.shape[0], k.info.shape[0]
    told = [rows[1] // n for n in counts.key_value_known if rows[1] % n == 0]
    told = told or [rows[0] // n for n in counts.query_known if rows[0] % n == 0]
    fitting = [w for w in _USUAL_WIDTHS if rows[0] % w == rows[1] % w == 0]
    return tuple(dict.fromkeys(told)) or tuple(fitting[:4])


# Kernels of the query and the key, and their layers.
_Attention: TypeAlias = "tuple[Leaf, Leaf, tuple[Module, Module]]"


def _attentions(sight: Sight) -> list[_Attention]:
    """Query and key kernels `[out, in]` of each attention, in order."""
    found: dict[tuple[str, ...], dict[str, Module]] = {}
    for module in sight.modules:
        part = projection_of(module.says)
        kernel = kernel_of(module)
        if part in ("q", "k") and kernel and len(kernel.info.shape) == 2:
            if kernel.framework != "torch":
                return []
            found.setdefault(module.path[:-1], {})[part] = module
    pairs = [(m["q"], m["k"]) for m in found.values() if len(m) == 2]
    return [(q.leaves["kernel"], k.leaves["kernel"], (q, k)) for q, k in pairs]


def _called(attentions: Sequence[_Attention]) -> set[str]:
    return {modules[0].path[-1] for _, _, modules in attentions}


def _positions(sight: Sight) -> bool:
    return any(_POSITIONS.search(name) for name in sight.view.stored)


def _known(sight: Sight) -> str:
    """The layout that a side's names are known to mean, `""` for none."""
    names = list(sight.view.stored)
    if any(_HALF.search(n) for n in names) and all(
        any(word in n for n in names) for word in _LIKE_LLAMA
    ):
        return "half"
    inside = {_AUTHORED.sub(r"\1", name) for name in names if _IN_BLOCK.search(name)}
    embedded = any(re.search(r"(^|\.)tok_embeddings\.", n) for n in names)
    return "interleaved" if embedded and inside == set(_AUTHORS.split()) else ""


def _rewrites(
    attentions: Sequence[_Attention], width: int, to: str, told: str
) -> Iterator[Rewrite]:
    """The projections with their rows permuted, or as they are where `to` is empty."""
    for *_, modules in attentions:
        leaves = [leaf for m in modules for r, leaf in m.leaves.items() if r in ("kernel", "bias")]
        if any(leaf.info.shape[0] % width for leaf in leaves) or width % 2:
            continue
        for leaf in leaves:
            name, count = leaf.info.name, leaf.info.shape[0] // width
            ops = (Rope(0, count, to),) if to in ("half", "interleaved") else ()
            text = f"rows turned to the {to} rotary layout" if to else "rotary layout kept"
            text += told
            made = {name: Expression((name,), ops)}
            yield Rewrite((leaf.info,), (leaf.info,), made, {name: Expression.of(name)}, text)
