"""Evidence of names: equal paths under wrappers, shared words, numbers as positions.

Three reasons, weighed apart. *Equal paths*: what is left of both names after a wrapper's prefix
is the same, and the prefix is one that many layers vote for. *Words*: shared words of the path,
rare ones counting more, after synonyms. *Numbers*: positions, never text; offsets between two
families of names (1-based and 0-based, conv2 … conv5 and layer1 … layer4) are taken from the
sets of values at that place. Where one side has more numbers, those that are the same in all of
a family are words (T5's `layer.0` is its attention in every block).

The words of a norm that says which layers it is for are those of its place: before the
feed-forward layers is also behind the attention, `post_attention_layernorm`.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property

from regraft.matching.modules import Module, tokens
from regraft.matching.projections import norm_place

# Words for the same thing. One line a thing; the first word stands for the rest.
_SYNONYMS = """
conv conv1d conv2d conv3d convolution convolution2d convbn
norm bn ln layernorm batchnorm groupnorm batch_norm layer_norm normalization rmsnorm
dense fc linear
vision visual image
distillation dist distilled
encoder enc
decoder dec
cross xattn crossattention crossattn
attn attention
q query
k key
v value
block layer blocks layers stage stages group groups
down downsample shortcut residual skip
embed embedding embeddings emb
head classifier logits predictions prediction score
depthwise dw dwconv
pointwise pw pwconv
out output
pos position positional wpe
token tokens tok word wte
cls class
"""
_CANONICAL = {
    word: line.split()[0] for line in _SYNONYMS.strip().splitlines() for word in line.split()
}
# From this share on, equal names are the rule.
_NEARLY_ALL = 0.8
# A wrapper may add this many parts before the names that both sides share.
_MAX_PREFIX = 3
# The end of a path that more layers of one side have is that of repeated blocks: it tells none of
# their wrappers.
_MOST_ALIKE = 16


class Names:
    """Name evidence between two lists of modules; answers for single pairs.

    `feasible` says whether two modules' tensors fit at all: only such pairs vote for a prefix.
    """

    def __init__(
        self,
        sources: Sequence[Module],
        targets: Sequence[Module],
        feasible: Callable[[Module, Module], bool],
    ) -> None:
        self._sources, self._targets = sources, targets
        # Pairs of modules, by id, whose paths are equal under the prefixes that most vote for.
        self.exact_pairs = _equal_paths(sources, targets, feasible)
        self._words = {id(m): word_counts(m) for m in (*sources, *targets)}
        self._rarity = _rarity(list(self._words.values()))
        self._slots = {id(side): _slot_values(side) for side in (sources, targets)}
        self._shifts: dict[tuple[str, str], tuple[tuple[int, int, int], ...]] = {}

    def words(self, source: Module, target: Module) -> float:
        """Share of the words that both have, rare words counting more; 0 to 1."""
        a, b = self._words[id(source)], self._words[id(target)]
        union = sum(self._rarity[w] * max(a[w], b[w]) for w in a.keys() | b.keys())
        common = sum(self._rarity[w] * min(a[w], b[w]) for w in a.keys() & b.keys())
        return common / union if union else 0.0

    def other_words(self, source: Module, target: Module) -> bool:
        """Whether the words of these two are not the same.

        Where nearly all layers have equal names (`told`), the file speaks the model's own language:
        layers of one shape that it calls by other words are other layers (a projection head is no
        classification head).
        """
        a, b = (telling(m) - w for m, w in zip((source, target), self._wrapping, strict=True))
        return bool(a and b) and a != b

    @cached_property
    def _wrapping(self) -> tuple[frozenset[str], ...]:
        """Words that most layers of either side have."""
        sides = (Counter(w for m in side for w in telling(m)) for side in
                 (self._sources, self._targets))  # fmt: skip
        sizes = len(self._sources), len(self._targets)
        return tuple(
            frozenset(word for word, count in words.items() if 2 * count > size)
            for words, size in zip(sides, sizes, strict=True)
        )

    @cached_property
    def told(self) -> bool:
        """Whether nearly all layers have equal names."""
        fewer = min(len(self._sources), len(self._targets))
        return len({target for _, target in self.exact_pairs}) > _NEARLY_ALL * fewer

    def places(self, source: Module, target: Module) -> tuple[tuple[int, int, int], ...]:
        """Places of the source's numbers, those of the target's that answer to them, and what to
        add to the former to get the latter; empty where they cannot be compared."""
        key = family_of(source), family_of(target)
        if key not in self._shifts:
            ours = self._slots[id(self._sources)][key[0]]
            theirs = self._slots[id(self._targets)][key[1]]
            left, right = list(range(len(ours))), list(range(len(theirs)))
            if len(left) != len(right):
                left = [i for i in left if len(ours[i]) > 1]
                right = [j for j in right if len(theirs[j]) > 1]
            pairs = zip(left, right, strict=True) if len(left) == len(right) else ()
            self._shifts[key] = tuple((i, j, _offset(ours[i], theirs[j])) for i, j in pairs)
        return self._shifts[key]

    @cached_property
    def identical(self) -> bool:
        """Whether both sides have just the same paths, so that even running numbers agree."""
        return {m.path for m in self._sources} == {m.path for m in self._targets}


def automatic(module: Module) -> bool:
    """Whether the framework made up the layer's name: `conv2d_3` for a Conv2D, `Dense_0`."""
    kind = next(iter(module.leaves.values())).info.module
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", kind).lower()
    last = next((p for p in reversed(module.path) if p not in ("depthwise", "pointwise")), "")
    return bool(kind) and re.fullmatch(rf"{re.escape(snake)}(_\d+)?", last.lower()) is not None


def _equal_paths(
    sources: Iterable[Module], targets: Iterable[Module], feasible: Callable[[Module, Module], bool]
) -> set[tuple[int, int]]:
    """Pairs of modules (by id) whose paths are equal under the best-voted prefixes."""
    ends: dict[tuple[str, ...], list[tuple[Module, tuple[str, ...]]]] = defaultdict(list)
    for module in sources:
        for cut in range(min(_MAX_PREFIX, len(module.path)) + 1):
            ends[module.path[cut:]].append((module, module.path[:cut]))
    votes: dict[tuple[tuple[str, ...], tuple[str, ...]], list[tuple[Module, Module]]]
    votes = defaultdict(list)
    for target in targets:
        for cut in range(min(_MAX_PREFIX, len(target.path)) + 1):
            rest, prefix = target.path[cut:], target.path[:cut]
            alike = ends.get(rest, ())
            if len(alike) > _MOST_ALIKE and rest != target.path:
                continue
            for source, wrapper in alike:
                # Equal further out as well: the shorter prefix says the same and more.
                if wrapper and prefix and wrapper[-1] == prefix[-1]:
                    continue
                told = any(not part.isdigit() for part in rest) or source.path == target.path
                if told and feasible(source, target):
                    votes[wrapper, prefix].append((source, target))
    result: set[tuple[int, int]] = set()
    explained: dict[int, tuple[int, bool]] = {}  # module of either side → what its prefix had
    for (wrapper, _), pairs in sorted(votes.items(), key=_standing, reverse=True):
        standing = len(pairs), not _average(wrapper)
        for source, target in pairs:
            better = [explained.get(id(module), standing) for module in (source, target)]
            if better == [standing, standing]:
                explained[id(source)] = explained[id(target)] = standing
                result.add((id(source), id(target)))
    return result


_Prefixes = tuple[tuple[str, ...], tuple[str, ...]]


def _standing(item: tuple[_Prefixes, list[tuple[Module, Module]]]) -> tuple[int, bool]:
    """Votes of a prefix; of two with as many, the weights come before their average."""
    (wrapper, _), pairs = item
    return len(pairs), not _average(wrapper)


_AVERAGE = re.compile(r"(^|_)(ema|swa|avg|average|averaged|shadow)(_|$)")


def _average(wrapper: tuple[str, ...]) -> bool:
    return any(_AVERAGE.search(part.lower()) for part in wrapper)


def canonical_words(words: Iterable[str]) -> Iterator[str]:
    """Each word, or the one that stands for it and its synonyms."""
    return (_CANONICAL.get(word, word) for word in words)


# Words that say what kind of layer it is, and not which one.
_KINDS = frozenset({"conv", "norm", "dense", "block", "proj"})
_HEADS = frozenset({"output", "final", "last", "top", "class", "classification", "logit", "preds"})


def telling(module: Module) -> frozenset[str]:
    """Words that tell a layer from others; names for the last one are as good as one another."""
    words = (word for word in canonical_words(module.words) if word not in _KINDS)
    return frozenset("head" if word in _HEADS else word for word in words)


def word_counts(module: Module) -> Counter[str]:
    """Words of the path, each as the one that stands for it and its synonyms; a norm's name is that
    of its place in a block."""
    place = norm_place(module.path)
    if place and not any(character.isdigit() for character in module.path[-1]):
        around = tokens((module.counted or module.path)[:-1])
        around = [token for token in around if not token.isdigit()]
        return Counter([*canonical_words(around), "norm", *canonical_words([place])])
    return Counter(canonical_words(module.words))


def _rarity(words: Sequence[Counter[str]]) -> defaultdict[str, float]:
    count = Counter(word for counted in words for word in counted)
    rarity = {w: math.log1p(len(words) / n) for w, n in count.items()}
    return defaultdict(float, rarity)


def _slot_values(modules: Iterable[Module]) -> dict[str, list[set[int]]]:
    """For each family of names, the values that occur at each of its number places."""
    slots: dict[str, list[set[int]]] = {}
    for module in modules:
        places = slots.setdefault(family_of(module), [set() for _ in module.numbers])
        for place, value in zip(places, module.numbers, strict=True):
            place.add(value)
    return slots


def family_of(module: Module) -> str:
    """The module's family; norms of different places in a block are different ones."""
    return f"{module.family} {norm_place(module.says)}"


def _offset(ours: set[int], theirs: set[int]) -> int:
    """0 where one set of values holds the other, else what makes their least values equal."""
    return 0 if ours <= theirs or theirs <= ours else min(theirs) - min(ours)
