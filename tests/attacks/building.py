"""Pieces that hostile files are put together from, byte by byte where no library would write them."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Pickles: each function gives the opcodes that leave one value on the stack.


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def raw(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    size = value.bit_length() // 8 + 1
    data = value.to_bytes(size, "little", signed=True)
    return (b"\x8a" + bytes([size]) if size < 256 else b"\x8b" + struct.pack("<i", size)) + data


def named(module: str, name: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{name}\n".encode()


def stacked(module: str, name: str) -> bytes:
    """STACK_GLOBAL, whose names may hold dots."""
    return text(module) + text(name) + b"\x93"


def group(*values: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(values) + b"t"


def called(function: bytes, *args: bytes) -> bytes:
    """REDUCE."""
    return function + group(*args) + b"R"


def mapping(*pairs: tuple[bytes, bytes]) -> bytes:
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def whole(*opcodes: bytes, protocol: int = 4) -> bytes:
    return bytes([0x80, protocol]) + b"".join(opcodes) + b"."


def storage(key: str = "0", count: int = 4, kind: str = "FloatStorage") -> bytes:
    """PyTorch's persistent id of a storage."""
    return persistent(text("storage"), named("torch", kind), text(key), text("cpu"), number(count))


def persistent(*parts: bytes) -> bytes:
    return group(*parts) + b"Q"


def sizes(values: Iterable[int]) -> bytes:
    return group(*map(number, values))


def tensor(
    shape: Sequence[int] = (4,),
    strides: Sequence[int] = (1,),
    offset: int = 0,
    of: bytes | None = None,
    function: str = "_rebuild_tensor_v2",
) -> bytes:
    """A call of PyTorch's that makes a view of a storage of four floats."""
    return called(
        named("torch._utils", function), of or storage(), number(offset), sizes(shape),
        sizes(strides), b"\x89", called(named("collections", "OrderedDict")),
    )  # fmt: skip


FLOATS = struct.pack("<4f", 1.5, -2.25, 3.125, 4.0625)


# Zip archives


class Part(NamedTuple):
    """A member; whatever is not `None` is claimed instead of the truth, in its place."""

    name: bytes
    data: bytes = b""
    method: int = 0
    flags: int = 0
    attributes: int = 0
    crc: int | None = None
    size: int | None = None
    packed: int | None = None
    offset: int | None = None
    local_name: bytes | None = None
    local_size: int | None = None
    local_crc: int | None = None
    local_extra: bytes = b""
    extra: bytes = b""
    # Descriptor after the data; bytes of another part, without any of its own.
    after: bytes = b""


def archive(
    parts: Iterable[Part], *, before: bytes = b"", comment: bytes = b"", **end: int
) -> bytes:
    """A zip archive, down to the record at its end: `count`, `length`, `start` of the directory."""
    out = bytearray(before)
    directory = bytearray()
    count = 0
    for part in parts:
        count += 1
        packed = _packed(part)
        crc = zlib.crc32(part.data) if part.crc is None else part.crc
        size = len(part.data) if part.size is None else part.size
        length = len(packed) if part.packed is None else part.packed
        offset = len(out) if part.offset is None else part.offset
        if part.offset is None:
            name = part.name if part.local_name is None else part.local_name
            out += struct.pack(
                "<4s5H3I2H", b"PK\3\4", 20, part.flags, part.method, 0, 33,
                crc if part.local_crc is None else part.local_crc, min(length, 0xFFFFFFFF),
                min(size if part.local_size is None else part.local_size, 0xFFFFFFFF),
                len(name), len(part.local_extra),
            ) + name + part.local_extra + packed + part.after  # fmt: skip
        directory += struct.pack(
            "<4s6H3I5H2I", b"PK\1\2", 0x0314, 20, part.flags, part.method, 0, 33, crc,
            min(length, 0xFFFFFFFF), min(size, 0xFFFFFFFF), len(part.name), len(part.extra), 0, 0,
            0, part.attributes, min(offset, 0xFFFFFFFF),
        ) + part.name + part.extra  # fmt: skip
    start = len(out)
    out += directory
    out += struct.pack(
        "<4s4H2IH", b"PK\5\6", 0, 0, end.get("count", count) & 0xFFFF,
        end.get("count", count) & 0xFFFF, end.get("length", len(directory)) & 0xFFFFFFFF,
        end.get("start", start) & 0xFFFFFFFF, len(comment),
    ) + comment  # fmt: skip
    return bytes(out)


def _packed(part: Part) -> bytes:
    if part.method != zipfile.ZIP_DEFLATED:
        return part.data
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return squeeze.compress(part.data) + squeeze.flush()


def torch_parts(pickled: bytes | None = None, top: str = "x") -> list[Part]:
    """What `torch.save` writes for one tensor `w` of four floats, or for another pickle."""
    if pickled is None:
        pickled = whole(mapping((text("w"), tensor())), protocol=2)
    return [
        Part(f"{top}/data.pkl".encode(), pickled),
        Part(f"{top}/byteorder".encode(), b"little"),
        Part(f"{top}/data/0".encode(), FLOATS),
        Part(f"{top}/version".encode(), b"3\n"),
    ]


def torch_file(pickled: bytes) -> bytes:
    return archive(torch_parts(pickled))


def legacy_file(pickled: bytes | None = None, **other: bytes) -> bytes:
    """PyTorch's old format: five pickles (`magic`, `protocol`, `system`, the object, `keys`), then
    the `storages`. Any of them can be replaced."""
    system = mapping(
        (text("protocol_version"), number(1001)),
        (text("little_endian"), b"\x88"),
        (text("type_sizes"), mapping((text("int"), number(4)))),
    )
    honest = {
        "magic": whole(number(0x1950A86A20F9469CFC6C), protocol=2),
        "protocol": whole(number(1001), protocol=2),
        "system": whole(system, protocol=2),
        "object": pickled or whole(mapping((text("w"), tensor())), protocol=2),
        "keys": whole(b"](" + text("0") + b"e", protocol=2),
        "storages": struct.pack("<Q", 4) + FLOATS,
    }
    return b"".join({**honest, **other}.values())


# safetensors and its index


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def entry(shape: Any, start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


# numpy


def npy(
    header: str | bytes, data: bytes = b"", version: int = 1, length: int | None = None
) -> bytes:
    encoded = header.encode() if isinstance(header, str) else header
    claimed = len(encoded) if length is None else length
    size = struct.pack("<H" if version == 1 else "<I", claimed)
    return b"\x93NUMPY" + bytes([version, 0]) + size + encoded + data


def npy_header(shape: str = "(4,)", descr: str = "'<f4'", fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


def save(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
