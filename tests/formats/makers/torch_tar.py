"""As PyTorch before 0.1.10 wrote it; today's still reads it, which the tests compare with."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from formats.samples import Values, arrays

SUFFIX = ".pt"

# PyTorch before 0.1.10 had no bool, and no tensors without axes or elements.
_OF_TODAY = ("flags", "count", "empty")


class _Pickler(pickle.Pickler):
    """Puts a number in place of each tensor, and notes it."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)
        self.tensors: dict[int, torch.Tensor] = {}

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, torch.Tensor):
            return None
        self.tensors[id(obj)] = obj
        return id(obj)


def write(path: Path, value: Any) -> None:
    """A tar of the object's tensors. Of those that share a storage the first has it, and the others
    a view of it, from its second element on."""
    with io.BytesIO() as file:
        pickler = _Pickler(file)
        pickler.dump(value)
        objects = file.getvalue()
    storages, tensors = b"", b""
    views: list[tuple[int, int, int, int]] = []
    known: dict[int, int] = {}
    for key, tensor in pickler.tensors.items():
        storage = tensor.untyped_storage()
        count = len(storage) // tensor.element_size()
        number, first = 10_000 + len(known) + len(views), tensor.storage_offset()
        if storage.data_ptr() not in known:
            known[storage.data_ptr()] = number
            cls = getattr(torch, tensor.type().rpartition(".")[2].replace("Tensor", "Storage"))
            storages += pickle.dumps((number, "cpu", cls), 2)
            storages += struct.pack("<q", count) + bytes(storage)
        else:
            views.append((number, known[storage.data_ptr()], 1, count - 1))
            first -= 1
        tensors += pickle.dumps((key, number, type(tensor)), 2)
        numbers = (*tensor.shape, *tensor.stride(), first)
        tensors += struct.pack(f"<i4x{len(numbers)}q", tensor.ndim, *numbers)
    parts = {
        "storages": pickle.dumps(len(known), 2) + storages + pickle.dumps(views, 2),
        "tensors": pickle.dumps(len(pickler.tensors), 2) + tensors,
        "pickle": objects,
    }
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def make(path: Path) -> Values:
    values = {name: value for name, value in arrays().items() if name not in _OF_TODAY}
    values["wide"] = np.random.default_rng(2).normal(size=(30, 100)).astype(np.float32)
    write(path, {"state_dict": {name: torch.from_numpy(v.copy()) for name, v in values.items()}})
    return values
