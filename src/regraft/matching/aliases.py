"""What names mean among their sisters, where alone they would mean something else, or nothing.

- `w1` and `w3`, `fc_1` and `fc_2` are a gate and what it gates where both are there, of one size.
  Alone they are not: the first Qwen's gate is `w2` beside a `w1`. What stands beside such a name is
  then not told by its place either.
- `norm1`, `norm2` and `norm3` of PyTorch's decoder layer, which calls its attention to the encoder
  `multihead_attn`, are those of its two attentions and of its feed-forward layers.
- `out`, `proj` or `dense` beside a query, a key and a value is the attention's output, also where
  no part of the path is called an attention.
- `w1`, `w2` and `w3` of which the last leads back are gate, up and down, as xformers has them.
- Norms that a block counts from 0 (`LayerNorm_0`, `LayerNorm_1`) are its `norm1` and `norm2`.
- Letters count where sisters have all of them from `a` on: `block_a`, `block_b`, `block_c`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from regraft.matching.projections import OUTPUTS, projection_of

if TYPE_CHECKING:
    from regraft.matching.modules import Module

_TOGETHER = (("w1", "w3"), ("fc_1", "fc_2"))
_DECODER_LAYER = frozenset({"self_attn", "multihead_attn"})
_DECODER_NORMS = {
    "norm1": "self_attn_layer_norm", "norm2": "encoder_attn_layer_norm", "norm3": "ffn_layer_norm",
}  # fmt: skip


def give(modules: list[Module]) -> None:
    """Sets the aliases of modules, in their place."""
    sisters: dict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
    inside: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for place, module in enumerate(modules):
        if module.path:
            sisters[module.path[:-1]][module.path[-1].lower()] = place
        if len(module.path) > 1:
            inside[module.path[:-2]].add(module.path[-2])
    for path, held in sisters.items():
        found = _apart(modules, held)
        if held.keys() >= _DECODER_NORMS.keys() and inside[path] >= _DECODER_LAYER:
            found |= _DECODER_NORMS
        found |= _outputs(path, held) | _norms_from_zero(held)
        for word, alias in found.items():
            modules[held[word]] = replace(modules[held[word]], alias=alias)
    _count_letters(modules)


# A part that is a letter, or ends with one that stands alone.
_LETTER = re.compile(r"^(|.*[_\-]|.*[a-z](?=[A-Z])|.*\d)([a-zA-Z])$")
_LEAST_LETTERS = 3  # two, where the letter is all there is


def _count_letters(modules: list[Module]) -> None:
    """Numbers for letters that count, in the paths as they are read."""
    found: dict[tuple[tuple[str, ...], str], set[str]] = defaultdict(set)
    for path in {module.path[:cut] for module in modules for cut in range(1, len(module.path) + 1)}:
        ending = _LETTER.match(path[-1])
        if ending:
            found[path[:-1], ending[1]].add(ending[2])
    counting = {
        key for key, letters in found.items()
        if len(letters) >= _LEAST_LETTERS - (not key[1]) and _from_a("".join(sorted(letters)))
    }  # fmt: skip
    for place, module in enumerate(modules) if counting else ():
        read = list(module.path)
        for depth, part in enumerate(module.path):
            ending = _LETTER.match(part)
            if ending and (module.path[:depth], ending[1]) in counting:
                read[depth] = f"{ending[1]}{'_' if ending[1] else ''}{ord(ending[2].lower()) - 97}"
        if tuple(read) != module.path:
            modules[place] = replace(module, counted=tuple(read))


def _from_a(letters: str) -> bool:
    return letters.lower() == "abcdefghijklmnopqrstuvwxyz"[: len(letters)] and (
        letters.islower() or letters.isupper()
    )


def _apart(modules: list[Module], held: Mapping[str, int]) -> dict[str, str]:
    """Names that mean something only together, where they are not."""
    shapes = {
        word: kernel.info.shape
        for word in ("w1", "w2", "w3", "fc_1", "fc_2")
        if word in held and (kernel := modules[held[word]].leaves.get("kernel"))
    }
    found: dict[str, str] = {}
    for one, other in _TOGETHER:
        if (one in shapes or other in shapes) and shapes.get(one) != shapes.get(other):
            found |= {word: "" for word in (one, other) if word in shapes}
    if "w1" in found and shapes.get("w1") == shapes.get("w2"):
        back = shapes["w1"][::-1]
        return found | (
            {"w1": "gate", "w2": "up"} if shapes.get("w3") == back else {"w1": "", "w2": ""}
        )
    return found


_COUNTED_NORM = re.compile(r"^((?:layer|rms)?_?norm|ln)_?(\d)$")


def _norms_from_zero(held: Mapping[str, int]) -> dict[str, str]:
    """The norms of a block that are counted from 0, by the numbers that they have elsewhere."""
    numbers: dict[str, dict[int, str]] = defaultdict(dict)
    for word in held:
        counted = _COUNTED_NORM.match(word)
        if counted:
            numbers[counted[1]][int(counted[2])] = word
    return {
        word: f"norm{number + 1}"
        for words in numbers.values() if len(words) > 1 and 0 in words
        for number, word in words.items()
    }  # fmt: skip


def _outputs(path: tuple[str, ...], held: Mapping[str, int]) -> dict[str, str]:
    """The one layer beside a query, a key and a value that is called an output."""
    if not {"q", "k", "v"} <= {projection_of((*path, word)) for word in held}:
        return {}
    words = [word for word in held if word in OUTPUTS]
    return {words[0]: "o"} if len(words) == 1 else {}
