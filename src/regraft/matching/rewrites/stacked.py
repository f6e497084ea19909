"""Stacked layers: one tensor `[L, …]` for L layers (Flax' nn.scan, JAX trees), or for L experts.

A subtree in which all tensors begin with the same size L is seen as L subtrees, numbered where
the subtree's name ends. It is taken where the other side then has counterparts for more layers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from regraft.matching import roles
from regraft.matching.rewrites.finding import Finding, Sight
from regraft.matching.views import Expression, Rewrite
from regraft.operations import Stack, Unstack
from regraft.tensors import TensorInfo

_MOST = 1024


def find(here: Sight, there: Sight) -> Sequence[Finding]:
    """Families of subtrees: all layers of one stack, the experts of all layers."""
    families: dict[str, list[Rewrite]] = defaultdict(list)
    longest = _longest_row(there)
    for prefix, infos in _subtrees(here):
        count = infos[0].shape[0]
        if longest >= count:
            family = re.sub(r"\d+", "#", prefix)
            families[family] += [_unstacked(prefix, info, count) for info in infos]
    return [Finding(rewrites) for rewrites in families.values()]


def _subtrees(here: Sight) -> Iterator[tuple[str, list[TensorInfo]]]:
    below: dict[str, list[TensorInfo]] = defaultdict(list)
    for name, info in here.catalogue.items():
        if info.kind != "weight":
            continue
        for cut in (m.start() for m in re.finditer(r"[./]", name)):
            below[name[:cut]].append(info)
    for prefix, infos in below.items():
        sizes = {info.shape[0] if info.shape else 0 for info in infos}
        count = next(iter(sizes))
        if len(sizes) != 1 or not 1 < count <= _MOST:
            continue
        if max(len(info.shape) for info in infos) < 3 and len(infos) < 4:
            continue  # a plain layer: its kernel and bias begin alike, too
        if 2 * sum(len(info.shape) == 1 for info in infos) >= len(infos):
            continue  # layers whose tensors are single values
        yield prefix, infos


def _longest_row(there: Sight) -> int:
    """How many layers, or tensors of one layer for each, the other side has in a row."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for module in there.modules:
        for place, number in enumerate(module.numbers):
            numbers[f"{module.family} {place}"].add(number)
    return max(map(len, numbers.values()), default=0)


def _unstacked(prefix: str, info: TensorInfo, count: int) -> Rewrite:
    separator = info.name[len(prefix)]
    rest = info.name[len(prefix) + 1 :]
    # `experts.down_proj` is a tensor by the name of its layer: each part is that layer's weight.
    known = roles.known(rest.replace("/", ".").rpartition(".")[2])
    leaf = "" if known else f"{separator}weight"
    new = [
        info._replace(name=f"{prefix}{separator}{i}{separator}{rest}{leaf}", shape=info.shape[1:])
        for i in range(count)
    ]
    return Rewrite(
        (info,),
        tuple(new),
        {part.name: Expression((info.name,), (Unstack(0, i),)) for i, part in enumerate(new)},
        {info.name: Expression(tuple(part.name for part in new), (Stack(0),))},
        f"one of {count} layers that are stacked",
    )
