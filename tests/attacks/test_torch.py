"""PyTorch files whose tensors claim what their storages do not hold, and archives that mislead."""

from __future__ import annotations

import struct
from typing import Any

from attacks.building import (
    FLOATS,
    Part,
    archive,
    called,
    get,
    group,
    legacy_file,
    mapping,
    named,
    number,
    persistent,
    put,
    sizes,
    storage,
    tensor,
    text,
    torch_file,
    torch_parts,
    whole,
)
from attacks.harness import Attack, check, written
from regraft.errors import CorruptFile, UnsafeFile

BIG = 1 << 40


def _one(opcodes: bytes) -> bytes:
    return whole(mapping((text("w"), opcodes)), protocol=2)


def _v2(*args: bytes) -> bytes:
    return called(named("torch._utils", "_rebuild_tensor_v2"), *args)


# A view of a storage of four floats. What is refused names the tensor or the storage.
VIEWS: dict[str, bytes] = {
    "a negative size": tensor((-4,)),
    "two negative sizes": tensor((-2, -2), (2, 1)),
    "a negative stride": tensor((4,), (-1,)),
    "a negative stride from the end": tensor((4,), (-1,), 3),
    "a negative offset": tensor((4,), (1,), -1),
    "one element too many": tensor((5,)),
    "an offset past the end": tensor((4,), (1,), 1),
    "an offset that overflows": tensor((4,), (1,), (1 << 62) - 1),
    "an offset of 2^64": tensor((4,), (1,), 1 << 64),
    "a stride past the end": tensor((2,), (4,)),
    "a stride that overflows": tensor((2,), (1 << 62,)),
    "overlapping views past the end": tensor((3, 3), (1, 1)),
    "a product that overflows": tensor((1 << 32, 1 << 32), (0, 0)),
    "a product that overflows to zero": tensor((1 << 33, 1 << 33, 4), (0, 0, 0)),
    "strides of zero that spread it over terabytes": tensor((BIG,), (0,)),
    "strides of zero on both axes": tensor((1 << 20, 1 << 20), (0, 0)),
    "one stride too few": tensor((2, 2), (1,)),
    "one stride too many": tensor((4,), (1, 1)),
    "no strides": _v2(storage(), number(0), sizes([4])),
    "65 axes": tensor([1] * 65, [1] * 65),
    "sizes that are fractions": _v2(
        storage(), number(0), group(b"G" + struct.pack(">d", 4.0)), sizes([1])
    ),
    "sizes in a list": _v2(storage(), number(0), b"]K\x04a", sizes([1])),
    "an offset of text": _v2(storage(), text("0"), sizes([4]), sizes([1])),
    "a storage that is larger than its member": tensor(of=storage(count=5)),
    "a storage that overflows": tensor(of=storage(count=1 << 62)),
    "a storage of wider numbers": tensor(of=storage(kind="DoubleStorage")),
    "a storage without a member": tensor(of=storage("1")),
    "a storage by the name of the pickle": tensor(of=storage("../data.pkl", 4)),
    "a storage that is no storage": tensor(of=number(0)),
    "a storage of five parts too few": tensor(of=persistent(text("storage"))),
    "a reference that is no storage": tensor(
        of=persistent(text("module"), named("torch", "FloatStorage"), text("0"), text("cpu"), number(4))
    ),
    "a dtype of half bytes that says it holds all": called(
        named("torch._utils", "_rebuild_tensor_v3"), storage(kind="UntypedStorage", count=16),
        number(0), sizes([BIG]), sizes([1]), b"\x89",
        called(named("collections", "OrderedDict")), named("torch", "uint4"),
    ),
    "a dtype of another width": called(
        named("torch._utils", "_rebuild_tensor_v3"), storage(kind="UntypedStorage", count=16),
        number(0), sizes([16]), sizes([1]), b"\x89",
        called(named("collections", "OrderedDict")), named("torch", "float32"),
    ),
}  # fmt: skip
# These are what PyTorch itself makes.
HONEST: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "overlapping views inside the storage": (tensor((2, 3), (1, 1)), (2, 3)),
    "an expanded view": (tensor((1000, 4), (0, 1)), (1000, 4)),
    "an expanded scalar": (tensor((3, 5), (0, 0), 3), (3, 5)),
    "a view of nothing": (tensor((0, BIG), (1, 1)), (0, BIG)),
    "a scalar": (tensor((), (), 3), ()),
    "64 axes": (tensor([1] * 64, [1] * 64), (1,) * 64),
}


def _with(*parts: Part, pickled: bytes | None = None) -> bytes:
    return archive([*torch_parts(pickled), *parts])


def _but(name: bytes, data: bytes) -> bytes:
    """A whole file, one of whose members says something else."""
    return archive([p._replace(data=data) if p.name == name else p for p in torch_parts()])


_SCRIPT = called(named("os", "system"), text("true"))
ARCHIVES: dict[str, tuple[bytes, Any, str]] = {
    "two pickles": (_with(*torch_parts(top="y")), (CorruptFile, UnsafeFile), "pkl|x.pth"),
    "two pickles that differ by case": (
        _with(Part(b"x/DATA.PKL", whole(mapping()))), (CorruptFile, UnsafeFile), "x.pth"),
    "an unknown byte order": (_but(b"x/byteorder", b"middle"), CorruptFile, "byteorder"),
    "a byte order of a megabyte": (_but(b"x/byteorder", b" " * (1 << 20)), CorruptFile, "byteorder"),
    "an empty pickle": (_but(b"x/data.pkl", b""), CorruptFile, "offset"),
    "code in the constants of TorchScript": (
        _with(Part(b"x/constants.pkl", whole(_SCRIPT)), Part(b"x/code/__torch__/m.py", b"pass")),
        UnsafeFile, "constants"),
    "a record of ours that is no JSON": (_with(Part(b"x/regraft.json", b"{")), CorruptFile, "json"),
    "a record of ours that is nested deep": (
        _with(Part(b"x/regraft.json", b"[" * 200_000)), CorruptFile, "json"),
    "a record of ours with a long number": (
        _with(Part(b"x/regraft.json", b'{"a": ' + b"9" * 5000 + b"}")), CorruptFile, "json"),
    "a compressed storage": (
        archive([p._replace(method=8) if b"data/0" in p.name else p for p in torch_parts()]),
        CorruptFile, "storage"),
}  # fmt: skip
_LISTED = mapping((text("w"), tensor()))
OLD: dict[str, bytes] = {
    "a wrong magic number": legacy_file(magic=whole(number(0x1950A86A20F9469CFC6D), protocol=2)),
    "a wrong protocol": legacy_file(protocol=whole(number(1000), protocol=2)),
    "a protocol without measure": legacy_file(
        protocol=whole(b"]" + put(0) + b"".join(
            b"(" + get(i) * 10 + b"t" + put(i + 1) + b"0" for i in range(40)) + get(40) + b"0")),
    "a system that is no dict": legacy_file(system=whole(b"]", protocol=2)),
    "keys that are no list": legacy_file(keys=whole(mapping(), protocol=2)),
    "keys that are numbers": legacy_file(keys=whole(b"]K\x00a", protocol=2)),
    "keys that are a huge number": legacy_file(keys=whole(
        b"]\x8b" + struct.pack("<i", 10_000) + b"\x7f" * 10_000 + b"a", protocol=2)),
    "a key too many": legacy_file(keys=whole(b"](" + text("0") + text("1") + b"e", protocol=2)),
    "a key twice": legacy_file(keys=whole(b"](" + text("0") + text("0") + b"e", protocol=2)),
    "no keys": legacy_file(keys=whole(b"]", protocol=2)),
    "a storage with another count": legacy_file(storages=struct.pack("<Q", 5) + FLOATS + bytes(4)),
    "a storage of 2^63 numbers": legacy_file(storages=struct.pack("<Q", 1 << 63) + FLOATS),
    "a storage that is cut off": legacy_file(storages=struct.pack("<Q", 4) + FLOATS[:15]),
    "no storages": legacy_file(storages=b""),
    "a count that is cut off": legacy_file(storages=b"\4\0\0"),
    "one storage of two sizes": legacy_file(whole(mapping(
        (text("a"), tensor()), (text("w"), tensor((2,), of=storage(count=2)))), protocol=2)),
    "one storage of two types": legacy_file(whole(mapping(
        (text("a"), tensor(of=storage(kind="IntStorage"))), (text("w"), tensor())), protocol=2)),
    "a view of a storage past its end": legacy_file(_one(tensor(of=persistent(
        text("storage"), named("torch", "FloatStorage"), text("0"), text("cpu"), number(4),
        group(text("v"), number(3), number(4)))))),
    "a fifth pickle that is missing": legacy_file(keys=b"", storages=b""),
    "an object that is cut off": legacy_file(whole(_LISTED, protocol=2)[:-1], keys=b"", storages=b""),
}  # fmt: skip


def _attacks() -> dict[str, Attack]:
    found: dict[str, Attack] = {}
    for name, opcodes in VIEWS.items():
        found[name] = Attack(
            written("x.pth", torch_file(_one(opcodes))), CorruptFile, "tensor 'w'|storage"
        )
    for name in list(VIEWS)[::4]:
        found[f"{name}, in the old format"] = Attack(
            written("x.pt", legacy_file(_one(VIEWS[name]))), CorruptFile, "tensor|storage|x.pt"
        )
    for name, (opcodes, shape) in HONEST.items():
        found[name] = Attack(written("x.pth", torch_file(_one(opcodes))), {"w": shape})
    for name, (content, expects, where) in ARCHIVES.items():
        found[name] = Attack(written("x.pth", content), expects, where)
    for name, content in OLD.items():
        found[f"{name}, in the old format"] = Attack(
            written("x.pt", content), CorruptFile, "x.pt|storage|offset"
        )
    for name, root in {
        "a number": number(5), "a text": text("weights"), "nothing": b"N", "a list": b"]",
        "a reference": named("torch", "float32"), "a storage": storage(),
    }.items():  # fmt: skip
        found[f"a file that holds {name}"] = Attack(written("x.pth", torch_file(whole(root))), None)
        found[f"a file that holds {name}, in the old format"] = Attack(
            written("x.pt", legacy_file(whole(root))), None
        )
    return found


ATTACKS = _attacks()


def test_torch_files(attack: str, outcomes: dict[str, dict[str, Any]]) -> None:
    check(ATTACKS[attack], outcomes[attack])
