"""What a file's model is, as far as its metadata say or its names show; never more than that."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from regraft.reports.families import FAMILIES, Family
from regraft.tensors import Catalogue

_NUMBER = re.compile(r"[0-9]+")
# A model of more different names than this, or of deeper ones, is none that the table knows; and
# nobody wants to read of more places than this.
_MAX_TEMPLATES, _MAX_DEPTH, _MAX_PLACES = 5000, 64, 16
# Metadata that name an architecture, by the last word of their key: GGUF's general.architecture,
# transformers' model_type, the arch of PyTorch's and timm's training scripts.
_ARCHITECTURE = ("architecture", "model_type", "arch")
_MAX_SAID = 100
_AUTOMATIC = re.compile(r"(model|functional|sequential)(_\d+)?$")
_REASONS_SHOWN = 3


class Look(NamedTuple):
    """A family that a file belongs to, and why one may think so.

    - `name`: of the family; `by`: the metadata's key that says it, or the names that show it.
    - `said`: whether the file says it; else it only looks so.
    - `under`: the prefix of the names below which it is, `""` where that is the whole file.
    - `blocks`: how many blocks repeat, by stage where there are stages.
    - `sizes`: sizes that its names give away, such as its width.
    """

    name: str
    by: tuple[str, ...]
    said: bool = False
    under: str = ""
    blocks: tuple[int, ...] = ()
    sizes: Mapping[str, int] = {}

    @property
    def details(self) -> str:
        """Blocks and sizes in words."""
        found = [f"{word} {size:,}" for word, size in self.sizes.items()]
        if len(self.blocks) > 1:
            counts = ", ".join(map(str, self.blocks))
            found.insert(0, f"{len(self.blocks)} stages of {counts} blocks")
        elif self.blocks:
            found.insert(0, f"{self.blocks[0]:,} block" + "s" * (self.blocks[0] > 1))
        return ", ".join(found)


def looks(catalogue: Catalogue) -> list[Look]:
    """What the metadata say, then what the names look like; wholes rather than their parts."""
    found = list(_said(catalogue.metadata))
    names = _Names(catalogue)
    seen: list[str] = []
    for family in FAMILIES:
        for prefix in names.places_of(family):
            if not any(prefix.startswith(before) for before in seen):
                seen.append(prefix)
                found.append(names.look(family, prefix))
    return found


def _said(metadata: Mapping[str, str]) -> Iterator[Look]:
    for key, value in metadata.items():
        if key == "model_config":
            yield from _keras(value)
        elif key.rpartition(".")[2] in _ARCHITECTURE and 0 < len(value) <= _MAX_SAID:
            yield Look(value, (key,), said=True, **_gguf(metadata, value))


def _gguf(metadata: Mapping[str, str], architecture: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    blocks = metadata.get(f"{architecture}.block_count", "")
    width = metadata.get(f"{architecture}.embedding_length", "")
    if blocks.isdecimal() and len(blocks) < 10:
        found["blocks"] = (int(blocks),)
    if width.isdecimal() and len(width) < 10:
        found["sizes"] = {"width": int(width)}
    return found


def _keras(config: str) -> Iterator[Look]:
    """The class, the name unless Keras made it up, and the number of layers of a Keras model."""
    import json

    try:
        model = json.loads(config)
        kind, settings = model["class_name"], model["config"]
        listed = isinstance(settings, list)  # a Sequential of Keras 1
        layers, name = (settings, "") if listed else (settings["layers"], settings.get("name"))
        count = len(layers)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    own = f" {name!r}" if name and not _AUTOMATIC.match(str(name)) else ""
    yield Look(f"Keras {kind}{own} of {count} layers", ("model_config",), said=True)


class _Names:
    """A catalogue's names with their numbers blotted out, and the families' words in them."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        distinct = {_NUMBER.sub("#", name): name for name in catalogue}
        # Template and a name of each kind of tensor, and the templates of their modules.
        self._tensors = {
            _plain(template): name
            for template, name in itertools.islice(distinct.items(), _MAX_TEMPLATES)
            if template.count(".") + template.count("/") < _MAX_DEPTH
        }
        self._modules = dict.fromkeys(t.rpartition(".")[0] for t in self._tensors)
        # Prefixes below which each word of the families' is.
        self._prefixes: dict[str, dict[str, None]] = defaultdict(dict)
        for path in (*self._modules, *self._tensors):
            if path.rpartition(".")[2] in _LAST_WORDS:
                for prefix, word in _suffixes(path):
                    if word in _WORDS:
                        self._prefixes[word][prefix] = None

    def places_of(self, family: Family) -> list[str]:
        """The prefixes below which there is such a model."""
        found = [self._prefixes.get(word, {}) for word in family.beside.split()]
        if family.scattered:
            return [""] if all(found) and any(p in found[1] for p in found[0]) else []
        common = [p for p in found[0] if all(p in others for others in found[1:])]
        common.sort(key=len)
        return [p for p in common[:_MAX_PLACES] if self._fits(family, p)]

    def _fits(self, family: Family, prefix: str) -> bool:
        if family.block:
            inside = self._inside(prefix + family.block)
            needed, maybe = set(family.inside.split()), set(family.maybe.split())
            if not inside or not needed <= inside:
                return False
            if "*" not in maybe and not inside <= needed | maybe:
                return False
        for name, expected in family.shapes:
            shape = self._shape(prefix + name)
            if len(shape) != len(expected):
                return False
            if any(want not in (0, size) for size, want in zip(shape, expected, strict=True)):
                return False
        return True

    def _inside(self, block: str) -> set[str]:
        """The modules in a block: `-` is the block itself."""
        start = f"{block}."
        found = {module[len(start) :] for module in self._modules if module.startswith(start)}
        return found | {"-"} if block in self._modules else found

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._by_plain_name.get(name, ())

    @cached_property
    def _by_plain_name(self) -> dict[str, tuple[int, ...]]:
        return {_plain(name): info.shape for name, info in self._catalogue.items()}

    def look(self, family: Family, prefix: str) -> Look:
        words = [f"{prefix}{word}" for word in family.beside.split()]
        if family.block:
            first = (*family.inside.split(), "")[0]
            words.insert(0, f"{prefix}{family.block}.{first}".rstrip("."))
        if family.scattered:
            words = [f"{next(iter(self._prefixes[word]))}{word}" for word in words]
        whole = all(name.startswith(prefix) for name in self._tensors)
        return Look(
            family.name,
            tuple(words[:_REASONS_SHOWN]),
            under="" if whole else prefix,
            blocks=self._blocks(family, prefix) if family.block else (),
            sizes=dict(self._sizes(family, prefix)),
        )

    def _sizes(self, family: Family, prefix: str) -> Iterator[tuple[str, int]]:
        for word, tensor, axis in family.sizes:
            name = self._tensors.get(prefix + tensor)
            if family.scattered:
                ends = (n for t, n in self._tensors.items() if t.endswith(f".{tensor}"))
                name = next(ends, None)
            shape = self._catalogue[name].shape if name else ()
            if shape:
                yield word, shape[axis]

    def _blocks(self, family: Family, prefix: str) -> tuple[int, ...]:
        inside = (family.inside or family.maybe).split()
        holes = family.block.count("#")
        if holes > 2:
            return ()
        before = _pattern(prefix)
        block = _pattern(family.block).replace("[0-9]+", "([0-9]+)")
        parts = "|".join(_pattern(part) for part in inside if part not in "-*")
        search = re.compile(f"{before}{block}[./](?:{parts})[./]").match
        found: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for name in self._catalogue:
            if numbers := search(name):
                *stage, number = numbers.groups()
                found[tuple(stage)].add(number)
        return tuple(len(blocks) for blocks in found.values())


def _plain(name: str) -> str:
    """A name in the families' terms: dots, no `:0`, and what is said twice in a row said once."""
    parts: list[str] = []
    for part in re.sub(r":[0-9#]+$", "", name).replace("/", ".").split("."):
        if not parts or part != parts[-1] or part == "#" or part.isdigit():
            parts.append(part)
    return ".".join(parts)


def _suffixes(path: str) -> Iterator[tuple[str, str]]:
    """Every way to cut a path in two, the whole of it first."""
    yield "", path
    for dot in re.finditer(r"\.", path):
        yield path[: dot.end()], path[dot.end() :]


def _pattern(template: str) -> str:
    return re.escape(template).replace(r"\#", "#").replace(r"\.", "[./]").replace("#", "[0-9]+")


_WORDS = frozenset(word for family in FAMILIES for word in family.beside.split())
_LAST_WORDS = frozenset(word.rpartition(".")[2] for word in _WORDS)
