"""Which projection of an attention or of a gated feed-forward layer a module is, by its name.

q, k, v and the gate have equal shapes as often as not; mixing them up is silent. Names tell them
apart in nearly all code there is. Two modules that both say which one they are, and say different
things, are never paired.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from regraft.matching.directions import direction_of

# A word of a layer's own name → the projection it is.
_WORDS = {
    word: part
    for part, words in {
        "q": "q query queries wq",
        "k": "k key keys wk",
        "v": "v value values wv",
        "o": "o",
        "gate": "gate",
        "up": "up",
    }.items()
    for word in words.split()
}
# Whole names of layers, where their words do not tell.
_NAMES = {
    "wi_0": "gate", "wi_1": "up", "fc1_g": "gate", "fc1_x": "up", "linear_gate": "gate",
    "feedforward_gate_dense": "gate", "feedforward_intermediate_dense": "up",
    "attention_output": "o", "w1": "w1", "w3": "w3",
    "fc_1": "gate", "fc_2": "up", "ffw_gating": "gate", "ffw_gating_2": "up",
}  # fmt: skip
# The output projection, right below an attention.
OUTPUTS = frozenset(
    {"proj", "c_proj", "out_proj", "o_proj", "wo", "out", "to_out", "dense", "output"}
)
_TOKENS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# Fused projections by the words of their name, and what they are made of.
_FUSED = (
    (re.compile(r"qkv|query_key_value|querykeyvalue|(^|_)in_proj|c_attn|w_pack"), ("q", "k", "v")),
    (re.compile(r"(^|_)kv($|_)|key_value|keyvalue"), ("k", "v")),
    (re.compile(r"gate_?(and_)?up|(^|_)w1[23]($|_)|gate_proj_up"), ("gate", "up")),
)
# Names that spell their parts out: letters, or words one after another.
_LETTERS = re.compile(r"(?:^|_)w?([qkv]{2,3})(?:$|_)")
_MEANT = {"query": "q", "key": "k", "value": "v", "gate": "gate", "up": "up"}
_WORDS_JOINED = re.compile(rf"({'|'.join(_MEANT)})+")


def projection_of(path: tuple[str, ...]) -> str:
    """`q`, `k`, `v`, `o`, `gate`, `up` or `""`, by the last parts of a layer's path."""
    return _projection(path[-2:])


@lru_cache(maxsize=65536)
def _projection(path: tuple[str, ...]) -> str:
    if len(path) > 1 and "att" in path[-2].lower() and path[-1].lower() in OUTPUTS - {"output"}:
        return "o"
    for part in reversed(path):
        lower = part.lower()
        if lower in _NAMES:
            return _NAMES[lower]
        found = {_WORDS[t.lower()] for t in _TOKENS.findall(part) if t.lower() in _WORDS}
        if fused_of((part,)):
            return ""
        if len(found) == 1:
            return found.pop()
        if lower not in ("dense", "linear", "proj", "0", "layer", "base_layer"):
            return ""
    return ""


def fused_of(path: tuple[str, ...]) -> tuple[str, ...]:
    """The projections that a layer holds one after another, by its name; `()` for none."""
    last = path[-1].lower() if path else ""
    parts = next((parts for pattern, parts in _FUSED if pattern.search(last)), ())
    spelled = order_of(path)
    return parts or tuple(sorted(spelled, key=["q", "k", "v", "gate", "up"].index))


def order_of(path: tuple[str, ...]) -> tuple[str, ...]:
    """The projections of a fused layer in the order that its name spells: `kqv`, `up_gate_proj`;
    `()` where it spells none."""
    last = path[-1].lower() if path else ""
    letters = _LETTERS.search(last)
    if letters and len(set(letters[1])) == len(letters[1]) and {"k", "v"} <= set(letters[1]):
        return tuple(letters[1])
    words = [w for token in last.split("_") if _WORDS_JOINED.fullmatch(token)
             for w in re.findall("|".join(_MEANT), token)]  # fmt: skip
    order = tuple(_MEANT[word] for word in words)
    whole = sorted(order) in (["k", "q", "v"], ["k", "v"], ["gate", "up"])
    return order if whole else ()


class Claims(NamedTuple):
    """What a layer says it is: which projection, in which sublayer, in which branch, part of which
    head, which way it runs, which end of a model; `""` where it does not say."""

    projection: str
    sublayer: str
    branch: str
    head: str
    direction: str
    edge: str


def claims(path: tuple[str, ...]) -> Claims:
    """What a layer's path says."""
    return Claims(
        projection_of(path),
        sublayer_of(path),
        branch_of(path),
        _head_of(path),
        direction_of(path),
        edge_of(path),
    )


def at_odds(source: tuple[str, ...], target: tuple[str, ...]) -> bool:
    """Whether two layers say that they are different projections, parts of different attentions,
    branches or heads, recurrent layers that run different ways, or different ends of a model."""
    ours, theirs = claims(source), claims(target)
    for one, other in ((ours, theirs), (theirs, ours)):
        if one.projection in _ATTENDING and not other.projection and other.head:
            return True
    for says, a, b in zip(Claims._fields, ours, theirs, strict=True):
        if a and b and _SAME.get(a, a) != _SAME.get(b, b):
            return says != "edge" or {a, b} != {"last norm", "final norm"}
    return False


# The sublayers of a decoder's block, each with a norm of its own. An attention that is called
# nothing else is the one to itself: where there is a cross-attention, that one says so. (torch's
# says `multihead_attn`, which elsewhere is what any attention may be called.)
_SUBLAYERS = (
    ("cross-attention", re.compile(
        r"cross|(^|_)x_?att|^enc(oder)?_(dec(oder)?_)?att|^encdec_?att|(^|_)(src|context|memory)_att")),
    ("self-attention", re.compile(
        r"^self_?att|(^|_)self_(attn|attention)|^(attn|attention|mhsa|sa)$|"
        r"^(attn|attention|sa)_(layer_?)?(norm|ln)$|^(ln|(layer_?)?norm)_(attn|attention|sa)$")),
    ("feed-forward", re.compile(
        r"^(mlp|ffn?|feed_?forward)$|^(mlp|ffn?|feed_?forward)_(layer_?)?(norm|ln)$|"
        r"^(ln|(layer_?)?norm)_(mlp|ffn?|feed_?forward)$")),
)  # fmt: skip


# T5 counts the sublayers of a block.
_T5 = re.compile(r"(encoder|decoder)\.block\.\d+\.layer\.([012])\.layer_norm$")
_T5_SUBLAYERS = {
    "encoder": ("self-attention", "feed-forward", ""),
    "decoder": ("self-attention", "cross-attention", "feed-forward"),
}


@lru_cache(maxsize=65536)
def sublayer_of(path: tuple[str, ...]) -> str:
    """Which sublayer of a decoder's block a layer is in, by its own name and those around it,
    innermost first; `""` where they do not say."""
    numbered = _T5.search(".".join(path[-6:]))
    if numbered:
        return _T5_SUBLAYERS[numbered[1]][int(numbered[2])]
    for part in reversed(path[-4:]):
        for sublayer, pattern in _SUBLAYERS:
            if pattern.search(_snake(part)):
                return sublayer
    return ""


def _snake(part: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", part).lower()


# The two branches of a numbered residual block: the counted layers, and the layer around them
# where sizes change. Elsewhere `conv_proj` and `proj` make patches, among other things.
_BRANCHES = (
    ("shortcut", re.compile(
        r"\d(\..*)?\.(downsample|(conv|norm|bn)_(proj|shortcut|skip)|shortcut)(\.(\d|conv|bn|norm))?$|"
        r"\d\.proj(\.(\d|conv|bn|norm))?$|block\d+_0_conv$")),
    ("counted", re.compile(
        r"(^|\.)(conv|bn|norm)_?\d(\.(conv|bn|norm))?$|block\d+_[1-9]_conv$")),
)  # fmt: skip


@lru_cache(maxsize=65536)
def branch_of(path: tuple[str, ...]) -> str:
    """Which branch of a residual block a layer is on, by its name; `""` where it does not say."""
    name = ".".join(path).lower()
    return next((branch for branch, pattern in _BRANCHES if pattern.search(name)), "")


_EDGES = (
    ("position", re.compile(r"(^|_)(wpe|pos|position|positions|positional)(_|$)")),
    ("tokens", re.compile(r"^(wte|tok_emb\w*|token_emb\w*|embed_tokens|word_embeddings?|tokens?|"
                          r"embed_in|vocab_emb\w*|shared)$")),
    ("first norm", re.compile(r"^(ln|norm|layer_?norm)_pre$|^pre_(ln|norm|lay(e?r)_?norm)$|"
                              r"^(norm|ln)_in$|^(word_)?emb\w*_(layer_?)?(norm|ln)$")),
    ("last norm", re.compile(r"^(ln|norm|layer_?norm)_post$|^post_(ln|norm|layer_?norm)$")),
    ("final norm", re.compile(r"^(ln|norm)_(f|final|out)$|^final_(layer_?)?norm$")),
    ("distillation head", re.compile(r"^(head|classifier)_dist\w*$|^dist\w*_(head|classifier)$")),
    ("head", re.compile(r"^(lm_head|out_head|output_head|head|embed_out|logits(_dense)?|output|"
                        r"output_projection|unembed\w*|classifier)$")),
)  # fmt: skip


_NORM = re.compile(r"^(layer_?)?norm$|^ln$")


@lru_cache(maxsize=65536)
def edge_of(path: tuple[str, ...]) -> str:
    """Which of the first and last layers of a model a layer is, by its name; `""` if it does not
    say."""
    last = path[-1].lower() if len(path) < 4 and path else ""
    if len(path) > 1 and _NORM.match(last) and path[-2].lower().startswith("emb"):
        last = f"embeddings_{last}"  # BERT's `embeddings.LayerNorm`
    return next((edge for edge, pattern in _EDGES if pattern.search(last)), "")


# What stands behind a language model's body: heads of several layers, all of which begin with a
# dense layer as wide as the body.
_HEADS = (
    ("pooler", re.compile(r"(^|\.)(pooler\.|pooled_dense$)")),
    ("masked words", re.compile(r"(^|\.)(cls\.predictions\.|lm_head\.|mlm\w*\.|masked_lm\w*(\.|$)|"
                                r"vocab_transform$|vocab_layer_norm$|generator_predictions\.)")),
    ("classifier", re.compile(r"(^|\.)(classifier\.|classification_head\.|pre_classifier$)")),
)  # fmt: skip


@lru_cache(maxsize=65536)
def _head_of(path: tuple[str, ...]) -> str:
    name = ".".join(path).lower()
    return next((head for head, pattern in _HEADS if pattern.search(name)), "")


# Projections that no head's dense layer is, however many outputs it has.
_ATTENDING = frozenset({"q", "k", "v"})

# In LLaMA's first code w1 is the gate and w3 what it gates.
_SAME = {"w1": "gate", "w3": "up"}

# The norm before (or behind) an attention, and the one of the feed-forward layers, in a block of
# two norms.
_ATTENTION_NORM = re.compile(
    r"^(layer_?)?norm_?1$|^ln_?1$|^(layer_?norm|norm|ln)_before$|^before_(layer_?)?norm$|^(pre_?)?(self_)?att(entio)?n_"
    r"(layer_?)?(norm|ln)$|^input_(layer)?_?norm(alization)?$|^sa_layer_norm$|^ln_attn$|"
    r"^self_attention_layer_norm$|^(layer_)?norm_att(n|ention)$|^pre_?att(n|ention)$"
)
_FORWARD_NORM = re.compile(
    r"^(layer_?)?norm_?2$|^ln_?2$|^(layer_?norm|norm|ln)_after$|^after_(layer_?)?norm$|^(pre_?)?(ffn?|mlp|feed_?forward)_"
    r"(layer_?)?(norm|ln)$|^post_(self_)?attention_layer_?norm(alization)?$|^output_layer_norm$|"
    r"^ln_(mlp|ffn?)$|^feedforward_layer_norm$|^final_layer_norm$|^(layer_)?norm_(mlp|ffn?|feed_?forward)$|"
    r"^pre_?(mlp|ffn?|feed|feed_?forward)$"
)
# The halves of a model that has both.
_HALVES = {"enc": "encoder", "encoder": "encoder", "dec": "decoder", "decoder": "decoder"}


@lru_cache(maxsize=65536)
def half_of(path: tuple[str, ...]) -> str:
    """`encoder` or `decoder`, the outermost that a path says (a decoder's attention to the encoder
    is the decoder's); `""` where it says neither."""
    words = (word.lower() for part in path for word in _TOKENS.findall(part))
    return next((_HALVES[word] for word in words if word in _HALVES), "")


# With three norms in a block that are told apart by number, the second may be a cross-attention's.
THIRD_NORM = re.compile(r"^(layer_?)?norm_?3$|^ln_?3$")


def norm_place(path: tuple[str, ...]) -> str:
    """`attention` or `forward` for a norm in a transformer's block, by its name; `""` if it does
    not say."""
    last = path[-1].lower() if path else ""
    if sublayer_of(path) == "cross-attention":
        return ""
    if _T5.search(".".join(path[-6:])):
        return "attention" if sublayer_of(path) == "self-attention" else "forward"
    if _ATTENTION_NORM.match(last):
        return "attention"
    if _FORWARD_NORM.match(last):
        return "forward"
    if "norm" in last and len(path) > 1 and path[-2].lower() == "output":  # BERT
        return "attention" if len(path) > 2 and "attention" in path[-3].lower() else "forward"
    return ""
