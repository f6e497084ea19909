"""The tree that tensors' names form, folded where its parts repeat.

A name is a path: `layers.3.attn.weight` has four labels. Two parts are equal where the names,
shapes, dtypes and classes below them are; equal parts that stand beside one another and whose
labels differ by numbers only become one `Fold`, `layers.0-11`. What is inside is found when it is
asked for, and only in the first of the parts: time is linear in the number of tensors on each level
that is looked at, but for sorting.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from copy import copy
from functools import cached_property
from operator import itemgetter

from regraft.tensors import TensorInfo

# Labels below this depth are not taken apart: files may hold any, and recursion has an end.
_MAX_DEPTH = 64
_NUMBERS = re.compile(r"([0-9]+)")
_NUMBERED_WORD = re.compile(r"[^\W\d].*[0-9]")
_MAX_DIGITS, _MAX_NUMBERS = 18, 8
# More runs of numbers than this are cut in the middle, `0,2,4,…,40`.
_MAX_RUNS = 5

# What is left of a tensor's name inside a part, and the tensor.
Items = Sequence[tuple[str, TensorInfo]]


class Tied(TensorInfo):
    """A tensor that shares the bytes of an earlier one."""

    __slots__ = ()

    @property
    def nbytes(self) -> int:
        return 0


class Fold:
    """Equal parts of the tree that stand beside one another, as one.

    - `label`: the labels they stand for, `.layers.0-11`, with those on the way to them where there
      is nothing else on it; `last`: the last of these.
    - `items`: the tensors in the first of them; `first`: its own last label.
    - `times`: how many of them there are in the whole tree; `depth`: how far down.
    """

    def __init__(
        self, label: str, last: str, first: str, items: Items, times: int, depth: int
    ) -> None:
        self.label = label
        self.last = last
        self.first = first
        self.items = items
        self.times = times
        self.depth = depth

    @property
    def tensor(self) -> TensorInfo | None:
        """The tensor, where the parts are tensors and nothing else."""
        return self.items[0][1] if len(self.items) == 1 and not self.items[0][0] else None

    @property
    def tensors(self) -> int:
        return len(self.items) * self.times

    @property
    def nbytes(self) -> int:
        """Bytes of all of them, shared ones counted once."""
        return sum(info.nbytes for _, info in self.items) * self.times

    @property
    def dtypes(self) -> set[str]:
        return {info.dtype for _, info in self.items}

    @cached_property
    def inside(self) -> list[Fold]:
        """What is inside, folded, in order. A module with but one thing in it is passed over, but
        for its label."""
        return [_through(fold, folded=True) for fold in self._folded]

    def unfolded(self) -> list[Fold]:
        """The same with every part for itself."""
        found = (self._inner(label, [(label, items)]) for label, items in self._parts.items())
        return [_through(fold, folded=False) for fold in found]

    @cached_property
    def _parts(self) -> dict[str, list[tuple[str, TensorInfo]]]:
        """What is inside by label, in order. A tensor of the module's own name is under `""`."""
        found: dict[str, list[tuple[str, TensorInfo]]] = {}
        if self.tensor:
            return found
        for name, info in self.items:
            cut = _label_end(name) if self.depth < _MAX_DEPTH else len(name)
            label = name[:cut]
            item = name[cut:], info
            if label in found:
                found[label].append(item)
            else:
                found[label] = [item]
        return found

    @cached_property
    def _folded(self) -> list[Fold]:
        return [self._inner(*group) for group in _grouped(self._parts)]

    def _inner(self, label: str, parts: Sequence[tuple[str, Items]]) -> Fold:
        """A fold of these parts inside of this one, of a common label."""
        first, items = parts[0]
        stem = _stem(self.first)
        rest = label[1 + len(stem) :]
        numbered = len(parts) > 1 and rest[:1] in "-,"
        if stem and _relative(first, stem) != first and not numbered:
            label = f"{label[0]}{self.last.lstrip('./')}{rest}"
        return Fold(label, label, first, items, self.times * len(parts), self.depth + 1)

    def only(self, folded: bool) -> Fold | None:
        """What is inside where that is one thing, and nothing else beside it."""
        parts = self._parts
        if len(parts) > 1 and (not folded or _differ(parts)):
            return None
        return self._folded[0] if len(self._folded) == 1 else None


def whole(infos: Iterable[TensorInfo], again: Container[str] = ()) -> Fold:
    """The tree of these tensors, in their order. `again`: names that share another's bytes."""
    items = [(i.name, Tied(*i) if again and i.name in again else i) for i in infos]
    return Fold("", "", "", items, 1, 0)


def _label_end(name: str) -> int:
    """Where the first label of a name ends; it may begin with a separator."""
    dot = name.find(".", 1)
    slash = name.find("/", 1) if "/" in name else -1
    if dot < 0 or 0 < slash < dot:
        dot = slash
    return len(name) if dot < 0 else dot


def _through(fold: Fold, folded: bool) -> Fold:
    """Followed down as long as there is but one thing inside."""
    while fold.tensor is None and (inner := fold.only(folded)):
        label = fold.label + inner.label
        fold = copy(inner)
        fold.label = label
    return fold


def _structure(items: Items, stem: str) -> tuple[object, ...]:
    """Equal for parts of equal structure. The order of names is none: shards cut layers apart."""
    found = [(_relative(n, stem) if stem else n, _kind(info)) for n, info in items]
    if len(found) > 1:
        found.sort(key=itemgetter(0))
    return tuple(found)


def _kind(info: TensorInfo) -> object:
    """All of a tensor but its name."""
    return info[1:] if type(info) is TensorInfo else (info[1:], type(info))


def _differ(parts: Mapping[str, Items]) -> bool:
    """Whether the first two parts are of different structure: then there is no need to look on."""
    (one, a), (other, b) = list(parts.items())[:2]
    return _structure(a, _stem(one)) != _structure(b, _stem(other))


def _stem(label: str) -> str:
    """What inner labels may say again: Keras writes `conv2d_3/conv2d_3_1/kernel:0`."""
    if label[1:2].isdigit():  # quickly: most labels of blocks are mere numbers
        return ""
    text = label.lstrip("./")
    return text if _NUMBERED_WORD.match(text) else ""


def _relative(label: str, stem: str) -> str:
    """A label with its owner's own name taken out, so that `conv2d_1` can equal `conv2d_2`."""
    rest = label[1:].removeprefix(stem)
    if len(rest) < len(label) - 1 and not rest[:1].isdigit():
        return f"{label[0]}\0{rest}"
    return label


_Group = list[tuple[tuple[str, ...], list[tuple[str, Items]]]]


def _grouped(parts: Mapping[str, Items]) -> list[tuple[str, list[tuple[str, Items]]]]:
    """Groups of equal parts, each with its common label, in order of their first."""
    alike: dict[tuple[tuple[str, ...], object], _Group] = {}
    for label, items in parts.items():
        texts, numbers = _numbers(label)
        structure = _structure(items, _stem(label))
        alike.setdefault((texts, structure), []).append((numbers, [(label, items)]))
    return [
        (_label(texts, numbers), members)
        for (texts, _), group in alike.items()
        for numbers, members in _merged(group)
    ]


def _numbers(label: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A label's texts and the numbers between them, unless these are too many or too long."""
    found = _NUMBERS.split(label)
    if len(label) > _MAX_DIGITS and (
        len(found) > 2 * _MAX_NUMBERS + 1 or any(len(n) > _MAX_DIGITS for n in found[1::2])
    ):
        return (label,), ()
    return tuple(found[::2]), tuple(found[1::2])


def _label(texts: tuple[str, ...], numbers: tuple[str, ...]) -> str:
    shown = map(_shortened, numbers)
    return texts[0] + "".join(n + text for n, text in zip(shown, texts[1:], strict=True))


def _merged(group: _Group) -> _Group:
    """Members that differ in one number joined, the last number first: `block1_conv1` and
    `block1_conv2` before `block1` and `block2`."""
    if len(group) == 1:
        return group
    for slot in reversed(range(len(group[0][0]))):
        rows: dict[tuple[str, ...], _Group] = {}
        for numbers, members in group:
            rows.setdefault(numbers[:slot] + numbers[slot + 1 :], []).append((numbers, members))
        group = [
            (
                (*rest[:slot], ranged([numbers[slot] for numbers, _ in row]), *rest[slot:]),
                [item for _, members in row for item in members],
            )
            for rest, row in rows.items()
        ]
    return group


def ranged(numbers: list[str]) -> str:
    """Numbers in runs: `0-3,7`. A single text is given back as it is."""
    if len(numbers) == 1:
        return numbers[0]
    runs: list[tuple[str, str]] = []
    last = -2
    for value, number in sorted((int(number), number) for number in numbers):
        if value == last + 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
        last = value
    return ",".join(first if first == end else f"{first}-{end}" for first, end in runs)


def _shortened(ranges: str) -> str:
    """A long list of numbers cut in the middle."""
    runs = ranges.split(",")
    return ranges if len(runs) <= _MAX_RUNS else ",".join((*runs[:3], "…", runs[-1]))
