"""What is in a file, as text. Needs neither numpy nor a table library: it must be there at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from regraft.tensors import TensorInfo

if TYPE_CHECKING:
    from regraft.checkpoints import Checkpoint

_NUMBER = re.compile(r"\d+")


def size_text(count: int) -> str:
    """Bytes in binary units: `1.03 MiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{count} B" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"


def shape_text(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def headline(found: Checkpoint, shown: int) -> str:
    """One line about the whole file."""
    facts = [found.format, f"{len(found):,} tensors", size_text(found.nbytes)]
    facts.append(f"{sum(info.size for info in found.values()):,} values")
    if found.container:
        facts.insert(1, f"in {found.container!r}")
    if shown != len(found):
        facts.append(f"{shown:,} shown")
    return f"{found.label}  {' · '.join(facts)}"


def rows(infos: Iterable[TensorInfo], fold: bool) -> Iterator[tuple[str, str, str, str, str]]:
    """Name, shape, dtype, bytes and layer of each tensor; `fold` joins those that differ by numbers
    only (`layers.#.weight × 12`)."""
    groups: dict[tuple[str, str, str, str], list[TensorInfo]] = {}
    for info in infos:
        name = _NUMBER.sub("#", info.name) if fold else info.name
        key = name, shape_text(info.shape), info.dtype, info.module
        groups.setdefault(key, []).append(info)
    for (name, shape, dtype, module), members in groups.items():
        total = size_text(sum(info.nbytes for info in members))
        if len(members) == 1:
            yield members[0].name, shape, dtype, total, module
        else:
            yield f"{name} × {len(members)}", shape, dtype, total, module


def table(lines: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Rows in columns; the last but one is aligned to the right."""
    listed = list(lines)
    if not listed:
        return
    widths = [max(len(row[column]) for row in listed) for column in range(len(listed[0]))]
    for row in listed:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells[-2] = row[-2].rjust(widths[-2])
        yield "  " + "  ".join(cells).rstrip()


def as_json(found: Checkpoint, infos: Iterable[TensorInfo]) -> dict[str, Any]:
    """The listing as plain values; `tensors` holds name, shape, dtype and nbytes of each."""
    return {
        "schema_version": 1,
        "path": str(found.path),
        "format": found.format,
        "framework": found.framework,
        "container": found.container,
        "containers": found.containers,
        "nbytes": found.nbytes,
        "notes": list(found.notes),
        "metadata": dict(found.metadata),
        "ties": [list(group) for group in found.ties],
        "tensors": [
            {
                "name": info.name,
                "shape": list(info.shape),
                "dtype": info.dtype,
                "nbytes": info.nbytes,
                "module": info.module,
                "kind": info.kind,
            }
            for info in infos
        ],
    }
