"""PyTorch's packages (`torch.package`): code and pickled objects in one zip.

The code is not looked at; the tensors of every pickle are listed, under its path in the package
where there are several. Storages are members `.data/<key>.storage`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regraft.formats import Sample
from regraft.formats._pickle_records import Opaque, Reference
from regraft.formats._torch_archive import Archive
from regraft.formats._torch_tensors import Collected, TorchStored
from regraft.tensors import Stored

EXTRA = ""
SUFFIXES: tuple[str, ...] = ()

_MODULES = ".data/extern_modules"
_PICKLE = ".pkl"


def sniff(sample: Sample) -> bool:
    return any(name.endswith(f"/{_MODULES}") or name == _MODULES for name in sample.zip_names)


def open(path: Path) -> Stored:
    """Lists the tensors. **Raises** `CorruptFile` and `UnsafeFile`."""
    archive = Archive(path, _MODULES)
    collected = Collected(path.name, archive.room)
    storages = archive.storages(".data/{}.storage")
    inside = (n.removeprefix(archive.top) for n in archive.members if n.startswith(archive.top))
    names = [n for n in inside if n.endswith(_PICKLE) and not n.startswith(".data/")]
    for name in names:
        root, size = archive.unpickled(name, _persistent)
        prefix = () if len(names) == 1 else (name.removesuffix(_PICKLE),)
        collected.add(root, storages, size, prefix)
    return TorchStored("torch_package", archive.file, collected)


def _persistent(pid: Any) -> Any:
    """A storage, or a call that is to be made with the package at hand."""
    match pid:
        case ("reduce_package", *_, function, tuple(args)):
            return Opaque(function, args)
        case _:
            return Reference(pid)
