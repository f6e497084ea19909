"""The epsilon of a norm, where a live layer or a config tells it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from regraft.matching.modules import Module
from regraft.plans import Remark
from regraft.tensors import Catalogue

KEYS = ("eps", "epsilon", "variance_epsilon")
# Apart by this much, a variance of one gives outputs that differ by a twentieth of a percent.
_NOTICED = 9e-4
_USUAL = {"torch": (1e-5, 1e-3, 1e-6), "keras": (1e-3, 1e-5, 1e-6), "jax": (1e-5, 1e-6, 1e-3)}


def of(catalogue: Catalogue, owner: str) -> float | None:
    """The epsilon of the layer whose path (parts joined with dots) this is."""
    for path, settings in catalogue.settings.items():
        if path.replace("/", ".") == owner:
            found = next((settings[key] for key in KEYS if key in settings), None)
            if isinstance(found, float):
                return found
    return _by_layer(catalogue.metadata.get("model_config", "")).get(owner.rpartition(".")[2])


def usual(framework: str) -> tuple[float, ...]:
    """What it may be where nothing tells, likeliest first."""
    return _USUAL.get(framework, _USUAL["torch"])


def doubts(
    source: Catalogue, target: Catalogue, partners: Mapping[tuple[str, ...], Module]
) -> Iterable[Remark]:
    """A warning where both sides tell the epsilons of paired norms, and these are so far apart that
    outputs differ though every tensor is equal."""
    apart: list[tuple[str, float, float]] = []
    for path, module in partners.items():
        if "var" not in module.leaves:
            continue
        name = ".".join(path)
        here, there = of(source, module.name), of(target, name)
        if here is not None and there is not None and abs(here - there) > _NOTICED:
            apart.append((name, here, there))
    if apart:
        name, here, there = apart[0]
        yield Remark(
            "other-epsilon",
            name,
            f"{len(apart)} norms have another epsilon than the source's: {there:g} here, "
            f"{here:g} there",
        )


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
