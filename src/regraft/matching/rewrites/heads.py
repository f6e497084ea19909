"""How many heads an attention has: from settings of live layers, configs, or shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from regraft.matching import kinds
from regraft.matching.rewrites.finding import Sight

_QUERY = ("num_attention_heads", "num_heads", "n_head", "n_heads", "heads", "nhead", "n_h",
          "num_attention_head", "num_query_heads", "encoder_attention_heads")  # fmt: skip
_KEY_VALUE = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head", "kv_heads",
              "n_local_heads")  # fmt: skip
# Tried where nothing tells.
_USUAL = (2, 4, 8, 12, 16, 1, 3, 6)


class HeadCounts(NamedTuple):
    """Numbers of heads of queries, and of keys and values, likeliest first; and those known."""

    query: tuple[int, ...]
    key_value: tuple[int, ...]
    query_known: tuple[int, ...]
    key_value_known: tuple[int, ...]

    @property
    def known(self) -> bool:
        return bool(self.query_known or self.key_value_known)


def head_counts(*sights: Sight) -> HeadCounts:
    query: dict[int, None] = {}
    key_value: dict[int, None] = {}
    for sight in sights:
        for key, value in _settings(sight):
            if key in _QUERY and _count(value):
                query[int(value)] = None
            if key in _KEY_VALUE and _count(value):
                key_value[int(value)] = None
        for count in _from_shapes(sight):
            query[count] = None
    queries = tuple(query) or tuple(key_value) or _USUAL
    return HeadCounts(queries, tuple(key_value) or queries, tuple(query), tuple(key_value))


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 4096


def _settings(sight: Sight) -> Iterator[tuple[str, Any]]:
    for settings in sight.view.stored.settings.values():
        yield from settings.items()
    for text in sight.view.stored.metadata.values():
        if text.startswith("{") and "heads" in text:
            try:
                yield from _items(json.loads(text), 0)
            except (ValueError, RecursionError):
                continue
    for key, text in sight.view.stored.metadata.items():
        if text.isdecimal():
            yield key.rpartition(".")[2], int(text)


def _items(value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and depth < 12:
        for key, part in value.items():
            yield str(key), part
            yield from _items(part, depth + 1)
    elif isinstance(value, list):
        for part in value[:1000]:
            yield from _items(part, depth + 1)


def _from_shapes(sight: Sight) -> Iterator[int]:
    """`[d, h, k]` kernels of query projections, and `[h, d, k]`."""
    from regraft.matching.projections import projection_of

    for module in sight.modules:
        kernel = module.leaves.get("kernel")
        if kernel and len(kernel.info.shape) == 3 and projection_of(module.says) in ("q", "k"):
            yield kernel.info.shape[0 if kernel.kind == kinds.HEADS_FIRST else 1]
