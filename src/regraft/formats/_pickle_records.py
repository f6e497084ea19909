"""What a pickle's objects are described by: names, calls that are not made, persistent ids; and the
few containers that are built as what they are.

Keys are plain, short and small: a nest of tuples takes exponential time to hash, and integers can
be chosen to collide; a tuple is a key by its text, whose hash nobody can foresee.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from regraft.formats._pickle_names import MOVED, may_be_called, may_be_named

_MAX_NAME = 1000
_MAX_KEY, _MAX_KEY_PARTS, _KEY_BITS = 4096, 64, 60
# Bytes that an entry of a dict or a set takes, at most, the text of a tuple that is its key, and an
# element of a list.
PER_ITEM, TUPLE_KEY, _PER_ELEMENT = 136, 512, 17


class Global:
    """A name the pickle refers to, not imported. `path` is today's name of the module, and the
    name; `may_be_called` whether it is a constructor's."""

    __slots__ = ("build", "may_be_called", "module", "name", "path")

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name
        self.path = f"{MOVED.get(module, module)}.{name}"
        self.may_be_called = may_be_called(module, name)
        self.build: Callable[..., Any] | None = _BUILT.get(self.path)


class Opaque:
    """A call the pickle asks for, not made: what would be called, with what, and its state.

    `items` and `entries` are what was appended to it or set in it, `None` where nothing was.
    """

    __slots__ = ("args", "cls", "entries", "items", "path", "state")

    def __init__(self, cls: Any, args: Any) -> None:
        self.cls = cls
        self.args = args
        self.path = cls.path if type(cls) is Global else ""
        self.state: Any = None
        self.items: list[Any] | None = None
        self.entries: dict[Any, Any] | None = None


class Blob:
    """Bytes that stay where they are in the pickle: `data` from `start` to `stop`."""

    __slots__ = ("data", "start", "stop")

    def __init__(self, data: Any, start: int, stop: int) -> None:
        self.data, self.start, self.stop = data, start, stop

    def __len__(self) -> int:
        return self.stop - self.start


class Unsafe(Exception):
    """What no checkpoint needs; carries it in words."""


class Reference:
    """A persistent id: in PyTorch files, a storage."""

    __slots__ = ("pid",)

    def __init__(self, pid: Any) -> None:
        self.pid = pid


def named(module: Any, name: Any, names: dict[tuple[str, str], Global]) -> Global:
    """The Global of that name, one object for each. **Raises** `Unsafe`."""
    if not (isinstance(module, str) and isinstance(name, str)):
        raise TypeError("a global whose name is no text")
    known = names.get((module, name))
    if known is not None:
        return known
    if len(module) > _MAX_NAME or len(name) > _MAX_NAME:
        raise ValueError(f"a global whose name has {len(module) + len(name)} characters")
    if not may_be_named(module, name):
        raise Unsafe(f"import {module}.{name}")
    names[module, name] = found = Global(module, name)
    return found


def plain_key(key: Any) -> Any:
    """The key, or its text, where it is cheap to hash and none of many chosen to collide."""
    if isinstance(key, tuple):
        if len(key) > _MAX_KEY_PARTS:  # pyright: ignore[reportUnknownArgumentType]
            raise ValueError(f"a key of {len(key)} parts")  # pyright: ignore[reportUnknownArgumentType]
        if any(isinstance(part, tuple) for part in key):  # pyright: ignore[reportUnknownVariableType]
            raise TypeError("a key of nested tuples")
        text = repr(tuple(plain_key(part) for part in key))  # pyright: ignore[reportUnknownVariableType]
        if sys.getsizeof(text) > TUPLE_KEY:
            raise ValueError(f"a key of parts with {len(text)} characters")
        return text
    if isinstance(key, int):
        if key.bit_length() > _KEY_BITS:
            raise ValueError(f"a key of {key.bit_length()} bits")
    elif isinstance(key, (str, bytes)):
        if len(key) > _MAX_KEY:
            raise ValueError(f"a key of {len(key)} characters")
    elif not isinstance(key, (float, type(None), Global, Opaque, Reference)):
        raise TypeError(f"a key of type {type(key).__name__}")
    return key  # pyright: ignore[reportUnknownVariableType]


def set_items(holder: Any, items: list[Any]) -> int:
    """Keys and values in turn, set in a dict, or noted as what is set in an object; returns the
    bytes of memory that they take there."""
    if len(items) % 2:
        raise ValueError("a key without a value")
    if isinstance(holder, Opaque):
        if holder.entries is None:
            holder.entries = {}
        holder = holder.entries
    if not isinstance(holder, dict):
        raise TypeError(f"items set on {type(holder).__name__}")
    taken = PER_ITEM * len(items) // 2
    for index in range(0, len(items), 2):
        key = items[index]
        if type(key) is not str or len(key) > _MAX_KEY:
            taken += TUPLE_KEY if type(key) is tuple else 0
            key = plain_key(key)
        holder[key] = items[index + 1]
    return taken


def extend(holder: Any, items: list[Any]) -> int:
    """Items appended to a list, added to a set, or noted as what is appended to an object; returns
    the bytes of memory that they take there."""
    if isinstance(holder, set):
        holder.update(map(plain_key, items))  # pyright: ignore[reportUnknownMemberType]
        return sum(PER_ITEM + TUPLE_KEY * (type(item) is tuple) for item in items)
    if isinstance(holder, Opaque):
        if holder.items is None:
            holder.items = []
        holder = holder.items
    if not isinstance(holder, list):
        raise TypeError(f"items appended to {type(holder).__name__}")
    holder.extend(items)  # pyright: ignore[reportUnknownMemberType]
    return _PER_ELEMENT * len(items)


def build(holder: Any, state: Any) -> None:
    """An object's state."""
    if isinstance(holder, Opaque):
        holder.state = state
    elif not isinstance(holder, (dict, list, set)):  # an OrderedDict's attributes: not needed
        raise TypeError(f"state for {type(holder).__name__}")


def _member(owner: Any = None, name: Any = None, *_: Any) -> Global:
    """A class inside a class, or a member of an enumeration, which Python pickles as `getattr`."""
    if isinstance(owner, Global) and isinstance(name, str) and len(name) <= _MAX_NAME:
        inner = owner.name.rpartition(".")[2]
        if name.isidentifier() and name[0].isupper() and inner[:1].isupper():
            return named(owner.module, f"{owner.name}.{name}", {})
    raise Unsafe("call builtins.getattr")


def ordered(pairs: Any = (), *_: Any) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    set_items(result, [part for pair in pairs for part in (pair[0], pair[1])])
    return result


def _keys(values: Any = ()) -> list[Any]:
    if not isinstance(values, (list, tuple, set)):
        raise TypeError("a collection made of something else")
    return [plain_key(value) for value in values]  # pyright: ignore[reportUnknownVariableType]


def _encode(text: str, encoding: str = "") -> bytes:
    """As old protocols write bytes; no other encoding gives a byte for each character."""
    if encoding not in ("latin1", "latin-1", "ascii"):
        raise ValueError(f"encoding {encoding!r}")
    return text.encode(encoding)


def _size(value: Any = ()) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError("a size that is no sequence")
    return tuple(value)  # pyright: ignore[reportUnknownArgumentType]


def _bytearray(value: Any = b"", encoding: str = "") -> bytes | Blob:
    if isinstance(value, str):
        return _encode(value, encoding)
    if not isinstance(value, (bytes, Blob)):
        raise TypeError("a bytearray made of something else")
    return value


_BUILT: dict[str, Callable[..., Any]] = {
    "builtins.getattr": _member,
    "collections.OrderedDict": ordered,
    "collections.defaultdict": lambda *_: {},
    "torch.Size": _size,
    "_codecs.encode": _encode,
    "builtins.set": lambda values=(): set(_keys(values)),
    "builtins.frozenset": lambda values=(): frozenset(_keys(values)),
    "builtins.bytearray": _bytearray,
    "builtins.bytes": _bytearray,
    "builtins.list": lambda values=(): list(_size(values)),
    "builtins.tuple": _size,
    "builtins.dict": ordered,
}
