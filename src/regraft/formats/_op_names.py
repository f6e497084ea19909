"""Which layer a graph's names speak of.

The names of a layer's tensors come first: what they have in common, up to a separator
(`stem.conv.weight`, `stem.conv.bias`), or else the beginning of the main one's. Names that a tool
made up (`onnx::Conv_402`, `17`) say nothing; then the operation's own name counts
(`/stem/conv/Conv`), without its last part. Where that is silent, too, or several layers would be
called the same, the name of the layer's first tensor stands for it: unique, if not telling.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_MADE_UP = re.compile(r"^\d+$|::|_output_\d+$")
_ENDING = re.compile(r"[._/](weights?|kernel|W)$")
# Steps inside a layer that TensorFlow puts into the names of operations and constants.
_STEPS = re.compile(
    r"([/.](MatMul|Tensordot|BiasAdd|Conv[123]D|conv[123]d_transpose|depthwise|separable_conv2d"
    r"|FusedBatchNorm(V\d)?|batchnorm|moments|ReadVariableOp(_\d+)?|resource|Cast|read))+$"
)


def owners_of(layers: Sequence[tuple[Sequence[str], str]]) -> list[str]:
    """A path for each layer, given its tensors' names, the main one first, and its operation's."""
    wanted = [_owner(names, hint) for names, hint in layers]
    claimed = Counter(wanted)
    return [
        path if path and claimed[path] == 1 else _ENDING.sub("", names[0])
        for path, (names, _) in zip(wanted, layers, strict=True)
    ]


def _owner(names: Sequence[str], hint: str) -> str:
    telling = [re.sub(r":\d+$", "", n) for n in names if not _MADE_UP.search(n)]
    common = _prefix(telling) or _prefix(telling[:1])
    return _STEPS.sub("", common or _prefix([hint.lstrip("/")]))


def _prefix(names: Sequence[str]) -> str:
    """What the names have in common, up to a separator; an underscore where there is no other."""
    if not names:
        return ""
    first, last = min(names), max(names)  # what these two share, all between them share
    same = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first)
    )
    common = first[:same]
    cut = max(common.rfind("."), common.rfind("/"))
    if len(names) > 1 and not any("." in name or "/" in name for name in names):
        cut = common.rfind("_")
    return common[: max(cut, 0)]
