"""The epsilon of a norm, where a live layer or a config tells it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from regraft.tensors import Catalogue

KEYS = ("eps", "epsilon", "variance_epsilon")
_USUAL = {"torch": (1e-5, 1e-3, 1e-6), "keras": (1e-3, 1e-5, 1e-6), "jax": (1e-5, 1e-6, 1e-3)}


def of(catalogue: Catalogue, owner: str) -> float | None:
    """The epsilon of the layer whose path (parts joined with dots) this is."""
    return of_owner(by_path(catalogue), owner)


def of_owner(known: Mapping[str, float], owner: str) -> float | None:
    """That of a layer by its path, or by its last part where only that is known."""
    return known.get(owner, known.get(f"*{owner.rpartition('.')[2]}"))


def by_path(catalogue: Catalogue) -> dict[str, float]:
    """Epsilons by path; by `*` and the layer's name where a config tells no more."""
    by_layer = _by_layer(catalogue.metadata.get("model_config", ""))
    found = {f"*{name}": epsilon for name, epsilon in by_layer.items()}
    for path, settings in catalogue.settings.items():
        epsilon = next((settings[key] for key in KEYS if key in settings), None)
        if isinstance(epsilon, float):
            found[path.replace("/", ".")] = epsilon
    return found


def usual(framework: str) -> tuple[float, ...]:
    """What it may be where nothing tells, likeliest first."""
    return _USUAL.get(framework, _USUAL["torch"])


@lru_cache(maxsize=8)
def _by_layer(config: str) -> dict[str, float]:
    try:
        return dict(_layers(json.loads(config), 0)) if config else {}
    except (ValueError, RecursionError):
        return {}


def _layers(node: Any, depth: int) -> Iterator[tuple[str, float]]:
    if depth > 40:
        return
    if isinstance(node, dict):
        config = node.get("config")
        if isinstance(config, dict) and isinstance(config.get("epsilon"), (int, float)):
            yield str(config.get("name", node.get("name", ""))), float(config["epsilon"])
        for part in node.values():
            yield from _layers(part, depth + 1)
    elif isinstance(node, list):
        for part in node:
            yield from _layers(part, depth + 1)
