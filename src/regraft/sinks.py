"""Where a plan's arrays go: a live model's tensors, set, read, and given new memory by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from regraft.tensors import Array


class NewMemory(NamedTuple):
    """New memory for a tensor, row-major and of its shape and dtype, which nobody else has seen.

    `take`, called once values are written there and in the thread that asked for the memory, makes
    it the tensor's, and returns what is there then. After that it is not written to any more.
    """

    memory: Array
    take: Callable[[], Array]


# Makes new memory for a certain tensor.
Renewal: TypeAlias = "Callable[[], NewMemory]"


class Sink(ABC):
    """Where a plan's arrays go: a live model, seen as named tensors that can be set and read."""

    @abstractmethod
    def write(self, name: str, array: Array) -> None:
        """Sets one tensor. The array has the target's shape and dtype already."""

    @abstractmethod
    def read(self, name: str) -> Array:
        """One tensor's present values, as a numpy array that does not change with the model."""

    def look(self, name: str) -> Array:
        """As `read`, but in the model's own memory where that can be had: true until the tensor is
        written."""
        return self.read(name)

    def memory(self, name: str) -> Array | None:
        """The tensor's own memory, where setting values there (row-major) is all that `write` does
        and cannot fail; `None` elsewhere."""
        return None

    def adopts(self, name: str, array: Array) -> bool:
        """Whether `write` would give the tensor the pages of the array's file, without a copy."""
        return False

    def renewal(self, name: str) -> Renewal | None:
        """New memory in place of the tensor's own, where replacing memory is all that `write` does;
        `None` elsewhere. It was rehearsed with the tensor's present values: what can fail, fails
        here, with the tensor as it was."""
        return None

    def undo(self, name: str) -> Callable[[], None] | None:
        """What puts one tensor back as it is now without a copy of its values; `None` where a copy
        is needed, to be written again."""
        return None

    def finish(self) -> None:  # noqa: B027  (most models take each tensor as it comes)
        """Called after the last of several writes, for models that take all tensors at once."""

    def hollow(self, name: str) -> bool:
        """Whether the tensor has no values yet: a meta tensor, an abstract shape."""
        return False

    @property
    def settles(self) -> bool:
        """Whether the model does something of its own once all its tensors have their values."""
        return False

    def settle(self) -> None:  # noqa: B027
        """Lets the model do so: after `finish`, and after tensors were put back, too."""

    @property
    @abstractmethod
    def model(self) -> object:
        """The model; a new tree where the framework's arrays are immutable."""
