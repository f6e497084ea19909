"""Hostile files. Each payload could only make a marker in the test's own folder; none may."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from regraft import checkpoints
from regraft.errors import CorruptFile, FormatError, UnsafeFile


class Touch:
    """Unpickling it with Python's own machine would create the file."""

    def __init__(self, marker: Path, call: Callable[..., Any] = os.mkdir) -> None:
        self.marker, self.call = marker, call

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return self.call, (str(self.marker),)


def refused_or_inert(path: Path, marker: Path) -> None:
    """It opens without running anything, or is refused with a typed error; in bounded time."""
    started = time.monotonic()
    try:
        with checkpoints.open(path, container="") as found:
            for name in found:
                found.read(name)
    except FormatError as error:
        assert error.where
    assert not marker.exists()
    assert time.monotonic() - started < 10


PAYLOADS: dict[str, Callable[[Path], object]] = {
    "in a value": lambda m: {"state_dict": {"w": torch.ones(2)}, "x": Touch(m)},
    "as a key": lambda m: {"w": torch.ones(2), ("k", Touch(m)): 1},
    "as the whole": lambda m: Touch(m),
    "deep inside": lambda m: {"a": [[{"b": (1, {"c": Touch(m)})}]], "w": torch.ones(2)},
    "as an open": lambda m: {"w": torch.ones(2), "x": Touch(m, open)},
    "as eval": lambda m: {"w": torch.ones(2), "x": Touch(m, eval)},
    "in a getattr chain": lambda m: {"x": Touch(m, getattr(os, "makedirs"))},  # noqa: B009
}


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("new", [True, False])
def test_torch_payloads(payload: str, new: bool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save(PAYLOADS[payload](marker), tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    refused_or_inert(tmp_path / "x.pth", marker)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_pickle_and_npy_payloads(payload: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    thing = PAYLOADS[payload](marker)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(thing))
    refused_or_inert(tmp_path / "x.pkl", marker)
    box = np.empty((), object)
    box[()] = thing
    np.save(tmp_path / "x.npy", box, allow_pickle=True)
    refused_or_inert(tmp_path / "x.npy", marker)
    np.savez(tmp_path / "x.npz", a=box, b=np.ones(2))
    refused_or_inert(tmp_path / "x.npz", marker)


PICKLES = {
    "deep nesting": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "deep tuples": b"\x80\x02)" + b"\x85" * 200_000 + b".",
    "memo bomb": b"\x80\x02" + b"".join(b"]r" + struct.pack("<I", i * 7919) for i in range(50_000))
    + b"0" * 49_999 + b".",
    "billion laughs": b"\x80\x02]q\x00" + b"".join(
        b"(" + b"h" + bytes([i]) + (b"h" + bytes([i])) * 9 + b"lq" + bytes([i + 1])
        for i in range(40)) + b".",
    "huge string": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "huge long": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "stack underflow": b"\x80\x02R.",
    "no stop": b"\x80\x02}",
    "unknown opcode": b"\x80\x02\xff.",
    "future protocol": b"\x80\x63}.",
    "extension registry": b"\x80\x02\x82\x01.",
    "persistent id": b"\x80\x02K\x01Q.",
    "self reference": b"\x80\x02]q\x00h\x00a.",
    "build on a global": b"\x80\x02cos\nsystem\n}b.",
    "newobj on a global": b"\x80\x02cos\nsystem\n)\x81.",
    "inst opcode": b"(S'true'\nios\nsystem\n.",
    "obj opcode": b"(cos\nsystem\nS'true'\no.",
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_raw_pickles(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "x.pkl").write_bytes(PICKLES[name])
    refused_or_inert(tmp_path / "x.pkl", marker)
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("x/data.pkl", PICKLES[name])
        archive.writestr("x/version", "3\n")
    refused_or_inert(tmp_path / "x.pth", marker)


def _header(entries: object) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def _entry(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


HEADERS = {
    "header longer than the file": struct.pack("<Q", 1 << 60) + b"{}",
    "length of 2^64-1": struct.pack("<Q", (1 << 64) - 1) + b"{}",
    "no JSON": _header(b"{" * 10),
    "deep JSON": _header(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "an array": _header([1, 2]),
    "overlap": _header({"a": _entry([2], 0, 8), "b": _entry([2], 4, 12)}) + bytes(12),
    "a hole": _header({"a": _entry([1], 0, 4), "b": _entry([1], 8, 12)}) + bytes(12),
    "beyond the end": _header({"a": _entry([2], 0, 8)}) + bytes(4),
    "bytes left over": _header({"a": _entry([1], 0, 4)}) + bytes(8),
    "shape that overflows": _header({"a": _entry([1 << 62, 1 << 62], 0, 4)}) + bytes(4),
    "negative shape": _header({"a": _entry([-1], 0, 4)}) + bytes(4),
    "negative offset": _header({"a": _entry([1], -4, 0)}) + bytes(4),
    "end before start": _header({"a": _entry([1], 4, 0)}) + bytes(4),
    "unknown dtype": _header({"a": _entry([1], 0, 4, "EVIL")}) + bytes(4),
    "twice the same name": _header(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}') + bytes(4),
    "metadata of numbers": _header({"__metadata__": {"a": 1}}),
    "shape of text": _header({"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}}),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_safetensors_headers(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(HEADERS[name])
    with pytest.raises(FormatError):
        checkpoints.open(tmp_path / "x.safetensors")


def _torch_zip(path: Path, members: dict[str, bytes], compression: int = 0) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_torch_storage_that_is_too_short(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.ones(1000)}, path)
    members = _members(path)
    data = next(name for name in members if name.endswith("data/0"))
    _torch_zip(path, {**members, data: members[data][:100]})
    with pytest.raises(CorruptFile):
        checkpoints.open(path)
    _torch_zip(path, {name: part for name, part in members.items() if name != data})
    with pytest.raises(CorruptFile):
        checkpoints.open(path)


def test_zip_bomb_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    _torch_zip(path, {"x/data.pkl": b"\x80\x02}.", "x/data/0": bytes(300 << 20)}, 8)
    assert path.stat().st_size < 1 << 20
    refused_or_inert(path, tmp_path / "marker")
    _torch_zip(path, {"x/data.pkl": bytes(300 << 20)}, 8)
    refused_or_inert(path, tmp_path / "marker")


def test_zip_with_overlapping_members(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/data/0", bytes(64))
    content = bytearray(buffer.getvalue())
    second = content.rindex(b"PK\x01\x02")
    content[second + 42 : second + 46] = bytes(4)  # both directory entries name the first member
    (tmp_path / "x.pth").write_bytes(bytes(content))
    refused_or_inert(tmp_path / "x.pth", tmp_path / "marker")


def test_hdf5_that_reaches_outside(tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["w"] = np.ones(3)
    values = tmp_path / "values.bin"
    values.write_bytes(bytes(24))
    tricks: dict[str, Callable[[h5py.File], None]] = {
        "external": lambda f: f.__setitem__("l/vars", h5py.ExternalLink(str(secret), "/w")),
        "soft": lambda f: f.__setitem__("l/s", h5py.SoftLink("/l")),
        "values": lambda f: f.create_dataset(
            "l/w", (3,), "f8", external=[(str(values), 0, 24)]
        ) and None,
        "cycle": lambda f: f.__setitem__("l/again", f["l"]),
    }  # fmt: skip
    for name, trick in tricks.items():
        path = tmp_path / f"{name}.h5"
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = np.array([b"l"])
            file.create_group("l").attrs["weight_names"] = np.array([b"w"])
            trick(file)
        with pytest.raises(FormatError):
            checkpoints.open(path)
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(str(secret), "w", (3,))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.attrs["layer_names"] = np.array([b"l"])
        file.create_group("l").create_virtual_dataset("w", layout)
    with pytest.raises(UnsafeFile):
        checkpoints.open(tmp_path / "virtual.h5")


def test_hdf5_of_a_declared_shape_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = np.array([b"l"])
        group = file.create_group("l")
        group.attrs["weight_names"] = np.array([b"w"])
        group.create_dataset("w", (1 << 40,), "f4", chunks=(1 << 20,))
    with pytest.raises(CorruptFile):
        checkpoints.open(path)
