"""The tree that tensors' names form, folded where its parts repeat.

A name is a path: `layers.3.attn.weight` has four labels. Two parts are equal where the names,
shapes, dtypes and classes below them are; equal parts that stand beside one another and whose
labels differ by numbers only become one `Fold`, `layers.0-11`. Every step is linear in the number
of tensors but for sorting, and what repeats is folded once.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

from regraft.tensors import TensorInfo

# Names of more labels than this are not taken apart: files may hold any, and recursion has an end.
_MAX_DEPTH = 64
_NUMBERS = re.compile(r"([0-9]+)")
_NUMBERED_WORD = re.compile(r"[^\W\d].*[0-9]")
_MAX_DIGITS, _MAX_NUMBERS = 18, 8
# More runs of numbers than this are cut in the middle, `0,2,4,…,40`.
_MAX_RUNS = 5


class Tied(TensorInfo):
    """A tensor that shares the bytes of an earlier one."""

    __slots__ = ()

    @property
    def nbytes(self) -> int:
        return 0


class Structure:
    """What parts of equal structure have in common, of which there is one object: how many tensors
    they hold, their bytes (shared ones counted once) and dtypes."""

    __slots__ = ("count", "dtypes", "nbytes")

    def __init__(self, inside: Iterable[Part | TensorInfo]) -> None:
        self.count = 0
        self.nbytes = 0
        self.dtypes: frozenset[str] = frozenset()
        for one in inside:
            module = isinstance(one, Part)
            self.count += one.structure.count if module else 1
            self.nbytes += one.structure.nbytes if module else one.nbytes
            self.dtypes |= one.structure.dtypes if module else {one.dtype}


class Part:
    """A module: what is inside, by label (`.weight`), and its structure.

    A tensor that has the module's own name is inside of it under an empty label.
    """

    __slots__ = ("inside", "label", "structure")

    def __init__(self, label: str) -> None:
        self.label = label
        self.inside: dict[str, Part | TensorInfo] = {}
        self.structure: Structure = _NOTHING


_NOTHING = Structure(())
_Modules = dict[str, Part]


def tree(infos: Iterable[TensorInfo], again: Container[str] = ()) -> Part:
    """The tree of these tensors, in their order. `again`: names that share another's bytes."""
    modules: _Modules = {"": Part("")}
    for info in infos:
        owner, label = _place(info.name, modules)
        if again and info.name in again:
            info = Tied(*info)
        there = owner.inside.get(label)
        if there is None:
            owner.inside[label] = info
        elif isinstance(there, Part):
            there.inside[""] = info
    _settle(modules)
    return modules[""]


def _place(name: str, modules: _Modules) -> tuple[Part, str]:
    """The module that a name is in, made where it is missing, and its label there."""
    path, separator, last = name.rpartition(".")
    if "/" in last:
        path, separator, last = name.rpartition("/")
    owner = modules.get(path)
    if owner is None:
        if path.count(".") + path.count("/") >= _MAX_DEPTH:
            return modules[""], name
        around, label = _place(path, modules)
        owner = modules[path] = Part(label)
        there = around.inside.get(label)
        if isinstance(there, TensorInfo):
            owner.inside[""] = there
        around.inside[label] = owner
    return owner, separator + last


def _settle(modules: _Modules) -> None:
    """Structures, from the leaves up: a module is made after the one that it is in."""
    known: dict[object, Structure] = {}
    for part in reversed(modules.values()):
        inside = part.inside
        key = [(label, _structure(one)) for label, one in inside.items()]
        if stem := _stem(part.label):
            key = [(_relative(label, stem), structure) for label, structure in key]
        if len(key) > 1:  # the order of names is no structure: shards cut layers apart
            key.sort(key=itemgetter(0))
        found = known.get(joined := tuple(key))
        part.structure = found or known.setdefault(joined, Structure(inside.values()))


def _structure(one: Part | TensorInfo) -> object:
    """Equal for parts, and for tensors, of equal structure."""
    if type(one) is TensorInfo:
        return one[1:]
    return one.structure if isinstance(one, Part) else (one[1:], "tied")


@lru_cache(4096)  # labels are few where names are many
def _stem(label: str) -> str:
    """What inner labels may say again: Keras writes `conv2d_3/conv2d_3_1/kernel:0`."""
    text = label.lstrip("./")
    return text if _NUMBERED_WORD.match(text) else ""


def _relative(label: str, stem: str) -> str:
    """A label with its owner's own name taken out, so that `conv2d_1` can equal `conv2d_2`."""
    rest = label[1:].removeprefix(stem)
    if len(rest) < len(label) - 1 and not rest[:1].isdigit():
        return f"{label[0]}\0{rest}"
    return label


class Fold(NamedTuple):
    """Equal parts of the tree that stand beside one another, as one.

    - `label`: the labels they stand for, `.layers.0-11`, with those on the way to them where there
      is nothing else on it; `last`: the last of these.
    - `one`: the first of them; `first`: its own last label.
    - `times`: how many there are in the whole tree.
    """

    label: str
    last: str
    first: str
    one: Part | TensorInfo
    times: int

    @property
    def tensor(self) -> TensorInfo | None:
        return None if isinstance(self.one, Part) else self.one

    @property
    def tensors(self) -> int:
        return (self.one.structure.count if isinstance(self.one, Part) else 1) * self.times

    @property
    def nbytes(self) -> int:
        one = self.one.structure if isinstance(self.one, Part) else self.one
        return one.nbytes * self.times

    @property
    def dtypes(self) -> frozenset[str]:
        one = self.one
        return one.structure.dtypes if isinstance(one, Part) else frozenset((one.dtype,))

    def inside(self, *, fold: bool = True) -> list[Fold]:
        """What is inside, in order. A module with but one thing in it is passed over, but for its
        label."""
        if not isinstance(self.one, Part):
            return []
        items = list(self.one.inside.items())
        stem = _stem(self.first)
        found: list[Fold] = []
        for label, members in (
            _grouped(items) if fold else [(label, [(label, one)]) for label, one in items]
        ):
            first, one = members[0]
            shown = label
            rest = label[1 + len(stem) :]
            numbered = len(members) > 1 and rest[:1] in "-,"
            if stem and _relative(first, stem) != first and not numbered:
                shown = f"{label[0]}{self.last.lstrip('./')}{rest}"
            made = Fold(shown, shown, first, one, self.times * len(members))
            found.append(made._through(fold))
        return found

    def _through(self, folding: bool) -> Fold:
        """Followed down as long as there is but one thing inside."""
        found = self
        while isinstance(found.one, Part) and _alike(found.one.inside.values()):
            inner = found.inside(fold=folding)
            if len(inner) != 1:
                break
            found = inner[0]._replace(label=found.label + inner[0].label)
        return found


def of(root: Part) -> Fold:
    """A whole tree as a fold."""
    return Fold("", "", "", root, 1)


def first_tensor(one: Part | TensorInfo) -> TensorInfo:
    """A tensor itself, or the first in a module."""
    while isinstance(one, Part):
        one = next(iter(one.inside.values()))
    return one


def _alike(inside: Iterable[Part | TensorInfo]) -> bool:
    first, *others = map(_structure, inside)
    return all(other == first for other in others)


_Items = Sequence[tuple[str, "Part | TensorInfo"]]


def _grouped(items: _Items) -> list[tuple[str, _Items]]:
    """Groups of equal parts, each with its common label, in order of their first."""
    alike: dict[tuple[tuple[str, ...], object], list[tuple[tuple[str, ...], _Items]]] = {}
    for item in items:
        texts, numbers = _numbers(item[0])
        alike.setdefault((texts, _structure(item[1])), []).append((numbers, (item,)))
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


_Group = list[tuple[tuple[str, ...], _Items]]


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
