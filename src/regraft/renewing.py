"""Tensors whose frameworks replace memory instead of changing it (TensorFlow, JAX): values are
copied into new memory once, and that memory becomes the tensor's, whose former memory is free then.

Keeping former values until the end would hold a second model. None are kept: each tensor is
rehearsed with its present values first, so that all that is left to fail is memory, and the
largest tensors come first, so that what memory there is shows before anything was replaced.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, NamedTuple

from regraft.copying import Copied, copy, survey
from regraft.errors import TransferError

if TYPE_CHECKING:
    from regraft.tensors import Array, NewMemory, Renewal

# Bytes of new memory that is not the model's yet; a larger tensor goes alone.
_ROOM = 64 << 20
_AT_ONCE = 2


class Renewed(NamedTuple):
    """The `array` whose values a tensor is to have, and how it gets new memory."""

    name: str
    array: Array
    renewal: Renewal


def renew_all(wanted: Sequence[Renewed]) -> tuple[dict[str, Copied], KeyboardInterrupt | None]:
    """Gives each tensor its values. They are copied two at a time; tensors take them in the
    caller's thread, to which frameworks tie their settings. An interrupt waits until all is done,
    and is returned.

    **Raises** `TransferError` where memory is short: nearly always at the beginning, with the
    model as it was, and else with a hint that it is not.
    """
    if not wanted:
        return {}, None
    interrupt: KeyboardInterrupt | None = None
    found: dict[str, Copied] = {}
    left = deque(sorted(wanted, key=lambda one: -one.array.nbytes))
    begun: deque[tuple[Renewed, NewMemory, Future[Copied]]] = deque()
    with ThreadPoolExecutor(_AT_ONCE, "regraft-renew") as pool:
        while left or begun:
            try:
                # Any step may be interrupted, and is done once more then.
                while left and _room(left[0], [one for one, *_ in begun]):
                    # In this thread, which gets what the tensors before gave back.
                    new = left[0].renewal()
                    begun.append((left[0], new, pool.submit(copy, left[0].array, new.memory)))
                    left.popleft()
                one, new, copying = begun[0]
                wait([copying])
                copied = copying.result()
                seen = new.take()
                if seen.__array_interface__["data"] != new.memory.__array_interface__["data"]:
                    copied = copied._replace(held=survey(seen).digest)  # it was copied after all
                found[one.name] = copied
                del new, seen
                begun.popleft()
            except KeyboardInterrupt as error:
                interrupt = error
            except Exception as error:
                raise _short(error, found) from error
    return found, interrupt


def _room(following: Renewed, begun: Sequence[Renewed]) -> bool:
    """Whether there is room for one more tensor's new memory beside those that are under way."""
    held = sum(one.array.nbytes for one in begun) + following.array.nbytes
    return not begun or (len(begun) <= _AT_ONCE and held <= _ROOM)


def _short(error: Exception, found: dict[str, Copied]) -> TransferError:
    return TransferError(
        "the model",
        found=f"{type(error).__name__}: {error}"[:300],
        expected="memory for one more tensor",
        hint=f"{len(found)} tensors were replaced already: build the model again"
        if found
        else "the model is as it was",
        problems=list(found),
    )
