"""Runs of opcodes that make one tensor of a state dict, read in one step.

As `torch.save` writes all tensors but the first few: a function from the memo called with a storage
by its key, an offset, shape, strides, a flag and an empty OrderedDict. Most of a large pickle's
opcodes stand in such runs. Opcodes are told apart by their first byte, so that where the pattern
matches, it is what they say.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from mmap import mmap
from typing import Any

from regraft.formats._pickle_records import Global, Opaque, ordered

_NUMBER = rb"(?:K.|M..|J....)"
_SIZES = rb"(\)|%b{1,3}[\x85-\x87]r....|\(%b{4,32}tr....)" % (_NUMBER, _NUMBER)
TENSOR = re.compile(
    rb"h.\(\(h.h.X....(\d{1,20})r....h.(%b)tr....Q(%b)%b%b[\x88\x89]h.\)Rr....tr....Rr...."
    % (_NUMBER, _NUMBER, _SIZES, _SIZES),
    re.DOTALL,
)
# Bytes of such a run that stand at fixed distances: from its beginning to the key, from the key's
# end on, from the count's end on, and from the flag on; the memo's indices among them.
_OPENING = struct.Struct("<xB3xBxBxI").unpack_from
_BEHIND_KEY = struct.Struct("<xIxB").unpack_from
_ENDING = struct.Struct("<BxB3xI2xI2xI").unpack_from
_WORD = struct.Struct("<I").unpack_from


def tensor_at(
    data: bytes | mmap,
    pos: int,
    memo: dict[int, Any],
    sizes: dict[bytes, tuple[int, ...]],
    persistent: Callable[[Any], Any],
) -> tuple[Opaque, int] | None:
    """The record of the run that begins at `pos`, and the position after it; `None` if there is
    none here. `sizes` holds shapes and strides that were read before, by their opcodes."""
    match = TENSOR.match(data, pos)
    if match is None:
        return None
    _, (begin, after), (count, id_), (offset, shape), (_, strides), (_, flag) = match.regs
    function, kind, cls, length = _OPENING(data, pos)
    call, kind, cls = memo[function], memo[kind], memo[cls]
    plain = type(call) is Global and call.may_be_called and call.build is None
    if not plain or length != after - begin:
        return None
    index, location = _BEHIND_KEY(data, after)
    memo[index] = key = str(data[begin:after], "ascii")
    pid = kind, cls, key, memo[location], _number(data, count, id_)
    memo[_WORD(data, id_ + 2)[0]] = pid
    first = _number(data, offset, shape)
    rows = _run_of_sizes(data, shape, strides, memo, sizes)
    steps = _run_of_sizes(data, strides, flag, memo, sizes)
    grad, hooks, of_hooks, of_args, of_result = _ENDING(data, flag)
    make = memo[hooks]
    if type(make) is not Global or make.build is not ordered:
        return None
    memo[of_hooks] = nothing = {}
    memo[of_args] = args = persistent(pid), first, rows, steps, grad == 0x88, nothing
    memo[of_result] = made = Opaque(call, args)
    return made, match.end()


def _run_of_sizes(
    data: bytes | mmap,
    start: int,
    end: int,
    memo: dict[int, Any],
    sizes: dict[bytes, tuple[int, ...]],
) -> tuple[int, ...]:
    """A shape or strides, which go into the memo unless they are empty."""
    if end - start == 1:
        return ()
    run = data[start : end - 5]
    found = sizes.get(run)
    if found is None:
        found = sizes[run] = _sizes(run)
    memo[_WORD(data, end - 4)[0]] = found
    return found


def _number(data: bytes | mmap, start: int, end: int) -> int:
    """Of BININT1, BININT2 or BININT."""
    if end - start == 2:
        return data[start + 1]
    return int.from_bytes(data[start + 1 : end], "little", signed=end - start == 5)


def _sizes(data: bytes) -> tuple[int, ...]:
    """Of a run of numbers that ends with the opcode of a tuple."""
    numbers: list[int] = []
    position = 1 if data[0] == 0x28 else 0
    while position < len(data) - 1:
        end = position + {0x4B: 2, 0x4D: 3, 0x4A: 5}[data[position]]
        numbers.append(_number(data, position, end))
        position = end
    return tuple(numbers)
