"""The walk over an unpickled object: every leaf under its path, in bounded steps."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from regraft.errors import CorruptFile
from regraft.formats._pickle_records import Global, Opaque, Reference

# Parts of a nest may be shared, and are met as often as they occur. So many steps are free, and as
# many more as the caller allows; a long path counts for more than one.
_FREE_STEPS = 200_000
_DEPTH, _SHOWN, _MAX_SHOWN = 200, 5, 1000
_STEP_LENGTH = 64
_NESTED = frozenset({dict, list, tuple})


def walk(
    root: Any, label: str, visit: Callable[[tuple[str, ...], Any], Any], allowed: int = 0
) -> None:
    """Calls `visit(path, value)` for every leaf of nested dicts, lists and tuples, in order.

    `visit` returns a container to go on into, or `None`. Bounded in levels and in steps: `allowed`
    ones (the pickle's bytes: every part took at least one) and some more, for parts that are
    shared. **Raises** `CorruptFile` beyond.
    """
    left = _FREE_STEPS + allowed
    if type(root) not in _NESTED:
        root = visit((), root)
    # Parts are taken one by one, so that a wide container under a long name costs nothing yet.
    todo: list[tuple[tuple[str, ...], Iterator[tuple[Any, Any]], int]] = [((), _parts(root), 0)]
    while todo:
        path, parts, length = todo[-1]
        for key, value in parts:
            name = key if type(key) is str else _text_of(key)
            here = (*path, name)
            long = length + len(name) + 1
            left -= 1 + long // _STEP_LENGTH
            if left < 0 or len(here) > _DEPTH:
                raise CorruptFile(
                    f"{label}, {'.'.join(here[:_SHOWN])[:_MAX_SHOWN]}",
                    found=f"nesting {len(here)} deep, or parts that are met over and over",
                    expected=f"at most {_DEPTH} levels, and no more parts than the file has bytes",
                )
            inner = value if type(value) in _NESTED else visit(here, value)
            if inner is not None:
                todo.append((here, _parts(inner), long))
                break
        else:
            todo.pop()


def _parts(inner: Any) -> Iterator[tuple[Any, Any]]:
    """Parts by key or by position; none of what is no container."""
    if isinstance(inner, dict):
        return iter(inner.items())  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return iter(enumerate(inner if isinstance(inner, (list, tuple)) else ()))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _text_of(key: Any) -> str:
    """What a path shows of a key that is no text."""
    if isinstance(key, (Global, Opaque)):
        return key.path
    return "storage" if isinstance(key, Reference) else str(key)


@contextmanager
def collection_paused() -> Generator[None]:
    """No garbage collection while many objects are made that all stay and form no cycles."""
    import gc

    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
