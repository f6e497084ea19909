"""What is written in a file beside its weights that tells when it was made: counters and dates."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

_COUNTERS = frozenset({
    "step", "steps", "global_step", "iteration", "iterations", "iter", "epoch", "last_epoch",
    "_step_count", "current_epoch", "num_updates", "samples_seen", "tokens_seen",
})  # fmt: skip
_SAVED = re.compile(
    r"(?:^|[._/ ])(?:date|saved|created|timestamp|time|date_saved|saved_at|created_at)$"
)
_WHOLE = re.compile(r"\d{1,15}(?:\.0)?")
_EARLIEST = datetime(1990, 1, 1, tzinfo=UTC).timestamp()


def counter(name: str) -> str:
    """The word for time at the end of a name, `""` where there is none."""
    word = re.split(r"[./]", name)[-1].lower()
    return word if word in _COUNTERS else ""


def counters(texts: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    """Counters among the texts that a file carries; the largest of each word last."""
    found = [(counter(name), text) for name, text in texts.items()]
    whole = [(word, float(text)) for word, text in found if word and _WHOLE.fullmatch(text)]
    yield from sorted(whole, key=lambda item: item[1])


def date(texts: Mapping[str, str]) -> float | None:
    """The latest date among the texts, in seconds since 1970; ISO 8601, or as Keras writes it."""
    found = (_date(text) for name, text in texts.items() if _SAVED.search(name.lower()))
    return max((value for value in found if value is not None), default=None)


def _date(text: str) -> float | None:
    try:
        told = datetime.fromisoformat(text.strip().replace("@", "T"))
    except ValueError:
        return None
    seconds = (told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp()
    return seconds if seconds > _EARLIEST else None
