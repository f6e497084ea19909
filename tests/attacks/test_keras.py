"""Keras' archives and weight stores: configs that mislead, stores that unpack or name without end."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from attacks.building import FLOATS, Part, archive
from attacks.harness import REFUSED, Attack, check, written
from regraft.errors import FormatError, UnsafeFile

VALUES = np.frombuffer(FLOATS, np.float32)
Build = Callable[[h5py.File], Any]


def layer(file: h5py.File, key: str = "dense", name: str | None = "head") -> h5py.Group:
    group = file.create_group(f"layers/{key}/vars")
    if name is not None:
        group.attrs["name"] = name
    group["0"] = VALUES.reshape(2, 2)
    group["1"] = VALUES[:2]
    return group


def store(build: Build = layer) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        build(file)
    return stream.getvalue()


CONFIG = {
    "class_name": "Sequential", "config": {"name": "m", "layers": [
        {"class_name": "Dense", "config": {"name": "head", "use_bias": True}}]},
}  # fmt: skip


def keras(
    config: object = CONFIG, weights: bytes | None = None, *more: Part, **fields: Any
) -> bytes:
    """A `.keras` archive; `fields` are those of the weights' member."""
    encoded = config if isinstance(config, bytes) else json.dumps(config).encode()
    held = store() if weights is None else weights
    return archive([
        Part(b"metadata.json", b'{"keras_version": "3.15.1"}'), Part(b"config.json", encoded),
        Part(b"model.weights.h5", held)._replace(**fields), *more,
    ])  # fmt: skip


def _nested(depth: int) -> bytes:
    return b'{"class_name":"M","config":{"layers":[' * depth + b"]}}" * depth


def _long_names(file: h5py.File) -> None:
    """Names of 60 kilobytes around many layers: a listing far larger than the file."""
    group = file
    for level in range(20):
        group = group.create_group(f"part{level}")
        group.create_group("vars").attrs["name"] = "n" * 60_000
        group["vars/0"] = VALUES
    for index in range(400):
        group.create_group(f"dense_{index}/vars")["0"] = VALUES


def _deep(file: h5py.File) -> None:
    group = file
    for _ in range(200):
        group = group.create_group("layers/dense")
    group.create_group("vars")["0"] = VALUES


def _colliding(file: h5py.File) -> None:
    layer(file, "dense", "same")
    layer(file, "dense_1", "same")


def _numbered(file: h5py.File) -> None:
    group = file.create_group("layers/dense/vars")
    for name in ("0", "00", "-1", "１", "9" * 5000, "1_0"):
        group[name] = VALUES


def _outside(file: h5py.File) -> None:
    file["layers"] = h5py.ExternalLink("/etc/passwd", "/")


def _named(value: Any) -> Build:
    def build(file: h5py.File) -> None:
        layer(file, name=None).attrs["name"] = value

    return build


LISTED = {"head/kernel": (2, 2), "head/bias": (2,)}
PLAIN = {"head/0": (2, 2), "head/1": (2,)}
ARCHIVES: dict[str, tuple[Callable[[], bytes], Any, str]] = {
    "a config that is no JSON": (lambda: keras(b"{"), None, ""),
    "a config that is empty": (lambda: keras(b""), None, ""),
    "a config that is a list": (lambda: keras([]), None, ""),
    "a config that is no text": (lambda: keras(b"\xff\xfe"), REFUSED, "config.json"),
    "a config nested deep": (lambda: keras(_nested(30_000)), None, ""),
    "a config of models in models": (lambda: keras(_nested(300)), None, ""),
    "a config with a long number": (lambda: keras(b'{"a":' + b"9" * 5000 + b"}"), None, ""),
    "a config of a hundred megabytes": (
        lambda: keras(b" " * (100 << 20)), REFUSED, "config.json"),
    "a config that unpacks to a gigabyte": (
        lambda: archive([Part(b"config.json", b" " * (400 << 20), 8),
                         Part(b"model.weights.h5", store())]), REFUSED, "config.json"),
    "a config of many small lists": (
        lambda: keras(b"[" + b"[]," * 1_300_000 + b"[]]"), None, ""),
    "a config of wrong types": (
        lambda: keras({"class_name": ["Dense"], "config": {"layers": {"a": 1}, "name": {}}}),
        None, ""),
    "a config of a thousand layers of one name": (
        lambda: keras({"class_name": "Sequential", "config": {"layers": [
            {"class_name": "Dense", "config": {"name": "head"}}] * 1000}}), None, ""),
    "a config whose class is code": (
        lambda: keras({"class_name": "Lambda", "config": {"name": "head", "function": {
            "class_name": "__lambda__", "config": {"code": "4wEAAAA="}}}}), LISTED, ""),
    "a config that names a module": (
        lambda: keras({"module": "os", "class_name": "system", "registered_name": "x",
                       "config": {"layers": [{"module": "builtins", "class_name": "exec",
                                              "config": {"name": "head"}}]}}), PLAIN, ""),
    "metadata that is nested deep": (
        lambda: archive([Part(b"metadata.json", b"[" * 100_000), Part(b"config.json", b"{}"),
                         Part(b"model.weights.h5", store())]), REFUSED, "metadata.json"),
    "metadata with a long number": (
        lambda: archive([Part(b"metadata.json", b"[" + b"9" * 5000 + b"]"),
                         Part(b"config.json", b"{}"), Part(b"model.weights.h5", store())]),
        REFUSED, "metadata.json"),
    "no weights": (
        lambda: archive([Part(b"config.json", b"{}"), Part(b"model.weights.npz", b"")]),
        FormatError, "x.keras"),
    "weights that are empty": (lambda: keras(weights=b""), REFUSED, "weights"),
    "weights that are no HDF5": (lambda: keras(weights=b"junk" * 99), REFUSED, "weights"),
    "weights that are cut off": (lambda: keras(weights=store()[:-500]), REFUSED, "weights"),
    "weights that go on into the next member": (
        lambda: keras(CONFIG, store()[:-2000], Part(b"rest", store()[-2000:])), REFUSED, "weights"),
    "weights that unpack to a gigabyte": (
        lambda: keras(weights=store() + bytes(400 << 20), method=8), REFUSED, "weights"),
    "weights that unpack to nothing but zeros": (
        lambda: keras(weights=bytes(400 << 20), method=8), REFUSED, "weights"),
    "weights with another checksum": (lambda: keras(crc=99, local_crc=99), None, ""),
    "packed weights with another checksum": (
        lambda: keras(method=8, crc=99, local_crc=99), REFUSED, "weights"),
    "weights that link outside": (lambda: keras(weights=store(_outside)), UnsafeFile, "weights"),
    "assets that lead outside": (
        lambda: keras(CONFIG, None, Part(b"assets/../../evil", b"x")), UnsafeFile, "evil"),
    "a custom object beside": (
        lambda: keras(CONFIG, None, Part(b"custom_objects.py", b"import os")), LISTED, ""),
}  # fmt: skip
STORES: dict[str, tuple[Build, Any, str]] = {
    "names of sixty kilobytes": (_long_names, None, ""),
    "layers nested deep": (_deep, REFUSED, "weights"),
    "two layers of one name": (_colliding, None, ""),
    "variables of odd numbers": (_numbered, None, ""),
    "layers in another file": (_outside, UnsafeFile, "layers"),
    "a name that is a number": (_named(5), None, ""),
    "a name that is a list": (_named(["a", "b"]), None, ""),
    "a name of control characters": (_named("\x1b]0;owned\x07"), None, ""),
    "a name that leads up": (_named("../../head"), {
        "../../head/kernel": (2, 2), "../../head/bias": (2,)}, ""),
    "a name that is empty": (_named(""), None, ""),
    "variables that are groups": (
        lambda f: layer(f).parent.create_group("sub").create_group("vars").create_group("0"),
        LISTED, ""),
}  # fmt: skip


def _attacks() -> dict[str, Attack]:
    found: dict[str, Attack] = {}
    for name, (make, expects, where) in ARCHIVES.items():
        found[f"archive: {name}"] = Attack(_late("x.keras", make), expects, where)
    for name, (build, expects, where) in STORES.items():
        make = functools.partial(store, build)
        found[f"store: {name}"] = Attack(_late("x.weights.h5", make), expects, where)
        inside = functools.partial(_around, build)
        found[f"archive: store: {name}"] = Attack(_late("x.keras", inside), None)
    return found


def _around(build: Build) -> bytes:
    return keras({}, store(build))


def _late(name: str, make: Callable[[], bytes]) -> Callable[[Path, Path], Path]:
    """Made when it is needed: some are hundreds of megabytes on the way."""
    return lambda folder, marker: written(name, make())(folder, marker)


ATTACKS = _attacks()


def test_keras(attack: str, outcomes: dict[str, dict[str, Any]]) -> None:
    check(ATTACKS[attack], outcomes[attack])
