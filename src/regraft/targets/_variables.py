"""Variables of Keras 3 and Keras 2, set and read by name as a sink."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from regraft.sinks import NewMemory, Sink
from regraft.targets._keras_memory import present

if TYPE_CHECKING:
    from regraft.sinks import Renewal
    from regraft.targets._keras_memory import Maker
    from regraft.tensors import Array


class Variables(Sink):
    """Assigns to variables by name; whether they are trained is not touched.

    - `size`: bytes of all of them.
    - `tensor`: gives a variable's tensor. `seen`: gives a tensor as array, in its own memory where
      that can be had.
    - `maker`: as in `_keras_memory`; `None` where tensors are not replaced.
    """

    def __init__(
        self,
        model: Any,
        variables: Mapping[str, Any],
        *,
        size: int,
        tensor: Callable[[Any], Any],
        seen: Callable[[Any], Array],
        maker: Callable[[Any], Maker | None] | None,
    ) -> None:
        self._model, self._variables = model, dict(variables)
        self._tensor, self._seen, self._maker = tensor, seen, maker
        self._plenty = size <= _free_memory() // 4

    def write(self, name: str, array: Array) -> None:
        self._variables[name].assign(array)

    def read(self, name: str) -> Array:
        return self.look(name).copy()

    def look(self, name: str) -> Array:
        return self._look(self._variables[name])

    def _look(self, variable: Any) -> Array:
        return self._seen(self._tensor(variable))

    def undo(self, name: str) -> Callable[[], None] | None:
        """Where tensors are replaced, not changed, the old ones are kept where memory is plenty."""
        if self._maker is None or not self._plenty:
            return None
        variable = self._variables[name]
        before = present(self._tensor(variable))
        return lambda: variable.assign(before)

    def renewal(self, name: str) -> Renewal | None:
        """A variable on the CPU takes the memory of a new tensor, where tensors are replaced."""
        variable = self._variables[name]
        make = self._maker(variable) if self._maker else None
        if make is None:
            return None
        write: Any = self.write

        def renewed() -> NewMemory:
            memory, tensor = make()

            def take() -> Array:
                write(name, tensor())
                return self.look(name)

            return NewMemory(memory, take)

        write(name, present(self._tensor(variable)))
        return renewed

    @property
    def model(self) -> object:
        return self._model


def _free_memory() -> int:
    """Bytes that no process uses; a gigabyte where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 1 << 30
