"""Settings of layers that say how their weights are meant, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_TOLD = frozenset(
    """num_heads num_attention_heads n_head n_heads nhead heads num_key_value_heads num_kv_heads
    n_kv_heads n_kv_head kv_heads head_dim eps epsilon variance_epsilon groups num_groups
    hidden_size num_hidden_layers rope_theta activation hidden_act image_size img_size patch_size
    grid_size offset padding_idx""".split()  # noqa: SIM905
)

Settings = dict[str, dict[str, Any]]


def settings_of(layers: Iterable[tuple[str, object]], separator: str) -> Settings:
    """Plain attributes of layers by path, and of the configs that outer ones hold; of pairs, as
    `grid_size`, both parts, `grid_size.0` and `grid_size.1`."""
    found: Settings = {}
    for path, layer in layers:
        config = getattr(layer, "config", None) if separator not in path else None
        held = {key: value for holder in (config, layer) for key, value in _told(holder)}
        if held:
            found[path] = held
    return found


def _told(holder: object) -> Iterable[tuple[str, Any]]:
    values: Mapping[str, Any] = getattr(holder, "__dict__", None) or {}
    for key, value in values.items():
        if key in _TOLD or "head" in key:
            pair = isinstance(value, (tuple, list)) and len(value) == 2
            parts = {f"{key}.{i}": v for i, v in enumerate(value)} if pair else {key: value}
            for name, part in parts.items():
                if isinstance(part, (int, float, str, bool)):
                    yield name, part
