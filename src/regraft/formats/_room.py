"""What opening a file may take: memory for what is made of its pickles, and bytes of them to walk.

Whatever a file holds, opening it must not take more memory than its own size and 256 MiB. Python's
objects take many times the bytes that a pickle needs to ask for them (an empty dict is one opcode),
so that each is counted by the bytes it takes, over all pickles of one file.
"""

from __future__ import annotations

from regraft.errors import CorruptFile

# Beside the file's size; the rest up to 256 MiB is for what nobody counts (fragments, modules).
_FREE_MEMORY = 216 << 20
# Opcodes that are packed may be more than the file has bytes, but they take time.
_FREE_WALKED, _WALKED_PER_BYTE = 8 << 20, 2
# What a tensor that is listed takes until a checkpoint is open: its names, its place.
LISTED = 900


class Room:
    """`memory` and `walked` are the bytes that are left, of a file of `size` bytes."""

    __slots__ = ("memory", "walked")

    def __init__(self, size: int) -> None:
        self.memory = _FREE_MEMORY + size
        self.walked = _FREE_WALKED + _WALKED_PER_BYTE * size

    def take(self, count: int, where: str) -> None:
        """Takes `count` bytes of memory. **Raises** `CorruptFile` where they are not left."""
        self.memory -= count
        if self.memory < 0:
            raise self.spent(where)

    def walk(self, count: int, where: str) -> None:
        """Takes `count` bytes of opcodes. **Raises** `CorruptFile` likewise."""
        self.walked -= count
        if self.walked < 0:
            raise CorruptFile(
                where,
                found="pickles that are far longer than the file",
                expected=f"{_FREE_WALKED >> 20} MiB of packed opcodes, and twice the file's bytes",
                hint="save it again without compression",
            )

    def spent(self, where: str) -> CorruptFile:
        return CorruptFile(
            where,
            found="objects that take more memory than the file's size and 256 MiB",
            expected="no more than tensors need",
            hint="save the tensors alone, as .safetensors",
        )
