"""Tensors whose frameworks replace memory instead of changing it (TensorFlow, JAX): values are
copied into new memory once, and that memory becomes the tensor's, whose former memory is free then.

Keeping former values until the end would hold a second model. None are kept: each tensor is
rehearsed with its present values first, so that what is left to fail is memory, and the largest
tensors come first, so that what memory there is shows before anything was replaced. A step that
fails all the same is done once more, alone where it was for memory, and what fails again is told
with the names of all tensors that were replaced.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, NamedTuple

from regraft.copying import Copied, copy, survey
from regraft.errors import TransferError

if TYPE_CHECKING:
    from regraft.sinks import NewMemory, Renewal
    from regraft.tensors import Array

# Bytes of new memory that is not the model's yet; a larger tensor goes alone.
_ROOM = 64 << 20
_AT_ONCE = 2


class Renewed(NamedTuple):
    """The `array` whose values a tensor is to have, and how it gets new memory."""

    name: str
    array: Array
    renewal: Renewal


class _Begun(NamedTuple):
    """A tensor whose values are being copied."""

    one: Renewed
    new: NewMemory
    copying: Future[Copied]


def renew_all(wanted: Sequence[Renewed]) -> tuple[dict[str, Copied], BaseException | None]:
    """Gives each tensor its values. They are copied two at a time; tensors take them in the
    caller's thread, to which frameworks tie their settings. What comes from outside, an interrupt
    or what a signal's handler raises, waits until all is done, and is returned.

    **Raises** `TransferError` where a step fails twice, with the names of the tensors that were
    replaced as its `problems`: nearly always none.
    """
    if not wanted:
        return {}, None
    waiting: BaseException | None = None
    failed: tuple[int, ...] = ()  # how far all was when a step failed
    at_once = _AT_ONCE
    found: dict[str, Copied] = {}
    left = deque(sorted(wanted, key=lambda one: -one.array.nbytes))
    begun: deque[_Begun] = deque()
    with ThreadPoolExecutor(_AT_ONCE, "regraft-renew") as pool:
        while left or begun:
            try:
                # Any step may be interrupted, and is done once more then.
                while left and _room(left[0], [each.one for each in begun], at_once):
                    # In this thread, which gets what the tensors before gave back.
                    new = left[0].renewal()
                    begun.append(_Begun(left[0], new, pool.submit(copy, left[0].array, new.memory)))
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
            except BaseException as error:
                if isinstance(error, Exception):
                    reached = len(found), len(left), len(begun)
                    if reached == failed:
                        raise _failure(error, found, wanted) from error
                    failed = reached
                if _of_memory(error):
                    at_once = 1
                else:
                    waiting = error
                if begun and begun[0].copying.done() and begun[0].copying.exception():
                    again = pool.submit(copy, begun[0].one.array, begun[0].new.memory)
                    begun[0] = begun[0]._replace(copying=again)
    if waiting is not None:
        waiting.add_note("regraft: all tensors had their new values before this was raised")
    return found, waiting


def _room(following: Renewed, begun: Sequence[Renewed], at_once: int) -> bool:
    """Whether there is room for one more tensor's new memory beside those that are under way."""
    held = sum(one.array.nbytes for one in begun) + following.array.nbytes
    return not begun or (at_once > 1 and len(begun) <= at_once and held <= _ROOM)


def _of_memory(error: BaseException) -> bool:
    """Whether it is memory that was short; frameworks say it in classes of their own."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    told = f"{type(error).__name__} {error}".lower()
    signs = ("resourceexhausted", "resource_exhausted", "out of memory")
    return isinstance(error, MemoryError) or any(sign in told for sign in signs)


def _failure(
    error: Exception, found: dict[str, Copied], wanted: Sequence[Renewed]
) -> TransferError:
    memory = _of_memory(error)
    return TransferError(
        "the model",
        found=f"{type(error).__name__}: {error}"[:300],
        expected="memory for one more tensor" if memory else "every tensor written",
        hint=f"{len(found)} of {len(wanted)} tensors have their new values, all others those from "
        "before: build the model again" + (", where more memory is free" if memory else "")
        if found
        else "the model is as it was",
        problems=list(found),
    )
