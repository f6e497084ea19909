"""Objects whose unpickling would make the marker, saved by PyTorch, pickle and NumPy themselves."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attacks.harness import Attack, check
from regraft.errors import UnsafeFile


class Touch:
    """Unpickling it with Python's own machine would make the marker."""

    def __init__(self, marker: Path, call: Callable[..., Any] = os.mkdir) -> None:
        self.marker, self.call = marker, call

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return self.call, (str(self.marker),)


class Copying(Touch):
    """Through `copyfile`, of this very file."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return shutil.copyfile, (__file__, str(self.marker))


class Stateful:
    """Plain but for its state, which would make the marker as it is built."""

    def __init__(self, marker: Path) -> None:
        self.held = Touch(marker)


class Slotted:
    __slots__ = ("held",)

    def __init__(self, marker: Path) -> None:
        self.held = Touch(marker)


class Dictionary(dict[str, Any]):
    """A subclass, whose items come one by one."""


PAYLOADS: dict[str, Callable[[Path], object]] = {
    "as the whole": lambda m: Touch(m),
    "in a value": lambda m: {"state_dict": {"w": np.ones(2)}, "x": Touch(m)},
    "in a key": lambda m: {("k", Touch(m)): 1},
    "deep inside": lambda m: {"a": [[{"b": (1, {"c": Touch(m)})}]]},
    "as an open": lambda m: {"x": Touch(m, open)},
    "as a makedirs": lambda m: {"x": Touch(m, os.makedirs)},
    "as a copy of a file": lambda m: Copying(m),
    "as eval": lambda m: {"x": Touch(m, eval)},
    "in the state of an object": lambda m: {"x": Stateful(m)},
    "in a slot of an object": lambda m: {"x": Slotted(m)},
    "in a dict of another class": lambda m: Dictionary(x=Touch(m)),
    "in a set": lambda m: {"x": frozenset([Touch(m)])},
}
SAVERS: dict[str, tuple[str, Callable[[object, Path], Any]]] = {
    "torch": (".pth", lambda o, p: torch.save(o, p)),
    "old torch": (".pt", lambda o, p: torch.save(o, p, _use_new_zipfile_serialization=False)),
    "pickle 2": (".pkl", lambda o, p: p.write_bytes(pickle.dumps(o, 2))),
    "pickle 5": (".pkl", lambda o, p: p.write_bytes(pickle.dumps(o, 5))),
    "npy": (".npy", lambda o, p: np.save(p, _boxed(o), allow_pickle=True)),
    "npz": (".npz", lambda o, p: np.savez(p, a=_boxed(o), b=np.ones(2))),
}


def _boxed(thing: object) -> Any:
    box = np.empty((), object)
    box[()] = thing
    return box


def _saved(payload: str, saver: str) -> Attack:
    ending, save = SAVERS[saver]

    def make(folder: Path, marker: Path) -> Path:
        save(PAYLOADS[payload](marker), folder / f"x{ending}")
        return folder / f"x{ending}"

    return Attack(make, UnsafeFile, r"offset \d+")


ATTACKS = {f"{payload}, {saver}": _saved(payload, saver) for payload in PAYLOADS for saver in SAVERS}


def test_saved_objects(attack: str, outcomes: dict[str, dict[str, Any]]) -> None:
    check(ATTACKS[attack], outcomes[attack])
