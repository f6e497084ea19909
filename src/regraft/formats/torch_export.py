"""PyTorch's exported programs (`torch.export.save`, `.pt2`).

A zip with the bytes of each storage as `data/weights/weight_<n>`, and beside them a JSON file that
says by name which storage, dtype, shape and strides; constants likewise. Older ones hold files of
`torch.save` inside. State dict and constants are listed in parts of these names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from regraft.errors import CorruptFile
from regraft.formats import Sample
from regraft.formats._bytes import Strided, contiguous
from regraft.formats._torch_archive import Archive
from regraft.formats._torch_storages import width
from regraft.formats._torch_tensors import Collected, TorchStored
from regraft.tensors import Stored

EXTRA = ""
SUFFIXES: tuple[str, ...] = ()

_FORMAT, _OLD_FORMAT = "archive_format", "serialized_exported_program.json"
_STATE, _CONSTANTS = "state_dict", "constants"
# Folder of a part, what its JSON file's name ends with after the model's, and its name before 2.9.
_PARTS = {
    _STATE: ("data/weights/", "_weights_config.json"),
    _CONSTANTS: ("data/constants/", "_constants_config.json"),
}
_OLD_PARTS = {_STATE: "serialized_state_dict.pt", _CONSTANTS: "serialized_constants.pt"}
_MAX_CONFIG = 256 << 20
# torch._export.serde.schema.ScalarType
_DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32",
    8: "float64", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16",
    29: "float8_e4m3fn", 30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz",
    33: "float8_e8m0fnu", 34: "uint32", 35: "uint64",
}  # fmt: skip


class _Size(msgspec.Struct):
    as_int: int | None = None


class _Tensor(msgspec.Struct):
    dtype: int
    sizes: list[_Size]
    strides: list[_Size]
    storage_offset: _Size


class _Payload(msgspec.Struct):
    path_name: str
    use_pickle: bool = False
    tensor_meta: _Tensor | None = None


class _Config(msgspec.Struct):
    config: dict[str, _Payload]


def sniff(sample: Sample) -> bool:
    names = sample.zip_names
    return any(n in (_OLD_FORMAT, _FORMAT) or n.endswith(f"/{_FORMAT}") for n in names)


def open(path: Path) -> Stored:
    """Lists the tensors. **Raises** `CorruptFile` and `UnsafeFile`."""
    try:
        archive = Archive(path, _FORMAT)
    except CorruptFile:
        archive = Archive(path, _OLD_FORMAT)
    collected = Collected(path.name, archive.room)
    for part, name in _OLD_PARTS.items():
        if archive.holds(name):
            _saved(archive, name, (part,), collected)
    models = _models(archive)
    for model in models:
        for part, (folder, ending) in _PARTS.items():
            prefix = (part,) if len(models) == 1 else (model, part)
            if archive.holds(f"{folder}{model}{ending}"):
                _payloads(archive, folder, f"{model}{ending}", prefix, collected)
            elif archive.holds(f"{folder}{model}.pt"):
                _saved(archive, f"{folder}{model}.pt", prefix, collected)
    return TorchStored("torch_export", archive.file, collected)


def _models(archive: Archive) -> list[str]:
    """Names of the programs in the archive."""
    found: dict[str, None] = {}
    for folder, ending in _PARTS.values():
        for name in archive.members:
            inner = name.removeprefix(f"{archive.top}{folder}")
            for known in (ending, ".pt"):
                if inner != name and inner.endswith(known):
                    found[inner.removesuffix(known)] = None
    return list(found)


def _saved(archive: Archive, name: str, prefix: tuple[str, ...], into: Collected) -> None:
    """A file of `torch.save` as a member."""
    inner = archive.inside(name)
    root, size = inner.unpickled("data.pkl")
    into.add(root, inner.storages(), size, prefix)


def _payloads(
    archive: Archive, folder: str, config: str, prefix: tuple[str, ...], into: Collected
) -> None:
    """The tensors that a JSON file names."""
    where = f"{archive.path.name}, member {folder}{config}"
    try:
        payloads = msgspec.json.decode(archive.read(folder + config, _MAX_CONFIG), type=_Config)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptFile(where, found=str(error)[:300]) from error
    for name, payload in payloads.config.items():
        path, member = (*prefix, name), f"{folder}{payload.path_name}"
        if payload.use_pickle and payload.tensor_meta is not None:
            _saved(archive, _existing(archive, member, name), path, into)
        elif payload.tensor_meta is None:
            into.left_out(path, "an object that is no tensor")
        else:
            _raw(archive, _existing(archive, member, name), payload.tensor_meta, path, into)


def _existing(archive: Archive, member: str, name: str) -> str:
    if not archive.holds(member):
        raise CorruptFile(
            f"{archive.path.name}, tensor {name!r}",
            found=f"no member {member[:200]}",
            hint="the file is incomplete; get it again",
        )
    return member


def _raw(
    archive: Archive, name: str, tensor: _Tensor, path: tuple[str, ...], into: Collected
) -> None:
    """A tensor whose storage's bytes are a member."""
    where = f"{archive.path.name}, tensor {path[-1]!r}"
    member = archive.members[f"{archive.top}{name}"]
    numbers: list[Any] = [size.as_int for size in (*tensor.sizes, *tensor.strides)]
    dtype, first = _DTYPES.get(tensor.dtype), tensor.storage_offset.as_int
    if dtype is None:
        into.left_out(path, f"dtype {tensor.dtype} of torch.export is not known")
    elif first is None or None in numbers:
        into.left_out(path, "its shape is symbolic")
    elif not member.stored:
        raise CorruptFile(where, found="a compressed member", expected="stored bytes")
    else:
        shape = tuple(numbers[: len(tensor.sizes)])
        strides = tuple(numbers[len(tensor.sizes) :])
        if member.size == 0 and 0 not in shape:
            into.left_out(path, "saved without values")
            return
        start = archive.file.start(member)
        offset = start + first * width(dtype)
        dense = len(strides) == len(shape) and strides == contiguous(shape)
        place = Strided(
            start, member.size, offset, shape, None if dense else strides, dtype,
            archive.big_endian,
        )  # fmt: skip
        place.check(where)
        into.tensor(path, "", place)
