"""How deep in a model each tensor lies, from the order of definition and the blocks that repeat.

Depth is counted in units: a block of a repeated list (`encoder.layer.3`, `layer2.1`, `block_7`),
whatever lies between two lists, what lies before the first (the stem) and after the last one (the
head and its norm). Where nothing repeats, a unit is a layer with the norm after it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from regraft.errors import TargetError
from regraft.tensors import TensorInfo

# Words and numbers of a name with what joins them: `layer1.0.conv1` is layer, 1, 0, conv, 1.
_TOKEN = re.compile(r"\d+|[^\W\d_]+|.")
# Siblings are a list where, on the average, so much of their inner structure is the same.
_ALIKE = 0.5


@dataclass
class _Node:
    """One prefix of names: what goes on after it, and the tensors under it."""

    children: dict[str, _Node] = field(default_factory=dict[str, "_Node"])
    tensors: list[TensorInfo] = field(default_factory=list[TensorInfo])


def defined(
    tensors: Iterable[TensorInfo], *, stem: Collection[str], head: Collection[str]
) -> list[TensorInfo]:
    """Tensors that are sorted by name, in the order in which they must have been defined: the stem,
    blocks by number, the head.

    **Raises** `TargetError`, with all findings, where some are none of these.
    """
    listed = list(tensors)
    middle = [t for t in listed if t.name not in stem and t.name not in head]
    blocks = blocks_of(middle)
    unknown = [t.name for t in middle if t.name not in blocks]
    if unknown:
        raise TargetError(
            "the policy",
            found=f"depths of a model whose tensors are sorted by name, such as {unknown[0]!r}",
            expected="the order in which layers were made, or only numbered blocks, a stem and a "
            "head",
            hint="name what comes before the blocks and after them: Policy(stem=…, head=…)",
            problems=unknown,
        )
    numbered = sorted(middle, key=lambda t: [(int(w), "") if w.isdigit() else (-1, w)
                                             for w in _TOKEN.findall(t.name)])  # fmt: skip
    first = [t for t in listed if t.name in stem]
    return [*first, *numbered, *(t for t in listed if t.name in head and t.name not in stem)]


def depths(
    tensors: Iterable[TensorInfo],
    *,
    head: Collection[str] = (),
    towers: Iterable[Collection[str]] = (),
) -> dict[str, int]:
    """The depth of each tensor by name, from 0 (next to the input).

    **Arguments:**

    - `tensors`: in order of definition.
    - `head`: names of the tensors of the head, which are the deepest wherever they are defined.
    - `towers`: names of the tensors of networks that stand side by side (text and image); each is
      counted on its own, and ends where the longest ends.
    """
    listed = list(tensors)
    found: dict[str, int] = {}
    several = [set(tower) for tower in towers]
    rest = [t for t in listed if not any(t.name in tower for tower in several)]
    counted = [_counted([t for t in listed if t.name in tower]) for tower in several]
    longest = max((max(part.values(), default=-1) for part in counted), default=-1)
    for part in counted:
        shift = longest - max(part.values(), default=-1)
        found |= {name: depth + shift for name, depth in part.items()}
    main = [t for t in rest if t.name not in head]
    found |= {name: depth + longest + 1 for name, depth in _counted(main).items()}
    top = max(found.values(), default=-1)
    # What follows the last block (a norm, a pooler) is one unit with the head.
    blocks = blocks_of(main)
    follows = bool(blocks) and not any(found[name] == top for name in blocks)
    chosen = [t.name for t in rest if t.name in head]
    found |= dict.fromkeys(chosen, top if follows else top + 1)
    return {t.name: found[t.name] for t in listed}


def _counted(tensors: list[TensorInfo]) -> dict[str, int]:
    """Depths of the tensors of one chain of layers, in order of definition."""
    blocks = blocks_of(tensors)
    # Between blocks one run is one unit; where there are no blocks, a unit is a layer.
    units: dict[str, list[TensorInfo]] = {}
    runs, before = 0, True
    for tensor in tensors:
        inside = tensor.name in blocks
        runs += before and not inside
        before = inside
        layer = re.split(r"[./][^./]*$", tensor.name)[0]
        unit = blocks.get(tensor.name) or (f"{runs} between" if blocks else layer)
        units.setdefault(unit, []).append(tensor)
    depth, found = -1, dict[str, int]()
    for members in units.values():
        norm = not blocks and all(len(t.shape) <= 1 for t in members)
        depth += not (norm and depth >= 0)
        found |= {t.name: depth for t in members}
    return found


def blocks_of(tensors: list[TensorInfo]) -> dict[str, str]:
    """By tensor, the block that it belongs to; tensors of none are left out."""
    root = _Node()
    for tensor in tensors:
        node = root
        node.tensors.append(tensor)
        for token in _TOKEN.findall(tensor.name):
            node = node.children.setdefault(token, _Node())
            node.tensors.append(tensor)
    return {t.name: path for path, node in _lists(root, "") for t in node.tensors}


def _lists(node: _Node, path: str) -> Iterator[tuple[str, _Node]]:
    """The blocks under a node: the outermost ones that are no mere stages of others."""
    members = {token: child for token, child in node.children.items() if token.isdigit()}
    repeated = _repeated(members, path) if len(members) > 1 else set[str]()
    for token, child in node.children.items():
        below = list(_lists(child, path + token))
        if token not in repeated:
            yield from below
            continue
        inside = {t.name for _, inner in below for t in inner.tensors}
        # A stage holds blocks and at most one kernel more, which brings it to another width.
        if below and _kernels(child) - _kernels(child, inside) <= 1:
            yield from below
        else:
            yield path + token, child


def _repeated(members: Mapping[str, _Node], path: str) -> set[str]:
    """The numbered siblings that are blocks: of two kernels or more, and built like another."""
    inner = {
        token: {t.name.removeprefix(path + token) for t in child.tensors}
        for token, child in members.items()
        if _kernels(child) > 1
    }
    alike: set[str] = set()
    for token, own in inner.items():
        others = [other for key, other in inner.items() if key != token]
        shared = (len(own & other) / min(len(own), len(other)) for other in others)
        if max(shared, default=0.0) >= _ALIKE:
            alike.add(token)
    return alike


def _kernels(node: _Node, names: Collection[str] | None = None) -> int:
    """Number of tensors that mix channels: of two axes or more."""
    return sum(len(t.shape) > 1 and (names is None or t.name in names) for t in node.tensors)
