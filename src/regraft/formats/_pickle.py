"""A pickle machine that builds descriptions and runs nothing.

It knows the opcodes of protocols 0 to 5. Globals are names, never imported; calling one gives an
`Opaque` record of the call. A handful of containers are built as what they are. Names that only
serve to run code are refused (`_pickle_names`), so that nobody takes a booby trap for a checkpoint.

Bounded by construction: lengths are checked against the bytes that are left before anything is
sliced; objects, memo and stack are counted by the memory that they take (`_room`); containers that
are made from others are paid for by their size; keys are plain (`_pickle_records`).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from mmap import mmap
from typing import Any, NoReturn

from regraft.errors import CorruptFile, UnsafeFile
from regraft.formats._pickle_records import (
    PER_ITEM,
    TUPLE_KEY,
    Blob,
    Global,
    Opaque,
    Unsafe,
    build,
    extend,
    named,
    set_items,
)
from regraft.formats._pickle_runs import tensor_at
from regraft.formats._room import Room

_CHECKED_EVERY = 1 << 16
# Bytes that CPython's objects take, at most: containers that are empty, and what each element, each
# entry of the memo, each pending object (which is moved into a container), each name and each shape
# adds.
_TUPLE, _LIST, _DICT, _SET, _RECORD = 72, 72, 80, 248, 112
_ELEMENT, _NAMED, _PENDING, _NAME, _SHAPE = 17, 104, 27, 700, 300
_NUMBER, _TEXT, _PER_CHARACTER, _TENSOR = 32, 72, 4, 560
_FIRST_ITEM = 240
# Items that are put into a container before it is looked at what they take.
_AT_ONCE = 1 << 12
# Longer texts are measured; longer bytes stay where they are.
_LONG = 4096


_WORD = struct.Struct("<I").unpack_from


class _Mark:
    __slots__ = ()


_MARK = _Mark()
_PLAIN = (str, int, float, bytes, type(None))


class Machine:
    """Loads pickles from bytes, one after another; `position` is where the next one begins.

    `label` says in errors which file it is. `persistent` makes an object of a persistent id;
    without it, none may occur. `room` is that of the file, of which these bytes may be a part.
    """

    def __init__(
        self,
        data: bytes | mmap,
        label: str,
        persistent: Callable[[Any], Any] | None = None,
        room: Room | None = None,
    ) -> None:
        self._data = data
        self._size = len(data)
        self._label = label
        self._persistent = persistent or _no_persistent_ids
        self._room = room or Room(self._size)
        # Bytes that were passed over; pages of a mapped file take memory once they were walked.
        self._passed = 0
        self._mapped = isinstance(data, mmap)
        self.position = 0
        if not self._mapped:
            self._spend(self._size)

    def load(self) -> Any:
        """The next pickle's object, made of plain values, Global, Opaque and Reference.

        **Raises** `CorruptFile` or `UnsafeFile`, with the offset.
        """
        try:
            return self._run()
        except Unsafe as error:
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

    def _spend(self, count: int) -> None:
        self._room.take(count, f"{self._label}, offset {self.position}")

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
            raise Unsafe("call what another call returns")
        if not (function.may_be_called or new):
            raise Unsafe(f"call {function.path}")
        if function.build is None:
            return Opaque(function, args)
        each = _COPIED.get(function.path, PER_ITEM + TUPLE_KEY)
        for arg in args:  # a container made from another is paid for by its size
            if isinstance(arg, (list, tuple, dict, set, frozenset, str, bytes)):
                self._spend(_SET + each * len(arg))  # pyright: ignore[reportUnknownArgumentType]
            elif type(arg) is Global:  # whose member has a name of its own
                self._spend(_NAME + 3 * len(arg.path))
        return function.build(*args)

    def _filled(
        self, how: Callable[[Any, list[Any]], int], holder: Any, items: list[Any], made: int = 0
    ) -> int:
        """Puts items into a container and returns the bytes that they take there."""
        if len(items) <= _AT_ONCE:
            return how(holder, items)
        taken = 0
        for start in range(0, len(items), _AT_ONCE):
            taken += how(holder, items[start : start + _AT_ONCE])
            if made + taken > self._room.memory:
                raise self._room.spent(f"{self._label}, offset {self.position}")
        return taken

    def _run(self) -> Any:
        data, size, label = self._data, self._size, self._label
        stack: list[Any] = []
        memo: dict[int, Any] = {}
        names: dict[tuple[str, str], Global] = {}
        sizes: dict[bytes, tuple[int, ...]] = {}
        push, pop = stack.append, stack.pop
        pos = begin = self.position
        made = self._passed = 0
        room = self._room
        word = _WORD
        integer = struct.Struct("<i").unpack_from
        while True:
            taken = made + _NAMED * len(memo) + _PENDING * len(stack) + _NAME * len(names)
            taken += _SHAPE * len(sizes)
            walked = pos - begin - self._passed
            if taken + walked * self._mapped > room.memory:
                self.position = pos
                raise room.spent(f"{label}, offset {pos}")
            if walked > room.walked:
                room.walk(walked, f"{label}, offset {pos}")
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
                        run = tensor_at(data, pos - 1, memo, sizes, self._persistent)
                        if run is not None:
                            tensor, pos = run
                            push(tensor)
                            made += _TENSOR
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
                    text = str(data[start:pos], "utf-8", "surrogatepass")
                    length = pos - start
                    long = length >= _LONG
                    made += sys.getsizeof(text) if long else _PER_CHARACTER * length + _TEXT
                    push(text)
                elif op == 0x74:  # t TUPLE
                    # The topmost mark; most tuples are short.
                    first = len(stack) - 1
                    while stack[first] is not _MARK:
                        first -= 1
                        if first < 0:
                            raise ValueError("no mark")
                    made += _TUPLE + 8 * (len(stack) - first)
                    stack[first:] = [tuple(stack[first + 1 :])]
                elif op == 0x52:  # R REDUCE
                    args = pop()
                    self.position = pos
                    stack[-1] = self._called(stack[-1], args)
                    made += _RECORD
                elif op == 0x4D:  # M BININT2
                    push(data[pos] | data[pos + 1] << 8)
                    made += _NUMBER
                    pos += 2
                elif op == 0x86:  # TUPLE2
                    last = pop()
                    stack[-1] = (stack[-1], last)
                    made += _TUPLE
                elif op == 0x85:  # TUPLE1
                    stack[-1] = (stack[-1],)
                    made += _TUPLE
                elif op == 0x51:  # Q BINPERSID
                    stack[-1] = self._persistent(stack[-1])
                    made += _TUPLE
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
                    made += _PER_CHARACTER * (pos - start) + _TEXT
                    push(str(data[start:pos], "utf-8", "surrogatepass"))
                elif op == 0x6A:  # j LONG_BINGET
                    push(memo[word(data, pos)[0]])
                    pos += 4
                elif op == 0x87:  # TUPLE3
                    last, middle = pop(), pop()
                    stack[-1] = (stack[-1], middle, last)
                    made += _TUPLE
                elif op == 0x88:  # NEWTRUE
                    push(True)
                elif op == 0x4A:  # J BININT
                    push(integer(data, pos)[0])
                    made += _NUMBER
                    pos += 4
                elif op == 0x75:  # u SETITEMS
                    items = _popped(stack)
                    made += _FIRST_ITEM + self._filled(set_items, stack[-1], items, made)
                elif op == 0x73:  # s SETITEM
                    value = pop()
                    key = pop()
                    made += _FIRST_ITEM + set_items(stack[-1], [key, value])
                elif op == 0x63:  # c GLOBAL
                    module, after = self._line(pos)
                    name, after = self._line(after)
                    self.position = pos
                    push(named(module.decode(), name.decode(), names))
                    pos = after
                elif op == 0x93:  # STACK_GLOBAL
                    name, module = pop(), pop()
                    self.position = pos
                    push(named(module, name, names))
                elif op == 0x62:  # b BUILD
                    state = pop()
                    build(stack[-1], state)
                elif op == 0x7D:  # } EMPTY_DICT
                    push({})
                    made += _DICT
                elif op == 0x5D:  # ] EMPTY_LIST
                    push([])
                    made += _LIST
                elif op == 0x65:  # e APPENDS
                    items = _popped(stack)
                    made += _LIST + self._filled(extend, stack[-1], items, made)
                elif op == 0x61:  # a APPEND
                    item = pop()
                    made += _NUMBER + extend(stack[-1], [item])
                elif op == 0x4E:  # N NONE
                    push(None)
                elif op == 0x2E:  # . STOP
                    self.position = pos
                    result = pop()
                    if stack or result is _MARK:
                        self._corrupt(f"{len(stack)} objects left on the stack")
                    walked = pos - begin - self._passed
                    room.walk(walked, f"{label}, offset {pos}")
                    self._spend(made + _NAME * len(names) + walked * self._mapped)
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
                    unwalked = pos - self._passed
                    pos = self._rare(op, pos, stack, memo, names)
                    made += _PER_CHARACTER * (pos - self._passed - unwalked)

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
            if end - start < _LONG:
                stack.append(make(data[start:end]))
                return end
            self._passed += end - start
            if make is bytes and not self._mapped:
                stack.append(Blob(data, start, end))
            else:
                value = make(data[start:end])
                self._spend((1 + self._mapped) * sys.getsizeof(value))
                stack.append(value)
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
            found = named(module.decode(), name.decode(), names)
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
            items = _popped(stack)
            self._spend(_ELEMENT * len(items))
            stack.append(items)
        elif op == 0x64:  # d DICT
            items = _popped(stack)
            made: dict[Any, Any] = {}
            self._spend(self._filled(set_items, made, items))
            stack.append(made)
        elif op == 0x8F:  # EMPTY_SET
            stack.append(set())
        elif op == 0x90:  # ADDITEMS
            items = _popped(stack)
            self._spend(_LIST + self._filled(extend, stack[-1], items))
        elif op == 0x91:  # FROZENSET
            members: set[Any] = set()
            self._spend(self._filled(extend, members, _popped(stack)))
            stack.append(frozenset(members))
        elif op == 0x98:  # READONLY_BUFFER
            pass
        else:
            self._corrupt(f"opcode 0x{op:02x}")
        return pos


def _no_persistent_ids(_: Any) -> NoReturn:
    raise ValueError("a persistent id in a pickle that is whole by itself")


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


# Bytes that each element of an argument takes in these functions' results; in others' as many as
# in a dict.
_COPIED = {"torch.Size": _ELEMENT, "builtins.list": _ELEMENT, "builtins.tuple": _ELEMENT,
           "_codecs.encode": 1, "builtins.bytes": 1, "builtins.bytearray": 1,
           "builtins.getattr": 8}  # fmt: skip
# Bytes of what rare opcodes make; those with an argument take some more for each byte of it.
_COSTS = {
    0x8F: _SET, 0x91: _SET, 0x81: _RECORD, 0x92: _RECORD, 0x69: 2 * _RECORD, 0x6F: 2 * _RECORD,
    0x6C: _LIST, 0x64: _DICT + _FIRST_ITEM, 0x50: 2 * _TUPLE, 0x47: _NUMBER,
    **dict.fromkeys((0x43, 0x42, 0x8E, 0x96, 0x55, 0x54, 0x8D, 0x53, 0x56), _TEXT + _NUMBER),
    **dict.fromkeys((0x8A, 0x8B, 0x49, 0x4C, 0x46), _NUMBER),
}  # fmt: skip
_COUNTED: dict[int, tuple[int, Any]] = {
    0x43: (1, bytes),  # SHORT_BINBYTES
    0x42: (4, bytes),  # BINBYTES
    0x8E: (8, bytes),  # BINBYTES8
    0x96: (8, bytes),  # BYTEARRAY8, of which nobody changes anything
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
