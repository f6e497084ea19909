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

from regraft.matching.adapting.changes import Change, Situation, Way, only
from regraft.matching.modules import Leaf, Module
from regraft.matching.projections import edge_of
from regraft.operations import Keep, Slice

# Tables beside that of the tokens, in which a row is something else.
_OTHER_TABLES = re.compile(
    r"type|segment|pos|wpe|lang|relative|head|layer|time|class|"
    r"codebook|quer|latent|prompt|proto|anchor"
)


def find(situation: Situation) -> Iterable[Change]:
    sizes: set[tuple[int, int]] = set()
    for source, target in situation.left.pairs(_tables_fit, _is_matrix):
        ours, theirs = only(source), only(target)
        sizes.add((ours.info.shape[0], theirs.info.shape[0]))
        yield Change(ours, theirs, (_rows(ours, theirs, 0, 0),))
    counts = {count for size in sizes for count in size}

    def has_entries(module: Module) -> bool:
        shapes = [leaf.info.shape for leaf in module.leaves.values()]
        return not is_vocabulary(module) and all(counts & set(shape) for shape in shapes)

    def follows(source: Module, target: Module) -> bool:
        return any(_entries(source, target, *size) for size in sizes)

    for source, target in situation.left.pairs(follows, has_entries):
        before, after = next(size for size in sizes if _entries(source, target, *size))
        for ours, theirs in _entries(source, target, before, after):
            axes = ours.info.shape.index(before), theirs.info.shape.index(after)
            yield Change(ours, theirs, (_rows(ours, theirs, *axes),))


def is_vocabulary(module: Module) -> bool:
    """Whether a layer says that it is a table with a row for each token."""
    if not _is_matrix(module):
        return False
    told = only(module).info.module == "Embedding" or only(module).role == "embedding"
    return told or edge_of(module.path) == "tokens"


def _is_matrix(module: Module) -> bool:
    """Whether a layer is one matrix, and no table of anything else."""
    if len(module.leaves) != 1 or not module.path or _OTHER_TABLES.search(module.path[-1].lower()):
        return False
    return len(only(module).info.shape) == 2 and min(only(module).info.shape) > 1


def _tables_fit(source: Module, target: Module) -> bool:
    """Whether one side says that it is a vocabulary, the other does not say that it is none, and
    rows are of one width."""
    ours, theirs = only(source), only(target)
    said = is_vocabulary(source), is_vocabulary(target)
    may_be = (said[0] or not ours.info.module) and (said[1] or not theirs.info.module)
    (before, here), (after, there) = ours.info.shape, theirs.info.shape
    return any(said) and may_be and here == there and before != after


def _entries(source: Module, target: Module, before: int, after: int) -> list[tuple[Leaf, Leaf]]:
    """Tensors of one role, if in all of them one axis is the vocabulary and all else is equal."""
    if source.leaves.keys() != target.leaves.keys():
        return []
    pairs = [(leaf, target.leaves[role]) for role, leaf in source.leaves.items()]
    for ours, theirs in pairs:
        here, there = list(ours.info.shape), list(theirs.info.shape)
        if here.count(before) != 1 or there.count(after) != 1:
            return []
        here.remove(before)
        there.remove(after)
        if here != there:
            return []
    return pairs


def _rows(ours: Leaf, theirs: Leaf, here: int, there: int) -> Way:
    before, after = ours.info.shape[here], theirs.info.shape[there]
    if after < before:
        return Way(f"the first {after} of {before} tokens", (Slice(here, 0, after),))
    text = f"the source's {before} tokens first; the other {after - before} stay the model's own"
    return Way(text, keep=Keep(there, after))
