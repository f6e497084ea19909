"""Outputs of a model by name, whatever they are nested in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def leaves_of(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What lies in dicts, lists and tuples, named `output`, `output.0`, or by the dict's keys; None
    is left out."""
    if callable(getattr(value, "items", None)):
        for key, part in value.items():
            yield from leaves_of(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        parts: Any = value
        for index, part in enumerate(parts):
            yield from leaves_of(part, f"{name or 'output'}.{index}")
    elif value is not None:
        yield name or "output", value
