"""A pickle machine that builds descriptions and runs nothing.

It knows the opcodes of protocols 0 to 5. Globals are names, never imported; calling one gives an
`Opaque` record of the call. A handful of containers are built as what they are. Names that only
serve to run code are refused (`_pickle_names`), so that nobody takes a booby trap for a checkpoint.

Bounded by construction: lengths are checked against the bytes that are left before anything is
sliced; objects, memo and stack may only grow in proportion to the input; containers that are made
from others are paid for by their size; keys are plain, short and small (a nest of tuples takes
exponential time to hash, and integers can be chosen to collide).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from mmap import mmap
from typing import Any, NoReturn

from regraft.errors import CorruptFile, UnsafeFile
from regraft.formats._pickle_names import MOVED, may_be_called, may_be_named

# A pickle may make this many objects, and one more for every few bytes.
_FREE_OBJECTS, _BYTES_PER_OBJECT = 300_000, 3
_CHECKED_EVERY = 1 << 16
_MAX_NAME = 1000
_MAX_KEY, _MAX_KEY_PARTS, _KEY_BITS = 4096, 64, 60


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


class _Unsafe(Exception):
    """What no checkpoint needs; carries it in words."""


class Reference:
    """A persistent id: in PyTorch files, a storage."""

    __slots__ = ("pid",)

    def __init__(self, pid: Any) -> None:
        self.pid = pid


# One tensor of a state dict, as `torch.save` writes all but the first few: a function from the memo
# called with a storage by its key, an offset, shape, strides, a flag and an empty OrderedDict. Most
# of a large pickle's opcodes stand in such runs, which are read in one step. Opcodes are told apart
# by their first byte, so that where this matches, it is what they say.
_NUMBER = rb"(?:K.|M..|J....)"
_SIZES = rb"(\)|%b{1,3}[\x85-\x87]r....|\(%b{4,32}tr....)" % (_NUMBER, _NUMBER)
_TENSOR = re.compile(
    rb"h.\(\(h.h.X....(\d{1,20})r....h.(%b)tr....Q(%b)%b%b[\x88\x89]h.\)Rr....tr....Rr...."
    % (_NUMBER, _NUMBER, _SIZES, _SIZES),
    re.DOTALL,
)


def _number(data: bytes) -> int:
    """Of BININT1, BININT2 or BININT."""
    return int.from_bytes(data[1:], "little", signed=len(data) == 5)


def _sizes(data: bytes) -> tuple[int, ...]:
    """Of a run of numbers that ends with the opcode of a tuple."""
    numbers: list[int] = []
    position = 1 if data[0] == 0x28 else 0
    while position < len(data) - 1:
        end = position + {0x4B: 2, 0x4D: 3, 0x4A: 5}[data[position]]
        numbers.append(_number(data[position:end]))
        position = end
    return tuple(numbers)


_WORD = struct.Struct("<I").unpack_from


class _Mark:
    __slots__ = ()


_MARK = _Mark()
_PLAIN = (str, int, float, bytes, type(None))


class Machine:
    """Loads pickles from bytes, one after another; `position` is where the next one begins.

    `label` says in errors which file it is. `persistent` makes an object of a persistent id;
    without it, none may occur.
    """

    def __init__(
        self,
        data: bytes | mmap,
        label: str,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self._data = data
        self._size = len(data)
        self._label = label
        self._persistent = persistent or _no_persistent_ids
        self._left = _FREE_OBJECTS + self._size // _BYTES_PER_OBJECT
        self.position = 0

    def load(self) -> Any:
        """The next pickle's object, made of plain values, Global, Opaque and Reference.

        **Raises** `CorruptFile` or `UnsafeFile`, with the offset.
        """
        try:
            return self._run()
        except _Unsafe as error:
            raise UnsafeFile(
                f"{self._label}, offset {self.position}",
                found=f"a pickle that would {error}"[:300],
                expected="tensors and plain containers",
                hint="do not open this file with torch.load or pickle: it is made to run code",
            ) from None
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
        if length < 0 or pos + length > self._size:
            self.position = pos
            self._corrupt(f"{length} bytes announced, {self._size - pos} left")
        return pos + length

    def _line(self, pos: int) -> tuple[bytes, int]:
        end = self._data.find(b"\n", pos)
        if end < 0:
            raise ValueError("a line without an end")
        return self._data[pos:end], end + 1

    def _called(self, function: Any, args: Any, new: bool = False) -> Any:
        """What a call would give: a container for the few that are one, else a record.

        `new`: the pickle asks for a new object of a class, whose constructor does not run.
        """
        if type(args) is not tuple:
            raise TypeError("arguments that are no tuple")
        if type(function) is not Global:
            raise _Unsafe("call what another call returns")
        if not (function.may_be_called or new):
            raise _Unsafe(f"call {function.path}")
        if function.build is None:
            return Opaque(function, args)
        for arg in args:  # a container made from another is paid for by its size
            if isinstance(arg, (list, tuple, dict, set, frozenset, str, bytes)):
                self._left -= len(arg) // _SIZES_OF.get(function.path, 1)  # pyright: ignore[reportUnknownArgumentType]
                if self._left < 0:
                    self._corrupt("containers copied over and over")
        return function.build(*args)

    def _run(self) -> Any:
        data, size, label = self._data, self._size, self._label
        stack: list[Any] = []
        memo: dict[int, Any] = {}
        names: dict[tuple[str, str], Global] = {}
        sizes: dict[bytes, tuple[int, ...]] = {}
        push, pop = stack.append, stack.pop
        pos = self.position
        made = 0
        word = _WORD
        integer = struct.Struct("<i").unpack_from
        while True:
            if made + 3 * len(memo) // 2 + len(stack) // 8 > self._left:
                self.position = pos
                raise CorruptFile(
                    f"{label}, offset {pos}",
                    found=f"{made} objects, {len(memo)} of them named, {len(stack)} pending",
                    expected=f"no more than a pickle of {size} bytes needs",
                )
            stop = pos + _CHECKED_EVERY
            while pos < stop:
                op = data[pos]
                pos += 1
                # Ordered by how often state dicts use them.
                if op == 0x72:  # r LONG_BINPUT
                    memo[word(data, pos)[0]] = stack[-1]
                    pos += 4
                elif op == 0x68:  # h BINGET
                    if data[pos + 1 : pos + 3] == b"((":
                        after = self._tensor(pos - 1, stack, memo, sizes)
                        if after:
                            pos = after
                            made += 8
                            continue
                    push(memo[data[pos]])
                    pos += 1
                elif op == 0x4B:  # K BININT1
                    push(data[pos])
                    pos += 1
                elif op == 0x28:  # ( MARK
                    push(_MARK)
                elif op == 0x71:  # q BINPUT
                    memo[data[pos]] = stack[-1]
                    pos += 1
                elif op == 0x58:  # X BINUNICODE
                    start = pos + 4
                    pos = start + word(data, pos)[0]
                    if pos > size:
                        self._take(start, pos - start)
                    push(str(data[start:pos], "utf-8", "surrogatepass"))
                elif op == 0x74:  # t TUPLE
                    # The topmost mark; most tuples are short.
                    first = len(stack) - 1
                    while stack[first] is not _MARK:
                        first -= 1
                        if first < 0:
                            raise ValueError("no mark")
                    stack[first:] = [tuple(stack[first + 1 :])]
                    made += 1
                elif op == 0x52:  # R REDUCE
                    args = pop()
                    self.position = pos
                    stack[-1] = self._called(stack[-1], args)
                    made += 1
                elif op == 0x4D:  # M BININT2
                    push(data[pos] | data[pos + 1] << 8)
                    pos += 2
                elif op == 0x86:  # TUPLE2
                    last = pop()
                    stack[-1] = (stack[-1], last)
                    made += 1
                elif op == 0x85:  # TUPLE1
                    stack[-1] = (stack[-1],)
                    made += 1
                elif op == 0x51:  # Q BINPERSID
                    stack[-1] = self._persistent(stack[-1])
                    made += 1
                elif op == 0x89:  # NEWFALSE
                    push(False)
                elif op == 0x29:  # ) EMPTY_TUPLE
                    push(())
                elif op == 0x94:  # MEMOIZE
                    memo[len(memo)] = stack[-1]
                elif op == 0x8C:  # SHORT_BINUNICODE
                    start = pos + 1
                    pos = start + data[pos]
                    if pos > size:
                        self._take(start, pos - start)
                    push(str(data[start:pos], "utf-8", "surrogatepass"))
                elif op == 0x6A:  # j LONG_BINGET
                    push(memo[word(data, pos)[0]])
                    pos += 4
                elif op == 0x87:  # TUPLE3
                    last, middle = pop(), pop()
                    stack[-1] = (stack[-1], middle, last)
                    made += 1
                elif op == 0x88:  # NEWTRUE
                    push(True)
                elif op == 0x4A:  # J BININT
                    push(integer(data, pos)[0])
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
                    push(_named(module.decode(), name.decode(), names))
                    pos = after
                elif op == 0x93:  # STACK_GLOBAL
                    name, module = pop(), pop()
                    self.position = pos
                    push(_named(module, name, names))
                elif op == 0x62:  # b BUILD
                    state = pop()
                    _build(stack[-1], state)
                elif op == 0x7D:  # } EMPTY_DICT
                    push({})
                    made += 1
                elif op == 0x5D:  # ] EMPTY_LIST
                    push([])
                    made += 1
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
                    self._left -= made + 3 * len(memo) // 2
                    return result
                elif op == 0x80:  # PROTO
                    if data[pos] > 5:
                        self._corrupt(f"protocol {data[pos]}")
                    pos += 1
                elif op == 0x95:  # FRAME
                    self._take(pos + 8, int.from_bytes(data[pos : pos + 8], "little"))
                    pos += 8
                else:
                    self.position = pos
                    made += _COSTS.get(op, 0)
                    pos = self._rare(op, pos, stack, memo, names)

    def _tensor(
        self,
        pos: int,
        stack: list[Any],
        memo: dict[int, Any],
        sizes: dict[bytes, tuple[int, ...]],
    ) -> int:
        """Reads a run of opcodes that makes one tensor; returns the position after it, 0 if there
        is none here."""
        data, word = self._data, _WORD
        match = _TENSOR.match(data, pos)
        if match is None:
            return 0
        _, (begin, after), (count, id_), (offset, shape), (_, strides), (_, flag) = match.regs
        call, label, cls = memo[data[pos + 1]], memo[data[pos + 5]], memo[data[pos + 7]]
        plain = type(call) is Global and call.may_be_called and call.build is None
        if not plain or word(data, pos + 9)[0] != after - begin:
            return 0
        memo[word(data, after + 1)[0]] = key = str(data[begin:after], "ascii")
        pid = label, cls, key, memo[data[after + 6]], _number(data[count:id_])
        memo[word(data, id_ + 2)[0]] = pid
        first = _number(data[offset:shape])
        both: list[tuple[int, ...]] = []
        for start, end in ((shape, strides), (strides, flag)):
            if end - start == 1:  # the empty tuple is in no memo
                both.append(())
                continue
            run = data[start : end - 5]
            found = sizes.get(run)
            if found is None:
                found = sizes[run] = _sizes(run)
            memo[word(data, end - 4)[0]] = found
            both.append(found)
        make = memo[data[flag + 2]]
        if type(make) is not Global or make.build is not _ordered:
            return 0
        nothing: dict[Any, Any] = {}
        memo[word(data, flag + 6)[0]] = nothing
        args = (self._persistent(pid), first, both[0], both[1], data[flag] == 0x88, nothing)
        memo[word(data, flag + 12)[0]] = args
        made = Opaque(call, args)
        memo[word(data, flag + 18)[0]] = made
        stack.append(made)
        return match.end()

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
            if len(line) > 10:
                self._corrupt(f"an index of {len(line)} digits")
            memo[int(line)] = stack[-1]
            return end
        if op == 0x67:  # g GET
            line, end = self._line(pos)
            stack.append(memo[int(line)])
            return end
        if op == 0x50:  # P PERSID
            line, end = self._line(pos)
            stack.append(self._persistent(line.decode()))
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
            found = _named(module.decode(), name.decode(), names)
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


def _no_persistent_ids(_: Any) -> NoReturn:
    raise ValueError("a persistent id in a pickle that is whole by itself")


def _named(module: Any, name: Any, names: dict[tuple[str, str], Global]) -> Global:
    """The Global of that name, one object for each. **Raises** `_Unsafe`."""
    if not (isinstance(module, str) and isinstance(name, str)):
        raise TypeError("a global whose name is no text")
    known = names.get((module, name))
    if known is not None:
        return known
    if len(module) > _MAX_NAME or len(name) > _MAX_NAME:
        raise ValueError(f"a global whose name has {len(module) + len(name)} characters")
    if not may_be_named(module, name):
        raise _Unsafe(f"import {module}.{name}")
    names[module, name] = found = Global(module, name)
    return found


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
    """The key, where it is cheap to hash and none of many chosen to collide."""
    if isinstance(key, tuple):
        if len(key) > _MAX_KEY_PARTS:  # pyright: ignore[reportUnknownArgumentType]
            raise ValueError(f"a key of {len(key)} parts")  # pyright: ignore[reportUnknownArgumentType]
        if any(isinstance(part, tuple) for part in key):  # pyright: ignore[reportUnknownVariableType]
            raise TypeError("a key of nested tuples")
        for part in key:  # pyright: ignore[reportUnknownVariableType]
            _plain_key(part)
    elif isinstance(key, int):
        if key.bit_length() > _KEY_BITS:
            raise ValueError(f"a key of {key.bit_length()} bits")
    elif isinstance(key, (str, bytes)):
        if len(key) > _MAX_KEY:
            raise ValueError(f"a key of {len(key)} characters")
    elif not isinstance(key, (float, type(None), Global, Opaque, Reference)):
        raise TypeError(f"a key of type {type(key).__name__}")
    return key  # pyright: ignore[reportUnknownVariableType]


def _set_items(holder: Any, items: list[Any]) -> None:
    if len(items) % 2:
        raise ValueError("a key without a value")
    if isinstance(holder, Opaque):
        if holder.entries is None:
            holder.entries = {}
        holder = holder.entries
    if not isinstance(holder, dict):
        raise TypeError(f"items set on {type(holder).__name__}")
    for index in range(0, len(items), 2):
        key = items[index]
        plain = type(key) is str and len(key) <= _MAX_KEY
        holder[key if plain else _plain_key(key)] = items[index + 1]


def _extend(holder: Any, items: list[Any]) -> None:
    if isinstance(holder, set):
        holder.update(_plain_key(item) for item in items)  # pyright: ignore[reportUnknownMemberType]
        return
    if isinstance(holder, Opaque):
        if holder.items is None:
            holder.items = []
        holder = holder.items
    if not isinstance(holder, list):
        raise TypeError(f"items appended to {type(holder).__name__}")
    holder.extend(items)  # pyright: ignore[reportUnknownMemberType]


def _build(holder: Any, state: Any) -> None:
    if isinstance(holder, Opaque):
        holder.state = state
    elif not isinstance(holder, (dict, list, set)):  # an OrderedDict's attributes: not needed
        raise TypeError(f"state for {type(holder).__name__}")


def _member(owner: Any = None, name: Any = None, *_: Any) -> Global:
    """A class inside a class, or a member of an enumeration, which Python pickles as `getattr`."""
    if isinstance(owner, Global) and isinstance(name, str) and len(name) <= _MAX_NAME:
        inner = owner.name.rpartition(".")[2]
        if name.isidentifier() and name[0].isupper() and inner[:1].isupper():
            return _named(owner.module, f"{owner.name}.{name}", {})
    raise _Unsafe("call builtins.getattr")


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


_BUILT: dict[str, Callable[..., Any]] = {
    "builtins.getattr": _member,
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda *_: {},
    "torch.Size": _size,
    "_codecs.encode": _encode,
    "builtins.set": lambda values=(): set(_keys(values)),
    "builtins.frozenset": lambda values=(): frozenset(_keys(values)),
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
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that are none, which are kept as they are
        return _text(codecs.escape_decode(quoted[1:-1])[0])  # pyright: ignore[reportArgumentType]


def _text(value: bytes) -> str | bytes:
    """Python 2's str: text where it is text, bytes where it is not."""
    return value.decode("ascii") if value.isascii() else value


def _integer(line: bytes) -> int | bool:
    if line in (b"00", b"01"):
        return line == b"01"
    return int(line)


# Of these functions' results so many elements take the room of one object, of others' one does.
_SIZES_OF = {"torch.Size": 8, "builtins.list": 8, "builtins.tuple": 8, "_codecs.encode": 64,
             "builtins.bytes": 64, "builtins.bytearray": 64}  # fmt: skip
# Objects that rare opcodes make, weighed by their size. See `_FREE_OBJECTS`.
_COSTS = {0x8F: 3, 0x91: 3, 0x81: 2, 0x92: 2, 0x69: 2, 0x6F: 2, 0x6C: 1, 0x64: 1}
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


# Parts of a nest may be shared, and are met as often as they occur. So many steps are free, and as
# many more as the caller allows; a long path counts for more than one.
_FREE_STEPS = 200_000
_DEPTH, _SHOWN = 200, 5
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
                    f"{label}, {'.'.join(here[:_SHOWN])[:_MAX_NAME]}",
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
