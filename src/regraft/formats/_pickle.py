"""A pickle machine that builds descriptions and runs nothing.

It knows the opcodes of protocols 0 to 5. Globals are names, never imported; calling one gives an
`Opaque` record of the call. A handful of containers are built as what they are. Names that only
serve to run code are refused (`_pickle_names`), so that nobody takes a booby trap for a checkpoint.

Bounded by construction: lengths are checked against the bytes that are left before anything is
sliced, the memo is a dict, every object costs at least one byte of input, and keys are plain
(hashing a nest of tuples can take exponential time).
"""

from __future__ import annotations

import struct
from mmap import mmap
from typing import Any, NoReturn

from regraft.errors import CorruptFile, UnsafeFile
from regraft.formats._pickle_names import may_be_called, may_be_named

_DEPTH = 200
_STEPS = 2_000_000


class Global:
    """A name the pickle refers to, not imported."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"


class Opaque:
    """A call the pickle asks for, not made: what would be called, with what, and its state."""

    __slots__ = ("args", "cls", "entries", "items", "state")

    def __init__(self, cls: Any, args: Any) -> None:
        self.cls = cls
        self.args = args
        self.state: Any = None
        self.items: list[Any] = []
        self.entries: dict[Any, Any] = {}

    @property
    def path(self) -> str:
        return self.cls.path if isinstance(self.cls, Global) else ""


class Reference:
    """A persistent id: in PyTorch files, a storage."""

    __slots__ = ("pid",)

    def __init__(self, pid: Any) -> None:
        self.pid = pid


class _Mark:
    __slots__ = ()


_MARK = _Mark()
_PLAIN = (str, int, float, bytes, type(None))


class Machine:
    """Loads pickles from bytes, one after another; `position` is where the next one begins.

    `label` says in errors which file it is; `references` collects the persistent ids met.
    """

    def __init__(self, data: bytes | mmap, label: str) -> None:
        self._data = data
        self._label = label
        self.position = 0
        self.references: list[Reference] = []

    def load(self) -> Any:
        """The next pickle's object, made of plain values, Global, Opaque and Reference.

        **Raises** `CorruptFile` or `UnsafeFile`, with the offset.
        """
        try:
            return self._run()
        except (
            IndexError, KeyError, ValueError, TypeError, struct.error, AttributeError,
            UnicodeError, OverflowError, RecursionError,
        ) as error:  # fmt: skip
            self._corrupt(f"{type(error).__name__}: {error}"[:200])

    def _corrupt(self, found: str) -> NoReturn:
        raise CorruptFile(
            f"{self._label}, offset {self.position}",
            found=found,
            expected="a well-formed pickle",
            hint="the file is cut off or damaged; get it again",
        ) from None

    def _take(self, pos: int, length: int) -> int:
        """The end of `length` bytes from `pos`, once it is known that they are there."""
        if length < 0 or pos + length > len(self._data):
            self.position = pos
            self._corrupt(f"{length} bytes announced, {len(self._data) - pos} left")
        return pos + length

    def _line(self, pos: int) -> tuple[bytes, int]:
        end = self._data.find(b"\n", pos)
        if end < 0:
            raise ValueError("a line without an end")
        return self._data[pos:end], end + 1

    def _run(self) -> Any:
        data, take = self._data, self._take
        stack: list[Any] = []
        memo: dict[int, Any] = {}
        names: dict[tuple[str, str], Global] = {}
        push, pop = stack.append, stack.pop
        pos = self.position
        long = struct.Struct("<i").unpack_from
        while True:
            op = data[pos]
            pos += 1
            # Ordered by how often state dicts use them.
            if op == 0x71:  # q BINPUT
                memo[data[pos]] = stack[-1]
                pos += 1
            elif op == 0x72:  # r LONG_BINPUT
                memo[int.from_bytes(data[pos : pos + 4], "little")] = stack[-1]
                pos += 4
            elif op == 0x94:  # MEMOIZE
                memo[len(memo)] = stack[-1]
            elif op == 0x68:  # h BINGET
                push(memo[data[pos]])
                pos += 1
            elif op == 0x6A:  # j LONG_BINGET
                push(memo[int.from_bytes(data[pos : pos + 4], "little")])
                pos += 4
            elif op == 0x4B:  # K BININT1
                push(data[pos])
                pos += 1
            elif op == 0x4D:  # M BININT2
                push(data[pos] | data[pos + 1] << 8)
                pos += 2
            elif op == 0x58:  # X BINUNICODE
                start = pos + 4
                pos = take(start, int.from_bytes(data[pos:start], "little"))
                push(str(data[start:pos], "utf-8", "surrogatepass"))
            elif op == 0x8C:  # SHORT_BINUNICODE
                start = pos + 1
                pos = take(start, data[pos])
                push(str(data[start:pos], "utf-8", "surrogatepass"))
            elif op == 0x28:  # ( MARK
                push(_MARK)
            elif op == 0x74:  # t TUPLE
                push(tuple(_popped(stack)))
            elif op == 0x85:  # TUPLE1
                stack[-1] = (stack[-1],)
            elif op == 0x86:  # TUPLE2
                last = pop()
                stack[-1] = (stack[-1], last)
            elif op == 0x87:  # TUPLE3
                last, middle = pop(), pop()
                stack[-1] = (stack[-1], middle, last)
            elif op == 0x52:  # R REDUCE
                args = pop()
                self.position = pos
                stack[-1] = self._called(stack[-1], args)
            elif op == 0x51:  # Q BINPERSID
                stack[-1] = Reference(stack[-1])
                self.references.append(stack[-1])
            elif op == 0x89:  # NEWFALSE
                push(False)
            elif op == 0x88:  # NEWTRUE
                push(True)
            elif op == 0x29:  # ) EMPTY_TUPLE
                push(())
            elif op == 0x4A:  # J BININT
                push(long(data, pos)[0])
                pos += 4
            elif op == 0x75:  # u SETITEMS
                items = _popped(stack)
                _set_items(stack[-1], items)
            elif op == 0x73:  # s SETITEM
                value = pop()
                key = pop()
                _set_items(stack[-1], [key, value])
            elif op == 0x63:  # c GLOBAL
                module, after = self._line(pos)
                name, after = self._line(after)
                self.position = pos
                push(self._global(module.decode(), name.decode(), names))
                pos = after
            elif op == 0x93:  # STACK_GLOBAL
                name, module = pop(), pop()
                self.position = pos
                push(self._global(module, name, names))
            elif op == 0x62:  # b BUILD
                state = pop()
                _build(stack[-1], state)
            elif op == 0x7D:  # } EMPTY_DICT
                push({})
            elif op == 0x5D:  # ] EMPTY_LIST
                push([])
            elif op == 0x65:  # e APPENDS
                items = _popped(stack)
                _extend(stack[-1], items)
            elif op == 0x61:  # a APPEND
                item = pop()
                _extend(stack[-1], [item])
            elif op == 0x4E:  # N NONE
                push(None)
            elif op == 0x2E:  # . STOP
                self.position = pos
                result = pop()
                if stack or result is _MARK:
                    self._corrupt(f"{len(stack)} objects left on the stack")
                return result
            elif op == 0x80:  # PROTO
                if data[pos] > 5:
                    self._corrupt(f"protocol {data[pos]}")
                pos += 1
            elif op == 0x95:  # FRAME
                take(pos + 8, int.from_bytes(data[pos : pos + 8], "little"))
                pos += 8
            else:
                self.position = pos
                pos = self._rare(op, pos, stack, memo, names)

    def _rare(
        self,
        op: int,
        pos: int,
        stack: list[Any],
        memo: dict[int, Any],
        names: dict[tuple[str, str], Global],
    ) -> int:
        """Opcodes that state dicts seldom use; returns the position after it."""
        data = self._data
        if op == 0x47:  # G BINFLOAT
            stack.append(struct.unpack_from(">d", data, pos)[0])
            return pos + 8
        if op in _COUNTED:  # bytes, strings and long integers behind their length
            width, make = _COUNTED[op]
            start = self._take(pos, width)
            end = self._take(start, int.from_bytes(data[pos:start], "little"))
            stack.append(make(data[start:end]))
            return end
        if op in _LINES:  # protocol 0: values written out on a line
            line, end = self._line(pos)
            if len(line) > 4000 and op != 0x56 and op != 0x53:
                self._corrupt(f"a number of {len(line)} characters")
            stack.append(_LINES[op](line))
            return end
        if op == 0x70:  # p PUT
            line, end = self._line(pos)
            memo[int(line)] = stack[-1]
            return end
        if op == 0x67:  # g GET
            line, end = self._line(pos)
            stack.append(memo[int(line)])
            return end
        if op == 0x50:  # P PERSID
            line, end = self._line(pos)
            stack.append(Reference(line.decode()))
            return end
        if op == 0x81:  # NEWOBJ
            args = stack.pop()
            stack[-1] = self._called(stack[-1], args, new=True)
        elif op == 0x92:  # NEWOBJ_EX
            _ = stack.pop()
            args = stack.pop()
            stack[-1] = self._called(stack[-1], args, new=True)
        elif op == 0x69:  # i INST
            module, after = self._line(pos)
            name, after = self._line(after)
            args = tuple(_popped(stack))
            found = self._global(module.decode(), name.decode(), names)
            stack.append(self._called(found, args))
            return after
        elif op == 0x6F:  # o OBJ
            cls, *rest = _popped(stack)
            stack.append(self._called(cls, tuple(rest)))
        elif op == 0x30:  # 0 POP
            stack.pop()
        elif op == 0x31:  # 1 POP_MARK
            _popped(stack)
        elif op == 0x32:  # 2 DUP
            stack.append(stack[-1])
        elif op == 0x6C:  # l LIST
            stack.append(_popped(stack))
        elif op == 0x64:  # d DICT
            items = _popped(stack)
            made: dict[Any, Any] = {}
            _set_items(made, items)
            stack.append(made)
        elif op == 0x8F:  # EMPTY_SET
            stack.append(set())
        elif op == 0x90:  # ADDITEMS
            items = _popped(stack)
            _extend(stack[-1], items)
        elif op == 0x91:  # FROZENSET
            stack.append(frozenset(_plain_key(item) for item in _popped(stack)))
        elif op == 0x98:  # READONLY_BUFFER
            pass
        else:
            self._corrupt(f"opcode 0x{op:02x}")
        return pos

    def _global(self, module: Any, name: Any, names: dict[tuple[str, str], Global]) -> Global:
        if not (isinstance(module, str) and isinstance(name, str)):
            self._corrupt("a global whose name is no text")
        known = names.get((module, name))
        if known is not None:
            return known
        if not may_be_named(module, name):
            self._unsafe(f"a pickle that would import {module}.{name}")
        names[module, name] = found = Global(module, name)
        return found

    def _called(self, function: Any, args: Any, new: bool = False) -> Any:
        """What calling `function` would give: a container for the few that are one, else a record.

        `new`: the pickle asks for a new object of a class, whose constructor does not run.
        """
        if not isinstance(args, tuple):
            raise TypeError("arguments that are no tuple")
        if not isinstance(function, Global):
            self._unsafe("a pickle that would call what another call returns")
        if not (new or may_be_called(function.module, function.name)):
            self._unsafe(f"a pickle that would call {function.path}")
        make = _BUILT.get(function.path)
        return Opaque(function, args) if make is None else make(*args)  # pyright: ignore[reportUnknownArgumentType]

    def _unsafe(self, found: str) -> NoReturn:
        raise UnsafeFile(
            f"{self._label}, offset {self.position}",
            found=found[:300],
            expected="tensors and plain containers",
            hint="do not open this file with torch.load or pickle: it is made to run code",
        )


def _popped(stack: list[Any]) -> list[Any]:
    """Everything above the topmost mark; the mark goes too."""
    position = len(stack) - 1
    while stack[position] is not _MARK:
        position -= 1
        if position < 0:
            raise ValueError("no mark")
    items = stack[position + 1 :]
    del stack[position:]
    return items


def _plain_key(key: Any) -> Any:
    if isinstance(key, _PLAIN):
        return key
    if isinstance(key, tuple) and all(isinstance(part, _PLAIN) for part in key):  # pyright: ignore[reportUnknownVariableType]
        return key  # pyright: ignore[reportUnknownVariableType]
    if isinstance(key, (Global, Opaque, Reference)):
        return key  # hashed by identity
    raise TypeError(f"a key of type {type(key).__name__}")


def _set_items(holder: Any, items: list[Any]) -> None:
    if len(items) % 2:
        raise ValueError("a key without a value")
    into = holder.entries if isinstance(holder, Opaque) else holder
    if not isinstance(into, dict):
        raise TypeError(f"items set on {type(holder).__name__}")
    for index in range(0, len(items), 2):
        key = items[index]
        into[key if type(key) is str else _plain_key(key)] = items[index + 1]


def _extend(holder: Any, items: list[Any]) -> None:
    if isinstance(holder, set):
        holder.update(_plain_key(item) for item in items)  # pyright: ignore[reportUnknownMemberType]
        return
    into = holder.items if isinstance(holder, Opaque) else holder
    if not isinstance(into, list):
        raise TypeError(f"items appended to {type(holder).__name__}")
    into.extend(items)  # pyright: ignore[reportUnknownMemberType]


def _build(holder: Any, state: Any) -> None:
    if isinstance(holder, Opaque):
        holder.state = state
    elif not isinstance(holder, (dict, list, set)):  # an OrderedDict's attributes: not needed
        raise TypeError(f"state for {type(holder).__name__}")


def _ordered(pairs: Any = (), *_: Any) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    _set_items(result, [part for pair in pairs for part in (pair[0], pair[1])])
    return result


def _keys(values: Any = ()) -> list[Any]:
    if not isinstance(values, (list, tuple, set)):
        raise TypeError("a collection made of something else")
    return [_plain_key(value) for value in values]  # pyright: ignore[reportUnknownVariableType]


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise ValueError(f"encoding {encoding!r}")
    return text.encode(encoding)


def _size(value: Any = ()) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError("a size that is no sequence")
    return tuple(value)  # pyright: ignore[reportUnknownArgumentType]


def _bytearray(value: Any = b"", encoding: str = "") -> bytes:
    if isinstance(value, str):
        return _encode(value, encoding)
    if not isinstance(value, bytes):
        raise TypeError("a bytearray made of something else")
    return value


_BUILT: dict[str, Any] = {
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda *_: {},
    "torch.Size": _size,
    "_codecs.encode": _encode,
    "builtins.set": lambda values=(): set(_keys(values)),
    "__builtin__.set": lambda values=(): set(_keys(values)),
    "builtins.frozenset": lambda values=(): frozenset(_keys(values)),
    "__builtin__.frozenset": lambda values=(): frozenset(_keys(values)),
    "builtins.bytearray": _bytearray,
    "builtins.bytes": _bytearray,
    "builtins.list": lambda values=(): list(_size(values)),
    "builtins.tuple": _size,
    "builtins.dict": _ordered,
}


def _escaped(line: bytes) -> str | bytes:
    """Protocol 0's quoted string, as Python 2 wrote it."""
    quoted = line.strip()
    if len(quoted) < 2 or quoted[:1] != quoted[-1:] or quoted[:1] not in b"'\"":
        raise ValueError("a string without quotes")
    import codecs

    return _text(codecs.escape_decode(quoted[1:-1])[0])  # pyright: ignore[reportArgumentType]


def _text(value: bytes) -> str | bytes:
    """Python 2's str: text where it is text, bytes where it is not."""
    return value.decode("ascii") if value.isascii() else value


def _integer(line: bytes) -> int | bool:
    if line in (b"00", b"01"):
        return line == b"01"
    return int(line)


_COUNTED: dict[int, tuple[int, Any]] = {
    0x43: (1, bytes),  # SHORT_BINBYTES
    0x42: (4, bytes),  # BINBYTES
    0x8E: (8, bytes),  # BINBYTES8
    0x96: (8, bytes),  # BYTEARRAY8
    0x55: (1, _text),  # SHORT_BINSTRING
    0x54: (4, _text),  # BINSTRING
    0x8D: (8, lambda b: str(b, "utf-8", "surrogatepass")),  # BINUNICODE8
    0x8A: (1, lambda b: int.from_bytes(b, "little", signed=True)),  # LONG1
    0x8B: (4, lambda b: int.from_bytes(b, "little", signed=True)),  # LONG4
}
_LINES: dict[int, Any] = {
    0x49: _integer,  # INT
    0x4C: lambda line: int(line.rstrip(b"L")),  # LONG
    0x46: float,  # FLOAT
    0x53: _escaped,  # STRING
    0x56: lambda line: str(line, "raw-unicode-escape"),  # UNICODE
}


def walk(root: Any, label: str, visit: Any) -> None:
    """Calls `visit(path, value)` for every leaf of nested dicts, lists and tuples, in order.

    `visit` returns a container to go on into, or `None`. Bounded: shared parts are visited as
    often as they occur, but no more than a fixed number of steps and levels in all.
    """
    steps = 0
    todo: list[tuple[tuple[str, ...], Any]] = [((), root)]
    while todo:
        path, value = todo.pop()
        steps += 1
        if len(path) > _DEPTH or steps > _STEPS:
            raise CorruptFile(
                label,
                found=f"nesting {len(path)} deep, {steps} steps",
                expected=f"at most {_DEPTH} levels",
            )
        inner = value if isinstance(value, (dict, list, tuple)) else visit(path, value)
        if isinstance(inner, dict):
            pairs = [((*path, str(key)), part) for key, part in inner.items()]  # pyright: ignore[reportUnknownVariableType]
        elif isinstance(inner, (list, tuple)):
            pairs = [((*path, str(index)), part) for index, part in enumerate(inner)]  # pyright: ignore[reportUnknownVariableType]
        else:
            continue
        todo.extend(reversed(pairs))
