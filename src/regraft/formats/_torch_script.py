"""TorchScript archives: a compiled module's state dict, its other attributes, its constants.

The object in `data.pkl` has parameters, buffers and plain attributes alike; which is which stands
in the classes' code, at the head of each class. What belongs to no state dict is listed in parts of
its own: `attributes`, and `constants`, by which the code calls them (`CONSTANTS.c0`).
"""

from __future__ import annotations

import re

from regraft.formats._torch_archive import Archive
from regraft.formats._torch_tensors import Collected

STATE, CONSTANTS = "state_dict", "constants"
_CLASS = re.compile(
    r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*)\]\n  __buffers__ = \[(.*)\]$", re.MULTILINE
)
_NAME = re.compile(r'"([^"]+)"')
_MAX_CODE, _MAX_ALL_CODE = 4 << 20, 32 << 20


def collect(archive: Archive, into: Collected) -> None:
    """Lists the tensors of an archive. **Raises** `CorruptFile`, `UnsafeFile`."""
    root, size = archive.unpickled("data.pkl")
    into.add(root, archive.storages(), size, (STATE,), _Classes(archive))
    constants, size = archive.unpickled("constants.pkl")
    if isinstance(constants, (tuple, list)):
        named = {f"c{index}": constant for index, constant in enumerate(constants)}
        into.add(named, archive.storages("constants/{}"), size, (CONSTANTS,))


class _Classes:
    """Parameters and buffers by class, from the code, which is read file by file as needed."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._files: dict[str, dict[str, frozenset[str]]] = {}
        self._left = _MAX_ALL_CODE

    def __call__(self, path: str) -> frozenset[str] | None:
        """Of `__torch__.a.b.Class`, as `code/__torch__/a/b.py` says."""
        module, _, name = path.rpartition(".")
        if module not in self._files:
            self._files[module] = self._classes(f"code/{module.replace('.', '/')}.py")
        return self._files[module].get(name)

    def _classes(self, member: str) -> dict[str, frozenset[str]]:
        if not self._archive.holds(member) or self._left <= 0:
            return {}
        code = self._archive.read(member, min(_MAX_CODE, self._left)).decode("utf-8", "replace")
        self._left -= len(code)
        return {
            name: frozenset(_NAME.findall(parameters) + _NAME.findall(buffers))
            for name, parameters, buffers in _CLASS.findall(code)
        }
