"""What taps of all frameworks share: tensors in nested arguments, settings, and frames of calls."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from regraft.calls import (
    Call,
    Composed,
    Edit,
    Entered,
    FunctionCall,
    InFunction,
    Rewritten,
    Watcher,
)

if TYPE_CHECKING:
    from regraft.tensors import Array


def mapped(value: Any, change: Callable[[Any], Any], is_tensor: Callable[[Any], bool]) -> Any:
    """The same nesting of dicts, lists and tuples with its tensors changed."""
    if is_tensor(value):
        return change(value)
    if isinstance(value, tuple):
        parts: list[Any] = [mapped(part, change, is_tensor) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [mapped(part, change, is_tensor) for part in value]
    if isinstance(value, Mapping):
        changed = {key: mapped(value[key], change, is_tensor) for key in value}
        kind: Any = type(value)
        return changed if kind is dict else kind(**changed)
    return value


def tensors_of(value: Any, is_tensor: Callable[[Any], bool]) -> list[Any]:
    found: list[Any] = []

    def note(tensor: Any) -> Any:
        found.append(tensor)
        return tensor

    mapped(value, note, is_tensor)
    return found


def plain_settings(module: Any) -> dict[str, Any]:
    """Numbers, texts, flags and pairs of them among a module's attributes."""
    held: Mapping[str, Any] = getattr(module, "__dict__", None) or {}
    return {key: value for key, value in held.items() if not key.startswith("_") and _plain(value)}


def _plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return len(value) < 5 and all(isinstance(part, (int, float, str)) for part in value)
    return value is None or isinstance(value, (int, float, str, bool))


@dataclass
class Frame:
    """A running call of a module: what is needed to run it once more."""

    path: str
    number: int
    module: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inside: tuple[str, ...]
    counts: Counter[str]
    functions: Counter[str] = field(default_factory=Counter[str])
    inputs: list[Array] | None = None
    more: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = field(
        default_factory=dict[str, "tuple[tuple[Any, ...], dict[str, Any]]"]
    )
    """The arguments with which modules inside were called, the last time."""
    as_tuple: bool = False
    """Whether it returned a tuple."""


class Session:
    """One run under observation: the stack of calls, what the watcher hears, and the edits."""

    def __init__(
        self,
        watcher: Watcher | None,
        edits: Sequence[Edit],
        is_tensor: Callable[[Any], bool],
        to_numpy: Callable[[Any], Array],
        like: Callable[[Array, Any], Any],
        made: Callable[[Array, Any], Any],
    ) -> None:
        self.watcher, self.edits = watcher, edits
        self._is_tensor, self._to_numpy, self._like = is_tensor, to_numpy, like
        self._made = made
        self.stack: list[Frame] = []
        self.counts: Counter[str] = Counter()
        self.inside: tuple[str, ...] = ()
        self.frames: dict[str, Frame] = {}

    def arrays(self, value: Any) -> list[Array]:
        return [self._to_numpy(t) for t in tensors_of(value, self._is_tensor)]

    def replaced(self, value: Any, arrays: Sequence[Array | None]) -> Any:
        """The nesting with arrays in the place of its tensors."""
        given = iter(arrays)

        def put(tensor: Any) -> Any:
            array = next(given, None)
            return tensor if array is None else self._like(array, tensor)

        return mapped(value, put, self._is_tensor)

    def _put(self, value: Any, found: Sequence[Array], arrays: Sequence[Array]) -> Any:
        """The nesting with what was changed. What was not stays the tensor that it is: code that
        changes a tensor in place means all who hold it, under observation, too."""
        changed = [None if a is f else a for f, a in zip(found, arrays, strict=False)]
        return value if all(a is None for a in changed) else self.replaced(value, changed)

    def enter(
        self, path: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given: tuple[tuple[Any, ...], dict[str, Any]] = (args, kwargs)
        counts = Counter(self.counts)
        number = self.counts[path]
        self.counts[path] += 1
        inside = (*self.stack[-1].inside, self.stack[-1].path) if self.stack else self.inside
        frame = Frame(path, number, module, args, kwargs, inside, counts)
        if self.watcher is not None or self._edited(path):
            found = self.arrays(given)
            arrays = self._entered(path, found, inside=False)
            if self.watcher is not None:
                arrays = _forced(
                    arrays, self.watcher.enter(Call(path, number, inside, frame), arrays)
                )
            # What runs it again is to find what it was given, before any change inside.
            frame.args, frame.kwargs = self.replaced(given, arrays)
            frame.inputs = self._entered(path, arrays, inside=True)
            given = self._put(given, found, frame.inputs)
        if self.stack:
            self.stack[-1].more[path] = given
        self.stack.append(frame)
        self.frames.setdefault(path, frame)
        return given

    def _edited(self, path: str) -> bool:
        return any(isinstance(e, (Entered, Rewritten)) and e.path == path for e in self.edits)

    def _entered(self, path: str, arrays: list[Array], *, inside: bool) -> list[Array]:
        for edit in self.edits:
            if isinstance(edit, Entered) and edit.path == path and edit.inside == inside:
                arrays = edit.change(arrays)
        return arrays

    def leave(self, path: str, result: Any) -> Any:
        frame = self.stack.pop()
        assert frame.path == path, f"{path} ended in {frame.path}"
        frame.as_tuple = isinstance(result, tuple)
        if self.watcher is None and not self._edited(path):
            return result
        found = arrays = self.arrays(result)
        for edit in self.edits:
            if isinstance(edit, Rewritten) and edit.path == path:
                arrays = edit.change(frame.inputs or [], arrays)
        if self.watcher is not None:
            told = Call(path, frame.number, frame.inside, frame)
            arrays = _forced(arrays, self.watcher.leave(told, arrays))
        return self._put(result, found, arrays)

    def composed(self, path: str) -> Composed | None:
        return next((e for e in self.edits if isinstance(e, Composed) and e.path == path), None)

    def in_functions(self, name: str, number: int) -> list[InFunction]:
        path = self.stack[-1].path if self.stack else None
        return [
            e
            for e in self.edits
            if isinstance(e, InFunction)
            and e.path == path
            and e.name == name
            and e.number in (number, -1)
        ]

    def function(
        self,
        name: str,
        named: dict[str, Any],
        call: Callable[[dict[str, Any]], Any],
    ) -> Any:
        """A call of a function with its arguments by name: told, and changed as edits say."""
        if not self.stack:
            return call(named)
        frame = self.stack[-1]
        number = frame.functions[name]
        frame.functions[name] += 1
        edits = self.in_functions(name, number)
        shapes = tuple(tuple(t.shape) for t in tensors_of(named, self._is_tensor))
        told = {key: value for key, value in named.items() if _plain(value)}
        for edit in edits:
            named = named | dict(edit.arguments)
            if edit.before:
                named = self.replaced(named, edit.before(self.arrays(named)))
        # What a function changes in place is lost after it.
        before = self.arrays(named) if any(e.instead for e in edits) else []
        result = call(named)
        for edit in edits:
            if edit.instead:
                result = self._made(edit.instead(before, self._to_numpy(result)), result)
        if self.watcher is not None:
            output = tuple(result.shape) if self._is_tensor(result) else ()
            self.watcher.function(FunctionCall(frame.path, name, number, told, shapes, output))
        return result


def _forced(arrays: list[Array], forced: Sequence[Array | None] | None) -> list[Array]:
    if forced is None:
        return arrays
    return [a if f is None else f for a, f in zip(arrays, forced, strict=False)]


@contextmanager
def heard(session: Session, modules: Iterable[Any], names: Iterable[str]) -> Generator[None]:
    """The functions of these names, as these modules of Python show them, told and changed. Where
    they call each other, that is their own affair."""
    depth = [0]
    with ExitStack() as undo:
        for module in modules:
            for name in (n for n in names if hasattr(module, n)):
                original = getattr(module, name)
                undo.callback(setattr, module, name, original)
                setattr(module, name, _told(session, name, original, depth))
        yield


def _told(
    session: Session, name: str, original: Callable[..., Any], depth: list[int]
) -> Callable[..., Any]:
    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        if depth[0]:
            return original(*args, **kwargs)
        keys = [str(i) for i in range(len(args))]

        def call(named: dict[str, Any]) -> Any:
            depth[0] += 1
            try:
                more = {k: v for k, v in named.items() if k not in keys}
                return original(*(named[k] for k in keys), **more)
            finally:
                depth[0] -= 1

        return session.function(name, dict(zip(keys, args, strict=True)) | kwargs, call)

    return function
