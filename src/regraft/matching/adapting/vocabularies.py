"""Vocabularies that grew or shrank: the first rows of a table of tokens stay what they are.

A smaller vocabulary has the first rows. A larger one has the source's rows first, and behind them
the model's own: a new token's vector is not made up (where a model's own resizing has put the mean
of the others there, as transformers' `resize_token_embeddings` does, that is what stays). What has
an entry for each token follows its table: output layers, tied or not, and their biases. Other
layers with another number of rows are none of this: they are other layers (`heads`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from regraft.matching.adapting.leftovers import Change, Leftovers, Way
from regraft.matching.modules import Leaf, Module
from regraft.matching.projections import edge_of
from regraft.operations import Keep, Slice

# Tables beside that of the tokens, in which a row is something else.
_OTHER_TABLES = re.compile(
    r"type|segment|pos|wpe|lang|relative|head|layer|time|class|"
    r"codebook|quer|latent|prompt|proto|anchor"
)


def find(left: Leftovers) -> Iterable[Change]:
    sizes: set[tuple[int, int]] = set()
    for source, target in left.pairs(_tables_fit):
        ours, theirs = _only(source), _only(target)
        sizes.add((ours.info.shape[0], theirs.info.shape[0]))
        yield Change(ours, theirs, (_rows(ours, theirs, 0, 0),))

    def follows(source: Module, target: Module) -> bool:
        return _table(target) is None and any(_entries(source, target, *size) for size in sizes)

    for source, target in left.pairs(follows):
        size = next(size for size in sizes if _entries(source, target, *size))
        for role, (ours, theirs) in _entries(source, target, *size).items():
            axes = ours.info.shape.index(size[0]), theirs.info.shape.index(size[1])
            yield Change(ours, theirs, (_rows(ours, theirs, *axes),), role)


def is_vocabulary(module: Module) -> bool:
    """Whether a layer is a table with a row for each token."""
    return _table(module) is not None


def _table(module: Module) -> Leaf | None:
    leaf = _only(module)
    if len(module.leaves) > 1 or len(leaf.info.shape) != 2 or min(leaf.info.shape) < 2:
        return None
    if not module.path or _OTHER_TABLES.search(module.path[-1].lower()):
        return None
    told = leaf.info.module == "Embedding" or leaf.role == "embedding"
    return leaf if told or edge_of(module.path) == "tokens" else None


def _tables_fit(source: Module, target: Module) -> bool:
    """One side says that it is a table; both have rows of one width."""
    ours, theirs = _table(source), _table(target)
    if not ours and not theirs:
        return False
    if not (ours or _may_be_table(source)) or not (theirs or _may_be_table(target)):
        return False
    (before, here), (after, there) = _only(source).info.shape, _only(target).info.shape
    return here == there and before != after


def _only(module: Module) -> Leaf:
    return next(iter(module.leaves.values()))


def _may_be_table(module: Module) -> bool:
    """Whether nothing says that a matrix is anything else, as in a file without classes."""
    plain = len(module.leaves) == 1 and "kernel" in module.leaves
    return plain and not _only(module).info.module and len(_only(module).info.shape) == 2


def _entries(
    source: Module, target: Module, before: int, after: int
) -> dict[str, tuple[Leaf, Leaf]]:
    """Tensors by role in which one axis is the vocabulary on both sides and all else is equal."""
    if source.leaves.keys() != target.leaves.keys():
        return {}
    pairs = {role: (leaf, target.leaves[role]) for role, leaf in source.leaves.items()}
    for ours, theirs in pairs.values():
        here, there = list(ours.info.shape), list(theirs.info.shape)
        if here.count(before) != 1 or there.count(after) != 1:
            return {}
        here.remove(before)
        there.remove(after)
        if here != there:
            return {}
    return pairs


def _rows(ours: Leaf, theirs: Leaf, here: int, there: int) -> Way:
    before, after = ours.info.shape[here], theirs.info.shape[there]
    if after < before:
        return Way(f"the first {after} of {before} tokens", (Slice(here, 0, after),))
    text = f"the source's {before} tokens first; the other {after - before} stay the model's own"
    return Way(text, keep=Keep(there, after))
