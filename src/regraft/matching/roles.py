"""What a tensor is for: canonical roles, from the layer's class where known, else from names.

The tables are the only place where frameworks' words are listed. A role answers "which tensors
may stand for one another at all"; where the axes go is `layouts`' question.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

Role = Literal[
    "kernel", "bias", "scale", "mean", "var", "embedding", "slope", "depthwise",
    "pointwise", "recurrent", "recurrent_bias", "counter", "other",
]  # fmt: skip

# Words that end a tensor's name, in all frameworks, and what they can mean. Where a word has
# several meanings the layer's class, its sisters and its rank decide (`of`).
_WORDS: dict[str, tuple[Role, ...]] = {
    "kernel": ("kernel",),
    "weight": ("kernel", "scale", "embedding", "slope"),
    "weights": ("kernel", "scale", "embedding", "slope"),
    "w": ("kernel", "scale"),
    "filters": ("kernel",),
    "projection": ("kernel",),
    "in_proj_weight": ("kernel",),
    "in_proj_bias": ("bias",),
    "bias": ("bias",),
    "biases": ("bias",),
    "b": ("bias",),
    "gamma": ("scale",),
    "lambda1": ("scale",),
    "scale_parameter": ("scale",),
    "scale": ("scale",),
    "beta": ("bias",),
    "offset": ("bias",),
    "shift": ("bias",),
    "running_mean": ("mean",),
    "moving_mean": ("mean",),
    "mean": ("mean",),
    "running_std": ("var",),
    "running_var": ("var",),
    "moving_variance": ("var",),
    "moving_var": ("var",),
    "variance": ("var",),
    "var": ("var",),
    "embedding": ("embedding",),
    "embed": ("embedding",),
    "emb": ("embedding",),
    "embeddings": ("embedding",),
    "alpha": ("slope",),
    "alphas": ("slope",),
    "depthwise_kernel": ("depthwise",),
    "depthwise_weights": ("depthwise",),
    "pointwise_kernel": ("pointwise",),
    "pointwise_weights": ("pointwise",),
    "recurrent_kernel": ("recurrent",),
    "recurrent_bias": ("recurrent_bias",),
    "weight_ih": ("kernel",),
    "weight_hh": ("recurrent",),
    "bias_ih": ("bias",),
    "bias_hh": ("recurrent_bias",),
    "num_batches_tracked": ("counter",),
}

_KEYS = sorted(_WORDS, key=len, reverse=True)
_ENDING = re.compile(rf"^(?:(.*?)_)??({'|'.join(_KEYS)})$")
_RECURRENT = re.compile(r"^((?:weight|bias)_[ih]h)_l(\d+)(_reverse)?$")

_TABLES = re.compile(r"Embedding(Bag)?$")  # those of one's own, too: BartLearnedPositionalEmbedding
NORMS = re.compile(r"norm", re.IGNORECASE)
_TRANSPOSED = re.compile(r"(conv|convolution)\dd?_?transpose|convtranspose|deconv", re.IGNORECASE)


@lru_cache(maxsize=1 << 14)
def split_leaf(leaf: str) -> tuple[str, str]:
    """A name's last part as (rest of the owner's name, role word); no word known: `("", leaf)`.

    `convolution2d_1_W` is `("convolution2d_1", "w")`, `weight_ih_l0` is `("l0", "weight_ih")`.
    """
    lower = leaf.lower()
    recurrent = _RECURRENT.match(lower)
    if recurrent:
        return f"l{recurrent[2]}{recurrent[3] or ''}", recurrent[1]
    ending = _ENDING.match(lower)
    if ending is None:
        return "", lower
    return leaf[: len(ending[1])] if ending[1] else "", ending[2]


def known(leaf: str) -> bool:
    """Whether a name's last part says which tensor of a layer it is."""
    return split_leaf(leaf)[1] in _WORDS or re.match(r"^[wb]_[a-z]", leaf.lower()) is not None


@lru_cache(maxsize=1 << 14)
def of(word: str, rank: int, sisters: frozenset[str], module: str) -> Role:
    """The role of a tensor.

    **Arguments:**

    - `word`: the ending of its name, as `split_leaf` gives it.
    - `rank`: number of axes.
    - `sisters`: words of the tensors of the same owner, its own included.
    - `module`: class of the owner, `""` if unknown.
    """
    meanings = _WORDS.get(word, ("other",))
    if meanings == ("embedding",) and rank < 2:
        return "other"  # one vector is no table: CLIP's `class_embedding` is a token
    if len(meanings) == 1 and not (word == "scale" and rank == 2):
        return meanings[0]
    normalises = bool(NORMS.search(module)) or any(
        set(_WORDS.get(sister, ())) & {"mean", "var"} for sister in sisters
    )
    if module == "Embedding" or (rank == 2 and _TABLES.search(module)):
        return "embedding"
    if module == "PReLU":
        return "slope"
    if rank >= 2 and not normalises:
        return "kernel"
    return "scale" if "scale" in meanings else "other"


def transposed(module: str, owner: str) -> bool:
    """Whether the owner is a transposed convolution, by class or, failing that, by name."""
    return bool(_TRANSPOSED.search(module or owner.rsplit("/", 1)[-1]))
