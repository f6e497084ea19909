"""What is known of a checkpoint at once: sums, ties, wrappers, other parts of the file, family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from math import prod
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from regraft import containers
from regraft.reports import recognition
from regraft.tensors import stored_bytes

if TYPE_CHECKING:
    from regraft.checkpoints import Checkpoint
    from regraft.reports.recognition import Look

# What wraps a model and puts its name before all others, and who does so.
WRAPPERS = {
    "module": "DataParallel or another wrapper",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_forward_module": "Lightning Fabric",
    "model": "a module that holds the model",
    "net": "a module that holds the model",
    "network": "a module that holds the model",
    "backbone": "a module that holds the model",
}
_LINEAGE = "regraft.lineage"
_SHAPE_AND_DTYPE = attrgetter("shape", "dtype")


class Facts(NamedTuple):
    """What a checkpoint is without a look at its values; tied tensors are counted once.

    - `values`, `nbytes`: numbers of values and bytes.
    - `dtypes`: tensors and bytes of each dtype, most bytes first.
    - `again`: names of tensors that share the bytes of an earlier one, with that one's name.
    - `prefix`: what wrappers put before every name, such as `module.`.
    - `others`: parts of the file that could be opened instead, with their numbers of tensors.
    - `rivals`: those of them that look like weights, too.
    - `looks`: which families of models it may be, and why.
    - `lineage`: whether it tells where its tensors came from.
    """

    values: int
    nbytes: int
    dtypes: Mapping[str, tuple[int, int]]
    again: Mapping[str, str]
    prefix: str
    others: Mapping[str, int]
    rivals: tuple[str, ...]
    looks: Sequence[Look]
    lineage: bool


def facts(found: Checkpoint) -> Facts:
    """Everything about an open checkpoint; reads nothing of it."""
    again = {name: group[0] for group in found.ties for name in group[1:]}
    alike = Counter(map(_SHAPE_AND_DTYPE, found.values()))
    tensors: Counter[str] = Counter()
    for (_, dtype), count in alike.items():
        tensors[dtype] += count
    alike.subtract(_SHAPE_AND_DTYPE(found[name]) for name in again)
    values = 0
    sizes: Counter[str] = Counter()
    for (shape, dtype), count in alike.items():
        size = prod(shape)
        values += count * size
        sizes[dtype] += count * stored_bytes(size, dtype)
    others = dict(_others(found))
    return Facts(
        values,
        sizes.total(),
        {d: (tensors[d], sizes[d]) for d in sorted(tensors, key=lambda d: -sizes[d])},
        again,
        _prefix(found),
        others,
        tuple(
            part
            for part, count in others.items()
            if 2 * count >= len(found) and not any(map(containers.never, part.split("/")))
        ),
        recognition.looks(found),
        _LINEAGE in found.metadata,
    )


def _prefix(names: Collection[str]) -> str:
    """The wrappers' names that begin all names."""
    if len(names) < 2:
        return ""
    lowest, highest = min(names), max(names)  # what these share, all between them do
    prefix = ""
    for part, other in zip(lowest.split("."), highest.split("."), strict=False):
        if part != other or part not in WRAPPERS:
            break
        prefix += f"{part}."
    return prefix if lowest.startswith(prefix) else ""


def _others(found: Checkpoint) -> Iterator[tuple[str, int]]:
    opened, left_out = found.container, found.choice.without
    for part, count in found.containers.items():
        apart = part and not (_within(part, opened) or _within(opened, part))
        if apart if opened else part in left_out:
            yield part, count


def _within(part: str, other: str) -> bool:
    return f"{part}/".startswith(f"{other}/")
