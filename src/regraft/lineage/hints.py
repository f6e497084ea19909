"""What files say of their order besides their values: counters and names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from regraft.lineage.kinship import Reason
from regraft.lineage.portraits import Portrait

# Log-odds. Batches that a norm counted go on through fine-tuning, an optimizer's steps may start
# again; a number after a word for time is one, another may be anything.
_BATCHES, _STEPS, _DATES, _COUNTED, _NUMBER, _WORD, _LONGER = 4.0, 2.0, 3.0, 3.0, 1.0, 2.0, 1.5
_ALIKE, _SKIPPED = 4.0, 3.0
_STATISTICS = re.compile(r"running_|moving_|mean|var")
_COUNTERS = re.compile(
    r"(?:^|[\W_])(epoch|step|steps|iter|iteration|ckpt|checkpoint|round|ep|e|it|s)[\W_]*$"
)
_EARLY = re.compile(
    r"\b(base|pretrained|pretrain|init|initial|original|orig|foundation|start|source|parent|root)\b"
)
_LATE = re.compile(
    r"\b(tuned|finetuned|finetune|ft|sft|dpo|rlhf|lora|merged|merge|soup|swa|ema|avg|averaged|quant|"
    r"quantized|quantised|int8|int4|fp16|bf16|half|pruned|sparse|distilled|child|grandchild|adapted|"
    r"final|more|converted|copy)\b"
)
_WORDS = re.compile(r"[a-zA-Z]+|\d+")


def order_by_hints(a: Portrait, b: Portrait) -> Iterator[Reason]:
    """Reasons from anything but values for `a` before `b`."""
    counters = sorted(a.counters.keys() & b.counters.keys())
    counted = [(f"{word} in the file", a.counters[word], b.counters[word]) for word in counters]
    yield from _earlier("batches seen by norms", _BATCHES, a.batches, b.batches)
    # Of several counters, which go together, one speaks: the one that differs most.
    counted = [one for one in counted if one[1] != one[2]]
    for what, one, other in sorted(counted, key=lambda c: -abs(c[1] - c[2]))[:1]:
        yield from _earlier(what, _STEPS, one, other)
    yield from _earlier("dates in the files", _DATES, a.date, b.date)
    yield from order_by_names(_stem(a.name), _stem(b.name))


def _earlier(what: str, odds: float, one: float | None, other: float | None) -> Iterator[Reason]:
    if one is not None and other is not None and one != other:
        low, high = sorted((one, other))
        text = f": {low:.0f}, {high:.0f}" if what.endswith(("norms", "file")) else ""
        yield Reason(odds if one < other else -odds, what + text)


def trained_alike(a: Portrait, b: Portrait) -> float:
    """Log-odds against one coming from the other: both were trained for equally long, to different
    statistics."""
    if a.batches is None or a.batches != b.batches:
        return 0.0
    moved = any(
        p.hash != b.parts[n].hash
        for n, p in a.parts.items()
        if n in b.parts and _STATISTICS.search(n.lower())
    )
    return _ALIKE if moved else 0.0


def skipped(a: str, b: str, others: Iterable[str]) -> float:
    """Log-odds against one of two files of a counted series coming straight from the other: those
    with a number between theirs."""
    pair = _numbers(_stem(a), _stem(b))
    if pair is None or not pair.counted:
        return 0.0
    low, high = sorted((pair.one, pair.other))
    for name in others:
        third = _numbers(_stem(a), _stem(name))
        if third is not None and third.place == pair.place and low < third.other < high:
            return _SKIPPED
    return 0.0


class _Numbers(NamedTuple):
    """The first numbers in which two names differ; `counted`: a word for time stands before."""

    place: int
    one: int
    other: int
    counted: bool


def _numbers(a: str, b: str) -> _Numbers | None:
    one, other = re.split(r"(\d+)", a), re.split(r"(\d+)", b)
    for i, (x, y) in enumerate(zip(one, other, strict=False)):
        if x == y:
            continue
        counted = bool(i % 2 and _COUNTERS.search(one[i - 1].lower()))
        if i % 2 and int(x) != int(y) and (counted or (one[0] and one[::2] == other[::2])):
            return _Numbers(i, int(x), int(y), counted)
        return None
    return None


def order_by_names(a: str, b: str) -> Iterator[Reason]:
    """As far as names of files tell."""
    ours, theirs = (" ".join(_WORDS.findall(name.lower())) for name in (a, b))
    early = bool(_EARLY.search(ours)) - bool(_EARLY.search(theirs))
    late = bool(_LATE.search(theirs)) - bool(_LATE.search(ours))
    if early or late:
        sign = 1 if early + late > 0 else -1 if early + late < 0 else 0
        if sign:
            yield Reason(sign * _WORD, "a word in their names")
    if a != b and (_continues(a, b) or _continues(b, a)):
        yield Reason(_LONGER if len(a) < len(b) else -_LONGER, "one name goes on from the other")
        return
    found = _numbers(a, b)
    if found is not None:
        odds = _COUNTED if found.counted else _NUMBER
        low, high = sorted((found.one, found.other))
        text = f"numbers in their names: {low}, {high}"
        yield Reason(odds if found.one == low else -odds, text)


def _continues(a: str, b: str) -> bool:
    """Whether `b` is `a` and more, after a mark."""
    return b.startswith(a) and len(b) > len(a) and not b[len(a)].isalnum()


def _stem(name: str) -> str:
    head, dot, ending = name.rpartition(".")
    return head if dot and ending.isalnum() and not ending.isdigit() else name
